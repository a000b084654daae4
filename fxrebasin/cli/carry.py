"""The commands that make checkpoints: apply, transport. States are carried part by part and never held whole."""
from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any

import click
import torch
from torch import Tensor

from ..alignment import Alignment
from ..checkpoint import is_adapter, load_adapter, plan, save_adapter, writing
from ..errors import SpecError
from ..parts import Parts, applied
from ..shards import Make, divisible, write_shards
from ..spec import Spec
from ..spec.dtypes import DTYPES
from ..statistics import WAYS as STATISTICS
from ..transport import Adapter, Alphas, Merged, WeightedSum, transport_adapter, transported
from ..transport.by_part import carried_parts, check_carried
from ..transport.mismatched import WAYS as MISMATCHED
from .changed import changed_by
from .engine import engine, engine_options
from .command import find
from .file import Checkpoint, card, claim, opened, read
from .group import commands
from .fitting import fitted, fitted_adapter, refuse_fitting
from .model import spec_of
from .option import (Alpha, Weighted, alpha_of, extra_option, input_option, json_option, matching_options, output_option,
                     refuse_matching)
from .progress import counting
from .speech import answer, note


@commands.command()
@click.argument("alignment")
@click.argument("checkpoint")
@output_option("The checkpoint to write.")
@extra_option
@engine_options
@json_option
def apply(alignment: str, checkpoint: str, output: str, ignore_extra: bool, as_json: bool, workers: int | None,
          dask: str | None) -> None:
    """Permute CHECKPOINT by the file ALIGNMENT; the result is stored as CHECKPOINT is."""
    claim(output, alignment, checkpoint, like=checkpoint)
    with opened(Alignment.load(alignment), (checkpoint,), ignore_extra) as (loaded, (stored,)):
        moved = sum(loaded.moved.values())
        text = card(f"The weights of `{checkpoint}`, permuted: the same function, number for number up to rounding.",
                    loaded.spec, {"alignment": f"`{alignment}`", "elements moved": f"{moved:,}"})
        with engine(workers, dask) as executor:
            write("apply", applied(loaded, stored), stored, output, text,
                  shared=executor and (executor, partial(_apply, stored), loaded))
    answer({"moved": moved, "output": output}, f"{moved:,} elements moved; written: {output}", as_json)


def _apply(stored: Mapping[str, Tensor], alignment: Alignment) -> Iterable[tuple[str, Tensor]]:
    return applied(alignment, stored)


def _transport(states: Sequence[Mapping[str, Tensor]], alphas: Alphas, options: dict[str, Any],
               alignment: Alignment) -> Iterable[tuple[str, Tensor]]:
    return carried_parts(*states, alignment, alphas, **options)


def write(what: str, tensors: Iterable[tuple[str, Tensor]], like: Checkpoint, output: str, text: str,
          changed: Mapping[str, Tensor] | None = None, dtype: torch.dtype | None = None,
          shared: tuple[Executor, Make, Alignment] | None = None) -> None:
    """Writes tensors of the model as they come, in the form of `like` and under its names.

    changed  names in the file of what it does not have, or has in another shape -> that shape, on the meta device
    dtype    in which floating-point tensors are stored; by default as `like` stores them
    shared   an executor, what makes the tensors of a part of an alignment, and the alignment: shards are its tasks
    """
    form = like.form.widened(dtype)
    blank = form.blank() | dict(changed or {})
    found = plan(output, blank, form)
    if dtype is not None and form.folder is not None:
        note(f"{output} is written in {dtype}, and what else is in the folder is copied from TARGET: load it with that "
             "dtype, whatever its configuration says")
    if shared and not changed and divisible(found, like.fit):
        with counting(what, like.stored.size) as advance:
            executor, make, alignment = shared
            _said(output, write_shards(make, alignment, like.fit, found, executor, text, advance))
        return
    if shared:
        note("one process writes it: the output is one file, or made of others of which it needs several at once")
    with writing(found) as writer, counting(what, like.stored.size) as advance:
        for name, tensor in like.fit.undo(tensors):
            if name in blank:
                writer.put(name, tensor)
                advance(form.bytes(name) if name in form.files else 0)
        writer.finish(text)
    _said(output, writer.left)


