"""Mixtures of experts, each written in another way: how tokens reach experts, what experts and gates are."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.compiler.frontend.forms import DIM

HIDDEN, COUNT = 24, 4


def mlp(hidden: int = HIDDEN, activation: type[nn.Module] = nn.GELU) -> nn.Sequential:
    return nn.Sequential(nn.Linear(DIM, hidden), activation(), nn.Linear(hidden, DIM))


def several(make: Callable[[], nn.Module]) -> nn.ModuleList:
    return nn.ModuleList(make() for _ in range(COUNT))


class Mixture(nn.Module):
    """A loop over experts, each of which takes the tokens that chose it; what derives from it replaces a part."""

    top_k = 2

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(DIM, COUNT)
        self.build()

    def build(self) -> None:
        self.experts = several(mlp)

    def logits(self, x: Tensor) -> Tensor:
        return self.gate(x)

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and numbers of each token's experts."""
        logits, chosen = self.logits(x).topk(self.top_k)
        return logits.softmax(-1), chosen

    def expert(self, number: int, x: Tensor) -> Tensor:
        return self.experts[number](x)

    def weights(self, x: Tensor) -> Tensor:
        """Of every expert: zero of those that are not chosen."""
        scores, chosen = self.route(x)
        return torch.zeros(*x.shape[:-1], COUNT).scatter(-1, chosen, scores)

    def all(self, x: Tensor) -> Tensor:
        return torch.stack([self.expert(number, x) for number in range(COUNT)], -2)

    def forward(self, x: Tensor) -> Any:
        tokens = x.reshape(-1, DIM)
        scores, chosen = self.route(tokens)
        out = torch.zeros_like(tokens)
        for number in range(COUNT):
            rows, rank = torch.where(chosen == number)
            if rows.numel() == 0:
                continue
            out.index_add_(0, rows, scores[rows, rank, None] * self.expert(number, tokens[rows]))
        return out.reshape(x.shape)


# --- How tokens reach their experts ---


class Masked(Mixture):
    """Rows by a mask, added in place."""

    def forward(self, x: Tensor) -> Tensor:
        scores, chosen = self.route(x)
        out = torch.zeros_like(x)
        for number in range(COUNT):
            mine = chosen == number
            rows = mine.any(-1)
            if rows.any():
                out[rows] += (scores * mine).sum(-1)[rows][:, None] * self.expert(number, x[rows])
        return out


class Sorted(Mixture):
    """All of an expert's tokens side by side, and scattered back."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, DIM)
        scores, chosen = self.route(tokens)
        order = chosen.reshape(-1).argsort()
        rows = order // self.top_k
        parts = tokens[rows].split(chosen.reshape(-1).bincount(minlength=COUNT).tolist())
        results = torch.cat([self.expert(number, part) for number, part in enumerate(parts)])
        weighted = results * scores.reshape(-1)[order, None]
        return torch.zeros_like(tokens).scatter_add(0, rows[:, None].expand_as(weighted), weighted).reshape(x.shape)


class Unsorted(Mixture):
    """Sorted, computed in slices, brought back into order, then weighed."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, DIM)
        scores, chosen = self.route(tokens)
        order = chosen.reshape(-1).argsort()
        taken = tokens.repeat_interleave(self.top_k, 0)[order]
        results, start = torch.empty_like(taken), 0
        for number, end in enumerate(chosen.reshape(-1).bincount(minlength=COUNT).cumsum(0).tolist()):
            results[start:end], start = self.expert(number, taken[start:end]), end
        back = torch.empty_like(results)
        back[order] = results
        return (back.reshape(-1, self.top_k, DIM) * scores[..., None]).sum(1).reshape(x.shape)


class Dispatcher(Mixture):
    """By `nonzero` of the weights."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, DIM)
        weights = self.weights(tokens)
        experts, place = torch.nonzero(weights).sort(0)
        rows = torch.nonzero(weights)[place[:, 1], 0]
        score = torch.gather(weights[rows], 1, experts[:, 1:])
        parts = torch.split(tokens[rows], (weights > 0).sum(0).tolist(), 0)
        results = torch.cat([self.expert(number, part) for number, part in enumerate(parts)]) * score
        return torch.zeros(len(tokens), DIM).index_add(0, rows, results).reshape(x.shape)


class PerToken(Mixture):
    def forward(self, x: Tensor) -> Tensor:
        result = []
        for token in x.flatten(0, 1):
            scores, chosen = self.route(token)
            parts = [score * self.expert(int(e), token) for score, e in zip(scores, chosen, strict=True)]
            result.append(torch.stack(parts).sum(0))
        return torch.stack(result).reshape(x.shape)


class Dense(Mixture):
    """All experts of all tokens, weighed."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bte,bted->btd", self.weights(x), self.all(x))


