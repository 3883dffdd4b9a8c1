"""Formulas: what they count, and one sentence for everything that is none."""

from __future__ import annotations

import random
import re

import pytest

from scidiff.core.errors import UsageError
from scidiff.domains.crystal.formula import (
    ELEMENTS,
    NUMBER,
    elements,
    formulas,
    multiples,
    parse,
    reduced,
    symbol,
    text,
)


@pytest.mark.parametrize("formula, counted", [
    ("NaCl", {"Na": 1, "Cl": 1}),
    ("Ca(OH)2", {"Ca": 1, "O": 2, "H": 2}),
    ("Fe2(SO4)3", {"Fe": 2, "S": 3, "O": 12}),
    ("[Co(NH3)6]Cl3", {"Co": 1, "N": 6, "H": 18, "Cl": 3}),
    ("CuSO4·5H2O", {"Cu": 1, "S": 1, "O": 9, "H": 10}),
    ("CuSO4*5H2O", {"Cu": 1, "S": 1, "O": 9, "H": 10}),
    ("BaTiO₃", {"Ba": 1, "Ti": 1, "O": 3}),
    ("Na4 Cl4", {"Na": 4, "Cl": 4}),
    ("CO", {"C": 1, "O": 1}),
    ("Co", {"Co": 1}),
])
def test_formulas(formula, counted):
    assert parse(formula) == counted


def test_written_and_read_again_over_random_compositions():
    draw = random.Random(0)
    for _ in range(300):
        made = {name: draw.randint(1, 30) for name in draw.sample(ELEMENTS, draw.randint(1, 6))}
        assert parse(text(made)) == made
        times = draw.randint(1, 5)
        smallest = reduced(made)
        assert reduced({name: times * count for name, count in made.items()}) == smallest
        assert parse(f"({text(smallest)}){times}") == {name: times * count for name, count in smallest.items()}


@pytest.mark.parametrize("wrong, why", [
    ("nacl", "element symbols begin with a capital letter"),
    ("Xx2", "names the unknown element 'Xx'. Did you mean"),
    ("Na(", "'(' is not closed"),
    ("Na)", "')' closes nothing"),
    ("(Na]", "']' closes nothing"),
    ("()", "a pair of brackets is empty"),
    ("2", "a part of it holds no element"),
    ("CuSO4·", "a part of it holds no element"),
    ("Na2.5", "its numbers must be whole"),
    ("Na0", "an element occurs zero times"),
    ("Na-Cl", "'-' has no place"),
    ("", "The formula is empty"),
    ("   ", "The formula is empty"),
    ("H99999999", "more than 10000 atoms"),
    ("((H9999)9999)9999", "more than 10000 atoms"),
    ("(" * 50 + "H" + ")" * 50, "too deep"),
    ("H" * 500, "too long"),
    ("Na\nCl", "has no place"),
])
def test_nonsense_is_refused_in_one_sentence(wrong, why):
    with pytest.raises(UsageError, match=re.escape(why)) as caught:
        parse(wrong)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_multiples():
    assert multiples("1,2,4") == multiples([4, 1, 2]) == multiples("1 2;4") == (1, 2, 4)
    assert multiples("2-4") == (2, 3, 4) and multiples(3) == (3,)
    for wrong in ("0", "4-2", "two", "", [1, None]):
        with pytest.raises(UsageError, match="formula units per cell"):
            multiples(wrong)


def test_lists_of_elements_and_formulas():
    assert elements("Fe,O Li;P") == ("Li", "O", "P", "Fe") == elements(["P", "O", "Fe", "Li", "O"])
    assert formulas("NaCl, KCl") == ["NaCl", "KCl"] and formulas(["NaCl"]) == ["NaCl"]
    with pytest.raises(UsageError, match=r"'fe' is no chemical element\. Did you mean 'Fe'"):
        elements("fe")
    with pytest.raises(UsageError, match="No element is named"):
        elements(" ")


def test_the_periodic_table():
    assert len(ELEMENTS) == len(set(ELEMENTS)) == 118
    assert [NUMBER[s] for s in ("H", "Fe", "Xe", "La", "Lu", "Hg", "U", "Og")] == [1, 26, 54, 57, 71, 80, 92, 118]
    assert symbol(26) == "Fe"
    with pytest.raises(UsageError, match="no element number 0"):
        symbol(0)
