"""Every conf/solver/*.yaml builds a driver that samples what it is meant for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from scidiff.core.analytic import AnalyticMixture, GaussianMixture
from scidiff.core.denoiser import Denoiser
from scidiff.core.path import VP, AbsorbingPath, LevelPath, Prediction, UniformPath
from scidiff.core.sampler import Sampler
from scidiff.core.solvers.fixed import Fixed
from scidiff.core.space import Categorical
from scidiff.core.spec import Component, Context, StateSpec
from scidiff.store.targets import build

FOLDER = Path(__file__).resolve().parents[3] / "conf" / "solver"
CATEGORIES = {"mixture": UniformPath(), "mixture_graph": UniformPath(), "rate": UniformPath(),
              "posterior": UniformPath(), "first_hitting": AbsorbingPath()}


class Flat(Denoiser):
    """Says that every class is as likely as the other."""

    def forward(self, state, t, ctx, run=None):
        return {"c": Prediction("logits", torch.zeros(*state["c"].shape, 2))}


@pytest.mark.parametrize("name", sorted(f.stem for f in FOLDER.glob("*.yaml")))
def test_a_solver_config_samples(name):
    config = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    assert {"steps", "compile", "cuda_graph"} <= set(config)
    driver = build(config)
    assert driver.compile is False and driver.cuda_graph is False
    if name in CATEGORIES:
        spec = StateSpec({"c": Component(Categorical(2), CATEGORIES[name], (5,))})
        state = Sampler(spec, Flat(), driver).run(Context.of(16), 0).state
        assert int(state["c"].max()) <= 1
        return
    path = LevelPath(tuple(torch.linspace(0.02, 0.999, 80).tolist())) if name == "refiner" else VP()
    denoiser = AnalyticMixture(GaussianMixture(torch.zeros(1, 64), torch.ones(1)), path, kind="noise")
    result = Sampler(denoiser.spec(), denoiser, driver).run(Context.of(16), 0)
    assert float(result.state["x"].square().mean()) == pytest.approx(1.0, abs=0.2)
    if isinstance(driver, Fixed):
        assert result.nfe == driver.plan(denoiser.spec()).nfe
