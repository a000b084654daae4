"""Whether what is inferred of a case of an operator holds: random elements of the spec, on other inputs and batch sizes."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from fuzz_checks import traced
from operator_cases import Case, Unusable
from torch import Tensor, nn

import fxrebasin as fxr

SOUND = 1e-9  # relative change of an output in float64 that counts as none
COARSE = 1e-6  # the same behind a cast to float32; half precision is left to what rounding does to it
ELEMENTS = 3
SHAKES = 12  # the sign of a singular determinant changes at every other one


@dataclass
class Outcome:
    """kind: "sound", "refused" (by the library, with a reason), "unsound", "unmeasured" (the numbers show nothing), or
    "unusable" (torch itself refuses). order: of the spec."""

    kind: str
    detail: str = ""
    order: int = 1


def run(module: nn.Module, state: Mapping[str, Tensor], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The outputs with another state; random draws are always the same."""
    torch.manual_seed(0)
    with torch.no_grad():
        held = {name: x.clone() for name, x in state.items()}  # some ops write to it
        return torch.func.functional_call(module, held, tuple(x.clone() for x in inputs))


def change(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """The largest change of an output, relative to its largest finite number; infinities and NaN must stay in place."""
    return max((_change(a, b) for a, b in zip(before, after)), default=0.0)


def _change(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape:
        return math.inf
    if not a.is_floating_point() and not a.is_complex():
        return 0.0 if torch.equal(a, b) else math.inf
    finite = a.isfinite()
    if not torch.equal(finite, b.isfinite()):
        return math.inf
    odd = (a == b) | (a.isnan() & b.isnan())
    if not bool((odd | finite).all()):
        return math.inf
    if not finite.any():
        return 0.0
    gap, scale = float((a - b)[finite].abs().max()), float(a[finite].abs().max())
    return gap / scale if scale else 0.0 if gap == 0 else math.inf


def noise(module: nn.Module, state: Mapping[str, Tensor], inputs: Sequence[Tensor], before) -> float:
    """How far rounding alone moves the outputs."""
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for _ in range(SHAKES):
        noisy = {name: x * (1 + 1e-15 * torch.randn(x.shape, dtype=torch.double, generator=generator)) for name, x in state.items()}
        worst = max(worst, _error(module, noisy, inputs, before))
    return worst


def examine(case: Case) -> Outcome:
    """Infers the spec of a case, and tries elements of it."""
    try:
        module, inputs = case.module().eval(), case.inputs()
        run(module, module.state_dict(), inputs)
        if not all(bool(x.isfinite().all()) for x in module.state_dict().values()):
            raise Unusable("parameters that are not finite")
    except Unusable as error:
        return Outcome("unusable", str(error))
    except Exception as error:  # noqa: BLE001  whatever torch raises of arguments that it does not take
        return Outcome("unusable", f"{type(error).__name__}: {error}"[:200])
    captured = "embedding" in case.op or (  # rows are made shorter in place, which tracing does not see; and some in any case
        zlib.crc32(case.op.encode()) % 10 == 0 and case.wrap == "linear" and not case.variant)
    return examined(module, inputs, [lambda: case.inputs(1), lambda: case.inputs(2, longer=1)], not captured)


def examined(module: nn.Module, inputs, others: Sequence[Callable[[], Sequence[Tensor]]] = (), traceable: bool = True) -> Outcome:
    """The same for any module: on its own inputs, and on what `others` make, where that runs."""
    try:
        spec = inferred(module, inputs, traceable)
    except fxr.FxrebasinError as error:
        return Outcome("refused", str(error)[:200])
    return _tried(module, spec, [lambda: inputs, *others]) if spec.groups else Outcome("sound")


def inferred(module: nn.Module, inputs, traceable: bool = True) -> fxr.Spec:
    """The claim of the rules alone, before anything is tried. Plain tracing is ten times faster than the capture and makes
    the same graph, unless something is written in place or looked at on the way: such modules are captured."""
    program = _program(module, inputs) if traceable else None
    return fxr.infer(fxr.capture(module, inputs) if program is None else program, falsify=False)


def _program(module: nn.Module, inputs):
    other = {name: 1.7 * x for name, x in module.state_dict().items()}  # a write that tracing does not see shows in numbers
    try:
        program = traced(module, inputs)
        torch.manual_seed(0)
        with torch.no_grad():
            again = program.module(*other.values(), *inputs)
    except Exception:  # noqa: BLE001  whatever tracing cannot do or run again, the capture may, or refuses with a reason
        return None
    if change(run(module, other, inputs), again) > SOUND:
        return None
    schemas = [getattr(node.target, "_schema", None) for node in program.module.graph.nodes if node.op == "call_function"]
    return None if any(schema is not None and schema.is_mutable for schema in schemas) else program


def _tried(module: nn.Module, spec: fxr.Spec, ways: Sequence[Callable[[], Sequence[Tensor]]]) -> Outcome:
    """On the example's own numbers, on others, and on more samples."""
    state, measured = module.state_dict(), False
    for seed, way in enumerate(ways):
        try:
            inputs = way()
            before = run(module, state, inputs)
        except Exception:  # noqa: BLE001, S112  another batch does not fit, or these numbers do not
            continue
        if not any(bool(x.isfinite().any()) if x.is_floating_point() or x.is_complex() else True for x in before):
            continue
        measured = True
        for element in range(ELEMENTS):
            alignment = spec.random(element)
            sound = COARSE if getattr(module, "casts", False) else SOUND
            gap = _error(module, alignment.apply(state), inputs, before)
            shaken = noise(module, state, inputs, before) if gap > sound else 0.0
            if shaken > 1e-3:  # a singular matrix: nothing but rounding
                return Outcome("unmeasured", order=spec.order)
            if gap > max(sound, 100 * shaken):
                return Outcome("unsound", f"{gap:.1e} on {'other' if seed else 'the example'} inputs: "
                               f"{_guilty(module, spec, alignment, inputs, before)}", spec.order)
    return Outcome("sound" if measured else "unmeasured", order=spec.order)


def _error(module, state, inputs, before) -> float:
    try:
        return change(before, run(module, state, inputs))
    except Exception:  # noqa: BLE001  what ran before does not run now
        return math.inf


def _guilty(module, spec: fxr.Spec, alignment: fxr.Alignment, inputs, before) -> str:
    """The groups that break the function by themselves."""
    still = spec.identity().permutations
    alone = {name: fxr.Alignment(spec, {**still, name: alignment.permutations[name]}) for name in spec.groups}
    state = module.state_dict()
    guilty = [name for name, one in alone.items() if _error(module, one.apply(state), inputs, before) > SOUND]
    return "; ".join(f"{name} size {spec.groups[name].size} copies {spec.groups[name].copies}" for name in guilty) or "together"