def _said(output: str, left: Sequence[str]) -> None:
    if left:
        note(f"left out of {output}: {'; '.join(left[:3])}" + (f" and {len(left) - 3} more" if len(left) > 3 else ""))


# ---- transport ---------------------------------------------------------------------------------------------


@commands.command("transport")
@click.argument("paths", nargs=-1, metavar="MODEL BASE FINETUNED TARGET")
@output_option("The checkpoint to write.")
@click.option("--alpha", "alphas", type=Alpha(), multiple=True,
              help="How much of the fine-tuning is added, 1 by default; auto: what agrees best with FINETUNED on "
                   "--inputs; 'blocks.*.mlp=0.5': for the tensors that a pattern fits, the last one that does.")
@click.option("--tau", "taus", type=Weighted(), multiple=True, metavar="FINETUNED[:WEIGHT]",
              help="Another fine-tuning of BASE, with its weight, negative or not: the sum of all is carried. FINETUNED "
                   "is left out then, and may be an adapter here.")
@click.option("--inputs", "samples", type=click.Path(), metavar="FILE",
              help="Unlabelled inputs of the task (safetensors or npz, by the names of MODEL's arguments): the "
                   "result is fitted to what FINETUNED makes of them.")
@click.option("--keep", type=click.Path(), metavar="FILE",
              help="Inputs on which TARGET's own outputs are kept; as --inputs.")
@click.option("--alignment", "given", type=click.Path(), metavar="FILE",
              help="Use this alignment of BASE onto TARGET instead of matching. MODEL can be left out then; "
                   "if it is given, the alignment must be one of its symmetries.")
@click.option("--mismatched", type=click.Choice(MISMATCHED), default="error", show_default=True,
              help="Tensors whose shape FINETUNED changed. finetuned: a new head is carried whole, a resized vocabulary "
                   "with its new rows; target: TARGET's stay.")
@click.option("--statistics", type=click.Choice(STATISTICS), default="ratio", show_default=True,
              help="Running means and variances: carried in units of their own, or those of TARGET.")
@click.option("--dtype", type=click.Choice(tuple(DTYPES)),
              help="Of the floating-point tensors that are written; by default each has TARGET's.")
@click.option("--force", is_flag=True, help="Carry although the alignment was matched from another base than BASE.")
@click.option("--full", is_flag=True,
              help="FINETUNED is an adapter: write TARGET with it merged in, instead of an adapter for TARGET.")
