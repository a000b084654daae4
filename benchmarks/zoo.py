"""The zoo: infers the symmetries of many public architectures and checks each against the network itself.

    python -m benchmarks.zoo [--family torchvision|timm|transformers] [--only PATTERN] [--limit N] [--table]

Every model is built with random weights (transformers from tiny configurations, the others in a small variant at a small
image size), in a process of its own with a time limit. A row is written as soon as it is known: a run that is cut short
goes on where it stopped, and `--again` runs anew what `--only` names. `--table` writes results/zoo.md from the rows.

What a row says: times are CPU seconds of one thread; `share` is the part of the state's elements with at least one axis
that some group moves; `error` is the worst relative change of an output, max |y - y'| / max |y|, under three random group
elements, in float64, with every tensor of the state randomised; `error, free` is the same for one element of the larger group in
which the outputs' axes move with the network (the residual stream of a model without a head); `control` is the error after
half of the tensors that should have moved were left where they are: if that is small, the others prove little. Beyond 20
million parameters there is one random element and no `error, free`.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import fnmatch
import inspect
import os
import pickle
import platform
import re
import runpy
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fxrebasin as fxr
from fxrebasin.capture import Program, capture

RESULTS = Path(__file__).with_name("results")
COLUMNS = ("family", "model", "outcome", "parameters", "nodes", "capture_s", "infer_s", "groups", "log10_order", "share",
           "error", "error_free", "control", "unruled_axes", "unruled_ops", "front_end")
SOUND = 1e-9
MANY_PARAMETERS = 20_000_000  # beyond, one random element instead of four
MOST_PARAMETERS = 160_000_000  # beyond, float64 copies take too much memory: not evaluated


# ------------------------------------------------------------------------------------------------- torchvision and timm


def torchvision_models() -> dict[str, Callable]:
    import torchvision
    models = torchvision.models
    kinds = {name: kind for kind in (models, models.segmentation, models.video) for name in models.list_models(kind)}
    return {name: partial(_image_model, partial(models.get_model, name, weights=None, **(
        {"weights_backbone": None} if kind is models.segmentation else {})), name) for name, kind in kinds.items()}


def timm_models() -> dict[str, Callable]:
    """One small model of every family (module of timm.models)."""
    import timm
    families: dict[str, list[str]] = {}
    for name in timm.list_models():
        families.setdefault(timm.models._registry._model_to_module[name], []).append(name)
    names = [min(members, key=_size_rank) for members in families.values()]
    return {name: partial(_image_model, partial(timm.create_model, name), name) for name in names}


_SIZES = ("test", "zepto", "atto", "femto", "pico", "nano", "xxs", "xx_small", "xs", "xsmall", "extra_small", "tiny", "t",
          "mini", "s", "small", "lite", "0", "00", "50", "b0", "m0", "s0", "m1", "l0", "b1", "xxt", "t0", "a0", "ti", "n")


def _size_rank(name: str) -> tuple:
    words = re.split(r"[_.]", name)
    rank = min((_SIZES.index(word) for word in words if word in _SIZES), default=len(_SIZES))
    digits = [int(d) for d in re.findall(r"\d+", name)]
    return rank, sum(digits), len(name)


def _image_model(build: Callable, name: str) -> tuple[nn.Module, Any]:
    """A model and the smallest images that it accepts, two of them. Narrow and shallow if it takes these options."""
    problem: Exception | None = None
    ways: list[tuple[str, ...]] = [("narrow", "sized"), ("narrow",), ("sized",), ()]
    for side in (64, 128, 224, 256):
        for way in list(ways):
            try:
                model = build(**(_NARROW if "narrow" in way else {}), **({"img_size": side} if "sized" in way else {}))
            except Exception as error:
                problem = error
                if isinstance(error, TypeError):  # it has no such options
                    ways.remove(way)
                continue
            try:
                inputs = _images(name, side)
                with torch.no_grad():
                    model.eval()(*inputs)
                return model, inputs
            except Exception as error:  # it does not take this size
                problem = error
    raise problem


_NARROW = {"depth": 3, "embed_dim": 96, "num_heads": 4}


def _images(name: str, side: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    if "raft" in name:
        return tuple(torch.rand(2, 3, max(side, 128), max(side, 128), generator=generator) for _ in range(2))
    if re.search("3d|mvit_v|mc3|r2plus1d", name):
        return torch.rand(2, 3, 16, max(side, 224) if "mvit" in name else side, max(side, 224) if "mvit" in name else side,
                          generator=generator),
    return torch.rand(2, 3, side, side, generator=generator),


# ----------------------------------------------------------------------------------------------------- transformers


_TINY = {
    2: "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_encoder_layers num_decoder_layers "
       "num_hidden_groups num_key_value_heads num_experts_per_tok encoder_num_hidden_layers decoder_num_hidden_layers "
       "num_kv_heads num_query_groups moe_topk top_k moe_num_experts_per_tok num_entity_layers qformer_layers "
       "l_layers x_layers r_layers num_dense_layers n_group topk_group num_blocks",
    4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads num_local_experts "
       "num_experts n_routed_experts encoder_num_attention_heads decoder_num_attention_heads moe_num_experts",
    8: "head_dim d_kv attention_head_size rotary_dim kv_channels qk_rope_head_dim qk_nope_head_dim v_head_dim",
    16: "embedding_size kv_lora_rank q_lora_rank mamba_d_state state_size entity_embed_dim",
    32: "hidden_size d_model n_embd dim emb_dim embed_dim hidden_dim encoder_hidden_size decoder_hidden_size "
        "attention_hidden_size lru_width word_embed_proj_dim projection_dim output_size cross_attention_hidden_size "
        "embedding_dim",
    48: "intermediate_size ffn_dim d_ff encoder_ffn_dim decoder_ffn_dim n_inner dim_feedforward ffn_hidden_size "
        "moe_intermediate_size shared_expert_intermediate_size expert_dim encoder_intermediate_size mlp_dim "
        "ffn_intermediate_size dense_intermediate_size moe_shared_expert_intermediate_size",
    60: "vocab_size vocab_size_per_layer_input",
    64: "max_position_embeddings n_positions n_ctx max_seq_len max_source_positions max_target_positions image_size "
        "max_sequence_length seq_length",
    16.5: "patch_size",
}
_TINY_VALUES = {name: int(size) for size, names in _TINY.items() for name in names.split()}
_SPECIAL_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id", "unk_token_id",
                   "decoder_start_token_id", "forced_eos_token_id", "mask_token_id")

# What the common sizes do not fit, by model type.
_SPECIFIC: dict[str, dict[str, Any]] = {
    "bloom": {}, "t5": {}, "mt5": {}, "falcon": {"multi_query": True, "alibi": False}, "vit": {},
    "convnext": {"hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 2, 1], "num_stages": 4},
    "convnextv2": {"hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 2, 1], "num_stages": 4},
    "autoformer": {"prediction_length": 4, "context_length": 16, "lags_sequence": [1, 2, 3]},
    "informer": {"prediction_length": 4, "context_length": 16, "lags_sequence": [1, 2, 3]},
    "time_series_transformer": {"prediction_length": 4, "context_length": 16, "lags_sequence": [1, 2, 3]},
    "deepseek_v2": {"num_key_value_heads": 4, "num_experts_per_tok": 2}, "deepseek_v3": {"num_key_value_heads": 4},
    "esm": {"vocab_size": 60, "pad_token_id": 1, "mask_token_id": 4},
    "funnel": {"block_sizes": [1, 1], "num_decoder_layers": 1, "d_head": 8, "d_inner": 48},
    "layoutlmv3": {"coordinate_size": 4, "shape_size": 8}, "lilt": {"hidden_size": 48},
    "luke": {"entity_vocab_size": 40}, "nemotron": {"num_key_value_heads": 2}, "xmod": {"default_language": "en_XX"},
    "siglip_vision_model": {"hidden_size": 32}, "siglip_text_model": {"projection_size": 32},
    "swin2sr": {"embed_dim": 24, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4}, "markuplm": {"max_depth": 8},
    "perceiver": {"num_latents": 16, "d_latents": 32, "d_model": 32, "num_self_attends_per_block": 2,
                  "num_self_attention_heads": 4, "num_cross_attention_heads": 4},
    "mobilenet_v1": {"depth_multiplier": 0.25}, "mobilenet_v2": {"depth_multiplier": 0.25},
    "resnet": {"embedding_size": 16, "hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 2, 1]},
    "regnet": {"embedding_size": 16, "hidden_sizes": [16, 32, 32, 64], "depths": [1, 1, 2, 1], "groups_width": 8},
    "swin": {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "patch_size": 4},
    "swinv2": {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "patch_size": 4},
    "donut-swin": {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "patch_size": 4},
    "maskformer-swin": {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "patch_size": 4},
    "segformer": {"hidden_sizes": [16, 32, 32, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 4]},
    "glpn": {"hidden_sizes": [16, 32, 32, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 4]},
    "pvt": {"hidden_sizes": [16, 32, 32, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 4]},
    "pvt_v2": {"hidden_sizes": [16, 32, 32, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 4]},
    "poolformer": {"hidden_sizes": [16, 32, 32, 48], "depths": [1, 1, 1, 1]},
    
    "levit": {"hidden_sizes": [16, 24, 32], "depths": [1, 1, 1], "num_attention_heads": [2, 3, 4], "key_dim": [8, 8, 8]},
    "mobilevit": {"hidden_sizes": [24, 32, 40], "neck_hidden_sizes": [16, 16, 24, 32, 40, 48, 64]},
    "focalnet": {"embed_dim": 16, "depths": [1, 1, 2, 1], "patch_size": 4},
    "dinat": {"patch_size": 4}, "hiera": {"image_size": [64, 64], "patch_size": [7, 7], "embed_dim": 16, "num_heads": [1, 2, 4, 8],
              "depths": [1, 1, 2, 1]},
    "efficientnet": {"hidden_dim": 2560},
    "wav2vec2": {"conv_dim": [16, 16], "conv_kernel": [10, 3], "conv_stride": [5, 2], "num_conv_pos_embeddings": 8,
                 "num_conv_pos_embedding_groups": 4, "num_feat_extract_layers": 2},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "norm_rel_ebd": "layer_norm",
                   "position_biased_input": False, "share_att_key": True, "max_relative_positions": 16},
    "deberta": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_relative_positions": 16},
    "albert": {"embedding_size": 16}, "electra": {"embedding_size": 16}, "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "whisper": {"num_mel_bins": 16, "max_source_positions": 32}, "rwkv": {"attention_hidden_size": 32, "context_length": 64},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 8},
    "openai-gpt": {}, "gptj": {"rotary_dim": 4}, "codegen": {"rotary_dim": 4}, "ctrl": {"dff": 48},
    "reformer": {"axial_pos_embds": False, "is_decoder": False}, "xlnet": {"d_inner": 48},
    "distilbert": {"hidden_dim": 48}, "xlm": {}, "flaubert": {},
    "squeezebert": {"embedding_size": 32}, "mobilebert": {"embedding_size": 16, "intra_bottleneck_size": 16,
                                                          "true_hidden_size": 16, "num_attention_heads": 4},
    "vit_mae": {"mask_ratio": 0.0}, "canine": {"num_hash_buckets": 32, "local_transformer_stride": 32},
}
for _alike in ("hubert", "wavlm", "sew", "sew-d", "unispeech", "unispeech-sat", "data2vec-audio", "wav2vec2-conformer"):
    _SPECIFIC[_alike] = {**_SPECIFIC["wav2vec2"], **({"squeeze_factor": 2} if "sew" in _alike else {})}
_SPECIFIC["wav2vec2-conformer"]["position_embeddings_type"] = "relative"

_MODEL_TYPES = (  # the ones to begin with; --all takes every type that transformers knows
    "albert altclip audio-spectrogram-transformer autoformer bart beit bert bert-generation big_bird biogpt blenderbot blip "
    "bloom camembert canine clip clipseg codegen cohere cohere2 convbert convnext convnextv2 ctrl "
    "data2vec-audio data2vec-text data2vec-vision deberta deberta-v2 deepseek_v2 deepseek_v3 deit diffllama dinov2 "
    "dinov2_with_registers dinov3_vit distilbert donut-swin dpt efficientnet electra ernie esm eurobert exaone4 falcon "
    "falcon_h1 falcon_mamba flaubert flava fnet focalnet fsmt gemma gemma2 gemma3_text git glm glm4 glm4_moe glpn "
    "gpt2 gpt_bigcode gpt_neo gpt_neox gpt_neox_japanese gpt_oss gptj granite granitemoe groupvit helium "
    "hiera hubert ibert ijepa imagegpt informer jamba jetmoe layoutlm levit lilt llama llama4_text longt5 luke "
    "lxmert m2m_100 mamba mamba2 marian markuplm maskformer-swin mbart megatron-bert minimax mistral mixtral mobilebert "
    "mobilenet_v1 mobilenet_v2 mobilevit mobilevitv2 modernbert moonshine mpnet mpt mra mt5 mvp nanochat nemotron "
    "nllb-moe nystromformer olmo olmo2 olmo3 olmoe openai-gpt opt owlv2 owlvit patchtsmixer patchtst pegasus "
    "persimmon phi phi3 phimoe plbart poolformer prophetnet pvt pvt_v2 qwen2 qwen2_moe qwen3 qwen3_moe qwen3_next "
    "recurrent_gemma reformer regnet rembert resnet roberta roberta-prelayernorm roc_bert roformer rwkv "
    "seed_oss segformer sew sew-d siglip smollm3 speech_to_text splinter squeezebert stablelm starcoder2 "
    "swiftformer swin swin2sr swinv2 switch_transformers t5 table-transformer tapas textnet time_series_transformer "
    "timesformer umt5 unispeech unispeech-sat videomae visual_bert vit vit_mae vit_msn vitdet vits vivit wav2vec2 "
    "wav2vec2-bert wav2vec2-conformer wavlm whisper xglm xlm xlm-roberta xlm-roberta-xl xlnet xlstm xmod yolos yoso"
).split()


def transformers_models(every: bool = False) -> dict[str, Callable]:
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES
    names = [n for n in (MODEL_MAPPING_NAMES if every else _MODEL_TYPES) if n in MODEL_MAPPING_NAMES]
    return {name: partial(_transformer, name) for name in names}


def _transformer(kind: str) -> tuple[nn.Module, dict]:
    """A tiny model of a type, and inputs for it."""
    import transformers
    config = _tiny_config(kind)
    model = transformers.AutoModel.from_config(config, attn_implementation="sdpa") if _supports_sdpa(config) else \
        transformers.AutoModel.from_config(config, attn_implementation="eager")
    model.eval()
    if hasattr(model, "set_experts_implementation"):
        with contextlib.suppress(Exception):  # not every model with the method has experts
            model.set_experts_implementation("batched_mm")
    return model, _token_inputs(model, config)


def _supports_sdpa(config) -> bool:
    import transformers
    model = transformers.models.auto.modeling_auto.MODEL_MAPPING[type(config)]
    return bool(getattr(model[0] if isinstance(model, tuple) else model, "_supports_sdpa", False))


def _tiny_config(kind: str):
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    cls = CONFIG_MAPPING[kind]
    default = cls()
    sizes = _tiny_sizes(default, kind)
    for part, sub in list(vars(default).items()):  # text_config, vision_config, encoder, ...
        if hasattr(sub, "to_dict") and hasattr(sub, "model_type"):
            sizes[part] = {**sub.to_dict(), **_tiny_sizes(sub, kind)}
    config = cls(**sizes)
    config.use_cache = False
    return config


def _tiny_sizes(config, kind: str) -> dict[str, Any]:
    names = {**{v: v for v in vars(config)}, **getattr(config, "attribute_map", {})}
    sizes: dict[str, Any] = {}
    for name, size in _TINY_VALUES.items():
        target = names.get(name)
        given = vars(config).get(target)
        if isinstance(given, int) and not isinstance(given, bool):
            sizes[target] = min(size, given) if given > 0 else given
    for name in _SPECIAL_TOKENS:
        if isinstance(vars(config).get(name), int):
            sizes[name] = 1 if name != "eos_token_id" else 2
    if vars(config).get("layer_types"):
        sizes["layer_types"] = list(dict.fromkeys(config.layer_types))[:2] * (2 // min(2, len(set(config.layer_types))))
    sizes.update({k: v for k, v in _SPECIFIC.get(getattr(config, "model_type", kind), {}).items()})
    return sizes


def _token_inputs(model: nn.Module, config) -> dict[str, Tensor]:
    """Example inputs, by the names of the arguments that forward cannot do without."""
    generator = torch.Generator().manual_seed(0)
    accepted = inspect.signature(model.forward).parameters
    main = getattr(model, "main_input_name", "input_ids")
    text = getattr(config, "text_config", config)
    vocabulary = int(getattr(text, "vocab_size", 60) or 60)

    def tokens(length: int) -> Tensor:
        return torch.randint(3, max(vocabulary, 4), (2, length), generator=generator)

    given: dict[str, Tensor] = {}
    names = {main} | {n for n in ("input_ids", "pixel_values", "input_values", "input_features") if n in accepted}
    for name in names:
        if name == "input_ids":
            given[name] = tokens(32 if "canine" in config.model_type else 10)
        elif name in ("pixel_values", "pixel_values_videos"):
            given[name] = _pixels(config, generator)
        elif name == "input_values":
            wave = (2, 1600) if not hasattr(config, "num_mel_bins") else \
                (2, getattr(config, "max_length", 64), config.num_mel_bins)
            given[name] = torch.randn(wave, generator=generator)
        elif name in ("input_features", "past_values"):
            given.update(_features(name, config, generator))
    if config.model_type == "lxmert":
        given["visual_feats"] = torch.randn(2, 5, config.visual_feat_dim, generator=generator)
        given["visual_pos"] = torch.rand(2, 5, config.visual_pos_dim, generator=generator)
    if "bbox" in accepted and "input_ids" in given:
        given["bbox"] = torch.zeros(2, 10, 4, dtype=torch.long)
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in accepted:
        given["decoder_input_ids"] = tokens(7)
    return given


def _pixels(config, generator) -> Tensor:
    vision = getattr(config, "vision_config", config)
    side = getattr(vision, "image_size", 64)
    side = side if isinstance(side, int) else 64
    if config.model_type == "tvp":
        side = 448
    if isinstance(getattr(vision, "input_size", None), (list, tuple)):
        side = vision.input_size[0]
    channels = getattr(vision, "num_channels", 3)
    frames = (getattr(vision, "num_frames", None),) if getattr(vision, "num_frames", None) else ()
    return torch.rand(2, *frames, channels, side, side, generator=generator)


def _features(name: str, config, generator) -> dict[str, Tensor]:
    if name == "past_values":
        context = getattr(config, "context_length", 32)
        channels = getattr(config, "num_input_channels", 1)
        if not hasattr(config, "lags_sequence"):
            return {"past_values": torch.randn(2, context, channels, generator=generator)}
        past, future = context + max(config.lags_sequence), config.prediction_length
        return {"past_values": torch.randn(2, past, generator=generator), "past_observed_mask": torch.ones(2, past),
                "past_time_features": torch.randn(2, past, config.num_time_features, generator=generator),
                "future_values": torch.randn(2, future, generator=generator),
                "future_time_features": torch.randn(2, future, config.num_time_features, generator=generator)}
    bins = getattr(config, "num_mel_bins", getattr(config, "feature_size", getattr(config, "input_feat_per_channel", 16)))
    if config.model_type == "whisper":
        return {name: torch.randn(2, bins, 2 * config.max_source_positions, generator=generator)}
    return {name: torch.randn(2, 24, getattr(config, "feature_projection_input_dim", bins), generator=generator)}


# -------------------------------------------------------------------------------------------------------- one model


def measure(build: Callable) -> Iterator[dict[str, Any]]:
    """Rows of what is known so far, each more complete than the one before."""
    torch.manual_seed(0)
    row: dict[str, Any] = {"outcome": "no model: took too long"}
    yield row
    try:
        model, inputs = build()
    except Exception as error:
        yield {**row, "outcome": f"no model: {_line(error)}"}
        return
    model.eval()
    row |= {"parameters": sum(p.numel() for p in model.parameters()), "outcome": "capture took too long"}
    yield row
    start = time.process_time()
    try:
        program = capture(model, inputs)
    except fxr.errors.FxrebasinError as error:
        yield {**row, "outcome": f"not captured: {_line(error)}"}
        return
    row |= {"capture_s": time.process_time() - start, "nodes": len(program.module.graph.nodes),
            "front_end": program.front_end, "outcome": "inference took too long"}
    yield row
    start = time.process_time()
    try:
        spec = fxr.infer(program)
    except Exception as error:
        yield {**row, "outcome": f"inference failed: {_line(error)}"}
        return
    row |= {"infer_s": time.process_time() - start, **_counts(spec), "outcome": "evaluation took too long"}
    yield row
    if row["parameters"] > MOST_PARAMETERS:
        yield {**row, "outcome": "too large to evaluate"}
        return
    try:
        yield {**row, **_errors(model.state_dict(), program, spec, inputs)}
    except Exception as error:
        yield {**row, "outcome": f"not evaluated: {_line(error)}"}


def _counts(spec: fxr.Spec) -> dict[str, Any]:
    moved = {(site.tensor) for group in spec.groups.values() for site in group.sites}
    sizes = {name: torch.Size(shape).numel() for name, shape in spec.shapes.items() if name not in spec.ties}
    unruled = [reason for reason in spec.pinned.values()
               if any(f"{op} has no rule" in reason or f"rule for {op} does not fit" in reason for op in spec.unruled)]
    return {"groups": len(spec.groups), "log10_order": spec.log10_order, "unruled_axes": len(unruled),
            "unruled_ops": " ".join(spec.unruled),
            "share": sum(sizes[name] for name in moved) / max(1, sum(sizes.values()))}


def _errors(state: Mapping[str, Tensor], program: Program, spec: fxr.Spec, inputs) -> dict[str, Any]:
    """Runs the captured program in float64 on a randomised state, moved and not."""
    for scale in (1.0, 0.3, 0.1, 0.03):
        state = randomised(state, program, scale)
        before = _run(program, state, inputs)
        if all(bool(torch.isfinite(y).all()) for y in before.values()):
            break
    else:
        return {"outcome": "not evaluated: outputs are not finite"}
    small = sum(tensor.numel() for tensor in state.values()) < MANY_PARAMETERS
    error = 0.0
    for seed in range(3 if small else 1):
        moved = spec.random(seed).apply(state)
        error = max(error, _change(before, _run(program, moved, inputs)))
    half = set(spec.permutable[1::2])
    mixed = {name: state[name] if spec.ties.get(name, name) in half else moved[name] for name in state}
    control = _change(before, _run(program, mixed, inputs))
    free = _error_with_free_outputs(program, state, before, inputs) if small else None
    return {"error": error, "error_free": free, "control": control,
            "outcome": "sound" if max(error, free or 0.0) < SOUND else "UNSOUND"}


def _error_with_free_outputs(program: Program, state, before: Mapping[str, Tensor], inputs) -> float:
    """The same where the outputs' own axes move with the network: of a backbone, this moves the residual stream too."""
    spec = fxr.infer(program, outputs="free")
    alignment = spec.random(3)
    after = _run(program, alignment.apply(state), inputs)
    expected = {path: alignment.move(y, spec.outputs[path][1]) if path in spec.outputs else y for path, y in before.items()}
    return _change(expected, after)


