"""Posterior sampling with any prior: wrappers and rules for the Sampler, and the entry that runs every solver.

    draw(operator, y, denoiser, spec, posterior, sigma_y, samples)      samples of p(x0 | y)

Wrappers: PiGDM, DDNM, DiffPIR, DDS, FlowDPS. Rules: DPS, DDRM, FlowChef, MBIR. Perpendicular and Triplets make priors
of volumes out of priors of slices. The outer algorithms RED-diff, DAPS, PnP-DM and PnP-Flow are in
scidiff.core.procedure. All know linear operators and denoisers, nothing of a domain.
"""

from scidiff.core.posterior.base import Guided, Posterior
from scidiff.core.posterior.chunked import Chunked
from scidiff.core.posterior.consistency import DDNM, DDS, DataStep, DiffPIR
from scidiff.core.posterior.cost import Cost, network_bytes
from scidiff.core.posterior.ddrm import DDRM
from scidiff.core.posterior.dps import DPS
from scidiff.core.posterior.draw import Draws, draw, problem_of, stream
from scidiff.core.posterior.flow import FlowChef, FlowDPS
from scidiff.core.posterior.mbir import MBIR
from scidiff.core.posterior.mix import Mix
from scidiff.core.posterior.perpendicular import Perpendicular
from scidiff.core.posterior.pigdm import PiGDM
from scidiff.core.posterior.problem import Measurement, Problem
from scidiff.core.posterior.triplets import Triplets

__all__ = ["DDNM", "DDRM", "DDS", "DPS", "MBIR", "Chunked", "Cost", "DataStep", "DiffPIR", "Draws", "FlowChef",
           "FlowDPS", "Guided", "Measurement", "Mix", "Perpendicular", "PiGDM", "Posterior", "Problem", "Triplets",
           "draw", "network_bytes", "problem_of", "stream"]
