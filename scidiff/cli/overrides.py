"""Flags to overrides. Pure functions: words in, a list of Hydra overrides `key=value` out.

Every flag stands for one override, which its help text names; a `key=value` that a person writes comes last and wins.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from scidiff.config import quote
from scidiff.core.errors import UsageError


def split_words(words: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Bare words (a domain, a file) and settings (`key=value`, `+key=value`, `~key`)."""
    bare = [word for word in words or () if not is_setting(word)]
    return bare, [word for word in words or () if is_setting(word)]


def is_setting(word: str) -> bool:
    return bool(re.match(r"^(~\w[\w./@]*$|(\+\+?|~)?[\w./@]*=)", word))


def keys(settings: Iterable[str]) -> set[str]:
    """The names that `key=value` words set."""
    return {word.split("=", 1)[0].lstrip("+~") for word in settings}


def assign(values: Mapping[str, Any]) -> list[str]:
    """`key=value` for every value that is not None."""
    return [f"{key}={quote(value)}" for key, value in values.items() if value is not None]


def conditions(given: Iterable[str] | None) -> list[str]:
    """`--condition qed=0.8` to `++condition.qed=0.8`."""
    found = []
    for word in given or ():
        key, sign, text = word.partition("=")
        if not sign or not re.fullmatch(r"[A-Za-z_]\w*", key):
            raise UsageError(f"The condition {word!r} cannot be read.", "Write --condition name=value.")
        found.append(f"++condition.{key}={quote(_value(text))}")
    return found


def conditioned(given: Iterable[str] | None) -> list[str]:
    """`train --condition logp` to `++condition.logp=true`."""
    names = [name.strip() for word in given or () for name in word.split(",") if name.strip()]
    for name in names:
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise UsageError(f"{name!r} names no property.", "Write --condition logp; a value comes with 'generate'.")
    return [f"++condition.{name}=true" for name in names]


def guide(weight: float | None) -> list[str]:
    """`--guide 2` switches classifier-free guidance on with that weight."""
    return [] if weight is None else ["guidance=cfg", f"guidance.weight={quote(float(weight))}"]


def sizes(text: str | None) -> list[int] | None:
    """`4-9` to [4, 9], `7` to [7, 7]."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text.strip())
    if match is None:
        raise UsageError(f"The number of atoms {text!r} cannot be read.", "Write one number, 7, or a range, 4-9.")
    low, high = int(match[1]), int(match[2] or match[1])
    if not 1 <= low <= high:
        raise UsageError(f"The range {text!r} is empty.", "Write the smaller number first, from 1 on.")
    return [low, high]


def sample_ids(given: Iterable[str] | None) -> list[str] | None:
    """`--only s0007,s0009` and repeated `--only` to a list of ids."""
    found = [part.strip() for word in given or () for part in word.split(",") if part.strip()]
    for name in found:
        if not re.fullmatch(r"s\d+", name):
            raise UsageError(f"{name!r} is not the id of a sample.", "Ids look like s0007.")
    return found or None


def positive(name: str, value: int | None) -> int | None:
    """The value, if it is above 0; a flag's own sentence otherwise."""
    if value is not None and value < 1:
        raise UsageError(f"{name} must be above 0, not {value}.")
    return value


def _value(text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return value if isinstance(value, (bool, int, float, str, list)) else text
