"""Families of transformers, as save_pretrained writes them, through the command line: match, transport,
verify.

    python -m benchmarks.families [--only PATTERN] [--table]

For each family a tiny model A is saved, its fine-tuning F (A under noise) and a new base B that is a planted
permutation of A: three folders whose files go by the names that the library gives them. Then, on those
folders,

    fxrebasin match A A B -o pi           the objective must be 1
    fxrebasin transport A A F B -o T      T's files must have B's names, and T must compute what F does
    fxrebasin verify A --alignment pi     the function must stay
    fxrebasin verify A A B                B must be found to be a permuted A

`converted`: how many entries of the file go by other names than in the module. `order`: of the symmetries. `F
- T`: the largest difference of the outputs of F and of T, both loaded with from_pretrained, relative to the
largest output, in float32; `F - A` beside it: what the fine-tuning did, so that a T without it would not
pass. `--table` writes results/families.md.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import io
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.machine import machine
from fxrebasin import infer
from fxrebasin.capture import leaves_of
from fxrebasin.checkpoint import form_of
from fxrebasin.cli.entry import run
from fxrebasin.cli.model import load_model

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
TEXT = {**TINY, "vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
IMAGE = {**TINY, "image_size": 16, "patch_size": 8, "num_labels": 3}
FAMILIES: dict[
    str, tuple[str, str, dict[str, Any]]
] = {  # name -> model class, configuration class, its arguments
    "BERT": ("BertForSequenceClassification", "BertConfig", TEXT),
    "RoBERTa": ("RobertaForMaskedLM", "RobertaConfig", {**TEXT, "max_position_embeddings": 40}),
    "ELECTRA": ("ElectraForPreTraining", "ElectraConfig", {**TEXT, "embedding_size": 16}),
    "DistilBERT": (
        "DistilBertForMaskedLM",
        "DistilBertConfig",
        {"vocab_size": 64, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
    ),
    "GPT-2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2},
    ),
    "GPT-NeoX": ("GPTNeoXForCausalLM", "GPTNeoXConfig", TEXT),
    "OPT": (
        "OPTForCausalLM",
        "OPTConfig",
        {
            "vocab_size": 64,
            "hidden_size": 32,
            "word_embed_proj_dim": 32,
            "ffn_dim": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    "Llama": ("LlamaForCausalLM", "LlamaConfig", {**TEXT, "num_key_value_heads": 2}),
    "Mistral": ("MistralForCausalLM", "MistralConfig", {**TEXT, "num_key_value_heads": 2}),
    "Gemma": ("GemmaForCausalLM", "GemmaConfig", {**TEXT, "num_key_value_heads": 2, "head_dim": 8}),
    "Qwen2": ("Qwen2ForCausalLM", "Qwen2Config", {**TEXT, "num_key_value_heads": 2}),
    "Phi-3": ("Phi3ForCausalLM", "Phi3Config", {**TEXT, "num_key_value_heads": 2}),
    "Mixtral": (
        "MixtralForCausalLM",
        "MixtralConfig",
        {**TEXT, "num_key_value_heads": 2, "num_local_experts": 3},
    ),
    "Qwen2-MoE": (
        "Qwen2MoeForCausalLM",
        "Qwen2MoeConfig",
        {
            **TEXT,
            "num_key_value_heads": 2,
            "num_experts": 3,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 24,
        },
    ),
    "T5": (
        "T5ForConditionalGeneration",
        "T5Config",
        {
            "vocab_size": 64,
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 48,
            "num_layers": 2,
            "num_heads": 4,
            "decoder_start_token_id": 0,
        },
    ),
    "ViT": ("ViTForImageClassification", "ViTConfig", IMAGE),
    "DINOv2": ("Dinov2ForImageClassification", "Dinov2Config", {**IMAGE, "mlp_ratio": 2}),
    "CLIP": (
        "CLIPModel",
        "CLIPConfig",
        {
            "text_config": {**TEXT, "max_position_embeddings": 24},
            "vision_config": {**TINY, "image_size": 16, "patch_size": 8},
            "projection_dim": 16,
        },
    ),
    "ResNet": (
        "ResNetForImageClassification",
        "ResNetConfig",
        {
            "embedding_size": 8,
            "hidden_sizes": [8, 16],
            "depths": [1, 1],
            "layer_type": "basic",
            "num_labels": 3,
        },
    ),
}
NOISE = 0.05  # of a fine-tuning, relative to the size of each tensor
CLOSE = 1e-4  # relative: float32 rounding through two layers


def made(name: str, seed: int) -> nn.Module:
    """A tiny model of a family, all of its entries random."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    cls, config, arguments = FAMILIES[name]
    torch.manual_seed(seed)
    module = getattr(transformers, cls)(getattr(transformers, config)(**arguments)).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for key, buffer in module.named_buffers():
            if key.endswith("running_mean"):
                buffer.copy_(torch.randn_like(buffer))
            if key.endswith("running_var"):
                buffer.copy_(torch.rand_like(buffer) + 0.5)
    return module


