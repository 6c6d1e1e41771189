"""Ways to write a mixture of experts, each behind a patch embedding and before a head."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.zoo.row import Row

DIM, HIDDEN, EXPERTS, TOP = 32, 48, 4, 2
TASKS = ("first", "second")


def mlp(hidden: int = HIDDEN, activation: Callable[[], nn.Module] = nn.GELU, *, bias: bool = True) -> nn.Module:
    return nn.Sequential(nn.Linear(DIM, hidden, bias), activation(), nn.Linear(hidden, DIM, bias))


class Glu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(DIM, HIDDEN), nn.Linear(DIM, HIDDEN), nn.Linear(HIDDEN, DIM)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Lora(nn.Module):
    """A shared layer and what an expert adds to it."""

    def __init__(self, shared: nn.Module) -> None:
        super().__init__()
        self.shared, self.down, self.up = shared, nn.Linear(DIM, 4, bias=False), nn.Linear(4, DIM, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.shared(x) + self.up(self.down(x))


class Block(nn.Module):
    """Gate, choice and sum; subclasses write parts of it otherwise. `experts` make one each."""

    def __init__(
        self,
        expert: Callable[[int], nn.Module] = lambda _: mlp(),
        gate: Callable[[], nn.Module] = lambda: nn.Linear(DIM, EXPERTS),
        *,
        top: int = TOP,
        scores: Callable[[Tensor], Tensor] = lambda chosen: chosen.softmax(-1),
        before: Callable[[Tensor], Tensor] = lambda logits: logits,
        shared: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.gate, self.experts = gate(), nn.ModuleList(map(expert, range(EXPERTS)))
        self.top, self.scores, self.before, self.shared = top, scores, before, shared

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        chosen, which = self.before(self.gate(x)).topk(self.top, -1)
        return self.scores(chosen), which

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, x.shape[-1])
        out = self.mix(tokens, *self.route(tokens))
        return (out if self.shared is None else out + self.shared(tokens)).reshape(x.shape)

    def mix(self, tokens: Tensor, scores: Tensor, which: Tensor) -> Tensor:
        """Loop over experts, tokens found by `torch.where`, added by `index_add_`."""
        out = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            rows, rank = torch.where(which == number)
            if len(rows):
                out.index_add_(0, rows, scores[rows, rank, None] * expert(tokens[rows]))
        return out


class WithoutTest(Block):
    """No test for experts without tokens."""

    def mix(self, tokens: Tensor, scores: Tensor, which: Tensor) -> Tensor:
        out = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            rows, rank = torch.where(which == number)
            out.index_add_(0, rows, scores[rows, rank, None] * expert(tokens[rows]))
        return out


class Mixtral(Block):
    """One-hot mask of experts, as Mixtral has it."""

    def mix(self, tokens: Tensor, scores: Tensor, which: Tensor) -> Tensor:
        out = torch.zeros_like(tokens)
        mask = F.one_hot(which, num_classes=len(self.experts)).permute(2, 1, 0)
        for number, expert in enumerate(self.experts):
            rank, rows = torch.where(mask[number])
            out.index_add_(0, rows, expert(tokens[rows]) * scores[rows, rank, None])
        return out


class Masked(Block):
    """Every expert on every token, weighted by zero where it is not chosen."""

    def mix(self, tokens: Tensor, scores: Tensor, which: Tensor) -> Tensor:
        out = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            weight = (scores * (which == number)).sum(-1, keepdim=True)
            out = out + weight * expert(tokens)
        return out


class Scattered(Block):
    """Weights of all experts by scatter, results stacked."""

    def mix(self, tokens: Tensor, scores: Tensor, which: Tensor) -> Tensor:
        weights = torch.zeros(len(tokens), len(self.experts)).scatter(1, which, scores)
        stacked = torch.stack([expert(tokens) for expert in self.experts], 1)
        return (weights[..., None] * stacked).sum(1)


class Einsum(Block):
    """Combined by einsum over stacked results."""

    def mix(self, tokens: Tensor, scores: Tensor, which: Tensor) -> Tensor:
        weights = (F.one_hot(which, len(self.experts)) * scores[..., None]).sum(1)
        return torch.einsum("te,ted->td", weights, torch.stack([expert(tokens) for expert in self.experts], 1))


class Gathered(Block):
    """Results of all experts, those chosen gathered."""

    def mix(self, tokens: Tensor, scores: Tensor, which: Tensor) -> Tensor:
        stacked = torch.stack([expert(tokens) for expert in self.experts], 1)
        picked = stacked.gather(1, which[..., None].expand(-1, -1, DIM))
        return (scores[..., None] * picked).sum(1)


class Sorted(Block):
    """Tokens sorted by expert and split, as fast implementations do."""

    def mix(self, tokens: Tensor, scores: Tensor, which: Tensor) -> Tensor:
        flat = which.flatten()
        order = flat.argsort(stable=True)
        counts = torch.bincount(flat, minlength=len(self.experts)).tolist()
        rows = order // self.top
        parts = [expert(part) for expert, part in zip(self.experts, tokens[rows].split(counts), strict=True)]
        out = torch.zeros_like(tokens)
        return out.index_add(0, rows, torch.cat(parts) * scores.flatten()[order][:, None])


class Ranks(Block):
    """Loop over ranks and experts, by boolean masks."""

    def mix(self, tokens: Tensor, scores: Tensor, which: Tensor) -> Tensor:
        out = torch.zeros_like(tokens)
        for rank in range(self.top):
            for number, expert in enumerate(self.experts):
                mask = which[:, rank] == number
                if mask.any():
                    out[mask] += scores[mask, rank, None] * expert(tokens[mask])
        return out


class TwoLists(nn.Module):
    """Two lists of Linears, a loop over `nonzero`."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(DIM, EXPERTS)
        self.up = nn.ModuleList(nn.Linear(DIM, HIDDEN) for _ in range(EXPERTS))
        self.down = nn.ModuleList(nn.Linear(HIDDEN, DIM) for _ in range(EXPERTS))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, DIM)
        chosen, which = self.gate(tokens).topk(TOP, -1)
        scores, out = chosen.softmax(-1), torch.zeros_like(tokens)
        for number in range(EXPERTS):
            rows, rank = (which == number).nonzero(as_tuple=True)
            made = self.down[number](F.gelu(self.up[number](tokens[rows])))
            out.index_add_(0, rows, made * scores[rows, rank, None])
        return out.reshape(x.shape)


