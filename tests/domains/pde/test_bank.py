"""Trajectories from equation and seed: repeatable, disjoint, extendable, right to the solver's error, soundly kept."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from scidiff.core.errors import UsageError
from scidiff.domains.pde import bank as banks
from scidiff.domains.pde.bank import TrajectoryBank, from_options
from scidiff.domains.pde.data import resample
from scidiff.domains.pde.equations import Burgers, KuramotoSivashinsky, SpectralSolver
from scidiff.store import atomic, cards
from scidiff.store.fetch import provide

SHORT = {"equation": KuramotoSivashinsky(), "shape": (32,), "extent": (22.0,), "interval": 0.5, "num_frames": 4,
         "count": 5, "burn_in": 20.0, "solver_dt": 0.25}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch, tmp_path):
    """Blocks of 8 candidates of 32 points, and a cache of one's own."""
    monkeypatch.setitem(banks._POINTS, "cpu", 256)
    monkeypatch.setenv("SCIDIFF_HOME", str(tmp_path / "home"))


def short(**changes):
    return TrajectoryBank(**{**SHORT, **changes})


def test_frames_are_what_the_solver_says(tmp_path):
    bank = short(dtype=torch.float64)
    frames = bank.frames()
    assert frames.shape == (5, 4, 1, 32) and frames.dtype == torch.float32
    law = KuramotoSivashinsky()
    solver = SpectralSolver(law, (32,), (22.0,), 0.25, dtype=torch.float64)
    start = law.initial(torch.arange(5), bank.split_seed, (32,), (22.0,), torch.float64)
    burnt = solver.rollout(start, 80, 80)[:, -1]
    torch.testing.assert_close(frames[:, 0].double(), burnt, atol=1e-6, rtol=0)
    torch.testing.assert_close(frames[:, 1:].double(), solver.rollout(burnt, 6, 2), atol=1e-6, rtol=0)


def test_the_solvers_step_divides_the_interval_and_is_never_larger_than_asked():
    assert (short(interval=0.2, solver_dt=0.05).every, short(interval=0.2, solver_dt=0.15).every) == (4, 2)
    assert short(interval=0.3, solver_dt=0.1).every == 3 and short(interval=0.1, solver_dt=0.25).every == 1
    assert short(interval=0.2, burn_in=72.0).waiting == 360 and short(interval=0.5, burn_in=20.1).waiting == 41
    assert short(burn_in=None).waiting == 144 and short(burn_in=0.0).waiting == 0


def test_the_same_settings_give_the_same_bits(tmp_path):
    one, two = (short(folder=tmp_path / name).frames() for name in ("a", "b"))
    assert torch.equal(one, two)
    assert not torch.equal(one, short(seed=1).frames())


def test_asking_for_more_changes_nothing_of_the_earlier_ones(tmp_path):
    few, many = (short(count=n, folder=tmp_path / str(n)) for n in (3, 21))
    assert torch.equal(few.frames(), many.frames(0, 3)) and many.ids() == list(range(21))
    grown = short(count=21, folder=tmp_path / "3")  # finds three of them
    assert torch.equal(grown.frames(), many.frames())
    torch.testing.assert_close(many.frames(8, 9), many.frames()[8:17], rtol=0, atol=0)


def test_splits_share_no_state():
    parts = [short(split=split, burn_in=0.0, count=16).frames()[:, 0, 0] for split in banks.SPLITS]
    rows = torch.cat(parts)
    near = torch.cdist(rows, rows) + 100.0 * torch.eye(len(rows))
    assert float(near.min()) > 0.1
    seeds = {short(split=split, seed=seed).split_seed for split in banks.SPLITS for seed in range(50)}
    assert len(seeds) == 150
    with pytest.raises(UsageError, match="no split 'validation'"):
        short(split="validation")


def test_laminar_candidates_are_replaced_by_the_next_number(monkeypatch, tmp_path):
    import scidiff.domains.pde.equations as equations

    def every_third(solver, state):
        """Decided by the state, as the real test is: the candidates 0, 3, 6, ..."""
        law = solver.equation
        seed = short().split_seed
        burnt = SpectralSolver(law, (32,), (22.0,), 0.25, dtype=torch.float64).rollout(
            law.initial(torch.arange(0, 48, 3), seed, (32,), (22.0,), torch.float64), 80, 80)[:, -1]
        return (torch.cdist(state.flatten(1), burnt.flatten(1)) < 1e-6).any(1)

    all_of_them = short(count=24, folder=tmp_path / "all").frames()
    monkeypatch.setattr(equations, "laminar", every_third)
    bank = short(count=12, reject_laminar=True)
    wanted = [n for n in range(24) if n % 3][:12]
    assert bank.ids() == wanted and bank.rejected() == [n for n in range(wanted[-1]) if n % 3 == 0]
    assert torch.equal(bank.frames(), all_of_them[wanted])
    assert torch.equal(short(count=7, reject_laminar=True, folder=tmp_path / "other").frames(), bank.frames(0, 7))
    assert short(count=14, reject_laminar=True).ids() == [n for n in range(24) if n % 3][:14]
    assert bank.key != short(count=12).key


