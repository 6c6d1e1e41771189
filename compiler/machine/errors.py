"""What goes wrong through no fault of Patchloom's: every exception that a user can put right is an `Error`."""


class Error(Exception):
    """The message names the thing, the rule and the value; several problems are told at once, one a line."""


class MissingExtraError(Error, ImportError):
    """Something needs packages that the base installation does not bring."""

    def __init__(self, what: str, extra: str, module: str) -> None:
        super().__init__(f"{what} needs {module}: pip install 'patchloom[{extra}]'", name=module)


class InputError(Error, ValueError):
    """Data that a model or Program cannot take; the message names it, the rule and the value."""
