"""The command line.

Exit status: 0 done; 1 the answer is no; 2 the request is wrong, said in one line on stderr; 130 interrupted.
Answers go to stdout, everything else to stderr. Files appear whole or not at all, and never in place of
an input.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import re
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from . import __version__, checkpoint
from .alignment import Alignment
from .checkpoint import CheckpointNote, State, fill_ties, load_state, save_state, whole
from .errors import CaptureError, CheckpointError, FxrebasinError, NotEquivalentError
from .infer import infer
from .match import METHODS, match
from .spec import Spec
from .transport import transport
from .verify import Evidence, find_equivalence, verify

DONE, NO, WRONG, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143
_INPUT = re.compile(
    r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<sizes>\d+(?:x\d+)*)(?::(?P<dtype>[a-z]\w*))?(?::(?P<top>\d+))?"
)
_DTYPES = {"float": torch.float32, "double": torch.float64, "int": torch.int64, "long": torch.int64}


class Terminated(KeyboardInterrupt):
    """SIGTERM: leave as on Ctrl-C, with nothing half-written."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `fxrebasin`: never returns."""

    def terminate(*_: Any) -> None:
        raise Terminated

    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, terminate)
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line, without the program's name; returns the exit status."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", CheckpointNote)
        warnings.showwarning = lambda message, *_: note(str(message))
        try:
            status = commands.main(arguments, prog_name="fxrebasin", standalone_mode=False)
            sys.stdout.flush()
            return status if isinstance(status, int) else DONE
        except click.exceptions.Exit as error:
            return error.exit_code
        except (KeyboardInterrupt, click.Abort) as error:
            terminated = isinstance(error.__cause__ or error, Terminated)
            return fail("interrupted: nothing is half-written", TERMINATED if terminated else INTERRUPTED)
        except BrokenPipeError:  # `| head` has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        except Exception as error:
            if os.environ.get("FXREBASIN_DEBUG"):
                traceback.print_exc()
            return fail(explain(error), NO if isinstance(error, NotEquivalentError) else WRONG)


def explain(error: Exception) -> str:
    """One line for the user."""
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx else "fxrebasin"
        return f"{error.format_message().rstrip('.')}: see `{path} --help`"
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, FxrebasinError):
        return str(error)
    if isinstance(error, MemoryError) or "can't allocate" in str(error) or "not enough memory" in str(error):
        return "out of memory: use a machine with more, or a smaller --input"
    if isinstance(error, OSError):
        return f"{error.filename or 'a file'}: {error.strerror or error}: check the path and its permissions"
    return (
        f"internal error: {type(error).__name__}: {error}: this is a defect of fxrebasin, set "
        "FXREBASIN_DEBUG=1 for the traceback and report it"
    )


def fail(text: str, status: int) -> int:
    note(text, "error")
    return status


def note(text: str, word: str = "note") -> None:
    """One line on stderr, whatever is in the text."""
    line = "".join(c if c.isprintable() else " " for c in text)
    click.echo(f"fxrebasin: {word}: {' '.join(line.split())}", err=True)


# ---- what MODEL is -----------------------------------------------------------------------------------------


def load_model(model: str, inputs: Sequence[str], real: bool = False) -> tuple[nn.Module, Any]:
    """The module and example inputs for MODEL and the --input options; `real`: it must have weights.

    Raises CaptureError.
    """
    with contextlib.redirect_stdout(sys.stderr):  # user code may print; stdout is for the answer
        module, own = _from_folder(Path(model), real) if os.path.isdir(model) else _from_import(model)
        if inputs:
            return module, example_inputs(module, inputs)
        if callable(own):
            own = own()
    if own is None:
        raise CaptureError(
            f"{model} comes without example inputs: give --input, such as --input 2x3x224x224 or --input "
            "input_ids=2x16:int64, or let it return (model, inputs)"
        )
    return module, own


