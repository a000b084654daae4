"""Published ways to carry a task vector over that are no alignments, under their names, on any captured module.

Each is written from its paper's description, where that leaves choices the simplest one was taken, and is said in its
file. None of them sees a label here: where a paper takes the gradient of a loss with labels, it is that of the
distance to the fine-tuned model's outputs. `random` is the control: an element of the group drawn at random.

    observe   what goes into and comes out of every linear map of the graph, and gradients there
    turn      the task vector of linear maps, turned on both sides
    theseus, bico, gradfix   the methods
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ...alignment import Alignment
from ...errors import FxrebasinError, StateError
from ..samples import samples_of
from ..task_vector import State, task_vector, transport
from . import bico, gradfix, theseus
from .observe import Scene, scene

METHODS: dict[str, Callable[[Scene], dict[str, Tensor]]] = {
    "theseus": theseus.carried, "bico": bico.carried, "gradfix": gradfix.carried}
CARRIES = (*METHODS, "random")


def carry(model: nn.Module, base: State, finetuned: State, target: State, alignment: Alignment, inputs: Any = None,
          *, method: str = "theseus", alpha: float = 1.0, seed: int = 0) -> dict[str, Tensor]:
    """A new state: the target with the task vector carried over by a published method.

    inputs     unlabelled ones of the task, as for `calibrate`; "random" needs none
    alignment  "gradfix" masks pi(tau): give `spec.identity()` for the method as published. "random" draws from its
               spec. "theseus" and "bico" find maps of their own.
    method     "theseus", "bico", "gradfix"; or "random", the control

    Raises as `calibrate` does; FxrebasinError for an unknown method.
    """
    if method not in CARRIES:
        raise FxrebasinError(f"unknown method {method!r}: choose one of {', '.join(CARRIES)}")
    if method == "random":
        return transport(base, finetuned, target, alignment.spec.random(seed), alpha)
    if inputs is None:
        raise StateError(f"the method {method!r} needs inputs of the task: give a batch of them (inputs=)")
    spec = alignment.spec
    moved = alignment.carry(task_vector({name: base[name] for name in spec.names}, finetuned))
    changes = METHODS[method](scene(model, base, finetuned, target, moved, samples_of(inputs, "inputs"), spec.ties))
    changes |= {alias: changes[name] for alias, name in spec.ties.items() if name in changes}
    done: dict[int, Tensor] = {}
    for name, tensor in target.items():
        if (key := tensor.data_ptr()) not in done:
            change = changes.get(name)
            wide = tensor.detach().clone() if change is None else tensor.detach() + alpha * change.to(tensor.device)
            done[key] = wide.to(tensor.dtype)
    return {name: done[tensor.data_ptr()] for name, tensor in target.items()}


__all__ = ["CARRIES", "METHODS", "carry"]
