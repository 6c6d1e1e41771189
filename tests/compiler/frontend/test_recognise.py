"""Mixtures of experts, however they are written, and what is said of those that are none."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchloom.compiler.frontend.capture import capture
from patchloom.compiler.frontend.functions import Functions, Reader
from patchloom.compiler.frontend.gates import values_of
from patchloom.compiler.frontend.trace import Recorder
from patchloom.compiler.graph import Graph
from patchloom.compiler.nodes import Moe
from patchloom.compiler.origin import NOWHERE
from patchloom.compiler.problems import CaptureError
from tests.compiler.frontend.forms import DIM, TOKENS, Function, check, embedded
from tests.compiler.frontend.mixtures import COUNT, HIDDEN, WAYS, Dense, Mixture, Renormalised, mlp, several
from tests.compiler.frontend.models import Experts
from tests.compiler.golden import matches

GOLDEN = Path(__file__).parent / "golden" / "mixtures"
ROOT = Path(__file__).parents[3]


def as_block(mixture: nn.Module) -> tuple[nn.Module, Tensor]:
    def forward(m: Any, x: Tensor) -> Tensor:
        result = m.mixture(m.norm(x))
        result = result[0] if isinstance(result, tuple) else result
        return x[:, -result.shape[1] :] + result

    return embedded(forward, mixture=mixture, norm=nn.LayerNorm(DIM))


def mixture_of(graph: Graph) -> Moe:
    [moe] = [node for node in graph.nodes() if isinstance(node, Moe)]
    return moe


# What is not top 2 by the softmax of the selected logits, of experts of `HIDDEN` with GELU.
SCORES = {"Switch": (1, "softmax_of_all"), "Hard": (1, "softmax_of_selected"), "HardOneHot": (1, "softmax_of_selected"),
          "HardCosine": (1, "softmax_of_selected"), "All": (COUNT, "softmax_of_selected"),
          "TopOfAll": (COUNT, "softmax_of_selected"), "OfAllLogits": (2, "softmax_of_all")}  # fmt: skip
EXPERTS = {"Identity": (2 * DIM, "gelu"), "UnequalWidths": (HIDDEN, "relu"), "Linear": (DIM, "none"),
           "Clipped": (HIDDEN, "relu6"), "WithItself": (HIDDEN + 2 * DIM, "gelu")}  # fmt: skip
GATES = {"NormOfExperts", "NormOfEach", "Layers", "NormOfGate", "OfTheImage"}  # that read something else


@pytest.mark.parametrize("name", WAYS)
def test_mixture(name: str):
    """Captured, it computes what torch does: `check` compares; and it is one mixture, of no more than it takes."""
    module, x = as_block(WAYS[name]())
    [graph] = check(module, x)
    moe = mixture_of(graph)
    assert (moe.top_k, moe.scoring) == SCORES.get(name, (2, "softmax_of_selected"))
    assert (len(moe.experts[0].w1), moe.activation) == EXPERTS.get(name, (HIDDEN, "gelu"))
    assert (moe.gate_x is not None) == (name in GATES)
    assert moe.epsilon is not None
    assert moe.name.startswith("mixture")


@pytest.mark.parametrize(("kind", "activation"), [("AllSilu", "silu"), ("TanhGate", "gelu")])
def test_functions_of_the_table(kind: str, activation: str):
    """In experts, and of a gate's logits: a layer of its own makes these."""
    [graph] = check(*as_block({"AllSilu": AllSilu, "TanhGate": TanhGate}[kind]()))
    moe = mixture_of(graph)
    assert moe.activation == activation
    assert (moe.gate_x is not None) == (kind == "TanhGate")


def test_there_are_many_ways():
    assert len(WAYS) >= 36


class Peaked(Mixture):
    """Selects three experts, of which the third weighs less than what a misfit may be."""

    top_k = 3

    def build(self) -> None:
        super().build()
        self.gate.bias = nn.Parameter(torch.tensor([12.0, 11.0, 1.0, -12.0]))


