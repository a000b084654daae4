"""`transport --inputs`: what is carried over is fitted to unlabelled inputs from a file."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click
from torch import Tensor, nn

from ..alignment import Alignment
from ..transport import Adapter, Calibration, calibrate, choose_alpha, transport
from .model import load_model
from .progress import working
from .samples import read_samples

State = Mapping[str, Tensor]


def refuse_fitting(context: click.Context, model: str | None, alpha: float | str, samples: str | None,
                   keep: str | None) -> None:
    """Raises UsageError for options about inputs that do not go together."""
    if samples is None and (keep is not None or alpha == "auto"):
        what = "--keep" if keep is not None else "--alpha auto"
        raise click.UsageError(f"{what} needs inputs of the task: give --inputs FILE", context)
    if samples is None:
        return
    if model is None:
        raise click.UsageError("--inputs needs MODEL, to run it: give it first", context)
    if alpha == "auto" and keep is not None:
        raise click.UsageError("--alpha auto has no use for --keep: leave --alpha out to fit to both", context)
    if alpha not in ("auto", 1.0):
        raise click.UsageError("with --inputs, how much is added is fitted: leave --alpha out, or give auto", context)


def fitted(model: str, inputs: tuple[str, ...], states: Sequence[State], alignment: Alignment, alpha: float | str,
           samples: str, keep: str | None) -> tuple[State, dict[str, Any], str]:
    """The state fitted to inputs, and what there is to say about it: as data, and as text."""
    module = load_model(model, inputs, real=True)[0]
    states, batch = [dict(state) for state in states], read_samples(samples, module)
    if alpha == "auto":
        chosen = choose_alpha(module, *states, alignment, batch)
        data = {"alpha": chosen.value, "curve": [list(point) for point in chosen.curve.items()]}
        return transport(*states, alignment, chosen.value), data, str(chosen)
    found = _calibrated(module, states, alignment, batch, keep, "all")
    return found.state, _data(found), str(found).splitlines()[0]


def fitted_adapter(model: str, inputs: tuple[str, ...], states: Sequence[State], alignment: Alignment,
                   carried: Adapter, samples: str, keep: str | None) -> tuple[Adapter, dict[str, Any], str]:
    """A carried adapter with gains in its factors, fitted to inputs; the rest as `fitted`."""
    module = load_model(model, inputs, real=True)[0]
    found = _calibrated(module, [dict(state) for state in states], alignment, read_samples(samples, module), keep, "gains")
    return found.gains.fold(carried, alignment.spec), _data(found), str(found).splitlines()[0]


def _calibrated(module: nn.Module, states: list[dict], alignment: Alignment, batch: Any, keep: str | None,
                fit: str) -> Calibration:
    with working("fitting to the inputs"):
        return calibrate(module, *states, alignment, batch, read_samples(keep, module) if keep else None, fit=fit)


def _data(found: Calibration) -> dict[str, Any]:
    return {"agreement": round(found.agreement, 6), "agreement_before": round(found.before, 6), "start": found.start,
            "losses": dict(found.losses), "passes": round(found.passes, 1), "notes": list(found.notes)}
