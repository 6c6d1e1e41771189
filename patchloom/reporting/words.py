"""How numbers of a report are written, on every page and terminal."""

from patchloom.reporting.report import Change, LayerReport, Override, Quality, Range, TaskReport

EXACT = "exact"
NOTHING = "-"
SHOWN = 12  # layers where there is no room for all
LONGEST = 34  # letters of a name in a picture


def decibels(value: float | None) -> str:
    return EXACT if value is None else f"{value:.1f} dB"


def quality(value: Quality) -> str:
    """The median, and the worst frame where it differs."""
    if value.median == value.worst:
        return decibels(value.median)
    return f"{decibels(value.median)}, worst {decibels(value.worst)}"


def short(name: str) -> str:
    """As much of its end as a picture has room for."""
    return name if len(name) <= LONGEST else f"...{name[3 - LONGEST :]}"


def share(value: float) -> str:
    return f"{value:.1%}"


def rerouted(layer: LayerReport) -> str:
    """Share of the tokens."""
    return share(layer.routing.otherwise / layer.routing.tokens) if layer.routing else ""


def span(value: Range) -> str:
    return f"{value[0]:.3g} to {value[1]:.3g}"


def form(layer: LayerReport) -> str:
    return f"{layer.bits} bits, step {layer.step:.2g}"


def used(layer: LayerReport) -> str:
    """Bits of the format that the values need."""
    return f"{layer.used:.1f}/{layer.bits}"


def routed(layer: LayerReport) -> str:
    """Tokens that go elsewhere, and how near the tie was."""
    if layer.routing is None:
        return ""
    r = layer.routing
    where = f"{r.otherwise:,} of {r.tokens:,}"
    if r.gap is None or r.usual is None:
        return where
    return f"{where}, gap {r.gap:.2g} of {r.usual:.2g}"


def waits(layer: LayerReport) -> str:
    """The two longest."""
    longest = list(layer.waits.items())[:2]
    return ", ".join(f"{name} {cycles:,}" for name, cycles in longest if cycles) or NOTHING


def head(task: TaskReport) -> list[tuple[str, str]]:
    """What comes first of a task: name and value."""
    tiles = [("outputs against float", quality(task.output))]
    if task.routed is not None:
        tiles.append(("tokens routed as in float", f"{task.routed:.2%}"))
    return [
        *tiles,
        ("saturations", f"{task.saturations:,} in {task.frames} frame{'s' * (task.frames > 1)}"),
        ("cycles a frame", f"{task.cycles:,}"),
        ("multipliers used", share(task.utilisation)),
        ("bytes a frame", f"{task.bytes:,}"),
    ]


def lines(override: Override) -> list[str]:
    """As a design file has them."""
    return [f"{name}: {bits}" for name, bits in override.layers.items()]


def change(one: Change, before: TaskReport) -> str:
    gain = "now exact" if one.gain is None else f"{one.gain:+.1f} dB"
    return f"{one.task} {gain}, {one.cycles / before.cycles - 1:+.1%} cycles"
