"""What must hold of every network, and how a network for which it does not is made smaller."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from unittest import mock

import torch
from random_networks import Network, Step, disguised, pruned
from torch import Tensor
from torch.fx.experimental import proxy_tensor

import fxrebasin as fxr
from fxrebasin.capture import Output, Program, Source

SOUND = 1e-9  # relative error of an output in float64
RECOVERED = 1e-9  # how far the objective may be from 1 for a planted permutation


@dataclass
class Examined:
    """What was measured on one network."""

    order: int = 1
    groups: int = 0
    error: float = 0.0  # the largest relative change of an output under a random element of the spec
    skipped: str = ""  # why the function says nothing about soundness
    failures: dict[str, str] = field(default_factory=dict)  # property -> what is wrong
    misfits: dict[str, str] = field(default_factory=dict)  # op without a rule, or with one that did not fit
    spec: fxr.Spec | None = None
    program: Program | None = None


def traced(network: Network, inputs: tuple[Tensor, ...]) -> Program:
    """A Program as `fxr.capture` would make it, ten times faster: these networks write to nothing in place, and do
    not branch, so that tracing alone gives a functional graph."""
    state = dict(network.state_dict(keep_vars=True))

    def run(*tensors):
        return torch.func.functional_call(network, dict(zip(state, tensors)), tensors[len(state):])

    real = mock.patch.object(proxy_tensor, "extract_val", lambda value, **_: value)  # fakes take longest
    with torch.no_grad(), real:
        module = proxy_tensor.make_fx(run, decomposition_table={}, pre_dispatch=True)(
            *(tensor.detach() for tensor in state.values()), *inputs)
    module.graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))  # results that nobody takes
    nodes = list(module.graph.nodes)
    places = [node for node in nodes if node.op == "placeholder"]
    sources = {node.name: Source("state", name) for node, name in zip(places, state)}
    sources |= {node.name: Source("input", f"x{k}") for k, node in enumerate(places[len(state):])}
    for node in nodes:
        if node.op == "get_attr":
            value = getattr(module, node.target)
            node.meta["val"] = value
            sources[node.name] = Source("constant", node.target, value)
    outputs = tuple(Output(str(k), node) for k, node in enumerate(nodes[-1].args[0]))
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    return Program(module, sources, outputs, shapes, {}, (), "given")


def run(network: Network, state: Mapping[str, Tensor], inputs) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return torch.func.functional_call(network, dict(state), inputs)


def change(before, after) -> float:
    """The largest relative change of an output."""
    worst = 0.0
    for a, b in zip(before, after):
        gap, scale = float((a - b).abs().max()), float(a.abs().max())
        worst = max(worst, gap / scale if math.isfinite(gap) and scale > 0 else 0.0 if gap == 0 else math.inf)
    return worst


def unfit(network: Network, inputs, before) -> str:
    """Why the network's numbers cannot show whether a permutation is sound; "" if they can."""
    if not all(bool(torch.isfinite(output).all()) for output in before):
        return "not finite"
    if any(float(output.abs().max()) < 1e-6 for output in before):
        return "output is zero"
    if any(float(output.abs().max()) > 1e9 for output in before):
        return "output is huge"
    other = Network(network.steps, network.outputs, network.seed + 1)
    if change(before, run(other, other.state_dict(), inputs)) < 1e-6:
        return "does not depend on the state"
    return ""


def shaky(network: Network, state, inputs, before) -> bool:
    """Whether rounding alone moves the outputs: then an error is no evidence."""
    generator = torch.Generator().manual_seed(0)
    noisy = {name: tensor * (1 + 1e-14 * torch.randn(tensor.shape, dtype=tensor.dtype, generator=generator))
             for name, tensor in state.items()}
    return change(before, run(network, noisy, inputs)) > SOUND / 100


def sizes(spec: fxr.Spec) -> Counter:
    """How many independent permutations of each size there are."""
    copies = Counter()
    for group in spec.groups.values():
        copies[group.size] += group.copies
    return copies


def examine(network: Network, capture: Callable[..., Program] = traced,
            only: Iterable[str] | None = None) -> Examined:
    """Checks properties of one network: all, or `only` some, "inference" among them."""
    found = Examined()
    for name, check in PROPERTIES.items():
        if only is not None and name not in only:
            continue
        try:
            check(network, capture, found)
        except Exception as error:  # noqa: BLE001  whatever it is, it should not have been raised
            found.failures[name] = f"raises {type(error).__name__}: {str(error)[:300]}"
        if name in found.failures and name == "inference":
            break
    return found


def _inference(network: Network, capture, found: Examined) -> None:
    program = capture(network, network.inputs())
    spec = found.spec = fxr.infer(program, falsify=False)
    found.program = program
    found.order, found.groups = spec.order, len(spec.groups)
    for reason in set(spec.reasons.values()):
        if "has no rule" in reason or "does not fit these" in reason:
            found.misfits[reason.split(" (")[0]] = reason


