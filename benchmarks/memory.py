"""Memory and time of `apply` and `transport` on a made folder of shards in half precision, beside mergekit's task
arithmetic on the same files.

    python -m benchmarks.memory --gigabytes 4 --scratch /tmp/memory -o benchmarks/results/memory.md

Needs transformers (the shapes are Llama's), and for the comparison mergekit. Peaks are the largest resident set of the
process, above that of an interpreter that has imported torch.
"""
from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from multiprocessing import active_children, get_context
from pathlib import Path

import torch
from benchmarks.machine import machine
from safetensors.torch import save_file

import fxrebasin as fxr

WIDTH, HIDDEN, HEADS, VOCABULARY, SHARD = 2048, 5632, 32, 32000, 1_000_000_000
LAYER_BYTES, REST_BYTES = 2 * (4 * WIDTH**2 + 3 * WIDTH * HIDDEN), 2 * 2 * VOCABULARY * WIDTH


def config(layers: int):
    from transformers import LlamaConfig

    return LlamaConfig(hidden_size=WIDTH, intermediate_size=HIDDEN, num_attention_heads=HEADS, num_hidden_layers=layers,
                       num_key_value_heads=HEADS, vocab_size=VOCABULARY, use_cache=False, dtype="bfloat16",
                       architectures=["LlamaForCausalLM"])


def make_alignment(layers: int, path: Path) -> None:
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(config(layers))
    fxr.infer(model, {"input_ids": torch.zeros(2, 8, dtype=torch.int64)}).random(0).save(path)


def make_folder(folder: Path, layers: int, shapes: dict[str, tuple[int, ...]], seed: int) -> None:
    """A checkpoint in shards, of numbers that repeat after some millions."""
    folder.mkdir()
    noise = torch.randn(1 << 24, generator=torch.Generator().manual_seed(seed)).mul_(0.02).bfloat16()
    shards: list[dict] = [{}]
    room = SHARD
    for name, shape in shapes.items():
        count = torch.Size(shape).numel()
        if 2 * count > room and shards[-1]:
            shards.append({})
            room = SHARD
        room -= 2 * count
        shards[-1][name] = shape
    files = {}
    for k, shard in enumerate(shards):
        file = f"model-{k + 1:05}-of-{len(shards):05}.safetensors"
        files |= dict.fromkeys(shard, file)
        tensors = {name: noise.repeat(-(-torch.Size(shape).numel() // len(noise)))[:torch.Size(shape).numel()].reshape(shape)
                   for name, shape in shard.items()}
        save_file(tensors, folder / file, metadata={"format": "pt"})
    total = sum(2 * torch.Size(shape).numel() for shape in shapes.values())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": files}))
    config(layers).save_pretrained(folder)


def make(scratch: Path, layers: int) -> None:
    scratch.mkdir(parents=True)
    make_alignment(layers, scratch / "pi.safetensors")
    shapes = dict(fxr.Alignment.load(scratch / "pi.safetensors").spec.names)
    for seed, name in enumerate(("a", "ft", "b")):
        make_folder(scratch / name, layers, shapes, seed)


def measured(command: list[str]) -> tuple[float, float, float]:
    """Seconds, those of the processor, and the largest resident set in gigabytes."""
    with tempfile.TemporaryFile() as errors:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            raise SystemExit(f"{command}: {errors.read().decode()[-2000:]}")
    return time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e9


def commands(scratch: Path) -> dict[str, list[str]]:
    python, out = sys.executable, str(scratch / "out")
    a, ft, b, pi = (str(scratch / name) for name in ("a", "ft", "b", "pi.safetensors"))
    own = [python, "-m", "fxrebasin"]
    found = {"apply": [*own, "apply", pi, a, "-o", out],
             "transport": [*own, "transport", a, ft, b, "--alignment", pi, "-o", out]}
    if importlib.util.find_spec("mergekit"):
        (scratch / "merge.yml").write_text(json.dumps({
            "merge_method": "task_arithmetic", "base_model": a, "dtype": "bfloat16", "parameters": {"normalize": False},
            "models": [{"model": ft, "parameters": {"weight": 1.0}}, {"model": b, "parameters": {"weight": 1.0}}]}))
        found["mergekit, task arithmetic"] = [
            python, "-c", "from mergekit.scripts.run_yaml import main; main()", str(scratch / "merge.yml"), out,
            "--no-copy-tokenizer", "--out-shard-size", "1B"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    scratch, layers = arguments.scratch, max(1, round((arguments.gigabytes * 1e9 - REST_BYTES) / LAYER_BYTES))
    if not scratch.exists():  # in a process of its own: what this one holds would count for those that it starts
        get_context("spawn").Process(target=make, args=(scratch, layers)).start()
        for child in active_children():
            child.join()
    size = sum(file.stat().st_size for file in (scratch / "a").glob("*.safetensors")) / 1e9
    *_, idle = measured([sys.executable, "-c", "import torch"])
    rows = []
    for name, command in commands(scratch).items():
        runs = []
        for _ in range(arguments.repeats):
            shutil.rmtree(scratch / "out", ignore_errors=True)
            runs.append(measured(command))
            print(name, runs[-1], flush=True)
        rows.append(f"| {name} | {max(run[2] for run in runs) - idle:.2f} | {min(run[1] for run in runs):.1f} | "
                    f"{min(run[0] for run in runs):.1f} |")
    text = "\n".join([
        "# Memory and time on folders", "",
        f"`python -m benchmarks.memory --gigabytes {arguments.gigabytes:g} --scratch DIR`; {machine()}.", "",
        f"Each input is a folder of {size:.2f} GB in bfloat16 (Llama's shapes, width {WIDTH}, {layers} layers, shards of "
        f"{SHARD / 1e9:g} GB); the largest tensor takes {2 * VOCABULARY * WIDTH / 1e9:.2f} GB. Peak: the largest resident set "
        f"above an interpreter that has imported torch ({idle:.2f} GB), the largest of {arguments.repeats} runs. Time: the "
        "fastest; the processor's seconds are the ones to compare, since other work ran on the machine.", "",
        "| | peak, GB | processor, s | clock, s |", "|---|---|---|---|", *rows, ""])
    print(text)
    if arguments.output:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
