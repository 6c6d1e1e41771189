"""What forward returns: any arrangement of one operation's elements. Several operations must first become one.

A result's scale is a power of two, which a clipped activation's is not: it is returned by a layer that copies it.
"""

from patchloom.compiler.node import Node, View, whole
from patchloom.compiler.nodes import Constant, Matmul
from patchloom.compiler.nodes.captured import Opaque
from patchloom.compiler.passes.copies import as_node, identity
from patchloom.compiler.passes.engine import Run
from patchloom.compiler.passes.views import clips, constant, is_opaque
from patchloom.compiler.problems import Problem, UnsupportedError


def settle_result(view: View, problems: list[Problem]) -> View:
    """A result may arrange one operation's elements freely; several operations must first become one."""
    view = view.substitute({base: whole(identity(base, whole(base))) for base, _ in view.terms if _clips(base)})
    base = view.terms[0][0]
    if is_opaque(view) or (view.base and not isinstance(base, Constant) and view.index.min() >= 0):
        return view
    if constant(view) is not None:
        text = "is returned, but does not depend on the input"
        problems.append(Problem(base.origin, text, "return only what the model computes from its input"))
        return view
    try:
        rows = view.reshape(-1, view.shape[-1] if view.shape else 1)
        return as_node(rows, Opaque(origin=base.origin, out_shape=()), Run({}, problems)).reshape(*view.shape)
    except UnsupportedError as refusal:
        problems.append(Problem(base.origin, refusal.text, refusal.hint))
        return view


def _clips(base: Node) -> bool:
    return isinstance(base, Matmul) and clips(base)