def _from_import(model: str) -> tuple[nn.Module, Any]:
    module_name, _, name = model.partition(":")
    dotted = all(re.fullmatch(r"\w+(\.\w+)*", text) for text in (module_name, name))
    if not dotted or module_name.endswith(".py"):
        advice = (
            f"write {Path(module_name).stem}:{name or 'CALLABLE'}, from its folder"
            if ".py" in model
            else "give package.module:callable, or a folder with a config.json"
        )
        raise CaptureError(f"{model!r} is neither a folder nor package.module:callable: {advice}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    made: Any = _guarded(f"cannot import {module_name}", importlib.import_module, module_name)
    for part in name.split("."):
        if not hasattr(made, part):
            raise CaptureError(f"{module_name} has no {name!r}: check the name after the colon")
        made = getattr(made, part)
    if not isinstance(made, nn.Module):
        if not callable(made):
            raise CaptureError(
                f"{model} is a {type(made).__name__}: it must be a callable that returns an nn.Module"
            )
        made = _guarded(f"{model}() failed", made)
    made, own = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(made, nn.Module):
        raise CaptureError(
            f"{model}() returned a {type(made).__name__}: it must return an nn.Module, or (model, inputs)"
        )
    return made, own


def _guarded(what: str, function: Callable, *args: Any) -> Any:
    """Calls code that is not ours, which can raise anything."""
    try:
        return function(*args)
    except (Exception, SystemExit) as error:
        frames = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename != __file__ and "importlib" not in frame.filename
        ]
        place = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
        raise CaptureError(
            f"{what}: {type(error).__name__}: {error}{place}: correct it, or run where it can be found"
        ) from error


def example_inputs(module: nn.Module, texts: Sequence[str]) -> Any:
    """Random tensors for the --input options: a tuple, or a dict of keyword arguments if any has a name."""
    generator = torch.Generator().manual_seed(0)
    parsed = [_input(text, generator) for text in texts]
    for text, (_, tensor) in zip(texts, parsed):
        if 1 in tensor.shape[:1]:
            note(
                f"--input {text}: a dimension of size 1 hides how the network treats it; 2 or more shows more"
            )
    if not any(name for name, _ in parsed):
        return tuple(tensor for _, tensor in parsed)
    import inspect

    free = [p for p in inspect.signature(module.forward).parameters if p not in {name for name, _ in parsed}]
    nameless = sum(name is None for name, _ in parsed)
    if nameless > len(free):
        raise CaptureError(
            f"{type(module).__name__} takes fewer inputs than were given: give one --input each"
        )
    return {name or free.pop(0): tensor for name, tensor in parsed}


def _input(text: str, generator: torch.Generator) -> tuple[str | None, Tensor]:
    found = _INPUT.fullmatch(text)
    if not found:
        raise CaptureError(
            f"--input {text!r} is not [name=]SIZExSIZE...[:dtype[:below]]: write 2x3x224x224, or "
            "input_ids=2x16:int64:30000"
        )
    sizes = [int(size) for size in found["sizes"].split("x")]
    dtype = _DTYPES.get(found["dtype"] or "float") or getattr(torch, found["dtype"], None)
    if not isinstance(dtype, torch.dtype) or dtype.is_complex or "float8" in str(dtype):
        raise CaptureError(
            f"--input {text!r}: {found['dtype']!r} is no dtype to make inputs of: use float32, int64 or bool"
        )
    if not 0 < math.prod(sizes) < 2**31:
        raise CaptureError(
            f"--input {text!r} has {math.prod(sizes):,} elements: give every dimension a size of 1 or more"
        )
    if dtype.is_floating_point:
        return found["name"], torch.randn(sizes, generator=generator).to(dtype)
    below = max(1, int(found["top"] or 2))
    return found["name"], torch.randint(below, sizes, generator=generator).to(dtype)


