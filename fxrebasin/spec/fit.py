"""Whether a state is one of a spec's model."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

import torch

from ..errors import StateError
from . import roles
from .dtypes import plain

if TYPE_CHECKING:
    from .fitting import Wanted
    from .value import Spec

State = Mapping[str, torch.Tensor]


def check(spec: Spec, state: State, what: str, *, shapes: bool = True, numbers: bool = True) -> None:
    """Raises StateError unless `state` has exactly the tensors of the spec, of the right shapes, and each holds what
    its role allows: parameters and statistics are finite, buffers may be infinite, and integers on which the analysis
    relied are the same.

    shapes, numbers  whether shapes other than the spec's, and numbers that are not finite, are refused
    """
    check_names(spec, state, what)
    for name, shape in spec.names.items():
        _check_kind(name, state[name], what)
        if shapes and tuple(state[name].shape) != shape:
            raise StateError(f"{what}: {name!r} has shape {tuple(state[name].shape)}, the spec says {shape}: "
                             "is it a checkpoint of another size?")
        if numbers and not finite(state[name]):
            _check_infinite(spec, name, state[name], what)
    for name, digest in spec.numbers.items():
        if name in state and digest_of(state[name]) not in (digest, ""):
            raise StateError(f"{what}: {name!r} ({spec.role(name)}) holds other numbers than the model had when its "
                             "symmetries were inferred, and they rest on these: load this state into the model, and "
                             "infer and match anew")


def check_together(spec: Spec, states: Mapping[str, State], *, shapes: bool = True) -> frozenset[str]:
    """Raises StateError unless some states (by what they are called) fit, each by itself, and what is infinite is so
    at the same places in all of them: as in a mask of minus infinity. Returns the names of such tensors."""
    for what, state in states.items():
        check(spec, state, what, shapes=shapes, numbers=False)
    odd = [name for name in spec.names if not all(finite(state[name]) for state in states.values())]
    for name in odd:
        if not _infinite_alike([state[name] for state in states.values()]):
            _refuse_infinite(spec, name, states)
    return frozenset(odd)


def _infinite_alike(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether some tensors are infinite at the same places, and numbers everywhere else."""
    if len({tensor.shape for tensor in tensors}) > 1 or any(bool(plain(t).isnan().any()) for t in tensors):
        return False
    signs = [infinities(tensor).cpu() for tensor in tensors]
    return all(torch.equal(sign, signs[0]) for sign in signs)


def _refuse_infinite(spec: Spec, name: str, states: Mapping[str, State]) -> NoReturn:
    odd = [what for what, state in states.items() if not finite(state[name])]
    for what in odd:
        _check_infinite(spec, name, states[what][name], what)
    what = odd[0]
    raise StateError(f"{what}: {name!r} ({spec.role(name)}) is infinite at other places than in "
                     f"{' and '.join(other for other in states if other != what)}: is one of them damaged, or of another "
                     "configuration?")


def infinities(tensor: torch.Tensor) -> torch.Tensor:
    """1 and -1 where a tensor is infinite, 0 elsewhere."""
    numbers = plain(tensor)
    return torch.isinf(numbers).to(torch.int8) if numbers.is_complex() else (
        torch.isposinf(numbers).to(torch.int8) - torch.isneginf(numbers).to(torch.int8))


def check_names(spec: Wanted, state: Collection[str], what: str) -> None:
    """Raises StateError unless a state has the entries of a model, and no other."""
    expected = set(spec.names)
    missing = sorted(expected - set(state))
    extra = sorted(set(state) - expected - set(spec.passed))
    for names, word, advice in (
            (missing, "lacks", "is it a checkpoint of this model?"),
            (extra, "has unexpected", "remove them, or infer the spec of the model they belong to")):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise StateError(f"{what} {word} {', '.join(map(repr, names[:3]))}{more}: {advice}")


def _check_kind(name: str, tensor: torch.Tensor, what: str) -> None:
    """Only dense tensors of floating-point or complex numbers can be moved and added to."""
    if not isinstance(tensor, torch.Tensor):
        raise StateError(f"{what}: {name!r} is a {type(tensor).__name__}, not a tensor: give the model's state_dict()")
    if tensor.is_quantized or not (tensor.is_floating_point() or tensor.is_complex()):
        raise StateError(f"{what}: {name!r} is {tensor.dtype}, not a floating-point tensor: dequantise it first")
    if tensor.layout is not torch.strided:
        raise StateError(f"{what}: {name!r} is sparse ({tensor.layout}): give it as .to_dense()")


def _check_infinite(spec: Spec, name: str, tensor: torch.Tensor, what: str) -> None:
    """Of what is not finite, a buffer alone may be, and not NaN."""
    if roles.kind(spec.role(name)) not in (roles.BUFFER, roles.DEVIATION) or bool(torch.isnan(plain(tensor)).any()):
        raise StateError(f"{what}: {name!r} holds NaN or infinity: the checkpoint is damaged or has diverged")


def finite(tensor: torch.Tensor) -> bool:
    """One pass without temporaries (another dtype would be one): the sum of finite numbers is finite, but for overflow,
    which is looked at closely."""
    if tensor.device.type == "meta":
        return True
    numbers = plain(tensor)
    return bool(torch.isfinite(numbers.sum())) or bool(torch.isfinite(numbers).all())


def digest_of(numbers: torch.Tensor | None) -> str:
    """A hash of numbers, whatever dtype holds them; "" where they are unknown."""
    if not isinstance(numbers, torch.Tensor) or numbers.device.type == "meta":
        return ""
    held = numbers.detach().cpu()
    whole = held.to(torch.int64) if not held.is_complex() else held
    if held.is_complex() or not torch.equal(whole.to(held.dtype), held):
        whole = held.to(torch.complex128 if held.is_complex() else torch.float64)
    held = whole.contiguous()
    return hashlib.sha256(repr(tuple(held.shape)).encode() + held.numpy().tobytes()).hexdigest()[:16]
