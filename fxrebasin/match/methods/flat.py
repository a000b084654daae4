"""A spec as methods see it that know axes only."""

from __future__ import annotations

import math
from dataclasses import replace

from ...spec import Axis, Group, Site, Spec


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
    return replace(spec, groups=groups, sizes=sizes, reasons=reasons, layouts=layouts, outputs=outputs)