def _from_folder(folder: Path, real: bool) -> tuple[nn.Module, Any]:
    """A transformers model by its config.json, on the meta device unless `real`; nothing is downloaded."""
    try:
        text = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        name = text["architectures"][0]
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        raise CaptureError(
            f'{folder} has no config.json that names its "architectures": give a transformers folder, or '
            "package.module:callable"
        ) from None
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        import transformers
    except ImportError:
        raise CaptureError(
            f"{folder} needs the transformers package: pip install transformers, or give "
            "package.module:callable"
        ) from None
    transformers.logging.set_verbosity_error()
    architecture = _guarded(f"transformers cannot provide {name}", getattr, transformers, str(name), None)
    if not (isinstance(architecture, type) and issubclass(architecture, nn.Module)):
        raise CaptureError(
            f"transformers {transformers.__version__} has no {name!r}, which {folder}/config.json asks for: "
            "update transformers, or give package.module:callable"
        )

    def build() -> nn.Module:
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        config.use_cache = False  # a cache that is returned would be an output
        with torch.device("cpu" if real else "meta"):
            return architecture(config)

    module = _guarded(f"cannot build {name} from {folder}/config.json", build)
    if real:
        _load_own(module, folder)
    return module, lambda: _inputs_of(module)


def _load_own(module: nn.Module, folder: Path) -> None:
    """The folder's weights, where it has them and they are the model's."""
    own = module.state_dict(keep_vars=True)
    ties = {name: next(other for other in own if own[other] is tensor) for name, tensor in own.items()}
    try:
        state = fill_ties(load_state(folder), {alias: name for alias, name in ties.items() if alias != name})
        module.load_state_dict(state)
    except (CheckpointError, RuntimeError) as error:
        note(f"{folder}: random weights are used instead of its own: {error}")


def _inputs_of(module: Any) -> dict[str, Tensor]:
    """Example inputs for a transformers model, from its configuration."""
    config = module.config

    def size(*names: str, default: int | None = None) -> int:
        for holder in (config, *(getattr(config, part, None) for part in ("vision_config", "text_config"))):
            for name in names:
                value = getattr(holder, name, None)
                if value is not None:
                    return int(value[0] if isinstance(value, (list, tuple)) else value)
        if default is None:
            raise CaptureError(
                f"{type(module).__name__}'s config does not say its {names[0]}: give --input name=SIZES:dtype"
            )
        return default

    generator = torch.Generator().manual_seed(0)
    main = module.main_input_name
    if main == "input_ids":
        ids = torch.randint(size("vocab_size"), (2, 8), generator=generator)
        inputs = (
            {"input_ids": ids, "decoder_input_ids": ids} if config.is_encoder_decoder else {"input_ids": ids}
        )
    elif main == "pixel_values":
        side = size("image_size", default=224)
        inputs = {main: torch.randn((2, size("num_channels", default=3), side, side), generator=generator)}
    elif main == "input_values":
        inputs = {main: torch.randn((2, 4000), generator=generator)}
    else:
        raise CaptureError(
            f"{type(module).__name__} takes {main!r}, for which there is no example: give --input "
            f"{main}=SIZES:dtype"
        )
    if (
        getattr(config, "vision_config", None) is not None
        and getattr(config, "text_config", None) is not None
    ):
        side, channels = size("image_size", default=224), size("num_channels", default=3)
        inputs |= {"pixel_values": torch.randn((2, channels, side, side), generator=generator)}
    return inputs


# ---- shared by the commands --------------------------------------------------------------------------------


@contextlib.contextmanager
def working(what: str) -> Iterator[Callable[[dict], None]]:
    """A line on stderr for as long as something takes, if that is a terminal; stdout is kept clean."""
    with contextlib.redirect_stdout(sys.stderr):
        if not sys.stderr.isatty():
            yield lambda news: None
            return
        from rich.console import Console

        with Console(stderr=True).status(what) as status:
            yield lambda news: status.update(
                f"{what}: " + ", ".join(f"{key} {value}" for key, value in news.items()).replace("[", "\\[")
            )


def spec_of(model: str, inputs: Sequence[str], outputs: str = "pinned") -> Spec:
    module, own = load_model(model, inputs)
    with working("finding symmetries"):
        return infer(module, own, outputs=outputs)


