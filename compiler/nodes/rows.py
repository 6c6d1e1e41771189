"""What is computed of rows of one node, token by token."""

from typing import ClassVar

from patchloom.compiler.node import Node, View


class OfRows(Node):
    """Once settled, x is consecutive rows of a node, and read as nothing but these."""

    is_layer: ClassVar[bool] = True

    x: View  # [tokens, features]

    @property
    def settled(self) -> bool:
        return self.x.rows is not None

    @property
    def rows(self) -> tuple[int, int]:
        """[first, last) of the node that it reads."""
        assert self.x.rows, "it is settled"
        return self.x.rows

    def streams(self, x: Node, lanes: int) -> bool:
        return True

    def packs(self, lanes: int) -> bool:
        return True
