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
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import fx
from torch.utils import _pytree as pytree

from ..rules import Distinctness, Rule
from .left import LARGEST, left
from .numbers import LOWEST, MOST, Claim, Numbers, coarseness, floating, letters_of, name_of, plain, union
from .places import kept

TINY = 1e-6  # what has been scaled down by more is lost where something is added to it


class Distinct(Numbers):
    """What is known of a graph's numbers to differ."""

    def along(self, node, dim: int, largest: int) -> tuple[str | None, frozenset[str]]:
        """Why numbers along a dimension may be equal, or None; and on what the answer rests. `largest`: so many of the
        largest are chosen, and what is masked is not if as many are left; 0: any may be."""
        if isinstance(node, fx.Node) and node.graph is self.graph:
            while node not in self.depends:
                self._visit(next(self._ahead))
        else:
            return "it is not known how the numbers are made", frozenset()
        known = [claim for claim in self.claims(node) if dim in claim.dims]
        claims = [claim for claim in known if not claim.masked or 0 < largest <= dict(claim.left).get(dim, 0)]
        if not claims:
            few = f"a mask may leave fewer than {largest} of the numbers" if known and largest else "numbers may be equal"
            return self.blame.get(node, few), frozenset()
        return None, min((claim.assumes for claim in claims), key=len)

    # --------------------------------------------------------------------------------------------------------- claims

    def claims(self, node: fx.Node) -> list[Claim]:
        """What is known of the numbers of a node, the freest claims first."""
        if node not in self._claims:
            try:
                found = self._find(node) if floating(node) else self._nothing(node, "makes equal numbers of others")
            except RecursionError:
                found = self._nothing(node, "lies too deep to be followed")
            self._claims[node] = sorted(dict.fromkeys(found), key=lambda c: (-len(c.dims), not c.by))[:MOST]
        return self._claims[node]

    def _nothing(self, node: fx.Node, why: str) -> list[Claim]:
        self.blame.setdefault(node, f"{name_of(self._made(node)[0])} {why}")
        return []

    def _find(self, node: fx.Node) -> list[Claim]:
        if (leaf := self._leaf(node)):  # inputs may be alike: padding, and the like
            rank = len(node.meta["val"].shape) if leaf.kind == "state" else 0
            return [Claim(frozenset(range(rank)), self.depends[node])]
        made, k = self._made(node)
        if (known := self._known(made)) is None:
            return self._nothing(node, "makes equal numbers, for all that is known")
        if (mask := self._mask(made, known[1])) is not None:
            return self._masked(made, known[1], *mask)
        rule, arguments, tensors = known
        tensors = [(name, x) for name, x in tensors]
        if rule.facts.moves and (k == 0 or rule.facts.moves is True):
            parts = tensors if rule.facts.moves == "joined" else tensors[:1]
            return self._moved(node, made, k, [x for _, x in parts], rule.facts.moves)
        kind = rule.facts.distinct_for(plain(arguments)) if k == 0 else False
        read = self._letters(rule, made, tensors) if kind else None
        if read is None:
            return self._nothing(node, "makes equal numbers")
        return self._by_text(node, rule, kind, tensors, *read)

    def _mask(self, node: fx.Node, arguments) -> tuple[fx.Node, float] | None:
        """The scores that an op masks, and what with."""
        names = {"masked_fill": ("self", "value"), "where": ("self", "other")}.get(name_of(node))
        if names is None:
            return None
        for scores, low in (names, names[::-1]) if name_of(node) == "where" else [names]:
            value = arguments.get(low)
            if isinstance(value, fx.Node):
                numbers = self._constant(value)
                value = float(numbers.max()) if numbers is not None and numbers.numel() else None
            given = arguments.get(scores)
            if isinstance(value, (int, float)) and isinstance(given, fx.Node) and (
                    value <= LOWEST or value == 0 and self.positive(given)):
                return given, value
        return None

    def _masked(self, node: fx.Node, arguments, scores: fx.Node, value: float) -> list[Claim]:
        if scores.meta["val"].shape != node.meta["val"].shape or not self.claims(scores):
            return self._pass(node, scores)
        scored = scores is arguments.get("self") and name_of(node) == "where"  # what is true lets scores through
        mask = arguments["condition" if name_of(node) == "where" else "mask"]
        shape = node.meta["val"].shape
        text = f"what is masked with {value:g} lies below all scores ({self.calls[node].why})"
        said = frozenset({text} if math.isfinite(value) and value else ())

        def known(claim: Claim) -> frozenset[tuple[int, int]]:
            dims = frozenset() if claim.masked else claim.dims
            return frozenset((d, left(mask, scored, shape, d, self._constant)) for d in dims)
        return [replace(claim, masked=True, left=known(claim), assumes=claim.assumes | said) for claim in self.claims(scores)]

    def _pass(self, node: fx.Node, given: fx.Node) -> list[Claim]:
        """No claim, for the reason that an argument has none."""
        self.claims(given)
        if given in self.blame:
            self.blame.setdefault(node, self.blame[given])
        return self._nothing(node, "is given numbers that may be equal")

    def _moved(self, node: fx.Node, made: fx.Node, k: int, parts: list[fx.Node], way) -> list[Claim]:
        """Claims about numbers that are found again at other places."""
        if any(coarseness(node) > coarseness(part) for part in parts):
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
            shapes = [part.meta["val"].shape for part in parts]
            dims = frozenset() if sources is None else kept(sources, shapes, [claim.dims for claim in chosen])
            claim = Claim(dims, union(c.by for c in chosen), max(c.steep for c in chosen), any(c.masked for c in chosen),
                          assumes=frozenset().union(*(c.assumes for c in chosen)))
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

    def _by_text(self, node, rule: Rule, kind, tensors, inside, outside) -> list[Claim]:
        """Each claim about an argument comes to one about the result, or to a reason why not."""
        found, why = [], None
        for k, (name, given) in enumerate(tensors):
            if rule.facts.through and name not in rule.facts.through.split() or not floating(given):
                continue
            added = next((group for group in rule.facts.together() if name in group), [])
            part = _Part(node, rule, kind, given, [x for j, x in enumerate(tensors) if j != k], added, inside[k],
                         [dims for j, dims in enumerate(inside) if j != k], outside[0], outside[1:])
            # what is looked up by number (`through`) is not multiplied by it
            factors = self._all_nonzero(x for n, x in part.others if x is not given and n not in added and (
                floating(x) or not rule.facts.through))
            for claim in self.claims(given):
                stop = self._stopped(part, claim, factors)
                why = why or stop
                if stop is None:
                    steep = self._growth(node, rule, given, claim.steep) if not part.summed else 1.0
                    text = "does not saturate"
                    assumes = claim.assumes | factors | (self._said(node, text) if rule.facts.saturates else frozenset())
                    found += self._carried(part, replace(claim, steep=steep, assumes=assumes))
        found = [claim for claim in found if claim.dims or claim.by]
        missing = next((x for _, x in tensors if floating(x) and not self.claims(x)), None)
        if not found and why is None and missing is not None and len(tensors) == 1:
            return self._pass(node, missing)
        return found or self._nothing(node, why or "puts together numbers that hang together")

    def _stopped(self, part: "_Part", claim: Claim, factors: frozenset[str] | None) -> str | None:
        """Why a claim ends at an op, whatever the rest is. `factors`: on what it rests that no other argument is zero."""
        if coarseness(part.node) > coarseness(part.given):
            return "rounds to fewer bits"
        if factors is None:
            return "maps what may be zero everywhere to equal numbers"
        if part.rule.facts.saturates and claim.steep > 1:
            return "saturates where its argument is scaled up"
        if claim.masked and (part.others or part.kind != "increasing"):
            return "changes numbers of which some are masked"
        if claim.steep < TINY and len(part.added) != 1:
            return "adds to what has been scaled down"
        return None

    def _carried(self, part: "_Part", claim: Claim) -> list[Claim]:
        """What a claim about an argument says of the result."""
        free = letters_of(part.own[d] for d in claim.dims)
        alone = claim.by and not claim.by & self._on(x for _, x in part.others)
        if alone and part.summed | part.mixed <= free and all(self._tame(x) for _, x in part.others if floating(x)):
            merely = [part.claim(claim, free, by=0)] if part.mixed and part.kind == "increasing" else []
            return [part.claim(claim, free - part.mixed), *merely]
        if part.summed:
            return [part.claim(claim, free - part.summed, by=0)] if self._spread(part, free) else []
        if part.mixed:
            kept = free & part.mixed if part.kind == "increasing" else free - part.mixed
            said = frozenset() if part.kind == "increasing" else self._said(part.node, "keeps rows apart that differ")
            return [part.claim(claim, kept, by=0, assumes=claim.assumes | said)] if part.still(kept) else []
        if self._beside(part):
            return [part.claim(claim, free)]
        if part.kind in ("injective", "increasing") and part.still(free):
            return [part.claim(claim, free, by=0)]
        return []

    def _beside(self, part: "_Part") -> bool:
        """Whether all other arguments are added, and scale with leaves on which this one does not depend: then they leave
        it as it is, or change it by what varies of its own."""
        others = [(name, x) for name, x in part.others if x is not part.given]
        return bool(others) and all(name in part.added and any(not bits & self.depends[part.given] for bits in self.scaled[x])
                                    for name, x in others)

    def _spread(self, part: "_Part", free: frozenset[str]) -> bool:
        """Whether rows that differ are mapped to numbers that differ: by an argument that varies freely along all that
        is summed over, whatever the rows are."""
        maps = [j for j, dims in enumerate(part.along) if letters_of(dims) & part.summed]
        if len(maps) != 1 or not part.still(free - part.summed):
            return False
        (j,) = maps
        rest = self._on([part.given, *(x for i, (_, x) in enumerate(part.others) if i != j)])
        return any(c.by and not c.by & rest and part.summed <= letters_of(part.along[j][d] for d in c.dims)
                   for c in self.claims(part.others[j][1]))

    def _said(self, node: fx.Node, text: str) -> frozenset[str]:
        made = self._made(node)[0]
        return frozenset({f"{name_of(made)} {text} ({self.calls[made].why})"})


