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
from scidiff.core.space import Categorical, Euclidean, Torus
from scidiff.core.spec import Component, Context, StateSpec
from scidiff.store.targets import build

FOLDER = Path(__file__).resolve().parents[3] / "conf" / "solver"
CATEGORIES = {"mixture": UniformPath(), "mixture_graph": UniformPath(), "rate": UniformPath(),
              "posterior": UniformPath(), "first_hitting": AbsorbingPath()}
PERIODIC = {"end_back": "periodic_bfn2", "vanilla": "crysbfn", "torus_annealed": "torus_fm",
            "wrapped_pc": "wrapped_sde"}
SPACES = {"frac": (Torus(1.0), ("N", 3)), "lattice": (Euclidean(), (6,)), "types": (Categorical(3), ("N",))}


class Flat(Denoiser):
    """Says that every class is as likely as the other."""

    def forward(self, state, t, ctx, run=None):
        return {"c": Prediction("logits", torch.zeros(*state["c"].shape, 2))}


class Same(Denoiser):
    """Predicts the same sample from everything: points at 0.25, a cell of ones, the second class."""

    def __init__(self, spec):
        super().__init__()
        self.spec = spec

    def forward(self, state, t, ctx, run=None):
        hot = torch.tensor([0.0, 200.0, 0.0])
        return {"frac": Prediction("data", torch.full((ctx.batch, ctx.n_max, 3), 0.25)),
                "lattice": Prediction("data", torch.ones(ctx.batch, 6)),
                "types": Prediction("logits", hot.expand(ctx.batch, ctx.n_max, 3))}


@pytest.mark.parametrize("name", sorted(PERIODIC))
def test_a_process_and_its_solver_reach_a_crystal(name):
    """The components of conf/process under the solver made for them: the state ends at what is predicted (points up
    to a common shift, which a centred flow does not know)."""
    process = yaml.safe_load((FOLDER.parent / "process" / f"{PERIODIC[name]}.yaml").read_text())["components"]
    spec = StateSpec({n: Component(SPACES[n][0], build(process[n]).fit([1, 1, 1]), SPACES[n][1]) for n in process})
    driver = build({**yaml.safe_load((FOLDER / f"{name}.yaml").read_text()), "steps": 30})
    sizes = torch.tensor([4, 2, 3])
    result = Sampler(spec, Same(spec), driver).run(Context.of(3, sizes=sizes), 0)
    real = torch.arange(4)[None] < sizes[:, None]
    shift = result.state["frac"][:, :1] if name == "torus_annealed" else 0.25
    gap = torch.remainder(result.state["frac"] - shift + 0.5, 1.0) - 0.5
    assert float(gap[real].abs().max()) < 0.03
    assert float((result.state["lattice"] - 1.0).abs().max()) < 0.1
    assert torch.equal(result.state["types"], real.long())


@pytest.mark.parametrize("name", sorted(f.stem for f in FOLDER.glob("*.yaml") if f.stem not in PERIODIC))
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
