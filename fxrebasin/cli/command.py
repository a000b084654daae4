"""The commands."""
from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from typing import Any

import click
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..alignment import Alignment
from ..checkpoint import State
from ..errors import NotEquivalentError
from ..match import match
from ..report import Report, report
from ..show import WIDTH, tree
from ..spec import Spec
from ..verify import Evidence, find_equivalence, verify
from . import DONE, NO
from .file import claim, read, write_text
from .group import commands
from .model import load_model, spec_of
from .option import extra_option, input_option, json_option, matching_options, output_option
from .progress import working
from .speech import answer, note

SHOWN = ("matrices", "vectors")
CONTROLLED = 2 ** 28  # with more numbers than this a second match, of unrelated states, would take too long


# ---- inspect -----------------------------------------------------------------------------------------------


@commands.command()
@click.argument("model")
@input_option
@click.option("--outputs", type=click.Choice(("pinned", "free")), default="pinned", show_default=True,
              help="free: output axes may move with the network.")
@json_option
@click.option("--dot", type=click.Path(), help="Write a graph for Graphviz to this file.")
@click.option("--html", type=click.Path(), help="Write a page to this file.")
def inspect(model: str, inputs: tuple[str, ...], outputs: str, as_json: bool, dot: str | None,
            html: str | None) -> None:
    """Show the symmetries of MODEL: what can be permuted with what, and what is pinned and why.

    MODEL may be an alignment file here: then those that it belongs to are shown, and how much it moves.
    """
    files = [file for file in (dot, html) if file]
    for file in files:
        claim(file, model if os.path.exists(model) else None)
    alignment = Alignment.load(model) if os.path.isfile(model) else None
    spec = alignment.spec if alignment else spec_of(model, inputs, outputs)
    if dot:
        write_text(dot, spec.to_dot())
    if html:
        write_text(html, spec.to_html(" ".join([model, *(f"--input {text}" for text in inputs)])))
    if as_json:
        click.echo(json.dumps(json.loads(spec.to_json()) | {"alignment": _moves(alignment)[0]}) if alignment
                   else spec.to_json())
    elif files:
        click.echo(f"{len(spec.groups)} groups, order 10^{spec.log10_order:.1f}; written: {', '.join(files)}")
    else:
        click.echo(tree(spec, shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDTH))
        if alignment:
            click.echo(_moves(alignment)[1])


def _moves(alignment: Alignment) -> tuple[dict[str, Any], str]:
    """How much an alignment moves, as data and as text."""
    moved, elements = sum(alignment.moved.values()), sum(p.size for p in alignment.permutations.values())
    data = {"method": alignment.method, "objective": alignment.objective, "moved": moved, "elements": elements,
            "groups": alignment.moved}
    made = f"made by {alignment.method}" if alignment.method else "an alignment"
    cosine = "" if alignment.objective is None else f"; cosine similarity {alignment.objective:.4f} aligned"
    return data, f"{made}: {moved:,} of {elements:,} elements moved{cosine}"


# ---- match -------------------------------------------------------------------------------------------------


def find(spec: Spec, source: State, target: State, method: str, seed: int, effort: str, seconds: float | None = None,
         checkpoint: str | None = None) -> tuple[Alignment, dict[str, Any], str]:
    """The alignment, and what there is to say about it: as data, and as text."""
    if not spec.groups:
        note("nothing in this model can be permuted, so nothing will move: `fxrebasin inspect` says why")
    started = time.perf_counter()
    with working("matching") as progress:
        alignment = match(spec, source, target, method, seed, effort=effort, seconds=seconds, progress=progress,
                          checkpoint=checkpoint)
    taken = time.perf_counter() - started
    numbers = sum(math.prod(shape) for shape in spec.shapes.values())
    with working("measuring what chance gives"):
        found = report(spec, source, target, alignment, seed=seed, chance=seconds is None and numbers <= CONTROLLED)
    if found.warning:
        note(found.warning, "warning")
    moved, elements = sum(alignment.moved.values()), sum(p.size for p in alignment.permutations.values())
    data = {"method": method, "seed": seed, **_figures(found), "moved": moved, "elements": elements,
            "seconds": round(taken, 3)}
    text = f"{method}: {_told(found)}; {moved:,} of {elements:,} elements moved; {taken:.1f} s"
    return alignment, data, text


def _figures(found: Report) -> dict[str, Any]:
    """What a report says of all tensors, of matrices and of vectors, as data."""
    own = found.objective
    data = {"objective": own.after, "objective_before": own.before, "objective_random": own.random,
            "objective_chance": own.chance, "warning": found.warning}
    for kind in found.kinds:
        if kind.name in SHOWN:
            data |= {kind.name: kind.after, f"{kind.name}_before": kind.before, f"{kind.name}_random": kind.random}
    return data


