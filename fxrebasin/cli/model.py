"""What MODEL is: the name of something that makes an `nn.Module`, of a model that a library lists, or the folder of a
transformers model."""
from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.util
import json
import os
import pkgutil
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checkpoint import State, conversions, load_state
from ..errors import CaptureError, CheckpointError
from ..infer import infer
from ..spec import Spec
from ..spec.fitting import Fitted, Link, fit
from .example import example_inputs, inputs_by_config
from .progress import working
from .named import LIBRARIES, from_library
from .speech import note


def spec_of(model: str, inputs: Sequence[str], outputs: str = "pinned", real: bool = False) -> Spec:
    """The symmetries of MODEL; `real`: with its weights, which shows constants that there are not without. Raises
    CaptureError."""
    module, own = load_model(model, inputs, real)
    with working("finding symmetries"):
        return infer(module, own, outputs=outputs)


def load_model(model: str, inputs: Sequence[str], real: bool = False) -> tuple[nn.Module, Any]:
    """The module and example inputs for MODEL and the --input options; `real`: it must have weights.

    Raises CaptureError.
    """
    with contextlib.redirect_stdout(sys.stderr):  # user code may print; stdout is for the answer
        module, own = _from_folder(Path(model), real) if os.path.isdir(model) else _from_import(model, real)
        if inputs:
            return module, example_inputs(module, inputs)
        if callable(own):
            own = own()
    if own is None:
        raise CaptureError(f"{model} comes without example inputs: give --input, such as --input 2x3x224x224 "
                           "or --input input_ids=2x16:int64, or let it return (model, inputs)")
    return module, own


# ---- package.module:callable -------------------------------------------------------------------------------


def _from_import(model: str, real: bool = False) -> tuple[nn.Module, Any]:
    """The module, and its example inputs or None."""
    library, _, name = model.partition(":")
    if library in LIBRARIES:
        return from_library(library, name, real)
    made = imported(model)
    if not isinstance(made, nn.Module):
        if not callable(made):
            raise CaptureError(f"{model} is a {type(made).__name__}: it must be a callable that returns an "
                               "nn.Module")
        made = _guarded(f"{model}() failed", made)
    made, own = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(made, nn.Module):
        raise CaptureError(f"{model}() returned a {type(made).__name__}: it must return an nn.Module, or "
                           "(model, inputs)")
    return made, own


def imported(model: str) -> Any:
    """What package.module:name names."""
    module_name, _, name = model.partition(":")
    dotted = all(re.fullmatch(r"\w+(\.\w+)*", text) for text in (module_name, name))
    if not dotted or module_name.endswith(".py"):
        advice = (f"write {Path(module_name).stem}:{name or 'CALLABLE'}, from its folder" if ".py" in model
                  else "give package.module:callable, or a folder with a config.json")
        raise CaptureError(f"{model!r} is neither a folder nor package.module:callable: {advice}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    found: Any = _guarded(f"cannot import {module_name}{_near_module(module_name)}", importlib.import_module, module_name)
    for part in name.split("."):
        if not hasattr(found, part):
            raise CaptureError(f"{module_name} has no {name!r}{_near(part, dir(found))}: check the name after the colon")
        found = getattr(found, part)
    return found


def _near(name: str, names: Iterable[str]) -> str:
    """The names like one that there is not, as a part of a message."""
    near = difflib.get_close_matches(name, [other for other in names if not other.startswith("__")], 3)
    return f"; near it: {', '.join(near)}" if near else ""


def _near_module(name: str) -> str:
    """The same for a module that cannot be found among those in its place; nothing for one that is there."""
    above, _, last = name.rpartition(".")
    try:
        if importlib.util.find_spec(name) is not None:
            return ""
        places = importlib.import_module(above).__path__ if above else None
    except Exception:  # noqa: BLE001 - what is above it is not there, no package, or fails: its own error says so
        return ""
    return _near(last, (module.name for module in pkgutil.iter_modules(places)))


def _guarded(what: str, function: Callable, *args: Any) -> Any:
    """Calls code that is not ours, which can raise anything."""
    try:
        return function(*args)
    except (Exception, SystemExit) as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__)
                  if frame.filename != __file__ and "importlib" not in frame.filename]
        place = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
        raise CaptureError(f"{what}: {type(error).__name__}: {error}{place}: correct it, or run where it can "
                           "be found") from error


# ---- the folder of a transformers model --------------------------------------------------------------------


def _from_folder(folder: Path, real: bool) -> tuple[nn.Module, Callable]:
    """A transformers model by its config.json, on the meta device unless `real`, and what makes its inputs.

    Nothing is downloaded, and no code from the folder is run.
    """
    try:
        name = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        raise CaptureError(f'{folder} has no config.json that names its "architectures": give a transformers '
                           "folder, or package.module:callable") from None
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        import transformers
    except ImportError:
        raise CaptureError(f"{folder} needs the transformers package: pip install transformers, or give "
                           "package.module:callable") from None
    transformers.logging.set_verbosity_error()
    architecture = _guarded(f"transformers cannot provide {name}", getattr, transformers, str(name), None)
    if not (isinstance(architecture, type) and issubclass(architecture, nn.Module)):
        raise CaptureError(f"transformers {transformers.__version__} has no {name!r}, which "
                           f"{folder}/config.json asks for: update transformers, or give "
                           "package.module:callable")

    def build() -> nn.Module:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True,
                                                         trust_remote_code=False)
        config.use_cache = False  # a cache that is returned would be an output
        with torch.device("cpu" if real else "meta"):
            return architecture(config)

    module = _guarded(f"cannot build {name} from {folder}/config.json", build)
    if real:
        _load_own(module, folder)
    return module, lambda: inputs_by_config(module)


@dataclass(frozen=True)
class _Names:
    """What a module's file is fitted to, where no spec is at hand."""

    names: Mapping[str, tuple[int, ...]]
    ties: Mapping[str, str]
    passed: tuple[str, ...] = ()


def _load_own(module: nn.Module, folder: Path) -> None:
    """The folder's weights, where it has them and they are the model's; entries that the model does not have,
    such as tables that were stored once, do not matter."""
    own = module.state_dict(keep_vars=True)
    first = {name: next(other for other in own if own[other] is tensor) for name, tensor in own.items()}
    wanted = _Names({name: tuple(tensor.shape) for name, tensor in own.items()},
                    {alias: name for alias, name in first.items() if alias != name})
    try:
        given = load_state(folder)
        state = Fitted(fit(wanted, given, conversions(module)), given)
        module.load_state_dict({name: tensor for name, tensor in state.items() if name in own})
    except (CheckpointError, RuntimeError) as error:
        note(f"{folder}: random weights are used instead of its own: {error}")


def conversions_of(model: str | None, path: str) -> Callable[[State], list[Link]] | None:
    """What the library of a model converts when it loads a file: asked of MODEL, or of the folder that the file is."""
    place = Path(model or path)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            if place.is_dir():
                return conversions(_from_folder(place, real=False)[0])
            return conversions(_from_import(model)[0]) if model else None
    except CaptureError:
        return None