def _soundness(network: Network, capture, found: Examined) -> None:
    inputs, state, spec = network.inputs(), network.state_dict(), found.spec
    before = run(network, state, inputs)
    found.skipped = unfit(network, inputs, before)
    if found.skipped or not spec.groups:
        return
    chosen = spec.random(1)
    still = spec.identity().permutations
    alone = {name: fxr.Alignment(spec, {**still, name: chosen.permutations[name]}) for name in spec.groups}
    for name, alignment in {"all groups": chosen, "others": spec.random(2), **alone}.items():
        error = change(before, run(network, alignment.apply(state), inputs))
        if error > SOUND and shaky(network, state, inputs, before):
            found.skipped = "rounding is amplified"
            return
        found.error = max(found.error, error)
        if error > SOUND and "soundness" not in found.failures:
            group = spec.groups.get(name)
            found.failures["soundness"] = f"{name} changes an output by {error:.1e}: {group}"
        elif error > SOUND and name in spec.groups:
            found.failures["soundness"] += f"; {spec.groups[name]}"


def _free_outputs(network: Network, capture, found: Examined) -> None:
    if found.skipped:
        return
    inputs, state = network.inputs(), network.state_dict()
    spec = fxr.infer(found.program, outputs="free", falsify=False)
    alignment = spec.random(3)
    outputs = enumerate(run(network, state, inputs))
    before = tuple(alignment.apply_to_output(str(k), output) for k, output in outputs)
    error = change(before, run(network, alignment.apply(state), inputs))
    if error > SOUND and not shaky(network, state, inputs, before):
        found.failures["free outputs"] = f"outputs do not move as the spec says: {error:.1e}"


def _recovery(network: Network, capture, found: Examined) -> None:
    state, spec = network.state_dict(), found.spec
    if not spec.groups:
        return
    target = spec.random(4).apply(state)
    answer = fxr.match(spec, state, target)
    moved = answer.apply(state)
    if not answer.objective > 1 - RECOVERED:
        found.failures["recovery"] = f"objective {answer.objective:.9f} for a planted permutation"
    elif any(not torch.equal(moved[name], target[name]) for name in state):
        found.failures["recovery"] = f"objective {answer.objective:.12f}, but the state is another one"


def _invariance(network: Network, capture, found: Examined) -> None:
    other = disguised(network)
    for batch in (3, 2):
        spec = fxr.infer(capture(other, other.inputs(batch)), falsify=False)
        if sizes(spec) == sizes(found.spec):
            if "invariance" in found.failures:
                found.failures["invariance"] += "; with batch 2 as well as here"
            return
        gained, lost = sizes(spec) - sizes(found.spec), sizes(found.spec) - sizes(spec)
        found.failures["invariance"] = (f"{dict(lost)} (copies of each size) become {dict(gained)} when the network is "
                                        "reordered and renamed" + " and the batch is 3" * (batch == 3))


def _round_trip(network: Network, capture, found: Examined) -> None:
    spec = found.spec
    back = fxr.Spec.from_json(spec.to_json())
    if back != spec or back.order != spec.order:
        found.failures["round trip"] = "another spec comes back"
        return
    state = network.state_dict()
    moved = [fxr.Alignment(s, spec.random(5).permutations).apply(state) for s in (spec, back)]
    if any(not torch.equal(moved[0][name], moved[1][name]) for name in state):
        found.failures["round trip"] = "the spec that comes back acts in another way"


def _algebra(network: Network, capture, found: Examined) -> None:
    state, spec = network.state_dict(), found.spec
    a, b = spec.random(6), spec.random(7)
    pairs = {"inverse": (a.inverse().apply(a.apply(state)), state),
             "composition": ((a @ b).apply(state), a.apply(b.apply(state))),
             "identity": (spec.identity().apply(state), state)}
    for word, (one, two) in pairs.items():
        if any(not torch.equal(one[name], two[name]) for name in state):
            found.failures["algebra"] = f"{word} is wrong"
    if a @ a.inverse() != spec.identity():
        found.failures["algebra"] = "a @ a.inverse() is not the identity"


PROPERTIES: dict[str, Callable[[Network, Callable, Examined], None]] = {
    "inference": _inference, "soundness": _soundness, "free outputs": _free_outputs, "recovery": _recovery,
    "invariance": _invariance, "round trip": _round_trip, "algebra": _algebra,
}


# ------------------------------------------------------------------------------------------- smaller networks


def shrunk(network: Network, fails: Callable[[Network], bool], tries: int = 400) -> Network:
    """A smaller network that fails too: steps are skipped where a source can stand in for the result, and outputs are
    moved up, while that goes on to fail."""
    tried = 0
    progress = True
    while progress:
        progress = False
        for candidate in _smaller(network):
            tried += 1
            if tried > tries:
                return network
            try:
                candidate(*candidate.inputs())
                failing = fails(candidate)
            except Exception:  # noqa: BLE001, S112  shapes that no longer fit
                continue
            if failing:
                network, progress = candidate, True
                break
    return network


def _smaller(network: Network):
    outputs, steps = network.outputs, network.steps
    if len(outputs) > 1:
        for k in outputs:
            yield pruned(Network(steps, [k], network.seed))
    for k in range(len(steps) - 1, -1, -1):
        for source in reversed(steps[k].sources):
            candidate = pruned(_bypassed(network, k, source))
            if len(candidate.steps) < len(steps):
                yield candidate
    for k in outputs:
        for source in steps[k].sources:
            yield pruned(Network(steps, [source], network.seed))


def _bypassed(network: Network, k: int, source: int) -> Network:
    steps = [Step(step.op, tuple(source if s == k else s for s in step.sources), step.args)
             for step in network.steps]
    return Network(steps, [source if o == k else o for o in network.outputs], network.seed)
