"""Flags and the overrides that they stand for."""

from __future__ import annotations

import pytest

from scidiff.cli import overrides as o
from scidiff.core.errors import UsageError


def test_words_are_split_into_bare_ones_and_settings():
    words = ["molecule", "a=1", "+b.c=2", "++d=3", "~e", "group@pkg=x", "my file.smi", "x-y"]
    bare, settings = o.split_words(words)
    assert bare == ["molecule", "my file.smi", "x-y"]
    assert settings == ["a=1", "+b.c=2", "++d=3", "~e", "group@pkg=x"]
    assert o.split_words(None) == ([], [])


def test_a_path_in_the_home_folder_is_no_deletion():
    assert o.split_words(["~/data.smi"]) == (["~/data.smi"], [])


def test_only_given_flags_become_overrides():
    assert o.assign({"seed": 0, "out": None, "from": "qm9"}) == ["seed=0", "from='qm9'"]


@pytest.mark.parametrize("text, override", [
    ("qed=0.8", "++condition.qed=0.8"),
    ("smiles=CC(=O)O", "++condition.smiles='CC(=O)O'"),
    ("rings=2", "++condition.rings=2"),
    ("formula=Na2=3", "++condition.formula='Na2=3'"),
])
def test_conditions(text, override):
    assert o.conditions([text]) == [override]


@pytest.mark.parametrize("text", ["qed", "=3", "a b=2", "a.b=2"])
def test_conditions_that_cannot_be_read(text):
    with pytest.raises(UsageError, match="--condition name=value"):
        o.conditions([text])


def test_guidance_is_switched_on_by_its_weight():
    assert o.guide(2) == ["guidance=cfg", "guidance.weight=2.0"]
    assert o.guide(None) == []


@pytest.mark.parametrize("text, expected", [("4-9", [4, 9]), ("7", [7, 7]), (None, None)])
def test_sizes(text, expected):
    assert o.sizes(text) == expected


@pytest.mark.parametrize("text", ["9-4", "0-3", "0", "-3", "a", "3-", "1-2-3", ""])
def test_sizes_that_make_no_sense(text):
    with pytest.raises(UsageError):
        o.sizes(text)


def test_sample_ids():
    assert o.sample_ids(["s0007,s0009", "s12345"]) == ["s0007", "s0009", "s12345"]
    assert o.sample_ids(None) is None
    with pytest.raises(UsageError, match="s0007"):
        o.sample_ids(["7"])
