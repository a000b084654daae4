"""A copy of a module that can be traced without consequences for the module, and the quiet around it."""
from __future__ import annotations

import contextlib
import copy
import functools
import logging
import types
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from ..errors import CaptureError

MOST_PARTS = 1_000_000  # objects of a module that are looked at


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
def tracing_copy_of(model: nn.Module, stand_ins: Mapping[int, Tensor],
                    share: bool = True) -> Iterator[nn.Module]:
    """A copy of the module's objects in eval mode, so that nothing that forward does is seen outside.

    It shares parameters, buffers and whatever lies in their memory, or with `share=False` has copies of
    them that lie in each other's memory likewise; tensors without data are replaced by stand-ins. Where
    copying fails, it is the module itself, put back afterwards.
    """
    before = [(module, dict(vars(module)), dict(module._parameters), dict(module._buffers))
              for module in model.modules()]
    try:
        traced = copy.deepcopy(model, _memo(model, stand_ins, share))
    except Exception:  # noqa: BLE001 - it holds a lock, an open file, a tensor in the middle of a computation
        traced = model
    try:
        traced.eval()
        set_experts = getattr(traced, "set_experts_implementation", None)
        if callable(set_experts):  # transformers: batched products, no loop
            with contextlib.suppress(Exception):
                set_experts("batched_mm")
        yield traced
    finally:
        for module, attributes, parameters, buffers in before if traced is model else ():
            vars(module).clear()
            vars(module).update(attributes)
            module._parameters.update(parameters)
            module._buffers.update(buffers)


def _memo(model: nn.Module, stand_ins: Mapping[int, Tensor], share: bool) -> dict[Any, Any]:
    """What a deep copy takes for copied already. Tensors are copied storage by storage."""
    memo: dict[Any, Any] = {"torch": {}, **stand_ins}
    state = [tensor for tensor in (*model.parameters(), *model.buffers()) if id(tensor) not in memo]
    for tensor in state:
        with contextlib.suppress(RuntimeError, NotImplementedError):  # it has no memory of its own
            storage = tensor.untyped_storage()
            memo["torch"].setdefault(storage._cdata, storage if share else storage.clone())
        if share:
            memo[id(tensor)] = tensor
        elif type(tensor) is nn.Parameter:  # whose own way of copying does not go by storages
            memo[id(tensor)] = nn.Parameter(copy.deepcopy(tensor.detach(), memo), tensor.requires_grad)
    for part in _parts_of(model):
        if isinstance(part, np.ndarray):
            memo[id(part)] = part if share else _copied_array(part, state, memo)
        elif isinstance(part, Tensor) and part.grad_fn is not None and id(part) not in memo:
            memo[id(part)] = copy.deepcopy(part.detach(), memo)
        elif isinstance(part, types.FunctionType) and not share:
            memo[id(part)] = _copied_function(part, memo)
    return memo


def _copied_function(function: types.FunctionType, memo: dict[Any, Any]) -> types.FunctionType:
    """A function over copies of the tensors that it closes over."""
    def copied(value: Any) -> Any:
        return copy.deepcopy(value, memo) if isinstance(value, Tensor) else value
    cells = tuple(types.CellType(copied(cell.cell_contents)) for cell in function.__closure__ or ())
    result = types.FunctionType(function.__code__, function.__globals__, function.__name__,
                                function.__defaults__, cells)
    result.__kwdefaults__ = function.__kwdefaults__
    return result


def _copied_array(array: np.ndarray, state: Iterable[Tensor], memo: dict[Any, Any]) -> np.ndarray:
    """A copy of an array; of one in the memory of a tensor, the array in the memory of that tensor's copy."""
    start = array.__array_interface__["data"][0]
    for tensor in state:
        storage = tensor.untyped_storage()
        offset = start - storage.data_ptr()
        if array.size and 0 <= offset < storage.nbytes():
            memory = torch.empty(0, dtype=torch.uint8).set_(memo["torch"][storage._cdata]).numpy()
            return np.ndarray(array.shape, array.dtype, memory, offset, array.strides)
    return array.copy()


def held_by(model: nn.Module) -> Iterator[Tensor]:
    """Every tensor that a module holds as parameter, buffer or attribute, in plain containers too."""
    return (part for part in _parts_of(model) if isinstance(part, Tensor))


def _parts_of(model: nn.Module) -> Iterator[Any]:
    """All objects that a module is made of, as far as they are reached through modules and plain
    containers."""
    seen: set[int] = set()
    left: list[Any] = [model]
    while left and len(seen) < MOST_PARTS:
        part = left.pop()
        if id(part) in seen or isinstance(part, (str, bytes, int, float, type, types.ModuleType)):
            continue
        if isinstance(part, types.FunctionType) and not _closes_over_tensors(part):
            continue
        seen.add(id(part))
        yield part
        if isinstance(part, Mapping):
            left.extend(part.values())
        elif isinstance(part, (list, tuple, set, frozenset, deque)):
            left.extend(part)
        elif isinstance(part, functools.partial):
            left.extend((part.func, part.args, part.keywords))
        elif not isinstance(part, (Tensor, np.ndarray)):
            left.append(getattr(part, "__dict__", ()))


def _closes_over_tensors(function: types.FunctionType) -> bool:
    try:
        return any(isinstance(cell.cell_contents, Tensor) for cell in function.__closure__ or ())
    except ValueError:  # a cell that is not filled yet
        return False


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
    """Raises CaptureError if a lazy module has never been run, or a module holds quantised numbers."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise CaptureError(f"{name} of {type(model).__name__} has no shape yet: run the lazy module once")
        if tensor.is_quantized:
            raise CaptureError(_QUANTISED.format(name, type(model).__name__))
    for name, module in model.named_modules():
        if hasattr(module, "_packed_params") and not isinstance(module._packed_params, Tensor):
            raise CaptureError(_QUANTISED.format(name, type(model).__name__))


_QUANTISED = ("{} of {} is quantised, and whole numbers in packed tensors cannot be permuted: give the module as it was "
              "before it was quantised")
