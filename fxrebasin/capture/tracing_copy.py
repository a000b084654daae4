"""A copy of a module that can be traced without consequences for the module, and the quiet around it."""
from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from ..errors import CaptureError


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No gradients, no warnings or logs of the tracer, no fused path (an opaque operation) in attention."""
    fast = torch.backends.mha.get_fastpath_enabled()
    level = logging.root.manager.disable
    torch.backends.mha.set_fastpath_enabled(False)
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        torch.backends.mha.set_fastpath_enabled(fast)


@contextlib.contextmanager
def tracing_copy_of(model: nn.Module, stand_ins: dict[int, Tensor]) -> Iterator[nn.Module]:
    """A copy of the module's objects in eval mode, so that nothing that forward does is seen outside.

    It shares parameters and buffers; tensors without data are replaced by stand-ins. Where copying fails, it
    is the module itself, put back afterwards.
    """
    shared = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    memo: dict[int, Any] = {id(tensor): tensor if id(tensor) in shared else tensor.detach().clone()
                            for tensor in held_by(model) if id(tensor) not in stand_ins} | stand_ins
    before = [(module, dict(vars(module)), dict(module._parameters), dict(module._buffers))
              for module in model.modules()]
    try:
        traced = copy.deepcopy(model, memo)
    except Exception:  # noqa: BLE001 - it holds a lock, an open file, a tensor in the middle of a computation
        traced = model
    try:
        traced.eval()
        if hasattr(traced, "set_experts_implementation"):  # transformers: batched products, no loop
            with contextlib.suppress(Exception):
                traced.set_experts_implementation("batched_mm")
        yield traced
    finally:
        for module, attributes, parameters, buffers in before if traced is model else ():
            vars(module).clear()
            vars(module).update(attributes)
            module._parameters.update(parameters)
            module._buffers.update(buffers)


def held_by(model: nn.Module) -> Iterator[Tensor]:
    """Every tensor that a module or one of its children holds as parameter, buffer or plain attribute."""
    for module in model.modules():
        for holder in (module._parameters, module._buffers, vars(module)):
            yield from (value for value in holder.values() if isinstance(value, Tensor))


def stand_ins_for(tensors: Iterable[Tensor]) -> dict[int, Tensor]:
    """Fake CPU tensors for those on the meta device, by id: unlike meta tensors, they mix with real ones."""
    mode = FakeTensorMode(allow_non_fake_inputs=True, export=True, shape_env=ShapeEnv(tracked_fakes=[]))
    found: dict[int, Tensor] = {}
    for tensor in tensors:
        if (tensor.is_meta or isinstance(tensor, FakeTensor)) and id(tensor) not in found:
            with mode:
                fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
                is_parameter = isinstance(tensor, nn.Parameter)
                found[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if is_parameter else fake
    return found


def check_initialised(model: nn.Module) -> None:
    """Raises CaptureError if a lazy module has never been run."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise CaptureError(f"{name} of {type(model).__name__} has no shape yet: run the lazy module once")
