"""Residues to states and back.

    angles   [2] on a torus of period 2 pi, radians        (phi, psi) of the object are degrees in [-180, 180)
    residue  [1] of 4 classes                              index into `basins.CLASSES`
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from scidiff.core.space import Categorical, Space, Torus
from scidiff.core.spec import Shape, State
from scidiff_ramachandran.basins import CLASSES, Residue, folded

COMPONENTS: dict[str, tuple[Space, Shape]] = {
    "angles": (Torus(period=2 * math.pi), (2,)),
    "residue": (Categorical(classes=len(CLASSES)), (1,)),
}


def encode(objects: Sequence[Residue]) -> State:
    """angles [M, 2] float32 in [0, 2 pi), residue [M, 1] int64."""
    degrees = torch.tensor([(r.phi, r.psi) for r in objects], dtype=torch.float64)
    angles = COMPONENTS["angles"][0].wrap(torch.deg2rad(degrees).to(torch.float32))
    return {"angles": angles, "residue": torch.tensor([[CLASSES.index(r.kind)] for r in objects])}


def decode(state: State) -> list[Residue]:
    """The objects of a state."""
    degrees = torch.rad2deg(state["angles"].to(torch.float64)).tolist()
    kinds = state["residue"][:, 0].tolist()
    return [Residue(CLASSES[k], folded(phi), folded(psi)) for k, (phi, psi) in zip(kinds, degrees, strict=True)]
