"""All rows, by family."""

from collections.abc import Iterator
from importlib import import_module

from benchmarks.zoo.row import Row

OWN = ("published", "mixtures", "forms", "torch_nn")
OTHERS = ("timm_models", "torchvision_models", "vit_pytorch_models", "transformers_models")  # of packages
FAMILIES = OWN + OTHERS


def rows(*names: str) -> Iterator[tuple[str, Row]]:
    """Each with its family; `names` are of families or of rows, none are all."""
    for family in [family for family in FAMILIES if family in names] or FAMILIES:
        for row in import_module(f"benchmarks.zoo.{family}").ROWS:
            if not names or family in names or row.name in names:
                yield family, row
