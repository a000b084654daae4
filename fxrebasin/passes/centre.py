"""What writes to a stream that only layer norms read is centred: they take its mean away at once."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

from torch import Tensor, fx

from ..capture import argument
from ..spec import Rewrite
from .graph import Maps
from .trace import along, moved

_ADDS = ("aten.add.Tensor", "aten.sub.Tensor")
_SCALED = ("aten.mul.Tensor", "aten.div.Tensor", "aten.mul.Scalar", "aten.div.Scalar")
_NORMS = ("aten.layer_norm.default", "aten.native_layer_norm.default")
Place = tuple[fx.Node, int]  # an activation, and the axis of the stream
Fate = tuple[bool, str]  # whether a layer norm reads it, and what else does ("" if nothing)


def found(maps: Maps) -> Iterator[Rewrite]:
    """Everything of the state that writes to a stream which some layer norm reads."""
    follow, writers = Streams(maps), {}
    for entry, node, axis, place in _writers(maps):
        writers.setdefault((entry, axis), []).append((node, *follow.fate(place)))
    for (entry, axis), fates in writers.items():
        if any(normed for _, normed, _ in fates):
            elsewhere = maps.uses[entry] - {node for node, _, _ in fates}
            reason = next((why for _, _, why in fates if why), "")
            if elsewhere and not reason:
                reason = f"it is also read by {maps.where(min(elsewhere, key=lambda n: n.name))}"
            yield Rewrite("centre", entry, f"a stream that it writes to is read by {reason}" if reason and not elsewhere
                          else reason, axis=axis)


def _writers(maps: Maps) -> Iterator[tuple[str, fx.Node, int, Place]]:
    """(entry, the op that reads it, its axis of the stream, what it writes and along which axis)."""
    for node in maps.program.module.graph.nodes:
        if node in maps.by_node:
            each = maps.by_node[node]
            yield each.weight, next(iter(_users_of(maps, each.weight, node)), node), each.out, (node, each.made)
            if each.bias:
                yield each.bias, node, 0, (node, each.made)
        elif str(node.target) == "aten.embedding.default" and maps.is_state(node.args[0]):
            yield maps.name(node.args[0]), node, 1, (node, node.meta["val"].ndim - 1)
        elif maps.is_state(node) and isinstance(node.meta.get("val"), Tensor) and node.meta["val"].ndim > 0:
            last = node.meta["val"].ndim - 1
            for user in node.users:
                if str(user.target) in _ADDS or str(user.target) == "aten.cat.default" or moved(
                        node, user, along(node, last) if node.meta["val"].numel() < 1e6 else None) is not None:
                    yield maps.name(node), user, last, (node, last)


def _users_of(maps: Maps, weight: str, node: fx.Node) -> Iterator[fx.Node]:
    """The use of a weight that leads to a map: the map itself, or what turns the weight before."""
    for use in maps.uses[weight]:
        below = use
        while below is not node and len(below.users) == 1:
            below = next(iter(below.users))
        if below is node:
            yield use


class Streams:
    """What reads an activation, adds and moves aside."""

    def __init__(self, maps: Maps):
        self.maps = maps
        self.known: dict[Place, Fate] = {}
        for node in reversed(maps.program.module.graph.nodes):  # so that no question goes deep
            value = node.meta.get("val")
            if str(node.target) in _ADDS and isinstance(value, Tensor) and value.ndim > 1:
                self.fate((node, value.ndim - 1))

    @cached_property
    def outputs(self) -> set[fx.Node]:
        return {output.node for output in self.maps.program.outputs if output.node is not None}

    def fate(self, place: Place) -> Fate:
        if place not in self.known:
            node, axis = place
            fates = [self._use(user, node, axis) for user in node.users if user.op != "output"]
            if node in self.outputs:
                fates.append((False, "the network's output"))
            self.known[place] = any(f[0] for f in fates), next((f[1] for f in fates if f[1]), "")
        return self.known[place]

    def _use(self, user: fx.Node, node: fx.Node, axis: int) -> Fate:
        op, other = str(user.target), (False, self.maps.where(user))
        value = user.meta.get("val")
        if op in _NORMS and user.args[0] is node:
            whole = len(argument(user, "normalized_shape")) == 1 and axis == node.meta["val"].ndim - 1
            used = isinstance(value, Tensor) or all(u.args[1] == 0 for u in user.users)
            return (True, "") if whole and used and user.all_input_nodes.count(node) == 1 else other
        if op in _ADDS or (op in _SCALED and user.args[0] is node and self._plain(user, axis)):
            behind = axis + value.ndim - node.meta["val"].ndim
            return self.fate((user, behind)) if value.shape[behind] == node.meta["val"].shape[axis] else other
        if op == "aten.cat.default":
            dim = (user.args[1] if len(user.args) > 1 else 0) % value.ndim
            return self.fate((user, axis)) if dim != axis else other
        index = along(node, axis)
        behind = moved(node, user, index) if index is not None else None
        if not isinstance(behind, Tensor):
            return other
        axes = [d for d in range(behind.ndim) if behind.shape[d] == node.meta["val"].shape[axis]
                and bool((behind == along(user, d)).all())]
        return self.fate((user, axes[0])) if axes else other

    def _plain(self, user: fx.Node, axis: int) -> bool:
        """Whether a factor is the same all along the axis."""
        by = user.args[1]
        if not isinstance(by, fx.Node):
            return True
        behind = axis - user.args[0].meta["val"].ndim + by.meta["val"].ndim
        return behind < 0 or by.meta["val"].shape[behind] == 1


def done(rewrite: Rewrite, state: dict[str, Tensor]) -> str:
    """Centres; always possible."""
    tensor = state[rewrite.entry]
    state[rewrite.entry] = tensor - tensor.mean(rewrite.axis, keepdim=True)
    return ""
