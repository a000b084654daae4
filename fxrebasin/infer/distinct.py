"""Whether the numbers that a network ranks are all different.

Among equal numbers their places decide which are chosen, so a ranked axis may be permuted only if its numbers differ, for
almost all weights and inputs. That is followed through the graph by what the rules say of their ops (`rules/facts.py`).
Two kinds of claim are enough, both about the places that differ along some dimensions alone:

    by leaves   the numbers vary freely of each other with some tensors of the state, whatever all else is: the rows of a
                weight do, and so do their products with anything that is not zero and does not depend on the weight itself
    by nothing  the numbers merely differ: softmax sums to one, but keeps what was different so

An op that two things reach which hang together (h + h.flip, h * h.T) gets no claim, and neither does an op of which no fact is
known, or a result in a type of fewer bits. What a claim takes for granted, such as sigmoids that do not saturate, it carries
along as a sentence.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx
from torch.utils import _pytree as pytree

from ..capture import Source
from ..rules import RULES, Call, Rule, letters
from .constants import Constants

LOWEST = -1e4  # a score below this is a mask's
LARGEST = 200_000  # numbers whose places are followed one by one
MOST = 4  # claims about one tensor
TINY = 1e-6  # what has been scaled down by more is lost where something is added to it


@dataclass(frozen=True)
class Claim:
    """Numbers of a tensor that lie at different places along `dims`, and at one place otherwise, differ.

    by      bits of the leaves with which they vary freely of each other; 0 if they merely differ
    steep   how much the graph's own constants have scaled them up
    masked  some stand out as too low to be chosen; those may be equal
    assumes sentences on which the claim rests
    """

    dims: frozenset[int]
    by: int
    steep: float = 1.0
    masked: bool = False
    assumes: frozenset[str] = frozenset()


class Distinct:
    """What is known of the numbers of a graph's nodes."""

    def __init__(self, graph: fx.Graph, sources: Mapping[str, Source], calls: Mapping[fx.Node, Call], constants: Constants):
        """calls: what the rules have seen, of all nodes before those that are asked about."""
        self.graph, self.sources, self.calls, self.constants = graph, sources, calls, constants
        self._ahead = iter(graph.nodes)
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
        self.nonzero[node] = self._nonzero(node) if _floating(node) else None

    def _leaf(self, node: fx.Node) -> Source | None:
        """What a node stands for, if it is a tensor of the state or an input."""
        source = self.sources.get(node.name) if node.op in ("placeholder", "get_attr") else None
        return source if source is not None and source.kind != "constant" else None

    def along(self, node, dim: int, largest: bool) -> tuple[str | None, frozenset[str]]:
        """Why numbers along a dimension may be equal, or None; and on what the answer rests. `largest`: the largest are
        chosen, so that what is masked is not."""
        if isinstance(node, fx.Node) and node.graph is self.graph:
            while node not in self.depends:
                self._visit(next(self._ahead))
        else:
            return "it is not known how the numbers are made", frozenset()
        claims = [claim for claim in self.claims(node) if dim in claim.dims and (largest or not claim.masked)]
        if not claims:
            return self.blame.get(node, "numbers may be equal"), frozenset()
        return None, min((claim.assumes for claim in claims), key=len)

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
        return tuple(dict.fromkeys(math_or(way) for way in ways))

    def _on(self, nodes: Iterable[fx.Node]) -> int:
        return math_or(self.depends[node] for node in nodes)

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
        if groups and k == 0 and rule.facts.distinct_for(_plain(arguments)) and self._elementwise(rule, made, tensors):
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
        return frozenset({f"{_name(node)}: where its row of padding is zero, what is added to it is not ({self.calls[node].why})"})

    def _elementwise(self, rule: Rule, node: fx.Node, tensors) -> bool:
        read = self._letters(rule, node, tensors)
        return read is not None and len(read[1]) == 1 and all(
            _all(dims) <= _all(read[1][0]) for dims in read[0])

    def positive(self, node: fx.Node) -> bool:
        if node not in self._positive:
            known = self._known(self._made(node)[0])
            facts = known[0].facts if known is not None else None
            parts = [x for _, x in known[2]][: None if facts.positive or facts.moves == "joined" else 1] if known else []
            self._positive[node] = facts is not None and (facts.positive is True or (
                facts.positive == "kept" or bool(facts.moves)) and all(self.positive(x) for x in parts))
        return self._positive[node]

    # --------------------------------------------------------------------------------------------------------- claims

    def claims(self, node: fx.Node) -> list[Claim]:
        """What is known of the numbers of a node, the freest claims first."""
        if node not in self._claims:
            try:
                found = self._find(node) if _floating(node) else self._nothing(node, "makes equal numbers of others")
            except RecursionError:
                found = self._nothing(node, "lies too deep to be followed")
            self._claims[node] = sorted(dict.fromkeys(found), key=lambda c: (-len(c.dims), not c.by))[:MOST]
        return self._claims[node]

    def _nothing(self, node: fx.Node, why: str) -> list[Claim]:
        self.blame.setdefault(node, f"{_name(self._made(node)[0])} {why}")
        return []

    def _find(self, node: fx.Node) -> list[Claim]:
        if (leaf := self._leaf(node)):  # inputs may be alike: padding, and the like
            rank = len(node.meta["val"].shape) if leaf.kind == "state" else 0
            return [Claim(frozenset(range(rank)), self.depends[node])]
        made, k = self._made(node)
        if (known := self._known(made)) is None:
            return self._nothing(node, "makes equal numbers, for all that is known")
        if (mask := self._mask(made, known[1])) is not None:
            return self._masked(made, *mask)
        rule, arguments, tensors = known
        tensors = [(name, x) for name, x in tensors]
        if rule.facts.moves and (k == 0 or rule.facts.moves is True):
            parts = tensors if rule.facts.moves == "joined" else tensors[:1]
            return self._moved(node, made, k, [x for _, x in parts], rule.facts.moves)
        kind = rule.facts.distinct_for(_plain(arguments)) if k == 0 else False
        read = self._letters(rule, made, tensors) if kind else None
        if read is None:
            return self._nothing(node, "makes equal numbers")
        return self._by_text(node, rule, kind, arguments, tensors, *read)

    def _mask(self, node: fx.Node, arguments) -> tuple[fx.Node, float] | None:
        """The scores that an op masks, and what with."""
        names = {"masked_fill": ("self", "value"), "where": ("self", "other")}.get(_name(node))
        if names is None:
            return None
        for scores, low in (names, names[::-1]) if _name(node) == "where" else [names]:
            value = arguments.get(low)
            if isinstance(value, fx.Node):
                numbers = self._constant(value)
                value = float(numbers.max()) if numbers is not None and numbers.numel() else None
            given = arguments.get(scores)
            if isinstance(value, (int, float)) and isinstance(given, fx.Node) and (
                    value <= LOWEST or value == 0 and self.positive(given)):
                return given, value
        return None

    def _masked(self, node: fx.Node, scores: fx.Node, value: float) -> list[Claim]:
        if scores.meta["val"].shape != node.meta["val"].shape or not self.claims(scores):
            return self._pass(node, scores)
        text = f"what is masked with {value:g} is not chosen: enough is left ({self.calls[node].why})"
        return [replace(claim, masked=True, assumes=claim.assumes | {text}) for claim in self.claims(scores)]

    def _pass(self, node: fx.Node, given: fx.Node) -> list[Claim]:
        """No claim, for the reason that an argument has none."""
        self.claims(given)
        if given in self.blame:
            self.blame.setdefault(node, self.blame[given])
        return self._nothing(node, "is given numbers that may be equal")

    def _moved(self, node: fx.Node, made: fx.Node, k: int, parts: list[fx.Node], way) -> list[Claim]:
        """Claims about numbers that are found again at other places."""
        if any(_bits(node) > _bits(part) for part in parts):
            return self._nothing(node, "rounds to fewer bits")
        missing = next((part for part in parts if not self.claims(part)), None)
        if missing is not None:
            return self._pass(node, missing)
        if way == "same":
            return self.claims(parts[0])
        sources = self._sources(made, k, parts)
        if len(parts) > 1:
            joint = self._joint(parts)
            if joint is None:
                return self._nothing(node, "joins numbers that hang together")
            choices = [joint]
        else:
            choices = [(claim,) for claim in self.claims(parts[0])]
        found = []
        for chosen in choices:
            dims = frozenset() if sources is None else _kept(sources, parts, [claim.dims for claim in chosen])
            claim = Claim(dims, math_or(c.by for c in chosen), max(c.steep for c in chosen), any(c.masked for c in chosen),
                          frozenset().union(*(c.assumes for c in chosen)))
            found += [claim] if claim.dims or claim.by else []
        return found or self._nothing(node, "makes equal numbers")

    def _joint(self, parts: list[fx.Node]) -> tuple[Claim, ...] | None:
        """A claim for each part, each by leaves on which no other part depends."""
        found = []
        for k, part in enumerate(parts):
            others = self._on(parts[:k] + parts[k + 1:])
            claim = next((c for c in self.claims(part) if c.by and not c.masked and not c.by & others), None)
            if claim is None:
                return None
            found.append(claim)
        return tuple(found)

    def _sources(self, node: fx.Node, k: int, parts: list[fx.Node]) -> torch.Tensor | None:
        """Where each number of a result comes from: places counted through the parts. None if that cannot be told."""
        sizes = [part.meta["val"].shape for part in parts]
        if sum(map(math.prod, sizes)) > LARGEST:
            return None
        starts = itertools.accumulate([math.prod(s) for s in sizes], initial=0)
        places = {part: torch.arange(start, start + math.prod(size)).reshape(size)
                  for part, size, start in zip(parts, sizes, starts)}
        others = {x: self._constant(x) for x in node.all_input_nodes if x not in places}
        if any(content is None for content in others.values()):
            return None
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda x: places[x] if x in places else others[x])
        try:
            results = pytree.tree_leaves(node.target(*args, **{n: x for n, x in kwargs.items() if n != "device"}))
        except (RuntimeError, TypeError, IndexError, ValueError):
            return None
        return results[k]

    # ----------------------------------------------------------------------------------------- ops whose rule is a text

    def _by_text(self, node, rule: Rule, kind, arguments, tensors, inside, outside) -> list[Claim]:
        result, between = outside[0], outside[1:]
        shared = _all(result)
        groups = rule.facts.together()
        found, why = [], None
        for k, (name, given) in enumerate(tensors):
            if rule.facts.through and name not in rule.facts.through.split():
                continue
            if _bits(node) > _bits(given) or not _floating(given):
                why = why or "rounds to fewer bits"
                continue
            own = _all(inside[k])
            mixed = {x for x in own & shared if any(x not in _all(dims) for dims in between)}
            added = next((group for group in groups if name in group), [])
            others = [x for j, (_, x) in enumerate(tensors) if j != k]
            factors = self._all_nonzero(x for n, x in tensors if x is not given and _floating(x) and n not in added)
            zero = factors is None
            for claim in self.claims(given):
                free = _all(inside[k][d] for d in claim.dims)
                if rule.facts.saturates and claim.steep > 1 or zero or claim.masked and (
                        others or kind != "increasing") or claim.steep < TINY and added != [name]:
                    why = why or ("saturates where its argument is scaled up" if rule.facts.saturates and claim.steep > 1 else
                                  "maps what may be zero everywhere to equal numbers" if zero else None)
                    continue
                alone = claim.by and not claim.by & self._on(others)
                grown = replace(claim, steep=self._growth(node, rule, given, claim.steep) if own <= shared else 1.0,
                                assumes=claim.assumes | factors | self._assumed(node, rule))
                if alone and (own - shared) | mixed <= free and all(self._tame(x) for x in others if _floating(x)):
                    found.append(replace(grown, dims=_dims(result, free - mixed)))
                    if mixed and kind == "increasing":
                        found.append(replace(grown, dims=_dims(result, free), by=0))
                elif own <= shared and not mixed and self._private(given, [(n, x) for n, x in tensors if x is not given], added):
                    found.append(replace(grown, dims=_dims(result, free)))
                elif own <= shared and kind in ("injective", "increasing") and not mixed and self._still(
                        tensors, inside, k, free):
                    found.append(replace(grown, dims=_dims(result, free), by=0))
                elif own <= shared and mixed:
                    kept = free & mixed if kind == "increasing" else free - mixed
                    if self._still(tensors, inside, k, kept):
                        said = self._kept_apart(node) if kind != "increasing" else frozenset()
                        found.append(replace(grown, dims=_dims(result, kept), by=0, assumes=grown.assumes | said))
                elif not own <= shared and self._spread(tensors, inside, k, free, shared):
                    found.append(replace(grown, dims=_dims(result, free & shared), by=0))
        found = [claim for claim in found if claim.dims or claim.by]
        if found:
            return found
        missing = next((x for _, x in tensors if _floating(x) and not self.claims(x)), None)
        if why is None and missing is not None and len(tensors) == 1:
            return self._pass(node, missing)
        return self._nothing(node, why or "puts together numbers that hang together")

    def _private(self, given: fx.Node, others: list[tuple[str, fx.Node]], added: list[str]) -> bool:
        """Whether all other arguments are added, and scale with leaves on which this one does not depend: then they leave
        it as it is, or change it by what varies of its own."""
        return bool(others) and all(name in added and any(not bits & self.depends[given] for bits in self.scaled[x])
                                    for name, x in others)

    def _still(self, tensors, inside, k: int, free) -> bool:
        """Whether the other arguments are the same for all numbers of a claim."""
        return all(not _all(dims) & free for j, dims in enumerate(inside) if j != k)

    def _spread(self, tensors, inside, k: int, free, shared) -> bool:
        """Whether rows that differ are mapped to numbers that differ: by an argument that varies freely along all that
        is summed over, whatever the rows are."""
        summed = _all(inside[k]) - shared
        maps = [j for j, dims in enumerate(inside) if j != k and _all(dims) & summed]
        if len(maps) != 1 or not self._still(tensors, inside, k, free):
            return False
        (j,) = maps
        rest = self._on(x for i, (_, x) in enumerate(tensors) if i != j)
        return any(c.by and not c.by & rest and summed <= _all(inside[j][d] for d in c.dims)
                   for c in self.claims(tensors[j][1]))

    def _tame(self, node: fx.Node) -> bool:
        """Whether a node's numbers are finite and no masks, as far as is known."""
        if self._leaf(node):
            return True
        constant = self._constant(self._made(node)[0])
        if constant is not None:
            return bool((constant.abs() < -LOWEST).all())
        return self.nonzero[node] is not None or bool(self.scaled[node])

    def _assumed(self, node: fx.Node, rule: Rule) -> frozenset[str]:
        made = self._made(node)[0]
        return frozenset({f"{_name(made)} does not saturate ({self.calls[made].why})"} if rule.facts.saturates else ())

    def _kept_apart(self, node: fx.Node) -> frozenset[str]:
        made = self._made(node)[0]
        return frozenset({f"{_name(made)} keeps rows apart that differ ({self.calls[made].why})"})

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


