"""One concrete permutation for every group: a value that can be applied, inverted, composed, saved.

`permutations[group]` has shape (sizes of the factors the group is within ..., size). Entry [p, i] is the index that
element i comes from, where p counts the group's place *after* the move: with heads h and units u within them, new
element (h, u) is old element (P[h], Q[h, u]). Hence (a @ b): Q[h, u] = b.Q[a.P[h], a.Q[h, u]].
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from .draft import whole
from .errors import CheckpointError, SpecError
from .rewrite import to_module
from .spec import Block, Group, Spec
from .spec.fitting import fitted, undone
from .spec.text import OtherVersionError

FORMAT = "fxrebasin-alignment-1"


class Alignment:
    """A permutation for every group of a spec. Immutable.

    objective  cosine similarity of pi(source) and target over all permutable tensors, if made by `match`, else None
    method     the name of the method that made it, if any
    source, target  fingerprints (see `fingerprint`) of the states that it was matched from and to, if any
    """

    def __init__(self, spec: Spec, permutations: Mapping[str, np.ndarray], *, objective: float | None = None,
                 method: str | None = None, source: str | None = None, target: str | None = None):
        if set(permutations) != set(spec.groups):
            odd = sorted(set(permutations) ^ set(spec.groups))
            raise SpecError(f"an alignment needs a permutation for every group and no other: {odd[0]!r} does not fit")
        fixed = {}
        for group in spec.groups.values():
            given = np.asarray(permutations[group.name])
            array = given.astype(np.int64)
            shape = spec.frame(group) + (group.size,)
            if not np.issubdtype(given.dtype, np.integer) or array.shape != shape or not np.array_equal(np.sort(array, axis=-1), np.broadcast_to(np.arange(group.size), shape)):
                raise SpecError(f"group {group.name!r} needs permutations of 0..{group.size - 1} in an array of shape {shape}")
            array.flags.writeable = False
            fixed[group.name] = array
        self.spec = spec
        self.permutations: Mapping[str, np.ndarray] = MappingProxyType(fixed)
        self.objective = objective
        self.method = method
        self.source = source
        self.target = target

    @classmethod
    def known(cls, spec: Spec, permutations: Mapping[str, np.ndarray], *, source: str | None = None,
              target: str | None = None) -> "Alignment":
        """From arrays of int64 that are permutations of the right shapes by the way they were made: these are not
        looked at again."""
        made = cls.__new__(cls)
        for array in permutations.values():
            array.flags.writeable = False
        made.spec, made.permutations = spec, MappingProxyType(dict(permutations))
        made.objective = made.method = None
        made.source, made.target = source, target
        return made

    def __reduce__(self):
        own = {name: array.copy() for name, array in self.permutations.items()}
        return _again, (self.spec, own, self.objective, self.method, self.source, self.target)

    # ------------------------------------------------------------------------------------------------------- applying

    def apply(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The permuted state, all tensors new; keys, dtypes, devices and ties as given. A state whose names are not
        quite the model's is fitted (see `spec.fitting`), with a warning. Raises StateError if it does not fit the
        spec."""
        own, fit = fitted(self.spec, state, "the state")
        self.spec.check(own)
        moved = self.carry(own)
        return moved if fit is None else undone(fit, moved, state)

    def carry(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`apply` for what is no state, such as differences of states: whatever the numbers are, they are permuted."""
        moved = self.spec.unstacked(self._applied(self.spec.stacked(tensors)))
        return {name: moved[name].to(tensor) if isinstance(tensor, torch.Tensor) else moved[name]
                for name, tensor in tensors.items()}

    def _applied(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The permuted state, for a stacked one."""
        done: dict[tuple, torch.Tensor] = {}  # a tensor under two names stays one tensor
        result = {}
        for name, tensor in state.items():
            if not isinstance(tensor, torch.Tensor):  # extra state
                result[name] = copy.deepcopy(tensor)
                continue
            same = self.spec.ties.get(name, name), id(tensor) if tensor.device.type == "meta" else tensor.data_ptr()
            if same not in done:
                blocks = self.spec.layout(name) if name in self.spec.shapes else ()
                done[same] = self.move(tensor, blocks)
            result[name] = done[same]
        return result

    def move(self, tensor: torch.Tensor, blocks: Sequence[Block]) -> torch.Tensor:
        """A tensor laid out in `blocks`, permuted."""
        tensor = tensor.detach()
        result = None
        for block in blocks:
            target, source = self.positions(block)
            if len(blocks) == 1 and (lines := _separable(block, target, source)) is not None:
                result = tensor
                for d, line in enumerate(lines):
                    if not np.array_equal(line, np.arange(line.size)):
                        result = result.index_select(d, torch.from_numpy(line).to(tensor.device))
                return result.clone() if result is tensor else result
            result = torch.empty_like(tensor) if result is None else result
            where, taken = (tuple(torch.from_numpy(np.ascontiguousarray(x)).to(tensor.device) for x in index)
                            for index in (target, source))
            result[where] = tensor[taken]
        return tensor.clone() if result is None else result

    def positions(self, block: Block) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """For each axis, the new and the old positions of the block's elements, as arrays that broadcast together."""
        places = [factor for axis in block for factor in axis.factors]
        grid = np.ogrid[tuple(slice(self.spec.sizes[factor]) for factor in places)] if places else []
        old = self.sources(places, list(grid))
        target, source, k = [], [], 0
        for axis in block:
            own = slice(k, k + len(axis.factors))
            target.append(np.asarray(axis.positions[tuple(grid[own])]))
            source.append(np.asarray(axis.positions[tuple(old[own])]))
            k = own.stop
        return target, source

    def sources(self, places: Sequence[str], grid: list[np.ndarray]) -> list[np.ndarray]:
        """Where the elements at `grid`, an index for each of the factors `places`, come from."""
        old = list(grid)
        for name in dict.fromkeys(self.spec.group_of[f] for f in places if f in self.spec.group_of):
            group = self.spec.groups[name]
            frame = tuple(grid[places.index(factor)] for factor in group.within)
            if len(group.members) == 1:
                for k, factor in enumerate(places):
                    if factor == group.members[0]:
                        old[k] = self.permutations[name][frame + (grid[k],)]
            else:
                at = [places.index(factor) for factor in group.members]
                sizes = tuple(self.spec.sizes[factor] for factor in group.members)
                flat = np.ravel_multi_index(np.broadcast_arrays(*(grid[k] for k in at)), sizes)
                for k, index in zip(at, np.unravel_index(self.permutations[name][frame + (flat,)], sizes)):
                    old[k] = index
        return old

    def apply_to_output(self, path: str, output: torch.Tensor) -> torch.Tensor:
        """How the network's output `path` is permuted when its state is (only for specs inferred with outputs="free")."""
        if path not in self.spec.outputs:
            return output
        shape, blocks = self.spec.outputs[path]
        if tuple(output.shape) != shape:
            raise SpecError(f"output {path!r} has shape {tuple(output.shape)}, the spec was inferred with {shape}")
        return self.move(output, blocks)

    def to_module(self, model, state: Mapping[str, torch.Tensor], example_inputs=None):
        """A GraphModule that computes what `model` does with `state`, its weights permuted, with maps on its skips
        where residual segments are ordered differently: see `fxrebasin.rewrite.to_module`."""
        return to_module(self, model, state, example_inputs)

    # -------------------------------------------------------------------------------------------------------- algebra

    def _of_group(self, group: Group) -> tuple[list[np.ndarray], np.ndarray]:
        """Where the frame of a group comes from, and the permutation itself, over the frame and the group's elements."""
        grid = np.ogrid[tuple(slice(n) for n in self.spec.frame(group) + (group.size,))]
        return self.sources(group.within, list(grid[:-1])), self.permutations[group.name]

    def of(self, spec: Spec) -> "Alignment":
        """The same permutations for another spec that has the same groups."""
        return Alignment(spec, self.permutations, objective=self.objective, method=self.method, source=self.source,
                         target=self.target)

    def inverse(self) -> "Alignment":
        """The alignment that undoes this one."""
        undone = {}
        for group in self.spec.groups.values():
            frame, own = self._of_group(group)
            undone[group.name] = np.empty_like(own)
            undone[group.name][tuple(frame) + (own,)] = np.arange(group.size)
        return Alignment.known(self.spec, undone, source=self.target, target=self.source)

    def __matmul__(self, other: "Alignment") -> "Alignment":
        """(a @ b).apply(state) == a.apply(b.apply(state))."""
        if not isinstance(other, Alignment):
            return NotImplemented
        if other.spec is not self.spec and other.spec != self.spec:
            raise SpecError("alignments of two different specs cannot be composed: infer both from the same model")
        composed = {}
        for group in self.spec.groups.values():
            frame, own = self._of_group(group)
            composed[group.name] = other.permutations[group.name][tuple(frame) + (own,)]
        return Alignment.known(self.spec, composed, source=other.source, target=self.target)

    def __eq__(self, other) -> bool:
        return (isinstance(other, Alignment) and self.spec == other.spec
                and all(np.array_equal(p, other.permutations[name]) for name, p in self.permutations.items()))

    __hash__ = None  # type: ignore[assignment]  # equality looks into arrays

    @property
    def moved(self) -> dict[str, int]:
        """Group name -> how many of its elements (over all copies) are not where they were."""
        return {name: int((p != np.arange(p.shape[-1])).sum()) for name, p in self.permutations.items()}

    def __repr__(self) -> str:
        total = sum(p.size for p in self.permutations.values())
        score = "" if self.objective is None else f", objective {self.objective:.4f}"
        return f"Alignment({len(self.permutations)} groups, {sum(self.moved.values())} of {total} elements moved{score})"

    def _repr_html_(self) -> str:
        from .show import fragment
        moved = (f"{n:>9,} of {self.permutations[name].size:,}  {name}" for name, n in self.moved.items() if n)
        return fragment("\n".join([repr(self), *moved]))

    # ---------------------------------------------------------------------------------------------------------- files

    def save(self, path: str | os.PathLike) -> None:
        """Writes a safetensors file that holds the permutations and the spec; it appears whole or not at all."""
        names = list(self.permutations)
        tensors = {f"group.{k}": self.permutations[name].astype(np.int32) for k, name in enumerate(names)}
        metadata = {"format": FORMAT, "spec": self.spec.to_json(), "method": self.method or "",
                    "objective": "" if self.objective is None else repr(self.objective),
                    "source": self.source or "", "target": self.target or ""}
        content = _in_one_order(save(tensors, metadata=metadata))
        with whole(path) as draft:
            draft.write_bytes(content)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Alignment":
        """Reads what `save` wrote. Raises CheckpointError on anything else."""
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise CheckpointError(f"{path} is not an alignment: give a file written by `match` or Alignment.save")
                spec = Spec.from_json(metadata["spec"])
                if odd := sorted(set(file.keys()) ^ {f"group.{k}" for k in range(len(spec.groups))}):
                    raise SpecError(f"its groups and its tensors disagree on {odd[0]!r}")
                arrays = {name: file.get_tensor(f"group.{k}") for k, name in enumerate(spec.groups)}
            objective = float(metadata["objective"]) if metadata.get("objective") else None
            return cls(spec, arrays, objective=objective, method=metadata.get("method") or None,
                       source=metadata.get("source") or None, target=metadata.get("target") or None)
        except OtherVersionError as error:
            raise CheckpointError(f"cannot read the alignment {path}: its spec is of another version: {error.args[0]}: match "
                                  "again with this version") from None
        except (SafetensorError, SpecError, KeyError, ValueError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"cannot read the alignment {path}: {reason}: is it complete and an alignment?") from None


def _again(spec: Spec, permutations: dict[str, np.ndarray], objective: float | None, method: str | None,
           source: str | None, target: str | None) -> Alignment:
    """An alignment that another process has sent."""
    return Alignment(spec, permutations, objective=objective, method=method, source=source, target=target)


def _in_one_order(content: bytes) -> bytes:
    """A safetensors file with its metadata in one order, so that equal alignments are equal files."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8:8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at multiples of 8
    return len(text).to_bytes(8, "little") + text + content[8 + size:]


def _separable(block: Block, target: list[np.ndarray], source: list[np.ndarray]) -> list[np.ndarray] | None:
    """For each axis the old index of every new position, if the axes move independently of each other."""
    lines, k = [], 0
    for axis, new, old in zip(block, target, source):
        own = range(k, k + len(axis.factors))
        k = own.stop
        if any(size != 1 for d, size in enumerate(old.shape) if d not in own):
            return None
        line = np.empty(axis.positions.size, dtype=np.int64)
        line[new.reshape(-1)] = np.broadcast_to(old, new.shape).reshape(-1)
        lines.append(line)
    return lines
