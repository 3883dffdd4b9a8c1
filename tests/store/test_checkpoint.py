"""Checkpoints: what is saved comes back; what is broken is one sentence."""

from __future__ import annotations

import builtins
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from scidiff.core.errors import MissingLibrary, ScidiffError, UsageError
from scidiff.store import checkpoint

CONFIG = {
    "experiment": "qm9_flow",
    "alias": "qm9",
    "domain": {"name": "molecule"},
    "backbone": {"_target_": "torch.nn.Linear", "in_features": 3, "out_features": 2},
    "sizes": (1, 2),
}


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(4, 6, generator=generator)
    return {
        "w": table,
        "tied": table,
        "view": table[:, ::2].T,
        "step": torch.tensor(7),
        "mask": torch.tensor([True, False]),
    }


@pytest.fixture
def folder(tmp_path: Path, weights: dict[str, torch.Tensor]) -> Path:
    return checkpoint.save(
        tmp_path / "qm9_flow", weights, CONFIG, "# qm9\n\nSmall molecules.", evaluation={"valid": 0.99}
    )


def test_round_trip_is_exact(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    for place in (folder, str(folder), folder / "model.safetensors", folder / "config.yaml"):
        loaded = checkpoint.load(place)
        assert loaded.weights.keys() == weights.keys()
        for name, value in weights.items():
            assert loaded.weights[name].dtype == value.dtype and torch.equal(loaded.weights[name], value)
    assert loaded.config["sizes"] == [1, 2] and loaded.config["format"] == 1
    assert (loaded.experiment, loaded.domain) == ("qm9_flow", "molecule")
    assert loaded.card.startswith("# qm9") and loaded.evaluation == {"valid": 0.99}
    assert [p.name for p in folder.parent.iterdir()] == ["qm9_flow"]


@pytest.mark.parametrize(("storage", "error"), [("float16", 2.0**-11), ("bfloat16", 2.0**-8)])
def test_half_storage_loads_as_float32(
    tmp_path: Path, weights: dict[str, torch.Tensor], storage: str, error: float
) -> None:
    small = checkpoint.save(tmp_path / "half", weights, CONFIG, "", storage=storage)
    loaded = checkpoint.load(small).weights
    assert loaded["w"].dtype == torch.float32 and loaded["step"].dtype == torch.int64
    assert torch.all((loaded["w"] - weights["w"]).abs() <= error * weights["w"].abs() + 1e-7)


def test_float16_overflow_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(ScidiffError, match="overflows"):
        checkpoint.save(tmp_path / "x", {"w": torch.tensor([1e6])}, CONFIG, "", storage="float16")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match="bfloat16"):
        checkpoint.save(tmp_path / "x", {}, CONFIG, "", storage="bfloat")


def edit(folder: Path, **changes: Any) -> None:
    file = folder / "config.yaml"
    config = {**yaml.safe_load(file.read_text()), **changes}
    file.write_text(yaml.safe_dump({key: value for key, value in config.items() if value is not None}))


def break_bit(folder: Path) -> None:
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))


def truncate(folder: Path, keep: float) -> None:
    file = folder / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * keep)])


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return builtins.exec, ("raise SystemExit('a pickle ran')",)


DEFECTS = {
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors"),
    "no config": (lambda f: (f / "config.yaml").unlink(), "has no config.yaml"),
    "bit flip": (break_bit, "do not match the hash"),
    "half": (lambda f: truncate(f, 0.9), "truncated"),
    "a few bytes": (lambda f: truncate(f, 0.01), "truncated"),
    "empty": (lambda f: truncate(f, 0.0), "truncated"),
    "pickle": (lambda f: (f / "model.safetensors").write_bytes(pickle.dumps(Bomb())), "pickle"),
    "torch.save": (lambda f: torch.save({"w": torch.ones(2)}, f / "model.safetensors"), "pickle"),
    "text": (lambda f: (f / "model.safetensors").write_text("hello, I am not a model"), "not a safetensors"),
    "list": (lambda f: (f / "config.yaml").write_text("- 1\n"), "mapping"),
    "binary yaml": (lambda f: (f / "config.yaml").write_bytes(b"\xff\xfe\x00"), "config.yaml"),
    "future": (lambda f: edit(f, format=2), "format 2"),
    "no format": (lambda f: edit(f, format=None), "format None"),
    "no hash": (lambda f: edit(f, weights_sha256=None), "no weights_sha256"),
    "evil": (lambda f: edit(f, denoiser={"_target_": "os.system", "command": "true"}), "os.system"),
    "unknown": (lambda f: edit(f, denoiser={"_target_": "scidiff.core.space.Tours"}), "Torus"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_every_defect_is_one_sentence(folder: Path, defect: str) -> None:
    damage, words = DEFECTS[defect]
    damage(folder)
    with pytest.raises(ScidiffError, match=words) as caught:
        checkpoint.load(folder)
    assert "\n" not in str(caught.value)


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(ScidiffError, match="does not exist"):
        checkpoint.load(tmp_path / "nowhere")
    torch.save({"w": torch.ones(2)}, tmp_path / "model.pt")
    for act in (checkpoint.load, checkpoint.find):
        with pytest.raises(ScidiffError, match="pickle"):
            act(tmp_path / "model.pt")


def test_find_by_name_alias_run_and_path(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "PRETRAINED", folder.parent)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for name in ("qm9_flow", "qm9-flow", "qm9", folder, folder / "config.yaml", "../qm9_flow"):
        assert checkpoint.find(name).resolve() == folder.resolve()
    run = tmp_path / "runs" / "train"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("seed: 1\n")
    with pytest.raises(UsageError, match="holds neither"):
        checkpoint.find(run)
    folder.rename(run / "checkpoint")
    assert checkpoint.find(str(run)) == run / "checkpoint"
    assert checkpoint.load(checkpoint.find(run)).experiment == "qm9_flow"


def test_unknown_names_are_answered_with_near_ones(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "PRETRAINED", folder.parent)
    with pytest.raises(UsageError, match="'qm9_flow'"):
        checkpoint.find("qm9_flwo")
    with pytest.raises(UsageError, match="does not exist"):
        checkpoint.find("./runs/none")
    with pytest.raises(UsageError, match="does not exist"):
        checkpoint.find("runs/generate/none")


def test_the_hub_extra_is_named_where_it_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(MissingLibrary, match=r"scidiff\[hub\]"):
        checkpoint.find("someone/some-model")


def test_shipped_models_are_listed_without_their_weights(folder: Path) -> None:
    (model,) = checkpoint.shipped(folder.parent)
    assert (model.experiment, model.alias, model.domain) == ("qm9_flow", "qm9", "molecule")
    assert model.summary == "Small molecules." and model.folder == folder and model.megabytes >= 0


def test_an_experiment_without_weights_says_how_to_train_them():
    for name in ("grid_flow", "grid-flow"):
        with pytest.raises(UsageError, match=r"weights of 'grid_flow' are not part .* 'scidiff train grid_flow'"):
            checkpoint.find(name)
    with pytest.raises(UsageError, match=r"no model named 'grid_flo'\. Did you mean 'grid_flow'"):
        checkpoint.find("grid_flo")
