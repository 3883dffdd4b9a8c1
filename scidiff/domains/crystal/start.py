"""Where a structure prediction may begin: the template that known crystals suggest, instead of noise.

The template (retrieval.py) of each sample's composition is taken for the data, carried to the time `t_start` of the
paths, and denoised from there: late enough to keep what the template knows, early enough to mend it. t_start 0 returns
the template itself, which is the floor that a model has to beat. Samples whose pattern no known crystal has begin from
noise. The idea is that of DiffCSP++ (Jiao et al. 2024, arXiv 2402.03992), whose templates came from metric learning.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from scidiff.core.errors import UsageError
from scidiff.domains.crystal.codec import CrystalCodec, folded, right_handed
from scidiff.domains.crystal.formula import NUMBER
from scidiff.domains.crystal.reference import FLOORS, PUBLISHED

if TYPE_CHECKING:
    from scidiff.core.spec import Context, State


def templates(ctx: Context, codec: CrystalCodec, name: str, root: str | Path | None = None) -> tuple[State, Tensor]:
    """Clean states [B, ...] and which of them are templates, bool [B]; from the training crystals of a data set."""
    from scidiff.domains.crystal.rows import records

    if "types" not in ctx.known or ctx.sizes is None:
        raise UsageError("A template belongs to a composition, and none is given.", "Name one with --formula.")
    source = FLOORS[PUBLISHED.get(name, "retrieval")].fit(records(name, "train", root).objects)
    types, count = ctx.known["types"][0].cpu(), ctx.batch
    numbers = np.array([NUMBER[e] for e in codec.elements])
    frac, cells = np.zeros((count, codec.n_max, 3)), np.tile(np.eye(3) * 4.0, (count, 1, 1))
    found = torch.zeros(count, dtype=torch.bool)
    for b, (n, row) in enumerate(zip(ctx.sizes.tolist(), ctx.ids.tolist(), strict=True)):
        template = source.find(numbers[types[b, :n].numpy()], row=row)
        if template is not None:
            frac[b, :n], cells[b], found[b] = template.frac, template.matrix, True
    frac, cells = right_handed(frac, cells)
    lattice = codec.standardised(codec.cell.encode(torch.from_numpy(cells))).float()
    return {"types": types.to(torch.int64), "frac": torch.from_numpy(folded(frac)), "lattice": lattice}, found
