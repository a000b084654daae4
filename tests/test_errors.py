"""Messages and docs/errors.md know each other: every cause has a heading there, and every heading a cause or a class."""
from __future__ import annotations

import pickle
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import fxrebasin as fxr
from fxrebasin import errors
from fxrebasin.cli.speech import explain

ROOT = Path(fxr.__file__).parent
PAGE = (ROOT.parent / "docs" / "errors.md").read_text()
CLASSES = {value.__name__.lower() for value in vars(errors).values()
           if isinstance(value, type) and issubclass(value, errors.FxrebasinError)}


def texts() -> str:
    """All source but that of the table, with texts that go over several lines put together."""
    found = " ".join(path.read_text() for path in ROOT.rglob("*.py") if path.name != "errors.py")
    return re.sub(r"[\"']\s*\n?\s*f?[\"']", "", found)


def test_the_page_has_a_heading_for_each_cause_and_no_other():
    headings = [title.lower().replace(" ", "-") for title in re.findall(r"^##+ (.*)$", PAGE, re.M)]
    assert sorted(headings) == sorted({*errors.CAUSES, *CLASSES}) and len(set(headings)) == len(headings)


def test_all_words_are_those_of_a_message():
    source = texts()
    for anchor, words in errors.CAUSES.items():
        for word in words:
            assert word.strip(" '") in source, f"no message says {word!r} ({anchor})"


@pytest.mark.parametrize("made, anchor", [
    (lambda: fxr.match(fxr.infer(nn.Linear(2, 2), torch.randn(2, 2)), {}, {}), "missing-entries"),
    (lambda: fxr.infer(nn.Linear(2, 2), torch.randn(2, 3)), "runs-that-fail"),
    (lambda: fxr.infer(nn.Linear(2, 2), None), "no-example-inputs"),
    (lambda: fxr.infer(nn.Linear(2, 2), torch.randn(2, 2), outputs="open"), "fxrebasinerror"),
])
def test_an_error_says_where_to_read_on(made, anchor):
    with pytest.raises(errors.FxrebasinError) as caught:
        made()
    error = caught.value
    assert error.anchor == anchor and error.link == f"docs/errors.md#{anchor}"
    assert "errors.md" not in str(error) and explain(error) == f"{error} [{error.link}]"
    if sys.version_info >= (3, 11):
        assert error.__notes__ == [f"see {error.link}"]


def test_errors_survive_pickling():
    error = errors.NotEquivalentError("they differ")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == "they differ" and again.anchor == "notequivalenterror" and len(again.__notes__) == 1