def randomised(state: Mapping[str, Tensor], program: Program, scale: float = 1.0) -> dict[str, Tensor]:
    """Random numbers of sensible size for every tensor of the state, in float64; variances positive; ties kept."""
    generator = torch.Generator().manual_seed(1)
    result: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name not in program.state:
            result[name] = tensor
        elif name in program.ties:
            result[name] = result[program.ties[name]]
        elif tensor.is_complex():
            result[name] = torch.randn(tensor.shape, generator=generator, dtype=torch.complex128)
        elif name.endswith("running_var"):
            result[name] = 0.5 + torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
        else:
            noise = torch.randn(tensor.shape, generator=generator).double()
            fan_in = max(1, tensor.numel() // tensor.shape[0]) if tensor.ndim > 1 else 1
            centre = 1.0 if tensor.ndim <= 1 and tensor.numel() and bool(tensor.double().mean() > 0.5) else 0.0
            result[name] = scale * (centre + noise * (0.3 if tensor.ndim <= 1 else min(1.0, (2.0 / fan_in) ** 0.5)))
    return result


def _run(program: Program, state: Mapping[str, Tensor], inputs) -> dict[str, Tensor]:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)  # of tensors that the graph makes without naming a dtype
    try:
        return program.interpret(state, inputs)
    finally:
        torch.set_default_dtype(torch.float32)


