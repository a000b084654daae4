"""What `apply` and `transport` need at 70 and 400 billion parameters: counted and measured on small files, then projected.

    python -m benchmarks.scale --scratch DIR -o benchmarks/results/scale.md

Counted: how many bytes are read and written for each byte of a checkpoint, on a tiny Llama in shards. Measured: peak and time
on files whose largest tensor is of several sizes; the peak is a line in that size. Projected: both, with the shapes
of large Llamas, which are made on the meta device. Needs transformers.
"""
from __future__ import annotations

import argparse
import shutil
import sys
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from benchmarks.machine import machine
from benchmarks.memory import measured
from safetensors.torch import save_file
from torch import nn

import fxrebasin as fxr
from fxrebasin.checkpoint import Stored, header, save_state, stored, writer

COMMANDS = ("apply", "transport")
ROWS, WIDTH = (16384, 32768, 65536), 4096
SHARD = 5_000_000_000  # bytes: what transformers writes by default
LARGE = {"70 B": dict(hidden_size=8192, intermediate_size=28672, num_attention_heads=64, num_key_value_heads=8,
                      num_hidden_layers=80, vocab_size=128256),
         "405 B": dict(hidden_size=16384, intermediate_size=53248, num_attention_heads=128, num_key_value_heads=8,
                       num_hidden_layers=126, vocab_size=128256)}
TINY = dict(hidden_size=64, intermediate_size=176, num_attention_heads=8, num_key_value_heads=2, num_hidden_layers=4,
            vocab_size=512)


