"""Normalisations and reductions. Their statistics are intermediates: a tensor that holds the kept indices alone."""

from __future__ import annotations

import re

from .call import Call
from .rule import rearrangement, rule


def _names(letter: str, count: int) -> str:
    return " ".join(f"{letter}{k}" for k in range(count))


def _over_last(name: str):
    """Normalises over the trailing dimensions: `*b d, d, d -> *b d, *b`."""
    def text(call: Call) -> str:
        d = _names("d", len(call.args[name]))
        return ", ".join([f"*b {d}"] + [d] * (len(call.tensors()) - 1)) + f" -> *b {d}, *b"
    return text


rule("layer_norm.default", _over_last("normalized_shape"), distinct=True, through="input bias", scales="weight bias", whatever="eps cudnn_enable",
     sample=(lambda T: (T(2, 3, 4), [4], T(4), T(4)), lambda T: (T(2, 3, 4), [3, 4])))
rule("rms_norm.default", _over_last("normalized_shape"), distinct=True, scales="weight", whatever="eps",
     sample=lambda T: (T(2, 3, 4), [4], T(4)))


@rearrangement("native_layer_norm.default", whatever="eps",
               sample=(lambda T: (T(2, 3, 4), [4], T(4), T(4), 1e-5), lambda T: (T(2, 3, 4), [4], None, None, 1e-5)))
def native_layer_norm(call: Call):
    result, kept = call.relate(_over_last("normalized_shape")(call))
    statistics = call.factors.permute(kept, [*range(len(kept.shape)), *[None] * len(call.args["normalized_shape"])])
    return [result, statistics, statistics]


rule("group_norm.default", "n (g c) *s, (g c), (g c) -> n (g c) *s, n g", g="num_groups", whatever="eps cudnn_enabled",
     sample=(lambda T: (T(2, 6, 4), 3, T(6), T(6)), lambda T: (T(2, 6, 4, 2), 2)))


def _per_channel(call: Call, *statistics: str) -> list:
    """Normalises each channel: all statistics and affine parameters are vectors over channels."""
    vectors = len(call.tensors()) - 1
    text = ", ".join(["n c *s"] + ["c"] * vectors) + " -> " + ", ".join(["n c *s", *statistics])
    results = call.relate(text)
    return results[:1] + [call.fresh(shape) if shape == (0,) else results[1] for shape in call.shapes[1:]]


_SETTINGS = "momentum eps cudnn_enabled"


@rearrangement("_native_batch_norm_legit_no_training.default batch_norm.default", whatever=_SETTINGS,
               sample=(lambda T: (T(2, 5, 3), T(5), T(5), T(5), T(5).abs(), 0.1, 1e-5) if "native" in T.op else
                       (T(2, 5, 3), T(5), T(5), T(5), T(5).abs(), False, 0.1, 1e-5, False),
                       lambda T: (T(2, 5, 3), None, None, T(5), T(5).abs(), 0.1, 1e-5) if "native" in T.op else
                       (T(2, 5, 3), None, None, None, None, True, 0.1, 1e-5, False)))
def batch_norm(call: Call):
    return _per_channel(call, *["c"] * bool(call.args.get("training")))


@rearrangement("_native_batch_norm_legit.no_stats", whatever=_SETTINGS,
               sample=(lambda T: (T(2, 5, 3), T(5), T(5), True, 0.1, 1e-5), lambda T: (T(2, 5, 3), None, None, True, 0.1, 1e-5)))
def batch_norm_without_statistics(call: Call):
    return _per_channel(call, "c")


@rearrangement("instance_norm.default", whatever=f"use_input_stats {_SETTINGS}",
               sample=(lambda T: (T(2, 5, 3), T(5), T(5), None, None, True, 0.1, 1e-5, False),
                       lambda T: (T(2, 5, 3), None, None, None, None, True, 0.1, 1e-5, False)))
def instance_norm(call: Call):
    return _per_channel(call, "n c")


def along(call: Call, value, dims, keep: bool = True) -> list:
    """An op that reads along some dimensions: the elementwise result and the intermediate without those dimensions."""
    letters = _names("d", len(value.shape)).split()
    kept = " ".join(x for d, x in enumerate(letters) if d not in dims)
    return call.relate(f"{' '.join(letters)} -> " + (f"{' '.join(letters)}, " if keep else "") + kept, [value])


def _softmax(call: Call) -> str:
    value = call.tensors()[0]
    letters = _names("d", len(value.shape)).split()
    return f"{' '.join(letters)} -> {' '.join(letters)}, {' '.join(x for x in letters if x != f'd{call.dim(value)}')}"


for _ops, _positive in {"softmax.int _softmax.default": True, "log_softmax.int _log_softmax.default _safe_softmax.default": False
                        }.items():  # safe: a row that is masked as a whole is zero
    rule(_ops, _softmax, distinct="increasing", saturates=True, positive=_positive, whatever="half_to_float",
         sample=lambda T: (T(2, 3, 4), -1, False) if ".default" in T.op and "safe" not in T.op else (T(2, 3, 4), -1))