class Stacked(nn.Module):
    """Weights of all experts in one parameter, [experts, in, out]."""

    def __init__(self, how: str = "loop") -> None:
        super().__init__()
        self.how, self.gate = how, nn.Linear(DIM, EXPERTS)
        self.up = nn.Parameter(torch.randn(EXPERTS, DIM, HIDDEN) * DIM**-0.5)
        self.up_bias = nn.Parameter(torch.randn(EXPERTS, HIDDEN) * 0.1)
        self.down = nn.Parameter(torch.randn(EXPERTS, HIDDEN, DIM) * HIDDEN**-0.5)
        self.down_bias = nn.Parameter(torch.randn(EXPERTS, DIM) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, DIM)
        chosen, which = self.gate(tokens).topk(TOP, -1)
        return getattr(self, self.how)(tokens, chosen.softmax(-1), which).reshape(x.shape)

    def loop(self, tokens: Tensor, scores: Tensor, which: Tensor) -> Tensor:
        out = torch.zeros_like(tokens)
        for number in range(EXPERTS):
            rows, rank = torch.where(which == number)
            hidden = F.gelu(tokens[rows] @ self.up[number] + self.up_bias[number])
            out.index_add_(0, rows, (hidden @ self.down[number] + self.down_bias[number]) * scores[rows, rank, None])
        return out

    def gathered(self, tokens: Tensor, scores: Tensor, which: Tensor) -> Tensor:
        hidden = F.gelu(torch.einsum("td,tkdh->tkh", tokens, self.up[which]) + self.up_bias[which])
        out = torch.einsum("tkh,tkhd->tkd", hidden, self.down[which]) + self.down_bias[which]
        return (out * scores[..., None]).sum(1)

    def batched(self, tokens: Tensor, scores: Tensor, which: Tensor) -> Tensor:
        hidden = F.gelu(torch.bmm(tokens.expand(EXPERTS, -1, -1), self.up) + self.up_bias[:, None])
        made = torch.bmm(hidden, self.down) + self.down_bias[:, None]
        weights = torch.zeros(len(tokens), EXPERTS).scatter(1, which, scores)
        return (weights.T[..., None] * made).sum(0)


class Capacity(Block):
    """An expert takes so many tokens and no more."""

    def mix(self, tokens: Tensor, scores: Tensor, which: Tensor) -> Tensor:
        mask = F.one_hot(which[:, 0], len(self.experts))
        place = (mask.cumsum(0) * mask).sum(-1)
        return super().mix(tokens, scores * (place <= 6)[:, None], which)