def test_settings_without_chaos_are_refused():
    """At L = 10 every state ends in a steady cell: no test of a forecast."""
    bank = short(extent=(10.0,), burn_in=60.0, count=64, reject_laminar=True)
    with pytest.raises(UsageError, match="64 of 64 trajectories are laminar"):
        bank.frames()


def test_few_trajectories_of_a_large_block(monkeypatch):
    """Candidates that are solved but not asked for say nothing against the settings."""
    monkeypatch.setitem(banks._POINTS, "cpu", 128 * 32)
    bank = short(count=2)
    assert bank.block == 128 and bank.frames().shape[0] == 2 and not bank.rejected()


def test_scalars_vary_by_seed_and_number_and_enter_the_equation(tmp_path):
    vary = {"viscosity": (0.5, 1.5), "extent": (20.0, 24.0), "interval": (0.4, 0.5)}
    bank = short(vary=vary, solver_dt=0.1, count=9)
    found = bank.scalars()
    for name, (low, high) in vary.items():
        assert low <= float(found[name].min()) < float(found[name].max()) <= high
        assert float(found[name].std()) > 0.1 * (high - low)
    i = 6
    law = KuramotoSivashinsky(viscosity=float(found["viscosity"][i]))
    dt = float(found["interval"][i]) / 5
    solver = SpectralSolver(law, (32,), (float(found["extent"][i]),), dt, dtype=torch.float64)
    start = law.initial(torch.tensor([i]), bank.split_seed, (32,), solver.extent, torch.float64)
    burnt = solver.rollout(start, 200, 200)[:, -1]
    torch.testing.assert_close(bank.frames(i, 1)[:, 0].double(), burnt, atol=2e-6, rtol=0)
    torch.testing.assert_close(bank.frames(i, 1)[:, 1:].double(), solver.rollout(burnt, 15, 5), atol=2e-6, rtol=0)
    assert torch.equal(short(vary=vary, solver_dt=0.1, count=3, folder=tmp_path / "x").scalars()["extent"],
                       found["extent"][:3])
    with pytest.raises(UsageError, match=r"'viscocity' cannot vary. Did you mean 'viscosity'"):
        short(vary={"viscocity": (0, 1)})
    with pytest.raises(UsageError, match="lower bound comes first"):
        short(vary={"viscosity": (2.0, 1.0)})


def test_a_finer_solver_is_truncated_and_a_coarser_one_interpolated(monkeypatch):
    monkeypatch.setattr(banks, "_PIECE", 1000)  # several pieces of time
    law = {"equation": Burgers(0.1), "extent": (2 * math.pi,), "interval": 0.1, "num_frames": 9, "count": 2,
           "burn_in": 0.0, "solver_dt": 0.02}
    fine, coarse, up = (TrajectoryBank(**law, shape=s, solve_shape=g).frames()
                        for s, g in (((64,), None), ((32,), (64,)), ((128,), (64,))))
    torch.testing.assert_close(coarse, resample(fine, (32,)), atol=1e-6, rtol=0)
    torch.testing.assert_close(up, resample(fine, (128,)), atol=1e-6, rtol=0)
    torch.testing.assert_close(up[..., ::2], fine, atol=1e-6, rtol=0)


# -- cache


def files(folder):
    return sorted(f.name for f in folder.iterdir())


def solves(monkeypatch):
    """Counts the blocks that are solved."""
    calls = []
    real = TrajectoryBank.solve
    monkeypatch.setattr(TrajectoryBank, "solve", lambda self, n: (calls.append(n.tolist()), real(self, n))[1])
    return calls


def test_the_cache_is_used_and_lies_in_the_users_folder(tmp_path, monkeypatch):
    heard = []
    first = short(count=12).frames(progress=lambda *what: heard.append(what))
    assert heard == [("Solving the equation", 8, 12), ("Solving the equation", 12, 12)]
    calls = solves(monkeypatch)
    bank = short(count=12)
    again = bank.frames()
    assert torch.equal(first, again) and not calls
    assert short(count=5).ids() == [0, 1, 2, 3, 4] and not calls
    folder = tmp_path / "home" / "trajectories"
    assert files(folder) == [f"ks-train-{bank.key}-000012.json", f"ks-train-{bank.key}-000012.npy"]
    stored = np.load(folder / f"ks-train-{bank.key}-000012.npy", mmap_mode="r")
    np.testing.assert_array_equal(stored, first.numpy())
    record = json.loads((folder / f"ks-train-{bank.key}-000012.json").read_text())
    assert record["settings"] == json.loads(json.dumps(bank.settings())) and record["ids"] == list(range(12))
    short(count=13).frames()
    assert calls == [list(range(8, 16))] and [f for f in files(folder) if "000012" in f] == []