def llama(settings: dict[str, int]) -> nn.Module:
    """On the meta device, in half precision."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(**settings, use_cache=False, tie_word_embeddings=False)).bfloat16()


def sizes(settings: dict[str, int]) -> list[int]:
    """Bytes of each tensor."""
    return [tensor.nbytes for tensor in llama(settings).state_dict().values()]


def shards(tensors: list[int]) -> list[int]:
    """Bytes of each shard, filled in order."""
    found = [0]
    for size in tensors:
        if found[-1] and found[-1] + size > SHARD:
            found.append(0)
        found[-1] += size
    return found


# ---- counted -----------------------------------------------------------------------------------------------


def counted(command: str, scratch: Path) -> tuple[float, float]:
    """Bytes read and bytes written for each byte of a checkpoint, beside headers."""
    from fxrebasin.cli import run

    read, written = [], []

    def reading(descriptor, entry):
        read.append(entry.stop - entry.start)
        return header.read_tensor(descriptor, entry)

    def writing(descriptor, entry, tensor):
        written.append(entry.stop - entry.start)
        header.write_tensor(descriptor, entry, tensor)

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(stored, "read_tensor", reading))
        stack.enter_context(mock.patch.object(writer, "write_tensor", writing))
        assert run([*line(command, scratch), "--quiet"]) == 0
    with Stored(scratch / "base.safetensors") as base:
        return sum(read) / base.size, sum(written) / base.size


def line(command: str, folder: Path) -> list[str]:
    base, tuned, new, pi, out = (str(folder / f"{name}.safetensors") for name in ("base", "tuned", "new", "pi", "out"))
    return (["apply", pi, base, "-o", out] if command == "apply" else
            ["transport", base, tuned, new, "--alignment", pi, "-o", out])


def make_tiny(folder: Path) -> None:
    folder.mkdir(parents=True)
    model = llama(TINY)
    fxr.infer(model, {"input_ids": torch.zeros(2, 8, dtype=torch.int64)}).random(0).save(folder / "pi.safetensors")
    for name in ("base", "tuned", "new"):
        save_state({key: torch.randn(tensor.shape).bfloat16() for key, tensor in model.state_dict().items()},
                   folder / f"{name}.safetensors")


# ---- measured ----------------------------------------------------------------------------------------------


def make_large(folder: Path, rows: int) -> None:
    """Three checkpoints of one large tensor, both of whose axes move."""
    folder.mkdir(parents=True)
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(8, WIDTH, bias=False), nn.ReLU(), nn.Linear(WIDTH, rows, bias=False), nn.ReLU(),
                              nn.Linear(rows, 8, bias=False))
    fxr.infer(model, torch.zeros(2, 8, device="meta")).random(0).save(folder / "pi.safetensors")
    for seed, name in enumerate(("base", "tuned", "new")):
        noise = torch.randn(1 << 24, generator=torch.Generator().manual_seed(seed)).bfloat16()
        state = {key: noise.repeat(-(-tensor.numel() // len(noise)))[:tensor.numel()].reshape(tensor.shape)
                 for key, tensor in model.state_dict().items()}
        save_file(state, folder / f"{name}.safetensors", metadata={"format": "pt"})


def measurements(scratch: Path, idle: float) -> dict[str, list[tuple[float, float, float]]]:
    """Command -> for each size: gigabytes of the largest tensor, of the peak, and seconds of the processor."""
    found: dict[str, list[tuple[float, float, float]]] = {command: [] for command in COMMANDS}
    for rows in ROWS:
        folder = scratch / str(rows)
        process = get_context("spawn").Process(target=make_large, args=(folder, rows))  # what it holds is not ours
        process.start()
        process.join()
        for command in COMMANDS:
            _, seconds, peak = measured([sys.executable, "-m", "fxrebasin", *line(command, folder)])
            found[command].append((2 * rows * WIDTH / 1e9, peak - idle, seconds))
            print(command, found[command][-1], flush=True)
        shutil.rmtree(folder)
    return found


# ---- projected ---------------------------------------------------------------------------------------------


def projected(command: str, tensors: list[int], moved: tuple[float, float], runs: list[tuple[float, float, float]]) -> str:
    """A row: gigabytes read and written, those of memory of a worker, and hours."""
    slope, start = np.polyfit([run[0] for run in runs], [run[1] for run in runs], 1)
    rate = rate_of(moved, runs)
    read, written = (sum(tensors) * each / 1e9 for each in moved)
    parts = shards(tensors)
    hours = (read + written) / rate / 3600
    last = max(parts) / 1e9 * sum(moved) / rate / 3600
    return (f"{command} | {read:,.0f} | {written:,.0f} | {start + slope * max(tensors) / 1e9:.1f} | {hours:.2f} | "
            f"{max(hours / 8, last):.2f} | {len(parts)} | {last:.3f}")


def rate_of(moved: tuple[float, float], runs: list[tuple[float, float, float]]) -> float:
    """Gigabytes, read and written together, for each second of the processor: between the smallest and the largest file."""
    return sum(moved) * (runs[-1][0] - runs[0][0]) / (runs[-1][2] - runs[0][2])


def text_of(counts: dict[str, tuple[float, float]], runs: dict[str, list[tuple[float, float, float]]], idle: float) -> str:
    lines = ["# Large checkpoints", "", f"`python -m benchmarks.scale --scratch DIR`; {machine()}.", "",
             "Counted on a tiny Llama, for each byte of a checkpoint:", "", "| | bytes read | bytes written |", "|---|---|---|",
             *(f"| {command} | {counts[command][0]:.3f} | {counts[command][1]:.3f} |" for command in COMMANDS), "",
             "Measured on files of one large tensor in half precision, both of whose axes move; the peak is above an "
             f"interpreter that has imported torch ({idle:.2f} GB); one run each:", "",
             "| | largest tensor, GB | peak, GB | processor, s |", "|---|---|---|---|",
             *(f"| {command} | {size:.2f} | {peak:.2f} | {seconds:.1f} |" for command in COMMANDS
               for size, peak, seconds in runs[command]), ""]
    for command in COMMANDS:
        slope, start = np.polyfit([run[0] for run in runs[command]], [run[1] for run in runs[command]], 1)
        lines.append(f"{command}: {start:.2f} GB and {slope:.2f} times the largest tensor; "
                     f"{1000 * rate_of(counts[command], runs[command]):.0f} MB read or written in a second of one thread.  ")
    lines += ["", "Projected, for the shapes of Llama 3 in half precision, in shards of 5 GB; the hours are those of one thread "
              "for each worker, and storage that keeps up with them:", "",
              "| parameters | | read, GB | written, GB | memory of a worker, GB | hours, 1 worker | hours, 8 workers | shards | "
              "hours for a shard |", "|---|---|---|---|---|---|---|---|---|"]
    for name, settings in LARGE.items():
        tensors = sizes(settings)
        lines += [f"| {name} | {projected(command, tensors, counts[command], runs[command])} |" for command in COMMANDS]
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    *_, idle = measured([sys.executable, "-c", "import torch"])
    runs = measurements(arguments.scratch, idle)
    make_tiny(arguments.scratch / "tiny")
    counts = {command: counted(command, arguments.scratch / "tiny") for command in COMMANDS}
    text = text_of(counts, runs, idle)
    print(text)
    if arguments.output:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
