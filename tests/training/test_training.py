"""Training from a tensor cache: exact resume, averaged weights, learning-rate law, and what it needs."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from scidiff.core.errors import ScidiffError, UsageError
from scidiff.core.path.categorical import MarginalPath
from scidiff.core.space import Categorical
from scidiff.core.spec import Component, StateSpec
from scidiff.training.cache import Cache, TensorData, TrainingBatches
from scidiff.training.loop import train

SETTINGS = {
    "accelerator": "cpu", "devices": 1, "max_steps": 12, "max_minutes": None, "batch": 8, "lr": 1e-3,
    "betas": [0.9, 0.99], "weight_decay": 1e-4, "warmup": 4, "floor": 0.1, "clip": 1.0, "ema": 0.9, "workers": 0,
    "log_every": 1, "check_every": 6, "preview": {"num": 0}, "autocast": None, "strategy": "auto", "compile": False,
}


def graphs(count: int, n: int = 5) -> TensorData:
    generator = torch.Generator().manual_seed(count)
    bonds = torch.randint(0, 3, (count, n, n), generator=generator).triu(1)
    sizes = torch.randint(2, n + 1, (count,), generator=generator)
    real = torch.arange(n)[None] < sizes[:, None]
    bonds = (bonds + bonds.transpose(1, 2)) * (real[:, :, None] & real[:, None, :])
    atoms = torch.randint(0, 3, (count, n), generator=generator) * real
    return TensorData({"atoms": atoms, "bonds": bonds}, sizes, {}, {"atoms": ("N",), "bonds": ("N", "N")})


def cache(**changes: object) -> Cache:
    path = MarginalPath(marginal=(0.5, 0.3, 0.2))
    spec = StateSpec({"atoms": Component(Categorical(3), path, ("N",)),
                      "bonds": Component(Categorical(3, pairs=True), path, ("N", "N"))})
    config = {
        "experiment": "toy", "domain": {"name": "none", "options": {}}, "spec": spec.to_config(), "seed": 3,
        "backbone": {"_target_": "scidiff.nn.pairformer.PairFormer", "node_classes": 3, "pair_classes": 3,
                     "orders": [0.0, 1.0, 2.0], "max_size": 5, "dx": 16, "de": 8, "dc": 16, "depth": 1, "heads": 2,
                     "walks": 2},
        "denoiser": {"self_conditioning": True}, "solver": {}, "statistics": {}, "data": {"name": "toy"},
        "objective": {"_target_": "scidiff.core.objective.StandardObjective", "weights": {"bonds": 5.0}},
        "trainer": {**SETTINGS, **changes}, "logger": {"name": "csv"},
    }
    return Cache(config, graphs(40), graphs(9))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoint" / "model.safetensors")


def test_cache_round_trip(tmp_path: Path) -> None:
    made = cache()
    made.write(tmp_path / "cache")
    again = Cache.open(tmp_path / "cache")
    assert again.config == made.config
    index = torch.tensor([3, 11, 7])
    (left, first), (right, second) = made.train.batch(index), again.train.batch(index)
    assert all(torch.equal(left[k], right[k]) for k in left)
    assert torch.equal(first.sizes, second.sizes)
    assert first.n_max == int(made.train.sizes[index].max())


def test_a_folder_that_is_no_cache(tmp_path: Path) -> None:
    with pytest.raises(ScidiffError, match="not a tensor cache"):
        Cache.open(tmp_path)


def test_batches_cover_a_pass_and_do_not_depend_on_where_they_start() -> None:
    data = graphs(40)
    whole = [c.ids for _, c in TrainingBatches(data, 8, 1, 0, 10)]
    later = [c.ids for _, c in TrainingBatches(data, 8, 1, 7, 10)]
    assert all(torch.equal(a, b) for a, b in zip(whole[7:], later, strict=True))
    assert sorted(torch.cat(whole[:5]).tolist()) == list(range(40))
    assert sorted(torch.cat(whole[5:]).tolist()) == list(range(40))
    assert not torch.equal(torch.cat(whole[:5]), torch.cat(whole[5:]))


def test_resume_repeats_the_uninterrupted_run(tmp_path: Path) -> None:
    def stop(step: int, total: int, figures: dict[str, float]) -> None:
        if step == 8:
            raise KeyboardInterrupt

    train(cache(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(cache(), tmp_path / "parts", progress=stop)
    early = weights(tmp_path / "parts")
    train(cache(), tmp_path / "parts", resume=True)
    full, resumed = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(full[k], resumed[k]) for k in full)
    assert any(not torch.equal(full[k], early[k]) for k in full)


def test_export_holds_the_average_of_the_weights(tmp_path: Path) -> None:
    train(cache(ema=0.0, max_steps=6), tmp_path / "last")
    train(cache(ema=1.0, max_steps=6), tmp_path / "first")
    torch.manual_seed(3)
    from scidiff.store.model import assemble

    _, fresh = assemble(cache().config)
    start = fresh.backbone.state_dict()
    first, last = weights(tmp_path / "first"), weights(tmp_path / "last")
    # Averaging begins with the weights after the first step, and lags behind the last ones.
    gap = sum(float((first[k] - start[k]).pow(2).sum()) for k in start)
    move = sum(float((last[k] - start[k]).pow(2).sum()) for k in start)
    assert 0 < gap < 0.9 * move


def test_the_average_forgets_how_a_short_run_began() -> None:
    from scidiff.training.loop import averaging

    update, by_hand, decay = averaging(0.9), 1.0, 0.9
    mean = [torch.ones(3, dtype=torch.float64)]
    for n in range(1, 120):
        now = math.sin(n)
        update(mean, [torch.full((3,), now, dtype=torch.float64)], torch.tensor(n))
        d = min(decay, (1 + n) / (10 + n))
        by_hand = d * by_hand + (1 - d) * now
        assert float(mean[0][0]) == pytest.approx(by_hand, abs=1e-12)
    start = [torch.ones(1, dtype=torch.float64)]
    for n in range(1, 30):
        averaging(0.999)(start, [torch.zeros(1, dtype=torch.float64)], torch.tensor(n))
    assert float(start[0]) < 1e-5 < 0.999**29


def test_a_check_exports_the_average_too(tmp_path: Path) -> None:
    """Lightning swaps the averaged weights in for a check; what is written there must not be the last step's."""
    def stop(step: int, total: int, figures: dict[str, float]) -> None:
        if step == 8:
            raise KeyboardInterrupt

    for ema in (0.0, 1.0):
        with pytest.raises(KeyboardInterrupt):
            train(cache(ema=ema), tmp_path / str(ema), progress=stop)
    last, first = weights(tmp_path / "0.0"), weights(tmp_path / "1.0")
    assert any(not torch.equal(first[k], last[k]) for k in first)
    assert "loss" in (tmp_path / "1.0" / "checkpoint" / "card.md").read_text()


