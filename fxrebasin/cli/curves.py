"""The commands that score states along curves: sweep, barrier."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

from ..alignment import Alignment
from ..checkpoint import is_adapter, load_adapter
from ..curves import WAYS, Curve, barrier, repaired, sweep
from ..draft import whole
from ..errors import FxrebasinError
from ..parts import Parts
from ..statistics import measured
from ..transport import Adapter, Merged
from .command import find
from .file import claim, opened, read
from .group import commands
from .model import imported, load_model, spec_of
from .option import extra_option, input_option, json_option, matching_options, output_option, refuse_matching
from .progress import working
from .samples import read_samples
from .speech import answer

_score = click.option("--score", required=True, metavar="package.module:callable",
                      help="Takes a state (name to tensor), returns a number.")
_lower = click.option("--lower", is_flag=True, help="Lower scores are the better ones.")
_picture = output_option("A picture to write (png, svg or pdf).", required=False)
_given = click.option("--alignment", "given", type=click.Path(), metavar="FILE",
                      help="Use this alignment instead of matching.")


def _matched(command: Callable) -> Callable:
    """What sweep and barrier share: a picture, how the model is made and matched, and how to answer."""
    for option in (json_option, extra_option, matching_options, input_option, _picture):
        command = option(command)
    return command


class Numbers(click.ParamType):
    """START:STOP:STEP, both ends among them, or numbers with commas between."""

    name = "START:STOP:STEP|NUMBERS"

    def convert(self, value, param, ctx):
        if isinstance(value, tuple):
            return value
        try:
            if ":" not in value:
                return tuple(float(text) for text in value.split(","))
            start, stop, step = (float(text) for text in value.split(":"))
            count = round((stop - start) / step) + 1
            if not 1 <= count <= 1000:
                raise ValueError
            return tuple(round(start + k * step, 12) for k in range(count))
        except (ValueError, ZeroDivisionError, OverflowError):
            self.fail(f"{value!r} is neither START:STOP:STEP nor numbers: write 0:2:0.25, or 0.5,1,2", param, ctx)


@commands.command("sweep")
@click.argument("paths", nargs=4, metavar="MODEL BASE FINETUNED TARGET")
@_score
@click.option("--alphas", type=Numbers(), default="0:2:0.25", show_default=True, help="What is tried.")
@_lower
@_given
@_matched
@click.pass_context
def sweep_command(context: click.Context, paths: tuple[str, ...], score: str, alphas: tuple[float, ...], lower: bool,
                  given: str | None, output: str | None, inputs: tuple[str, ...], ignore_extra: bool, as_json: bool,
                  **how: Any) -> None:
    """Score TARGET + alpha * pi(FINETUNED - BASE) over alpha."""
    model, base, finetuned, target = paths
    rate = _prepared(context, score, output, paths, given)
    adapter = is_adapter(finetuned)
    alignment = _alignment(model, base, target, given, inputs, ignore_extra, how)
    files = (base, target) if adapter else (base, target, finetuned)
    with opened(alignment, files, ignore_extra, model) as (alignment, (old, new, *tuned)):
        state = Merged(old, Adapter(*load_adapter(finetuned)), Parts(alignment)) if adapter else tuned[0]
        with working("scoring"):
            curve = sweep(old, state, new, alignment, rate, alphas, lower)
    best = curve.best
    _tell({f"{finetuned} onto {target}": curve}, "alpha", {"best": {"alpha": best[0], "score": best[1]}},
          f"best at alpha {best[0]:g}: {best[1]:g}", output, as_json)


@commands.command("barrier")
@click.argument("paths", nargs=3, metavar="MODEL A B")
@_score
@click.option("--points", type=click.IntRange(2, 1000), default=11, show_default=True, help="States scored on each way.")
@_lower
@_given
@click.option("--inputs", "samples", type=click.Path(), metavar="FILE",
              help="Unlabelled inputs: statistics of batch norms are measured again on them at every point, and REPAIR "
                   "is tried beside.")
@_matched
@click.pass_context
def barrier_command(context: click.Context, paths: tuple[str, ...], score: str, points: int, lower: bool,
                    given: str | None, samples: str | None, output: str | None, inputs: tuple[str, ...],
                    ignore_extra: bool, as_json: bool, **how: Any) -> None:
    """Score the states between A and B, on the straight line and on the sphere, before and after A is aligned."""
    model, a, b = paths
    rate = _prepared(context, score, output, (*paths, samples), given)
    alignment = _alignment(model, a, b, given, inputs, ignore_extra, how)
    with opened(alignment, (a, b), ignore_extra, model) as (alignment, stored):
        one, other = (dict(state) for state in stored)
    module, batch = None, None
    if samples:
        module = load_model(model, inputs, real=True)[0]
        batch = read_samples(samples, module)
    curves = {}
    with working("scoring"):
        for name, start in (("as it is", one), ("aligned", alignment.apply(one))):
            for way in WAYS:
                for mended, mend in _mends(module, batch, start, other).items():
                    curves[f"{name}, {way}{mended}"] = barrier(start, other, rate, points, way, lower, mend)
    heights = {name: curve.barrier for name, curve in curves.items()}
    text = "barrier: " + "; ".join(f"{name} {height:g}" for name, height in heights.items())
    _tell(curves, "t", {"barriers": heights}, text, output, as_json)


def _mends(module: nn.Module | None, batch: Any, a: Mapping[str, Tensor],
           b: Mapping[str, Tensor]) -> dict[str, Callable | None]:
    """What is made of the states between: nothing, or what inputs allow."""
    if module is None:
        return {"": None}

    def again(state: dict[str, Tensor], t: float) -> dict[str, Tensor]:
        return state | {name: tensor.to(state[name]) for name, tensor in measured(module, state, [batch]).items()}

    return {", statistics measured": again, ", REPAIR": lambda state, t: repaired(module, a, b, state, t, batch)}


# ---- what both do ------------------------------------------------------------------------------------------


def _prepared(context: click.Context, score: str, output: str | None, inputs: tuple[str | None, ...],
              given: str | None) -> Callable[[dict[str, Tensor]], float]:
    """The scoring function; before any work it is known whether everything can be done."""
    if given:
        refuse_matching(context, "--alignment is given")
    if output:
        claim(output, *inputs[1:], given)
        if Path(output).suffix not in (".png", ".svg", ".pdf"):
            raise click.UsageError(f"{output} must end in .png, .svg or .pdf", context)
    function = imported(score)
    if not callable(function):
        raise click.UsageError(f"{score} is a {type(function).__name__}: it must be a callable that takes a state", context)

    def rate(state: dict[str, Tensor]) -> float:
        try:
            with torch.no_grad():
                return function(state)
        except FxrebasinError:
            raise
        except Exception as error:  # noqa: BLE001 - code that is not ours
            raise FxrebasinError(f"{score} failed: {type(error).__name__}: {error}: correct it") from error

    return rate


def _alignment(model: str, base: str, target: str, given: str | None, inputs: tuple[str, ...], ignore_extra: bool,
               how: Mapping[str, Any]) -> Alignment:
    if given:
        return Alignment.load(given)
    spec, states = read(spec_of(model, inputs), (base, target), ignore_extra, model)
    return find(spec, *states, **how)[0]


def _tell(curves: Mapping[str, Curve], axis: str, more: dict[str, Any], text: str, output: str | None,
          as_json: bool) -> None:
    """Table, picture and JSON of some curves over the same places."""
    places = next(iter(curves.values())).places
    if output:
        _draw(curves, axis, output)
    data = {axis: list(places), "scores": {name: list(curve.scores) for name, curve in curves.items()}} | more
    width = max(map(len, curves))
    lines = [f"{axis:>8}  " + "  ".join(f"{name:>{max(10, width)}}" for name in curves)]
    lines += [f"{place:>8g}  " + "  ".join(f"{curve.scores[k]:>{max(10, width)}.6g}" for curve in curves.values())
              for k, place in enumerate(places)]
    written = [f"written: {output}"] if output else []
    answer(data | ({"output": output} if output else {}), "\n".join([*lines, text, *written]), as_json)


def _draw(curves: Mapping[str, Curve], axis: str, output: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for name, curve in curves.items():
        axes.plot(curve.places, curve.scores, marker="o", markersize=3, label=name)
    axes.set_xlabel(axis)
    axes.set_ylabel("score")
    axes.legend(fontsize=8)
    with whole(output) as draft:
        figure.savefig(draft, format=Path(output).suffix[1:], bbox_inches="tight")
    pyplot.close(figure)
