"""Training as the publication of GDSS describes it: equal to a plain loop with two networks and two optimisers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks import gdss_plain as plain
from scidiff import config
from scidiff.core.errors import UsageError
from scidiff.core.path import VE, VP
from scidiff.core.run import Run
from scidiff.core.sampler import Sampler
from scidiff.core.solvers.fixed import Fixed
from scidiff.core.solvers.predictor_corrector import PredictorCorrector
from scidiff.core.solvers.reverse import Reverse
from scidiff.core.space import Euclidean, Symmetric
from scidiff.core.spec import Component, Context, StateSpec
from scidiff.store.model import assemble
from scidiff.training.cache import Cache, TensorData, TrainingBatches, batches_a_pass
from scidiff.training.loop import check, train

F, SEED, STEPS = 3, 5, 7


def graphs(count, n=6):
    """Random graphs with one-hot degree classes."""
    g = torch.Generator().manual_seed(count)
    sizes = torch.randint(2, n + 1, (count,), generator=g)
    real = (torch.arange(n)[None] < sizes[:, None]).float()
    a = (torch.rand(count, n, n, generator=g) < 0.5).float().triu(1)
    a = plain.masked(a + a.transpose(1, 2), real)
    x = torch.nn.functional.one_hot(a.sum(-1).long().clamp(max=F - 1), F).float() * real.unsqueeze(-1)
    return TensorData({"nodes": x, "edges": a}, sizes, {}, {"nodes": ("N", F), "edges": ("N", "N")})


def cache(**changes):
    options = {"t_min": 1e-5, "source_std": 1.0, "weight": "noise"}
    spec = StateSpec({"nodes": Component(Euclidean(), VP(0.1, 1.0, **options), ("N", F)),
                      "edges": Component(Symmetric(), VE(0.2, 1.0, **options), ("N", "N"))})
    settings = {**config.read_option("trainer", "cpu"), **config.read_option("trainer", "gdss")}
    settings.pop("defaults")
    settings = {**settings, "max_steps": STEPS, "batch": 8, "log_every": 1, "check_every": STEPS, **changes}
    return Cache({
        "experiment": "toy", "domain": {"name": "none", "options": {}}, "spec": spec.to_config(), "seed": SEED,
        "backbone": {"_target_": "scidiff.nn.gdss.GDSS", "features": F, "width": 8, "edge_depth": 2, "c_hidden": 3},
        "denoiser": {"kinds": {"nodes": "noise", "edges": "score"}}, "solver": {}, "statistics": {},
        "data": {"name": "toy"}, "objective": config.read_option("objective", "gdss"), "trainer": settings,
        "logger": {"name": "csv"}}, graphs(20), graphs(4))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoint" / "model.safetensors")


def by_hand(made, clip):
    """Two networks, two Adams, two clips; loss and schedule as published. Noise and batches as in our run."""
    torch.manual_seed(SEED)
    spec, denoiser = assemble(made.config)
    net = denoiser.backbone
    parts = {"nodes": net.node_score, "edges": net.edge_score}
    adams = [torch.optim.Adam(p.parameters(), lr=1e-2, weight_decay=1e-4) for p in parts.values()]
    schedules = [torch.optim.lr_scheduler.ExponentialLR(adam, 0.999) for adam in adams]
    a_pass = batches_a_pass(20, 8, as_they_fall=True)
    for k, (state, ctx) in enumerate(TrainingBatches(made.train, 8, SEED, 0, STEPS, as_they_fall=True)):
        if k and k % a_pass == 0:
            for schedule in schedules:
                schedule.step()
        run = Run(SEED)
        run.step = k
        t = (1e-5 + (1 - 1e-5) * run.noise("", "time", (1,), ctx, "uniform")[:, 0])
        noisy, noise, std = {}, {}, {}
        for name, c in spec.items():
            noise[name] = run.handle(ctx.at(name, c)).normal("corrupt")
            log_a = -0.25 * t**2 * 0.9 - 0.5 * t * 0.1
            a, s = (log_a.exp(), (1 - (2 * log_a).exp()).sqrt()) if name == "nodes" else (1 + 0 * t, 0.2 * 5.0**t)
            std[name] = s.view(-1, 1, 1).float()
            noisy[name] = a.view(-1, 1, 1).float() * state[name] + std[name] * noise[name]
        real = ctx.mask(("N",))
        for name, part, adam in zip(parts, parts.values(), adams, strict=True):
            raw = part(noisy["nodes"], noisy["edges"], real)
            score = raw if name == "edges" else -raw / std[name]
            adam.zero_grad()
            (0.5 * (score * std[name] + noise[name]).square().sum((1, 2))).mean().backward()
            torch.nn.utils.clip_grad_norm_(part.parameters(), clip)
            adam.step()
    return {k: v.detach() for k, v in net.state_dict().items()}


@pytest.mark.parametrize("clip", [1.0, 0.05])
def test_training_is_the_published_loop(tmp_path, clip):
    made = cache(clip=clip)
    train(made, tmp_path)
    ours, expected = weights(tmp_path), by_hand(made, clip)
    torch.manual_seed(SEED)
    first = assemble(made.config)[1].backbone.state_dict()
    moved = max(float((expected[k] - first[k]).abs().max()) for k in first)
    assert moved > 0.02
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=2e-5, msg=name)


def test_clipping_each_network_is_not_clipping_both(tmp_path):
    train(cache(clip=0.05), tmp_path / "each")
    train(cache(clip=0.05, clip_parts=False), tmp_path / "both")
    each, both = weights(tmp_path / "each"), weights(tmp_path / "both")
    assert any(not torch.equal(each[k], both[k]) for k in each)


def test_the_rate_falls_by_a_factor_a_pass(tmp_path):
    train(cache(decay_per_epoch=0.5), tmp_path)
    lines = (tmp_path / "log" / "metrics.csv").read_text().splitlines()
    head = lines[0].split(",")
    rows = [dict(zip(head, line.split(","), strict=True)) for line in lines[1:]]
    rates = {int(r["step"]): float(r["lr"]) for r in rows if r["lr"]}
    assert rates == {k: pytest.approx(1e-2 * 0.5 ** (k // 3)) for k in range(STEPS)}


def test_passes_as_they_fall_hold_every_sample_once():
    data = graphs(20)
    assert batches_a_pass(20, 8, True) == 3 and batches_a_pass(20, 8) == 2
    assert batches_a_pass(20, 128, True) == batches_a_pass(20, 128) == 1
    ids = [c.ids for _, c in TrainingBatches(data, 8, 1, 0, 6, as_they_fall=True)]
    assert [len(i) for i in ids] == [8, 8, 4] * 2
    for one_pass in (ids[:3], ids[3:]):
        assert sorted(torch.cat(one_pass).tolist()) == list(range(20))
    assert not torch.equal(ids[0], ids[3])
    later = [c.ids for _, c in TrainingBatches(data, 8, 1, 4, 6, as_they_fall=True)]
    assert all(torch.equal(a, b) for a, b in zip(ids[4:], later, strict=True))


def test_averaged_weights_where_they_are_asked_for(tmp_path):
    train(cache(), tmp_path / "last")
    train(cache(ema=0.999), tmp_path / "average")
    last, average = weights(tmp_path / "last"), weights(tmp_path / "average")
    assert any(not torch.equal(last[k], average[k]) for k in last)


def test_a_trained_model_samples_from_its_checkpoint(tmp_path):
    made = cache()
    folder = train(made, tmp_path)
    spec, denoiser = assemble(made.config, load_file(folder / "model.safetensors"))
    method = PredictorCorrector(Reverse(), snr=0.2, scale=0.7, batch_norms=True, before=True)
    ctx = Context(torch.arange(6), torch.tensor([6, 5, 4, 3, 2, 2]), 6)
    state = Sampler(spec, denoiser.eval(), Fixed(method, 20, t_end=1e-4)).run(ctx, 0).state
    assert all(torch.isfinite(x).all() for x in state.values())
    assert torch.equal(state["edges"], state["edges"].transpose(1, 2))
    assert math.isclose(float(state["edges"][5, 2:].abs().sum()), 0.0)


def test_an_unknown_optimizer_is_named():
    with pytest.raises(UsageError, match="no optimizer 'adem'"):
        check({**cache().config["trainer"], "optimizer": "adem"})
