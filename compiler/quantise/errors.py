"""What can go wrong on the way to integers."""

from patchloom.compiler.machine.errors import Error


class QuantiseError(Error, ValueError):
    """What cannot be expressed in integers, and where."""
