"""Chemical formulas: text to counted elements, and cells of several formula units.

    formula   = part { ("·" | "*") part },  part = [number] group { group }
    group     = (element | "(" part ")" | "[" part "]" | "{" part "}") [number]

`NaCl`, `Ca(OH)2`, `CuSO4·5H2O`, `BaTiO₃`. Numbers are whole: an ordered cell holds whole atoms.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import reduce
from math import gcd
from typing import Any

from scidiff.core.errors import UsageError, nearest

_SYMBOLS = (
    "H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb Sr Y Zr Nb "
    "Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au "
    "Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv "
    "Ts Og")
ELEMENTS = tuple(_SYMBOLS.split())
NUMBER = {symbol: i for i, symbol in enumerate(ELEMENTS, 1)}
MOST_ATOMS = 10_000
_MOST_TEXT, _DEEPEST = 200, 8
_PIECES = re.compile(r"([A-Z][a-z]?)|(\d+)|([(\[{])|([)\]}])")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉∙⋅•", "0123456789···")
_CLOSES = {"(": ")", "[": "]", "{": "}"}

Composition = dict[str, int]


def symbol(number: int) -> str:
    """The element of an atomic number; UsageError outside 1-118."""
    if not 1 <= int(number) <= len(ELEMENTS):
        raise UsageError(f"There is no element number {number}.")
    return ELEMENTS[int(number) - 1]


def element(text: str) -> str:
    """The symbol itself; UsageError with the nearest ones where it is none."""
    if text not in NUMBER:
        other = text[:1].upper() + text[1:].lower()
        raise UsageError(f"{text!r} is no chemical element.",
                         f"Did you mean {other!r}?" if other in NUMBER else nearest(text, ELEMENTS))
    return text


def elements(given: Any) -> tuple[str, ...]:
    """"Li,O P" or a list to element symbols in order of their numbers; UsageError for what is none, or for none."""
    words = re.split(r"[\s,;-]+", given.strip()) if isinstance(given, str) else [str(x) for x in given]
    found = {element(word) for word in words if word}
    if not found:
        raise UsageError("No element is named.", "Write them with commas, such as Li,O,P,Fe.")
    return tuple(sorted(found, key=NUMBER.__getitem__))


def parse(text: str) -> Composition:
    """Counted elements of a formula, in order of appearance; UsageError of one sentence where it cannot be read."""
    plain = str(text).translate(_SUBSCRIPTS).replace(" ", "").replace("_", "")
    if not plain:
        raise UsageError("The formula is empty.", "Write one such as NaCl or Ca(OH)2.")
    if len(plain) > _MOST_TEXT:
        raise UsageError(f"A formula of {len(plain)} characters is too long.")
    total: Composition = {}
    for part in re.split(r"[·*]", plain):
        lead = re.match(r"\d*", part)
        rest = part[lead.end():] if lead else part
        if not rest:
            raise _unreadable(text, "a part of it holds no element")
        times = int(lead[0]) if lead and lead[0] else 1
        for name, count in _group(text, rest).items():
            total[name] = total.get(name, 0) + times * count
    if any(count == 0 for count in total.values()):
        raise _unreadable(text, "an element occurs zero times")
    if sum(total.values()) > MOST_ATOMS:
        raise UsageError(f"The formula {_shown(text)} names more than {MOST_ATOMS} atoms.")
    return total


def _group(text: str, rest: str) -> Composition:
    """The elements of text without dots; brackets by a stack, so that nothing recurses."""
    stack: list[tuple[str, Composition]] = [("", {})]
    at = 0
    while at < len(rest):
        piece = _PIECES.match(rest, at)
        if piece is None:
            if rest[at] in ".,":
                raise _unreadable(text, "its numbers must be whole")
            hint = "element symbols begin with a capital letter" if rest[at].islower() else f"{rest[at]!r} has no place"
            raise _unreadable(text, hint)
        name, _, opened, closed = piece.groups()
        if opened:
            stack.append((opened, {}))
            if len(stack) > _DEEPEST:
                raise _unreadable(text, "its brackets are too deep")
        elif closed:
            bracket, inner = stack.pop()
            if not bracket or _CLOSES[bracket] != closed:
                raise _unreadable(text, f"{closed!r} closes nothing")
            if not inner:
                raise _unreadable(text, "a pair of brackets is empty")
        elif name:
            inner = {_known(text, name): 1}
        else:
            raise _unreadable(text, f"{piece[0]!r} follows no element")
        at = piece.end()
        if not opened:
            at, times = _times(text, rest, at)
            _add(stack[-1][1], inner, times)
    if len(stack) > 1:
        raise _unreadable(text, f"{stack[-1][0]!r} is not closed")
    return stack[0][1]


def _times(text: str, rest: str, at: int) -> tuple[int, int]:
    """Where the number at this place ends, and the number (1 where there is none)."""
    found = re.compile(r"\d+").match(rest, at)
    if found is None:
        return at, 1
    if len(found[0]) > 5:
        raise UsageError(f"The formula {_shown(text)} names more than {MOST_ATOMS} atoms.")
    return found.end(), int(found[0])


def _add(total: Composition, more: Mapping[str, int], times: int) -> None:
    for name, count in more.items():
        total[name] = total.get(name, 0) + times * count


def _known(text: str, name: str) -> str:
    if name not in NUMBER:
        raise UsageError(f"The formula {_shown(text)} names the unknown element {name!r}.", nearest(name, ELEMENTS))
    return name


def _shown(text: Any) -> str:
    plain = str(text)
    return repr(plain if len(plain) <= 40 else plain[:37] + "...")


def _unreadable(text: Any, why: str) -> UsageError:
    return UsageError(f"{_shown(text)} is no chemical formula: {why}.", "Write one such as NaCl or Ca(OH)2.")


def reduced(composition: Mapping[str, int]) -> Composition:
    """The formula unit with the smallest whole numbers: Na4Cl4 -> NaCl."""
    common = reduce(gcd, composition.values(), 0) or 1
    return {name: count // common for name, count in composition.items()}


def multiples(given: Any) -> tuple[int, ...]:
    """"1,2,4", "1-4", 2 or [1, 2] to ascending formula units per cell; UsageError for anything else."""
    words = [str(x) for x in given] if isinstance(given, (list, tuple)) else re.split(r"[\s,;]+", str(given).strip())
    found: set[int] = set()
    for word in words:
        match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", word)
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= low <= high:
            raise UsageError(f"z={given} does not name formula units per cell.", "Write z=2, z=1,2,4 or z=1-4.")
        found |= set(range(low, high + 1))
    return tuple(sorted(found))


def text(composition: Mapping[str, int]) -> str:
    """{"Na": 4, "Cl": 4} -> "Na4 Cl4" in the order given."""
    return " ".join(f"{name}{count if count > 1 else ''}" for name, count in composition.items())


def formulas(given: Any) -> list[str]:
    """One formula, several with commas, or a list of them."""
    words: Sequence[Any] = re.split(r"[\s,;]+", given.strip()) if isinstance(given, str) else list(given)
    return [str(word) for word in words if str(word)] or [""]
