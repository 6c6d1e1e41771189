"""From a quantised graph to a Program: commands in order, addresses, memory image.

Every node drafts its own commands. Drafts name buffers, not addresses: once all commands of a task are known, so
are the buffers' lifetimes, and `buffers.allocate` places them.
"""

from patchloom.compiler.schedule.driver import schedule
from patchloom.compiler.schedule.errors import FitError, ScheduleError

__all__ = ["FitError", "ScheduleError", "schedule"]
