"""Published systems and techniques: what each needs, which rows stand for it, and what those do not say."""

from dataclasses import dataclass


@dataclass(frozen=True)
class System:
    """`rows`: names of rows; `says`: what stands in the way, or what was measured elsewhere."""

    name: str
    needs: str
    rows: tuple[str, ...] = ()
    says: str = ""


def system(name: str, needs: str, *rows: str, says: str = "") -> System:
    return System(name, needs, tuple(rows), says)


MODELS = [
    system("UniFormer", "video tokens, convolution and attention", "published/UniFormer, video"),
    system("FaceXFormer: A Unified Transformer for Facial Analysis", "task tokens, cross-attention decoder",
           "published/FaceXFormer"),
    system("UniRef++", "multi-reference fusion", "published/UniRef++"),
    system("UniFormer", "convolution and attention backbone, dense heads", "published/UniFormer, dense"),
    system("Towards a Single Unified Model for Effective Detection, Segmentation, and Diagnosis of Eight Major Cancers "
           "Using a Large Collection of CT Scans", "query-based mask transformer", "published/Eight Major Cancers"),
    system("Meta-Transformer: A Unified Framework for Multimodal Learning", "shared encoder, several tokenisers",
           "published/Meta-Transformer"),
    system("Uni4Eye", "2D and 3D patches, one encoder", "published/Uni4Eye"),
    system("DINO-X", "open-world detection encoder", "published/DINO-X", "published/DINO-X, deformable",
           says="places that tokens choose are addresses made of values, which no command has"),
    system("PASTA: Pretrained Action-State Transformer Agents", "action-state encoder", "published/PASTA"),
    system("ChartReader", "detection and transformer", "published/ChartReader"),
    system("MiVOLO: Multi-input Transformer for Age and Gender Estimation", "two inputs, two tasks",
           "published/MiVOLO", "timm/volo_d1_224"),
    system("OpenSD: Unified Open-Vocabulary Segmentation and Detection", "one decoder, several tasks",
           "published/OpenSD"),
    system("DeepSolo", "explicit point queries", "published/DeepSolo"),
    system("MoRE", "X-ray and ECG encoders", "published/MoRE"),
    system("SSAT", "semantic-aware attention", "published/SSAT"),
    system("Pyramid Vision Transformer", "spatial-reduction attention", "published/Pyramid Vision Transformer",
           "transformers/PvtForImageClassification", "timm/pvt_v2_b0"),
    system("Vid2Robot", "cross-attention policy", "published/Vid2Robot"),
    system("Transferable Tactile Transformers for Representation Learning Across Diverse Sensors and Tasks",
           "shared trunk, sensor stems, task heads", "published/T3"),
    system("USAGE", "seed-area generation ViT", "published/USAGE"),
    system("White-Box Transformers via Sparse Rate Reduction", "attention with one projection, a step of ISTA",
           "published/CRATE"),
    system("UniRGB-IR", "adapters beside a ViT", "published/UniRGB-IR"),
    system("Fashionformer", "queries, two streams", "published/Fashionformer"),
    system("Uni-Perceiver", "shared encoder, similarity heads", "published/Uni-Perceiver"),
    system("End-To-End Prediction of Knee Osteoarthritis Progression With Multi-Modal Transformers",
           "multi-modal fusion encoder", "published/Knee Osteoarthritis"),
    system("CMX", "two-modality fusion, cross rectification", "published/CMX"),
    system("EMOv2: Pushing 5M Vision Model Frontier", "mobile block", "published/EMOv2"),
    system("Language as Queries for Referring Video Object Segmentation", "cross-attention with text queries",
           "published/Language as Queries"),
    system("Focus the Discrepancy", "intra- and inter-correlation attention", "published/Focus the Discrepancy"),
    system("Towards Category Unification of 3D Single Object Tracking on Point Clouds", "point-cloud tracking",
           "published/3D Single Object Tracking"),
    system("LMUFormer", "linear recurrent memory and channel mixing", "published/LMUFormer"),
    system("MAFormer", "multi-scale attention fusion", "published/MAFormer"),
    system("Transformer in Transformer", "inner and outer tokens", "published/Transformer in Transformer",
           "timm/tnt_s_patch16_224"),
    system("iTransformer", "variates as tokens", "published/iTransformer"),
    system("Activator", "GLU in place of attention and MLP", "published/Activator"),
    system("Wide Attention Is The Way Forward For Transformers?", "one wide attention layer, many heads",
           "published/Wide Attention"),
    system("CrossViT", "two branches, cross-attention", "published/CrossViT", "timm/crossvit_9_240",
           "vit_pytorch/cross_vit"),
    system("Combiner: Full Attention Transformer with Sparse Computation Cost", "structured attention",
           "published/Combiner"),
    system("OneFormer: One Transformer to Rule Universal Image Segmentation", "task token, dense decoder",
           "published/OneFormer", "published/OneFormer, masked attention",
           says="a mask that values decide on has no command"),
]  # fmt: skip

