"""Mutated files and killed processes: no traceback, no damaged output.

    python -m benchmarks.faults [--mutations 10000] [--kills 200] [-o benchmarks/results/faults.md]

Headers and bodies of safetensors files, torch files, indices and alignments are changed, cut and lengthened; `apply` then
must do its work, or refuse in one line. `apply` and `transport` are killed at random moments; what lies under the name of
the output must be the right answer or nothing. The numbers of a safetensors file carry no checksum: a change there alone
cannot be seen, by this or any reader, and is counted apart.
"""
from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from torch import nn

import fxrebasin as fxr
from benchmarks.machine import machine
from fxrebasin.checkpoint import load_state, save_state
from fxrebasin.cli import DONE, WRONG, run


def mutated(content: bytes, seed: int) -> bytes:
    """A file with some bytes changed, a part cut out, doubled or added; half the time near its beginning."""
    rng = random.Random(seed)
    result = bytearray(content)
    near = min(len(content), 2000) if rng.random() < 0.5 else len(content)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        place, length = rng.randrange(near), rng.choice((1, 1, 1, 8, 100))
        kind = rng.randrange(6)
        if kind < 3:
            result[place:place + length] = rng.randbytes(length)[:max(0, len(result) - place)]
        elif kind == 3:
            del result[place:place + length]
        elif kind == 4:
            result[place:place] = result[place:place + length]
        else:
            result[place:place + 1] = rng.choice((b"\x00", b"\xff", b'"', b"}", b"[", b"9", b"-", b"{", b"\\"))
    return bytes(result)


def network(width: int = 8) -> nn.Module:
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))


def prepare(width: int = 8) -> None:
    """States a, ft, b as files of either kind, and an alignment, in the working directory."""
    torch.manual_seed(0)
    for name in ("a", "ft", "b"):
        state = network(width).state_dict()
        save_state(state, f"{name}.safetensors")
        save_state(state, f"{name}.pt")
    fxr.infer(network(width), torch.zeros(2, 4)).random(1).save("pi.safetensors")


def mutations(count: int) -> Counter:
    """Outcomes by file."""
    prepare()
    right = fxr.Alignment.load("pi.safetensors").apply(load_state("a.safetensors"))
    found: Counter = Counter()
    for seed in range(count):
        file = ("a.safetensors", "a.pt", "pi.safetensors")[seed % 3]
        good = Path(file).read_bytes()
        Path(file).write_bytes(mutated(good, seed))
        with contextlib.redirect_stderr(io.StringIO()) as errors, contextlib.redirect_stdout(io.StringIO()):
            checkpoint = "a.pt" if file == "a.pt" else "a.safetensors"
            status = run(["apply", "pi.safetensors", checkpoint, "-o", "out.safetensors"])
        text = errors.getvalue()
        Path(file).write_bytes(good)
        if status not in (DONE, WRONG) or "Traceback" in text or "internal error" in text:
            outcome = "a defect"
            print(seed, file, status, text[-500:])
        elif status == WRONG:
            outcome = "refused in one line" if text.count("fxrebasin: error: ") == 1 else "a defect"
        else:
            result = load_state("out.safetensors")
            same = result.keys() == right.keys() and all(torch.equal(result[n], right[n]) for n in right)
            outcome = "the right answer" if same else "other numbers, which nothing in the file could show"
            os.unlink("out.safetensors")
        if any(name.endswith(".part") for name in os.listdir(".")):
            outcome = "a defect"
        found[file, outcome] += 1
    return found


def kills(count: int) -> Counter:
    """Outcomes of killed processes."""
    prepare(width=200_000)
    lines = [["apply", "pi.safetensors", "a.safetensors", "-o"],
             ["transport", "a.safetensors", "ft.safetensors", "b.safetensors", "--alignment", "pi.safetensors", "-o"]]
    own = [sys.executable, "-m", "fxrebasin"]
    right, seconds = [], []
    for k, line in enumerate(lines):
        started = time.perf_counter()
        subprocess.run([*own, *line, f"right{k}.safetensors"], check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - started)
        right.append(Path(f"right{k}.safetensors").read_bytes())
    found: Counter = Counter()
    rng = random.Random(0)
    for k in range(count):
        which = k % 2
        process = subprocess.Popen([*own, *lines[which], "out.safetensors"], stdout=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.5, 1.1) * seconds[which])  # most of the time before is taken by imports
        process.kill()
        process.wait()
        drafts = [name for name in os.listdir(".") if name.endswith(".part")]
        if not Path("out.safetensors").exists():
            found["nothing" + (", and a draft that the next run sweeps" if drafts else "")] += 1
        else:
            same = Path("out.safetensors").read_bytes() == right[which]
            found["the right answer" if same else "a damaged output"] += 1
            os.unlink("out.safetensors")
    subprocess.run([*own, *lines[0], "out.safetensors"], check=True, stdout=subprocess.DEVNULL)
    found["drafts left at the end"] += sum(name.endswith(".part") for name in os.listdir("."))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    output = arguments.output and arguments.output.absolute()
    rows = []
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        for (file, outcome), count in sorted(mutations(arguments.mutations).items()):
            rows.append(f"| {file}, mutated | {outcome} | {count:,} |")
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        for outcome, count in sorted(kills(arguments.kills).items()):
            rows.append(f"| killed | {outcome} | {count:,} |")
    command = f"python -m benchmarks.faults --mutations {arguments.mutations} --kills {arguments.kills}"
    text = "\n".join(["# Mutated files and killed processes", "", f"`{command}`; {machine()}.", "",
                      "The numbers in a safetensors file, and those of an alignment as far as they are still "
                      "permutations, carry no checksum: what changes there alone cannot be seen.", "",
                      "| | outcome | count |", "|---|---|---|", *rows, ""])
    print(text)
    if output:
        output.write_text(text)


if __name__ == "__main__":
    main()
