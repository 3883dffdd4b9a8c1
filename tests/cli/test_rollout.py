"""`scidiff rollout`: flags to settings, and the settings of a run that is continued."""

from __future__ import annotations

import sys
import types

import pytest

from scidiff.cli.app import run
from scidiff.core.errors import UsageError
from scidiff.store import checkpoint
from scidiff.store.run import RunFolder


@pytest.fixture
def calls(monkeypatch):
    """Replaces scidiff.api; collects the settings of every rollout."""
    import scidiff

    seen = []
    stand_in = types.ModuleType("scidiff.api")

    def rollout(settings, progress=None):
        if settings["seed"] == 666:
            progress.started(settings["out"])
            raise KeyboardInterrupt
        seen.append(settings)
        return types.SimpleNamespace(folder=settings.get("out") or "runs/x", summary={})

    stand_in.rollout = rollout
    monkeypatch.setitem(sys.modules, "scidiff.api", stand_in)
    monkeypatch.setattr(scidiff, "api", stand_in, raising=False)
    return seen


@pytest.fixture
def known(monkeypatch, tmp_path):
    """The only model is `mine`."""
    def find(name):
        if name != "mine":
            raise UsageError(f"There is no model named {name!r}.")
        return tmp_path

    monkeypatch.setattr(checkpoint, "find", find)


def test_every_flag_sets_what_its_help_names(calls, known, elsewhere):
    words = "rollout ks --from mine --members 5 --steps 30 --trajectories 2 --init a.nc --condition viscosity=0.7"
    assert run([*words.split(), "--seed", "3", "--out", "here", "--device", "cpu", "--batch", "8",
                "domain.options.resample=true", "sampling.truth=false", "solver.levels=[1]"]) == 0
    (s,) = calls
    assert (s["equation"], s["from"], s["init"], s["seed"], s["out"]) == ("ks", "mine", "a.nc", 3, "here")
    assert s["sampling"] == {**s["sampling"], "num": 5, "length": 30, "trajectories": 2, "chunk": 8, "truth": False,
                             "steps": None}
    assert s["condition"] == {"viscosity": 0.7} and s["device"]["device"] == "cpu"
    assert s["domain"]["name"] == "pde" and s["domain"]["options"] == {"resample": True}
    assert s["solver"] == {"levels": [1]}, "only what was asked for is laid over the model's own"


@pytest.mark.parametrize("words, equation, source", [
    ([], None, None), (["ks"], "ks", None), (["mine"], None, "mine"), (["runs/a"], None, "runs/a"),
    (["ks", "--from", "mine"], "ks", "mine"), (["--from", "mine"], None, "mine"), (["unknown"], "unknown", None),
])
def test_a_word_is_a_model_or_an_equation(calls, known, elsewhere, words, equation, source):
    assert run(["rollout", *words]) == 0
    assert (calls[0]["equation"], calls[0]["from"]) == (equation, source)


def test_the_defaults(calls, known, elsewhere):
    assert run(["rollout", "ks"]) == 0
    s = calls[0]
    assert s["domain"]["name"] == "pde" and s["domain"]["model"] == "ks_refiner"
    inside = s["sampling"]
    assert (inside["num"], inside["length"], inside["trajectories"], inside["truth"]) == (16, 200, None, True)
    assert s["solver"] == {} and s["init"] is None


def test_a_sweep_over_seeds(calls, elsewhere):
    assert run(["rollout", "ks", "-m", "seed=1,2", "sampling.num=2,4"]) == 0
    assert sorted((s["seed"], s["sampling"]["num"]) for s in calls) == [(1, 2), (1, 4), (2, 2), (2, 4)]


def test_an_interrupted_run_says_how_to_continue(calls, elsewhere, capsys):
    assert run(["rollout", "ks", "--seed", "666", "--out", "here"]) == 130
    assert "scidiff rollout --resume here" in capsys.readouterr().err


@pytest.fixture
def earlier(calls, known, elsewhere):
    run(["rollout", "ks", "--members", "7", "--seed", "5"])
    return RunFolder.create("rollout", "m", 5, calls.pop(), out=elsewhere / "earlier").path


def test_a_resumed_run_keeps_its_settings(calls, earlier):
    assert run(["rollout", "--resume", str(earlier), "--device", "cpu"]) == 0
    s = calls[0]
    assert (s["sampling"]["num"], s["seed"], s["resume"], s["out"]) == (7, 5, str(earlier), str(earlier))
    assert s["equation"] == "ks" and s["device"]["device"] == "cpu"


@pytest.mark.parametrize("more, sentence", [
    (["--members", "8"], "leave out 'sampling.num=8'"),
    (["--from", "x"], "leave out '--from'"),
    (["--out", "x"], "leave out '--out'"),
    (["ks"], "leave out 'ks'"),
    (["--init", "a.nc"], "leave out \"init='a.nc'\""),
    (["solver.levels=[1]"], "leave out 'solver.levels=[1]'"),
])
def test_a_resumed_run_refuses_other_settings(calls, earlier, more, sentence, capsys):
    assert run(["rollout", "--resume", str(earlier), *more]) == 2
    assert sentence in capsys.readouterr().err and not calls


def test_runs_of_other_verbs_are_no_rollouts(calls, earlier, capsys):
    for verb in ("generate", "train"):
        assert run([verb, "--resume", str(earlier)]) == 2
        assert f"is not a run of 'scidiff {verb}'" in capsys.readouterr().err
    assert not calls


def test_dry_run_prints_the_settings(calls, known, elsewhere, capsys):
    assert run(["rollout", "ks", "--dry-run"]) == 0
    assert "equation: ks" in capsys.readouterr().out and not calls and not list(elsewhere.iterdir())