@input_option
@matching_options
@extra_option
@engine_options
@json_option
@click.pass_context
def transport_command(context: click.Context, paths: tuple[str, ...], output: str, alphas: tuple[Any, ...],
                      taus: tuple[tuple[str, float], ...], samples: str | None, keep: str | None, given: str | None,
                      mismatched: str, statistics: str, dtype: str | None, force: bool, full: bool, inputs: tuple[str, ...],
                      ignore_extra: bool, as_json: bool, workers: int | None, dask: str | None, **how: Any) -> None:
    """Carry a fine-tuning over: TARGET + alpha * pi(FINETUNED - BASE), stored as TARGET is.

    FINETUNED may be the folder of an adapter (PEFT, LoRA); then an adapter for TARGET is written.
    """
    count = 3 if taus else 4
    if len(paths) != count and not (given and len(paths) == count - 1):
        own = "BASE TARGET" if taus else "BASE FINETUNED TARGET"
        raise click.UsageError(f"give MODEL {own}, or {own} and --alignment FILE", context)
    model, (base, *finetuned, target) = (paths[0] if len(paths) == count else None), paths[-count + 1:]
    alpha, finetuned = alpha_of(alphas), finetuned[0] if finetuned else " + ".join(f"{w:g} {path}" for path, w in taus)
    refuse_fitting(context, model, alpha, samples, keep)
    if taus and (samples or full):
        raise click.UsageError("--tau gives a sum of fine-tunings: leave --inputs and --full out", context)
    adapter = is_adapter(finetuned)
    if adapter and samples and (full or alpha == "auto"):
        raise click.UsageError("with --inputs an adapter gets gains in its factors: leave --full and --alpha out", context)
    if full and not adapter:
        raise click.UsageError(f"--full is for adapters, and {finetuned} is not the folder of one", context)
    if dtype and (samples or alpha == "auto" or adapter and not full):
        raise click.UsageError("--dtype is for sums that are written as a checkpoint: what is fitted to --inputs has "
                               "TARGET's dtypes, and a carried adapter its own: leave --dtype out", context)
    if (workers or dask) and (samples or taus or adapter or mismatched != "error"):
        raise click.UsageError("--workers and --dask share out the files of a checkpoint: with --inputs, --tau, an adapter or "
                               "--mismatched one process does it all: leave them out", context)
    to = DTYPES[dtype] if dtype else None
    inside = model if model and os.path.isdir(model) else None
    claim(output, base, *([path for path, _ in taus] or [finetuned]), target, given, samples, keep, inside,
          like=target if full or not adapter else None, folder=True)
    if given:
        refuse_matching(context, "--alignment is given")
    alignment, data, text = _alignment(model, base, target, given, inputs, ignore_extra, how)
    said = f"alpha {alpha:g}" if isinstance(alpha, float) else f"alpha {alpha}"
    data |= {"alpha": alpha if isinstance(alpha, (str, float)) else str(alpha), "output": output}
    data |= {"taus": dict(taus)} if taus else {}
    section = _card(base, finetuned, target, alignment, data)
    if samples:
        which = partial(_fit_adapter, force=force) if adapter else _fit
        more, said = which(model, inputs, alignment, (base, finetuned, target), output, alpha, samples, keep,
                           ignore_extra, section)
        data |= more
    elif taus:
        _carry_sum(alignment, base, taus, target, output, alpha, ignore_extra, section, model, force, to)
    elif adapter:
        _carry_adapter(alignment, base, finetuned, target, output, alpha, full, ignore_extra, section, model, force, to)
    else:
        with opened(alignment, (base, finetuned, target), ignore_extra, model, mismatched) as (alignment, stored):
            carried = transported(*stored, alignment, alpha, statistics=statistics, mismatched=mismatched, force=force,
                                  dtype=to)
            changed = changed_by(alignment.spec, *stored, mismatched)
            with engine(workers, dask) as executor:
                shared = None
                if executor:
                    alphas = Alphas.given(alpha)
                    check_carried(*stored, alignment, alphas, force)
                    options = {"statistics": statistics, "dtype": to}
                    shared = executor, partial(_transport, stored, alphas, options), alignment
                write("transport", carried, stored[2], output, section, changed, to, shared)
    answer(data, f"{text}; {said}; written: {output}", as_json)


def _fit(model: str, inputs: tuple[str, ...], alignment: Alignment, paths: tuple[str, str, str], output: str,
         alpha: float | str, samples: str, keep: str | None, ignore_extra: bool,
         section: str) -> tuple[dict[str, Any], str]:
    """Writes what is fitted to inputs; what there is to say about it, as data and as text."""
    with opened(alignment, paths, ignore_extra, model) as (alignment, stored):
        state, data, text = fitted(model, inputs, stored, alignment, alpha, samples, keep)
        write("transport", state.items(), stored[2], output, section)
    return data, text


def _fit_adapter(model: str, inputs: tuple[str, ...], alignment: Alignment, paths: tuple[str, str, str], output: str,
                 alpha: float | str, samples: str, keep: str | None, ignore_extra: bool,
                 section: str, *, force: bool) -> tuple[dict[str, Any], str]:
    """The same for an adapter."""
    base, folder, target = paths
    adapter = Adapter(*load_adapter(folder))
    with opened(alignment, (base, target), ignore_extra, model) as (alignment, (old, new)):
        tuned = Merged(old, adapter, Parts(alignment))
        carried = transport_adapter(old, adapter, new, alignment, force=force)
        carried, data, text = fitted_adapter(model, inputs, (old, tuned, new), alignment, carried, samples, keep)
    _save_adapter(carried, target, output, folder, section)
    return data, text