TECHNIQUES = [
    system("Unified Normalization for Accelerating and Stabilizing Transformers", "folds into the neighbouring layer",
           "published/Unified Normalization", says="no command is left of it: compare MACs"),
    system("ShiftAddViT", "shift experts beside multiply experts", "published/ShiftAddViT",
           says="the array multiplies by powers of two as by any weight: right, and no cheaper"),
    system("A Unified View of Long-Sequence Models towards Modeling Million-Scale Dependencies",
           "growth of cost with tokens", "published/Long Range Arena, 1024",
           says="cycles for 65 to 513 tokens: benchmarks/results/scaling.json and docs/scaling.png"),
    system("Auto-scaling Vision Transformers without Training", "search of size without training",
           says="not built: a machine is sized for a board and a model, a model is not searched"),
    system("You Need Multiple Exiting", "early exit by confidence", "published/Multiple Exiting",
           says="every exit is returned, none is taken early: no command ends a task by a value"),
    system("Long Range Arena: A Benchmark for Efficient Transformers", "long sequences",
           "published/Long Range Arena, 1024",
           says="a command streams 4,096 rows at most"),
    system("FlexDiT: Dynamic Token Density Control for Diffusion Transformer",
           "token count that changes between layers", "published/FlexDiT",
           says="counts that are fixed; ones that values decide on have no command"),
    system("Mixture-of-Transformers", "weights of each modality, global attention",
           "published/Mixture-of-Transformers"),
    system("Pre-RMSNorm and Pre-CRMSNorm Transformers", "exact rewrite of pre-LN", "published/Pre-RMSNorm"),
    system("Transformer Fusion with Optimal Transport", "fused checkpoints compile like any other",
           "published/Transformer Fusion"),
    system("FuseGPT", "layer fusion before compilation", "published/FuseGPT"),
    system("A Practical Survey on Faster and Lighter Transformers", "checklist of optimisations",
           "form/attention linear, normalised", "form/attention efficient", "form/attention windows",
           "form/attention grouped queries", "mixture/loop", "transformers/AlbertModel",
           says="weight sharing, sparse and low-rank attention, mixtures: these rows; pruning and distillation leave "
           "models that compile like any other; adaptive depth has no command"),
    system("A Survey of Techniques for Optimizing Transformer Inference", "checklist of optimisations",
           "form/attention written out", "mixture/loop", "timm/deit_tiny_distilled_patch16_224",
           says="quantisation to 4, 8 and 16 bits: docs/accuracy.md; reordered attention: docs/machine.md; pruned "
           "weights are multiplied all the same: nothing skips a zero"),
    system("RepQuant", "scales moved behind a LayerNorm, log softmax", "published/RepQuant, outliers",
           "published/RepQuant, log softmax",
           says="factors behind a norm go into the weights; probabilities have a linear scale of their own"),
]  # fmt: skip
