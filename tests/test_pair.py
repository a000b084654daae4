"""The right pair: an alignment knows its source; swapped states are noticed; tensors of another shape."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import fxrebasin as fxr
from fxrebasin.checkpoint import load_state, save_state
from fxrebasin.cli.entry import run
from fxrebasin.fingerprint import OTHER, distance, fingerprint, numbers_of
from fxrebasin.transport import TransportNote, transported


class Tagger(nn.Module):
    def __init__(self, vocabulary: int = 12, width: int = 8, classes: int = 5):
        super().__init__()
        self.embedding, self.inner = nn.Embedding(vocabulary, width), nn.Linear(width, 16)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, classes)

    def forward(self, ids):
        return self.head(self.norm(self.inner(self.embedding(ids)).relu()))


IDS = torch.arange(6).view(2, 3)
SPEC = fxr.infer(Tagger(), IDS)


def state_of(seed: int, **sizes) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {k: v.clone() for k, v in Tagger(**sizes).state_dict().items()}


def tuned(state, size: float = 0.05, seed: int = 9):
    torch.manual_seed(seed)
    return {k: v + size * torch.randn_like(v) for k, v in state.items()}


A, B = state_of(0), state_of(1)
F = tuned(A)
PI = fxr.match(SPEC, A, B)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_fingerprint_survives_rounding_and_tells_states_apart(dtype):
    of = lambda state: numbers_of(fingerprint(SPEC, state))  # noqa: E731
    assert distance(of(A), of({k: v.to(dtype) for k, v in A.items()})) < 0.01
    assert distance(of(A), of(F)) < OTHER
    for other in (B, SPEC.random(1).apply(A), {k: -v for k, v in A.items()}):
        assert distance(of(A), of(other)) > OTHER
    assert len(fingerprint(SPEC, A)) < 300


def test_match_records_both_ends_and_files_keep_them(tmp_path):
    assert PI.source == fingerprint(SPEC, A) and PI.target == fingerprint(SPEC, B)
    PI.save(tmp_path / "pi.safetensors")
    again = fxr.Alignment.load(tmp_path / "pi.safetensors")
    assert (again.source, again.target) == (PI.source, PI.target)
    assert (PI.inverse().source, PI.inverse().target) == (PI.target, PI.source)
    there = fxr.match(SPEC, B, A)
    assert ((there @ PI).source, (there @ PI).target) == (PI.source, there.target)
    assert SPEC.random().source is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_right_pair_passes_in_any_precision(dtype):
    low = lambda state: {k: v.to(dtype) for k, v in state.items()}  # noqa: E731
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fxr.transport(low(A), low(F), low(B), PI)
        fxr.transport(low(A), low(A), low(B), PI)
        fxr.transport(low(B), low(tuned(B)), low(A), PI.inverse())


@pytest.mark.parametrize(
    "given, message",
    [
        (
            (state_of(5), F, B),
            "the base is not the state that the alignment was matched from: give that one, or match again",
        ),
        (
            (B, F, A),
            "the base is what the alignment leads to, not what it starts from: are BASE and TARGET swapped",
        ),
        ((F, A, B), "the base is not quite: are BASE and FINETUNED swapped"),
    ],
)
def test_a_wrong_pair_is_refused(given, message):
    for act in (fxr.transport, lambda *a, **k: dict(transported(*a, **k))):
        with pytest.raises(fxr.StateError, match=message) as caught:
            act(*given, PI)
        assert "\n" not in str(caught.value) and "force=True" in str(caught.value)
        with pytest.warns(TransportNote, match=message):
            act(*given, PI, force=True)


def test_a_fine_tuning_of_the_target_is_noticed():
    with pytest.warns(TransportNote, match="nearer to the target than to the base"):
        fxr.transport(A, tuned(B), B, PI)


def test_files_are_the_same_bytes_each_time(tmp_path):
    code = ("import torch, sys, fxrebasin as fxr; sys.path.insert(0, {here!r}); from test_pair import *; "
            "os.umask(0o027); PI.save(sys.argv[1])").format(here=os.path.dirname(__file__))
    paths = [tmp_path / f"{k}.safetensors" for k in range(2)]
    for path in paths:
        subprocess.run([sys.executable, "-c", code, str(path)], check=True, capture_output=True,
                       env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0].stat().st_mode & 0o777 == 0o640


# == shapes that the fine-tuning changed =====================================================================


def with_head(classes: int):
    new = state_of(7, classes=classes)
    return {**F, "head.weight": new["head.weight"], "head.bias": new["head.bias"]}


def with_vocabulary(size: int):
    rows = tuned(A)["embedding.weight"][:size]
    more = torch.randn(max(0, size - 12), 8)
    return {**F, "embedding.weight": torch.cat([rows, more])}


@pytest.mark.parametrize(
    "act", [fxr.transport, lambda *a, **k: dict(transported(*a, **k))], ids=["whole", "by part"]
)
@pytest.mark.parametrize("classes", [2, 9])
def test_a_new_head_is_carried_whole(classes, act):
    fine = with_head(classes)
    result = act(A, fine, B, PI, mismatched="finetuned")
    (p,) = (p for g, p in PI.permutations.items() if SPEC.groups[g].size == 16)
    assert torch.equal(result["head.weight"], fine["head.weight"][:, torch.from_numpy(p.copy())])
    assert torch.equal(result["head.bias"], fine["head.bias"])
    plain = fxr.transport(A, F, B, PI)
    assert all(torch.equal(result[k], plain[k]) for k in result if not k.startswith("head"))


@pytest.mark.parametrize(
    "act", [fxr.transport, lambda *a, **k: dict(transported(*a, **k))], ids=["whole", "by part"]
)
@pytest.mark.parametrize("size", [10, 15])
def test_a_resized_vocabulary_gets_its_task_vector_and_its_new_rows(size, act):
    fine = with_vocabulary(size)
    result = act(A, fine, B, PI, alpha=0.5, mismatched="finetuned")["embedding.weight"]
    order = next((torch.from_numpy(p.copy()) for g, p in PI.permutations.items() if SPEC.groups[g].size == 8))
    rows = min(size, 12)
    tau = (fine["embedding.weight"][:rows] - A["embedding.weight"][:rows])[:, order]
    assert torch.allclose(result[:rows], B["embedding.weight"][:rows] + 0.5 * tau, atol=1e-6)
    assert torch.equal(result[rows:], fine["embedding.weight"][rows:][:, order]) and len(result) == size


def test_the_target_may_keep_its_own():
    result = fxr.transport(A, with_head(9), B, PI, mismatched="target")
    assert torch.equal(result["head.weight"], B["head.weight"]) and torch.equal(result["head.bias"], B["head.bias"])
    assert not torch.equal(result["inner.weight"], B["inner.weight"])


@pytest.mark.parametrize(
    "fine, how, message",
    [
        (
            with_head(9),
            "error",
            r"'head.weight' has shape \(9, 16\), and \(5, 16\) in its base: give mismatched=.finetuned.",
        ),
        (
            state_of(7, width=6),
            "finetuned",
            "axis 1 is one that the alignment moves: it is a fine-tuning of another base",
        ),
        (with_head(9), "drop", "mismatched must be one of 'error', 'finetuned', 'target', not 'drop'"),
    ],
)
def test_other_shapes_are_refused(fine, how, message):
    with pytest.raises(fxr.FxrebasinError, match=message):
        fxr.transport(A, fine, B, PI, mismatched=how)


# == on the command line =====================================================================================


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, state in {"a": A, "f": F, "b": B, "c": state_of(5), "head": with_head(9), "words": with_vocabulary(15)}.items():
        save_state(state, f"{name}.safetensors")
    PI.save("pi.safetensors")
    return lambda *names: ["transport", *(f"{name}.safetensors" for name in names), "--alignment", "pi.safetensors", "-o",
                           "out.safetensors"]


@pytest.mark.parametrize(
    "which, how, expected",
    [("head", "finetuned", "finetuned"), ("words", "finetuned", "finetuned"), ("head", "target", "target")],
)
def test_mismatched_on_the_command_line(files, capsys, which, how, expected):
    assert run(files("a", which, "b")) == 2
    assert "give mismatched=\"finetuned\" (--mismatched finetuned)" in capsys.readouterr().err
    assert run([*files("a", which, "b"), "--mismatched", how]) == 0
    found = load_state("out.safetensors")
    fine = load_state(f"{which}.safetensors")
    wanted = fxr.transport(A, fine, B, PI, mismatched=expected)
    assert found.keys() == wanted.keys() and all(torch.equal(found[k], v) for k, v in wanted.items())
    assert ("is written with the shape" in capsys.readouterr().err) == (how == "finetuned")


def test_force_on_the_command_line(files, capsys):
    assert run(files("c", "f", "b")) == 2
    assert "not the state that the alignment was matched from" in capsys.readouterr().err
    assert not os.path.exists("out.safetensors")
    assert run([*files("c", "f", "b"), "--force"]) == 0
    assert "note: the base is not the state" in capsys.readouterr().err
    assert run(files("b", "f", "a")) == 2 and "are BASE and TARGET swapped" in capsys.readouterr().err
    assert run(files("f", "a", "b")) == 2 and "are BASE and FINETUNED swapped" in capsys.readouterr().err


def test_a_wider_dtype_on_the_command_line(files, capsys):
    """A sum that a half cannot hold: refused with the option that helps, which then helps."""
    half = {name: {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
            for name, state in {"a": A, "f": F, "b": B}.items()}
    large = next(k for k, v in half["a"].items() if v.is_floating_point())
    half["a"][large] = torch.zeros_like(half["a"][large])
    half["f"][large], half["b"][large] = (torch.full_like(half["a"][large], 4e4) for _ in range(2))
    for name, state in half.items():
        save_state(state, f"half_{name}.safetensors")
    line = [*files("half_a", "half_f", "half_b"), "--force"]
    assert run(line) == 2
    assert f"'{large}': the sum leaves the range of torch.float16: give dtype=torch.float32 (--dtype float32)" in (
        capsys.readouterr().err)
    assert not Path("out.safetensors").exists()
    assert run([*line, "--dtype", "float32"]) == 0
    wanted = fxr.transport(*half.values(), PI, dtype=torch.float32, force=True)
    found = load_state("out.safetensors")
    assert found.keys() == wanted.keys() and all(torch.equal(found[k], v) for k, v in wanted.items())
    assert float(found[large].max()) == pytest.approx(8e4, rel=1e-3)
    assert {v.dtype for v in found.values() if v.is_floating_point()} == {torch.float32}


def test_a_dtype_is_for_sums_alone(files, capsys):
    command, *rest = files("a", "f", "b")
    assert run([command, "some:Net", *rest, "--dtype", "float64", "--inputs", "x.npz"]) == 2
    assert "--dtype is for sums" in capsys.readouterr().err