def read(path: str, spec: Spec) -> State:
    return fill_ties(load_state(path), spec.ties)


def claim(output: str, *inputs: str | None, like: str | None = None, state: bool = False) -> None:
    """Raises CheckpointError, before any work, if `output` cannot be written or would replace an input."""
    path = Path(output)
    for given in filter(None, inputs):
        old, new = Path(given).resolve(), path.resolve()
        if new == old or path.exists() and old.exists() and path.samefile(old):
            raise CheckpointError(f"the output {output} is the input {given}: choose another name")
        if old in new.parents or new in old.parents:
            raise CheckpointError(
                f"the output {output} lies in the input {given}, or around it: choose another place"
            )
    if state:
        checkpoint.check_writable(output, like)
    elif not path.absolute().parent.is_dir():
        raise CheckpointError(
            f"cannot write {output}: there is no folder {path.absolute().parent}: make it first"
        )
    elif path.is_dir():
        raise CheckpointError(f"cannot write {output}: it is a folder: give the name of a file")


def write_text(path: str, text: str) -> None:
    with whole(path) as draft:
        draft.write_text(text, encoding="utf-8")


def find(
    spec: Spec, source: State, target: State, method: str, seed: int, effort: str
) -> tuple[Alignment, dict[str, Any]]:
    """The alignment, and what there is to say about it."""
    if not spec.groups:
        note("nothing in this model can be permuted, so nothing will move: `fxrebasin inspect` says why")
    started = time.perf_counter()
    with working("matching") as progress:
        alignment = match(spec, source, target, method, seed, effort=effort, progress=progress)
        before = match(spec, source, target, "identity").objective
    moved = alignment.moved
    return alignment, {
        "method": method,
        "seed": seed,
        "objective": alignment.objective,
        "objective_before": before,
        "moved": sum(moved.values()),
        "elements": sum(p.size for p in alignment.permutations.values()),
        "seconds": round(time.perf_counter() - started, 3),
    }


def describe(found: dict[str, Any]) -> str:
    return (
        f"{found['method']}: cosine similarity {found['objective_before']:.4f} before, "
        f"{found['objective']:.4f} aligned; "
        f"{found['moved']:,} of {found['elements']:,} elements moved; {found['seconds']:.1f} s"
    )


def answer(data: dict[str, Any], text: str, as_json: bool) -> None:
    """One JSON document, or text, on stdout."""
    click.echo(json.dumps(data, allow_nan=False) if as_json else text)


def _finite(number: float) -> float | str:
    return number if math.isfinite(number) else str(number)  # JSON has no infinity


def _evidence(evidence: Evidence) -> dict[str, Any]:
    return {
        "equivalent": evidence.equivalent,
        "max_abs": _finite(evidence.max_abs),
        "max_rel": _finite(evidence.max_rel),
        "where": evidence.where,
        "tolerance": evidence.tolerance,
        "offending": list(evidence.offending),
        "outputs": {path: [_finite(error) for error in errors] for path, errors in evidence.outputs.items()},
    }


# ---- commands ----------------------------------------------------------------------------------------------

