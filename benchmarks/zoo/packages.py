"""Packages that bring models. torchvision first: timm and vit-pytorch import it."""

import logging

import torch

# torchvision's wheel is compiled for a torch with CUDA; no row uses its operations, of which importing needs two.
_LIBRARY = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    _LIBRARY.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import timm  # noqa: E402
import torchvision  # noqa: E402
import transformers  # noqa: E402
import vit_pytorch  # noqa: E402

logging.getLogger("transformers").setLevel(logging.ERROR)

__all__ = ["timm", "torchvision", "transformers", "vit_pytorch"]
