"""Where in the user's code something is from."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What the user wrote: the operation, the module it is in, and the file:line."""

    op: str = ""
    name: str = ""
    where: str = ""

    def __str__(self) -> str:
        return self.op + (f" in '{self.name}'" if self.name else "") + (f" at {self.where}" if self.where else "")


NOWHERE = Origin()
