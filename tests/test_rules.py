"""Every rule against its op, and the validator itself against rules that are wrong on purpose."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest

from fxrebasin.check import Case, Claim, alignment_of, check, resolve
from fxrebasin.rules import RULES, rearrangement, rule


@cache
def findings(op: str):
    return check(op)


@pytest.mark.parametrize("op", RULES)
def test_the_op_exists(op):
    assert resolve(op)._schema.arguments is not None


@pytest.mark.parametrize("op", RULES)
def test_the_op_honours_its_rule(op):
    wrong = [str(f) for f in findings(op) if f.kind != "missing" or not RULES[op].missing]
    assert not wrong, "\n".join(wrong)


def test_reasons_for_missing_freedoms_are_needed():
    """A reason is kept only while at least one op of those that share it misses something."""
    stated = {rule.missing for rule in RULES.values() if rule.missing}
    used = {RULES[op].missing for op in RULES
            if RULES[op].missing and any(f.kind == "missing" for f in findings(op))}
    assert stated == used


# ---- rules that are wrong ----------------------------------------------------------------------------------


@pytest.fixture
def claim(monkeypatch):
    """Replaces the rule of an op for one test; returns the kinds of what the validator finds."""
    def kinds(op: str, text, sample=None) -> set[str]:
        sample = sample or RULES[op].samples
        monkeypatch.delitem(RULES, op)
        if isinstance(text, str):
            rule(op, text, sample=sample, **({"g": "num_groups"} if "group_norm" in op else {}))
        else:
            rearrangement(op, sample=sample)(text)
        return {finding.kind for finding in check(op)}
    return kinds


WRONG = {
    "linear leaves its inner index apart": ("linear.default", "*b i, o j, o -> *b o"),
    "linear leaves its bias apart": ("linear.default", "*b i, o i, p -> *b o"),
    "softmax forgets that it sums": ("softmax.int", "*b d -> *b d"),
    "layer_norm leaves its weight apart": ("layer_norm.default", "*b d, e, e -> *b d, *b"),
    "layer_norm forgets its statistics": ("layer_norm.default", "*b d, d, d -> *b d"),
    "group_norm forgets its groups": ("group_norm.default", "n c *s, c, c -> n c *s, n"),
    "embedding frees its vocabulary": ("embedding.default", "v d, *i -> *i d"),
    "conv frees its taps": ("conv1d.default", "n i w!, o i k, o -> n o z"),
    "cumsum frees its order": ("cumsum.default", "*b d -> *b d, *b"),
    "batch_norm leaves its variance apart": (
        "_native_batch_norm_legit_no_training.default",
        lambda call: call.relate("n c *s, c, c, c, v -> n c *s") + [call.fresh((0,))] * 2),
    "relu makes everything equal": ("relu.default", lambda call: call.args["self"] and call.factors.constant(call.shapes[0])),
    "flip moves nothing": ("flip.default", lambda call: call.args["self"]),
    "cat turns its arguments round": (
        "cat.default", lambda call: call.factors.concatenate(call.tensors()[::-1], 1)),
    "select takes another": ("select.int", lambda call: call.factors.reshape(
        call.factors.take(call.args["self"], 1, np.array([0])), call.shapes[0])),
    "transpose does not": (
        "transpose.int", lambda call: call.factors.reshape(call.args["self"], call.shapes[0])),
    "max.dim frees what its index counts": ("max.dim", lambda call: call.relate("a b c -> a c, a c")),
    "scatter frees where it writes": ("scatter.value", lambda call: call.relate("a b, a q -> a b")),
}


@pytest.mark.parametrize("what", WRONG)
def test_an_unsound_rule_is_found(claim, what):
    op, text = WRONG[what]
    assert "unsound" in claim(f"aten.{op}", text)


TIMID = {
    "relu pins": ("relu.default", "*b! -> *b", None),
    "relu pins one dimension": ("relu.default", "*b d! -> *b d", lambda T: (T(2, 3, 4),)),
    "relu is one for all rows": ("relu.default", "*b d -> *b d, d", lambda T: (T(2, 3),)),
    "linear pins what it sums over": ("linear.default", "*b i!, o i, o -> *b o", None),
    "attention ties values to keys": ("scaled_dot_product_attention.default",
                                      "*b l d, *b s d, *b s d -> *b l d, *b l s, *b l",
                                      lambda T: (T(2, 4, 5), T(2, 3, 5), T(2, 3, 5))),
    "attention forgets its heads": ("scaled_dot_product_attention.default",
                                    "b h l d, b h s d, b h s e -> b h l e, b h l s, b h l, b d",
                                    lambda T: (T(2, 3, 4, 5), T(2, 3, 6, 5), T(2, 3, 6, 7))),
    "group_norm pins its groups": (
        "group_norm.default", "n (g! c) *s, (g c), (g c) -> n (g c) *s, n g", None),
    "glu pins": ("glu.default", lambda call: call.pin(call.args["self"]) or call.fresh(call.shapes[0]),
                 lambda T: (T(2, 6), 1)),
    "unbind pins": ("unbind.int", lambda call: [call.relate("a! b! c! -> a c")[0]] * 3, None),
}


@pytest.mark.parametrize("what", TIMID)
def test_a_missing_freedom_is_found(claim, what):
    op, text, sample = TIMID[what]
    assert claim(f"aten.{op}", text, sample) == {"missing"}


def test_a_rule_that_does_not_fit_is_broken(claim):
    assert claim("aten.mm.default", "n k, k m -> n m q") == {"broken"}
    rule_of_bmm = "aten.bmm.default", "b n k, b k m -> b n m"
    assert claim(*rule_of_bmm, lambda T: (T(2, 3, 4), T(2, 5, 4))) == {"broken"}


def test_an_op_that_does_not_exist_is_an_error():
    with pytest.raises(AttributeError):
        resolve("aten.no_such_op.default")


# ---- its own parts -----------------------------------------------------------------------------------------


def test_the_claim_of_linear_is_the_whole_group():
    case = Case("aten.linear.default", lambda T: (T(2, 3), T(4, 3), T(4)))
    assert Claim(case, RULES["aten.linear.default"]).spec.order == math.prod(map(math.factorial, (2, 3, 4)))


def test_an_alignment_is_recovered_from_the_labels_it_moves():
    """Heads and units of values, and of queries and keys, from what they do to labels; nothing else."""
    case = Case("aten.scaled_dot_product_attention.default", lambda T: (T(3, 4, 5), T(3, 6, 5), T(3, 6, 2)))
    spec = Claim(case, RULES[case.op]).spec
    labels = {name: np.arange(t.numel()).reshape(t.shape) for name, t in case.tensors.items()}
    for seed in range(5):
        element = spec.random(seed)
        moved = {name: element.move(case.tensors[name].new_tensor(x), spec.layout(name)).numpy().astype(int)
                 for name, x in labels.items()}
        assert alignment_of(spec, moved) == element
        broken = {**moved, "key": labels["key"]}
        assert alignment_of(spec, broken) is None
