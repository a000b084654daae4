"""Adapters that PEFT wrote, for folders that transformers wrote, carried by the command line and loaded by PEFT again.

    python -m benchmarks.adapters [-o benchmarks/results/adapters.md]

For each tiny model, in float64: a base A, an unrelated new base B, and an adapter of A with random numbers everywhere.
`fxrebasin transport A A ADAPTER B --alignment PI` (PI is random), then PEFT loads the result onto B and merges it: the
largest difference from `transport` of A with PEFT's own merge of the adapter. Beside it how far B is from that, so that
nothing carried would not pass. With bf16: the same on bfloat16 shards, where the result must load.
"""
from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fxrebasin as fxr
from benchmarks.machine import machine
from fxrebasin.cli.entry import run
from fxrebasin.cli.model import load_model

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj"]


def models() -> dict[str, tuple[Callable[[], nn.Module], list[dict[str, Any]]]]:
    import transformers as t

    text = SMALL | {"vocab_size": 50}
    grouped = text | {"num_key_value_heads": 2, "use_cache": False}
    vision = SMALL | {"image_size": 16, "patch_size": 8}
    clip = {"text_config": text | {"max_position_embeddings": 20, "eos_token_id": 49}, "vision_config": vision,
            "projection_dim": 16}
    return {
        "Llama": (lambda: t.LlamaForCausalLM(t.LlamaConfig(**grouped)), [
            {"target_modules": "all-linear", "use_rslora": True},
            {"target_modules": ["embed_tokens", "lm_head", "down_proj"], "modules_to_save": ["norm"]}]),
        "Qwen2": (lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**grouped)), [
            {"target_modules": LINEAR, "bias": "all"},
            {"target_modules": ["gate_proj"], "trainable_token_indices": {"embed_tokens": [1, 7]}}]),
        "BERT": (lambda: t.BertForMaskedLM(t.BertConfig(**text)), [
            {"target_modules": ["query", "value", "word_embeddings"], "bias": "lora_only"}]),
        "GPT-2": (lambda: t.GPT2LMHeadModel(t.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=50, n_positions=32,
                                                         use_cache=False)), [
            {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True, "lora_bias": True},
            {"target_modules": ["c_proj", "lm_head"], "rank_pattern": {"h.0.attn.c_proj": 2}}]),
        "ViT": (lambda: t.ViTForImageClassification(t.ViTConfig(**vision)), [
            {"target_modules": "all-linear", "modules_to_save": ["classifier"]}, {"target_modules": ["projection"]}]),
        "CLIP": (lambda: t.CLIPModel(t.CLIPConfig(**clip)), [{"target_modules": ["q_proj", "fc2", "patch_embedding"]}]),
        "Mixtral": (lambda: t.MixtralForCausalLM(t.MixtralConfig(**grouped, num_local_experts=4)), [
            {"target_modules": LINEAR, "target_parameters": ["experts.gate_up_proj", "experts.down_proj", "gate.weight"]}]),
    }


def adapted(make: Callable[[], nn.Module], state: dict, options: dict, folder: Path) -> dict[str, torch.Tensor]:
    """Writes an adapter of random numbers; the state with it merged in, by PEFT."""
    import peft

    module = make().double()
    module.load_state_dict(state)
    wrapped = peft.get_peft_model(module, peft.LoraConfig(r=3, lora_alpha=5, **options)).double()
    generator = torch.Generator().manual_seed(5)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    wrapped.save_pretrained(folder)
    return dict(wrapped.merge_and_unload().state_dict())


def loaded(make: Callable[[], nn.Module], state: dict, folder: Path) -> dict[str, torch.Tensor]:
    """A state with the adapter of a folder merged in, by PEFT."""
    import peft

    module = make().double()
    module.load_state_dict(state)
    return dict(peft.PeftModel.from_pretrained(module, folder).double().merge_and_unload().state_dict())


def gap(one: dict, other: dict) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one if one[name].is_floating_point())


def carried(make: Callable[[], nn.Module], options: dict, place: Path) -> tuple[float, float, bool]:
    """The gap, that of B as it is, and whether the result of bfloat16 shards loads with from_pretrained."""
    states = {}
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        module = make().double()
        states[name] = {key: tensor.clone() for key, tensor in module.state_dict().items()}
        module.save_pretrained(place / name, max_shard_size="40KB")
        module.bfloat16().save_pretrained(place / f"{name}16", max_shard_size="20KB")
    spec = fxr.infer(*load_model(str(place / "a"), (), real=True))
    pi = spec.random(3)
    pi.save(place / "pi.safetensors")
    merged = adapted(make, states["a"], options, place / "adapter")
    line = ["transport", str(place / "a"), str(place / "a"), str(place / "adapter"), str(place / "b"), "--alignment",
            str(place / "pi.safetensors"), "-o", str(place / "out")]
    low = [text.replace(str(place / "a"), str(place / "a16")) if text == str(place / "a") else text for text in line]
    low[4], low[-1] = str(place / "b16"), str(place / "out16")
    for command in (line, [*low, "--full"]):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
            status = run(command)
        if status:
            raise SystemExit(f"{command}: {errors.getvalue()}")
    expected = fxr.transport(states["a"], merged, states["b"], pi)
    found = loaded(make, states["b"], place / "out")
    again = type(make()).from_pretrained(place / "out16")
    return gap(expected, found), gap(expected, states["b"]), all(p.dtype == torch.bfloat16 for p in again.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    for name, (make, kinds) in models().items():
        for options in kinds:
            started = time.perf_counter()
            with tempfile.TemporaryDirectory() as place:
                error, far, loads = carried(make, options, Path(place))
            text = json.dumps(options)[1:-1].replace('"', "")
            rows.append(f"| {name} | {text} | {error:.1e} | {far:.1e} | {'yes' if loads else 'no'} |")
            print(rows[-1], f"{time.perf_counter() - started:.0f} s", flush=True)
    text = "\n".join(["# Adapters carried by the command line and merged by PEFT", "",
                      f"`python -m benchmarks.adapters`; {machine()}.", "",
                      "| model | adapter | gap, float64 | B as it is | bf16 shards, --full, load |", "|---|---|---|---|---|",
                      *rows, ""])
    if arguments.output:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
