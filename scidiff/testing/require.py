"""The one assertion of the conformance kit."""

from __future__ import annotations

from torch import Tensor


def require(holds: bool | Tensor, sentence: str) -> None:
    """AssertionError with that sentence unless it holds (also under `python -O`)."""
    if not bool(holds):
        raise AssertionError(sentence)