def _change(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> float:
    worst = 0.0
    for path, y in before.items():
        if y.numel():
            y, z = (t.to(torch.complex128 if t.is_complex() else torch.float64) for t in (y, after[path]))
            size = float(y.abs().max())
            change = float((y - z).abs().max())
            worst = max(worst, change / size if size else change)
    return worst


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:240]


# ------------------------------------------------------------------------------------------------------ all models


def isolated(build: Callable, limit: float) -> dict[str, Any]:
    """The last row that `measure` gives in a forked process within `limit` seconds."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        try:
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1)
            os.dup2(silence, 2)
            with os.fdopen(write, "wb") as pipe:
                for row in measure(build):
                    pickle.dump(row, pipe)
                    pipe.flush()
        finally:
            os._exit(0)
    os.close(write)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
    signal.setitimer(signal.ITIMER_REAL, limit)
    row: dict[str, Any] = {}
    with os.fdopen(read, "rb") as pipe, contextlib.suppress(EOFError, pickle.UnpicklingError):
        while True:
            row = pickle.load(pipe)
    signal.setitimer(signal.ITIMER_REAL, 0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) != signal.SIGKILL:
        row["outcome"] = f"crashed with signal {os.WTERMSIG(status)}"
    return row


FAMILIES: dict[str, Callable[[], dict[str, Callable]]] = {
    "torchvision": torchvision_models, "timm": timm_models, "transformers": transformers_models}


def read_rows(path: Path) -> dict[tuple[str, str], dict[str, str]]:
    """The last row of each model."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {(row["family"], row["model"]): row for row in csv.DictReader(file)}


