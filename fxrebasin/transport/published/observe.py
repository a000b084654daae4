"""What goes into and comes out of every linear map of a captured graph, and the gradients there. No hooks."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from ...capture import Program, capture
from ...errors import StateError
from ..outputs import Goal, Outputs, Runner, goal
from ..samples import Samples
from ..task_vector import State, task_vector

CHUNK = 16  # inputs that the graph is captured for
MOST_ROWS = 4096  # of activations that a map is found from


@dataclass(frozen=True)
class Map:
    """A linear map of the graph: node, the tensors of the state, and which axes of the weight are its sides.

    sides  (axis of the outputs, axis of the inputs or None: a table of vectors)
    channels  the axis of activations that holds features: -1, or 1 for a convolution
    """

    node: fx.Node
    weight: str
    bias: str | None
    sides: tuple[int, int | None]
    channels: int = -1


@dataclass(frozen=True)
class Scene:
    """What a method is given. States hold wide tensors by canonical name; `vector` is tau, `moved` is pi(tau)."""

    program: Program
    maps: tuple[Map, ...]
    base: State
    target: State
    vector: dict[str, Tensor]
    moved: dict[str, Tensor]
    goal: Goal


def scene(model: nn.Module, base: State, finetuned: State, target: State, moved: State, samples: Samples,
          ties: Mapping[str, str]) -> Scene:
    """Raises CaptureError and StateError as `calibrate` does."""
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in target.values()) else torch.float32
    device = next(iter(target.values())).device

    def wide(state: State) -> dict[str, Tensor]:
        return {name: tensor.detach().to(device, dtype if tensor.is_floating_point() else None)
                for name, tensor in state.items()}
    run, samples = Runner(model, device, dtype), samples.to(device, dtype)
    wanted = run.all(wide(finetuned), samples)
    chunk = samples.take(torch.arange(min(CHUNK, len(samples))))
    program = capture(run.module, chunk.kwargs or chunk.args)
    names = {name: ties.get(name, name) for name in base}
    vector = {names[name]: tensor for name, tensor in task_vector(wide(base), wide(finetuned)).items()}
    return Scene(program, tuple(_maps(program)), wide(base), wide(target), vector, wide(moved),
                 goal(samples, wanted, "auto", "the fine-tuned model"))


def _maps(program: Program):
    for node in program.module.graph.nodes:
        operation = str(node.target).split(".")[1] if node.op == "call_function" and "." in str(node.target) else ""
        if operation == "linear":
            yield from _map(program, node, node.args[1], node.args[2] if len(node.args) > 2 else None, (0, 1))
        elif operation == "addmm":
            yield from _map(program, node, node.args[2], node.args[0], (1, 0))
        elif operation == "embedding":
            yield from _map(program, node, node.args[0], None, (1, None))
        elif operation in ("conv1d", "conv2d", "conv3d") and (len(node.args) < 7 or node.args[6] == 1):
            yield from _map(program, node, node.args[1], node.args[2] if len(node.args) > 2 else None, (0, 1), 1)


def _map(program: Program, node: fx.Node, weight, bias, sides, channels: int = -1):
    sources = [program.sources.get(arg.name) if isinstance(arg, fx.Node) else None for arg in (weight, bias)]
    if sources[0] is not None and sources[0].kind == "state":
        own = sources[1].name if sources[1] is not None and sources[1].kind == "state" else None
        yield Map(node, sources[0].name, own, sides, channels)


def entering(at: Map) -> fx.Node | None:
    """The node whose value a map reads; None for a table."""
    if at.sides[1] is None:
        return None
    return at.node.args[1] if "addmm" in str(at.node.target) else at.node.args[0]


class _Seeing(fx.Interpreter):
    """Runs a graph with gradients and keeps some values."""

    def __init__(self, program: Program, keep: set[fx.Node]):
        super().__init__(program.module)
        self.keep, self.seen = keep, {}

    def run_node(self, node: fx.Node):
        value = super().run_node(node)
        if node in self.keep:
            self.seen[node] = value
        return value


def see(program: Program, state: State, part: Goal, keep: set[fx.Node]) -> tuple[dict[fx.Node, Tensor], Outputs]:
    """Values at some nodes and the outputs, with gradients towards the state's tensors that ask for them."""
    from ...capture.leaves import inputs_of

    given = inputs_of(program.signature, part.samples.args, part.samples.kwargs)
    held = {"state": state, "input": given}
    values = []
    for node in program.module.graph.nodes:
        if node.op == "placeholder":
            source = program.sources[node.name]
            values.append(held[source.kind][source.name] if source.kind in held else source.value)
    seeing = _Seeing(program, keep)
    results = seeing.run(*values, enable_io_processing=False)
    tensors = [output for output in program.outputs if output.node is not None]
    return seeing.seen, {output.path: value for output, value in zip(tensors, results, strict=False)}


def chunks(whole: Goal, program: Program) -> list[Goal]:
    """The goal in parts of the size that the graph was captured for; what is left over is left out."""
    size = min(CHUNK, len(whole))
    return [whole.take(index) for index in torch.arange(len(whole)).split(size) if len(index) == size]


def rows(value: Tensor, channels: int) -> Tensor:
    """(samples, features)."""
    return value.detach().movedim(channels, -1).flatten(0, -2)


def thinned(value: Tensor) -> Tensor:
    """At most MOST_ROWS rows, evenly spread."""
    return value[::max(1, len(value) // MOST_ROWS)]


def need_maps(scene: Scene, method: str) -> None:
    if not scene.maps:
        raise StateError(f"the graph has no linear map with weights of the state: {method} has nothing to turn")
