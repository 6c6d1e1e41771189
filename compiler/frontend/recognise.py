"""Mixtures of experts, read from traces of the modules that decide, and what stands in for them during export."""

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from patchloom.compiler.frontend.blocks import RANKS, Call, tensors_of, watched
from patchloom.compiler.frontend.functions import Functions, Reader
from patchloom.compiler.frontend.mixture import HOW_TO_WRITE
from patchloom.compiler.frontend.module import unchanged
from patchloom.compiler.frontend.origin import user_line
from patchloom.compiler.frontend.proof import batches, directed, misfit, probes
from patchloom.compiler.frontend.reading import (
    TOLERANCE,
    IncompleteError,
    NoMixtureError,
    Reading,
    Traced,
)
from patchloom.compiler.frontend.site import Block
from patchloom.compiler.frontend.trace import Recorder
from patchloom.compiler.graph import in_order
from patchloom.compiler.node import View
from patchloom.compiler.nodes import Moe
from patchloom.compiler.origin import Origin
from patchloom.compiler.problems import CaptureError, Problem, UnsupportedError

BESIDE = "results other than the mixture, e.g. a balancing loss, must stay unused"
ROUNDS = 12  # of more tokens, until all experts were met


@torch.library.custom_op("patchloom::moe", mutates_args=())
def moe_op(inputs: Sequence[Tensor], block: int, result: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """One result of a block that was read; only its shape is ever asked for."""
    raise NotImplementedError


@moe_op.register_fake
def _(inputs: Sequence[Tensor], _block: int, _result: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return inputs[0].new_empty(list(shape), dtype=dtype)


def recognise(model: nn.Module, args: tuple[Any, ...]) -> tuple["Swap", Any, list[Problem]]:
    """Run the model once and read each module that decides, inner ones first; what it returned is for comparison.

    Also, what forward caches outside of the module, e.g. in functions, is real by the time of export.
    """
    with unchanged(model):
        returned, calls = watched(model, lambda: run_once(model, args))
        swap, problems = Swap(), []
        settled: set[int] = set()
        names = {
            tensor.untyped_storage()._cdata: name.rpartition(".")[0] or name
            for name, tensor in [*model.named_buffers(), *model.named_parameters()]
        }
        for call in calls:
            if id(call) in settled:
                _settle(call, settled)
                continue
            try:
                swap.add(call, Understanding(call, names).block())
            except NoMixtureError:
                continue
            except UnsupportedError as refusal:
                problems.append(Problem(call.origin, refusal.text, refusal.hint or HOW_TO_WRITE))
            _settle(call, settled)
    return swap, returned, problems


def _settle(call: Call, settled: set[int]) -> None:
    """Those around it have nothing else to decide, as far as is known."""
    if call.outer is not None:
        settled.add(id(call.outer))


def run_once(model: nn.Module, args: tuple[Any, ...]) -> Any:
    """On copies: forward may write into its arguments."""
    try:
        return model(*tree_map_only(Tensor, Tensor.clone, args))
    except Exception as error:
        origin = Origin(op="forward", where=user_line(traceback.extract_tb(error.__traceback__)))
        text = f"raises {type(error).__name__} on the example inputs: {str(error).strip() or 'without a message'}"
        raise CaptureError(f"{type(model).__name__} cannot be run:", [Problem(origin, text)]) from error


class AuxiliaryError(UnsupportedError):
    """Of a result that is no mixture: it may stay unused."""


@dataclass(frozen=True, eq=False)
class Run:
    """One run of a block on concrete tokens."""

    reader: Reader
    results: dict[int, View]


class Understanding:
    """Of one call."""

    def __init__(self, call: Call, names: dict[int, str]) -> None:
        self.call, self.parameters, self.functions = call, names, Functions()
        self.inputs = [tensor.clone() for tensor in call.tensors]
        floats = [t.is_floating_point() and live for t, live in zip(self.inputs, call.live, strict=True)]
        self.live = [number for number, real in enumerate(floats) if real]
        if not self.live or any(live and not real for live, real in zip(call.live, floats, strict=True)):
            raise NoMixtureError  # it takes a choice that was made elsewhere
        self.names = tuple(f"input{number}" for number in range(len(self.live)))
        self.main = max(self.live, key=lambda number: (self.inputs[number].numel(), -number))

    def block(self) -> Block:
        runs = [self._trace(self._values(x)) for x in self._first()]
        found = self._complete(runs)
        mixtures = [i for i, view in found.items() if isinstance(view, View) and mixture_of(view)]
        if not mixtures:
            refusals = [
                view
                for view in found.values()
                if isinstance(view, UnsupportedError) and not isinstance(view, AuxiliaryError)
            ]
            raise refusals[0] if refusals and ranks(runs) else NoMixtureError
        [gate, *_] = [moe for i in mixtures if (moe := mixture_of(cast(View, found[i])))]
        for i, view in found.items():
            if isinstance(view, View):
                found[i] = self._proven(view, i, runs, gate, may_fail=i not in mixtures)
        return Block(self.names, tuple(found.get(i) for i in range(len(tree_flatten(self.call.result)[0]))))

    def _complete(self, runs: list[Run]) -> dict[int, View | UnsupportedError]:
        """What each result is, after as many more tokens as it takes to meet every expert."""
        random = torch.Generator().manual_seed(1)
        for number in range(ROUNDS):
            try:
                return {i: self._read(runs, i) for i in runs[0].results}
            except IncompleteError as short:
                missing = short
                runs += [self._trace(self._values(x)) for x in self._more(short, number, random)]
        text = f"no token of those that were tried reaches expert {missing}"
        raise UnsupportedError(text, "leave out the experts that no token reaches")

    # --- Traces ---

    def _first(self) -> Iterator[Tensor]:
        x = self.inputs[self.main]
        random = torch.Generator().manual_seed(2)
        yield x
        for _ in range(2):
            yield torch.randn(x.shape, generator=random) * (x.std() + 1e-3) + x.mean()

    def _more(self, short: IncompleteError, number: int, random: torch.Generator) -> Iterator[Tensor]:
        """Tokens towards the experts that are missing, as far as they are the gate's operand, and others at random."""
        x, parts = self.inputs[self.main], list(short.gate.parts.values())
        if len(parts) == 1 and parts[0].shape[1] == x.shape[-1]:
            experts = short.experts[number % len(short.experts) :] + short.experts[: number % len(short.experts)]
            yield directed(x, (parts[0], short.gate.constant), experts, random)
        yield torch.randn(x.shape, generator=random) * (x.std() + 1e-3) * 2 ** (number % 4)

    def _values(self, x: Tensor) -> list[Tensor]:
        """All inputs, with another main one."""
        return [x if number == self.main else value for number, value in enumerate(self.inputs)]

    def _run(self, values: Sequence[Tensor]) -> Any:
        given = iter(values)
        args, kwargs = tree_map_only(Tensor, lambda _: next(given).clone(), (self.call.args, self.call.kwargs))
        return self.call.module(*args, **kwargs)

    def _trace(self, values: Sequence[Tensor]) -> Run:
        given = [value.clone() for value in values]
        recorder = Recorder(self.parameters, self.call.name)
        for name, number in zip(self.names, self.live, strict=True):
            if number != self.main:
                recorder.place(name, given[number], self.call.origin)
        recorder.place(self.names[self.live.index(self.main)], given[self.main], self.call.origin)
        parts = iter(given)
        args, kwargs = tree_map_only(Tensor, lambda _: next(parts), (self.call.args, self.call.kwargs))
        try:
            with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), recorder:
                result = self.call.module(*args, **kwargs)
        except Exception as error:  # what cannot be traced is told by what the export shows of it
            raise NoMixtureError from error
        x = self.inputs[self.main]
        return Run(Reader(recorder.trace, self.functions, x.numel() // x.shape[-1]), self._results(recorder, result))

    def _results(self, recorder: Recorder, result: Any) -> dict[int, View]:
        """Those that are matrices of floats, by number."""
        leaves = [(i, leaf) for i, leaf in enumerate(tree_flatten(result)[0]) if isinstance(leaf, Tensor)]
        return {
            i: recorder.trace.view(recorder.numbers(leaf), leaf, self.call.origin)
            for i, leaf in leaves
            if leaf.is_floating_point() and leaf.dim() > 1
        }

    def _read(self, runs: Sequence[Run], number: int) -> View | UnsupportedError:
        """One result."""
        shape = runs[0].results[number].shape
        if any(number not in run.results or run.results[number].shape != shape for run in runs):
            return AuxiliaryError("is not of the same size for all tokens", BESIDE)
        if not all(shape):
            return AuxiliaryError("has no element, for the example inputs", BESIDE)
        traced = [Traced(run.reader, run.results[number].reshape(-1, shape[-1])) for run in runs]
        reading = Reading(self.call.origin, traced)
        try:
            return reading.view().reshape(*shape)
        except NoMixtureError:
            return AuxiliaryError("depends on which experts were chosen", BESIDE)
        except UnsupportedError as refusal:
            return refusal if reading.routed else AuxiliaryError(refusal.text, refusal.hint)

    # --- Proof ---

    def _proven(
        self, view: View, leaf: int, runs: Sequence[Run], moe: Moe, *, may_fail: bool
    ) -> View | UnsupportedError:
        """It, or why it is not what the block returns."""
        try:
            self._prove(view, leaf, runs, moe)
        except UnsupportedError as refusal:
            if not may_fail:
                raise
            return AuxiliaryError(refusal.text, refusal.hint)
        return view

    def _prove(self, view: View, leaf: int, runs: Sequence[Run], moe: Moe) -> None:
        x = self.inputs[self.main]
        gate = moe.gate_weight.astype(np.float64), moe.gate_bias.astype(np.float64)
        tried = [("the model's own tokens", x), *probes(x, gate if gate[0].shape[1] == x.shape[-1] else None)]
        for name, value in tried:
            values = self._values(value)
            try:
                result = tree_flatten(self._run(values))[0][leaf]
            except Exception as error:  # the user's code may raise anything
                text = f"on {name} it fails: {type(error).__name__}: {error}"
                raise UnsupportedError(text, "a block must take whatever tokens there are") from error
            self._compare(name, view, values, result, runs)
        if x.dim() > 2 and all(self.inputs[number].dim() > 2 for number in self.live):
            self._prove_batch(view, leaf, runs)

    def _prove_batch(self, view: Any, leaf: int, runs: Sequence[Run]) -> None:
        values = [batches(v) if n in self.live else v for n, v in enumerate(self.inputs)]
        try:
            results = tree_flatten(self._run(values))[0][leaf]
        except Exception:  # noqa: BLE001 - it is made for one size
            return
        if results.numel() != 8 * view.index.size:
            return
        for sample, result in enumerate(results.reshape(8, -1)):
            one = [v[sample : sample + 1] if n in self.live else v for n, v in enumerate(values)]
            self._compare("a batch of eight", view, one, result, runs)

    def _compare(self, name: str, view: Any, values: Sequence[Tensor], result: Tensor, runs: Sequence[Run]) -> None:
        inputs = {n: values[i].numpy() for n, i in zip(self.names, self.live, strict=True)}
        error = misfit(view, inputs, result.numpy())
        if error > TOLERANCE:
            raise UnsupportedError(
                f"on {name} it does not compute what it does on usual tokens (error {error:.1g} of the largest "
                f"element){_counting(runs)}: how many tokens an expert takes must have no limit, and "
                "no token may depend on another"
            )


def _counting(runs: Sequence[Run]) -> str:
    """What may limit how many tokens an expert takes."""
    where = next((where for run in runs for where in run.reader.trace.counts()), "")
    return f"; it counts the tokens of each expert by cumsum at {where}" if where else ""


def ranks(runs: Sequence[Run]) -> bool:
    """Whether the largest of something are chosen: without, weights by scores are products of elements like others."""
    return any(decision.origin.op in RANKS for run in runs for decision in run.reader.trace.decisions)


def mixture_of(view: View) -> Moe | None:
    return next((node for node in in_order(base for base, _ in view.terms) if isinstance(node, Moe)), None)


class Swap:
    """The blocks that were read in one run, and how to put a custom operation in their place."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.told: list[Call] = []
        self.calls: dict[int, dict[int, int]] = {}  # by module, and number of its call: which block
        self.modules: dict[int, nn.Module] = {}

    def add(self, call: Call, block: Block) -> None:
        self.told.append(call)
        self.modules[id(call.module)] = call.module
        self.calls.setdefault(id(call.module), {})[call.number] = len(self.blocks)
        self.blocks.append(block)

    @contextmanager
    def installed(self) -> Iterator[None]:
        with ExitStack() as stack:
            for module in self.modules.values():
                before = module.__dict__.get("forward")
                module.__dict__["forward"] = self._stand_in(module)
                stack.callback(_restore, module, before)
            yield

    def _stand_in(self, module: nn.Module) -> Callable[..., Any]:
        turns = self.calls[id(module)]
        count = 0

        def forward(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            number = turns[count % len(turns)]
            count += 1
            call = self.told[number]
            given = tensors_of(args, kwargs)
            live = [t for t, alive in zip(given, call.live, strict=True) if alive and t.is_floating_point()]
            leaves, structure = tree_flatten(call.result)

            def part(i: int, value: Any) -> Any:
                if not isinstance(value, Tensor):
                    return value
                return cast(Tensor, moe_op(live, number, i, list(value.shape), value.dtype))

            return tree_unflatten([part(i, leaf) for i, leaf in enumerate(leaves)], structure)

        return forward


def _restore(module: nn.Module, before: Any) -> None:
    if before is None:
        del module.__dict__["forward"]
    else:
        module.__dict__["forward"] = before
