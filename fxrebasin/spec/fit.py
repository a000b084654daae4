"""Whether a state is one of a spec's model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from ..errors import StateError

if TYPE_CHECKING:
    from .value import Spec


def check(spec: Spec, state: Mapping[str, torch.Tensor], what: str) -> None:
    """Raises StateError unless `state` has exactly the tensors of the spec, of the right shapes, all finite."""
    _check_names(spec, state, what)
    for name, shape in spec.names.items():
        tensor = state[name]
        if not isinstance(tensor, torch.Tensor):
            raise StateError(f"{what}: {name!r} is a {type(tensor).__name__}, not a tensor: "
                             "give the model's state_dict()")
        if tuple(tensor.shape) != shape:
            raise StateError(f"{what}: {name!r} has shape {tuple(tensor.shape)}, the spec says {shape}: "
                             "is it a checkpoint of another size?")
        if not tensor.is_floating_point() and not tensor.is_complex():
            raise StateError(f"{what}: {name!r} is {tensor.dtype}, not a floating-point tensor: "
                             "dequantise it first")
        if tensor.device.type != "meta" and not _finite(tensor):
            raise StateError(f"{what}: {name!r} holds NaN or infinity: "
                             "the checkpoint is damaged or has diverged")


def _check_names(spec: Spec, state: Mapping[str, torch.Tensor], what: str) -> None:
    expected = set(spec.names)
    missing = sorted(expected - set(state))
    extra = sorted(set(state) - expected - set(spec.passed))
    for names, word, advice in (
            (missing, "lacks", "is it a checkpoint of this model?"),
            (extra, "has unexpected", "remove them, or infer the spec of the model they belong to")):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise StateError(f"{what} {word} {', '.join(map(repr, names[:3]))}{more}: {advice}")


def _finite(tensor: torch.Tensor) -> bool:
    """One pass without temporaries (another dtype would be one): the sum of finite numbers is finite, but for overflow,
    which is looked at closely."""
    return bool(torch.isfinite(tensor.detach().sum())) or bool(torch.isfinite(tensor).all())