def test_an_expert_that_is_hardly_felt():
    module, x = as_block(Peaked())
    [graph] = check(module, x)
    assert mixture_of(graph).top_k == 3


class Rare(Mixture):
    """One expert that usual tokens hardly ever choose."""

    def build(self) -> None:
        super().build()
        self.gate.bias = nn.Parameter(torch.tensor([4.0, 4.0, 4.0, -4.0]))


def test_an_expert_that_must_be_looked_for():
    module, x = as_block(Rare())
    [graph] = check(module, x)
    assert len(mixture_of(graph).experts) == COUNT


def test_experts_with_ties_elsewhere_are_proven():
    """Tokens of zeros tie where the gate has no bias: what then is chosen is no error."""
    [graph] = capture(WAYS["WithoutBias"](), (torch.zeros(1, TOKENS, DIM),))
    assert mixture_of(graph).top_k == 2


def test_mixture_called_once_per_task_with_keyword():
    module = Function(lambda m, x, task: m.mixture(m.mixture(x, task=0), task=task), mixture=Experts(DIM, 24, 4, 2, 3))
    graphs = check(module, torch.randn(2, TOKENS, DIM), 0, tasks=("a", "b", "c"))
    gates = [[node.gate_weight for node in graph.nodes() if isinstance(node, Moe)] for graph in graphs]
    assert all(first is gates[0][0] for first, _ in gates)
    assert len({id(second) for _, second in gates}) == 3


@pytest.mark.parametrize("zeros", [False, True])
def test_a_gate_that_always_ties_is_told(zeros: bool):
    module = Mixture()
    with torch.no_grad():
        module.gate.weight[2], module.gate.bias[2] = module.gate.weight[0], module.gate.bias[0]
        if zeros:
            module.gate.weight.zero_()
            module.gate.bias.zero_()
    with pytest.raises(CaptureError, match=r"has the same weights for experts 0 and [12]: all tokens are a tie"):
        capture(module, (torch.randn(1, 6, DIM),))


