"""Models of torch.nn's own layers."""

from collections.abc import Callable

from torch import Tensor, nn

from benchmarks.zoo.row import Row

DIM = 32


class Embedded(nn.Module):
    """Patches and positions, then layers of tokens, then a head."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, DIM, 8, 8)
        self.position = nn.Parameter(nn.init.normal_(nn.Parameter(self.patch.weight.new_empty(1, 16, DIM))).data)
        self.body, self.head = body, nn.Linear(DIM, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch(image).flatten(2).transpose(1, 2) + self.position
        return self.head(self.body(x))


class SelfAttention(nn.Module):
    def __init__(self, **options: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(DIM, 4, batch_first=True, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class Pair(nn.Module):
    """nn.Transformer or its decoder: queries that are learned look at the tokens."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers, self.queries = layers, nn.Parameter(nn.Linear(DIM, 6).weight.data[None])

    def forward(self, x: Tensor) -> Tensor:
        queries = self.queries.expand(len(x), -1, -1)
        return self.layers(x, queries) if isinstance(self.layers, nn.Transformer) else self.layers(queries, x)


def encoder(**options: object) -> nn.Module:
    layer = nn.TransformerEncoderLayer(DIM, 4, 64, batch_first=True, **options)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def decoder(**options: object) -> nn.Module:
    return Pair(nn.TransformerDecoder(nn.TransformerDecoderLayer(DIM, 4, 64, batch_first=True, **options), 2))


def model(name: str, stands_for: str, body: Callable[[], nn.Module]) -> Row:
    return Row(f"torch.nn/{name}", stands_for, lambda: Embedded(body()))


ROWS = [
    model("encoder pre-norm", "nn.TransformerEncoder, pre-norm, GELU",
          lambda: encoder(activation="gelu", norm_first=True)),
    model("encoder post-norm", "nn.TransformerEncoder as it comes: post-norm, ReLU", encoder),
    model("encoder without bias", "nn.TransformerEncoder without biases", lambda: encoder(bias=False, norm_first=True)),
    model("decoder", "nn.TransformerDecoder, learned queries", decoder),
    model("decoder pre-norm", "nn.TransformerDecoder, pre-norm", lambda: decoder(norm_first=True)),
    model("transformer", "nn.Transformer", lambda: Pair(nn.Transformer(DIM, 4, 1, 1, 64, batch_first=True))),
    model("attention", "nn.MultiheadAttention", SelfAttention),
    model("attention without bias", "nn.MultiheadAttention without biases", lambda: SelfAttention(bias=False)),
    model("attention with bias of keys", "nn.MultiheadAttention(add_bias_kv=True)",
          lambda: SelfAttention(add_bias_kv=True)),
    model("attention with zero key", "nn.MultiheadAttention(add_zero_attn=True)",
          lambda: SelfAttention(add_zero_attn=True)),
]  # fmt: skip