def saved(module: nn.Module, folder: Path) -> Path:
    with quiet():
        module.save_pretrained(folder)
    return folder


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def command(*arguments: object) -> tuple[int, dict[str, Any], str]:
    """Exit status, the JSON answer, and what went to stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = run([*map(str, arguments), "--json"])
    return status, json.loads(out.getvalue()) if out.getvalue() else {}, err.getvalue()


def loaded(folder: Path) -> tuple[Callable[[], dict[str, torch.Tensor]], nn.Module]:
    """A folder's model as from_pretrained loads it, and its outputs on inputs that are the same for all."""
    with quiet():
        blank, inputs = load_model(str(folder), ())
        module = type(blank).from_pretrained(folder, dtype=torch.float32).eval()
    for part in module.modules():  # keys and values that are handed out are permuted, as they should be
        if hasattr(getattr(part, "config", None), "use_cache"):
            part.config.use_cache = False
    generator = torch.Generator().manual_seed(0)
    inputs = {key: torch.randn(x.shape, generator=generator) if x.is_floating_point() else x for key, x in inputs.items()}
    with torch.no_grad():
        outputs = {path: x for path, x in leaves_of(module(**inputs)) if isinstance(x, torch.Tensor)}
    return outputs, module


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[k] - other[k]).abs().max() / one[k].abs().max().clamp_min(1e-12)) for k in one)


def measure(name: str, place: Path) -> dict[str, Any]:
    """One row of the table."""
    a = made(name, 0)
    folder = {key: place / key for key in ("A", "F", "B", "T")}
    saved(a, folder["A"])
    with quiet():
        spec = infer(*load_model(str(folder["A"]), ()))
    state = a.state_dict()
    torch.manual_seed(1)
    parameters = {key for key, _ in a.named_parameters(remove_duplicate=False)}
    shared: dict[int, torch.Tensor] = {}
    fine = {key: shared.setdefault(x.data_ptr(), x + NOISE * x.abs().mean() * torch.randn_like(x)) if key in parameters else x
            for key, x in state.items()}
    for key, content in (("F", fine), ("B", spec.random(3).apply(state))):
        a.load_state_dict(content)
        saved(a, folder[key])
    pi = place / "pi.safetensors"
    match = command("match", folder["A"], folder["A"], folder["B"], "-o", pi)
    transport = command("transport", folder["A"], folder["A"], folder["F"], folder["B"], "-o", folder["T"])
    kept = command("verify", folder["A"], "--alignment", pi)
    equal = command("verify", folder["A"], folder["A"], folder["B"])
    row = {
        "family": name,
        "entries": len(state),
        "order": f"10^{spec.log10_order:.0f}",
        "converted": len(set(form_of(folder["A"]).files) - set(state)),
        "status": [match[0], transport[0], kept[0], equal[0]],
        "objective": match[1].get("objective"),
        "said": [
            *dict.fromkeys(line for each in (match, transport, kept, equal) for line in each[2].splitlines())
        ],
    }
    if not transport[0]:
        outputs = {key: loaded(folder[key])[0] for key in "AFT"}
        row |= {"names": set(form_of(folder["T"]).files) == set(form_of(folder["B"]).files),
                "F - T": apart(outputs["F"], outputs["T"]), "F - A": apart(outputs["F"], outputs["A"])}
    return row


def right(row: dict[str, Any]) -> bool:
    return (row["status"] == [0, 0, 0, 0] and row["objective"] > 1 - 1e-6 and row["names"]
            and row["F - T"] < CLOSE < 10 * CLOSE < row["F - A"])


def table(rows: list[dict[str, Any]], seconds: float) -> str:
    lines = [f"| {r['family']} | {r['entries']} | {r['converted']} | {r['order']} | {r['objective']:.6f} | {r['F - T']:.0e} | "
             f"{r['F - A']:.0e} | {'yes' if right(r) else 'NO'} |" for r in rows]
    good = sum(map(right, rows))
    return (
        f"# Families of transformers, by command line\n\n`python -m benchmarks.families --table`; {machine()}; "
        f"{seconds:.0f} s. {good} of {len(rows)} right.\n\n"
        "| family | entries | converted | order | objective | F - T | F - A | match, transport, verify twice |\n"
        "|---|---|---|---|---|---|---|---|\n" + "\n".join(lines) + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="*", help="families whose name fits this pattern")
    parser.add_argument("--table", action="store_true", help="write results/families.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    started, rows = time.perf_counter(), []
    for name in fnmatch.filter(FAMILIES, options.only):
        with tempfile.TemporaryDirectory() as place:
            rows.append(measure(name, Path(place)))
        print("right" if right(rows[-1]) else "WRONG", json.dumps(rows[-1]), flush=True)
    if options.table:
        Path(__file__).with_name("results").joinpath("families.md").write_text(table(rows, time.perf_counter() - started))


if __name__ == "__main__":
    main()