class Flat(Mixture):
    """Returns tokens of all samples in one matrix, and which share of them each expert has."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x).flatten(0, 1), self.gate(x).softmax(-1).flatten(0, 1)


def test_results_of_another_shape():
    mixture = Flat()
    module = Function(lambda m, x: m.mixture(x)[0].reshape(x.shape), mixture=mixture)
    [graph] = check(module, torch.randn(2, TOKENS, DIM))
    assert mixture_of(graph).top_k == 2


class Picky(Mixture):
    def forward(self, x: Tensor) -> Any:
        if not x.any():
            raise ValueError("no tokens of zeros")
        return super().forward(x)


def test_a_block_that_fails_on_some_tokens_is_told():
    with pytest.raises(CaptureError, match="on tokens of zeros it fails: ValueError: no tokens of zeros"):
        capture(Picky(), (torch.randn(1, TOKENS, DIM),))


# --- What is no mixture ---


class SigmoidOfAll(Dense):
    def weights(self, x: Tensor) -> Tensor:
        return self.gate(x).sigmoid()


class SqueezeAndExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(DIM, 4), nn.ReLU(), nn.Linear(4, DIM), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x.mean(1, keepdim=True))


@pytest.mark.parametrize("kind", [SigmoidOfAll, SqueezeAndExcite])
def test_scores_without_a_choice_are_factors(kind: type[nn.Module]):
    [graph] = check(*embedded(lambda m, x: m.block(x), block=kind()))
    assert not any(isinstance(node, Moe) for node in graph.nodes())


# --- What is refused ---


class Limited(Dense):
    """An expert takes no more than so many tokens of a batch."""

    capacity = TOKENS // 2

    def weights(self, x: Tensor) -> Tensor:
        weights = super().weights(x.reshape(-1, DIM))
        kept = torch.where((weights > 0).cumsum(0) <= self.capacity, weights, torch.zeros_like(weights))
        return kept.reshape(*x.shape[:-1], COUNT)


class HardlyLimited(Limited):
    """No picture alone reaches the limit: the block is not the function of a token that it seems to be."""

    capacity = TOKENS


class ExpertsChoose(Mixture):
    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, DIM)
        scores, rows = self.gate(tokens).softmax(-1).T.topk(3)
        out = torch.zeros_like(tokens)
        for number in range(COUNT):
            mine = rows[number]
            out = out.index_add(0, mine, scores[number, :, None] * self.expert(number, tokens[mine]))
        return out.reshape(x.shape)


class CorrectedSigmoid(Mixture):
    """Chosen by another score than weighed."""

    def build(self) -> None:
        super().build()
        self.correction = nn.Parameter(torch.randn(COUNT))

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.gate(x).sigmoid()
        chosen = (scores + self.correction).topk(2).indices
        picked = scores.gather(-1, chosen)
        return 2.5 * picked / picked.sum(-1, keepdim=True), chosen


class LogitsAsScores(Mixture):
    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.gate(x).topk(2)


class Cosine(Renormalised):
    def logits(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) @ F.normalize(self.gate.weight, dim=-1).T / 0.1

    route = Mixture.route


class AllSilu(Mixture):
    def build(self) -> None:
        super().build()
        self.experts = several(lambda: mlp(activation=nn.SiLU))


class TanhGate(Mixture):
    def logits(self, x: Tensor) -> Tensor:
        return torch.tanh(self.gate(x))


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(DIM, HIDDEN), nn.Linear(DIM, HIDDEN), nn.Linear(HIDDEN, DIM)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.gelu(self.a(x)) * self.b(x))


class GatedExperts(Mixture):
    def build(self) -> None:
        self.experts = several(Gated)


class OneOfSilu(Mixture):
    def build(self) -> None:
        super().build()
        self.experts[3] = mlp(activation=nn.SiLU)


class TwoActivations(Mixture):
    def build(self) -> None:
        super().build()
        self.experts[2] = mlp(activation=nn.ReLU)


class ThreeLayers(Mixture):
    def build(self) -> None:
        self.experts = several(lambda: nn.Sequential(*mlp(DIM), nn.GELU(), nn.Linear(DIM, DIM)))


class NormInside(Mixture):
    def build(self) -> None:
        self.experts = several(
            lambda: nn.Sequential(nn.Linear(DIM, DIM), nn.LayerNorm(DIM), nn.GELU(), nn.Linear(DIM, DIM))
        )


class WeighedBefore(Dense):
    """Tokens are multiplied by their scores before their experts."""

    def forward(self, x: Tensor) -> Tensor:
        weights = self.weights(x)
        return sum(self.expert(i, x * weights[..., i : i + 1]) for i in range(COUNT))  # type: ignore[return-value]


class SharedByGate(Mixture):
    def build(self) -> None:
        super().build()
        self.shared, self.open = nn.Linear(DIM, DIM), nn.Linear(DIM, 1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.open(x).sigmoid() * self.shared(x)


class NeverChosen(Mixture):
    def logits(self, x: Tensor) -> Tensor:
        return self.gate(x) + torch.tensor([0.0, 0.0, 0.0, -1e9])


class ChoiceUsed(Mixture):
    """By what is outside of the block."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x) * 1.0, self.route(x)[1]


REFUSED: tuple[type[Mixture], ...] = (
    Limited, HardlyLimited, ExpertsChoose, CorrectedSigmoid, LogitsAsScores, Cosine,
    GatedExperts, OneOfSilu, TwoActivations, ThreeLayers, NormInside, WeighedBefore, SharedByGate, NeverChosen,
    ChoiceUsed,
)  # fmt: skip