def test_what_a_person_does_to_frames_stays_out_of_the_file():
    frames = short().frames()
    kept = frames.clone()
    frames.zero_()
    assert torch.equal(short().frames(), kept)


@pytest.mark.parametrize("harm", ["cut", "flip", "lost", "text", "other"])
def test_damaged_files_are_made_anew(tmp_path, monkeypatch, harm):
    bank = short()
    whole = bank.frames().clone()
    npy = bank.path()
    about = npy.with_suffix(".json")
    content = npy.read_bytes()
    if harm == "cut":
        npy.write_bytes(content[:-40])
    elif harm == "flip":
        npy.write_bytes(content[:300] + bytes([content[300] ^ 1]) + content[301:])
    elif harm == "lost":
        npy.unlink()
    elif harm == "text":
        about.write_text("{")
    else:
        about.write_text(about.read_text().replace('"interval": 0.5', '"interval": 0.25'))
    calls = solves(monkeypatch)
    assert torch.equal(short().frames(), whole) and len(calls) == 1
    assert npy.read_bytes() == content


def test_an_interrupted_run_continues_where_it_stopped(monkeypatch, tmp_path):
    def stop(title, done, total):
        if done == 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        short(count=30).frames(progress=stop)
    calls = solves(monkeypatch)
    frames = short(count=30).frames()
    assert calls == [list(range(16, 24)), list(range(24, 32))]
    assert torch.equal(frames, short(count=30, folder=tmp_path / "straight").frames())


