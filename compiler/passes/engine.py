"""How a rewrite works: a named pass over all operations, with a rule for each kind that it looks at.

A rule sees one operation, whose operands earlier rules have already rewritten, and returns what stands for it:
another operation, a view of other operations, or None to leave it. What it cannot bring into canonical form it
refuses; the others go on, so that all of it is reported at once.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from patchloom.compiler import graph
from patchloom.compiler.node import Node, View, whole
from patchloom.compiler.nodes.captured import Opaque
from patchloom.compiler.problems import Problem, UnsupportedError

Rule = Callable[[Any, "Run"], Node | View | None]


@dataclass(frozen=True)
class Pass:
    name: str
    rules: Mapping[type[Node], Rule]

    def __call__(self, results: Sequence[View], problems: list[Problem]) -> list[View]:
        return Run(self.rules, problems).over(results)


@dataclass(eq=False)
class Run:
    """A pass at work: how often each operation's result is used, and what went wrong."""

    rules: Mapping[type[Node], Rule]
    problems: list[Problem]
    uses: Counter[Node] = field(default_factory=Counter)
    made: dict[object, Node] = field(default_factory=dict)

    def only_here(self, base: Node) -> bool:
        """The rule's own operand is the only use."""
        return self.uses[base] <= 1

    def once(self, key: object, make: Callable[[], Node]) -> Node:
        """One operation per key, however many operands ask for it."""
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]

    def over(self, results: Sequence[View]) -> list[View]:
        order = in_order(results)
        for view in (*results, *(view for node in order for view in node.views)):
            self.uses.update(base for base, _ in view.terms)
        done: dict[Node, View] = {}
        for node in order:
            new = self._rewrite(node.with_views(lambda view: view.substitute(done)))
            view = new if isinstance(new, View) else whole(new)
            if not (view.base is node and view.is_whole()):
                done[node] = view
                for base in {base for base, _ in view.terms} - {node}:
                    self.uses[base] += self.uses[node]
        return [view.substitute(done) for view in results]

    def _rewrite(self, node: Node) -> Node | View:
        rule = self.rules.get(type(node))
        try:
            new = rule(node, self) if rule else None
        except UnsupportedError as refusal:
            shapes = tuple(view.shape for view in node.views)
            self.problems.append(Problem(node.origin, refusal.text, refusal.hint, shapes))
            return Opaque(origin=node.origin, out_shape=node.shape)
        return node if new is None else new


def in_order(results: Iterable[View]) -> list[Node]:
    """Every operation once, each after all that it reads."""
    return graph.in_order(base for view in results for base, _ in view.terms)
