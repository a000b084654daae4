"""Reads the spec off the factors, when the whole graph has been walked."""

from __future__ import annotations

import math

from ..capture import Program
from ..factors import Atom, Segment, Value
from ..spec import Axis, Block, Group, Site, Spec


class Reader:
    """Turns atoms and values into the names and values of a Spec."""

    def __init__(self, state: dict[str, Value], outputs: dict[str, Value]):
        self.state, self.outputs = state, outputs
        self.names: dict[Atom, str] = {}
        self.classes: dict[Atom, tuple[Atom, ...]] = {}

    def spec(self, program: Program, unruled: dict[str, str]) -> Spec:
        order = [name for name in program.state if name not in program.ties]
        blocks = {name: ordered(self.state[name]) for name in order}
        for name in order:
            self._name(name, blocks[name])
        groups = self._groups(order, blocks)
        layouts = {name: self._layout(blocks[name]) for name in order}
        moved = {atom for group in groups.values() for atom in group[1]}
        pinned = {}
        for name in order:
            for axis in range(len(program.state[name])):
                atoms = [atom for block in blocks[name] for atom in block[axis].atoms]
                if not any(atom in moved for atom in atoms):
                    pinned[name, axis] = next((atom.pinned for atom in atoms if atom.pinned), "a single element")
        outputs = {}
        for path, value in self.outputs.items():
            self._name(f"output {path}", out := ordered(value))
            outputs[path] = (value.shape, self._layout(out))
        free_outputs = {path: (shape, parts) for path, (shape, parts) in outputs.items()
                        if any(f in {m for g in groups.values() for m in g[0].members} for b in parts for a in b for f in a.factors)}
        kept = {f for parts in list(layouts.values()) + [p for _, p in free_outputs.values()]
                for b in parts for a in b for f in a.factors}
        return Spec(
            {name: group for name, (group, _) in groups.items()}, pinned,
            {name: atom.size for atom, name in self.names.items() if name in kept},
            {name: atom.pinned for atom, name in self.names.items() if atom.pinned and name in kept},
            layouts, dict(program.state), dict(program.ties), tuple(program.passed), free_outputs, dict(unruled),
            tuple(program.notes))

    def _name(self, tensor: str, blocks: list[list[Segment]]) -> None:
        """Names atoms after the first axis they are seen on: `tensor:axis`, numbered if the axis has several."""
        for axis in range(len(blocks[0]) if blocks else 0):
            atoms = list(dict.fromkeys(atom for block in blocks for atom in block[axis].atoms))
            for k, atom in enumerate(atoms):
                self.names.setdefault(atom, f"{tensor}:{axis}" + (f".{k}" if len(atoms) > 1 else ""))

    def _groups(self, order, blocks) -> dict[str, tuple[Group, list[Atom]]]:
        sites: dict[Atom, list[Site]] = {}
        for name in order:
            for b, block in enumerate(blocks[name]):
                for axis, segment in enumerate(block):
                    for atom in segment.atoms:
                        sites.setdefault(atom, []).append(Site(name, axis, b))
        groups: dict[str, tuple[Group, list[Atom]]] = {}
        done: set[Atom] = set()
        for atom in sites:
            if atom.pinned or atom in done:
                continue
            parents = parents_of(atom)
            members = [atom] + [p for p in parents if not p.pinned and evidence(p) == evidence(atom) and atom in parents_of(p)]
            members.sort(key=list(self.names).index) if len(members) > 1 else None
            done.update(members)
            within = sorted((p for p in parents if p not in members), key=list(self.names).index) if parents else []
            name = self.names[members[0]]
            group = Group(name, math.prod(m.size for m in members), math.prod(p.size for p in within),
                          tuple(self.names[p] for p in within), tuple(self.names[m] for m in members),
                          tuple(dict.fromkeys(site for m in members for site in sites[m])))
            groups[name] = (group, members)
        return groups

    def _layout(self, blocks: list[list[Segment]]) -> tuple[Block, ...]:
        return tuple(tuple(Axis(segment.positions, tuple(self.names[atom] for atom in segment.atoms))
                           for segment in block) for block in blocks)


def evidence(atom: Atom) -> set:
    """The blocks that say what an atom may depend on: all but those of constants that are equal along it."""
    return {block for block in atom.blocks if not block.value.even}


def parents_of(atom: Atom) -> list[Atom]:
    """The atoms that are present, once, in every block in which this one is: among its segments, or by choice."""
    blocks = evidence(atom)
    block = next(iter(blocks))
    chosen = {b for b in blocks if b.value.chosen}
    held = [p for c in block.value.chosen for piece in c.index.axis.blocks for p in piece.atoms()]
    candidates = [p for p in dict.fromkeys(block.atoms() + held)
                  if p is not atom and not p.turning and blocks - chosen <= p.blocks]
    return [p for p in candidates if all(b.count(p) == 1 for b in blocks)] if candidates else []


def ordered(value: Value) -> list[list[Segment]]:
    """The blocks by their first positions, each segment with its atoms from the outermost to the innermost: the same
    whatever the order in which the graph was visited."""
    def outermost_first(segment: Segment) -> Segment:
        positions = segment.positions
        step = [abs(int(positions[tuple(int(i == k) for i in range(positions.ndim))]) - int(positions[(0,) * positions.ndim]))
                for k in range(positions.ndim)]
        order = sorted(range(positions.ndim), key=lambda k: -step[k])
        return Segment(positions.transpose(order), [segment.atoms[k] for k in order])
    blocks = [[outermost_first(s) if len(s.atoms) > 1 else s.named() for s in block.segments] for block in value.blocks]
    return sorted(blocks, key=lambda block: [int(s.positions.min()) for s in block])
