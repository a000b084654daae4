"""One line on why there is no graph: the module fails on these inputs, or the tracers refuse it."""
from __future__ import annotations

import os
import traceback

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor

from ..errors import CaptureError
from .program import NOT_THE_USER


def explanation(call: nn.Module, inputs: dict[str, Tensor], refusal: Exception, recording: Exception) -> str:
    """Why `call`, a module over `inputs` that holds the user's as `captured`, has no graph.

    refusal    what export raised
    recording  what the recorder raised after that
    """
    if isinstance(refusal, CaptureError):
        return line_of(refusal)
    name = type(call.captured).__name__
    held = {**dict(call.named_parameters()), **dict(call.named_buffers())}
    try:
        copies = {key: tensor.clone() for key, tensor in held.items()}
        torch.func.functional_call(call, copies, (inputs,))
    except Exception as error:  # noqa: BLE001 - the user's code can raise anything
        if not type(error).__module__.startswith("torch."):
            return (f"{name} does not run on the example inputs{place_of(error)}: {type(error).__name__}: "
                    f"{line_of(error)}; give inputs that its forward accepts")
    if isinstance(recording, CaptureError):  # it knows what is the matter
        return (f"{name} cannot be captured{place_of(recording)}: {line_of(recording)}; capture the part of "
                "the module without this line")
    if any(isinstance(tensor, FakeTensor) for tensor in (*held.values(), *inputs.values())):
        advice = "a branch on values can be recorded if the module is on a real device, not on meta"
    else:
        advice = f"recording what the inputs do failed too{place_of(recording)}: {line_of(recording)}"
    return (f"{name} cannot be captured{place_of(refusal)}: {line_of(refusal)}; {advice}; or capture the "
            "part of the module without this line")


def line_of(error: Exception) -> str:
    """The first line of an error's message, for use within a line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".;:")[:300]


def place_of(error: Exception) -> str:
    """The last line of the user's code that the error came through, as ` at net.py:12 (y = f(x))`."""
    user = [frame for frame in traceback.extract_tb(error.__traceback__)
            if not frame.filename.startswith(NOT_THE_USER)]
    return f" at {os.path.basename(user[-1].filename)}:{user[-1].lineno} ({user[-1].line})" if user else ""
