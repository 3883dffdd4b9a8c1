"""From a composed config to a trained model: what the data fill in, variants by settings, levels, a first forecast."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from scidiff import api, config
from scidiff.core.path import VP, LevelPath
from scidiff.core.run import Run
from scidiff.domains.pde import PdeDomain, levels
from scidiff.domains.pde.codec import FRAMES
from scidiff.domains.pde.reference import developed, future
from scidiff.store.model import assemble
from scidiff.store.targets import build
from scidiff.training.prepare import prepare

pytest.importorskip("xarray")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """A cache of one's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCIDIFF_HOME", str(tmp_path_factory.mktemp("home")))
        yield


TINY = ["data.options.count=16", "data.options.frames=21", "data.options.burn_in=20", "backbone.widths=[8,8]",
        "backbone.embed=8", "trainer=debug", "trainer.compile=false"]


def prepared(*words):
    return prepare(config.compose("train", ["experiment=ks22", *TINY, *words]))


def test_the_data_fill_the_settings_of_objective_and_network():
    cache = prepared()
    c = cache.config
    options = c["domain"]["options"]
    assert c["objective"]["scale"] == options["scale"] and 0.05 < options["scale"] < 0.5
    assert (c["objective"]["stride"], c["objective"]["history"], c["objective"]["target"]) == (4, 1, "residual")
    assert c["objective"]["reflect"] is True and c["objective"]["joint"] is False
    assert (c["backbone"]["channels_in"], c["backbone"]["channels_out"], c["backbone"]["dims"]) == (2, 1, 1)
    assert c["spec"]["u"]["shape"] == [1, 64] and options["interval"] == pytest.approx(0.8)
    assert len(cache.train) + len(cache.valid) == 16 and cache.train.cond[FRAMES].shape[1:] == (21, 1, 64)
    spec, loss = trained_once(cache)
    assert isinstance(spec["u"].path, LevelPath) and len(spec["u"].path.stds) == 4
    assert loss == pytest.approx(1.0, rel=0.5)  # the network starts at zero, and targets have unit variance


def trained_once(cache):
    """The spec and the loss of the first batch of a cache, as training computes it."""
    spec, denoiser = assemble(cache.config)
    objective = build({k: v for k, v in cache.config["objective"].items() if k != "domain"}, spec=spec)
    loss, _ = objective.loss(denoiser, cache.train.batch(torch.arange(len(cache.train))), Run(0))
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in denoiser.parameters() if p.grad is not None)
    return spec, float(loss.detach())


@pytest.mark.parametrize("words, inside, outside, path", [
    (["domain.options.history=2", "domain.options.target=direct"], 3, 1, LevelPath),
    (["process=regression", "objective.unroll=2", "objective.detach=false"], 2, 1, LevelPath),
    (["process=acdm", "domain.options.joint=true", "domain.options.history=2"], 3, 3, VP),
])
def test_variants_are_a_matter_of_settings(words, inside, outside, path):
    cache = prepared(*words)
    c = cache.config
    assert (c["backbone"]["channels_in"], c["backbone"]["channels_out"]) == (inside, outside)
    assert c["spec"]["u"]["shape"] == [outside, 64]
    assert c["objective"]["joint"] == ("process=acdm" in words)
    spec, loss = trained_once(cache)
    assert isinstance(spec["u"].path, path) and math.isfinite(loss) and loss > 0.01


def test_a_parameter_of_the_equation_becomes_a_condition():
    cache = prepared("condition.viscosity=true", "+data.options.vary={viscosity: [0.8, 1.2]}")
    about = cache.config["statistics"]["conditions"]["viscosity"]
    assert 0.9 < about["mean"] < 1.1 and 0.05 < about["std"] < 0.2
    assert cache.config["backbone"]["conditions"] == {"viscosity": 1}
    values = torch.cat([cache.train.cond["viscosity"], cache.valid.cond["viscosity"]])
    assert float(values.mean()) == pytest.approx(0.0, abs=1e-5) and float(values.std()) == pytest.approx(1.0, abs=1e-4)
    trained_once(cache)


