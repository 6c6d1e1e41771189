"""The kinds of nodes, one file each: all that the stages of the compiler ask of them."""

from patchloom.compiler.nodes.attention import Attention
from patchloom.compiler.nodes.constant import Constant
from patchloom.compiler.nodes.input import Input
from patchloom.compiler.nodes.matmul import Matmul
from patchloom.compiler.nodes.moe import Expert, Moe, Scoring
from patchloom.compiler.nodes.output import Output

__all__ = ["Attention", "Constant", "Expert", "Input", "Matmul", "Moe", "Output", "Scoring"]
