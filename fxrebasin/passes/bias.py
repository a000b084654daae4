"""Biases that attention does not need: scores do not change by what a key's bias adds to them all, and weights that
sum to one let a value's bias pass, so that it may stand behind the output map instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, fx

from ..capture import argument
from ..spec import Rewrite
from .graph import Maps
from .shift import shared, taken
from .trace import End, along, ends, line

ATTENTION = "aten.scaled_dot_product_attention.default"
Known = Callable[[fx.Node], Tensor | None]  # a node's numbers, if nothing can change them


def found(maps: Maps, known: Known) -> Iterator[Rewrite]:
    """The biases of all keys and values of a graph."""
    heads = [node for node in maps.program.module.graph.nodes if str(node.target) == ATTENTION]
    if not heads:
        return
    reached = [(each, list(ends(node, index))) for node, each in maps.by_node.items()
               if each.bias and (index := along(node, each.made)) is not None]
    for k, kind in ((1, "key bias"), (2, "value bias")):
        for name in dict.fromkeys(each.bias for each, _ in reached):
            behind = [end for each, found_ends in reached if each.bias == name for end in found_ends]
            own = [end for end in behind if end[0] in heads and end[0].args[k] is end[1]]
            nodes = {each.node for each, _ in reached if each.bias == name}
            if own:
                yield _bias(maps, known, kind, name, nodes, own, [e for e in behind if not any(e is o for o in own)])
        sources = {end[1] for _, found_ends in reached for end in found_ends if end[0] in heads}
        for node in heads:
            if node.args[k] not in sources and (rotated := _biased_before(maps, node.args[k])):
                yield Rewrite(kind, rotated[0], f"{rotated[1]} stands between it and the scores")


def _biased_before(maps: Maps, node: fx.Node) -> tuple[str, str] | None:
    """The bias of the map that a node is made from by ops of one input or several, and the last of these."""
    last, seen = node, 0
    while node not in maps.by_node and node.op == "call_function" and seen < 40:
        if len(node.all_input_nodes) > 1 or not node.all_input_nodes:
            last = node
        node, seen = next(iter(node.all_input_nodes), node), seen + 1
    each = maps.by_node.get(node)
    return (each.bias, maps.where(last)) if each is not None and each.bias else None


def _bias(maps: Maps, known: Known, kind: str, name: str, nodes: set[fx.Node], own: list[End], others: list[End]) -> Rewrite:
    if maps.uses[name] != nodes:
        return Rewrite(kind, name, "it is also read elsewhere")
    lines = [_heads(index) for _, _, index in own]
    if any(found is None for found in lines):
        return Rewrite(kind, name, "it is not the same for all tokens")
    places = sorted({p for found in lines for p in found.flatten().tolist()})
    meant = torch.zeros(maps.program.state[name], dtype=torch.bool)
    meant[places] = True
    if any(bool(meant[index].any()) for _, _, index in others if isinstance(index, Tensor)):
        return Rewrite(kind, name, "something else than attention reads it, too")
    if kind == "key bias":
        return Rewrite(kind, name, places=tuple(places))
    readers: dict[fx.Node, tuple] = {}
    for (node, _, _), found in zip(own, lines):
        reason = _passes(maps, known, node, found, readers)
        if reason:
            return Rewrite(kind, name, reason)
    if other := shared(maps, readers):
        return Rewrite(kind, name, f"{other!r} is also read elsewhere")
    return Rewrite(kind, name, places=tuple(places), readers=tuple(dict.fromkeys(readers.values())))


def _heads(index: Tensor) -> Tensor | None:
    """(heads, units) -> the element that stands there, if it is the same for all samples and tokens."""
    first = index[..., :1, :]
    first = first if first.ndim < 4 else first[:1]
    return first.reshape(-1, index.shape[-1]) if index.ndim in (3, 4) and bool((index == first).all()) else None


def _passes(maps: Maps, known: Known, node: fx.Node, places: Tensor, readers: dict) -> str:
    """Adds the maps behind an attention; or why a constant does not pass it, or pass on."""
    mask = argument(node, "attn_mask")
    if mask is not None and ((numbers := known(mask)) is None or not bool(_open(numbers).all())):
        return "a mask may leave a query nothing to look at"
    if argument(node, "dropout_p"):
        return "weights are dropped"
    shape = node.meta["val"].shape
    heads = shape[-3] if len(shape) > 3 else 1
    if heads % len(places):
        return "its heads cannot be told"
    places = places.repeat_interleave(heads // len(places), 0)
    code = (torch.arange(heads)[:, None, None] * shape[-1] + torch.arange(shape[-1])).expand(
        *shape[:-3], heads, *shape[-2:]) if len(shape) > 3 else torch.arange(shape[-1]).expand(shape)
    for user, given, index in ends(node, code):
        reader = maps.by_node.get(user)
        order = line(index, reader.along) if reader is not None else None
        if reader is None or order is None or reader.padded:
            return f"what attention makes is read by {maps.where(user)}"
        if not reader.bias:
            return f"{reader.weight!r} has no bias to take it up"
        readers[user] = reader.weight, reader.axis, reader.bias, tuple(places.flatten()[list(order)].tolist())
    return ""


def _open(mask: Tensor) -> Tensor:
    """For each query whether it sees a key."""
    return (mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min).any(-1)


def done(rewrite: Rewrite, state: dict[str, Tensor]) -> str:
    """Moves the bias where there are readers, and sets it to zero."""
    taken(rewrite, state)
    bias = state[rewrite.entry].clone()
    bias[list(rewrite.places)] = 0
    state[rewrite.entry] = bias
    return ""
