"""Scaled dot-product attention. The scores hold queries and keys without units; their sums hold queries alone."""

from __future__ import annotations

from .call import Call
from .rule import rule


def _attention(call: Call) -> str:
    drawn = "!" * (call.args["dropout_p"] > 0)  # each score meets a draw of its own
    bang = "!" * bool(call.args["is_causal"]) or drawn
    l, s = f"l{bang}", f"s{bang}"
    query, key = call.args["query"], call.args["key"]
    heads, shared = f"*b{drawn}", f"*b{drawn}"
    if call.args.get("enable_gqa") and len(query.shape) > 2 and query.shape[-3] != key.shape[-3]:
        heads, shared = f"*b{drawn} (k{drawn} g{drawn})", f"*b{drawn} k{drawn}"
    mask = call.args["attn_mask"]
    masks = "" if mask is None else ", " + (f"{heads} l s" if len(mask.shape) > 2 else "l s")
    kept = heads.replace("!", "")
    apart = kept.replace("(", "").replace(")", "")
    return f"{heads} {l} d, {shared} {s} d, {shared} {s} e{masks} -> {kept} l e, {apart} l s, {apart} l"


rule("scaled_dot_product_attention.default", _attention, scales="value", whatever="scale",
     sample=(lambda T: (T(2, 3, 4, 5), T(2, 3, 6, 5), T(2, 3, 6, 7)),
             lambda T: (T(2, 3, 4, 5), T(2, 3, 6, 5), T(2, 3, 6, 7), T(4, 6)),
             lambda T: (T(2, 3, 4, 5), T(2, 3, 6, 5), T(2, 3, 6, 7), T(2, 1, 4, 6)),
             lambda T: (T(2, 3, 4, 5), T(2, 3, 4, 5), T(2, 3, 4, 7), None, 0.0, True),
             lambda T: (T(2, 6, 4, 5), T(2, 3, 4, 5), T(2, 3, 4, 7), None, 0.0, False)
             + (T.keyword(enable_gqa=True),),
             lambda T: (T(2, 3, 4, 5), T(2, 3, 6, 5), T(2, 3, 6, 7), None, 0.5)))
