"""Systems whose heart is several inputs."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.zoo.published.parts import (
    DIM,
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

SIGNAL, STEPS = 12, 6


class Signal(nn.Module):
    """[steps, features] to tokens."""

    def __init__(self, features: int = SIGNAL, steps: int = STEPS) -> None:
        super().__init__()
        self.embed, self.position = nn.Linear(features, DIM), learned(1, steps, DIM)

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(x) + self.position


class Tokenisers(nn.Module):
    """Meta-Transformer: a tokeniser a modality, one encoder, a head each."""

    def __init__(self, *tokenisers: nn.Module) -> None:
        super().__init__()
        self.tokenisers, self.blocks = nn.ModuleList(tokenisers), encoder()
        self.heads = nn.ModuleList(nn.Linear(DIM, 5) for _ in tokenisers)

    def forward(self, first: Tensor, second: Tensor) -> list[Tensor]:
        parts = zip(self.tokenisers, (first, second), self.heads, strict=True)
        return [head(self.blocks(tokeniser(x)).mean(1)) for tokeniser, x, head in parts]


class VolumePatches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cut, self.position = nn.Conv3d(3, DIM, (2, 8, 8), (2, 8, 8)), learned(1, 8, DIM)

    def forward(self, volume: Tensor) -> Tensor:
        return as_tokens(self.cut(volume)) + self.position


class Trajectory(nn.Module):
    """PASTA: every component of states and actions is a token."""

    def __init__(self) -> None:
        super().__init__()
        self.state, self.action = nn.Linear(1, DIM), nn.Linear(1, DIM)
        self.position, self.blocks, self.head = learned(1, 4 * 9, DIM), encoder(), nn.Linear(DIM, 4)

    def forward(self, states: Tensor, actions: Tensor) -> Tensor:
        x = torch.cat([self.state(states[..., None]), self.action(actions[..., None])], 2).flatten(1, 2)
        return self.head(self.blocks(x + self.position))


class AgeGender(nn.Module):
    """MiVOLO: face and body look at each other, are joined, and a class token gives two answers."""

    def __init__(self) -> None:
        super().__init__()
        self.face, self.body, self.join = Patches(), Patches(), nn.Linear(2 * DIM, DIM)
        self.to_body, self.to_face, self.norms = (
            Attention(),
            Attention(),
            nn.ModuleList([nn.LayerNorm(DIM), nn.LayerNorm(DIM)]),
        )
        self.blocks, self.token, self.attend = encoder(1), learned(1, 1, DIM), Attention()
        self.age, self.gender = nn.Linear(DIM, 1), nn.Linear(DIM, 2)

    def forward(self, face: Tensor, body: Tensor) -> tuple[Tensor, Tensor]:
        f, b = self.norms[0](self.face(face)), self.norms[1](self.body(body))
        x = self.blocks(self.join(torch.cat([f + self.to_body(f, b), b + self.to_face(b, f)], -1)))
        token = self.token.expand(len(x), -1, -1)
        token = (token + self.attend(token, torch.cat([token, x], 1)))[:, 0]
        return self.age(token), self.gender(token)


class Contrast(nn.Module):
    """MoRE: an encoder a modality, embeddings of unit length."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.ecg = (
            nn.Sequential(Patches(), encoder(1)),
            nn.Sequential(nn.Conv1d(12, DIM, 8, 8), Turned(), encoder(1)),
        )
        self.of_image, self.of_ecg = Mlp(), Mlp()

    def forward(self, image: Tensor, ecg: Tensor) -> tuple[Tensor, Tensor]:
        pairs = ((self.of_image, self.image(image)), (self.of_ecg, self.ecg(ecg)))
        first, second = (F.normalize(project(x.mean(1)), dim=-1) for project, x in pairs)
        return first, second


