"""What a canonical graph means, in float32 NumPy: the model before quantisation, and where calibration looks.

`observe(node, quantity, array)` sees every intermediate that will need a number format.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from patchloom.compiler.activations import ACTIVATIONS
from patchloom.compiler.ir import (
    Attention,
    Constant,
    Floats,
    Graph,
    Input,
    Matmul,
    Moe,
    Node,
    Output,
)

Observe = Callable[[Node, str, np.ndarray[Any, Any]], None]


def evaluate(graph: Graph, inputs: dict[str, Floats], observe: Observe | None = None) -> dict[str, Floats]:
    """The graph's outputs by name, of inputs by name without the batch dimension."""
    values: dict[Node, Floats] = {}
    see = observe or _ignore
    results = {}
    for node in graph.nodes():
        if isinstance(node, Output):
            results[node.name] = values[node.x].reshape(-1)[node.index]
        elif isinstance(node, Input):
            values[node] = _input(node, inputs)
            see(node, "output", values[node])
        else:
            values[node] = _RULES[type(node)](node, values, see)
    return results


def _ignore(_: Node, __: str, ___: np.ndarray[Any, Any]) -> None:
    pass


def normalise(x: Floats, epsilon: float | None) -> Floats:
    """Layer normalisation of each row, without scale and shift."""
    if epsilon is None:
        return x
    centred = x - x.mean(axis=1, keepdims=True)
    variance = np.square(centred).mean(axis=1, keepdims=True)
    normal: Floats = centred / np.sqrt(variance + np.float32(epsilon))
    return normal


def activate(x: Floats, activation: str) -> Floats:
    return ACTIVATIONS[activation](x)


def softmax(x: Floats) -> Floats:
    """Along the last axis."""
    exponents = np.exp(x - x.max(axis=-1, keepdims=True))
    shares: Floats = exponents / exponents.sum(axis=-1, keepdims=True)
    return shares


def _input(node: Input, inputs: dict[str, Floats]) -> Floats:
    value = np.asarray(inputs[node.name], np.float32)
    if value.shape != node.user_shape:
        raise ValueError(f"input '{node.name}' must have shape {node.user_shape}, not {value.shape}")
    return np.append(value.reshape(-1), np.float32(0))[node.index]


def _constant(node: Constant, _: dict[Node, Floats], see: Observe) -> Floats:
    see(node, "output", node.value)
    return node.value


def _matmul(node: Matmul, values: dict[Node, Floats], see: Observe) -> Floats:
    operand = normalise(values[node.x][slice(*node.rows)], node.epsilon)
    see(node, "operand", operand)
    preactivation = operand @ node.weight.T + node.bias
    see(node, "preactivation", preactivation)
    return _finish(node, activate(preactivation, node.activation), values, see)


def _finish(node: Matmul | Moe, result: Floats, values: dict[Node, Floats], see: Observe) -> Floats:
    see(node, "result", result)
    output = result if node.residual is None else result + values[node.residual]
    see(node, "output", output)
    return output


def _attention(node: Attention, values: dict[Node, Floats], see: Observe) -> Floats:
    def heads(x: Node, first: tuple[int, ...], width: int) -> Floats:
        return np.stack([values[x][:, column : column + width] for column in first])

    q = heads(node.q, node.q_columns, node.head_dim)
    k = heads(node.k, node.k_columns, node.head_dim)
    scores = q @ k.transpose(0, 2, 1) * np.float32(node.scale)
    see(node, "scores", scores)
    probabilities = softmax(scores)
    see(node, "probabilities", probabilities)
    result = probabilities @ heads(node.v, node.v_columns, node.value_dim)
    output = result.transpose(1, 0, 2).reshape(node.shape)
    see(node, "output", output)
    return output


def _moe(node: Moe, values: dict[Node, Floats], see: Observe) -> Floats:
    operand = normalise(values[node.x], node.epsilon)
    see(node, "operand", operand)
    logits = operand @ node.gate_weight.T + node.gate_bias
    see(node, "logits", logits)
    choice = np.argsort(-logits, axis=1, kind="stable")[:, : node.top_k]
    see(node, "choice", choice)
    if node.scoring == "softmax_of_selected":
        scores = softmax(np.take_along_axis(logits, choice, axis=1))
    else:
        scores = np.take_along_axis(softmax(logits), choice, axis=1)
    result = np.zeros(node.shape, np.float32)
    preactivations, hiddens = [], []
    for number, expert in enumerate(node.experts):
        tokens, rank = np.nonzero(choice == number)
        if len(tokens):
            preactivations.append(operand[tokens] @ expert.w1.T + expert.b1)
            hiddens.append(activate(preactivations[-1], node.activation))
            result[tokens] += scores[tokens, rank, None] * (hiddens[-1] @ expert.w2.T + expert.b2)
    see(node, "preactivation", np.concatenate(preactivations))
    see(node, "hidden", np.concatenate(hiddens))
    return _finish(node, result, values, see)


_RULES: dict[type[Node], Callable[[Any, dict[Node, Floats], Observe], Floats]] = {
    Constant: _constant,
    Matmul: _matmul,
    Attention: _attention,
    Moe: _moe,
}