class Gathered(Mixture):
    """All experts of all tokens, of which those that were chosen are gathered."""

    def forward(self, x: Tensor) -> Tensor:
        scores, chosen = self.route(x)
        picked = self.all(x).gather(-2, chosen[..., None].expand(*chosen.shape, DIM))
        return (scores[..., None] * picked).sum(-2)


class OneByOne(Mixture):
    def forward(self, x: Tensor) -> Tensor:
        weights = self.weights(x)
        return sum(weights[..., i : i + 1] * self.expert(i, x) for i in range(COUNT))  # type: ignore[return-value]


class AfterClassToken(Mixture):
    """Of all tokens but one."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[:, 1:])


# --- How experts are kept ---


class TwoLists(Mixture):
    def build(self) -> None:
        self.up = several(lambda: nn.Linear(DIM, HIDDEN))
        self.down = several(lambda: nn.Linear(HIDDEN, DIM))

    def expert(self, number: int, x: Tensor) -> Tensor:
        return self.down[number](F.gelu(self.up[number](x)))


class Stacked(Mixture):
    """As parameters of all, one of which is taken at a time."""

    def build(self) -> None:
        self.w1, self.b1 = nn.Parameter(torch.randn(COUNT, DIM, HIDDEN)), nn.Parameter(torch.randn(COUNT, HIDDEN))
        self.w2, self.b2 = nn.Parameter(torch.randn(COUNT, HIDDEN, DIM)), nn.Parameter(torch.randn(COUNT, DIM))

    def expert(self, number: int, x: Tensor) -> Tensor:
        return F.gelu(x @ self.w1[number] + self.b1[number]) @ self.w2[number] + self.b2[number]

    def hidden(self, x: Tensor) -> Tensor:
        return F.gelu(torch.einsum("btd,edh->bteh", x, self.w1) + self.b1)


class StackedEinsum(Stacked):
    def forward(self, x: Tensor) -> Tensor:
        results = torch.einsum("bteh,ehd->bted", self.hidden(x), self.w2) + self.b2
        return torch.einsum("bte,bted->btd", self.weights(x), results)


class StackedBiases(Stacked):
    """Biases are weighed by themselves."""

    def forward(self, x: Tensor) -> Tensor:
        weights = self.weights(x)
        return torch.einsum("bteh,ehd,bte->btd", self.hidden(x), self.w2, weights) + weights @ self.b2


class StackedBmm(Stacked):
    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, DIM)
        hidden = F.gelu(torch.baddbmm(self.b1[:, None], tokens.expand(COUNT, -1, -1), self.w1))
        results = torch.bmm(hidden, self.w2) + self.b2[:, None]
        return (results * self.weights(tokens).T[..., None]).sum(0).reshape(x.shape)


class GatheredWeights(Stacked):
    """Each token takes the weights of its experts."""

    def forward(self, x: Tensor) -> Tensor:
        scores, chosen = self.route(x)
        hidden = F.gelu(torch.einsum("btd,btkdh->btkh", x, self.w1[chosen]) + self.b1[chosen])
        results = torch.einsum("btkh,btkhd->btkd", hidden, self.w2[chosen]) + self.b2[chosen]
        return (results * scores[..., None]).sum(2)


# --- What experts are ---


class Lora(Mixture):
    """Of one layer that all share, and what each adds."""

    def build(self) -> None:
        self.up, self.down = nn.Linear(DIM, HIDDEN), nn.Linear(HIDDEN, DIM)
        self.a, self.b = (several(lambda o=o: nn.Linear(*o, bias=False)) for o in ((DIM, 3), (3, HIDDEN)))
        self.c, self.d = (several(lambda o=o: nn.Linear(*o, bias=False)) for o in ((HIDDEN, 2), (2, DIM)))

    def expert(self, number: int, x: Tensor) -> Tensor:
        hidden = F.gelu(self.up(x) + 0.5 * self.b[number](self.a[number](x)))
        return self.down(hidden) + 2 * self.d[number](self.c[number](hidden))


class NormOfExperts(Mixture):
    """The gate sees tokens as they are."""

    def build(self) -> None:
        super().build()
        self.norm = nn.LayerNorm(DIM)

    def expert(self, number: int, x: Tensor) -> Tensor:
        return self.experts[number](self.norm(x))


class NormOfEach(Mixture):
    def build(self) -> None:
        self.experts = several(lambda: nn.Sequential(nn.LayerNorm(DIM), *mlp()))


class Identity(Mixture):
    def build(self) -> None:
        super().build()
        self.experts[2] = nn.Identity()


class Zero(Mixture):
    def expert(self, number: int, x: Tensor) -> Tensor:
        return torch.zeros_like(x) if number == 1 else super().expert(number, x)


class UnequalWidths(Mixture):
    def build(self) -> None:
        self.experts = nn.ModuleList(mlp(hidden, nn.ReLU) for hidden in (8, 16, 24, 12))


class Linear(Mixture):
    def build(self) -> None:
        self.experts = several(lambda: nn.Linear(DIM, DIM))


class Clipped(Mixture):
    def build(self) -> None:
        self.experts = several(lambda: mlp(activation=nn.ReLU6))


class WithItself(Mixture):
    """An expert adds to the token."""

    def expert(self, number: int, x: Tensor) -> Tensor:
        return x + self.experts[number](x)


# --- What stands around ---


class Around(Mixture):
    """Norm, residual, a factor of each feature."""

    def build(self) -> None:
        super().build()
        self.norm, self.factor = nn.LayerNorm(DIM), nn.Parameter(torch.ones(DIM))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.factor * super().forward(self.norm(x))


class Shared(Mixture):
    def build(self) -> None:
        super().build()
        self.shared = mlp(40)

    def forward(self, x: Tensor) -> Tensor:
        return 2.5 * super().forward(x) + self.shared(x)


class Projected(Mixture):
    def build(self) -> None:
        super().build()
        self.project = nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.project(super().forward(x))


class AZeroToken(Mixture):
    """That a layer stands behind."""

    def build(self) -> None:
        super().build()
        self.behind = nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        return self.behind(super().forward(x).masked_fill(torch.arange(x.shape[-2])[:, None] == 1, 0.0))


class NormBehind(Mixture):
    def build(self) -> None:
        super().build()
        self.norm = nn.LayerNorm(DIM)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + super().forward(x))


class WithLosses(Mixture):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shares = self.gate(x).softmax(-1)
        return super().forward(x), shares.mean((0, 1)), shares


class Router(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(DIM, COUNT)

    def forward(self, x: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
        logits, chosen = self.layer(x).topk(top_k)
        return logits.softmax(-1), chosen


class Nested(nn.Module):
    """Experts in a module, the gate in another, routing in a third."""

    def __init__(self) -> None:
        super().__init__()
        self.bank, self.router = Mixture(), Router()

    def forward(self, x: Tensor) -> Tensor:
        scores, chosen = self.router(x, 2)
        picked = self.bank.all(x).gather(-2, chosen[..., None].expand(*chosen.shape, DIM))
        return (scores[..., None] * picked).sum(-2)


# --- What gates are ---


class WithoutBias(Mixture):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(DIM, COUNT, bias=False)


class Temperature(Mixture):
    def build(self) -> None:
        super().build()
        self.temperature = nn.Parameter(torch.tensor(0.7))

    def logits(self, x: Tensor) -> Tensor:
        return self.gate(x) / 0.5 * self.temperature.exp()


class Layers(Mixture):
    def build(self) -> None:
        super().build()
        self.layers = nn.Sequential(nn.Linear(DIM, 12), nn.ReLU(), nn.Linear(12, COUNT))

    def logits(self, x: Tensor) -> Tensor:
        return self.layers(x)


class NormOfGate(Mixture):
    def build(self) -> None:
        super().build()
        self.norm = nn.LayerNorm(DIM)

    def logits(self, x: Tensor) -> Tensor:
        return self.gate(self.norm(x))


class TaskEmbedding(Mixture):
    def build(self) -> None:
        super().build()
        self.embedding = nn.Parameter(torch.randn(3, DIM))

    def logits(self, x: Tensor) -> Tensor:
        return self.gate(x + self.embedding[1])


class Noisy(Mixture):
    def build(self) -> None:
        super().build()
        self.noise = nn.Linear(DIM, COUNT)

    def logits(self, x: Tensor) -> Tensor:
        logits, deviation = self.gate(x), F.softplus(self.noise(x))
        return logits + torch.randn_like(logits) * deviation if self.training else logits


class OneOfManyGates(Mixture):
    def build(self) -> None:
        super().build()
        self.gates = nn.Parameter(torch.randn(2, DIM, COUNT))

    def logits(self, x: Tensor) -> Tensor:
        return x @ self.gates[1]


class OfTheImage(Mixture):
    """One choice for all tokens, by their mean."""

    def forward(self, x: Tensor) -> Tensor:
        scores, chosen = self.route(x.mean(1))
        return torch.stack([self.one(x[b], scores[b], chosen[b]) for b in range(len(x))])

    def one(self, x: Tensor, scores: Tensor, chosen: Tensor) -> Tensor:
        return sum(scores[j] * self.expert(int(chosen[j]), x) for j in range(self.top_k))  # type: ignore[return-value]


# --- How many, and by what scores ---


class Switch(Mixture):
    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.gate(x).softmax(-1).max(-1, keepdim=True)


class Hard(Mixture):
    """The best expert alone, by no score."""

    def forward(self, x: Tensor) -> Tensor:
        chosen, out = self.logits(x).argmax(-1), torch.zeros_like(x)
        for number in range(COUNT):
            mine = chosen == number
            if mine.any():
                out[mine] = self.expert(number, x[mine])
        return out


class HardOneHot(Hard):
    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bte,bted->btd", F.one_hot(self.logits(x).argmax(-1), COUNT).float(), self.all(x))


class HardCosine(HardOneHot):
    """Which is largest does not depend on the token's length."""

    def logits(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) @ F.normalize(self.gate.weight, dim=-1).T / 0.1