def run(args) -> None:
    done = read_rows(args.csv)
    capture(nn.Linear(2, 2), torch.zeros(2, 2))  # what is loaded lazily is not any model's time
    count = 0
    for family in [args.family] if args.family else FAMILIES:
        entries = transformers_models(args.all) if family == "transformers" else FAMILIES[family]()
        patterns = args.only.split(",") if args.only else ["*"]
        for name in [n for p in patterns for n in entries if fnmatch.fnmatch(n, p)]:
            if (family, name) in done and not args.again:
                continue
            if args.limit is not None and count >= args.limit:
                return
            count += 1
            row = {"family": family, "model": name, **isolated(entries[name], args.seconds)}
            done[family, name] = row
            row = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in row.items()}
            new = not args.csv.exists()
            with args.csv.open("a", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS)
                if new:
                    writer.writeheader()
                writer.writerow(row)
            print(" ".join(f"{key}={row[key]}" for key in COLUMNS[1:] if row.get(key) not in (None, "")), flush=True)


# ------------------------------------------------------------------------------------------------------- the table


def table(rows: list[dict[str, str]], command: str) -> str:
    captured = [row for row in rows if row["capture_s"]]
    tested = [row for row in captured if row["error"]]
    sound = [row for row in tested if float(row["error"]) < SOUND]
    slow = [row for row in captured if row["infer_s"] and float(row["infer_s"]) > float(row["capture_s"])]
    ruled = [row for row in captured if row["unruled_axes"] == "0"]
    head = ("| model | outcome | capture, s | inference, s | groups | log10 order | share | error | error, free | control | unruled axes |",
            "|---|---|---|---|---|---|---|---|---|---|---|")
    text = ["# The zoo: public architectures", "", f"`{command}` on one thread of {_cpu()}, torch {torch.__version__}, "
            f"times in CPU seconds. {' '.join((__doc__ or '').split('What a row says: ')[1].split())}", ""]
    text += [f"- models that could be built: {sum(not row['outcome'].startswith('no model') for row in rows)} of {len(rows)}; "
             f"captured: {len(captured)}; evaluated: {len(tested)}",
             f"- sound (error < {SOUND:g}): {len(sound)} of {len(tested)} evaluated",
             f"- no axis pinned for lack of a rule: {len(ruled)} of {len(captured)} captured",
             f"- inference slower than capture: {len(slow)}" + "".join(f"; {row['model']}" for row in slow), ""]
    for family in FAMILIES:
        members = sorted((row for row in rows if row["family"] == family), key=lambda row: row["model"])
        if members:
            text += [f"## {family}", "", *head]
            text += ["| " + " | ".join([row["model"], row["outcome"].replace("|", "/"), *(row[key] for key in (
                "capture_s", "infer_s", "groups", "log10_order", "share", "error", "error_free", "control", "unruled_axes"))]) + " |"
                for row in members]
            text += [""]
    ops = sorted({op for row in rows for op in row["unruled_ops"].split()})
    return "\n".join([*text, "Ops without a fitting rule: " + (", ".join(ops) or "none") + ".", ""])


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in (info.read_text().splitlines() if info.exists() else [])
             if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--family", choices=list(FAMILIES))
    parser.add_argument("--only", help="patterns of model names, separated by commas")
    parser.add_argument("--limit", type=int, help="at most so many models")
    parser.add_argument("--all", action="store_true", help="every type of transformers, not the chosen ones")
    parser.add_argument("--again", action="store_true", help="also models that have a row already")
    parser.add_argument("--seconds", type=float, default=180, help="time limit for each model")
    parser.add_argument("--csv", type=Path, default=RESULTS / "zoo.csv")
    parser.add_argument("--table", action="store_true", help="write the table from the rows and run nothing")
    parser.add_argument("--prelude", help="a Python file to run first (default: the environment variable ZOO_PRELUDE)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.table:
        args.csv.with_suffix(".md").write_text(table(list(read_rows(args.csv).values()), "python -m benchmarks.zoo"))
        return
    if prelude := args.prelude or os.environ.get("ZOO_PRELUDE"):
        runpy.run_path(prelude)
    run(args)


if __name__ == "__main__":
    sys.exit(main())
