"""A spec as one JSON document, and back."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import SpecError
from .layout import Axis, Block, Fold, Group, Rewrite, Site, Skip

if TYPE_CHECKING:
    from .value import Spec

FORMAT = "fxrebasin-spec-1"
FIELDS = ("groups", "pinned", "sizes", "reasons", "layouts", "shapes", "ties", "passed", "outputs", "unruled", "notes",
          "stacks", "assumptions", "evidence", "roles", "numbers", "folds", "rewrites", "inputs", "skips")
NOT_A_SPEC = (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError, OverflowError)


class OtherVersionError(SpecError):
    """A document that another version wrote: `args[0]` says by what it is known."""

    def __str__(self) -> str:
        return f"this spec is of another version: {self.args[0]}: infer it again with this version"


def to_json(spec: Spec) -> str:
    """The whole spec as one JSON document."""
    return json.dumps({
        "format": FORMAT,
        "order_log10": spec.log10_order,
        "groups": {g.name: {"size": g.size, "copies": g.copies, "within": g.within, "members": g.members,
                            "sites": [[s.tensor, s.axis, s.block] for s in g.sites]}
                   for g in spec.groups.values()},
        "pinned": [[tensor, axis, reason] for (tensor, axis), reason in spec.pinned.items()],
        "sizes": dict(spec.sizes), "reasons": dict(spec.reasons),
        "layouts": {name: _blocks_to_json(blocks) for name, blocks in spec.layouts.items()},
        "shapes": dict(spec.shapes), "ties": dict(spec.ties), "passed": spec.passed,
        "outputs": {path: [shape, _blocks_to_json(blocks)] for path, (shape, blocks) in spec.outputs.items()},
        "unruled": dict(spec.unruled), "notes": spec.notes, "stacks": dict(spec.stacks),
        "assumptions": spec.assumptions, "evidence": spec.evidence, "roles": dict(spec.roles),
        "numbers": dict(spec.numbers), "folds": [[f.tensor, f.axis, f.gain, f.plus] for f in spec.folds],
        "inputs": dict(spec.inputs), "rewrites": [_rewrite_to_json(each) for each in spec.rewrites],
        "skips": [[s.add, s.operand, s.dim, s.size, _blocks_to_json(s.before), _blocks_to_json(s.behind)]
                  for s in spec.skips],
    })


def fields_of(text: str) -> dict[str, Any]:
    """The fields of the Spec that `to_json` wrote. Raises SpecError for another version, and one of NOT_A_SPEC for
    what is none; whether the fields are consistent is for `validate` to say."""
    data = json.loads(text)
    if data["format"] != FORMAT:
        raise OtherVersionError(f"it is {data['format']!r}, not {FORMAT!r}")
    if lacking := [name for name in FIELDS if name not in data]:
        raise OtherVersionError(f"it is without {', '.join(map(repr, lacking))}")
    shapes = {name: tuple(shape) for name, shape in data["shapes"].items()}
    return {
        "groups": {name: Group(name, g["size"], g["copies"], tuple(g["within"]), tuple(g["members"]),
                               tuple(Site(*site) for site in g["sites"])) for name, g in data["groups"].items()},
        "pinned": {(tensor, axis): reason for tensor, axis, reason in data["pinned"]},
        "sizes": data["sizes"], "reasons": data["reasons"],
        "layouts": {name: _blocks_from_json(blocks, shapes[name]) for name, blocks in data["layouts"].items()},
        "shapes": shapes, "ties": data["ties"], "passed": _listed(data["passed"]),
        "outputs": {path: (tuple(shape), _blocks_from_json(blocks, shape))
                    for path, (shape, blocks) in data["outputs"].items()},
        "unruled": data["unruled"], "notes": _listed(data["notes"]),
        "stacks": {stack: _listed(parts) for stack, parts in data["stacks"].items()},
        "assumptions": _listed(data["assumptions"]), "evidence": data["evidence"],
        "roles": data["roles"], "numbers": data["numbers"],
        "folds": tuple(Fold(*fold) for fold in data["folds"]),
        "rewrites": tuple(_rewrite_from_json(each) for each in _listed(data["rewrites"])),
        "inputs": {path: (tuple(shape), dtype) for path, (shape, dtype) in data["inputs"].items()},
        "skips": tuple(Skip(add, operand, dim, size, *(_blocks_from_json(end, (size,)) for end in ends))
                       for add, operand, dim, size, *ends in _listed(data["skips"])),
    }


def _rewrite_to_json(rewrite: Rewrite) -> dict[str, Any]:
    """What differs from the defaults."""
    plain = Rewrite(rewrite.kind, rewrite.entry)
    return {name: value for name, value in vars(rewrite).items()
            if name in ("kind", "entry") or value != getattr(plain, name)}


def _rewrite_from_json(data: dict[str, Any]) -> Rewrite:
    readers = tuple((weight, axis, bias, tuple(places)) for weight, axis, bias, places in data.get("readers", ()))
    return Rewrite(**{**data, "places": tuple(data.get("places", ())), "readers": readers})


def _listed(data: list) -> tuple:
    if not isinstance(data, list):  # a string would be read as a list of its letters
        raise TypeError(f"a list is needed, not a {type(data).__name__}")
    return tuple(data)


def _blocks_to_json(blocks: tuple[Block, ...]) -> list:
    return [[[_positions_to_json(axis.positions), axis.factors] for axis in block] for block in blocks]


def _blocks_from_json(blocks: list, shape) -> tuple[Block, ...]:
    return tuple(tuple(Axis(_positions_from_json(p, size), tuple(factors)) for (p, factors), size in zip(block, shape))
                 for block in blocks)


def _positions_to_json(positions: np.ndarray) -> dict[str, Any]:
    """Start and strides where the positions are evenly spaced, which is nearly always; else all of them."""
    shape = positions.shape
    start = int(positions[(0,) * len(shape)])
    strides = [int(positions[tuple(int(i == k) for i in range(len(shape)))]) - start if size > 1 else 0
               for k, size in enumerate(shape)]
    if np.array_equal(_strided(start, strides, shape), positions):
        return {"start": start, "strides": strides, "shape": shape}
    return {"shape": shape, "list": positions.reshape(-1).tolist()}


def _positions_from_json(data: dict[str, Any], size: int) -> np.ndarray:
    numbers = [*data["shape"], *data.get("list", ()), *data.get("strides", ()), data.get("start", 0)]
    if any(type(n) is not int for n in numbers) or not 0 < math.prod(data["shape"]) <= size:
        raise ValueError("positions that do not fit their axis")  # before any memory is taken for them
    if "list" in data:
        return np.array(data["list"], dtype=np.int64).reshape(data["shape"])
    return _strided(data["start"], data["strides"], data["shape"])


def _strided(start: int, strides, shape) -> np.ndarray:
    grid = np.ogrid[tuple(slice(size) for size in shape)] if len(shape) else []
    return np.asarray(start + sum(stride * g for stride, g in zip(strides, grid)), dtype=np.int64)
