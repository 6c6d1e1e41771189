"""The hls4ml backend `Patchloom`: a torch module, compiled to a Program, as one layer of an hls4ml model.

`wrap` makes the layer; `MismatchError` says that a conversion is wrong. Loaded at first use, because hls4ml imports
the backend below by its entry point while it is imported itself.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from patchloom.hls4ml.plugin import Leaf, MismatchError, wrap

__all__ = ["Leaf", "MismatchError", "wrap"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from patchloom.extras import needed_by  # noqa: PLC0415 - see above

    with needed_by("patchloom.hls4ml", "hls4ml"):
        from patchloom.hls4ml import plugin  # noqa: PLC0415 - see above
    return getattr(plugin, name)
