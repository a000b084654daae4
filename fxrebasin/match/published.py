"""Published methods, on the same objective and the same harness as ours.

git-rebasin  Ainsworth, Hayase, Srinivasa, "Git Re-Basin", ICLR 2023, section 3.2: one flat permutation for an
             axis, coordinate ascent in random order from the identity. Blind to heads: on attention its
             result can change the function, which `verify` shows.
ot           Singh and Jaggi, "Model Fusion via Optimal Transport", NeurIPS 2020: soft couplings of flat axes
             by entropic transport, one axis after another with the couplings found so far, rounded to
             permutations at the end.
transfusion  Rinaldi et al., "Update Your Transformer to the Latest Release: Re-Basin of Task Vectors", ICML
             2025, section 3: heads are paired by their singular values, then the units of paired heads by one
             assignment for queries, keys and values together; weight matching elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from ..spec import Axis, Group, Site, Spec
from .assignment import assign
from .descent import Clock, descend
from .nest import Nest
from .problem import Piece, Problem
from .similarity import similarity
from .step import Step


SWEEPS = 100  # of a descent, at most; it ends when nothing improves


def transfusion(problem: Problem, order: Sequence[str], clock: Clock, sweeps: int = SWEEPS) -> None:
    """Weight matching with the paper's step for attention, taken once for every visit."""
    heads = [name for name in order if len(problem.nests[name].groups) > 1]
    descend(problem, [name for name in order if name not in heads], clock, sweeps)
    pair_heads(problem)
    descend(problem, [name for name in order if name not in heads], clock, sweeps)


def pair_heads(problem: Problem) -> None:
    for nest in problem.nests.values():
        if len(nest.groups) > 1:
            problem.move(TransFusionStep(nest, problem.pieces_of(nest)).moves)


class TransFusionStep(Step):
    """A step that treats a nest of depth two as the paper treats heads and their units."""

    def __init__(self, nest: Nest, pieces):
        if len(nest.groups) == 1 or any(len(chain) > 2 for chain in nest.chains.values()):
            super().__init__(nest, pieces)
            return
        self.nest, self.gained = nest, math.inf  # pairing by spectra does not ascend: each nest is paired once
        self.moves = {g.name: np.tile(np.arange(g.size), nest.spec.frame(g) + (1,)) for g in nest.groups}
        root = nest.root
        inner = [p for p in pieces if nest.owner(p.factors) is not root]
        heads = assign(-spectral_distances(nest, inner)).columns
        for frame in nest.indices(nest.extras(root)):
            self.moves[root.name][tuple(frame[f] for f in root.within)] = heads
            self._units(nest, inner, heads, frame)

    def _units(self, nest: Nest, pieces, heads: np.ndarray, frame) -> None:
        """One assignment for all children of one size together."""
        children = nest.children[nest.root.name]
        for size in {child.size for child in children}:
            alike = [child for child in children if child.size == size and not nest.extras(child)]
            scores = []
            for child in alike:
                own = [p for p in pieces if nest.owner(p.factors) is child]
                n = nest.root.size
                scores.append(similarity(nest, child, own).double().cpu().numpy().reshape(n, size, n, size))
            for i, j in enumerate(heads):
                if alike:
                    columns = assign(sum(s[i, :, j, :] for s in scores)).columns
                for child in alike:
                    self.moves[child.name][tuple({**frame, nest.root.members[0]: i}[f] for f in child.within)] = columns


def spectral_distances(nest: Nest, pieces: list[Piece]) -> np.ndarray:
    """Distances between heads of target and source: the norm of the difference of their singular values,
    summed over all weights that hold heads and units. Shape (heads, heads). Invariant to everything but the
    pairing (section 3.1)."""
    n = nest.root.size
    total = np.zeros((n, n))
    for piece in pieces:
        child = nest.owner(piece.factors)
        own = [piece.factors.index(m) for m in nest.root.members]
        units = [piece.factors.index(m) for m in child.members]
        rest = [i for i in range(len(piece.factors)) if i not in own + units]
        values = []
        for side in piece.sides():
            matrix = side.permute(own + units + rest).reshape(n, child.size, -1).double()
            gram = matrix @ matrix.transpose(-1, -2)  # eigenvalues of the Gram matrix: squares of the singular values
            values.append(torch.linalg.eigvalsh(gram).clamp_min(0).sqrt())
        total += torch.cdist(values[0], values[1]).cpu().numpy()
    return total


