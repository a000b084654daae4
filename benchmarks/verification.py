"""What `verify` accepts and what it lets through.

    python benchmarks/verification.py [--share 1.0] [--only NAME ...]     writes
                                                                          benchmarks/results/verification.md

Right alignments: random elements of the spec, verified with the module (captured each time). Spoiled ones: a
random element, and then two indices exchanged at one site alone, verified on the example inputs alone and by
default. Whether a spoiled one changes the function is decided by the module itself, in float64, on inputs
that show more than the example: drawn ones, many of them, at its own weights and at others. Networks: those
of tests/hiding.py, whose examples show little; the small ones of tests/architectures.py; public decoders,
tiny, from transformers.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]

import numpy as np
import torch
from architectures import LIGHT, build
from hiding import HIDING, Spoiled
from torch import nn

import fxrebasin as fxr
from benchmarks.machine import machine
from fxrebasin.capture import leaves_of
from fxrebasin.evaluate import draw_inputs, draw_state, given_inputs

DECODERS = (
    "llama",
    "mistral",
    "mixtral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "phi3",
    "olmo2",
    "cohere",
    "granite",
    "gpt2",
    "gpt_neox",
    "opt",
    "bloom",
    "falcon",
    "stablelm",
    "starcoder2",
    "mpt",
)
RIGHT = 5  # random elements of each spec
TRIALS = {"hiding": 40, "small": 16, "decoder": 10}  # spoiled alignments of each network of a kind

HEAD = """# What `verify` accepts, and what it lets through

Right alignments accepted: {accepted} of {right}. Spoiled ones (one site, two indices) that change the
function and were missed: {missed} of {changing} ({missed_share:.1%}); on the example inputs alone {blind}
({blind_share:.1%}). Of {changing} caught or missed, the site was named in {named}. Command: `python
benchmarks/verification.py`.

Machine: {machine}.

*right*: random elements of the spec accepted. *caught*, *missed*: spoiled alignments that change what the
module gives on drawn inputs, in float64. *blind*: of these, missed by a run on the example inputs alone (the
control: `draws=0`). *harmless*: spoiled ones that do not change it; *refused*: of these, those that `verify`
refuses all the same. *site*: of those caught, how often the exchanged tensor and axis were named. *error*:
largest relative error of a right alignment. *seconds*: by the
clock, capture included, on a machine that other work shared.

