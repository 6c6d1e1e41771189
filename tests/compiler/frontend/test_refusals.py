"""What is said about models that cannot be compiled, as golden files."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchloom.compiler.frontend.capture import capture
from patchloom.compiler.problems import CaptureError
from tests.compiler.golden import matches

GOLDEN = Path(__file__).parent / "golden"
ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch):
    """File names in messages are relative to the working directory."""
    monkeypatch.chdir(ROOT)
    torch.manual_seed(0)
    torch.set_num_threads(1)


class Written(nn.Module):
    """A forward given as a function of the module and its inputs."""

    def __init__(self, run: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        self.run = run
        self.first = nn.Linear(8, 8)
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, self.first(x))


def many(_: Any, x: Tensor) -> Tensor:
    y = x + x.frac()
    y = y + x.amin(1, keepdim=True)
    y = y + x.cumsum(1)
    return y.argmax(-1)


SHUFFLED = torch.randint(24, (800,), generator=torch.Generator().manual_seed(0))
FIRST = torch.tensor([[True], [False], [False]])


def attention(x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    return change(x @ x.mT).softmax(-1) @ x


REFUSED: dict[str, Callable[[], nn.Module]] = {
    "many": lambda: Written(many),
    "hidden_from_all": lambda: Written(lambda _, x: attention(x, lambda s: s.masked_fill(FIRST, -torch.inf))),
    "shuffled_elements": lambda: Written(
        lambda m, x: m.mix(x.flatten(1)[:, SHUFFLED].view(1, 100, 8)), mix=nn.Linear(8, 3)
    ),
    "many_positions": lambda: Written(lambda _, x: F.avg_pool2d(x.view(1, 3, 1, 8).expand(1, 3, 1024, 8), 2)),
    "partial_norm": lambda: Written(lambda m, x: m.norm(x), norm=nn.LayerNorm((3, 8))),
    "batch_statistics": lambda: Written(lambda m, x: m.batch(x.mT), batch=nn.BatchNorm1d(8, track_running_stats=False)),
    "negative_eps": lambda: Written(lambda m, x: m.norm(x), norm=nn.LayerNorm(8, eps=-0.5)),
    "vector_with_bias": lambda: Written(lambda m, x: F.linear(x, m.first.bias, x.new_ones(()))),
    "constant_result": lambda: Written(lambda m, x: (x, m.first.weight * 2)),
    "branch_on_values": lambda: Written(lambda _, x: x * 2 if x.sum() > 0 else x),
    "not_finite": lambda: with_nan(Written(lambda m, x: m.norm(x), norm=nn.LayerNorm(8))),
}


def with_nan(module: Any) -> nn.Module:
    with torch.no_grad():
        module.first.weight[1, 2] = float("nan")
        module.norm.bias[0] = float("inf")
    return module


def with_code(text: str) -> str:
    """The user's line itself in place of its number."""

    def code(match: re.Match[str]) -> str:
        return f"{match[1]}:[{(ROOT / match[1]).read_text().splitlines()[int(match[2]) - 1].strip()}]"

    return re.sub(r"(tests/\S+\.py):(\d+)", code, text)


@pytest.mark.parametrize("name", REFUSED)
def test_refusal_says(name: str):
    with pytest.raises(CaptureError) as refusal:
        capture(REFUSED[name](), (torch.randn(1, 3, 8),))
    assert matches(with_code(f"{refusal.value}\n"), GOLDEN / f"{name}.txt")