def soft_transport(problem: Problem, order: list[str], temperature: float = 0.02, sweeps: int = 3) -> None:
    """Couples each axis softly, all others coupled as far as is known; then rounds. The problem's spec is
    flat."""
    plans: dict[str, torch.Tensor] = {}
    for _ in range(sweeps):
        for name in order:
            nest = problem.nests[name]
            others = {n: plan for n, plan in plans.items() if n != name}
            scores = torch.zeros(nest.root.size, nest.root.size, dtype=torch.float64)
            for p in problem.pieces_of(nest):
                source = _coupled(p.sides()[1], p.factors, others)
                soft = Piece(p.tensor, p.factors, p.target, source, p.dtype)
                scores += similarity(nest, nest.root, [soft])[0].cpu()
            plans[name] = _sinkhorn(scores, temperature)
    problem.move({name: assign(plan.cpu().numpy()).columns for name, plan in plans.items()})


def _coupled(source: torch.Tensor, factors, plans: dict[str, torch.Tensor]) -> torch.Tensor:
    for k, factor in enumerate(factors):
        if factor in plans:
            source = torch.movedim(torch.tensordot(plans[factor].to(source), source, dims=([1], [k])), 0, k)
    return source


def _sinkhorn(scores: torch.Tensor, temperature: float, rounds: int = 100,
              tolerance: float = 1e-3) -> torch.Tensor:
    """The doubly stochastic matrix exp(scores / t) up to scaling of rows and columns; t relative to the
    spread of the scores' best entries. Float64; done when every row adds up to 1 within the tolerance
    (columns do so exactly)."""
    spread = float(scores.max() - scores.mean()) or 1.0
    kernel = torch.exp((scores - scores.max(1, keepdim=True).values) / (temperature * spread))
    columns = torch.ones(len(scores), dtype=scores.dtype)
    for _ in range(rounds):
        rows = 1 / (kernel @ columns).clamp_min(1e-300)
        columns = 1 / (kernel.T @ rows).clamp_min(1e-300)
        if float((rows * (kernel @ columns) - 1).abs().max()) < tolerance:
            break
    return rows[:, None] * kernel * columns


def flattened(spec: Spec) -> Spec:
    """The spec as a method sees it that knows axes only: a factor within another, side by side on an axis,
    are one flat factor. Its group is larger than the true one: alignments of it may change the function."""
    names: dict[tuple[str, ...], str] = {}
    alone: set[str] = set()

    def runs(axis: Axis) -> list[tuple[str, ...]]:
        result: list[tuple[str, ...]] = []
        for factor in axis.factors:
            group = spec.group_of.get(factor)
            before = result[-1] if result else ()
            if group and any(f in spec.groups[group].within and f in spec.group_of for f in before):
                result[-1] = (*before, factor)
            else:
                result.append((factor,))
        return result

    def merged(axis: Axis) -> Axis:
        parts = runs(axis)
        shape = [math.prod(spec.sizes[f] for f in part) for part in parts]
        for part in parts:
            names.setdefault(part, " x ".join(part))
            if len(part) == 1:
                alone.add(part[0])
        return Axis(axis.positions.reshape(shape), tuple(names[part] for part in parts))

    layouts = {name: tuple(tuple(merged(axis) for axis in block) for block in blocks)
               for name, blocks in spec.layouts.items()}
    outputs = {path: (shape, tuple(tuple(merged(axis) for axis in block) for block in blocks))
               for path, (shape, blocks) in spec.outputs.items()}
    sites: dict[str, list[Site]] = {}
    for tensor, blocks in layouts.items():
        for b, block in enumerate(blocks):
            for d, axis in enumerate(block):
                for factor in axis.factors:
                    sites.setdefault(factor, []).append(Site(tensor, d, b))
    sizes = {name: math.prod(spec.sizes[f] for f in part) for part, name in names.items()}
    groups, reasons = {}, {}
    for part, name in names.items():
        if all(f in spec.group_of for f in part) and not (len(part) > 1 and alone.intersection(part)):
            groups[name] = Group(name, sizes[name], 1, (), (name,), tuple(dict.fromkeys(sites.get(name, ()))))
        else:
            reasons[name] = next((spec.reasons[f] for f in part if f in spec.reasons), "seen both flat and apart")
    return Spec(groups, spec.pinned, sizes, reasons, layouts, spec.shapes, spec.ties, spec.passed, outputs,
                spec.unruled, spec.notes, spec.stacks)