def reduced(call: Call, value, dims, keepdim: bool):
    """Sums over dimensions (any symmetric reduction)."""
    result = along(call, value, dims, keep=False)[0]
    if keepdim:
        order = iter(range(len(value.shape)))
        result = call.factors.permute(result, [None if d in dims else next(order) for d in range(len(value.shape))])
    return result


_REDUCTIONS = {  # facts -> ops
    ("distinct", "scales"): "mean.dim sum.dim_IntList mean.default sum.default nansum.default",
    ("distinct",): "amax.default amin.default max.default min.default",
    (): "var.dim var.correction std.dim std.correction logsumexp.default prod.dim_int any.dim any.dims all.dim "
        "linalg_vector_norm.default norm.ScalarOpt_dim var.default std.default prod.default any.default all.default "
        "norm.Scalar count_nonzero.dim_IntList",
}


def _reduction(call: Call) -> str:
    """Sums over dimensions (any symmetric reduction)."""
    value, keep = call.tensors()[0], call.args.get("keepdim", False)
    dims = call.dims(value)
    letters = _names("d", len(value.shape)).split()
    return f"{' '.join(letters)} -> " + " ".join("1" if d in dims else x for d, x in enumerate(letters) if keep or d not in dims)


for _facts, _ops in _REDUCTIONS.items():
    rule(_ops, _reduction, whatever="p ord correction unbiased", distinct="distinct" in _facts,
         scales="self" if "scales" in _facts else "", positive="kept" if _facts else False,
         sample=lambda T: {"aten.linalg_vector_norm.default": (T(2, 3, 4), 2, [1]), "aten.norm.Scalar": (T(3, 4), 2),
                           "aten.norm.ScalarOpt_dim": (T(2, 3, 4), 2, [1])}.get(
             T.op, (T.bool(2, 3, 4), 1 if T.op.endswith(".dim") else [1]) if re.search("any.dim|all.dim|nonzero", T.op)
             else (T(2, 3, 4),) if ".default" in T.op and T.op.split(".")[1] not in ("amax", "amin", "logsumexp")
             else (T(2, 3, 4), 1 if "prod" in T.op else [1])))


@rearrangement("var_mean.correction std_mean.correction aminmax.default", whatever="correction", sample=lambda T: (
    T(2, 3, 4), T.keyword(dim=1)) if "aminmax" in T.op else (T(2, 3, 4), [1]))
def two_reductions(call: Call):
    value = call.tensors()[0]
    return [reduced(call, value, call.dims(value), call.args.get("keepdim", False))] * 2


rule("_is_all_true.default _is_any_true.default", "*a -> ", sample=lambda T: (T(2, 7) > 0,))
rule("histc.default", "*a -> z", whatever="bins min max", sample=lambda T: (T(2, 7), 4, -2, 2))


@rearrangement("cumsum.default cumprod.default logcumsumexp.default "
               "fft_fft.default fft_ifft.default", whatever="n norm",
               sample=lambda T: (T(2, 3, 4), None, 1) if "fft" in T.op else (T(2, 3, 4), 1))
def ordered(call: Call):
    value = call.tensors()[0]
    call.pin(value, [call.dim(value)])
    return along(call, value, [call.dim(value)])[0]


@rearrangement("cummax.default cummin.default", sample=lambda T: (T(2, 3, 4), 1))
def ordered_with_indices(call: Call):
    return [ordered(call)] * 2


@rearrangement("fft_fftn.default fft_fft2.default fft_rfft.default fft_rfft2.default fft_irfft.default fft_irfft2.default",
               whatever="n s norm",
               sample=lambda T: (T(2, 3, 4),))
def fourier(call: Call):
    value = call.tensors()[0]
    given = call.args.get("dim")
    dims = [given % len(value.shape)] if isinstance(given, int) else call.dims(value)
    call.pin(value, dims)
    letters = [f"x{d}" if d in dims else f"d{d}" for d in range(len(value.shape))]
    return call.relate(f"{' '.join(letters)} -> {' '.join(x.replace('x', 'z') for x in letters)}", [value])


rule("_weight_norm.default", lambda c: _weight_norm(c), sample=(lambda T: (T(4, 3, 2), T(4, 1, 1), 0)))


def _weight_norm(call: Call) -> str:
    rank, dim = len(call.args["v"].shape), call.args["dim"]
    letters = _names("d", rank)
    kept = letters.split()[dim % rank] if dim != -1 or rank == 0 else ""
    return f"{letters}, {letters} -> {letters}, {kept}"


@rearrangement("_weight_norm_interface.default", sample=lambda T: (T(4, 3, 2), T(4, 1, 1), 0))
def weight_norm_interface(call: Call):
    rank, dim = len(call.args["v"].shape), call.args["dim"]
    result, kept = call.relate(_weight_norm(call))
    return [result, call.factors.permute(kept, [0 if d == dim % rank else None for d in range(rank)])]
