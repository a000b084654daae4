"""Carrying a fine-tuning over: target + alpha * pi(finetuned - base).

Source: "Update Your Transformer to the Latest Release: Re-Basin of Task Vectors", ICML 2025, equation 3.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..alignment import Alignment
from ..errors import FxrebasinError, StateError
from ..spec import Spec
from ..spec.dtypes import leaves_range, stored_as, wide, wider
from ..spec.fit import finite, infinities
from ..spec.fitting import fitted, undone
from ..spec.roles import BUFFER, DEVIATION, PARAMETER, kind, note_outside
from ..spec.stacks import tied
from ..statistics import WAYS, arrived, changes, statistics_of
from .mismatched import carried_whole, mismatched_names, resized_names
from .pair import TransportNote, check_pair

State = Mapping[str, torch.Tensor]
_UNSATURATED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # what is too large becomes infinite


def task_vector(base: State, finetuned: State) -> dict[str, torch.Tensor]:
    """What the fine-tuning changed: finetuned - base, in float32 at least, for tensors of floating-point and complex
    numbers alone. What is infinite in both has not changed."""
    result = {}
    for name, tensor in base.items():
        if name not in finetuned:
            raise StateError(f"the fine-tuned state lacks {name!r}: it is not a fine-tuning of this base")
        if finetuned[name].shape != tensor.shape:
            raise StateError(f"{name!r} has shape {tuple(finetuned[name].shape)} in the fine-tuned state and "
                             f"{tuple(tensor.shape)} in its base: it is not a fine-tuning of this base")
        if tensor.is_floating_point() or tensor.is_complex():
            result[name] = difference(tensor, finetuned[name])
    return result


def difference(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """new - old, in float32 at least, and 0 where both are the same infinity."""
    kind = wide(old.dtype, new.dtype)
    old, new = old.detach().to(kind), new.detach().to(old.device, kind)
    found = new - old
    return found if finite(found) else torch.where(new == old, torch.zeros_like(found), found)


def transport(base: State, finetuned: State, target: State, alignment: Alignment, alpha: float | str = 1.0, *,
              statistics: str = "ratio", dtype: torch.dtype | None = None, model: nn.Module | None = None,
              inputs: Any = None, keep: Any = None, mismatched: str = "error",
              force: bool = False) -> dict[str, torch.Tensor]:
    """A new state: target + alpha * pi(finetuned - base), for the alignment pi of base onto target.

    base, finetuned, target  states of one architecture
    alpha       how much of the task vector is added; 1 is all of it, 0 gives the target back; "auto": as much as
                agrees best with the fine-tuned model on `inputs` (see `choose_alpha`)
    statistics  "ratio": running variances are multiplied by what the fine-tuning multiplied them by, and running means
                shifted by as many deviations; "target": those of the target stay
    dtype       of the floating-point tensors that come out; by default each has the target's
    model, inputs, keep  with unlabelled inputs of the task the result is fitted to them, as `calibrate` says; `keep`
                are inputs on which the target is to stay as it is
    mismatched  what to do about tensors whose shape the fine-tuning changed. "error": refuse them; "finetuned": carry
                what is new whole (see `mismatched`); "target": keep the target's
    force       carry although the alignment was matched from another base

    States whose names are not quite the model's are fitted (see `spec.fitting`), with a warning.
    Keys and devices are the target's; integers, fixed buffers and extra state are taken from it. The sum is formed in
    float32 at least. Tensors that the target ties stay tied, unless the fine-tuning broke the tie: then each is carried
    by itself, with a warning. Raises StateError if a state does not fit, or a sum leaves the range of its dtype.
    """
    if inputs is not None or alpha == "auto":
        if statistics != "ratio" or dtype is not None:
            raise FxrebasinError("with inputs, statistics and dtypes are the target's or carried as by default: leave "
                                 "statistics and dtype out")
        return _calibrated(base, finetuned, target, alignment, alpha, model, inputs, keep)
    if keep is not None:
        raise FxrebasinError("inputs to keep say nothing without inputs of the task: give inputs as well")
    spec = alignment.spec
    if statistics not in WAYS:
        raise FxrebasinError(f"statistics must be one of {', '.join(map(repr, WAYS))}, not {statistics!r}")
    given = target
    base, finetuned = fitted(spec, base, "the base")[0], fitted(spec, finetuned, "the fine-tuned state")[0]
    target, fit = fitted(spec, target, "the target")
    odd = mismatched_names(spec, base, finetuned, mismatched)
    new = {name: finetuned[name] for name in odd}
    resized = resized_names(base, new, odd)
    finetuned = {**finetuned, **{name: base[name] for name in odd}} if odd else finetuned
    spec.check_together({"the base": base, "the fine-tuned state": finetuned, "the target": target})
    if isinstance(alpha, str) or not torch.isfinite(torch.tensor(float(alpha))):
        raise StateError(f"alpha is {alpha}: give a finite number" + ', or "auto"' * isinstance(alpha, str))
    note_outside(spec, "transport")
    check_pair(alignment, base, finetuned, target, force=force)
    vector = task_vector({name: base[name] for name in spec.names}, finetuned)
    carried = alignment.carry(vector | changes(spec, base, finetuned))
    told = arrived(spec, target, carried, alpha) if statistics == "ratio" else dict.fromkeys(statistics_of(spec))
    untied = _untied(spec, base, {**finetuned, **new})
    result: dict[str, torch.Tensor] = {}
    done: dict[tuple, torch.Tensor] = {}
    for name, tensor in target.items():
        if not isinstance(tensor, torch.Tensor):  # extra state
            result[name] = copy.deepcopy(tensor)
            continue
        same = name if name in untied else spec.ties.get(name, name), tensor.data_ptr()
        if same not in done:
            if name in new:
                total = None if mismatched == "target" else carried_whole(
                    alignment, name, base[name], new[name], tensor, alpha, name in resized)
            elif name in told:
                total = told[name]
            elif name in carried:
                total = _sum(tensor, carried[name], alpha)
            else:
                total = _in_place(spec, name, base, finetuned, tensor, alpha)
            stays = total is None and stored_as(tensor.dtype, dtype) == tensor.dtype
            done[same] = tensor.detach().clone() if stays else narrowed(
                name, tensor.detach() if total is None else total, tensor, dtype)
        result[name] = done[same]
    return result if fit is None else undone(fit, result, given)


def _calibrated(base: State, finetuned: State, target: State, alignment: Alignment, alpha: float | str,
                model: nn.Module | None, inputs: Any, keep: Any) -> dict[str, torch.Tensor]:
    """What inputs decide: alpha alone, or all that is fitted."""
    from .alpha import choose_alpha
    from .calibrate import calibrate

    if model is None or inputs is None:
        raise FxrebasinError("fitting to inputs needs the module and inputs (`model=`, `inputs=`)")
    if alpha == "auto":
        if keep is not None:
            raise FxrebasinError('alpha="auto" has no use for inputs to keep: leave alpha out to fit to both')
        chosen = choose_alpha(model, base, finetuned, target, alignment, inputs)
        return transport(base, finetuned, target, alignment, chosen.value)
    if alpha != 1:
        raise FxrebasinError(f"alpha is {alpha}, but with inputs it is fitted: leave it out")
    return calibrate(model, base, finetuned, target, alignment, inputs, keep).state


def _sum(tensor: torch.Tensor, tau: torch.Tensor, alpha: float) -> torch.Tensor:
    kind = torch.promote_types(wide(tensor.dtype), tau.dtype)
    return tensor.detach().to(kind) + alpha * tau.to(tensor.device, kind)


def _in_place(spec: Spec, name: str, base: State, finetuned: State, tensor: torch.Tensor,
              alpha: float) -> torch.Tensor | None:
    """The sum for a tensor that the spec leaves as it is (it overlaps another in memory), None for what is not to be
    added to: counters, masks, extra state, entries that the model does not have."""
    known = name in spec.passed and kind(spec.roles.get(name, "")) in (PARAMETER, BUFFER, DEVIATION)
    if not known or name not in base or name not in finetuned:
        return None
    return _sum(tensor, task_vector({name: base[name]}, finetuned)[name], alpha)


def narrowed(name: str, total: torch.Tensor, like: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """A sum in the dtype asked for, or that of `like`. Raises StateError if it leaves the range."""
    to = stored_as(like.dtype, dtype)
    to = to.to_complex() if total.is_complex() else to
    if to in _UNSATURATED and finite(result := total.to(to)):
        return result
    overflow = leaves_range(total, to) or total.shape == like.shape and bool(
        (infinities(total) != infinities(like)).any())
    if total.device.type != "meta" and overflow:
        other = wider(to)
        raise StateError(f"{name!r}: the sum leaves the range of {to}: give dtype=torch.{other} (--dtype {other}), or a "
                         "smaller alpha")
    return total.to(to)


def _untied(spec: Spec, base: State, finetuned: State) -> set[str]:
    """Names that the model ties, and the fine-tuning changed apart."""
    found = {alias for alias, name in spec.ties.items() if alias in base and name in base
             and not (tied(base[alias], base[name]) and tied(finetuned[alias], finetuned[name]))}
    if found:
        pairs = ", ".join(f"{alias!r} is tied to {spec.ties[alias]!r}" for alias in sorted(found)[:3])
        warnings.warn(f"{pairs} in the model, but not in the states given: each is carried by itself; load the result "
                      "into a module that does not tie them (transformers: tie_word_embeddings=False)", TransportNote,
                      stacklevel=3)
    return found