class All(Dense):
    def weights(self, x: Tensor) -> Tensor:
        return self.gate(x).softmax(-1)


class TopOfAll(Mixture):
    top_k = COUNT


class Renormalised(Mixture):
    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores, chosen = self.gate(x).softmax(-1).topk(2)
        return scores / (scores.sum(-1, keepdim=True) + 1e-9), chosen


class OfAllLogits(Mixture):
    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.gate(x).softmax(-1).topk(2)


class MaskedLogits(Dense):
    def weights(self, x: Tensor) -> Tensor:
        logits = self.gate(x)
        chosen = torch.zeros_like(logits).scatter(-1, logits.topk(2).indices, 1).bool()
        return logits.masked_fill(~chosen, float("-inf")).softmax(-1)


class Threshold(Dense):
    def weights(self, x: Tensor) -> Tensor:
        logits = self.gate(x)
        least = logits.topk(2).values[..., -1:]
        return torch.where(logits >= least, logits, torch.full_like(logits, -1e9)).softmax(-1)


class BySorting(Mixture):
    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, order = self.gate(x).sort(-1, descending=True)
        return logits[..., :2].softmax(-1), order[..., :2]


class TwoMaxima(Mixture):
    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.gate(x)
        first = logits.argmax(-1)
        second = logits.masked_fill(F.one_hot(first, COUNT).bool(), float("-inf")).argmax(-1)
        chosen = torch.stack([first, second], -1)
        return logits.gather(-1, chosen).softmax(-1), chosen


class ScaledExperts(Mixture):
    """A learned factor of each expert."""

    def build(self) -> None:
        super().build()
        self.factors = nn.Parameter(torch.ones(COUNT))

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores, chosen = super().route(x)
        return scores * self.factors[chosen], chosen


def classes(names: Iterable[Any]) -> list[Any]:
    return [value for value in names if isinstance(value, type) and issubclass(value, Mixture | Nested)]


WAYS: dict[str, type[nn.Module]] = {way.__name__: way for way in classes(list(globals().values()))}