def _plain(arguments: Mapping) -> dict:
    """Arguments by name, tensors as None."""
    return {name: None if isinstance(x, fx.Node) else x for name, x in arguments.items()}


def math_or(bits: Iterable[int]) -> int:
    result = 0
    for some in bits:
        result |= some
    return result


def _all(dims: Iterable[frozenset[str]]) -> frozenset[str]:
    return frozenset().union(*dims)


def _dims(result: Sequence[frozenset[str]], free) -> frozenset[int]:
    """The dimensions of a result that are made of free letters."""
    return frozenset(d for d, own in enumerate(result) if own and own <= free)


def _kept(sources: torch.Tensor, parts: list[fx.Node], dims: list[frozenset[int]]) -> frozenset[int]:
    """The dimensions of a result along which numbers come from different places of a part, all along that part's dims."""
    lines, part_of, start = [], [], 0
    for k, (part, free) in enumerate(zip(parts, dims)):
        shape = part.meta["val"].shape
        places = torch.arange(start, start + math.prod(shape)).reshape(shape)
        for d in free:
            places = places.narrow(d, 0, 1).expand(shape) if shape[d] else places
        lines.append(places.reshape(-1))
        part_of.append(torch.full((math.prod(shape),), k))
        start += math.prod(shape)
    line, owner = torch.cat(lines)[sources], torch.cat(part_of)[sources]

    def together(d: int) -> bool:
        far = start + 1
        return all(bool(((torch.where(owner == k, line, -1).amax(d) <= torch.where(owner == k, line, far).amin(d))).all())
                   for k in range(len(parts)))

    kept = [d for d in range(sources.dim()) if sources.shape[d] > 1 and together(d) and not _repeats(sources, [d])]
    return frozenset() if _repeats(sources, kept) else frozenset(kept)


def _repeats(places: torch.Tensor, dims: list[int]) -> bool:
    """Whether some place stands twice along these dimensions."""
    rows = places.movedim(dims, list(range(-len(dims), 0))).flatten(-len(dims)) if dims else places[..., None]
    rows = rows.sort(-1).values
    return bool((rows[..., 1:] == rows[..., :-1]).any())


def _floating(node: fx.Node) -> bool:
    val = node.meta.get("val")
    return isinstance(val, torch.Tensor) and val.is_floating_point()


def _bits(node: fx.Node) -> float:
    """How far apart a node's numbers are: the fewer bits, the more."""
    val = node.meta["val"]
    return torch.finfo(val.dtype).eps if val.is_floating_point() else math.inf


def _name(node: fx.Node) -> str:
    """The op of a call, without namespace and overload."""
    return str(node.target).removeprefix("aten.").split(".")[0]
