"""Transformers of vit-pytorch."""

from importlib import import_module
from typing import Any

from benchmarks.zoo import packages  # noqa: F401 - vit-pytorch needs torchvision
from benchmarks.zoo.row import IMAGE, Row

SIZES = {"dim": 32, "depth": 2, "heads": 2, "dim_head": 16, "mlp_dim": 64}
PICTURE = {"image_size": 32, "patch_size": 8, "num_classes": 10}
WHOLE = SIZES | PICTURE
VIDEO = {"image_size": 16, "image_patch_size": 8, "frames": 4, "frame_patch_size": 2, "num_classes": 10}


def model(module: str, name: str, stands_for: str, shape: tuple[int, ...] = IMAGE, **sizes: Any) -> Row:
    def make() -> Any:
        return getattr(import_module(f"vit_pytorch.{module}"), name)(**sizes)

    return Row(f"vit_pytorch/{module}", stands_for, make, (shape,))


NO_HEAD_SIZE = {key: value for key, value in WHOLE.items() if key != "dim_head"}
ROWS = [
    model("vit", "ViT", "ViT", **WHOLE),
    model("simple_vit", "SimpleViT", "ViT, mean of tokens, sine positions", **WHOLE),
    model("deepvit", "DeepViT", "re-attention: heads mixed after softmax", **WHOLE),
    model("cait", "CaiT", "talking heads, class attention", cls_depth=1, **WHOLE),
    model("t2t", "T2TViT", "overlapping soft splits", image_size=32, num_classes=10, t2t_layers=((7, 4), (3, 2)),
          **SIZES),
    model("cct", "CCT", "convolutional tokeniser, sequence pooling", img_size=32, embedding_dim=32, n_conv_layers=1,
          kernel_size=7, stride=2, padding=3, pooling_kernel_size=3, pooling_stride=2, pooling_padding=1, num_layers=2,
          num_heads=2, mlp_ratio=2.0, num_classes=10, positional_embedding="learnable"),
    model("cross_vit", "CrossViT", "two branches that attend to each other", image_size=32, num_classes=10, depth=1,
          sm_dim=16, sm_patch_size=8, sm_enc_depth=1, sm_enc_heads=2, sm_enc_mlp_dim=32, sm_enc_dim_head=8, lg_dim=32,
          lg_patch_size=16, lg_enc_depth=1, lg_enc_heads=2, lg_enc_mlp_dim=64, lg_enc_dim_head=16, cross_attn_depth=1,
          cross_attn_heads=2, cross_attn_dim_head=8),
    model("pit", "PiT", "pooling between stages", **WHOLE | {"depth": (1, 1), "image_size": 36, "patch_size": 12},
          shape=(3, 36, 36)),
    model("levit", "LeViT", "convolution stem, BatchNorm, hard-swish", image_size=32, num_classes=10, stages=2,
          dim=(32, 48), depth=1, heads=(2, 2), mlp_mult=2, dim_key=8, dim_value=16),
    model("cvt", "CvT", "depthwise convolutions make q, k, v", num_classes=10, s1_emb_dim=16, s1_heads=1, s1_depth=1,
          s2_emb_dim=32, s2_heads=1, s2_depth=1, s3_emb_dim=32, s3_heads=1, s3_depth=1),
    model("twins_svt", "TwinsSVT", "local and global attention", (3, 64, 64), num_classes=10, s1_emb_dim=16,
          s1_patch_size=4,
          s1_local_patch_size=4, s1_global_k=4, s1_depth=1, s2_emb_dim=32, s2_patch_size=2, s2_local_patch_size=4,
          s2_global_k=4, s2_depth=1, s3_emb_dim=32, s3_patch_size=2, s3_local_patch_size=2, s3_global_k=2, s3_depth=1,
          s4_emb_dim=32, s4_patch_size=2, s4_local_patch_size=2, s4_global_k=2, s4_depth=1),
    model("crossformer", "CrossFormer", "scales joined; long and short windows", (3, 64, 64), num_classes=10,
          dim=(32, 32, 32, 32), depth=(1, 1, 1, 1), global_window_size=(4, 2, 1, 1), local_window_size=2),
    model("regionvit", "RegionViT", "regional and local tokens", (3, 64, 64), dim=(16, 32, 32, 32), depth=(1, 1, 1, 1),
          window_size=2, num_classes=10, tokenize_local_3_conv=False, use_peg=False),
    model("scalable_vit", "ScalableViT", "scalable attention", (3, 64, 64), num_classes=10, dim=16, heads=(1, 2, 2, 2),
          depth=(1, 1, 1, 1), ssa_dim_key=(8, 8, 8, 8), reduction_factor=(8, 4, 2, 1), window_size=(16, 8, None, None)),
    model("sep_vit", "SepViT", "window tokens; pointwise attention", (3, 224, 224), num_classes=10, dim=16, dim_head=8,
          heads=(1, 2, 2, 2), depth=(1, 1, 1, 1), window_size=7),
    model("max_vit", "MaxViT", "MBConv, block and grid attention", (3, 64, 64), num_classes=10, dim=16, depth=(1, 1),
          dim_head=8, dim_conv_stem=16, window_size=4),
    model("max_vit_with_registers", "MaxViT", "MaxViT with registers", (3, 64, 64), num_classes=10, dim=16,
          depth=(1, 1),
          dim_head=8, dim_conv_stem=16, window_size=4),
    model("nest", "NesT", "hierarchy of blocks", image_size=32, patch_size=4, dim=16, heads=2, num_hierarchies=2,
          block_repeats=(1, 1), num_classes=10),
    model("mobile_vit", "MobileViT", "MobileNet blocks and attention", image_size=(64, 64), dims=[16, 24, 32],
          channels=[8, 8, 16, 16, 16, 16, 24, 24, 32, 32, 32], num_classes=10, shape=(3, 64, 64)),
    model("xcit", "XCiT", "attention of channels", **WHOLE, cls_depth=1),
    model("rvt", "RvT", "rotary positions, depthwise convolution, GLU", **WHOLE),
    model("ats_vit", "ViT", "tokens sampled by their score", **WHOLE, max_tokens_per_depth=(12, 8)),
    model("vit_for_small_dataset", "ViT", "shifted patches, own token masked", **WHOLE),
    model("parallel_vit", "ViT", "parallel branches", **WHOLE, num_parallel_branches=2),
    model("learnable_memory_vit", "ViT", "memory tokens", **WHOLE),
    model("vit_with_patch_merger", "ViT", "tokens merged by learned queries", **WHOLE, patch_merge_layer=1,
          patch_merge_num_tokens=4),
    model("vit_with_patch_dropout", "ViT", "patch dropout, nothing in use", **WHOLE),
    model("look_vit", "LookViT", "high-resolution tokens looked up", image_size=32, patch_size=16, num_classes=10,
          dim=32,
          depth=1, heads=2, dim_head=16, highres_patch_size=8, cross_attn_heads=2, cross_attn_dim_head=16),
    model("simple_vit_with_qk_norm", "SimpleViT", "norm of q and k", **WHOLE),
    model("simple_vit_with_register_tokens", "SimpleViT", "registers", **WHOLE),
    model("simple_vit_with_value_residual", "SimpleViT", "values of the first layer mixed in", **WHOLE),
    model("simple_vit_with_hyper_connections", "SimpleViT", "several residual streams", **WHOLE,
          num_residual_streams=2),
    model("simple_vit_with_fft", "SimpleViT", "Fourier transform of the image", **WHOLE, freq_patch_size=8),
    model("simple_vit_attn_residual", "SimpleViTAttnResidual", "attention over earlier layers", **WHOLE),
    model("simple_vit_orthog_residual_update", "SimpleViT", "orthogonal residuals", **WHOLE),
    model("simple_vit_with_relative_proj_pos_bias", "SimpleViT", "projected relative bias", **WHOLE),
    model("simple_vit_with_specialized_cls", "SimpleViT", "own weights of the class token", **WHOLE,
          specialize_qkv_depth=1),
    model("simple_flash_attn_vit", "SimpleViT", "ViT by scaled_dot_product_attention", **WHOLE),
    model("simple_uvit", "SimpleUViT", "skips between layers", **WHOLE),
    model("simple_vit_1d", "SimpleViT", "a signal", (3, 64), seq_len=64, patch_size=8, num_classes=10, **SIZES),
    model("vit_1d", "ViT", "a signal, class token", (3, 64), seq_len=64, patch_size=8, num_classes=10, **SIZES),
    model("simple_vit_3d", "SimpleViT", "a video", (3, 4, 16, 16), **VIDEO, **SIZES),
    model("vit_3d", "ViT", "a video, class token", (3, 4, 16, 16), **VIDEO, **SIZES),
    model("vivit", "ViViT", "space, then time", (3, 4, 16, 16), **VIDEO, spatial_depth=1, temporal_depth=1,
          **{key: value for key, value in SIZES.items() if key != "depth"}),
    model("vit_nd", "ViTND", "patches of any rank", ndim=2, input_shape=(32, 32), patch_size=8, num_classes=10,
          **SIZES),
    model("vit_nd_rotary", "ViTND", "rotary positions of any rank", ndim=2, input_shape=(32, 32), patch_size=8,
          num_classes=10, **SIZES),
    model("vit_5", "ViT", "a current recipe: RMSNorm, registers", **WHOLE),
    model("vit_with_keel_post_ln", "ViT", "post-norm, residual scaled", **WHOLE),
    model("normalized_vit", "nViT", "tokens on a sphere", **WHOLE),
    model("jumbo_vit", "JumboViT", "one wide class token", **NO_HEAD_SIZE, dim_head=16, num_jumbo_cls=1, jumbo_cls_k=2),
    model("looped_vit", "LoopedViT", "a block run several times", num_classes=10, dim=32, image_size=32, patch_size=8,
          pre_loop_depth=1, num_looped_blocks=1, post_loop_depth=1, loop_depth=2, heads=2, dim_head=16, mlp_dim=64),
    model("jet_vit", "JetViT", "windows and linear attention", **WHOLE),
    model("vit_detpool", "ViTDetPool", "mask pooling", **WHOLE),
]  # fmt: skip
