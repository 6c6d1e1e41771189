"""The table of operations: one family each, advice that is the operation's own, constants of a shape."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from patchloom.compiler.frontend import capture as ours
from patchloom.compiler.frontend.capture import capture
from patchloom.compiler.frontend.elementwise import SUPPORTED
from patchloom.compiler.frontend.mixture import HOW_TO_WRITE
from patchloom.compiler.frontend.operations import FAMILIES, OPERATIONS
from patchloom.compiler.frontend.origin import is_users
from patchloom.compiler.problems import CaptureError
from tests.compiler.frontend.forms import check, embedded, let


def test_each_operation_is_of_one_family():
    assert max(Counter(name for family in FAMILIES for name in family.ROWS).values()) == 1


def test_torch_has_every_operation():
    """An operation that torch does not know is misspelt: its row would never be found."""
    known = {name.partition(".")[0].replace("::", ".") for name in torch._C._dispatch_get_all_op_names()}
    assert set(OPERATIONS) <= known


ADVICE: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "clamp by tensors": (lambda x: x.clamp(torch.zeros(16), torch.arange(16.0)), SUPPORTED),
    "running sum": (lambda x: x.cumsum(1), "no result may run along the tokens"),
    "smallest": (lambda x: x.amin(1), "take the maximum of what has the opposite sign"),
    "deviation": (
        lambda x: x / torch.std_mean(x, -1, keepdim=True)[0],
        "supported normalisation is torch.nn.LayerNorm",
    ),
    "random of its own": (lambda x: x + torch.rand(16), "random numbers have no place in inference"),
    "a new layer": (lambda x: nn.Linear(16, x.shape[1])(x), "random numbers have no place in inference"),
    "written where it is positive": (lambda x: into(x.clone(), x > 0, 1.0), HOW_TO_WRITE),
    "random": (lambda x: x + torch.rand_like(x), "random numbers have no place in inference"),
    "comparison": (lambda x: x * (x > 0), HOW_TO_WRITE),
    "a choice": (lambda x: x.topk(2).values, HOW_TO_WRITE),
    "mirrored": (lambda x: nn.functional.pad(x, (1, 1), mode="reflect"), "pad with zeros"),
    "complex": (torch.fft.fft, "take real and imaginary parts"),
    "an angle": (lambda x: torch.fft.fft(x).angle(), "take real and imaginary parts"),
    "no family": (lambda x: x.frac(), "see the list of supported operations"),
}


@pytest.mark.parametrize("name", ADVICE)
def test_advice_is_of_the_operation(name: str):
    run, advice = ADVICE[name]
    module, x = embedded(lambda _, x: run(x))
    with pytest.raises(CaptureError) as refusal:
        capture(module, (x,))
    [problem, *_] = refusal.value.problems
    assert problem.splitlines()[-1].strip().startswith(advice)


CONSTANTS: dict[str, Callable[[Tensor], Tensor]] = {
    "ones": lambda x: x + torch.ones_like(x),
    "zeros beside tokens": lambda x: torch.cat([torch.zeros_like(x[:, :1]), x], 1) * 1,
    "a new tensor": lambda x: x * x.new_full((1,), 3.0),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_constant_of_a_shape(name: str):
    module, x = embedded(lambda m, x: m.last(CONSTANTS[name](x)), last=nn.Linear(16, 4))
    check(module, x)


def test_a_constant_that_is_returned_is_told_as_one():
    module, x = embedded(lambda _, x: torch.arange(16).expand_as(x))
    with pytest.raises(CaptureError, match="is returned, but does not depend on the input"):
        capture(module, (x,))


APART = torch.arange(6)[:, None] - torch.arange(6) + 5
MANY = torch.linspace(-1, 1, 16 * 11).view(16, 11)
KEPT = torch.tensor([1, 0, 2])
CALLS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "lerp": lambda m, x: torch.lerp(x, m.a(x), torch.linspace(0, 1, 16)),
    "lerp by a number": lambda m, x: torch.lerp(x, m.a(x), 0.3),
    "lerp by a layer": lambda m, x: torch.lerp(x, m.a(x), m.b(x)),
    "log_softmax": lambda m, x: m.a(x).log_softmax(-1),
    "log_softmax of large scores": lambda m, x: (100 * m.a(x)).log_softmax(-1) / 100,
    "round": lambda m, x: m.a(x).round(),
    "times a vector": lambda m, x: m.a(x) @ torch.arange(16.0),
    "einsum of any dimensions": lambda m, x: torch.einsum("...ab,...cb->...ac", m.a(x), m.b(x)),
    "a mask of a layer": lambda m, x: nn.functional.scaled_dot_product_attention(
        m.a(x), x, m.b(x), attn_mask=m.a(x)[..., :6]
    ),
    "padded by ones": lambda m, x: m.a(nn.functional.pad(x[..., :15], (0, 1), value=1.0)),
    "pooled beside nothing": lambda m, x: nn.functional.max_pool2d(
        nn.functional.pad(m.a(x).view(1, 6, 4, 4).transpose(1, 3), (0, 1, 0, 1), value=-torch.inf), 2, 2
    ),
    "gathered by distance": lambda m, x: (m.a(x) @ MANY).gather(-1, APART[None]).softmax(-1) @ x,
    "as many as a constant says": lambda m, x: m.a(x)[:, :1].repeat(1, KEPT.max() + 1, 1) * 2,
    "where a constant is": lambda m, x: m.a(x)[:, KEPT.nonzero()[:, 0]],
    "folded": lambda m, x: nn.functional.fold(m.a(x).mT, (4, 6), (2, 2), stride=2),
    "folded and overlapping": lambda m, x: nn.functional.fold(
        m.a(x).view(1, 3, 2, 16).permute(0, 3, 2, 1).reshape(1, 32, 3), (1, 4), (1, 2)
    ),
}
WEIGHT = torch.complex(torch.linspace(-1, 1, 54).view(6, 9), torch.linspace(2, -1, 54).view(6, 9))
SPECTRA: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "of features": lambda m, x: torch.fft.fft(m.a(x)).real,
    "of tokens and features": lambda m, x: torch.fft.fft2(m.a(x)).real,
    "of an input": lambda m, x: m.a(torch.fft.fftn(x, dim=(1, 2)).real),
    "both parts": lambda _, x: torch.view_as_real(torch.fft.fft2(x, norm="ortho")).flatten(-2),
    "absolute": lambda m, x: torch.fft.rfft(m.a(x)).abs(),
    "weighed": lambda m, x: torch.fft.irfft2(torch.fft.rfft2(m.a(x), norm="ortho") * WEIGHT, s=(6, 16), norm="ortho"),
    "there and back": lambda m, x: torch.fft.ifft(torch.fft.fft(m.a(x), dim=1), dim=1).imag + x,
    "longer": lambda _, x: torch.fft.fft(x, n=20).real,
    "rolled": lambda m, x: torch.fft.fft(m.a(x)).roll(3, -1).transpose(1, 2).real,
}
CALLS |= {f"spectrum, {name}": call for name, call in SPECTRA.items()}


@pytest.mark.parametrize("name", CALLS)
def test_call(name: str):
    module, x = embedded(CALLS[name], a=nn.Linear(16, 16), b=nn.Linear(16, 16))
    check(module, x[:1])


def into(target: Tensor, place: Any, value: Any) -> Tensor:
    target[place] = value
    return target


WRITES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "halves": lambda m, x: into(into(x.new_empty(1, 6, 32), (..., slice(16)), m.a(x)), (..., slice(16, 32)), x),
    "every other feature": lambda m, x: into(torch.cat([x, m.a(x)], -1), (..., slice(0, None, 2)), m.b(x)),
    "a feature": lambda m, x: into(torch.cat([x, m.a(x)], -1), (..., 3), 2.0),
    "a feature of a row": lambda m, x: torch.select_scatter(torch.cat([x, m.a(x)], -1)[0, 0], torch.tensor(2), 0, 5)[
        None
    ],
    "some features": lambda m, x: into(torch.cat([x, m.a(x)], -1), (..., [3, 5, 30]), x[..., :3]),
    "zeros": lambda m, x: let(torch.cat([x, m.a(x)], -1), lambda y: y[..., 4:8].zero_() * 0 + y[..., 4:8] + y[..., :4]),
    "all": lambda m, x: torch.zeros(1, 6, 32).copy_(torch.cat([x, m.b(x)], -1)),
    "one number": lambda m, x: x.new_zeros(1, 6, 16).fill_(0.5) + m.a(x),
}


@pytest.mark.parametrize("name", WRITES)
def test_writing_in_place(name: str):
    layers = {"a": nn.Linear(16, 16), "b": nn.Linear(16, 16), "wide": nn.Linear(32, 4), "narrow": nn.Linear(16, 4)}

    def forward(m: Any, x: Tensor) -> Tensor:
        y = WRITES[name](m, x)
        return {4: lambda z: z, 16: m.narrow, 32: m.wide}[y.shape[-1]](y)

    module, x = embedded(forward, **layers)
    check(module, x[:1])


def test_frames_of_users_are_told_from_ours():
    assert is_users(__file__)
    assert not is_users(ours.__file__)
    assert not is_users(torch.__file__)
    assert not is_users(str(Path(ours.__file__).parents[2] / "compiling.py"))
