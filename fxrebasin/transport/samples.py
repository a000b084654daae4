"""Unlabelled inputs as samples: what is given, checked, split, and mixed with one another."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..capture.leaves import arguments
from ..errors import StateError

FEWEST = 4  # of these one is held back


@dataclass(frozen=True)
class Samples:
    """Inputs of a module; axis 0 of its tensors counts them. A tensor with another axis 0 is shared by
    all."""

    args: tuple
    kwargs: dict[str, Any]
    count: int

    def __len__(self) -> int:
        return self.count

    def map(self, function: Any) -> Samples:
        """Each counted tensor replaced, what is shared left; the count is that of the results."""
        counts = []

        def change(leaf: Any) -> Any:
            if not self.counts(leaf):
                return leaf
            counts.append(len(result := function(leaf)))
            return result

        args, kwargs = pytree.tree_map(change, (self.args, self.kwargs))
        return Samples(args, kwargs, counts[0])

    def counts(self, leaf: Any) -> bool:
        """Whether axis 0 of a leaf counts the samples."""
        return isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) == self.count

    def take(self, index: Tensor) -> Samples:
        return self.map(lambda tensor: tensor[index.to(tensor.device)])

    def tensors(self) -> list[Tensor]:
        """The counted tensors."""
        return [leaf for leaf in pytree.tree_leaves((self.args, self.kwargs)) if self.counts(leaf)]

    def to(self, device: torch.device, dtype: torch.dtype) -> Samples:
        """Everything on one device, whatever is floating-point in one dtype."""

        def move(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            return leaf.to(device, dtype if leaf.is_floating_point() else None)

        return Samples(*pytree.tree_map(move, (self.args, self.kwargs)), self.count)


def samples_of(inputs: Any, what: str) -> Samples:
    """Inputs as given (a tensor, a tuple of arguments, a dict of keyword arguments; or a list of such
    batches), as samples. Raises StateError where they cannot be: batches that do not fit together, too few,
    all alike."""
    batches = inputs if isinstance(inputs, list) else [inputs]
    if not batches:
        raise StateError(f"no {what}: give a batch of them")
    args, kwargs = _joined([arguments(batch) for batch in batches], what)
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.ndim]
    if not tensors:
        raise StateError(f"the {what} hold no tensor with an axis that counts them: give a batch")
    samples = Samples(args, kwargs, len(tensors[0]))
    if len(samples) < FEWEST:
        raise StateError(f"{len(samples)} {what} are too few: give at least {FEWEST}, 64 if you can")
    for tensor in samples.tensors():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise StateError(f"the {what} hold NaN or infinity: remove such inputs")
    if all(bool((tensor == tensor[:1]).all()) for tensor in samples.tensors()):
        raise StateError(f"the {len(samples)} {what} are all alike: give different ones")
    return samples


def _joined(batches: list[tuple[tuple, dict]], what: str) -> tuple[tuple, dict]:
    """One batch out of several."""
    if len(batches) == 1:
        return batches[0]
    trees = [pytree.tree_flatten(batch) for batch in batches]
    if any(tree[1] != trees[0][1] for tree in trees):
        raise StateError(f"the batches of {what} differ in structure: give all the same arguments")
    leaves = []
    for parts in zip(*(tree[0] for tree in trees)):
        if not isinstance(parts[0], Tensor) or parts[0].ndim == 0:
            leaves.append(parts[0])
            continue
        if any(part.shape[1:] != parts[0].shape[1:] for part in parts):
            raise StateError(
                f"the batches of {what} have shapes {tuple(parts[0].shape)} and "
                f"{next(tuple(p.shape) for p in parts if p.shape[1:] != parts[0].shape[1:])}: "
                "bring them to one size (pad them)"
            )
        leaves.append(torch.cat(parts))
    return pytree.tree_unflatten(leaves, trees[0][1])


def named(samples: Samples, module: nn.Module) -> Samples:
    """The same with all arguments by name, where the module's `forward` has a name for each."""
    try:
        bound = inspect.signature(module.forward).bind(*samples.args, **samples.kwargs)
    except (TypeError, ValueError):
        return samples
    kinds = {bound.signature.parameters[name].kind for name in bound.arguments}
    if not kinds <= {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}:
        return samples
    return Samples((), dict(bound.arguments), samples.count)


def padding(samples: Samples) -> Tensor | None:
    """(N, L), true where a sequence holds something: the argument `attention_mask`, if there is one."""
    mask = samples.kwargs.get("attention_mask") if isinstance(samples.kwargs, Mapping) else None
    return mask.bool() if samples.counts(mask) and mask.ndim == 2 else None


def mixed(samples: Samples, generator: torch.Generator) -> Samples:
    """Each sample mixed with another one: numbers on the straight line between them, indices from either.

    Source of the idea: "mixup: Beyond Empirical Risk Minimization", ICLR 2018. No labels are mixed here: the
    fine-tuned model says what it makes of the mixture. Sequences that lie beside each other (token ids and
    their mask) are mixed at the same places.
    """
    n = len(samples)
    share, other = torch.rand(n, generator=generator), torch.randperm(n, generator=generator)
    places: dict[int, Tensor] = {}

    def mix(tensor: Tensor) -> Tensor:
        own = share.to(tensor.device).view(-1, *[1] * (tensor.ndim - 1))
        another = tensor[other.to(tensor.device)]
        if tensor.is_floating_point():
            return torch.lerp(another, tensor, own.to(tensor.dtype))
        if tensor.ndim < 2:
            return tensor
        length = tensor.shape[1]
        if length not in places:
            places[length] = torch.rand((n, length), generator=generator) < share[:, None]
        taken = places[length].to(tensor.device).view(n, length, *[1] * (tensor.ndim - 2))
        return torch.where(taken, tensor, another)

    return samples.map(mix)
