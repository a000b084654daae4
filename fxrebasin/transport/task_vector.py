"""Carrying a fine-tuning over: target + alpha * pi(finetuned - base).

Source: "Update Your Transformer to the Latest Release: Re-Basin of Task Vectors", ICML 2025, equation 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..alignment import Alignment
from ..errors import FxrebasinError, StateError

State = Mapping[str, torch.Tensor]


def task_vector(base: State, finetuned: State) -> dict[str, torch.Tensor]:
    """What the fine-tuning changed: finetuned - base, floating-point tensors alone, in float32 at least."""
    result = {}
    for name, tensor in base.items():
        if name not in finetuned:
            raise StateError(f"the fine-tuned state lacks {name!r}: it is not a fine-tuning of this base")
        if finetuned[name].shape != tensor.shape:
            raise StateError(f"{name!r} has shape {tuple(finetuned[name].shape)} in the fine-tuned state and "
                             f"{tuple(tensor.shape)} in its base: it is not a fine-tuning of this base")
        if tensor.is_floating_point():
            wide = torch.promote_types(torch.promote_types(tensor.dtype, finetuned[name].dtype), torch.float32)
            result[name] = finetuned[name].detach().to(tensor.device, wide) - tensor.detach().to(wide)
    return result


def transport(base: State, finetuned: State, target: State, alignment: Alignment, alpha: float = 1.0, *,
              model: nn.Module | None = None, inputs: Any = None, keep: Any = None) -> dict[str, torch.Tensor]:
    """A new state: target + alpha * pi(finetuned - base), for the alignment pi of base onto target.

    base, finetuned, target  states of one architecture
    alpha                    how much of the task vector is added; 1 is all of it, 0 gives the target back
    model, inputs, keep      with unlabelled inputs of the task the result is fitted to them, as `calibrate` says; `keep`
                             are inputs on which the target is to stay as it is

    Keys, dtypes and devices are the target's; entries that are not floating-point (counters) are taken from it. The sum
    is formed in float32 at least. Tensors that the target ties stay tied. Raises StateError if a state does not fit.
    """
    if inputs is not None:
        return _calibrated(base, finetuned, target, alignment, alpha, model, inputs, keep)
    if keep is not None:
        raise FxrebasinError("inputs to keep say nothing without inputs of the task: give inputs as well")
    spec = alignment.spec
    for state, what in ((base, "the base"), (finetuned, "the fine-tuned state"), (target, "the target")):
        spec.check(state, what)
    if not torch.isfinite(torch.tensor(float(alpha))):
        raise StateError(f"alpha is {alpha}: give a finite number")
    carried = alignment.apply(task_vector({name: base[name] for name in spec.names}, finetuned))
    done: dict[tuple, torch.Tensor] = {}
    result = {}
    for name, tensor in target.items():
        same = spec.ties.get(name, name), tensor.data_ptr()
        if same not in done:
            if name in carried:
                wide = torch.promote_types(tensor.dtype, carried[name].dtype)
                moved = tensor.detach().to(wide) + alpha * carried[name].to(tensor.device, wide)
                done[same] = moved.to(tensor.dtype)
            else:
                done[same] = tensor.detach().clone()
        result[name] = done[same]
    return result


def _calibrated(base: State, finetuned: State, target: State, alignment: Alignment, alpha: float,
                model: nn.Module | None, inputs: Any, keep: Any) -> dict[str, torch.Tensor]:
    from .calibrate import calibrate

    if model is None:
        raise FxrebasinError("fitting to inputs needs the module (`model=`)")
    if alpha != 1:
        raise FxrebasinError(f"alpha is {alpha}, but with inputs it is fitted: leave it out")
    return calibrate(model, base, finetuned, target, alignment, inputs, keep).state