class Soft(nn.Module):
    """Soft MoE: slots are mixes of tokens, tokens mixes of slots."""

    def __init__(self, slots: int = 2) -> None:
        super().__init__()
        self.experts = nn.ModuleList(mlp() for _ in range(EXPERTS))
        self.phi = nn.Parameter(torch.randn(DIM, EXPERTS * slots) * DIM**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        logits = x @ self.phi
        slots = logits.softmax(1).transpose(1, 2) @ x
        parts = slots.chunk(EXPERTS, 1)
        made = torch.cat([expert(part) for expert, part in zip(self.experts, parts, strict=True)], 1)
        return logits.softmax(2) @ made


class Dense(nn.Module):
    """Every expert on every token, weighted by the softmax of the gate."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(DIM, EXPERTS), nn.ModuleList(mlp() for _ in range(EXPERTS))

    def forward(self, x: Tensor) -> Tensor:
        weights = self.gate(x).softmax(-1)
        return sum(weights[..., i : i + 1] * expert(x) for i, expert in enumerate(self.experts))


class ChosenByExperts(Block):
    """Each expert takes its best tokens."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, DIM)
        scores, rows = self.gate(tokens).softmax(-1).T.topk(6, -1)
        out = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            out.index_add_(0, rows[number], scores[number, :, None] * expert(tokens[rows[number]]))
        return out.reshape(x.shape)


class AnImage(Block):
    """One decision for the whole image, from the mean of its tokens."""

    def forward(self, x: Tensor) -> Tensor:
        scores, which = self.route(x.mean(1))
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            images, rank = torch.where(which == number)
            if len(images):
                out[images] += scores[images, rank, None, None] * expert(x[images])
        return out


class Corrected(Block):
    """Sigmoid scores, a bias that counts for the choice alone: DeepSeek v3."""

    def __init__(self) -> None:
        super().__init__()
        self.correction = nn.Parameter(torch.randn(EXPERTS) * 0.1)

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.gate(x).sigmoid()
        which = (scores + self.correction).topk(self.top, -1).indices
        chosen = scores.gather(-1, which)
        return chosen / chosen.sum(-1, keepdim=True), which


class Cosine(nn.Module):
    """Logits are cosines with directions that are learned."""

    def __init__(self) -> None:
        super().__init__()
        self.proj, self.directions = nn.Linear(DIM, 16), nn.Parameter(torch.randn(EXPERTS, 16))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.proj(x), dim=-1) @ F.normalize(self.directions, dim=-1).T * 4


