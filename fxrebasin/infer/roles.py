"""What each entry of the state is: from what the module registered it as, and from what the graph does with
it."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from ..capture import Program
from ..spec import roles as words
from .constants import argument

_COUNTERS = ("num_batches_tracked",)
_SAME = (
    "view",
    "reshape",
    "_unsafe_view",
    "unsqueeze",
    "squeeze",
    "expand",
    "permute",
    "transpose",
    "select",
    "clone",
    "alias",
    "detach",
    "_to_copy",
    "to",
    "repeat",
    "contiguous",
)  # what leaves numbers as they are
_ROOTS = ("sqrt", "rsqrt")
_BOUNDS = ("clamp", "clamp_min")


def roles_of(program: Program) -> dict[str, str]:
    """Entry of the state dict -> its role, one of `spec.roles`."""
    reached = _reached(program)
    statistics = _statistics(program)
    found = {}
    for name in (*program.state, *program.passed):
        first = program.ties.get(name, name)
        role = statistics.get(first) or _plain(program, name)
        is_reached = first in reached or role in (words.COUNTER, words.EXTRA)
        found[name] = role if is_reached else words.outside(role)
    return found


def note_on(roles: dict[str, str]) -> Iterator[str]:
    """What is to be said of the entries that the example inputs do not reach."""
    names = [name for name, role in roles.items() if words.is_outside(role)]
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        yield (
            f"outside the example run: {', '.join(map(repr, names[:3]))}{more}: the example inputs do not reach "
            "this, so it stays where it is while what it is used with may move: give inputs that reach it too, "
            "infer(model, [x, y])"
        )


def _plain(program: Program, name: str) -> str:
    kind = program.kinds.get(name, "integer" if name in program.passed else "parameter")
    if kind == "integer":
        return words.COUNTER if name.rpartition(".")[2] in _COUNTERS else words.INDEX
    return {"parameter": words.PARAMETER, "buffer": words.BUFFER, "extra": words.EXTRA}[kind]


def _reached(program: Program) -> set[str]:
    """The tensors of the state that something is computed from."""
    return {program.sources[node.name].name for node in program.module.graph.nodes
            if node.users and node.name in program.sources}


def _statistics(program: Program) -> dict[str, str]:
    """The running means, variances and deviations among the buffers: by the op that reads them, by a square root
    that is taken of them, by what is divided by them, and by name where nothing reads them."""
    buffers = {name for name in program.state if program.kinds.get(name) == "buffer"}
    found = {name: words.by_name(name) for name in buffers if words.by_name(name) in words.SPREADS}
    for node in program.module.graph.nodes:
        source = program.sources.get(node.name)
        if source is not None and source.name in buffers and any(map(_is_rooted, node.users)):
            found[source.name] = words.VARIANCE
        elif source is not None and source.name in buffers and _is_divisor(node):
            found.setdefault(source.name, words.DEVIATION)
        if node.op == "call_function":
            found |= {name: role for name, role in _read_by(program, node) if name in buffers}
    return {name: words.MEAN for name in buffers - set(found) if _is_mean(name, program, found)} | found


def _read_by(program: Program, node: fx.Node) -> Iterator[tuple[str, str]]:
    """What a normalising op names its arguments."""
    known = {a.name for a in node.target._schema.arguments} if hasattr(node.target, "_schema") else ()
    for name, role in (("running_mean", words.MEAN), ("running_var", words.VARIANCE)):
        given = argument(node, name) if name in known else None
        if isinstance(given, fx.Node) and given.name in program.sources:
            yield program.sources[given.name].name, role


def _is_rooted(node: fx.Node) -> bool:
    """Whether a square root is taken of what enters here, a constant added or not: it is positive."""
    op = getattr(node.target, "__name__", "").partition(".")[0]
    if op in _ROOTS or (op == "pow" and len(node.args) > 1 and node.args[1] in (0.5, -0.5)):
        return True
    return _passes(node) and any(map(_is_rooted, node.users))


def _is_divisor(node: fx.Node) -> bool:
    """Whether something is divided by what is here, a constant added or not."""
    for user in node.users:
        op = getattr(user.target, "__name__", "").partition(".")[0]
        if op == "reciprocal" or op == "div" and user.args[1] is node and user.args[0] is not node:
            return True
        if (op in _BOUNDS and len(user.all_input_nodes) == 1 or _passes(user)) and _is_divisor(user):
            return True
    return False


def _passes(node: fx.Node) -> bool:
    """Whether numbers stay as they are, but for a constant that is added."""
    op = getattr(node.target, "__name__", "").partition(".")[0]
    return op in _SAME or (op == "add" and len(node.all_input_nodes) == 1)


def _is_mean(name: str, program: Program, found: dict[str, str]) -> bool:
    """Whether a buffer is named as the mean beside a variance or deviation of its module."""
    place, _, last = name.rpartition(".")
    return "mean" in last and any(other.rpartition(".")[0] == place and program.state[other] == program.state[name]
                                  for other, role in found.items() if role in words.SPREADS)