| network | right | caught | missed | blind | harmless | refused | site | error | seconds for one |
|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|
"""


def networks() -> dict[str, Callable[[], tuple[nn.Module, Any]]]:
    def hiding(name: str) -> tuple[nn.Module, Any]:
        module, inputs = HIDING[name]
        return module(), inputs()

    return {**{f"hiding: {name}": partial(hiding, name) for name in HIDING},
            **{f"small: {name}": partial(build, name) for name in LIGHT},
            **{f"decoder: {name}": partial(decoder, name) for name in DECODERS}}


def decoder(kind: str) -> tuple[nn.Module, dict[str, Any]]:
    """A tiny decoder with its head."""
    from transformers import AutoModelForCausalLM

    from benchmarks.zoo_models import _tiny_config, _token_inputs

    config = _tiny_config(kind)
    model = AutoModelForCausalLM.from_config(config)
    if kind == "mixtral":  # grouped products, which other modules of experts choose by default, refuse float64
        model.set_experts_implementation("batched_mm")
    return model, _token_inputs(model, config)


class Truth:
    """What the module gives in float64 on drawn inputs, at its own weights and at others."""

    def __init__(self, module: nn.Module, program: fxr.capture, inputs: Any, pi: fxr.Alignment):
        self.module = copy.deepcopy(module).double().eval()
        own = {k: v.detach().double() if v.is_floating_point() else v for k, v in module.state_dict().items()}
        example = given_inputs(program, inputs)
        drawn = [draw_inputs(program, [example], 100 + seed) for seed in range(8)]
        self.given = [self._double(example), *map(self._double, drawn)]
        self.states = [own, draw_state(program, 101, own), draw_state(program, 104, own)]
        self.before = [self.results(state) for state in self.states]
        self.noise = max(self._gap(pi, k) for k in range(len(self.states)))

    def _double(self, inputs: dict) -> dict:
        return {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}

    def results(self, state: dict) -> list[torch.Tensor]:
        self.module.load_state_dict(state)
        with torch.no_grad():
            results = [self.module(**given) for given in self.given]
        return [leaf.double() for result in results for _, leaf in leaves_of(result) if isinstance(leaf, torch.Tensor)]

    def _gap(self, alignment: fxr.Alignment, k: int) -> float:
        after = self.results(alignment.apply(self.states[k]))
        return max(float(((a - b).nan_to_num().abs() / (b.abs() + b[b.abs() < 1e3].abs().mean().nan_to_num() + 1e-300)).max())
                   for a, b in zip(after, self.before[k]))

    def changes(self, alignment: fxr.Alignment) -> bool:
        return any(self._gap(alignment, k) > 1e-9 + 1e3 * self.noise for k in range(len(self.states)))


def spoiled(spec: fxr.Spec, state: dict, trials: int) -> Iterator[Spoiled]:
    """Alignments with two indices exchanged at one site of a tensor of the state dict."""
    rng = np.random.default_rng(0)
    sites = [(s.tensor, s.axis) for group in spec.groups.values() for s in group.sites if s.tensor in state]
    for _ in range(trials if sites else 0):
        tensor, axis = sites[rng.integers(len(sites))]
        i, j = rng.choice(state[tensor].shape[axis], 2, replace=False)
        yield Spoiled.of(spec.random(int(rng.integers(1_000_000))), tensor, axis, int(i), int(j))


def refusal(model: Any, inputs: Any, alignment: fxr.Alignment, **options) -> fxr.Evidence | None:
    """What was measured, if the alignment is refused."""
    try:
        fxr.verify(model, inputs, alignment, **options)
    except fxr.NotEquivalentError as error:
        return error.evidence
    return None


def measure(make: Callable[[], tuple[nn.Module, Any]], trials: int) -> dict[str, Any]:
    torch.manual_seed(0)
    module, inputs = make()
    module.eval()
    program, state = fxr.capture(module, inputs), module.state_dict()
    spec = fxr.infer(program)
    found = dict.fromkeys(("right", "caught", "missed", "blind", "harmless", "refused", "site"), 0)
    errors, start = [0.0], time.perf_counter()
    for seed in range(RIGHT):
        try:
            errors.append(fxr.verify(module, inputs, spec.random(seed)).max_rel)
            found["right"] += 1
        except fxr.FxrebasinError as error:
            print(f"  right alignment {seed}: {type(error).__name__}: {error}", flush=True)
    seconds = (time.perf_counter() - start) / RIGHT
    truth = Truth(module, program, inputs, spec.random(7))
    for alignment in spoiled(spec, state, trials):
        evidence = refusal(program, inputs, alignment, state=state)
        if not truth.changes(alignment):
            found["harmless"] += 1
            found["refused"] += evidence is not None
            continue
        found["caught" if evidence else "missed"] += 1
        if evidence is None:
            print("  missed:", alignment.where, flush=True)
        found["blind"] += refusal(program, inputs, alignment, state=state, draws=0) is None
        found["site"] += evidence is not None and alignment.where[:2] in evidence.sites
    return {**found, "error": max(errors), "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="of the trials of each network")
    parser.add_argument("--only", nargs="*", default=())
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = {}
    for name, make in networks().items():
        if options.only and not any(word in name for word in options.only):
            continue
        try:
            rows[name] = measure(make, round(options.share * TRIALS[name.partition(":")[0]]))
            print(name, rows[name], flush=True)
        except Exception as error:  # noqa: BLE001 - a row that says so, and the others
            print(name, type(error).__name__, str(error).splitlines()[:1], flush=True)
            rows[name] = {"failed": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}
    if not options.only:
        (HERE / "results" / "verification.md").write_text(table(rows))


def table(rows: dict[str, dict[str, Any]]) -> str:
    whole = {name: row for name, row in rows.items() if "failed" not in row}
    total = {key: sum(row[key] for row in whole.values()) for key in ("right", "caught", "missed", "blind", "site")}
    changing = total["caught"] + total["missed"]
    lines = [
        f"| {name} | {r['right']} of {RIGHT} | {r['caught']} | {r['missed']} | {r['blind']} | {r['harmless']} | "
        f"{r['refused']} | {r['site']} | {r['error']:.1e} | {r['seconds']:.1f} |"
        for name, r in whole.items()
    ]
    lines += [f"| {name} | not measured: {row['failed']} | | | | | | | | |" for name, row in rows.items() if "failed" in row]
    return (
        HEAD.format(
            accepted=total["right"],
            right=RIGHT * len(rows),
            missed=total["missed"],
            changing=changing,
            missed_share=total["missed"] / max(1, changing),
            blind=total["blind"],
            named=total["site"],
            blind_share=total["blind"] / max(1, changing),
            machine=machine(),
        )
        + "\n".join(lines)
        + "\n"
    )


if __name__ == "__main__":
    main()