@pytest.fixture(scope="module")
def trained(cache, tmp_path_factory):
    """The run folder of twenty steps of training, its levels chosen on eight trajectories."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(levels, "settle", partial(levels.settle, trajectories=8))
        outcome = api.train(["experiment=ks22", *TINY, f"out='{folder}'"])
    assert outcome.folder == folder
    return folder


def test_a_training_leaves_a_model_that_forecasts(trained):
    model = api.load(trained, device="cpu")
    domain = model.domain
    assert isinstance(domain, PdeDomain) and domain.interval == pytest.approx(0.8) and domain.stride == 4
    assert 3 in model.config["solver"]["levels"]
    card = (trained / "checkpoint" / "card.md").read_text()
    assert "## Levels, on" in card
    samples = model.domain.rollout(model, {"members": 2, "steps": 4, "trajectories": 3, "seed": 5})
    assert len(samples) == 3 and all(v.valid for v in samples.verdicts)
    first = developed(domain, torch.arange(8), 5)[:3]
    truth = future(domain, first[:, -1], 4)
    for i, ds in enumerate(samples):
        assert dict(ds.sizes) == {"member": 2, "time": 5, "x": 64}
        assert ds["time"].values.tolist() == pytest.approx([0.0, 0.8, 1.6, 2.4, 3.2])
        torch.testing.assert_close(torch.tensor(ds["u"].values[:, 0]), first[i].expand(2, -1, -1)[:, 0].float(),
                                   atol=1e-6, rtol=0)
        torch.testing.assert_close(torch.tensor(ds["u_true"].values[1:]), truth[i, :, 0].float(), atol=1e-5, rtol=0)
    again = model.domain.rollout(model, {"members": 2, "steps": 4, "trajectories": 3, "seed": 5})
    assert all((a["u"].values == b["u"].values).all() for a, b in zip(samples, again, strict=True))


@pytest.mark.parametrize("named, visited", [(None, [1, 3]), ([3, 0], [0, 3])])
def test_what_is_settled_after_a_training_is_a_solver_with_its_levels(trained, monkeypatch, named, visited):
    """Levels that pay, unless the config names others; and a gain for the noise of the ensemble."""
    model = api.load(trained, device="cpu")
    model.config["solver"]["levels"] = named
    chosen = levels.Selection((1, 3), {(3,): 2e-2, (1, 3): 1e-2}, {})
    monkeypatch.setattr(levels, "select_levels", lambda *_, **__: chosen)
    monkeypatch.setattr(levels, "GAINS", (1.0, 4.0))
    changes, note = levels.settle(model.domain, model, trajectories=4)
    solver = changes["solver"]
    assert list(changes) == ["solver"] and solver["levels"] == visited
    assert [stage.t for stage in build(solver).plan(model.spec).stages] == [(i + 1) / 4 for i in reversed(visited)]
    assert {k: v for k, v in solver.items() if k not in ("levels", "method")} == {
        k: v for k, v in model.config["solver"].items() if k not in ("levels", "method")}
    assert f"Visited in a rollout: {'-'.join(map(str, reversed(visited)))}." in note
    assert "3: 2.00e-02; 3-1: 1.00e-02" in note and "for a single forecast: 3-1." in note
    assert 1.0 <= solver["method"]["gain"] <= 4.0
    assert f"Gain of the noise: {solver['method']['gain']:.3g}" in note and "after 20 time units" in note
    assert sum(line.startswith(f"| {k} | ") for k in range(4) for line in note.splitlines()) == 4


def test_a_model_draws_single_steps_too(trained):
    model = api.load(trained, device="cpu")
    samples = model.sample(2, seed=1)
    assert [dict(ds.sizes) for ds in samples] == [{"time": 2, "x": 64}] * 2
    first = developed(model.domain, torch.arange(2), 1)[:, 0, 0].float()
    torch.testing.assert_close(torch.tensor(samples[1]["u"].values[0]), first[1], atol=1e-5, rtol=0)