_input_option = click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="[NAME=]SIZES[:DTYPE[:BELOW]]",
    help="An example input, such as 2x3x224x224 or input_ids=2x16:int64:30000; once for each.",
)
_json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document and nothing else."
)
_method_option = click.option("--method", type=click.Choice(METHODS), default="exact", show_default=True)
_seed_option = click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Decides every random choice."
)
_effort_option = click.option(
    "--effort", type=click.Choice(("fast", "balanced", "best")), default="balanced", show_default=True
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.version_option(__version__, prog_name="fxrebasin")
@click.pass_context
def commands(context: click.Context) -> None:
    """Permutation symmetries of neural networks, and what can be carried along them.

    MODEL is package.module:callable, called without arguments (it returns an nn.Module, or a pair of a module
    and its example inputs), or the folder of a transformers model. Checkpoints are safetensors or torch
    files, or folders of them.

    Exit status: 0 done, 1 the answer is no, 2 the request is wrong.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@commands.command()
@click.argument("model")
@_input_option
@click.option(
    "--outputs",
    type=click.Choice(("pinned", "free")),
    default="pinned",
    show_default=True,
    help="free: output axes may move with the network.",
)
@_json_option
@click.option("--dot", type=click.Path(), help="Write a graph for Graphviz to this file.")
@click.option("--html", type=click.Path(), help="Write a page to this file.")
def inspect(
    model: str, inputs: tuple[str, ...], outputs: str, as_json: bool, dot: str | None, html: str | None
) -> None:
    """Show the symmetries of MODEL: what can be permuted with what, and what is pinned and why."""
    for file in filter(None, (dot, html)):
        claim(file)
    spec = spec_of(model, inputs, outputs)
    if dot:
        write_text(dot, spec.to_dot())
    if html:
        write_text(html, spec.to_html())
    if as_json:
        click.echo(spec.to_json())
    elif dot or html:
        click.echo(
            f"{len(spec.groups)} groups, order 10^{spec.log10_order:.1f}; "
            f"written: {', '.join(filter(None, (dot, html)))}"
        )
    elif sys.stdout.isatty():
        from rich.console import Console

        from .show import renderable

        Console().print(renderable(spec))
    else:
        click.echo(str(spec))


@commands.command("match")
@click.argument("model")
@click.argument("source")
@click.argument("target")
@click.option("-o", "--output", required=True, type=click.Path(), help="The alignment file to write.")
@_input_option
@_method_option
@_seed_option
@_effort_option
@_json_option
def match_command(
    model: str,
    source: str,
    target: str,
    output: str,
    inputs: tuple[str, ...],
    method: str,
    seed: int,
    effort: str,
    as_json: bool,
) -> None:
    """Find the alignment that brings the checkpoint SOURCE (old base) close to TARGET (new base)."""
    claim(output, source, target)
    spec = spec_of(model, inputs)
    alignment, found = find(spec, read(source, spec), read(target, spec), method, seed, effort)
    alignment.save(output)
    answer(found | {"output": output}, f"{describe(found)}; written: {output}", as_json)


@commands.command()
@click.argument("alignment")
@click.argument("checkpoint")
@click.option("-o", "--output", required=True, type=click.Path(), help="The checkpoint to write.")
def apply(alignment: str, checkpoint: str, output: str) -> None:
    """Permute CHECKPOINT by the file ALIGNMENT; the result is stored as CHECKPOINT is."""
    claim(output, alignment, checkpoint, like=checkpoint, state=True)
    loaded = Alignment.load(alignment)
    save_state(loaded.apply(read(checkpoint, loaded.spec)), output, like=checkpoint)
    click.echo(f"{sum(loaded.moved.values()):,} elements moved; written: {output}")


@commands.command("transport")
@click.argument("model")
@click.argument("base")
@click.argument("finetuned")
@click.argument("target")
@click.option("-o", "--output", required=True, type=click.Path(), help="The checkpoint to write.")
@click.option(
    "--alpha", type=float, default=1.0, show_default=True, help="How much of the fine-tuning is added."
)
@click.option(
    "--alignment", type=click.Path(), help="Use this alignment of BASE onto TARGET instead of matching."
)
@_input_option
@_method_option
@_seed_option
@_effort_option
@_json_option
def transport_command(
    model: str,
    base: str,
    finetuned: str,
    target: str,
    output: str,
    alpha: float,
    alignment: str | None,
    inputs: tuple[str, ...],
    method: str,
    seed: int,
    effort: str,
    as_json: bool,
) -> None:
    """Carry a fine-tuning over: TARGET + alpha * pi(FINETUNED - BASE), stored as TARGET is."""
    claim(output, base, finetuned, target, alignment, like=target, state=True)
    loaded = Alignment.load(alignment) if alignment else None
    spec = loaded.spec if loaded else spec_of(model, inputs)
    states = [read(path, spec) for path in (base, finetuned, target)]
    if loaded:
        found, text = {"alignment": alignment}, f"alignment {alignment}"
    else:
        loaded, found = find(spec, states[0], states[2], method, seed, effort)
        text = describe(found)
    save_state(transport(*states, loaded, alpha), output, like=target)
    answer(found | {"alpha": alpha, "output": output}, f"{text}; alpha {alpha:g}; written: {output}", as_json)


@commands.command("verify")
@click.argument("model")
@click.argument("checkpoints", nargs=-1, metavar="CHECKPOINT_A CHECKPOINT_B | [CHECKPOINT] --alignment FILE")
@click.option(
    "--alignment",
    type=click.Path(),
    help="Check that this alignment keeps the function of MODEL, in float64, with "
    "the weights of CHECKPOINT or its own.",
)
@click.option(
    "-o", "--output", type=click.Path(), help="Write the alignment that makes A equal B to this file."
)
@_input_option
@_json_option
def verify_command(
    model: str,
    checkpoints: tuple[str, ...],
    alignment: str | None,
    output: str | None,
    inputs: tuple[str, ...],
    as_json: bool,
) -> int:
    """Decide whether checkpoint B is a permuted A, or whether an alignment keeps the function of MODEL."""
    if alignment and len(checkpoints) < 2 and not output:
        return _verify_alignment(model, checkpoints, alignment, inputs, as_json)
    if alignment or len(checkpoints) != 2:
        raise click.UsageError(
            "give two checkpoints (and -o if wanted), or --alignment FILE and at most one checkpoint",
            click.get_current_context(),
        )
    if output:
        claim(output, *checkpoints)
    spec = spec_of(model, inputs)
    a, b = (read(path, spec) for path in checkpoints)
    with working("comparing"):
        found = find_equivalence(spec, a, b)
    if found is None:
        answer(
            {"equivalent": False},
            f"NOT equivalent: no alignment was found that makes {checkpoints[0]} equal {checkpoints[1]}",
            as_json,
        )
        return NO
    if output:
        found.save(output)
    moved = sum(found.moved.values())
    answer(
        {"equivalent": True, "moved": moved} | ({"output": output} if output else {}),
        f"equivalent: {checkpoints[0]} with {moved:,} elements moved is {checkpoints[1]}, number for number"
        + (f"; written: {output}" if output else ""),
        as_json,
    )
    return DONE


def _verify_alignment(
    model: str, checkpoints: tuple[str, ...], path: str, inputs: tuple[str, ...], as_json: bool
) -> int:
    alignment = Alignment.load(path)
    module, own = load_model(model, inputs, real=True)
    state = read(checkpoints[0], alignment.spec) if checkpoints else None
    own = pytree.tree_map_only(Tensor, _telling, own)
    try:
        with working("running in float64"):
            evidence, status = verify(module, own, alignment, state=state), DONE
    except NotEquivalentError as error:
        if not isinstance(error.evidence, Evidence):
            raise
        evidence, status = error.evidence, NO
    answer(_evidence(evidence), str(evidence), as_json)
    return status


def _telling(tensor: Tensor) -> Tensor:
    """An input that shows differences: random numbers in place of a stand-in that is the same everywhere."""
    constant = tensor.is_floating_point() and (tensor.is_meta or bool((tensor == tensor.flatten()[:1]).all()))
    return (
        torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0), dtype=tensor.dtype)
        if constant
        else tensor
    )


@commands.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    default="fxrebasin-demo",
    show_default=True,
    help="A folder for pictures.",
)
@_json_option
def demo(output: str, as_json: bool) -> None:
    """Carry fine-tunings of two shipped networks over to new bases, and measure the worth. Offline."""
    from rich.console import Console

    from .demo.run import run as run_demo

    results = run_demo(output, Console(stderr=as_json, width=None if sys.stdout.isatty() else 120))
    if as_json:
        click.echo(json.dumps(results))