def test_a_crash_between_the_two_files_leaves_nothing_that_is_believed(monkeypatch):
    real = atomic.write_json
    monkeypatch.setattr(atomic, "write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        short().frames()
    monkeypatch.setattr(atomic, "write_json", real)
    calls = solves(monkeypatch)
    short().frames()
    assert len(calls) == 1 and short().path().with_suffix(".json").is_file()


def test_two_processes_may_make_the_same_bank(tmp_path):
    """The later one replaces the files of the first while these are open."""
    one, two = short(), short()
    before = one.frames()
    kept = before.clone()
    frames, ids = two.solve(torch.arange(8))[0][:5].numpy(), list(range(5))
    two._write([frames], ids)
    assert torch.equal(before, kept) and torch.equal(short().frames(), kept)


@pytest.mark.parametrize(("changes", "words"), [
    ({"count": 0}, "count=0"), ({"num_frames": 0}, "frames=0"), ({"interval": 0.0}, "interval=0 must be positive"),
    ({"solver_dt": -1.0}, "solver_dt=-1"), ({"extent": (math.nan,)}, "extent=nan"), ({"burn_in": -1.0}, "burn_in=-1"),
    ({"shape": (32, 32)}, "lives in 1 dimensions; the grid has 2 and the box 1"),
])
def test_impossible_settings_are_refused(changes, words):
    with pytest.raises(UsageError, match=words):
        short(**changes)


def test_ranges_outside_the_bank_are_refused():
    with pytest.raises(UsageError, match="trajectories 0 to 4, not 3 to 6"):
        short().frames(3, 4)


# -- options and cards


OPTIONS = {"equation": "ks", "shape": [32], "extent": 22.0, "interval": 0.5, "burn_in": 20, "solver_dt": 0.25,
           "train": {"count": 6, "frames": 4}, "test": {"count": 3, "frames": 9, "solver_dt": 0.05}}


def test_options_of_a_card_make_a_bank():
    train, test = (from_options(OPTIONS, split) for split in ("train", "test"))
    assert (train.count, train.num_frames, train.every, train.extent, train.seed) == (6, 4, 2, (22.0,), 0)
    assert (test.count, test.num_frames, test.every) == (3, 9, 2)  # a value beside the splits wins
    assert from_options({**OPTIONS, "solver_dt": None}, "test").every == 10
    assert from_options(OPTIONS, "train", limit=2).count == 2 and from_options({**OPTIONS, "count": 9}).count == 9
    assert from_options({**OPTIONS, "equation": {"name": "ks", "viscosity": 0.5}}).equation.viscosity == 0.5  # type: ignore
    flow = from_options({"equation": "kolmogorov", "shape": [16, 16], "interval": 0.1, "frames": 2, "count": 1})
    assert flow.extent == (2 * math.pi,) * 2


@pytest.mark.parametrize(("changes", "words"), [
    ({"equation": "kdv2"}, "no equation 'kdv2'"), ({"frmes": 3}, "no option 'frmes'. Did you mean 'frames'"),
    ({"interval": None}, "need interval"), ({"dtype": "float16"}, "not in 'float16'"),
    ({"equation": {"name": "ks", "viskosity": 1}}, "no parameter 'viskosity'"), ({"train": None}, "need frames"),
])
def test_wrong_options_are_one_sentence(changes, words):
    given = {k: v for k, v in {**OPTIONS, **changes}.items() if v is not None or k == "train"}
    with pytest.raises(UsageError, match=words):
        from_options(given, "train")


def test_records_are_datasets_that_know_their_equation():
    pytest.importorskip("xarray")
    from scidiff.domains.pde.data import dataset, describe, stacked

    vary = {"viscosity": [0.9, 1.1], "extent": [20.0, 24.0], "interval": [0.4, 0.5]}
    records = dataset({}, "equation", {**OPTIONS, "vary": vary, "reject_laminar": False}, "train")
    assert records.names == [f"train-{i:05d}" for i in range(6)] and not records.rejected
    bank = from_options({**OPTIONS, "vary": vary})
    assert torch.equal(stacked(records.objects, ("u",)), bank.frames())
    for i, one in enumerate(records.objects):
        nu, extent, dt = (float(bank.scalars()[name][i]) for name in ("viscosity", "extent", "interval"))
        assert one.attrs["viscosity"] == nu and one.attrs["dt"] == pytest.approx(dt) and one.attrs["extent"] == [extent]
        assert one.attrs["dx"] == extent / 32 and json.loads(one.attrs["equation"]) == {"name": "ks", "viscosity": nu}
        about = describe(one)
        assert about.extent == (22.0,) and about.interval == 0.5  # those of the set
    assert len(dataset({}, "equation", OPTIONS, "test", limit=2)) == 2


@pytest.mark.parametrize("name", [name for name in cards.names() if cards.find(name).domain == "pde"])
def test_cards_make_banks_with_every_split(name):
    """What a card promises is what the bank will solve; its splits have different seeds."""
    found = provide(cards.find(name))
    assert found.origin == "generated" and found.reader == "equation" and not found.files
    parts = [from_options(found.options, split) for split in banks.SPLITS]
    said = cards.find(name).splits
    for bank in parts:
        assert said[bank.split] == f"{bank.count} trajectories of {bank.num_frames} frames"
    assert len({bank.key for bank in parts}) == 3


@pytest.mark.parametrize("name", [name for name in cards.names() if cards.find(name).domain == "pde"
                                  and cards.find(name).layouts[0].options["equation"]["name"] in ("ks", "burgers")])
def test_cards_of_one_dimension_solve(name):
    """Four frames of two trajectories without the burn-in, finite and on the card's grid."""
    options = {**provide(cards.find(name)).options, "count": 2, "frames": 4, "burn_in": 0.0, "reject_laminar": False}
    bank = from_options(options, "test")
    frames = bank.frames()
    assert frames.shape == (2, 4, 1, *bank.shape) and bool(torch.isfinite(frames).all()) and float(frames.std()) > 0.1


@pytest.mark.slow
def test_ks64_is_on_the_attractor():
    """rms 1.317, <u_x^2> = <u_xx^2> in the mean, and increments over 0.8 of 0.262 (integrating-factor RK4: 0.2625).

    The difference of neighbouring frames is their distance in time times u_t, which the equation gives from one frame.
    """
    frames = from_options(provide(cards.find("ks64")).options, "train", limit=256).frames().double()[:, :, 0]
    assert float(frames.square().mean().sqrt()) == pytest.approx(1.317, abs=0.02)
    k = 2j * math.pi * torch.fft.rfftfreq(128, 64.0 / 128, dtype=torch.float64)
    ux, uxx, uxxxx = (torch.fft.irfft(torch.fft.rfft(frames) * k**p, n=128) for p in (1, 2, 4))
    assert float(ux.square().mean() / uxx.square().mean()) == pytest.approx(1.0, abs=0.01)
    assert float((frames[:, 4:] - frames[:, :-4]).square().mean().sqrt()) == pytest.approx(0.262, abs=0.006)
    change = (frames[:, 2:] - frames[:, :-2]) / 0.4
    rate = (-frames * ux - uxx - uxxxx)[:, 1:-1]
    assert float((change - rate).square().mean().sqrt()) < 0.05 * float(rate.square().mean().sqrt())