@dataclass(frozen=True)
class _Part:
    """One argument of an op whose rule is a text. `own`, `along`, `result`, `between`: the letters of the dimensions of the
    argument, of the others, of the result, of intermediates; `added`: the names of what is added to it."""

    node: fx.Node
    rule: Rule
    kind: Distinctness
    given: fx.Node
    others: list[tuple[str, fx.Node]]
    added: list[str]
    own: list[frozenset[str]]
    along: list[list[frozenset[str]]]
    result: list[frozenset[str]]
    between: list[list[frozenset[str]]]

    @cached_property
    def summed(self) -> frozenset[str]:
        """The letters that the result does not have."""
        return letters_of(self.own) - letters_of(self.result)

    @cached_property
    def mixed(self) -> frozenset[str]:
        """The letters whose places meet on the way, as in softmax: some intermediate lacks them."""
        shared = letters_of(self.own) & letters_of(self.result)
        return frozenset(x for x in shared if any(x not in letters_of(dims) for dims in self.between))

    def still(self, free: frozenset[str]) -> bool:
        """Whether the other arguments are the same for all numbers of a claim."""
        return not any(letters_of(dims) & free for dims in self.along)

    def claim(self, claim: Claim, free: frozenset[str], **more) -> Claim:
        """The claim along the dimensions of the result that are made of free letters."""
        dims = frozenset(d for d, own in enumerate(self.result) if own and own <= free)
        same = self.node.meta["val"].shape == self.given.meta["val"].shape
        return replace(claim, dims=dims, left=claim.left if same else frozenset(), **more)