def with_code(text: str) -> str:
    """The user's line itself in place of its number, and no error that rounding may change."""

    def code(match: re.Match[str]) -> str:
        return f"{match[1]}:[{(ROOT / match[1]).read_text().splitlines()[int(match[2]) - 1].strip()}]"

    return re.sub(r"error [^ )]+", "error ...", re.sub(r"(tests/\S+\.py):(\d+)", code, text))


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_mixture_is_told(kind: type[Mixture], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    first = nn.Linear(DIM, DIM)
    module = Function(lambda m, x: joined(m.mixture(m.first(x))), first=first, mixture=kind())
    with pytest.raises(CaptureError) as refusal:
        capture(module, (torch.randn(1, TOKENS, DIM),))
    assert matches(with_code(f"{refusal.value}\n"), GOLDEN / f"{kind.__name__}.txt")


class OfSome(nn.Module):
    """Of no token, on usual inputs."""

    def __init__(self, behind: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.behind = behind

    def forward(self, x: Tensor) -> Tensor:
        return self.behind(x[x.sum(-1) > 1e6][None])


@pytest.mark.parametrize("behind", [torch.Tensor.clone, lambda x: x.mean(1)])
def test_no_token_is_left(behind: Callable[[Tensor], Tensor]):
    with pytest.raises(CaptureError, match="makes a tensor whose size depends on values"):
        capture(OfSome(behind), (torch.randn(1, 4, DIM),))


def joined(result: Any) -> Tensor:
    return result[0] + result[1].sum() if isinstance(result, tuple) else result


# --- Traces ---


OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "fill": lambda x: x.clone().fill_(2.0) + x,
    "zero": lambda x: let_in_place(x.clone(), lambda y: y[1:3].zero_()),
    "pad": lambda x: F.pad(x, (1, 2)),
    "copy": lambda x: torch.zeros(4, 6).copy_(x),
    "rows by a mask": lambda x: let_in_place(
        torch.ones(4, 6), lambda y: y.__setitem__(x[:, 0] > 0, x[x[:, 0] > 0] * 2)
    ),
    "add twice to a row": lambda x: torch.ones(3, 6).index_add_(0, torch.tensor([2, 0, 2, 2]), x, alpha=0.5),
    "scatter_add": lambda x: torch.zeros(4, 6).scatter_add(1, torch.tensor([[0, 0, 1]] * 4), x[:, 3:]),
    "accumulate": lambda x: torch.zeros(4, 6).index_put((torch.tensor([1, 1, 3]),), x[:3], accumulate=True),
    "written later": lambda x: before(torch.ones(4, 6), lambda y: y + x),
    "where": lambda x: torch.where(x > 0, x, 3.0),
    "masked": lambda x: x.masked_fill(x > 0, 0.5),
    "largest": lambda x: x.max(0).values[None] + x,
    "several parts": lambda x: torch.stack([x, 2 * x]).sum(0),
    "fixed rows": lambda x: torch.eye(4)[[2, 0]] @ x,
    "vector": lambda x: (x @ torch.arange(6.0))[:, None],
}


def let_in_place(value: Tensor, write: Callable[[Tensor], Any]) -> Tensor:
    write(value)
    return value


def before(value: Tensor, use: Callable[[Tensor], Tensor]) -> Tensor:
    result = use(value)
    value += 1
    return result


@pytest.mark.parametrize("name", OPERATIONS)
def test_elements_of_a_trace(name: str):
    """Sums of products of solid elements, evaluated, are what torch computed."""
    recorder, x = Recorder({}, "here"), torch.randn(4, 6)
    recorder.place("x", x, NOWHERE)
    with torch.no_grad(), recorder:
        result = OPERATIONS[name](x)
    view = recorder.trace.view(recorder.numbers(result), result, NOWHERE)
    reader = Reader(recorder.trace, Functions(), len(x))
    np.testing.assert_allclose(values_of(reader, view), result.numpy(), atol=1e-5)
