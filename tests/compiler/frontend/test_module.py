"""The user's module: which are taken, and that each is afterwards as it was."""

import copy
import functools
from collections import deque
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import patchloom
from patchloom.compiler.problems import CaptureError

SAMPLES = torch.randn(4, 5, 16, generator=torch.Generator().manual_seed(0))


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(nn.functional.gelu(self.a(x)))


class Cached(Plain):
    """Keeps in forward what it will want again, and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[int, Tensor] = {}
        self.seen: list[Tensor] = []
        self.last = None
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("filled", None)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if x.shape[1] not in self.cache:
            self.cache[x.shape[1]] = torch.linspace(0, 1, x.shape[1])[:, None]
        self.last, self.filled = x, self.cache[x.shape[1]] * 2
        self.seen.append(x)
        return super().forward(x + self.cache[x.shape[1]])


class Autocast(Plain):
    widens = True

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = super().forward(x)
            return y.float() if self.widens else y


def compiled(module):
    return patchloom.compile(module, SAMPLES[:1], calibration=SAMPLES)


def matches(program, module, atol=0.06) -> None:
    with torch.no_grad():
        expected = module(SAMPLES).float().numpy()
    np.testing.assert_allclose(patchloom.run(program, SAMPLES).outputs["main"], expected, atol=atol)


def test_export_leaves_everything_as_it_was():
    module = Cached().train()
    module.a.eval()
    module.a.register_forward_hook(lambda *_: None)
    before = {name: copy.copy(part.__dict__) for name, part in module.named_modules()}
    weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    program = compiled(module)
    assert {name: part.__dict__.keys() for name, part in module.named_modules()} == {
        name: attributes.keys() for name, attributes in before.items()
    }
    assert (module.cache, module.seen, module.last, module.filled, int(module.calls)) == ({}, [], None, None, 0)
    assert module.training
    assert not module.a.training
    assert len(module.a._forward_hooks) == 1
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(tensor, weights[name], rtol=0, atol=0)
    matches(program, module.eval())


@functools.cache
def table(count: int) -> Tensor:
    return torch.linspace(0, 1, count)[:, None]


SHARED: dict[int, Tensor] = {}


class CachedElsewhere(Plain):
    """In what it holds, in a function, in a module of Python; and writes into its input."""

    def __init__(self) -> None:
        super().__init__()
        self.state = SimpleNamespace(last=None, deep={"tables": {}})
        self.recent: deque[Tensor] = deque(maxlen=2)

    def forward(self, x: Tensor) -> Tensor:
        self.state.last = x
        self.state.deep["tables"].setdefault(x.shape[1], x * 2)
        self.recent.append(x)
        return super().forward(x.add_(1) + table(x.shape[1]) + SHARED.setdefault(x.shape[1], torch.ones(16)))


def test_caches_outside_of_the_module_are_real():
    module, samples = CachedElsewhere(), SAMPLES.clone()
    program = patchloom.compile(module, samples[:1], calibration=SAMPLES)
    assert vars(module.state) == {"last": None, "deep": {"tables": {}}}
    assert not module.recent
    assert {type(table(5)), type(SHARED[5])} == {Tensor}
    assert torch.equal(samples, SAMPLES)
    np.testing.assert_allclose(
        patchloom.run(program, SAMPLES).outputs["main"], module(samples).detach().numpy(), atol=0.06
    )


class Noted(Plain):
    """Goes by a number that stands for an element while it is exported."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + len(str(x.sum().item()))


def test_a_graph_that_computes_something_else_is_refused():
    with pytest.raises(CaptureError, match=r"does not compute what forward returns(.|\n)*output 'main' differs by"):
        compiled(Noted())


class Otherwise(Plain):
    """Returns more under export."""

    def forward(self, x: Tensor) -> Any:
        y = super().forward(x)
        return {"a": y} if not torch.compiler.is_exporting() else {"a": y, "b": y * 2}


def test_what_only_export_returns_is_refused():
    with pytest.raises(CaptureError, match="output 'b' is not returned in that form outside of export"):
        compiled(Otherwise())


def failing(said: str) -> type[Plain]:
    class Fails(Plain):
        def forward(self, x: Tensor) -> Any:
            if said == "raises":
                raise KeyError("missing")
            if said == "returns":
                return SimpleNamespace(x=super().forward(x))
            self.a.weight.data.mul_(0.5)
            return super().forward(x)

    return Fails


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("raises", r"forward at .*test_module.py:\d+: raises KeyError on the example inputs: 'missing'"),
        (
            "returns",
            "forward must return tensors, or dictionaries, lists and tuples of them, not types.Simple",
        ),
        ("writes", r"test_module.py:\d+: forward must not change weights through .data"),
    ],
)
def test_what_cannot_be_exported_is_told(kind: str, text: str):
    module = failing(kind)()
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(CaptureError, match=text):
        compiled(module)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_a_word_of_python_as_a_name_is_told():
    class Named(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleDict({"in": nn.Linear(16, 16)})

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.parts["in"](x).add_(1))

    with pytest.raises(CaptureError, match=r"modules must not be called by words of Python, as 'parts\.in' is"):
        compiled(Named())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_modules_of_other_floats(dtype):
    module = Plain().to(dtype)
    program = compiled(module)
    assert module.a.weight.dtype == dtype
    matches(program, module.float())


@pytest.mark.parametrize("widens", [True, False])
def test_autocast_is_computed_more_exactly(widens: bool):
    module = Autocast()
    module.widens = widens
    matches(compiled(module), module, atol=0.1)


def test_an_exported_program_and_its_module():
    module = Plain().eval()
    exported = torch.export.export(module, (SAMPLES[:1],))
    matches(compiled(exported), module)
    matches(compiled(exported.module()), module)


@pytest.mark.parametrize("make", [lambda m: torch.jit.trace(m, SAMPLES[:1]), torch.jit.script], ids=["trace", "script"])
@pytest.mark.filterwarnings("ignore")
def test_torchscript_is_told(make):
    with pytest.raises(CaptureError, match=r"must be the nn\.Module that the model was made from, not TorchScript"):
        compiled(make(Plain().eval()))


class Masked(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[x.sum(-1) > 0][None])


class Nonzero(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[:, x[0, :, 0].nonzero()[:, 0]])


@pytest.mark.parametrize("kind", [Masked, Nonzero])
def test_sizes_that_depend_on_values_are_told(kind):
    with pytest.raises(CaptureError, match="size depends on values"):
        compiled(kind())


class Unsupported(Plain):
    """Of every rank, and more behind it."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.sinh(x.reshape(1, 5, 4, 4)).permute(0, 2, 1, 3).flatten(1)[:, None].expand(-1, 5, -1)
        return super().forward(torch.cosh(y)[..., :16])


def test_the_first_cause_is_told_and_nothing_that_follows():
    with pytest.raises(CaptureError) as refusal:
        compiled(Unsupported())
    assert "aten.sinh" in str(refusal.value)
    assert len(refusal.value.problems) <= 2, refusal.value
