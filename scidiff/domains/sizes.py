"""How many parts a sample has: as often as in the training set, or within a range that is asked for.

The size of sample i is the quantile of the histogram at a uniform number drawn from (seed, i) alone; outside the sizes
that the histogram knows it is uniform over the range.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scidiff.core.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from scidiff.domains.base import Request


@dataclass(frozen=True)
class Sizes:
    """option: what a person asks with (`num_atoms`); parts: what is counted; examples: a number and a range that a
    person may write; tag: of the noise that draws sizes."""

    option: str
    parts: str
    examples: tuple[str, str]
    tag: str

    @property
    def names(self) -> tuple[str, str]:
        return self.option, "sizes"

    def asked(self, request: Request) -> Any:
        """What a request says of the size, in its conditions or its options; None where it says nothing."""
        given = [source[k] for source in (request.condition, request.options) for k in self.names if k in source]
        return next((value for value in given if value is not None), None)

    def within(self, wanted: Any, n_max: int) -> tuple[int, int]:
        """None, 7, "7", "4-9" or [4, 9] to (lowest, highest) size; UsageError outside 1..n_max."""
        if wanted is None:
            return 1, n_max
        if isinstance(wanted, (list, tuple)) and len(wanted) == 2:
            wanted = f"{wanted[0]}-{wanted[1]}" if wanted[0] != wanted[1] else wanted[0]
        match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", str(wanted))
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= low <= high <= n_max:
            raise UsageError(f"{self.option}={wanted} is no number or range of {self.parts} within 1-{n_max}.",
                             f"Write {self.option}={self.examples[0]} or {self.option}={self.examples[1]}.")
        return low, high

    def draw(self, request: Request, histogram: Sequence[float], n_max: int) -> Tensor:
        """Sizes int64 [num] of the samples of a request; histogram: weights by size, from 0 on, maybe empty."""
        import torch

        from scidiff.core.run import uniform

        low, high = self.within(self.asked(request), n_max)
        weights = torch.zeros(n_max + 1, dtype=torch.float64)
        weights[: len(histogram)] = torch.tensor(histogram, dtype=torch.float64)
        inside = torch.zeros_like(weights)
        inside[low : high + 1] = 1.0
        weights = weights * inside
        if float(weights.sum()) == 0.0:
            weights = inside
        cumulative = weights.cumsum(0) / weights.sum()
        drawn = torch.searchsorted(cumulative, uniform(request.seed, request.ids.cpu(), self.tag)[:, 0].contiguous())
        return drawn.clamp(low, high).to(request.ids.device)
