"""The last linear map alone, in closed form: ridge regression of what is wanted on what comes in."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from ..capture import capture
from ..errors import StateError
from .fit import Bench, State

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # of the ridge, relative to the mean square of what comes in
VIEWS = ("view", "reshape", "squeeze", "unsqueeze", "clone", "alias", "_unsafe_view")


def fit_head(bench: Bench, start: State) -> State:
    """The weights with another last linear map: a ridge towards the one that is there. The strength is the
    one with the lowest loss on what is held back. Raises StateError where no output is that of a linear
    map."""
    samples = [goal.samples for goal in bench.fitted]
    example = samples[0].take(torch.arange(min(16, *map(len, samples))))
    program = capture(bench.run.module, example.kwargs or example.args)
    node, path = _last(program)
    names = [
        program.sources[arg.name].name if isinstance(arg, fx.Node) else None
        for arg in (*node.args[1:], None)[:2]
    ]
    rows, missing = [], []
    for goal in bench.fitted:
        kept: dict[str, Tensor] = {}

        def note(at: fx.Node, value: Tensor, kept=kept) -> None:
            if at is node.args[0] or at is node:
                kept["in" if at is node.args[0] else "out"] = value

        for index in torch.arange(len(goal)).split(len(example)):
            if len(index) == len(example):
                part = goal.take(index)
                program.interpret(bench.whole(start), part.samples.kwargs or part.samples.args, note)
                rows.append(kept["in"].flatten(0, -2))
                missing.append(
                    part.wanted[path].reshape(-1, kept["out"].shape[-1]) - kept["out"].flatten(0, -2)
                )
    return _ridge(bench, start, names, torch.cat(rows), torch.cat(missing))


def _last(program) -> tuple[fx.Node, str]:
    """The linear map that an output comes from, with the output's path."""
    for output in program.outputs:
        node = output.node
        while node is not None and not output.decision:
            operation = str(node.target).split(".")[1] if "." in str(node.target) else ""
            sources = [program.sources.get(arg.name) for arg in node.args[1:] if isinstance(arg, fx.Node)]
            if (
                operation == "linear"
                and sources
                and all(s is not None and s.kind == "state" for s in sources)
            ):
                return node, output.path
            node = node.args[0] if operation in VIEWS and isinstance(node.args[0], fx.Node) else None
    raise StateError(
        'no output of this model is that of a linear map: fit="head" has nothing to solve; use fit="gains"'
    )


def _ridge(bench: Bench, start: State, names: list[str | None], x: Tensor, missing: Tensor) -> State:
    """The change of the map that makes up for what is missing, added."""
    weight, bias = (bench.aliases.get(name, name) for name in names)
    if bias is not None:
        x = torch.cat([x, x.new_ones(len(x), 1)], 1)
    x, missing = x.double(), missing.double()
    gram, cross = x.T @ x / len(x), x.T @ missing / len(x)
    best, score = start, float("inf")
    for strength in STRENGTHS:
        ridge = strength * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        change = torch.linalg.solve(gram + ridge, cross).T.to(start[weight].dtype)
        found = start | {weight: start[weight] + change[:, : start[weight].shape[1]]}
        if bias is not None:
            found[bias] = start[bias] + change[:, -1]
        if (now := bench.held_back(found)) < score:
            best, score = found, now
    return best
