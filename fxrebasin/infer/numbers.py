"""What is known of a graph's numbers without running it: on which leaves they depend, what scales them, which are zero."""

from __future__ import annotations

import itertools
import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import fx
from torch.utils import _pytree as pytree

from ..capture import Program, Source
from ..rules import RULES, Call, Rule, letters
from .constants import Constants

LOWEST = -1e4  # a score below this is a mask's
MOST = 4  # claims about one tensor, and ways in which it scales


@dataclass(frozen=True)
class Claim:
    """Numbers of a tensor that lie at different places along `dims`, and at one place otherwise, differ.

    by      bits of the leaves with which they vary freely of each other; 0 if they merely differ
    steep   how much the graph's own constants have scaled them up
    masked  some stand out as too low to be chosen; those may be equal
    left    (dimension, how many at least are not masked along it), where that is known
    assumes sentences on which the claim rests
    """

    dims: frozenset[int]
    by: int
    steep: float = 1.0
    masked: bool = False
    left: frozenset[tuple[int, int]] = frozenset()
    assumes: frozenset[str] = frozenset()


class Numbers(ABC):
    """What is known of the numbers of a graph's nodes."""

    def __init__(self, program: Program, calls: Mapping[fx.Node, Call], constants: Constants):
        """calls: what the rules have seen, of all nodes before those that are asked about."""
        self.program, self.calls, self.constants = program, calls, constants
        self.graph = program.module.graph
        self._ahead = iter(self.graph.nodes)
        self._bits: dict[str, int] = {}  # of leaves, by name
        self.depends: dict[fx.Node, int] = {}  # on which leaves, as bits
        self.scaled: dict[fx.Node, tuple[int, ...]] = {}  # leaves that multiply a node's numbers, if multiplied together
        self.nonzero: dict[fx.Node, frozenset[str] | None] = {}  # what it rests on that almost no number is zero; None: some may
        self.blame: dict[fx.Node, str] = {}  # why there is no claim
        self._positive: dict[fx.Node, bool] = {}
        self._claims: dict[fx.Node, list[Claim]] = {}

    def _visit(self, node: fx.Node) -> None:
        leaf = self._leaf(node)
        bits = self._bits.setdefault(leaf.name, 1 << len(self._bits)) if leaf else 0
        for given in node.all_input_nodes:
            bits |= self.depends[given]
        self.depends[node] = bits
        self.scaled[node] = self._scaled(node)
        self.nonzero[node] = self._nonzero(node) if floating(node) else self._whole(node)

    def _whole(self, node: fx.Node) -> frozenset[str] | None:
        """Whole numbers and truth values are often zero, unless they never change."""
        content = self.constants.evaluate(node)
        if content is None or not bool((content != 0).all()):
            return None
        self.constants.rely(node)
        return frozenset()

    def _leaf(self, node: fx.Node) -> Source | None:
        """What a node stands for, if it is a parameter or an input: buffers may hold anything, and the same in all states."""
        source = self._source(node)
        buffer = source is not None and self.program.kinds.get(source.name) == "buffer"
        return source if source is not None and source.kind != "constant" and not buffer else None

    def _source(self, node: fx.Node) -> Source | None:
        return self.program.sources.get(node.name) if node.op in ("placeholder", "get_attr") else None

    @abstractmethod
    def claims(self, node: fx.Node) -> list[Claim]:
        """What is known of a node's numbers to differ."""

    # ------------------------------------------------------------------------------------------------------- reading

    def _constant(self, node: fx.Node) -> torch.Tensor | None:
        """The numbers of a node that never change, on which the answer then relies."""
        content = self.constants.evaluate(node)
        if content is not None:
            self.constants.rely(node)
        return content

    def _made(self, node: fx.Node) -> tuple[fx.Node, int]:
        """The call that makes a node, and which of its results the node is."""
        return (node.args[0], node.args[1]) if node.target is operator.getitem else (node, 0)

    def _known(self, node: fx.Node) -> tuple[Rule, dict, list[tuple[str, fx.Node]]] | None:
        """The rule of a call, its arguments by name, and its tensors in order, with their names."""
        rule, call = RULES.get(str(node.target)), self.calls.get(node)
        if rule is None or call is None:
            return None
        arguments = {a.name: a.default_value for a in node.target._schema.arguments}
        arguments |= dict(zip(arguments, node.args)) | dict(node.kwargs)
        for name, given in list(arguments.items()):
            if isinstance(given, (list, tuple)):
                arguments |= {f"{name}[{k}]": x for k, x in enumerate(given) if isinstance(x, fx.Node)}
        return rule, arguments, [(name, x) for name, x in arguments.items() if isinstance(x, fx.Node)]

    def _letters(self, rule: Rule, node: fx.Node, tensors):
        """The letters of a text, for a call: of its tensors' dimensions, and of its results' ones; None without a text."""
        call = self.calls[node]
        if rule.text is None or len(call.tensors()) != len(tensors):
            return None
        text = rule.text if isinstance(rule.text, str) else rule.text(call)
        return letters(text, [value.shape for value in call.tensors()])

    # ------------------------------------------------------------------------------------- what scales, and what is zero

    def _scaled(self, node: fx.Node) -> tuple[int, ...]:
        if self._leaf(node):
            return (self.depends[node],)
        made, k = self._made(node)
        constant = self._constant(made)
        if constant is not None:
            return (0,) if not constant.any() else ()
        if (known := self._known(made)) is None:
            return ()
        rule, arguments, tensors = known
        if rule.facts.moves:
            parts = tensors if rule.facts.moves == "joined" else tensors[:1]
            return self._jointly(x for _, x in parts) if k == 0 or rule.facts.moves is True else ()
        found: list[int] = []
        for names in rule.facts.together() if k == 0 else []:
            given = [arguments[name] for name in names if name in arguments]
            if given and all(x is None or isinstance(x, fx.Node) or x == 0 for x in given):
                others = self._on([x for name, x in tensors if name not in names])
                own = self._jointly(x for name, x in tensors if name in names)
                found += [bits for bits in own if not bits & others]
        return tuple(dict.fromkeys(found))[:MOST]

    def _jointly(self, parts: Iterable[fx.Node]) -> tuple[int, ...]:
        ways = itertools.islice(itertools.product(*(self.scaled[part] for part in parts)), MOST)
        return tuple(dict.fromkeys(union(way) for way in ways))

    def _on(self, nodes: Iterable[fx.Node]) -> int:
        return union(self.depends[node] for node in nodes)

    def _nonzero(self, node: fx.Node) -> frozenset[str] | None:
        if self._leaf(node):
            return frozenset()
        made, k = self._made(node)
        constant = self._constant(made)
        if constant is not None:
            return frozenset() if bool((constant != 0).all()) else None
        if (known := self._known(made)) is None:
            return None
        rule, arguments, tensors = known
        given = [x for _, x in tensors]
        if self.positive(node):
            return frozenset()
        if rule.facts.moves:
            return self._all_nonzero(given if rule.facts.moves == "joined" else given[:1])
        groups = rule.facts.together()
        if groups and k == 0 and rule.facts.distinct_for(plain(arguments)) and self._elementwise(rule, made, tensors):
            if all(len(names) == 1 for names in groups) and (found := self._all_nonzero(given)) is not None:
                return found  # a product
            if len(given) == 2 and sorted(groups[0]) == sorted(name for name, _ in tensors):
                for a, b in (given, given[::-1]):  # what is added is zero, or varies with leaves of its own
                    found = self.nonzero[a] if self.nonzero[a] is not None else self._padded(a)
                    if found is not None and any(not bits & self.depends[a] for bits in self.scaled[b]):
                        return found
        return min((claim.assumes for claim in self.claims(node) if claim.by), key=len, default=None)

    def _all_nonzero(self, nodes: Iterable[fx.Node]) -> frozenset[str] | None:
        found = [self.nonzero[node] for node in nodes]
        return None if None in found else frozenset().union(*found)

    def _padded(self, node: fx.Node) -> frozenset[str] | None:
        """What has to be taken for granted of an embedding with a row of padding; None for anything else."""
        known = self._known(self._made(node)[0])
        if known is not None and known[0].facts.moves:
            return self._padded(known[2][0][1])
        if known is None or "padding_idx" not in known[1]:
            return None
        return frozenset({f"{name_of(node)}: where its row of padding is zero, what is added to it is not ({self.calls[node].why})"})

    def _elementwise(self, rule: Rule, node: fx.Node, tensors) -> bool:
        read = self._letters(rule, node, tensors)
        return read is not None and len(read[1]) == 1 and all(
            letters_of(dims) <= letters_of(read[1][0]) for dims in read[0])

    def positive(self, node: fx.Node) -> bool:
        if node not in self._positive:
            known = self._known(self._made(node)[0])
            facts = known[0].facts if known is not None else None
            parts = [x for _, x in known[2]][: None if facts.positive or facts.moves == "joined" else 1] if known else []
            self._positive[node] = facts is not None and (facts.positive is True or (
                facts.positive == "kept" or bool(facts.moves)) and all(self.positive(x) for x in parts))
        return self._positive[node]

    def _tame(self, node: fx.Node) -> bool:
        """Whether a node's numbers are finite and no masks, as far as is known."""
        if (source := self._source(node)) is not None and source.kind != "constant":
            return True
        constant = self._constant(self._made(node)[0])
        if constant is not None:
            return bool((constant.abs() < -LOWEST).all())
        return self.nonzero[node] is not None or bool(self.scaled[node])

    def _growth(self, node: fx.Node, rule: Rule, given: fx.Node, steep: float) -> float:
        """How much is scaled up after an op that acts on each element: by its slope between 0 and 100, other tensors being 1."""
        made = self._made(node)[0]

        def at(number: float) -> float:
            def one(x: fx.Node) -> torch.Tensor:
                constant = self._constant(x)
                largest = 1.0 if constant is None or not constant.numel() else float(constant.abs().max())
                return torch.full((1,) * len(x.meta["val"].shape), number if x is given else largest, dtype=torch.float64)
            args, kwargs = fx.node.map_arg((made.args, made.kwargs), one)
            result = made.target(*args, **{n: x for n, x in kwargs.items() if n != "device"})
            return float(pytree.tree_leaves(result)[0].reshape(-1)[0])
        try:
            if rule.facts.saturates:
                return 1.0 if abs(at(100.0)) <= 1 else math.inf
            return steep * abs(at(100.0) - at(0.0)) / 100
        except (RuntimeError, TypeError, IndexError, ValueError):
            return math.inf


def plain(arguments: Mapping) -> dict:
    """Arguments by name, tensors as None."""
    return {name: None if isinstance(x, fx.Node) else x for name, x in arguments.items()}


def union(bits: Iterable[int]) -> int:
    result = 0
    for some in bits:
        result |= some
    return result


def letters_of(dims: Iterable[frozenset[str]]) -> frozenset[str]:
    return frozenset().union(*dims)


def floating(node: fx.Node) -> bool:
    val = node.meta.get("val")
    return isinstance(val, torch.Tensor) and val.is_floating_point()


def coarseness(node: fx.Node) -> float:
    """How far apart a node's numbers are: the fewer bits, the more."""
    val = node.meta["val"]
    return torch.finfo(val.dtype).eps if val.is_floating_point() else math.inf


def name_of(node: fx.Node) -> str:
    """The op of a call, without namespace and overload."""
    return str(node.target).removeprefix("aten.").split(".")[0]
