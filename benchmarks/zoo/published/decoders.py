"""Systems whose heart is queries that look at an image."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.zoo.published.parts import (
    DIM,
    SIDE,
    TOKENS,
    Attention,
    Block,
    Decoder,
    Mlp,
    Patches,
    as_map,
    as_tokens,
    encoder,
    learned,
    published,
)
from benchmarks.zoo.row import IMAGE

CLASSES = 5


class Face(nn.Module):
    """FaceXFormer: two scales fused; task tokens and face tokens look at each other; a head a task."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse, self.fuse = Patches(8), Patches(16), nn.Linear(2 * DIM, DIM)
        self.fine_blocks, self.coarse_blocks = encoder(1), encoder(1)
        self.tasks, self.own, self.to_face, self.to_tasks = learned(1, 4, DIM), Attention(), Attention(), Attention()
        self.norms, self.mlp = nn.ModuleList(nn.LayerNorm(DIM) for _ in range(3)), Mlp()
        self.landmarks, self.pose, self.age = nn.Linear(DIM, 10), nn.Linear(DIM, 3), nn.Linear(DIM, 1)
        self.parts = nn.Linear(DIM, DIM)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        coarse = F.interpolate(as_map(self.coarse_blocks(self.coarse(image)), 2), scale_factor=2, mode="bilinear")
        face = self.fuse(torch.cat([self.fine_blocks(self.fine(image)), as_tokens(coarse)], -1))
        tasks = self.tasks.expand(len(image), -1, -1)
        tasks = self.norms[0](tasks + self.own(tasks))
        tasks = self.norms[1](tasks + self.to_face(tasks, face))
        face = self.norms[2](face + self.to_tasks(face, tasks))
        tasks = tasks + self.mlp(tasks)
        parsing = as_map(face @ self.parts(tasks[:, 3:]).transpose(1, 2))
        return {
            "landmarks": self.landmarks(tasks[:, 0]),
            "pose": self.pose(tasks[:, 1]),
            "age": self.age(tasks[:, 2]),
            "parsing": parsing,
        }