def _carry_sum(alignment: Alignment, base: str, taus: tuple[tuple[str, float], ...], target: str, output: str,
               alpha: float | Alphas, ignore_extra: bool, section: str, model: str | None, force: bool,
               dtype: torch.dtype | None) -> None:
    """Several fine-tunings, checkpoints and adapters alike, as one."""
    files = [path for path, _ in taus if not is_adapter(path)]
    with opened(alignment, (base, target, *files), ignore_extra, model) as (alignment, (old, new, *states)):
        tuned = dict(zip(files, states))
        for path, _ in taus:
            if path not in tuned:
                tuned[path] = Merged(old, Adapter(*load_adapter(path)), Parts(alignment))
        total = WeightedSum(old, [tuned[path] for path, _ in taus], [weight for _, weight in taus])
        carried = transported(old, total, new, alignment, alpha, force=force, dtype=dtype)
        write("transport", carried, new, output, section, dtype=dtype)


def _alignment(model: str | None, base: str, target: str, given: str | None, inputs: tuple[str, ...],
               ignore_extra: bool, how: Mapping[str, Any]) -> tuple[Alignment, dict[str, Any], str]:
    """The alignment that is given, or found; and what there is to say about it."""
    if given is None:
        spec, states = read(spec_of(model, inputs), (base, target), ignore_extra, model)
        return find(spec, *states, **how)
    alignment = Alignment.load(given)
    if model:
        _check_model(model, inputs, given, alignment)
    return alignment, {"alignment": given}, f"alignment {given}"


def _carry_adapter(alignment: Alignment, base: str, folder: str, target: str, output: str, alpha: float | Alphas, full: bool,
                   ignore_extra: bool, section: str, model: str | None, force: bool, dtype: torch.dtype | None) -> None:
    adapter = Adapter(*load_adapter(folder))
    with opened(alignment, (base, target), ignore_extra, model) as (alignment, (old, new)):
        if full:
            tuned = Merged(old, adapter, Parts(alignment))
            carried = transported(old, tuned, new, alignment, alpha, force=force, dtype=dtype)
            write("transport", carried, new, output, section, dtype=dtype)
            return
        carried = transport_adapter(old, adapter, new, alignment, alpha, force=force)
    _save_adapter(carried, target, output, folder, section)


def _save_adapter(carried: Adapter, target: str, output: str, folder: str, section: str) -> None:
    for text in carried.notes:
        note(text)
    config = dict(carried.config) | {"base_model_name_or_path": target, "revision": None}
    save_adapter(config, carried.tensors, output, folder, section)


def _card(base: str, finetuned: str, target: str, alignment: Alignment, data: Mapping[str, Any]) -> str:
    what = (f"The fine-tuning `{finetuned}` of `{base}`, carried over to `{target}`: "
            "`target + alpha * pi(finetuned - base)` for a permutation `pi` that keeps the function of the network.")
    figures = {name.replace("_", " "): value for name, value in data.items() if name not in ("output", "seconds")}
    return card(what, alignment.spec, figures)


def _check_model(model: str, inputs: tuple[str, ...], path: str, alignment: Alignment) -> None:
    """Raises SpecError unless the alignment at `path` is a symmetry of MODEL, as MODEL is understood now."""
    outputs = "free" if alignment.spec.outputs else "pinned"
    if not any(_moves_alike(alignment, spec_of(model, inputs, outputs, real)) for real in (False, True)):
        raise SpecError(f"the alignment {path} is for another model than {model}: match with this model, or "
                        "leave MODEL out")


def _moves_alike(alignment: Alignment, own: Spec) -> bool:
    """Whether the permutations of an alignment, put on the groups of another spec, move every number to the same place.
    The two may differ in how they divide what is pinned: a module on the meta device shows fewer constants."""
    spec = alignment.spec
    if any(getattr(spec, part) != getattr(own, part) for part in ("names", "ties", "stacks")):
        return False
    groups, others = ({g.name: (g.size, g.within) for g in each.groups.values()} for each in (spec, own))
    if groups != others:
        return False
    other = Alignment(own, alignment.permutations)
    for tensor in spec.layouts:
        if _text_of(spec, tensor) != _text_of(own, tensor):
            places = torch.arange(math.prod(spec.shapes[tensor])).reshape(spec.shapes[tensor])
            if not torch.equal(alignment.move(places, spec.layout(tensor)), other.move(places, own.layout(tensor))):
                return False
    return True


def _text_of(spec: Spec, tensor: str) -> list:
    """How a tensor is laid out, to compare."""
    return [[(axis.positions.tolist(), axis.factors) for axis in block] for block in spec.layout(tensor)]
