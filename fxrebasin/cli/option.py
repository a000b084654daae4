"""Options that several commands have."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click
from click.core import ParameterSource

from ..match import METHODS
from ..transport import Alphas
from .speech import hush


class Alpha(click.ParamType):
    """A number, the word auto, or a number for the tensors that a pattern fits: (pattern, number)."""

    name = "number|auto|pattern=number"

    def convert(self, value, param, ctx):
        pattern, sign, number = value.rpartition("=") if isinstance(value, str) else ("", "", value)
        if value == "auto":
            return value
        try:
            return (pattern, float(number)) if sign else float(number)
        except ValueError:
            self.fail(f"{value!r} is neither a number nor auto nor a pattern of names with a number: write 0.5, or "
                      "'blocks.*.mlp=0.5'", param, ctx)


def alpha_of(given: Sequence[Any]) -> float | str | Alphas:
    """What several --alpha say together: the last number, and all patterns."""
    plain = [value for value in given if not isinstance(value, tuple)]
    patterns = tuple(value for value in given if isinstance(value, tuple))
    if patterns and "auto" in plain:
        raise click.UsageError("--alpha auto is one for all tensors: leave the patterns out")
    default = plain[-1] if plain else 1.0
    return Alphas(default, patterns) if patterns else default


class Weighted(click.ParamType):
    """A path and a weight: FILE:0.5, or FILE alone."""

    name = "FINETUNED[:WEIGHT]"

    def convert(self, value, param, ctx):
        if isinstance(value, tuple):
            return value
        path, sign, number = value.rpartition(":")
        try:
            return (path, float(number)) if sign else (value, 1.0)
        except ValueError:
            return value, 1.0


_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")
_QUIET = click.option("--quiet", is_flag=True, expose_value=False, is_eager=True,
                      callback=lambda context, option, value: hush(value),
                      help="Leave out notes and progress.")
input_option = click.option(
    "--input", "inputs", multiple=True, metavar="[NAME=]SIZES[:DTYPE[:BELOW]]",
    help="An example input, such as 2x3x224x224 or input_ids=2x16:int64:30000; once for each.")
extra_option = click.option(
    "--ignore-extra", is_flag=True,
    help="Leave entries of checkpoints that the model does not have as they are, instead of refusing them.")
_MATCHING = {
    "method": click.option("--method", type=click.Choice(METHODS), default="exact", show_default=True),
    "seed": click.option("--seed", type=click.IntRange(0), default=0, show_default=True,
                         help="Decides every random choice."),
    "effort": click.option("--effort", type=click.Choice(("fast", "balanced", "best")), default="balanced",
                           show_default=True),
    "seconds": click.option("--seconds", type=click.FloatRange(0, min_open=True),
                            help="Stop after this time with the best that was found."),
    "checkpoint": click.option("--checkpoint", type=click.Path(), metavar="FILE",
                               help="Keep the best so far in this file, also on Ctrl-C, and go on from it."),
}


def json_option(command: Callable) -> Callable:
    """How to answer: --json as `as_json`, and --quiet."""
    return _JSON(_QUIET(command))


def matching_options(command: Callable) -> Callable:
    """How to match: the options `method`, `seed`, `effort`, `seconds` and `checkpoint`, as `find`
    takes them."""
    for option in reversed(_MATCHING.values()):
        command = option(command)
    return command


def output_option(what: str, **settings) -> Callable:
    """-o, with `what` as its help; a name must be given unless the settings say otherwise."""
    return click.option("-o", "--output", type=click.Path(), help=what, **{"required": True, **settings})


def refuse_matching(context: click.Context, why: str) -> None:
    """Raises UsageError if the command line says how to match."""
    for name in _MATCHING:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{name} says how to match, and {why}: leave it out", context)
