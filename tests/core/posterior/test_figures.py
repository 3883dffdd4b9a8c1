"""The table of the toy as a regression test: bias, spread and residual of every solver on a VP path.

Linear solvers are exact. The others are 1,000 samples of seed 0, whose noise is the same everywhere, so their figures
repeat too; of their bias about 0.005 is what so few samples leave.
"""

from __future__ import annotations

import pytest

from scidiff.core.path import VP
from scidiff.core.posterior import DDNM, DDRM, DDS, DPS, DiffPIR, FlowChef, FlowDPS, PiGDM
from scidiff.core.posterior.toy import GaussianToy
from scidiff.core.procedure import DAPS, PnPDM, PnPFlow, REDDiff

EXACT = {
    "PiGDM, isotropic": (PiGDM(100), 0.1076, 1.331, 1.750),
    "DiffPIR, xi 1": (DiffPIR(100), 0.0452, 0.870, 0.558),
    "DDRM 20": (DDRM(20), 0.1097, 1.452, 3.199),
    "FlowDPS": (FlowDPS(), 0.3279, 2.395, 8.456),
    "FlowDPS, no final step": (FlowDPS(final=False), 0.3657, 2.574, 12.037),
    "FlowDPS, |y - A D|": (FlowDPS(image=False), 0.1340, 1.846, 2.333),
    "FlowChef": (FlowChef(), 0.1470, 1.451, 3.196),
    "FlowChef, |y - A D|": (FlowChef(image=False), 0.0633, 1.054, 0.509),
}
SAMPLED = {
    "DDNM, stop": (DDNM(100), 0.0412, 1.076, 0.759),
    "DDS, least squares, stop": (DDS(50), 0.0518, 1.152, 0.732),
    "DDS, g = 1": (DDS(50, weight=1.0), 0.1637, 1.757, 2.831),
    "DDS, g = 1/sigma^2, no stop": (DDS(50, weight=1.0, relative=True, stop=False), 0.0516, 1.094, 0.007),
    "DPS 200": (DPS(200, zeta=0.3), 0.0422, 1.015, 1.105),
    "RED-diff 200": (REDDiff(200), 0.0747, 0.708, 0.716),
    "PnP-Flow": (PnPFlow(), 0.2837, 0.844, 7.718),
    "DAPS 100 x 5": (DAPS(100), 0.0415, 1.537, 0.979),
    "PnP-DM 60 x 20": (PnPDM(60), 0.0368, 1.079, 1.896),
}


@pytest.fixture(scope="module")
def toy():
    return GaussianToy(VP(t_min=1e-4))


def assert_figures(found, bias, spread, residual):
    assert found["bias"] == pytest.approx(bias, rel=0.03, abs=1e-3)
    assert found["spread"] == pytest.approx(spread, rel=0.02)
    assert found["residual"] == pytest.approx(residual, rel=0.03, abs=2e-3)


@pytest.mark.parametrize("name", sorted(EXACT))
def test_exact_figures(name, toy):
    method, *figures = EXACT[name]
    assert_figures(toy.figures(*toy.moments(method)), *figures)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SAMPLED))
def test_sampled_figures(name, toy):
    method, *figures = SAMPLED[name]
    x = toy.samples(method, 1000)
    assert_figures(toy.figures(x.mean(0), x.T.cov()), *figures)
