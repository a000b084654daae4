"""Example inputs: random tensors as --input says, or as the configuration of a transformers model says."""
from __future__ import annotations

import inspect
import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CaptureError
from .speech import note

_INPUT = re.compile(
    r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<sizes>\d+(?:x\d+)*)(?::(?P<dtype>[a-z]\w*))?(?::(?P<top>\d+))?"
)
_DTYPES = {"float": torch.float32, "double": torch.float64, "int": torch.int64, "long": torch.int64}


def example_inputs(module: nn.Module, texts: Sequence[str]) -> tuple | dict[str, Tensor]:
    """Random tensors for the --input options: a tuple, or a dict of keyword arguments if any has a name."""
    generator = torch.Generator().manual_seed(0)
    parsed = [_input(text, generator) for text in texts]
    for text, (_, tensor) in zip(texts, parsed):
        if 1 in tensor.shape[:1]:
            note(f"--input {text}: a dimension of size 1 hides how the network treats it; 2 or more shows "
                 "more")
    names = {name for name, _ in parsed if name}
    if not names:
        return tuple(tensor for _, tensor in parsed)
    free = [parameter for parameter in inspect.signature(module.forward).parameters if parameter not in names]
    if len(parsed) - len(names) > len(free):
        raise CaptureError(f"{type(module).__name__} takes fewer inputs than were given: give one --input "
                           "each")
    return {name or free.pop(0): tensor for name, tensor in parsed}


def _input(text: str, generator: torch.Generator) -> tuple[str | None, Tensor]:
    """The name, if there is one, and the tensor of an --input. Raises CaptureError."""
    found = _INPUT.fullmatch(text)
    if not found:
        raise CaptureError(f"--input {text!r} is not [name=]SIZExSIZE...[:dtype[:below]]: write 2x3x224x224, "
                           "or input_ids=2x16:int64:30000")
    sizes = [int(size) for size in found["sizes"].split("x")]
    dtype = _DTYPES.get(found["dtype"] or "float") or getattr(torch, found["dtype"], None)
    if not isinstance(dtype, torch.dtype) or dtype.is_complex or "float8" in str(dtype):
        raise CaptureError(f"--input {text!r}: {found['dtype']!r} is no dtype to make inputs of: use "
                           "float32, int64 or bool")
    if not 0 < math.prod(sizes) < 2**31:
        raise CaptureError(f"--input {text!r} has {math.prod(sizes):,} elements: give every dimension a size "
                           "of 1 or more, and fewer than 2^31 elements in all")
    if dtype.is_floating_point:
        return found["name"], torch.randn(sizes, generator=generator).to(dtype)
    below = max(1, int(found["top"] or 2))
    return found["name"], torch.randint(below, sizes, generator=generator).to(dtype)


def inputs_by_config(module: Any) -> dict[str, Tensor]:
    """Example inputs for a transformers model, from its configuration. Raises CaptureError."""
    config, generator = module.config, torch.Generator().manual_seed(0)

    def pictures() -> Tensor:
        side, channels = _setting(module, "image_size", 224), _setting(module, "num_channels", 3)
        return torch.randn((2, channels, side, side), generator=generator)

    main = module.main_input_name
    if main == "input_ids":
        ids = torch.randint(_setting(module, "vocab_size"), (2, 8), generator=generator)
        inputs = {main: ids} | ({"decoder_input_ids": ids} if config.is_encoder_decoder else {})
    elif main == "pixel_values":
        inputs = {main: pictures()}
    elif main == "input_values":
        inputs = {main: torch.randn((2, 4000), generator=generator)}
    elif main == "input_features" and getattr(config, "num_mel_bins", None):
        frames = 2 * getattr(config, "max_source_positions", 512)
        inputs = {main: torch.randn((2, config.num_mel_bins, frames), generator=generator)}
        if config.is_encoder_decoder:
            inputs["decoder_input_ids"] = torch.randint(_setting(module, "vocab_size"), (2, 8), generator=generator)
    else:
        needed = [name for name, parameter in inspect.signature(module.forward).parameters.items()
                  if parameter.default is inspect.Parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
        given = " ".join(f"--input {name}=SIZES:dtype" for name in dict.fromkeys([main, *needed]))
        raise CaptureError(f"{type(module).__name__} takes {main!r}, for which there is no example: give {given}")
    if all(getattr(config, part, None) is not None for part in ("vision_config", "text_config")):
        inputs["pixel_values"] = pictures()
    return inputs


def _setting(module: Any, name: str, default: int | None = None) -> int:
    """A number of the model's configuration, or of its vision's or text's; the first if there are several."""
    config = module.config
    for holder in (config, *(getattr(config, part, None) for part in ("vision_config", "text_config"))):
        value = getattr(holder, name, None)
        if value is not None:
            return int(value[0] if isinstance(value, (list, tuple)) else value)
    if default is None:
        raise CaptureError(f"{type(module).__name__}'s config does not say its {name}: give --input "
                           "name=SIZES:dtype")
    return default
