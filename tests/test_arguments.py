"""Arguments that no rule looked at, facts that are none, and the command that tries rules out."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys

import pytest
import torch
from torch import nn

import fxrebasin as fxr
from fxrebasin.check import Case, check, samples_of, wrong_facts
from fxrebasin.check.__main__ import main
from fxrebasin.factors import Factors
from fxrebasin.rules import RULES, Call, Uncovered, rearrangement, rule


@pytest.fixture
def replaced(monkeypatch):
    """Takes ops out of the table for one test, to be registered anew."""
    def take(*ops: str) -> None:
        for op in ops:
            monkeypatch.setitem(RULES, f"aten.{op}", None)
            del RULES[f"aten.{op}"]
    return take


class Net(nn.Module):
    def __init__(self, op):
        super().__init__()
        self.up, self.down, self.op = nn.Linear(3, 6), nn.Linear(6, 2), op

    def forward(self, x):
        return self.down(self.op(self.up(x)))


def pins(op) -> set[str]:
    return set(fxr.infer(Net(op).eval(), torch.randn(4, 3), falsify=False).pinned.values())


# ---- arguments ---------------------------------------------------------------------------------------------


def test_an_argument_that_is_not_read_pins(replaced):
    replaced("roll.default")
    rule("roll.default", "*b n! -> *b n", sample=lambda T: (T(2, 5), [1], [1]))  # it never asks by how much
    assert not any("not covered" in why for why in pins(lambda h: torch.roll(h, [1], [1])))
    for op, said in {lambda h: torch.roll(h, 2, -1): "shifts=[2]", lambda h: torch.roll(h, 1, 0): "dims=[0]"}.items():
        assert any(f"{said} of aten.roll.default is not covered by its rule" in why for why in pins(op)), said


def test_an_argument_that_is_read_declared_or_sampled_does_not_pin(replaced):
    for more in ({"whatever": "shifts dims"}, {"sample": (lambda T: (T(2, 5), [1], [1]), lambda T: (T(2, 5), [2], [-1]))}):
        replaced("roll.default")
        rule("roll.default", "*b n! -> *b n", **{"sample": lambda T: (T(2, 5), [1], [1]), **more})
        assert not any("not covered" in why for why in pins(lambda h: torch.roll(h, 2, -1)))
    replaced("roll.default")

    @rearrangement("roll.default", sample=lambda T: (T(2, 5), [1], [1]))
    def roll(call):
        return call.relate("*b n! -> *b n", [call.args["self"]])[0] if call.args["shifts"] and call.args["dims"] else None
    assert not any("not covered" in why for why in pins(lambda h: torch.roll(h, 2, -1)))


def test_a_tensor_that_is_not_looked_at_pins(replaced):
    replaced("mul.Tensor")

    @rearrangement("mul.Tensor", whatever="*")
    def product(call):
        return call.relate("*a -> *a", [call.args["self"]])[0]
    assert any("other=tensor of shape" in why and "not covered" in why for why in pins(lambda h: h * h.cos()))
    assert any("Uncovered" in f.text for f in check("aten.mul.Tensor"))


def test_more_tensors_than_a_text_speaks_of():
    factors = Factors()
    call = Call(factors, "aten.x.default", {"a": factors.value((2,)), "b": factors.value((3,))}, [(2,)])
    with pytest.raises(ValueError, match="2 tensors, but 'a -> a' speaks of 1"):
        call.relate("a -> a")


@pytest.mark.parametrize(("given", "covered"), [(0.5, True), (0.25, True), (0.0, False), (-0.5, False), (float("inf"), False)])
def test_floats_stand_for_others_of_their_sign(replaced, given, covered):
    replaced("leaky_relu.default")
    rule("leaky_relu.default", "*a -> *a", sample=lambda T: (T(2, 3), 0.5))
    factors = Factors()
    call = Call(factors, "aten.leaky_relu.default", {"self": factors.value((2, 3)), "negative_slope": given}, [(2, 3)])
    with contextlib.nullcontext() if covered else pytest.raises(Uncovered, match="negative_slope=.* is not covered"):
        RULES["aten.leaky_relu.default"].apply(call)


def test_what_is_declared_harmless_is_tried(replaced):
    replaced("cumsum.default")
    rule("cumsum.default", "a d! b -> a d b, a b", whatever="dim", sample=lambda T: (T(2, 3, 4), 1))
    found = check("aten.cumsum.default")
    assert [f.kind for f in found] == ["unsound"] and "with dim=" in found[0].text


# ---- facts -------------------------------------------------------------------------------------------------

_ALIKE = "*a, *a -> *a"
WRONG = {
    "relu keeps numbers apart": ("relu.default", "*a -> *a", {"distinct": True}, "stays as it is"),
    "rounding does": ("round.default", "*a -> *a", {"distinct": "injective"}, "stays as it is"),
    "the larger of two does": ("maximum.default", _ALIKE, {"distinct": True}, "stays as it is"),
    "abs is injective": ("abs.default", "*a -> *a", {"distinct": "injective"}, "become equal"),
    "cos is increasing": ("cos.default", "*a -> *a", {"distinct": "increasing"}, "equal|order"),
    "neg is increasing": ("neg.default", "*a -> *a", {"distinct": "increasing"}, "change their order"),
    "tanh never saturates": ("tanh.default", "*a -> *a", {"distinct": "increasing"}, "stays as it is"),
    "a product with zero too": ("mul.Tensor", _ALIKE, {"distinct": True, "scales": "self other"}, "scales|zeros"),
    "times zero too": ("mul.Scalar", "*a -> *a", {"distinct": True}, "with other=0"),
    "any power": ("pow.Tensor_Scalar", "*a -> *a", {"distinct": True}, "with exponent=0"),
    "exp is positive far out": ("exp.default", "*a -> *a", {"positive": True}, "not above zero"),
    "sin is positive": ("sin.default", "*a -> *a", {"positive": True}, "not above zero"),
    "a difference keeps signs": ("sub.Tensor", _ALIKE, {"positive": "kept"}, "not above zero"),
    "square scales": ("square.default", "*a -> *a", {"scales": "self"}, "times"),
    "a sum scales with one": ("add.Tensor", _ALIKE, {"scales": "self | other"}, "times"),
    "a square moves numbers": ("square.default", "*a -> *a", {"moves": True}, "moves"),
    "flip leaves them where they are": ("flip.default", "a b! -> a b", {"moves": "same"}, "where they were"),
    "expand takes each once": ("expand.default", "a b -> a b", {"moves": "chosen"}, "each once"),
    "cumsum acts on each element": ("cumsum.default", "*a d! -> *a d", {"distinct": True}, "seen at others"),
}
SAMPLES = {"flip.default": lambda T: (T(3, 5), [1]), "expand.default": lambda T: (T(3, 1), [3, 4]),
           "cumsum.default": lambda T: (T(3, 5), 1)}


@pytest.mark.parametrize("what", WRONG)
def test_a_fact_that_is_none_is_found(replaced, what):
    op, text, facts, said = WRONG[what]
    replaced(op)
    rule(op, text, whatever="*", **facts, **({"sample": SAMPLES[op]} if op in SAMPLES else {}))
    name = f"aten.{op}"
    found = "; ".join(wrong_facts(Case(name, samples_of(name)[0]), RULES[name]))
    assert any(word in found for word in said.split("|")), found
    if op != "expand.default":
        assert any(f.kind == "unsound" for f in check(name))


# ---- the command -------------------------------------------------------------------------------------------


def test_a_finding_comes_with_python_that_shows_it(replaced, capsys):
    replaced("softmax.int", "relu.default")
    rule("softmax.int", "*b d -> *b d", whatever="dim", sample=lambda T: (T(2, 3, 4), -1))
    rule("relu.default", "*a -> *a", distinct=True)
    assert main(["softmax.int", "aten.relu.default"]) == 1
    said = capsys.readouterr().out
    assert "unsound: result 0 differs" in said and "stays as it is" in said
    for op in ("aten.softmax.int", "aten.relu.default"):
        finding = check(op)[0]
        assert all(f"    {line}".rstrip() in said for line in finding.reproducer().splitlines())
        with contextlib.redirect_stdout(io.StringIO()) as shown:
            exec(finding.reproducer(), {})
        assert finding.text.split(",")[0][:30] in shown.getvalue()


def test_the_command_says_what_is_right_and_what_it_does_not_know(capsys):
    assert main(["linear.default", "avg_pool2d.default"]) == 0
    said = capsys.readouterr().out
    assert "aten.linear.default: all that the rule claims holds; nothing that holds is left out" in said
    assert "left out on purpose: windows" in said
    assert main(["linear.defalt", "aten.erfinv.default", "x"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert "did you mean aten.linear.default" in lines[0]
    assert "aten.erfinv.default has no rule: it is decomposed first" in lines[1]
    assert "there is no op 'aten.x'" in lines[2] and len(lines) == 3


def test_the_command_runs_as_a_module():
    result = subprocess.run([sys.executable, "-m", "fxrebasin.check", "mv.default"], capture_output=True, text=True)
    assert result.returncode == 0 and "aten.mv.default: all that" in result.stdout and not result.stderr


# ---- decompositions ----------------------------------------------------------------------------------------


class Solve(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 3)
        self.m = nn.Parameter(torch.randn(8, 8) + 4 * torch.eye(8))

    def forward(self, x):
        return self.down(torch.linalg.solve(self.m, torch.relu(self.up(x)).T).T)


def test_unruled_names_the_op_that_was_captured(replaced):
    replaced("linalg_solve.default")
    spec = fxr.infer(Solve(), torch.randn(2, 6), falsify=False)
    assert list(spec.unruled) == ["aten.linalg_solve.default"]
    assert "aten.linalg_solve.default has no rule, and of its parts aten._linalg_solve_ex.default has no rule" in \
        spec.pinned["m", 0]


def test_results_that_a_decomposition_takes_apart_in_vain_are_not_used(replaced):
    replaced("linalg_solve.default")
    seen = []

    @rearrangement("_linalg_solve_ex.default", sample=lambda T: (T(2, 4, 4), T(2, 4, 3)))
    def solve(call):
        seen.append([call.used(k) for k in range(4)])
        return call.relate("*b n m, *b n k -> *b m k, *b p q, *b r, *b")
    try:
        fxr.infer(Solve(), torch.randn(2, 6), falsify=False)
    finally:
        del RULES["aten._linalg_solve_ex.default"]
    assert seen[0][:3] == [True, False, False]  # the status is checked
