"""Models by name, from the libraries that keep lists of them: `timm:NAME`, `torchvision:NAME`. Nothing is downloaded."""
from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CaptureError

LIBRARIES = ("timm", "torchvision")
_BATCH = 2


def from_library(library: str, name: str, real: bool) -> tuple[nn.Module, Tensor | None]:
    """A model by its name, on the meta device unless `real` (then its weights are random), and an example input of the
    size that it was made for, None where the library does not say. Raises CaptureError."""
    try:
        module = importlib.import_module("timm" if library == "timm" else "torchvision.models")
    except ImportError as error:
        raise CaptureError(f"{library}:{name} needs the {library} package ({error}): pip install {library}, or give "
                           "package.module:callable") from None
    make, shape = (_timm if library == "timm" else _torchvision)(module, name)
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu" if real else "meta"):
            torch.manual_seed(0)
            model = make().eval()
    except Exception as error:  # noqa: BLE001 - another library's code can raise anything
        raise CaptureError(f"{library} cannot make {name!r}: {type(error).__name__}: {error}: give "
                           "package.module:callable") from error
    size = shape(model)
    generator = torch.Generator().manual_seed(0)
    return model, None if size is None else torch.randn((_BATCH, *size), generator=generator)


def _known(library: str, name: str, names: Sequence[str]) -> None:
    if name not in names:
        near = difflib.get_close_matches(name, names, 3)
        also = f"; near it: {', '.join(near)}" if near else ""
        raise CaptureError(f"{library} has no model {name!r}{also}: check the name")


def _timm(timm: Any, name: str) -> tuple[Callable[[], nn.Module], Callable[[nn.Module], tuple | None]]:
    _known("timm", name.partition(".")[0], timm.list_models())

    def size(model: nn.Module) -> tuple | None:
        own = getattr(model, "pretrained_cfg", None) or {}
        return tuple(own["input_size"]) if own.get("input_size") else None

    return lambda: timm.create_model(name, pretrained=False), size


def _torchvision(models: Any, name: str) -> tuple[Callable[[], nn.Module], Callable[[nn.Module], tuple | None]]:
    _known("torchvision", name, models.list_models())

    def size(_: nn.Module) -> tuple | None:
        """As its weights were trained on; detection models take lists, of which there is no example."""
        try:
            transforms = models.get_model_weights(name).DEFAULT.transforms()
        except (AttributeError, ValueError):
            return None
        crop = getattr(transforms, "crop_size", None) or getattr(transforms, "resize_size", None)
        if not crop:
            return None
        height, width = (crop[0], crop[-1])
        frames = (8,) if name.startswith(("r3d", "mc3", "r2plus1d", "s3d", "mvit", "swin3d")) else ()
        return (3, *(16 if name.startswith(("mvit", "s3d")) else n for n in frames), height, width)

    return lambda: models.get_model(name, weights=None, **_options(models.get_model_builder(name))), size


def _options(builder: Callable) -> dict[str, Any]:
    """Options by which nothing is downloaded, and no numbers are drawn for minutes."""
    known = inspect.signature(builder).parameters
    return {"weights_backbone": None} if "weights_backbone" in known else (
        {"init_weights": False} if builder.__name__ in ("googlenet", "inception_v3") else {})
