"""`scidiff rollout` from command to report: the run folder, continuation, evaluation, and what is refused."""

from __future__ import annotations

import json
import runpy
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

pytest.importorskip("xarray", reason="the pde domain needs xarray")

import xarray

from scidiff import api
from scidiff.cli.app import run
from scidiff.core.errors import ScidiffError, UsageError
from scidiff.store import checkpoint

FILES = {"README.txt", "command.txt", "config.yaml", "environment.json", "references.bib", "rollout.nc", "metrics.json",
         "report.html", "finished"}
QUIET = ["sampling.metrics=false", "sampling.report=false"]
WORDS = ["--members", "3", "--steps", "60", "--trajectories", "4", "--seed", "7"]


@pytest.fixture(scope="module")
def save_model(root):
    return runpy.run_path(str(root / "tests" / "domains" / "pde" / "small_model.py"))["save_model"]


@pytest.fixture(scope="module")
def small(save_model, tmp_path_factory):
    """The folder of a small model."""
    return save_model(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory):
    """A complete run: 4 trajectories of 3 members, 60 steps."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert run(["rollout", "ks", "--from", str(small), *WORDS, "--out", str(folder)]) == 0
    return folder


def fields(folder):
    with xarray.open_dataset(Path(folder) / "rollout.nc", engine="h5netcdf") as ds:
        return ds.load()


def figures(folder):
    return {m["name"]: m for m in json.loads((Path(folder) / "metrics.json").read_text())["metrics"]}


def settings(small, folder, *words):
    return ["domain=pde", f"from='{small}'", "equation=ks", "sampling.num=3", "sampling.length=60",
            "sampling.trajectories=4", "seed=7", f"out='{folder}'", *QUIET, *words]


class Stop(Exception):
    pass


def stop_at(step):
    def progress(label, done, total):
        if label == "Rolling out" and done > step:
            raise Stop
    return progress


def test_a_run_folder_is_complete_and_repeats_itself(whole, small):
    assert {file.name for file in whole.iterdir()} == FILES
    stored = yaml.safe_load((whole / "config.yaml").read_text())
    assert stored["from"] == str(small) and stored["equation"] == "ks" and stored["model"]["experiment"] == "small"
    assert stored["solver"]["_target_"] and stored["sampling"]["length"] == 60
    told = json.loads((whole / "finished").read_text())
    assert told["steps"] == 2 and told["members"] == 3 and told["time unit"] == "time units"
    assert told["ms per step"] > 0 and "samples per second" not in told
    report = (whole / "report.html").read_text()
    for text in ("4 rollouts of small", "correlation time 0.8", "ms a time step", "a time step", "Calibration of 3"):
        assert text in report
    assert report.count("data:image/") == 5 and len(report) < 2_000_000


def test_the_file_opens_with_names_and_units(whole):
    ds = fields(whole)
    assert ds["u"].dims == ("trajectory", "member", "time", "x") and ds["u"].shape == (4, 3, 61, 32)
    assert ds["u_true"].dims == ("trajectory", "time", "x") and ds["u"].dtype == np.float32
    assert ds["time"].values.tolist() == pytest.approx([0.8 * n for n in range(61)])
    assert {n: ds[n].attrs["units"] for n in ("u", "time", "x")} == {"u": "1", "time": "1", "x": "1"}
    assert ds["x"].attrs["long_name"] == "x position" and ds.attrs["model"] == "small"
    assert json.loads(ds.attrs["equation"]) == {"name": "ks", "viscosity": 1.0}
    assert [v.item() for v in ds["valid"]] == [1, 1, 1, 1]
    np.testing.assert_array_equal(ds["u"].values[:, :, 0], np.repeat(ds["u_true"].values[:, None, 0], 3, 1))


def test_the_summary_tells_how_far_and_at_what_cost(small, elsewhere, capsys):
    assert run(["rollout", str(small), "--members", "2", "--steps", "12", "--trajectories", "3", "--out", "run",
                "sampling.report=false"]) == 0
    out = capsys.readouterr().out
    assert "3 trajectories of 2 members, 12 steps of 0.8 time units" in out
    assert "correlation time 0.8" in out and "[" in out
    assert "2 a step" in out and "ms for each of its rows (computed as 32 rows" in out and "none" in out
    assert "Next:    scidiff evaluate run" in out


def test_an_evaluation_gives_the_same_figures(whole, tmp_path, monkeypatch, capsys):
    shutil.copytree(whole, tmp_path / "copy")
    (tmp_path / "copy" / "metrics.json").unlink()
    monkeypatch.chdir(tmp_path)
    assert run(["evaluate", "copy"]) == 0
    assert figures("copy") == figures(whole)
    about = json.loads(Path("copy/metrics.json").read_text())["about"]
    assert about["steps"] == 2 and about["time steps"] == 60
    shutil.copy(whole / "rollout.nc", tmp_path / "alone.nc")
    assert run(["evaluate", "alone.nc", "--out", "out", "sampling.report=false"]) == 0
    alone, before = figures("out"), figures(whole)
    assert set(alone) == set(before)
    for name in set(before) - {"stable"}:
        assert alone[name]["value"] == before[name]["value"], name
    assert Path("copy/report.html").read_text().count("data:image/") == 5


def test_the_same_command_gives_the_same_bits_and_another_batch_nearly(whole, small, elsewhere):
    ds = fields(whole)
    api.rollout(settings(small, "again"))
    np.testing.assert_array_equal(fields("again")["u"].values, ds["u"].values)
    api.rollout(settings(small, "more", "sampling.num=5", "sampling.length=20"))
    np.testing.assert_array_equal(fields("more")["u"].values[:, :3], ds["u"].values[:, :, :21])
    api.rollout(settings(small, "other", "sampling.chunk=5", "sampling.length=5"))
    np.testing.assert_allclose(fields("other")["u"].values, ds["u"].values[:, :, :6], atol=1e-4)


@pytest.mark.parametrize("step", [10, 55])
def test_an_interrupted_run_is_finished_by_resume(step, small, whole, elsewhere):
    with pytest.raises(Stop):
        api.rollout(settings(small, "run"), progress=stop_at(step))
    parts = sorted(file.stem for file in Path("run/parts").iterdir())
    assert parts == ["first", *[f"steps_{n:06d}" for n in range(0, step - 24, 25)]]
    assert not (Path("run") / "rollout.nc").exists() and "not finished yet" in Path("run/README.txt").read_text()
    assert run(["rollout", "--resume", "run"]) == 0
    ds, before = fields("run"), fields(whole)
    for name in ("u", "u_true"):
        np.testing.assert_array_equal(ds[name].values, before[name].values)
    assert {f.name for f in Path("run").iterdir()} == FILES - {"metrics.json", "report.html"}
    assert run(["rollout", "--resume", "run"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("number, code", [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_a_killed_process_loses_a_part_at_most(number, code, spawn, tmp_path, small, capsys, monkeypatch):
    words = ["rollout", "ks", "--from", str(small), "--members", "16", "--steps", "400", *QUIET]
    process = spawn(*words, "--out", tmp_path / "run")
    end = time.monotonic() + 120
    while not (tmp_path / "run" / "parts" / "steps_000025.safetensors").exists() and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(number)
    err = process.communicate()[1]
    assert process.returncode == code and "Traceback" not in err
    if number == signal.SIGINT:
        assert err.splitlines()[-1].endswith(f"Continue with: scidiff rollout --resume {tmp_path / 'run'}")
    monkeypatch.chdir(tmp_path)
    assert run(["rollout", "--resume", "run"]) == 0
    assert run([*words, "--out", "whole"]) == 0
    np.testing.assert_array_equal(fields("run")["u"].values, fields("whole")["u"].values)


def test_a_run_is_not_continued_with_anything_else(small, save_model, elsewhere):
    copy = shutil.copytree(small, elsewhere / "copy")
    with pytest.raises(Stop):
        api.rollout(settings(copy, "run"), progress=stop_at(30))
    for word, sentence in (("sampling.num=4", r"begun with sampling.num=3, not 4"), ("seed=8", "begun with seed=7"),
                           ("solver.levels=[1]", "begun with solver=")):
        with pytest.raises(UsageError, match=sentence):
            api.rollout(settings(copy, "run", "resume=run", word))
    save_model(copy, scatter=0.06)
    with pytest.raises(ScidiffError, match="model 'small' has changed since the run run began"):
        api.rollout(settings(copy, "run", "resume=run"))
    assert run(["generate", "--resume", "run"]) == 2


def test_a_blow_up_is_told_and_the_steps_before_are_kept(save_model, elsewhere, capsys):
    save_model(elsewhere / "wild", stds=(1.0,), scatter=0.0, shift=-1.0)
    words = ["--members", "2", "--steps", "60", "--trajectories", "1", "--out", "run"]
    assert run(["rollout", "--from", "wild", *words]) == 0
    out = capsys.readouterr().out
    assert "1 of 1 trajectory: all 2 members blew up, the first at step" in out
    ds = fields("run")
    assert np.isfinite(ds["u"].values[:, :, :20]).all() and np.isnan(ds["u"].values[:, :, -1]).all()
    stable = figures("run")["stable"]
    assert stable["value"] == 0.0 and "the first failure is at step" in stable["note"]
    report = Path("run/report.html").read_text()
    assert "blew up, the first at step" in report and "grey: blown up" in report
    assert run(["evaluate", "run", "sampling.report=false"]) == 0
    assert figures("run")["stable"]["value"] == 0.0


@pytest.fixture
def shop(save_model, tmp_path, monkeypatch):
    """A package that ships two models of Kuramoto-Sivashinsky and a damaged one."""
    place = tmp_path / "pretrained"
    for name in ("other_ks", "ks_refiner"):
        save_model(place / name, name=name)
    save_model(place / "broken", name="broken")
    (place / "broken" / "model.safetensors").write_bytes(b"")
    monkeypatch.setattr(checkpoint, "PRETRAINED", place)
    return place


@pytest.mark.parametrize("words, model", [
    ([], "ks_refiner"), (["ks"], "ks_refiner"), (["ks", "--from", "other-ks"], "other_ks"),
])
def test_an_equation_or_a_name_finds_its_model(words, model, shop, elsewhere):
    few = ["--members", "1", "--steps", "2", "--trajectories", "1", *QUIET]
    assert run(["rollout", *words, *few, "--out", "run"]) == 0
    stored = yaml.safe_load(Path("run/config.yaml").read_text())
    assert stored["model"]["experiment"] == model
    assert run(["evaluate", "run", "sampling.report=false"]) == 0


@pytest.mark.parametrize("words, sentence", [
    ("kss", "There is no equation or model named 'kss'. Did you mean 'ks'"),
    ("burgers", "No shipped model knows the equation 'burgers'. Train one"),
    ("burgers --from {m}", "The model 'small' was trained on 'ks', not on 'burgers'."),
    ("nothing --from {m}", "There is no equation named 'nothing'."),
    ("ks --from nowhere", "There is no model named 'nowhere'."),
    ("./nowhere", "The checkpoint or run ./nowhere does not exist."),
    ("ks kdv", "'rollout' takes one equation or model, not ks, kdv."),
    ("--from qm9", "The model 'qm9' makes objects of the domain 'molecule', not 'pde'."),
    ("--from {m} --members 0", "--members must be above 0, not 0."),
    ("--from {m} --steps -1", "--steps must be above 0, not -1."),
    ("--from {m} --trajectories 0", "--trajectories must be above 0, not 0."),
    ("--from {m} sampling.length=0", "The number of time steps must be a whole number above 0, not 0."),
    ("--from {m} sampling.length=two", "The number of time steps must be a whole number above 0, not 'two'."),
    ("--from {m} sampling.num=2.5", "sampling.num must be a whole number above 0, not 2.5."),
    ("--from {m} --steps 10000000", "GB of memory; at most 8 GB are allowed."),
    ("--from {m} --init nowhere.nc", "nowhere.nc does not exist."),
    ("--from {m} --init text.nc", "text.nc is neither NetCDF nor HDF5."),
    ("--from {m} domain.options.at=3", "'at' says how a file of first states is read, and no file is named."),
    ("--from {m} --init text.nc domain.options.tame=3", "A rollout has no option 'tame'. Did you mean 'time'"),
    ("--from {m} --condition viscosity=2", "The model 'small' knows no condition 'viscosity'."),
    ("--from {m} domain=molecule", "The domain 'molecule' does not offer 'rollout'."),
    ("--from {m} data=ks22", "'rollout' takes the data set from the model"),
    ("--resume {m}", "is not a run folder."),
])
def test_wrong_usage_is_one_sentence_and_leaves_nothing(words, sentence, small, elsewhere, capsys):
    Path("text.nc").write_text("not a file of fields")
    arguments = [word.format(m=small) for word in words.split()]
    assert run(["rollout", *arguments, *([] if "--resume" in words else ["--out", "out"])]) == 2
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1 and sentence in lines[0] and "Traceback" not in err
    assert [file.name for file in elsewhere.iterdir()] == ["text.nc"]


def test_a_rollout_from_python_returns_datasets(small, elsewhere):
    made = api.rollout(settings(small, "run", "sampling.length=3", "sampling.truth=false"))
    assert made.folder == Path("run") and len(made.samples) == 4
    assert made.samples[0].sizes == {"member": 3, "time": 4, "x": 32} and "u_true" not in made.samples[0]
    assert made.summary["network calls"] == "2 a step"