class Noisy(nn.Module):
    """Noise in training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.clean, self.noise = nn.Linear(DIM, EXPERTS), nn.Linear(DIM, EXPERTS)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.clean(x)
        return logits + torch.randn_like(logits) * F.softplus(self.noise(x)) if self.training else logits


class GatePerTask(Block):
    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.ModuleList(nn.Linear(DIM, EXPERTS) for _ in TASKS)

    def forward(self, x: Tensor, task: int) -> Tensor:
        self.gate = self.gates[task]
        return super().forward(x)


class TaskEmbedding(Block):
    """One gate that sees the token beside an embedding of the task."""

    def __init__(self) -> None:
        super().__init__(gate=lambda: nn.Linear(2 * DIM, EXPERTS))
        self.embedding = nn.Embedding(len(TASKS), DIM)

    def forward(self, x: Tensor, task: int) -> Tensor:
        tokens = x.reshape(-1, DIM)
        seen = torch.cat([tokens, self.embedding.weight[task].expand(len(tokens), -1)], -1)
        return self.mix(tokens, *self.route(seen)).reshape(x.shape)


class Model(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.patch, self.norm = nn.Conv2d(3, DIM, 8, 8), nn.LayerNorm(DIM)
        self.block, self.head = block, nn.Linear(DIM, 10)

    def forward(self, image: Tensor, *task: int) -> Tensor:
        x = self.patch(image).flatten(2).transpose(1, 2)
        return self.head(x + self.block(self.norm(x), *task))


def widths(number: int) -> nn.Module:
    return mlp(HIDDEN if number % 2 else HIDDEN // 2)


def with_identity(number: int) -> nn.Module:
    return mlp() if number else nn.Identity()


def with_norm(_: int) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(DIM), mlp())


def lora() -> nn.Module:
    shared = mlp()
    return Block(lambda _: Lora(shared))


def mixture(name: str, stands_for: str, block: Callable[[], nn.Module], **more: Any) -> Row:
    return Row(f"mixture/{name}", stands_for, lambda: Model(block()), **more)


def softmax_first(logits: Tensor) -> Tensor:
    return logits.softmax(-1)


def as_they_are(chosen: Tensor) -> Tensor:
    return chosen


def normalised(chosen: Tensor) -> Tensor:
    return chosen / chosen.sum(-1, keepdim=True)


ROWS = [
    mixture("loop", "loop over experts, index_add", Block),
    mixture("loop without test", "experts without tokens run, too", WithoutTest),
    mixture("one-hot", "Mixtral: mask by one_hot", Mixtral),
    mixture("masked", "every expert on every token", Masked),
    mixture("scattered", "weights by scatter, results stacked", Scattered),
    mixture("einsum", "combined by einsum", Einsum),
    mixture("gathered", "results gathered", Gathered),
    mixture("sorted", "tokens sorted and split", Sorted),
    mixture("ranks", "loop over ranks and experts, masks", Ranks),
    mixture("two lists", "two lists of Linears, nonzero", TwoLists),
    mixture("stacked, loop", "stacked parameters, a loop", Stacked),
    mixture("stacked, gathered", "stacked parameters, weights gathered by token", lambda: Stacked("gathered")),
    mixture("stacked, batched", "stacked parameters, one batched product", lambda: Stacked("batched")),
    mixture("top 1", "Switch: top-1 of the softmax of all",
          lambda: Block(top=1, before=softmax_first, scores=as_they_are)),
    mixture("top 4", "top-4 of 4", lambda: Block(top=4)),
    mixture("softmax of all", "softmax before the choice", lambda: Block(before=softmax_first, scores=as_they_are)),
    mixture("softmax of all, normalised", "softmax before the choice, normalised after",
          lambda: Block(before=softmax_first, scores=normalised)),
    mixture("sigmoid", "sigmoid scores, normalised", lambda: Block(before=torch.sigmoid, scores=normalised)),
    mixture("correction bias", "DeepSeek v3: sigmoid scores, a bias for the choice alone", Corrected),
    mixture("temperature", "logits over a temperature", lambda: Block(before=lambda logits: logits / 0.7)),
    mixture("gate without bias", "gate without bias", lambda: Block(gate=lambda: nn.Linear(DIM, EXPERTS, bias=False))),
    mixture("gate of two layers", "the gate is an MLP",
          lambda: Block(gate=lambda: nn.Sequential(nn.Linear(DIM, 16), nn.ReLU(), nn.Linear(16, EXPERTS)))),
    mixture("gate with a norm", "the gate norms its tokens",
          lambda: Block(gate=lambda: nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, EXPERTS)))),
    mixture("cosine gate", "logits are cosines", lambda: Block(gate=Cosine)),
    mixture("noisy gate", "noise in training", lambda: Block(gate=Noisy)),
    mixture("gate per task", "M3ViT: a gate per task", GatePerTask, tasks=TASKS),
    mixture("task embedding", "the gate sees an embedding of the task", TaskEmbedding, tasks=TASKS),
    mixture("one decision an image", "gate on the mean of tokens", AnImage),
    mixture("ReLU experts", "experts with ReLU, without bias",
          lambda: Block(lambda _: mlp(activation=nn.ReLU, bias=False))),
    mixture("SiLU experts", "experts with SiLU", lambda: Block(lambda _: mlp(activation=nn.SiLU))),
    mixture("GLU experts", "experts with gated linear units", lambda: Block(lambda _: Glu())),
    mixture("linear experts", "experts of one layer", lambda: Block(lambda _: nn.Linear(DIM, DIM))),
    mixture("experts with a norm", "experts norm their tokens", lambda: Block(with_norm)),
    mixture("identity expert", "one expert does nothing", lambda: Block(with_identity)),
    mixture("unequal experts", "experts of unequal widths", lambda: Block(widths)),
    mixture("LoRA experts", "a shared layer and low-rank ones", lora),
    mixture("shared expert", "an expert that all tokens see, inside the block", lambda: Block(shared=mlp())),
    mixture("capacity", "an expert takes so many tokens", Capacity),
    mixture("experts choose", "experts choose tokens", ChosenByExperts),
    mixture("soft", "Soft MoE", Soft),
    mixture("dense", "every expert, weighted by the softmax", Dense),
]  # fmt: skip