def _told(found: Report) -> str:
    """The same in a line."""
    own = found.objective
    apart = "".join(f", {kind.name} {kind.before:.4f} before, {kind.after:.4f} aligned" for kind in found.kinds
                    if kind.name in SHOWN)
    chance = f"a random element {own.random:.4f}" if own.chance is None else f"chance {own.chance:.4f}"
    return f"cosine similarity {own.before:.4f} before, {own.after:.4f} aligned, {chance}{apart}"


@commands.command("match")
@click.argument("model")
@click.argument("source")
@click.argument("target")
@output_option("The alignment file to write.")
@input_option
@matching_options
@extra_option
@json_option
def match_command(model: str, source: str, target: str, output: str, inputs: tuple[str, ...],
                  ignore_extra: bool, as_json: bool, **how: Any) -> None:
    """Find the alignment that brings the checkpoint SOURCE (old base) close to TARGET (new base)."""
    claim(output, source, target, model if os.path.isdir(model) else None)
    if how["checkpoint"]:
        claim(how["checkpoint"], source, target, output)
    spec, states = read(spec_of(model, inputs), (source, target), ignore_extra, model)
    alignment, data, text = find(spec, *states, **how)
    alignment.save(output)
    answer(data | {"output": output}, f"{text}; written: {output}", as_json)


# ---- verify ------------------------------------------------------------------------------------------------


@commands.command("verify")
@click.argument("model")
@click.argument("checkpoints", nargs=-1, metavar="CHECKPOINT_A CHECKPOINT_B | [CHECKPOINT] --alignment FILE")
@click.option("--alignment", type=click.Path(), metavar="FILE",
              help="Check that this alignment keeps the function of MODEL, in float64, with the weights of "
                   "CHECKPOINT or its own.")
@output_option("Write the alignment that makes A equal B to this file.", required=False)
@input_option
@extra_option
@json_option
@click.pass_context
def verify_command(context: click.Context, model: str, checkpoints: tuple[str, ...], alignment: str | None,
                   output: str | None, inputs: tuple[str, ...], ignore_extra: bool, as_json: bool) -> int:
    """Decide whether checkpoint B is a permuted A, or whether an alignment keeps the function of MODEL."""
    if alignment and len(checkpoints) < 2 and not output:
        return _verify_alignment(model, checkpoints, alignment, inputs, ignore_extra, as_json)
    if alignment or len(checkpoints) != 2:
        raise click.UsageError("give two checkpoints (and -o if wanted), or --alignment FILE and at most one "
                               "checkpoint", context)
    if output:
        claim(output, *checkpoints)
    spec, (a, b) = read(spec_of(model, inputs), checkpoints, ignore_extra, model)
    with working("comparing"):
        found = find_equivalence(spec, a, b)
    if found is None:
        answer({"equivalent": False}, "NOT equivalent: no alignment was found that makes {} equal {}".format(
            *checkpoints), as_json)
        return NO
    if output:
        found.save(output)
    moved = sum(found.moved.values())
    data = {"equivalent": True, "moved": moved} | ({"output": output} if output else {})
    written = f"; written: {output}" if output else ""
    answer(data, f"equivalent: {checkpoints[0]} with {moved:,} elements moved is {checkpoints[1]}, number "
                 f"for number{written}", as_json)
    return DONE


def _verify_alignment(model: str, checkpoints: tuple[str, ...], path: str, inputs: tuple[str, ...],
                      ignore_extra: bool, as_json: bool) -> int:
    alignment = Alignment.load(path)
    module, own = load_model(model, inputs, real=True)
    own = pytree.tree_map_only(Tensor, telling, own)
    state = None
    if checkpoints:
        names = {*alignment.spec.names, *alignment.spec.passed}
        _, (found,) = read(alignment.spec, checkpoints, ignore_extra, model)
        state = {name: tensor for name, tensor in found.items() if name in names}
    try:
        with working("running in float64"):
            evidence, status = verify(module, own, alignment, state=state), DONE
    except NotEquivalentError as error:
        if not isinstance(error.evidence, Evidence):
            raise
        evidence, status = error.evidence, NO
    answer(evidence.data, str(evidence), as_json)
    return status


def telling(tensor: Tensor) -> Tensor:
    """An input that shows differences: random numbers in place of a stand-in that is the same everywhere."""
    if tensor.is_floating_point() and (tensor.is_meta or bool((tensor == tensor.flatten()[:1]).all())):
        return torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0), dtype=tensor.dtype)
    return tensor


# ---- demo --------------------------------------------------------------------------------------------------


@commands.command()
@output_option("A folder for pictures.", required=False, default="fxrebasin-demo", show_default=True)
@json_option
def demo(output: str, as_json: bool) -> None:
    """Carry fine-tunings of three shipped networks over to new bases, and measure the worth. Offline."""
    from rich.console import Console

    from ..demo.run import run

    results = run(output, Console(stderr=as_json, width=None if sys.stdout.isatty() else 120))
    if as_json:
        click.echo(json.dumps(results))
