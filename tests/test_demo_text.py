"""The demo's texts: how they are read from the archive's indices, and what is shipped of them."""

from __future__ import annotations

import pytest
import torch

import fxrebasin as fxr
from fxrebasin.demo import data, debian, weights
from fxrebasin.demo.models import PIECES, TOKENS, build

PACKAGES = """Package: libzoo1
Source: zoo (1.2)
Section: libs
Description-md5: aa

Package: zoo-doc
Section: non-free/doc
Description-md5: bb

Package: strange
Section: unheard-of
Description-md5: cc
"""
TEXTS = """Package: libzoo1
Description-md5: aa
Description-{0}: animals - library
 Calls of animals.
 .
 Many of them.

Package: libzoo1-copy
Description-md5: aa
Description-{0}: animals - library

Package: strange
Description-md5: cc
Description-{0}: strange
"""


@pytest.fixture
def archive(tmp_path):
    lists = tmp_path / "state" / "lists"
    lists.mkdir(parents=True)
    (lists / "main_Packages").write_text(PACKAGES)
    for language in debian.LANGUAGES:
        (lists / f"main_Translation-{language}").write_text(TEXTS.format(language))
    return tmp_path


def test_rows_are_joined_by_the_hash_of_the_description(archive):
    rows = debian.rows(archive)
    assert set(rows) == set(debian.LANGUAGES)
    (row,) = rows["da"]  # the copy counts once, a section that is in no class not at all
    assert row.text == "animals - library Calls of animals. Many of them." and row.part == debian.part_of("zoo")
    assert list(debian.CLASSES)[row.label] == "libraries"


def test_no_source_package_lies_in_two_parts():
    parts = [debian.part_of(f"source{k}") for k in range(4000)]
    assert parts == [debian.part_of(f"source{k}") for k in range(4000)]
    assert abs(parts.count("test") / 4000 - 0.15) < 0.02 and abs(parts.count("A") / 4000 - 0.425) < 0.03


def test_an_archive_that_is_not_there(tmp_path):
    with pytest.raises(fxr.CheckpointError, match="fetch the texts first"):
        debian.rows(tmp_path)


def test_what_is_shipped_fits_together():
    inputs, labels = data.views("text")
    assert set(inputs) == {"support", *data.LANGUAGES}
    for view, ids in inputs.items():
        assert ids.shape[1] == TOKENS and len(ids) == len(labels[view]) > 1500 and int(ids.max()) < PIECES
        assert int(labels[view].max()) < len(debian.CLASSES) and bool((ids[:, 0] != 0).all())
    model, accuracy = build("text"), {}
    for name, state in (("base", weights.base("text", "A")), ("tuned", weights.finetuned("text", "it"))):
        model.load_state_dict(state)
        with torch.no_grad():
            accuracy[name] = float((model(inputs["it"][:500]).argmax(1) == labels["it"][:500]).float().mean())
    assert accuracy["base"] < 0.5 < 0.6 < accuracy["tuned"] and 0.6 < weights.oracle("text", "it") < 0.8
