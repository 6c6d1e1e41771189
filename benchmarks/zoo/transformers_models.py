"""Encoders of Hugging Face's transformers, by their classes; outputs are the library's dataclasses."""

from typing import Any

from torch import Tensor, nn

from benchmarks.zoo.packages import transformers
from benchmarks.zoo.row import IMAGE, Row

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
PICTURE = {"image_size": 32, "patch_size": 8}
WHOLE = SIZES | PICTURE
LARGER = (3, 64, 64)
TOKENS = (16, 32)


class OfEmbeddings(nn.Module):
    """A text encoder behind its lookup of words, which the host does."""

    def __init__(self, model: nn.Module, *, decoder: bool = False) -> None:
        super().__init__()
        self.model = model.encoder if decoder else model

    def forward(self, embeddings: Tensor) -> Any:
        return self.model(inputs_embeds=embeddings)


def build(name: str, config: str, sizes: dict[str, Any]) -> Any:
    made = getattr(transformers, config)(**sizes)
    return getattr(transformers, name)(made)


def model(name: str, config: str, stands_for: str, shape: tuple[int, ...] = IMAGE, **sizes: Any) -> Row:
    return Row(f"transformers/{name}", stands_for, lambda: build(name, config, sizes), (shape,))


def text(name: str, config: str, stands_for: str, **sizes: Any) -> Row:
    return Row(f"transformers/{name}", stands_for, lambda: OfEmbeddings(build(name, config, sizes)), (TOKENS,),
               heart="words are looked up by the host")  # fmt: skip