class Turned(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


class Makeup(nn.Module):
    """SSAT: features with their face parts find each other; the reference's style is carried over."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.reference = Patches(channels=6), Patches(channels=6)
        self.find, self.scale, self.shift, self.pixels = (
            Attention(),
            nn.Linear(DIM, DIM),
            nn.Linear(DIM, DIM),
            nn.Linear(DIM, 3 * 64),
        )
        self.norm = nn.LayerNorm(DIM, elementwise_affine=False)

    def forward(self, source: Tensor, reference: Tensor) -> Tensor:
        x = self.source(source)
        style = self.find(x, self.reference(reference))
        x = self.norm(x) * (1 + self.scale(style)) + self.shift(style)
        return F.pixel_shuffle(as_map(self.pixels(x)), 8)


class Robot(nn.Module):
    """Vid2Robot: learned queries resample two videos; the robot's state looks at the prompt; actions are queries."""

    def __init__(self) -> None:
        super().__init__()
        self.frames, self.latents = nn.Sequential(Patches(), encoder(1)), learned(1, 4, DIM)
        self.resample, self.look, self.actions = Decoder(), Decoder(), Decoder()
        self.steps, self.head = learned(1, 3, DIM), nn.Linear(DIM, 7)

    def video(self, frames: Tensor) -> Tensor:
        tokens = self.frames(frames.flatten(0, 1)).unflatten(0, (-1, frames.shape[1])).flatten(1, 2)
        return self.resample(self.latents.expand(len(frames), -1, -1), tokens)

    def forward(self, prompt: Tensor, robot: Tensor) -> Tensor:
        seen = self.look(self.video(robot), self.video(prompt))
        return self.head(self.actions(self.steps.expand(len(seen), -1, -1), seen))


class Tactile(nn.Module):
    """T3: a stem a sensor, one trunk, a head a task."""

    def __init__(self) -> None:
        super().__init__()
        self.stems = nn.ModuleList(nn.Sequential(Patches(), Block()) for _ in range(2))
        self.trunk, self.heads = encoder(), nn.ModuleList(nn.Linear(DIM, size) for size in (6, 3))

    def forward(self, image: Tensor, task: int) -> Tensor:
        return self.heads[task](self.trunk(self.stems[task](image)).mean(1))


class Adapters(nn.Module):
    """UniRGB-IR: infrared features are injected into a ViT, by as much as a learned factor says."""

    def __init__(self) -> None:
        super().__init__()
        self.rgb, self.infrared, self.blocks = Patches(), Patches(), nn.ModuleList([Block(), Block()])
        self.pools = nn.ModuleList(nn.Conv2d(DIM, DIM, size, padding=size // 2, groups=DIM) for size in (1, 3))
        self.join, self.inject, self.norm = (
            nn.Linear(2 * DIM, DIM),
            nn.ModuleList([Attention(), Attention()]),
            nn.LayerNorm(DIM),
        )
        self.factor, self.head = nn.Parameter(torch.zeros(2, DIM)), nn.Conv2d(DIM, 5, 1)

    def forward(self, image: Tensor, infrared: Tensor) -> Tensor:
        x, grid = self.rgb(image), as_map(self.infrared(infrared))
        known = self.norm(self.join(torch.cat([as_tokens(pool(grid)) for pool in self.pools], -1)))
        for block, inject, factor in zip(self.blocks, self.inject, self.factor, strict=True):
            x = block(x + factor * inject(x, known))
        return self.head(as_map(x))


class Similarity(nn.Module):
    """Uni-Perceiver: the same encoder sees the input and every possible answer; the nearest one wins."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.words, self.blocks, self.token = Patches(), Signal(), encoder(), learned(1, 1, DIM)

    def encode(self, x: Tensor) -> Tensor:
        return self.blocks(torch.cat([self.token.expand(len(x), -1, -1), x], 1))

    def forward(self, image: Tensor, answers: Tensor) -> Tensor:
        seen, known = self.encode(self.image(image))[:, :1], self.encode(self.words(answers))[:, 1:]
        return (seen @ known.transpose(1, 2))[:, 0]


class Knee(nn.Module):
    """X-ray, MRI slices and a patient's data are tokens of one transformer; a head a year."""

    def __init__(self) -> None:
        super().__init__()
        self.xray, self.slices, self.data = Features(), Features(), Signal(SIGNAL, 1)
        self.token, self.position, self.blocks = learned(1, 1, DIM), learned(1, 5, DIM), encoder()
        self.heads = nn.ModuleList(nn.Linear(DIM, 2) for _ in range(3))

    def forward(self, xray: Tensor, slices: Tensor, data: Tensor) -> list[Tensor]:
        volume = self.slices(slices.flatten(0, 1)).unflatten(0, (-1, slices.shape[1]))
        parts = [self.token.expand(len(xray), -1, -1), self.xray(xray)[:, None], volume, self.data(data)]
        seen = self.blocks(torch.cat(parts, 1) + self.position)[:, 0]
        return [head(seen) for head in self.heads]


class Features(nn.Module):
    """A small convolutional network."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(1, 16, 4, 4), nn.BatchNorm2d(16), nn.Conv2d(16, DIM, 2, 2)

    def forward(self, image: Tensor) -> Tensor:
        return self.second(F.relu(self.norm(self.first(image)))).mean((2, 3))


class Rectified(nn.Module):
    """CMX: each modality rectifies the other by channel and place, then both are fused by their contexts."""

    def __init__(self) -> None:
        super().__init__()
        self.rgb, self.other = Patches(), Patches()
        self.channels, self.places = (
            Mlp(4 * DIM, 2 * DIM),
            nn.Sequential(nn.Conv2d(2 * DIM, DIM, 1), nn.ReLU(), nn.Conv2d(DIM, 2, 1)),
        )
        self.kv, self.q, self.fuse, self.norm = (
            nn.Linear(DIM, 2 * DIM),
            nn.Linear(DIM, DIM),
            nn.Linear(2 * DIM, DIM),
            nn.LayerNorm(DIM),
        )
        self.head = nn.Conv2d(DIM, 5, 1)

    def forward(self, image: Tensor, other: Tensor) -> Tensor:
        a, b = self.rgb(image), self.other(other)
        both = torch.cat([a, b], -1)
        by_channel = self.channels(torch.cat([both.mean(1), both.amax(1)], -1)).sigmoid()[:, None]
        by_place = as_tokens(self.places(as_map(both)).sigmoid())
        weights = [
            by_channel[..., part] + by_place[..., i : i + 1] for i, part in enumerate((slice(DIM), slice(DIM, None)))
        ]
        a, b = a + 0.5 * weights[1] * b, b + 0.5 * weights[0] * a
        context_a, context_b = self.context(a), self.context(b)
        joined = torch.cat([self.q(a) @ context_b, self.q(b) @ context_a], -1)
        return self.head(as_map(self.norm(a + b + self.fuse(joined))))

    def context(self, x: Tensor) -> Tensor:
        k, v = self.kv(x).chunk(2, -1)
        return (k.transpose(1, 2) @ v * DIM**-0.5).softmax(-2)


class Tracking(nn.Module):
    """Points in groups that the host made: attention by vectors within a group, then search looks at template."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.q, self.k, self.v = (
            Mlp(3, DIM, DIM),
            nn.Linear(DIM, DIM),
            nn.Linear(DIM, DIM),
            nn.Linear(DIM, DIM),
        )
        self.relation, self.cross, self.norm, self.box = Mlp(), Attention(), nn.LayerNorm(DIM), nn.Linear(DIM, 5)

    def groups(self, points: Tensor) -> Tensor:
        x = self.embed(points)
        apart = self.q(x[:, :, :1]) - self.k(x)
        return (self.relation(apart).softmax(2) * self.v(x)).sum(2)

    def forward(self, template: Tensor, search: Tensor) -> Tensor:
        x = self.groups(search)
        return self.box(self.norm(x + self.cross(x, self.groups(template))))


ROWS = [
    published("Meta-Transformer", "a tokeniser a modality, one encoder", lambda: Tokenisers(Patches(), Signal()),
          IMAGE, (STEPS, SIGNAL)),
    published("Uni4Eye", "patches of pictures and volumes, one encoder",
          lambda: Tokenisers(Patches(), VolumePatches()), IMAGE, (3, 4, 16, 16)),
    published("PASTA", "components of states and actions as tokens", Trajectory, (4, 6), (4, 3)),
    published("MiVOLO", "two inputs that look at each other, two tasks", AgeGender, IMAGE, IMAGE,
              heart="fusion, attention and heads; VOLO's outlook attention is timm/volo_d1_224"),
    published("MoRE", "encoders of X-ray and ECG, embeddings of unit length", Contrast, IMAGE, (12, 64),
          heart="image and ECG; the text encoder is a BERT"),
    published("SSAT", "attention of features with face parts, style carried over", Makeup, (6, 32, 32), (6, 32, 32)),
    published("Vid2Robot", "resampled videos, cross-attention, action queries", Robot, (2, 3, 32, 32), (2, 3, 32, 32)),
    published("T3", "a stem a sensor, one trunk, a head a task", Tactile, tasks=("texture", "pose")),
    published("UniRGB-IR", "adapters beside a ViT", Adapters, IMAGE, IMAGE),
    published("Uni-Perceiver", "one encoder, similarity of input and answers", Similarity, IMAGE, (STEPS, SIGNAL)),
    published("Knee Osteoarthritis", "fusion of pictures, volumes and data", Knee, (1, 32, 32), (2, 1, 32, 32),
          (1, SIGNAL)),
    published("CMX", "two modalities that rectify each other", Rectified, IMAGE, IMAGE),
    published("3D Single Object Tracking", "groups of points, attention by vectors", Tracking, (4, 8, 3), (6, 8, 3),
          heart="groups are made by the host"),
]  # fmt: skip
