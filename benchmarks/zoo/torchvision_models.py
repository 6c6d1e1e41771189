"""Vision models of torchvision."""

from functools import partial
from typing import Any

from torch import nn

from benchmarks.zoo.packages import torchvision
from benchmarks.zoo.row import IMAGE, Row

LARGER = (3, 64, 64)
models = torchvision.models


def model(name: str, stands_for: str, make: Any, shape: tuple[int, ...] = IMAGE, **sizes: Any) -> Row:
    return Row(f"torchvision/{name}", stands_for, partial(make, num_classes=10, **sizes), (shape,))


def detector() -> nn.Module:
    return models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4)


ROWS = [
    model("vit", "ViT by nn.MultiheadAttention", models.VisionTransformer, image_size=32, patch_size=8, num_layers=2,
          num_heads=2, hidden_dim=32, mlp_dim=64),
    model("vit with stem", "ViT behind convolutions and BatchNorm", models.VisionTransformer, image_size=32,
          patch_size=8, num_layers=1,
          num_heads=2, hidden_dim=32, mlp_dim=64,
          conv_stem_configs=[models.vision_transformer.ConvStemConfig(16, 3, 2),
          models.vision_transformer.ConvStemConfig(16, 3, 4)]),
    model("swin", "Swin", models.SwinTransformer, patch_size=[4, 4], embed_dim=16, depths=[2, 2], num_heads=[2, 2],
          window_size=[4, 4]),
    model("swin_v2", "Swin v2", models.SwinTransformer, patch_size=[4, 4], embed_dim=16, depths=[2, 2],
          num_heads=[2, 2], window_size=[4, 4],
          block=models.swin_transformer.SwinTransformerBlockV2,
          downsample_layer=models.swin_transformer.PatchMergingV2),
    model("maxvit", "MaxViT", models.MaxVit, LARGER, input_size=(64, 64), stem_channels=8, partition_size=4,
          block_channels=[8, 16], block_layers=[1, 1],
          head_dim=8, stochastic_depth_prob=0.0),
    model("convnext", "ConvNeXt", models.ConvNeXt,
          block_setting=[models.convnext.CNBlockConfig(16, 32, 1), models.convnext.CNBlockConfig(32, None, 1)]),
    model("resnet", "ResNet", models.ResNet, block=models.resnet.BasicBlock, layers=[1, 1, 1, 1], width_per_group=64),
    model("mobilenet_v2", "MobileNet v2: ReLU6, depthwise", models.MobileNetV2, width_mult=0.25),
    model("mobilenet_v3", "MobileNet v3", models.mobilenet_v3_small),
    model("shufflenet_v2", "ShuffleNet: channels shuffled", models.shufflenet_v2_x0_5, LARGER),
    model("squeezenet", "SqueezeNet: joins of channels", models.squeezenet1_1, LARGER),
    Row("torchvision/lraspp", "a segmentation head with upsampling", detector, (LARGER,)),
]  # fmt: skip