STAGES = {"hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1]}
ROWS = [
    model("ViTForImageClassification", "ViTConfig", "ViT", **WHOLE),
    model("ViTModel", "ViTConfig", "ViT with its pooler", **WHOLE),
    model("DeiTForImageClassification", "DeiTConfig", "DeiT", **WHOLE),
    model("DeiTForImageClassificationWithTeacher", "DeiTConfig", "DeiT with distillation token", **WHOLE),
    model("BeitForImageClassification", "BeitConfig", "BEiT", **WHOLE),
    model("Data2VecVisionForImageClassification", "Data2VecVisionConfig", "data2vec", **WHOLE),
    model("Dinov2ForImageClassification", "Dinov2Config", "DINOv2", **WHOLE),
    model("Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersConfig", "DINOv2 with registers", **WHOLE),
    model("DINOv3ViTModel", "DINOv3ViTConfig", "DINOv3: rotary positions", **WHOLE),
    model("CLIPVisionModel", "CLIPVisionConfig", "CLIP's image encoder", **WHOLE),
    model("CLIPVisionModelWithProjection", "CLIPVisionConfig", "CLIP's image encoder and projection", **WHOLE),
    model("ChineseCLIPVisionModel", "ChineseCLIPVisionConfig", "Chinese CLIP's image encoder", **WHOLE),
    model("SiglipVisionModel", "SiglipVisionConfig", "SigLIP", **WHOLE),
    model("AltCLIPVisionModel", "AltCLIPVisionConfig", "AltCLIP's image encoder", **WHOLE),
    model("BlipVisionModel", "BlipVisionConfig", "BLIP's image encoder", **WHOLE),
    model("Blip2VisionModel", "Blip2VisionConfig", "BLIP-2's image encoder", **WHOLE),
    model("InstructBlipVisionModel", "InstructBlipVisionConfig", "InstructBLIP's image encoder", **WHOLE),
    model("GitVisionModel", "GitVisionConfig", "GIT's image encoder", **WHOLE),
    model("XCLIPVisionModel", "XCLIPVisionConfig", "X-CLIP's frame encoder", **WHOLE, num_frames=1),
    model("Owlv2VisionModel", "Owlv2VisionConfig", "OWLv2's image encoder", **WHOLE),
    model("OwlViTVisionModel", "OwlViTVisionConfig", "OWL-ViT's image encoder", **WHOLE),
    model("CLIPSegVisionModel", "CLIPSegVisionConfig", "CLIPSeg's image encoder", **WHOLE),
    model("AlignVisionModel", "AlignVisionConfig", "ALIGN's image encoder (EfficientNet)", width_coefficient=0.25,
          depth_coefficient=0.25),
    model("IJepaModel", "IJepaConfig", "I-JEPA", **WHOLE),
    model("ViTMSNModel", "ViTMSNConfig", "MSN", **WHOLE),
    model("PixioModel", "PixioConfig", "Pixio", **WHOLE),
    model("VitDetModel", "VitDetConfig", "ViTDet: windows", hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
          image_size=32, patch_size=8,
          pretrain_image_size=32, window_block_indices=[0], window_size=2, use_relative_position_embeddings=True),
    model("YolosForObjectDetection", "YolosConfig", "YOLOS: detection tokens", **SIZES, image_size=[32, 32],
          patch_size=8, num_detection_tokens=4),
    model("SegformerForImageClassification", "SegformerConfig", "SegFormer", LARGER, depths=[1, 1, 1, 1],
          hidden_sizes=[16, 16, 32, 32],
          num_attention_heads=[1, 1, 2, 2]),
    model("SegformerForSemanticSegmentation", "SegformerConfig", "SegFormer with its head", LARGER, depths=[1, 1, 1, 1],
          hidden_sizes=[16, 16, 32, 32], num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=32),
    model("GLPNForDepthEstimation", "GLPNConfig", "GLPN: depth", LARGER, depths=[1, 1, 1, 1],
          hidden_sizes=[16, 16, 32, 32],
          num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=16),
    model("SwinForImageClassification", "SwinConfig", "Swin", image_size=32, patch_size=4, embed_dim=16, depths=[2, 2],
          num_heads=[2, 2], window_size=4),
    model("Swinv2ForImageClassification", "Swinv2Config", "Swin v2", image_size=32, patch_size=4, embed_dim=16,
          depths=[2, 2], num_heads=[2, 2], window_size=4),
    model("DonutSwinModel", "DonutSwinConfig", "Donut's image encoder", image_size=32, patch_size=4, embed_dim=16,
          depths=[2, 2], num_heads=[2, 2], window_size=4),
    model("PvtForImageClassification", "PvtConfig", "PVT: spatial reduction", LARGER, image_size=64,
          hidden_sizes=[16, 16, 32, 32], depths=[1, 1, 1, 1],
          num_attention_heads=[1, 1, 2, 2]),
    model("PvtV2ForImageClassification", "PvtV2Config", "PVT v2", LARGER, image_size=64, hidden_sizes=[16, 16, 32, 32],
          depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 2, 2]),
    model("CvtForImageClassification", "CvtConfig", "CvT", LARGER, embed_dim=[16, 32, 32], num_heads=[1, 2, 2],
          depth=[1, 2, 3]),
    model("LevitForImageClassification", "LevitConfig", "LeViT", LARGER, image_size=64, hidden_sizes=[16, 32, 32],
          num_attention_heads=[2, 2, 2], depths=[1, 1, 1], key_dim=[8, 8, 8]),
    model("MobileViTForImageClassification", "MobileViTConfig", "MobileViT", LARGER, image_size=64,
          hidden_sizes=[16, 24, 32], neck_hidden_sizes=[8, 8, 16, 16, 24, 32, 64]),
    model("MobileViTV2ForImageClassification", "MobileViTV2Config", "MobileViT v2", LARGER, image_size=64,
          base_attn_unit_dims=[16, 24, 32]),
    model("PoolFormerForImageClassification", "PoolFormerConfig", "PoolFormer", LARGER, hidden_sizes=[16, 16, 32, 32],
          depths=[1, 1, 1, 1]),
    model("HieraForImageClassification", "HieraConfig", "Hiera", LARGER, image_size=[64, 64], embed_dim=16,
          depths=[1, 1], num_heads=[1, 2], num_query_pool=1,
          masked_unit_size=[8, 8], masked_unit_attention=[True, False]),
    model("ConvNextForImageClassification", "ConvNextConfig", "ConvNeXt", LARGER, **STAGES),
    model("ConvNextV2ForImageClassification", "ConvNextV2Config", "ConvNeXt v2", LARGER, **STAGES),
    model("FocalNetForImageClassification", "FocalNetConfig", "FocalNet", image_size=32, embed_dim=16,
          hidden_sizes=[16, 32], depths=[1, 1],
          focal_levels=[2, 2], focal_windows=[3, 3]),
    model("SwiftFormerForImageClassification", "SwiftFormerConfig", "SwiftFormer", LARGER, depths=[1, 1, 1, 1],
          embed_dims=[16, 16, 32, 32]),
    model("EfficientNetForImageClassification", "EfficientNetConfig", "EfficientNet", LARGER, width_coefficient=0.25,
          depth_coefficient=0.25, hidden_dim=320),
    model("ResNetForImageClassification", "ResNetConfig", "ResNet", embedding_size=16, hidden_sizes=[16, 16, 32, 32],
          depths=[1, 1, 1, 1]),
    model("BitForImageClassification", "BitConfig", "BiT: weights standardised", LARGER, embedding_size=32,
          hidden_sizes=[128, 128, 128, 128], depths=[1, 1, 1, 1]),
    model("TextNetForImageClassification", "TextNetConfig", "TextNet", LARGER),
    model("DPTForDepthEstimation", "DPTConfig", "DPT: depth", **WHOLE | {"num_hidden_layers": 4},
          backbone_out_indices=[0, 1, 2, 3],
          neck_hidden_sizes=[16, 16, 16, 16], fusion_hidden_size=16, reassemble_factors=[4, 2, 1, 0.5]),
    model("DPTForSemanticSegmentation", "DPTConfig", "DPT: segmentation", **WHOLE | {"num_hidden_layers": 4},
          backbone_out_indices=[0, 1, 2, 3],
          neck_hidden_sizes=[16, 16, 16, 16], fusion_hidden_size=16, reassemble_factors=[4, 2, 1, 0.5]),
    model("VideoMAEForVideoClassification", "VideoMAEConfig", "VideoMAE", (4, 3, 16, 16), **WHOLE | {"image_size": 16},
          num_frames=4, tubelet_size=2),
    model("VivitForVideoClassification", "VivitConfig", "ViViT", (4, 3, 16, 16), **WHOLE | {"image_size": 16},
          num_frames=4, tubelet_size=[2, 8, 8]),
    model("TimesformerForVideoClassification", "TimesformerConfig", "TimeSformer: space and time divided",
          (2, 3, 16, 16), **WHOLE | {"image_size": 16}, num_frames=2),
    model("VJEPA2Model", "VJEPA2Config", "V-JEPA 2", (4, 3, 16, 16), crop_size=16, patch_size=8, frames_per_clip=4,
          hidden_size=48, num_hidden_layers=1,
          num_attention_heads=2, pred_hidden_size=48, pred_num_hidden_layers=1, pred_num_attention_heads=2),
    model("ASTForAudioClassification", "ASTConfig", "Audio Spectrogram Transformer", (32, 16), **SIZES, patch_size=8,
          max_length=32, num_mel_bins=16,
          frequency_stride=8, time_stride=8),
    text("BertModel", "BertConfig", "BERT", **SIZES, vocab_size=64),
    text("DistilBertModel", "DistilBertConfig", "DistilBERT", dim=32, n_layers=2, n_heads=2, hidden_dim=64,
          vocab_size=64),
    text("RobertaModel", "RobertaConfig", "RoBERTa", **SIZES, vocab_size=64),
    text("ElectraModel", "ElectraConfig", "ELECTRA", **SIZES, embedding_size=32, vocab_size=64),
    text("AlbertModel", "AlbertConfig", "ALBERT: one layer's weights for all", **SIZES, embedding_size=32,
          vocab_size=64),
    text("MPNetModel", "MPNetConfig", "MPNet: relative positions", **SIZES, vocab_size=64),
    text("DebertaV2Model", "DebertaV2Config", "DeBERTa: disentangled attention", **SIZES, vocab_size=64,
          relative_attention=True, pos_att_type=["c2p", "p2c"]),
    text("SqueezeBertModel", "SqueezeBertConfig", "SqueezeBERT: grouped convolution", **SIZES, embedding_size=32,
          vocab_size=64),
    text("ModernBertModel", "ModernBertConfig", "ModernBERT: rotary positions, GeGLU", **SIZES, vocab_size=64,
          pad_token_id=0, cls_token_id=1, sep_token_id=2, bos_token_id=1, eos_token_id=2),
    text("FNetModel", "FNetConfig", "FNet: Fourier transforms as a mixer", hidden_size=32, num_hidden_layers=2,
          intermediate_size=64, vocab_size=64),
    text("T5EncoderModel", "T5Config", "T5's encoder: RMSNorm, relative bias", d_model=32, d_kv=16, d_ff=64,
          num_layers=2, num_heads=2, vocab_size=64),
    text("GPT2Model", "GPT2Config", "GPT-2: causal", n_embd=32, n_layer=2, n_head=2, vocab_size=64),
    text("MixtralModel", "MixtralConfig", "Mixtral: experts, rotary positions", **SIZES, num_key_value_heads=2,
          num_local_experts=4, vocab_size=64),
    text("OPTModel", "OPTConfig", "OPT: causal, learned positions", hidden_size=32, word_embed_proj_dim=32,
          num_hidden_layers=2, num_attention_heads=2, ffn_dim=64, vocab_size=64),
]  # fmt: skip
