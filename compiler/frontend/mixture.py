"""Mixtures of experts that were read, and the operations that routing is written with where none was."""

from typing import Any

from patchloom.compiler.frontend.site import Args, Rows, Site, refused, rows
from patchloom.compiler.node import View
from patchloom.compiler.nodes import Input
from patchloom.compiler.passes.engine import Run
from patchloom.compiler.passes.factors import plain
from patchloom.compiler.problems import UnsupportedError

HOW_TO_WRITE = (
    "an expert must be a function of a token, two linear layers with a supported activation between them; the result "
    "the sum of the top_k experts times their scores, and those the softmax of the selected gate logits, or the "
    "selected entries of the softmax of all; ordinary layers, e.g. norms, residuals and shared experts, may stand "
    "around"
)


def mixture(site: Site, a: Args) -> Any:
    """What was read of the block, of these inputs."""
    block = site.blocks[a["block"]]
    found = block.results[a["result"]]
    if not isinstance(found, View):
        raise UnsupportedError(*_why(found))
    given = dict(zip(block.inputs, map(site.view, a["inputs"]), strict=True))

    def put(node: Input, _: Run) -> View:
        value = plain(given[node.name])
        return value.reshape(*node.shape)

    [result] = Run({Input: put}, []).over([found])
    return result


def _why(found: Any) -> tuple[str, str]:
    if isinstance(found, UnsupportedError):
        return found.text, found.hint
    return "is a choice of experts, and used outside of their block", HOW_TO_WRITE


ROWS: Rows = {
    **rows(mixture, "moe", data="inputs", reads="block result shape dtype", library="patchloom"),
    **refused(
        "topk sort argsort msort scatter scatter_add scatter_reduce index_add index_copy "
        "_unsafe_index_put masked_select masked_scatter nonzero nonzero_numpy one_hot any all bincount "
        "eq ne lt le gt ge logical_and logical_or logical_not",
        HOW_TO_WRITE,
    ),
}