class Masks(nn.Module):
    """Queries to classes and masks over the pixels of an image or a volume."""

    def __init__(self, backbone: nn.Module, queries: int = 6, classes: int = CLASSES, layers: int = 2) -> None:
        super().__init__()
        self.backbone, self.queries = backbone, learned(1, queries, DIM)
        self.layers = nn.ModuleList(Decoder() for _ in range(layers))
        self.classes, self.kernel, self.pixels = nn.Linear(DIM, classes), Mlp(), nn.Linear(DIM, DIM)

    def decode(self, queries: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        for layer in self.layers:
            queries = layer(queries, tokens)
        return self.classes(queries), self.kernel(queries) @ self.pixels(tokens).transpose(1, 2)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.decode(self.queries.expand(len(image), -1, -1), self.backbone(image))


class Volume(nn.Module):
    """A convolutional stem in three dimensions, to tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv3d(1, DIM, 4, 4), nn.LayerNorm(DIM)
        self.mix = nn.Conv3d(DIM, DIM, 2, 2)

    def forward(self, volume: Tensor) -> Tensor:
        return self.norm(as_tokens(self.mix(F.relu(self.stem(volume)))))


class Cancers(Masks):
    """Also whether there is a lesion at all, from all queries."""

    def __init__(self) -> None:
        super().__init__(Volume(), classes=8)
        self.patient = nn.Linear(DIM, 8)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        tokens = self.backbone(image)
        queries = self.queries.expand(len(image), -1, -1)
        return *self.decode(queries, tokens), self.patient(tokens.mean(1))


class OpenWorld(nn.Module):
    """DINO-X: an image encoder whose tokens are compared with embeddings of prompts; boxes of every token."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.blocks, self.decoder = Patches(), encoder(), Decoder()
        self.queries, self.boxes, self.project = learned(1, 6, DIM), Mlp(out=4), nn.Linear(DIM, DIM)

    def forward(self, image: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
        queries = self.decoder(self.queries.expand(len(image), -1, -1), self.blocks(self.patches(image)))
        return self.project(queries) @ prompts.transpose(1, 2), self.boxes(queries)


class Deformable(nn.Module):
    """Attention to a few places that each token chooses."""

    def __init__(self, points: int = 4) -> None:
        super().__init__()
        self.points, self.where, self.weights = points, nn.Linear(DIM, 2 * points), nn.Linear(DIM, points)
        self.value, self.proj = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.register_buffer("places", F.affine_grid(torch.eye(2, 3)[None], [1, 1, SIDE, SIDE]).flatten(1, 2))

    def forward(self, x: Tensor) -> Tensor:
        grid = self.places[:, :, None] + 0.3 * torch.tanh(self.where(x)).unflatten(2, (self.points, 2))
        seen = F.grid_sample(as_map(self.value(x)), grid, align_corners=False)
        return self.proj((seen * self.weights(x).softmax(-1)[:, None]).sum(-1).transpose(1, 2))


class Chart(nn.Module):
    """ChartReader: a heat map of key points, and a transformer over places with their kinds and positions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.heat = nn.Conv2d(3, DIM, 8, 8), nn.BatchNorm2d(DIM), nn.Conv2d(DIM, 3, 1)
        self.kinds, self.position, self.blocks = nn.Conv2d(3, DIM, 1), learned(1, TOKENS, DIM), encoder()
        self.group, self.kind = nn.Linear(DIM, 4), nn.Linear(DIM, CLASSES)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        grid = F.relu(self.norm(self.stem(image)))
        heat = self.heat(grid)
        x = self.blocks(as_tokens(grid + self.kinds(heat)) + self.position)
        return heat, self.group(x), self.kind(x)


class OneDecoder(Masks):
    """OpenSD: things and stuff have their own queries; one decoder; classes are embeddings of words."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(Patches(), encoder(1)), classes=DIM)
        self.stuff, self.words = learned(1, 6, DIM), learned(CLASSES, DIM)

    def forward(self, image: Tensor, task: int) -> tuple[Tensor, Tensor]:
        queries = (self.queries, self.stuff)[task].expand(len(image), -1, -1)
        classes, masks = self.decode(queries, self.backbone(image))
        return classes @ self.words.T, masks


class Points(nn.Module):
    """DeepSolo: a query a point of a text's centre line; attention within a line, across lines, to the image."""

    def __init__(self, lines: int = 3, points: int = 4) -> None:
        super().__init__()
        self.backbone, self.queries = nn.Sequential(Patches(), encoder(1)), learned(1, lines, points, DIM)
        self.within, self.across, self.cross, self.mlp = Attention(), Attention(), Attention(), Mlp()
        self.norms = nn.ModuleList(nn.LayerNorm(DIM) for _ in range(4))
        self.letters, self.places = nn.Linear(DIM, 12), Mlp(out=2)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x, tokens = self.queries.expand(len(image), -1, -1, -1), self.backbone(image)
        x = self.norms[0](x + self.within(x))
        x = self.norms[1](x + self.across(x.transpose(1, 2)).transpose(1, 2))
        x = x.flatten(1, 2)
        x = self.norms[2](x + self.cross(x, tokens))
        x = self.norms[3](x + self.mlp(x))
        return self.letters(x), self.places(x)


class Fashion(Masks):
    """Fashionformer: masks gather what they cover; one stream of queries for masks, one for attributes."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(Patches(), encoder(1)), layers=1)
        self.update, self.attribute, self.norm, self.attributes = (
            Mlp(),
            Attention(),
            nn.LayerNorm(DIM),
            nn.Linear(DIM, 8),
        )

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        tokens, queries = self.backbone(image), self.queries.expand(len(image), -1, -1)
        _, masks = self.decode(queries, tokens)
        queries = self.norm(queries + self.update(masks.sigmoid() @ tokens))
        return *self.decode(queries, tokens), self.attributes(queries + self.attribute(queries, tokens))


class Referring(Masks):
    """ReferFormer: a sentence conditions the queries; each makes the weights of its own mask head."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(Patches(), encoder(1)), layers=1)
        self.words, self.vision = nn.Linear(16, DIM), Attention()

    def forward(self, image: Tensor, sentence: Tensor) -> tuple[Tensor, Tensor]:
        words, tokens = self.words(sentence), self.backbone(image)
        tokens = tokens + self.vision(tokens, words)
        return self.decode(self.queries + words.mean(1, keepdim=True), tokens)


class One(Masks):
    """OneFormer: the task's token joins queries that it has begun. `masked`: to where the masks before say."""

    def __init__(self, *, masked: bool = False) -> None:
        super().__init__(nn.Sequential(Patches(), encoder(1)))
        self.task, self.masked = nn.Sequential(nn.Embedding(2, DIM), Mlp()), masked

    def forward(self, image: Tensor, task: int) -> tuple[Tensor, Tensor]:
        token = self.task(torch.full((1, 1), task)).expand(len(image), -1, -1)
        queries, tokens = torch.cat([self.queries + token, token], 1), self.backbone(image)
        if self.masked:
            seen = (self.kernel(queries) @ self.pixels(tokens).transpose(1, 2)).sigmoid() >= 0.5
            scores = (queries @ tokens.transpose(1, 2)).masked_fill(~seen, -1e4).softmax(-1)
            queries = queries + scores @ tokens
        return self.decode(queries, tokens)


class Reference(nn.Module):
    """UniRef++: the frame looks at references, whose masks are embedded with them."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.references, self.blocks = Patches(), Patches(channels=4), encoder(1)
        self.fusion, self.norm, self.masks = Attention(), nn.LayerNorm(DIM), Masks(nn.Identity(), layers=1)

    def forward(self, image: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        known = torch.cat([self.references(first), self.references(second)], 1)
        x = self.blocks(self.patches(image))
        return self.masks(self.norm(x + self.fusion(x, known)))


def vit_with(block: nn.Module) -> nn.Module:
    return nn.Sequential(Patches(), block, nn.LayerNorm(DIM), nn.Linear(DIM, CLASSES))


ROWS = [
    published("FaceXFormer", "task tokens and face tokens that look at each other", Face),
    published("UniRef++", "several references with masks, fused by attention", Reference, IMAGE, (4, 32, 32),
          (4, 32, 32)),
    published("Eight Major Cancers", "queries that are masks of a CT volume", Cancers, (1, 16, 16, 16)),
    published("DINO-X", "an open-world detector: tokens compared with prompts", OpenWorld, IMAGE, (5, DIM),
              heart="plain attention; prompts arrive embedded"),
    published("DINO-X, deformable", "attention to places that tokens choose",
          lambda: vit_with(Block(attention=Deformable()))),
    published("ChartReader", "key points, then a transformer of kinds and positions", Chart,
          heart="detection and chart encoder, without the text decoder"),
    published("OpenSD", "one decoder, queries of two tasks, words as classes", OneDecoder, tasks=("things", "stuff")),
    published("DeepSolo", "explicit point queries", Points, heart="plain attention to the image"),
    published("Fashionformer", "masks gather features; two streams of queries", Fashion),
    published("Language as Queries", "a sentence conditions queries, which make mask heads", Referring, IMAGE, (7, 16),
          heart="words arrive embedded"),
    published("OneFormer", "a task token and a dense decoder", One, tasks=("semantic", "panoptic"),
          heart="attention to the whole image"),
    published("OneFormer, masked attention", "attention to where the masks before say", lambda: One(masked=True),
          tasks=("semantic", "panoptic")),
]  # fmt: skip
