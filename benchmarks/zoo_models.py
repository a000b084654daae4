"""The models of the zoo: how to build a small one of every family, and inputs for it.

torchvision: every model, at the smallest image size that it accepts. timm: a small variant of every family
(module of timm.models), narrow and shallow where it takes these options. transformers: tiny configurations,
made from the default one of a type by sizes that are common to most, and by exceptions.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

# ------------------------------------------------------------------------------------ torchvision and timm


MOST_PARAMETERS = 160_000_000  # beyond, float64 copies take too much memory: not evaluated


def torchvision_models() -> dict[str, Callable]:
    import torchvision

    models, found = torchvision.models, {}
    for kind in (models, models.segmentation, models.video):
        for name in models.list_models(kind):
            options = {"weights_backbone": None} if kind is models.segmentation else {}
            build = partial(_mvit if "mvit" in name else models.get_model, name, weights=None, **options)
            large = models.get_model_weights(name).DEFAULT.meta["num_params"] > MOST_PARAMETERS
            found[name] = partial(_described if large else _image_model, build, name)
    return found


def _mvit(name: str, **options) -> nn.Module:
    """The constructors of these set the size of the video themselves: 16 frames of 224 x 224."""
    from torchvision.models import get_model
    from torchvision.models.video import mvit

    def small(**given):
        return whole(**{**given, "spatial_size": (64, 64), "temporal_size": 8})

    whole = mvit.MViT
    with mock.patch.object(mvit, "MViT", small):
        return get_model(name, **options)


def _described(build: Callable, name: str) -> tuple[nn.Module, Any]:
    """A model too large to run: without numbers, unless its constructor needs them."""
    try:
        with torch.device("meta"):
            return build(), _images(name, 224)
    except NotImplementedError:
        return build(), _images(name, 224)


def timm_models() -> dict[str, Callable]:
    """One small model of every family (module of timm.models)."""
    import timm

    families: dict[str, list[str]] = {}
    for name in timm.list_models():
        families.setdefault(timm.models._registry._model_to_module[name], []).append(name)
    names = [min(members, key=_size_rank) for members in families.values()]
    return {name: partial(_image_model, partial(timm.create_model, name), name) for name in names}


_SIZES = (
    "test",
    "zepto",
    "atto",
    "femto",
    "pico",
    "nano",
    "xxs",
    "xx_small",
    "xs",
    "xsmall",
    "extra_small",
    "tiny",
    "t",
    "mini",
    "s",
    "small",
    "lite",
    "0",
    "00",
    "50",
    "b0",
    "m0",
    "s0",
    "m1",
    "l0",
    "b1",
    "xxt",
    "t0",
    "a0",
    "ti",
    "n",
)


def _size_rank(name: str) -> tuple:
    words = re.split(r"[_.]", name)
    rank = min((_SIZES.index(word) for word in words if word in _SIZES), default=len(_SIZES))
    digits = [int(d) for d in re.findall(r"\d+", name)]
    return rank, sum(digits), len(name)


def _image_model(build: Callable, name: str) -> tuple[nn.Module, Any]:
    """A model, narrow and shallow if it takes such options, and two images as small as it accepts."""
    problem: Exception | None = None
    for way in ("narrow sized", "narrow", "sized", ""):
        for side in (64, 128, 224, 256):
            options = {**(_NARROW if "narrow" in way else {}), **({"img_size": side} if "sized" in way else {})}
            try:
                model, inputs = build(**options), _images(name, side)
                with torch.no_grad():
                    model.eval()(*inputs)
                return model, inputs
            except TypeError as error:  # it has no such options
                problem = error
                break
            except Exception as error:  # it does not take this size
                problem = error
    raise problem


_NARROW = {"depth": 3, "embed_dim": 96, "num_heads": 4}


def _images(name: str, side: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    if "raft" in name:
        return tuple(torch.rand(2, 3, max(side, 128), max(side, 128), generator=generator) for _ in range(2))
    if re.search("mvit_v|mc3|r2plus1d|r3d|s3d$|swin3d", name):
        return (torch.rand(2, 3, 8 if "mvit" in name else 16, side, side, generator=generator),)
    return (torch.rand(2, 3, side, side, generator=generator),)


# -------------------------------------------------------------------------------------------- transformers


_TINY = {
    2: "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_encoder_layers "
    "num_decoder_layers num_hidden_groups num_key_value_heads num_experts_per_tok "
    "encoder_num_hidden_layers decoder_num_hidden_layers num_kv_heads num_query_groups moe_topk "
    "top_k moe_num_experts_per_tok num_entity_layers qformer_layers l_layers x_layers r_layers "
    "num_dense_layers n_group topk_group num_blocks",
    4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads "
    "num_local_experts num_experts n_routed_experts encoder_num_attention_heads "
    "decoder_num_attention_heads moe_num_experts",
    8: "head_dim d_kv attention_head_size rotary_dim kv_channels qk_rope_head_dim qk_nope_head_dim "
    "v_head_dim",
    16: "embedding_size kv_lora_rank q_lora_rank mamba_d_state state_size entity_embed_dim patch_size",
    32: "hidden_size d_model n_embd dim emb_dim embed_dim hidden_dim encoder_hidden_size "
    "decoder_hidden_size attention_hidden_size lru_width word_embed_proj_dim projection_dim "
    "output_size cross_attention_hidden_size embedding_dim",
    48: "intermediate_size ffn_dim d_ff encoder_ffn_dim decoder_ffn_dim n_inner dim_feedforward "
    "ffn_hidden_size moe_intermediate_size shared_expert_intermediate_size expert_dim "
    "encoder_intermediate_size mlp_dim ffn_intermediate_size dense_intermediate_size "
    "moe_shared_expert_intermediate_size",
    60: "vocab_size vocab_size_per_layer_input",
    64: "max_position_embeddings n_positions n_ctx max_seq_len max_source_positions "
    "max_target_positions image_size max_sequence_length seq_length",
}
_TINY_VALUES = {name: size for size, names in _TINY.items() for name in names.split()}
_SPECIAL_TOKENS = (
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "sep_token_id",
    "cls_token_id",
    "unk_token_id",
    "decoder_start_token_id",
    "forced_eos_token_id",
    "mask_token_id",
)

# What the common sizes do not fit, by model type.
_SPECIFIC: dict[str, dict[str, Any]] = {
    "bloom": {},
    "t5": {},
    "mt5": {},
    "falcon": {"multi_query": True, "alibi": False},
    "vit": {},
    "convnext": {"hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 2, 1], "num_stages": 4},
    "convnextv2": {"hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 2, 1], "num_stages": 4},
    "autoformer": {"prediction_length": 4, "context_length": 16, "lags_sequence": [1, 2, 3]},
    "informer": {"prediction_length": 4, "context_length": 16, "lags_sequence": [1, 2, 3]},
    "time_series_transformer": {"prediction_length": 4, "context_length": 16, "lags_sequence": [1, 2, 3]},
    "deepseek_v2": {"num_key_value_heads": 4, "num_experts_per_tok": 2},
    "deepseek_v3": {"num_key_value_heads": 4, "first_k_dense_replace": 0, "n_group": 2, "topk_group": 1},
    "glm4_moe": {"first_k_dense_replace": 0},
    "esm": {"vocab_size": 60, "pad_token_id": 1, "mask_token_id": 4},
    "funnel": {"block_sizes": [1, 1], "num_decoder_layers": 1, "d_head": 8, "d_inner": 48},
    "layoutlmv3": {"coordinate_size": 4, "shape_size": 8},
    "lilt": {"hidden_size": 48},
    "luke": {"entity_vocab_size": 40},
    "nemotron": {"num_key_value_heads": 2},
    "xmod": {"default_language": "en_XX"},
    "siglip_vision_model": {"hidden_size": 32},
    "siglip_text_model": {"projection_size": 32},
    "swin2sr": {"embed_dim": 24, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4},
    "markuplm": {"max_depth": 8},
    "perceiver": {
        "num_latents": 16,
        "d_latents": 32,
        "d_model": 32,
        "num_self_attends_per_block": 2,
        "num_self_attention_heads": 4,
        "num_cross_attention_heads": 4,
    },
    "mobilenet_v1": {"depth_multiplier": 0.25},
    "mobilenet_v2": {"depth_multiplier": 0.25},
    "resnet": {"embedding_size": 16, "hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 2, 1]},
    "regnet": {
        "embedding_size": 16,
        "hidden_sizes": [16, 32, 32, 64],
        "depths": [1, 1, 2, 1],
        "groups_width": 8,
    },
    "swin": {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "patch_size": 4},
    "swinv2": {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "patch_size": 4},
    "donut-swin": {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "patch_size": 4},
    "maskformer-swin": {
        "embed_dim": 16,
        "depths": [2, 2],
        "num_heads": [2, 4],
        "window_size": 4,
        "patch_size": 4,
    },
    "segformer": {
        "hidden_sizes": [16, 32, 32, 32],
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 2, 2, 4],
    },
    "glpn": {"hidden_sizes": [16, 32, 32, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 4]},
    "pvt": {"hidden_sizes": [16, 32, 32, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 4]},
    "pvt_v2": {"hidden_sizes": [16, 32, 32, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 4]},
    "poolformer": {"hidden_sizes": [16, 32, 32, 48], "depths": [1, 1, 1, 1]},
    "levit": {
        "hidden_sizes": [16, 24, 32],
        "depths": [1, 1, 1],
        "num_attention_heads": [2, 3, 4],
        "key_dim": [8, 8, 8],
    },
    "mobilevit": {"hidden_sizes": [24, 32, 40], "neck_hidden_sizes": [16, 16, 24, 32, 40, 48, 64]},
    "focalnet": {"embed_dim": 16, "depths": [1, 1, 2, 1], "patch_size": 4},
    "dinat": {"patch_size": 4},
    "hiera": {
        "image_size": [64, 64],
        "patch_size": [7, 7],
        "embed_dim": 16,
        "num_heads": [1, 2, 4, 8],
        "depths": [1, 1, 2, 1],
    },
    "efficientnet": {"hidden_dim": 2560},
    "wav2vec2": {
        "conv_dim": [16, 16],
        "conv_kernel": [10, 3],
        "conv_stride": [5, 2],
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 4,
        "num_feat_extract_layers": 2,
    },
    "deberta-v2": {
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "norm_rel_ebd": "layer_norm",
        "position_biased_input": False,
        "share_att_key": True,
        "max_relative_positions": 16,
    },
    "deberta": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_relative_positions": 16},
    "albert": {"embedding_size": 16},
    "electra": {"embedding_size": 16},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "whisper": {"num_mel_bins": 16, "max_source_positions": 32},
    "rwkv": {"attention_hidden_size": 32, "context_length": 64},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 8},
    "openai-gpt": {},
    "gptj": {"rotary_dim": 4},
    "codegen": {"rotary_dim": 4},
    "ctrl": {"dff": 48},
    "reformer": {"axial_pos_embds": False, "is_decoder": False},
    "xlnet": {"d_inner": 48},
    "distilbert": {"hidden_dim": 48},
    "xlm": {},
    "flaubert": {},
    "squeezebert": {"embedding_size": 32},
    "mobilebert": {
        "embedding_size": 16,
        "intra_bottleneck_size": 16,
        "true_hidden_size": 16,
        "num_attention_heads": 4,
    },
    "vit_mae": {"mask_ratio": 0.0},
    "vits": {
        "flow_size": 32,
        "spectrogram_bins": 33,
        "upsample_initial_channel": 32,
        "upsample_rates": [4, 4],
        "upsample_kernel_sizes": [8, 8],
        "resblock_kernel_sizes": [3],
        "resblock_dilation_sizes": [[1, 3]],
        "posterior_encoder_num_wavenet_layers": 2,
        "prior_encoder_num_flows": 2,
        "prior_encoder_num_wavenet_layers": 2,
        "duration_predictor_num_flows": 2,
        "duration_predictor_filter_channels": 32,
        "depth_separable_num_layers": 2,
    },
    "canine": {"num_hash_buckets": 32, "local_transformer_stride": 32},
}
for _alike in (
    "hubert",
    "wavlm",
    "sew",
    "sew-d",
    "unispeech",
    "unispeech-sat",
    "data2vec-audio",
    "wav2vec2-conformer",
):
    _SPECIFIC[_alike] = {**_SPECIFIC["wav2vec2"], **({"squeeze_factor": 2} if "sew" in _alike else {})}
_SPECIFIC["wav2vec2-conformer"]["position_embeddings_type"] = "relative"

# The types to begin with; --all takes every type that transformers knows.
_MODEL_TYPES = (
    "albert altclip audio-spectrogram-transformer autoformer bart beit bert bert-generation big_bird "
    "biogpt blenderbot blip bloom camembert canine clip clipseg codegen cohere cohere2 convbert convnext "
    "convnextv2 ctrl data2vec-audio data2vec-text data2vec-vision deberta deberta-v2 deepseek_v2 "
    "deepseek_v3 deit diffllama dinov2 dinov2_with_registers dinov3_vit distilbert donut-swin dpt "
    "efficientnet electra ernie esm eurobert exaone4 falcon falcon_h1 falcon_mamba flaubert flava fnet "
    "focalnet fsmt gemma gemma2 gemma3_text git glm glm4 glm4_moe glpn gpt2 gpt_bigcode gpt_neo gpt_neox "
    "gpt_neox_japanese gpt_oss gptj granite granitemoe groupvit helium hiera hubert ibert ijepa imagegpt "
    "informer jamba jetmoe layoutlm levit lilt llama llama4_text longt5 luke lxmert m2m_100 mamba mamba2 "
    "marian markuplm maskformer-swin mbart megatron-bert minimax mistral mixtral mobilebert mobilenet_v1 "
    "mobilenet_v2 mobilevit mobilevitv2 modernbert moonshine mpnet mpt mra mt5 mvp nanochat nemotron "
    "nllb-moe nystromformer olmo olmo2 olmo3 olmoe openai-gpt opt owlv2 owlvit patchtsmixer patchtst "
    "pegasus persimmon phi phi3 phimoe plbart poolformer prophetnet pvt pvt_v2 qwen2 qwen2_moe qwen3 "
    "qwen3_moe qwen3_next recurrent_gemma reformer regnet rembert resnet roberta roberta-prelayernorm "
    "roc_bert roformer rwkv seed_oss segformer sew sew-d siglip smollm3 speech_to_text splinter "
    "squeezebert stablelm starcoder2 swiftformer swin swin2sr swinv2 switch_transformers t5 "
    "table-transformer tapas textnet time_series_transformer timesformer umt5 unispeech unispeech-sat videomae "
    "visual_bert vit vit_mae vit_msn vitdet vits vivit wav2vec2 wav2vec2-bert wav2vec2-conformer wavlm "
    "whisper xglm xlm xlm-roberta xlm-roberta-xl xlnet xlstm xmod yolos yoso "
).split()


def transformers_models(every: bool = False) -> dict[str, Callable]:
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    names = [n for n in (MODEL_MAPPING_NAMES if every else _MODEL_TYPES) if n in MODEL_MAPPING_NAMES]
    return {name: partial(_transformer, name) for name in names}


def _transformer(kind: str) -> tuple[nn.Module, dict]:
    """A tiny model of a type, and inputs for it."""
    import transformers

    config = _tiny_config(kind)
    model = (
        transformers.AutoModel.from_config(config, attn_implementation="sdpa")
        if _supports_sdpa(config)
        else transformers.AutoModel.from_config(config, attn_implementation="eager")
    )
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
        sizes["layer_types"] = list(dict.fromkeys(config.layer_types))[:2] * (
            2 // min(2, len(set(config.layer_types)))
        )
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
    names = {main} | {
        n for n in ("input_ids", "pixel_values", "input_values", "input_features") if n in accepted
    }
    for name in names:
        if name == "input_ids":
            given[name] = tokens(32 if "canine" in config.model_type else 10)
        elif name in ("pixel_values", "pixel_values_videos"):
            given[name] = _pixels(config, generator)
        elif name == "input_values":
            wave = (
                (2, 1600)
                if not hasattr(config, "num_mel_bins")
                else (2, getattr(config, "max_length", 64), config.num_mel_bins)
            )
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
        return {
            "past_values": torch.randn(2, past, generator=generator),
            "past_observed_mask": torch.ones(2, past),
            "past_time_features": torch.randn(2, past, config.num_time_features, generator=generator),
            "future_values": torch.randn(2, future, generator=generator),
            "future_time_features": torch.randn(2, future, config.num_time_features, generator=generator),
        }
    bins = getattr(
        config, "num_mel_bins", getattr(config, "feature_size", getattr(config, "input_feat_per_channel", 16))
    )
    if config.model_type == "whisper":
        return {name: torch.randn(2, bins, 2 * config.max_source_positions, generator=generator)}
    return {
        name: torch.randn(2, 24, getattr(config, "feature_projection_input_dim", bins), generator=generator)
    }
