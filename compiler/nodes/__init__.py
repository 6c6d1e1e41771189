"""The kinds of nodes of a canonical graph, one file each: all that the stages of the compiler ask of them.

Those that the passes turn into these are in `captured`.
"""

from patchloom.compiler.nodes.attention import Attention
from patchloom.compiler.nodes.constant import Constant
from patchloom.compiler.nodes.input import Input
from patchloom.compiler.nodes.map import Map
from patchloom.compiler.nodes.matmul import Matmul
from patchloom.compiler.nodes.maximum import Maximum
from patchloom.compiler.nodes.mix import Mix
from patchloom.compiler.nodes.moe import Expert, Moe, Scoring
from patchloom.compiler.nodes.output import Output
from patchloom.compiler.nodes.products import Products, Shares
from patchloom.compiler.nodes.tabulated import Tabulated

__all__ = [
    "Attention",
    "Constant",
    "Expert",
    "Input",
    "Map",
    "Matmul",
    "Maximum",
    "Mix",
    "Moe",
    "Output",
    "Products",
    "Scoring",
    "Shares",
    "Tabulated",
]