def test_several_devices_share_the_batches() -> None:
    data = graphs(40)
    both = [[c.ids for _, c in TrainingBatches(data, 8, 1, 0, 5, rank=r, ranks=2)] for r in (0, 1)]
    alone = [c.ids for _, c in TrainingBatches(data, 8, 1, 0, 10)]
    dealt = [ids for pair in zip(*both, strict=True) for ids in pair]
    assert all(torch.equal(a, b) for a, b in zip(dealt, alone, strict=True))


def test_learning_rate_law(tmp_path: Path) -> None:
    train(cache(), tmp_path)
    lines = (tmp_path / "log" / "metrics.csv").read_text().splitlines()
    head = lines[0].split(",")
    rows = [dict(zip(head, line.split(","), strict=True)) for line in lines[1:]]
    rates = {int(r["step"]): float(r["lr"]) for r in rows if r["lr"]}
    for step, rate in rates.items():
        warm = min((step + 1) / 4, 1)
        assert rate == pytest.approx(1e-3 * warm * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * step / 12))), rel=1e-5)
    assert len(rates) == 12


def test_impossible_settings(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="above 0"):
        train(cache(max_steps=0), tmp_path)
    with pytest.raises(UsageError, match="resume"):
        train(cache(), tmp_path, resume=True)
    with pytest.raises(UsageError, match="CUDA"):
        if torch.cuda.is_available():
            pytest.skip("a CUDA device is visible")
        train(cache(accelerator="gpu"), tmp_path)


@pytest.mark.slow
def test_a_bare_machine_trains_without_hydra_typer_and_rdkit(tmp_path: Path) -> None:
    cache().write(tmp_path / "cache")
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('hydra', 'omegaconf', 'typer', 'rdkit', 'pooch'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from scidiff.training.__main__ import main\n"
        f"sys.exit(main([{str(tmp_path / 'cache')!r}, '--out', {str(tmp_path / 'run')!r}, 'trainer.max_steps=6']))\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "checkpoint" / "model.safetensors").is_file()


def test_a_set_is_encoded_alike_in_blocks_and_held_in_bytes(monkeypatch):
    from scidiff.domains import domain_class
    from scidiff.training import prepare as module

    domain = domain_class("molecule")()
    objects = domain.examples()
    domain, _ = domain.fit(objects)
    whole, ctx = domain.encode(objects)
    monkeypatch.setattr(module, "BLOCK", 5)
    state, found = module._encoded(domain, objects)
    assert all(torch.equal(state[k].long(), whole[k]) and state[k].dtype == torch.uint8 for k in whole)
    assert torch.equal(found.sizes, ctx.sizes) and torch.equal(found.ids, ctx.ids) and found.n_max == ctx.n_max


def test_a_set_with_a_validation_part_is_validated_on_it():
    from scidiff import config
    from scidiff.training.prepare import prepare

    words = ["experiment=community_family_flow", "data.options.train=30", "data.options.valid=7"]
    made = prepare(config.compose("train", words))
    assert (len(made.train), len(made.valid)) == (30, 7)
    assert not any(torch.equal(a, b) for a in made.train.state["edges"] for b in made.valid.state["edges"])
    shared = prepare(config.compose("train", [*words, "data.hold_out=0.1"]))
    assert (len(shared.train), len(shared.valid)) == (27, 3)
