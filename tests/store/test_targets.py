"""Targets: what a config may build, and what it may not."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch

from scidiff.core.errors import MissingLibrary, ScidiffError, UsageError
from scidiff.core.space import Euclidean, Torus
from scidiff.store import targets


def test_nested_nodes_become_objects() -> None:
    net = targets.build(
        {"_target_": "torch.nn.Linear", "in_features": 3, "out_features": 2, "bias": False},
    )
    assert isinstance(net, torch.nn.Linear) and net.bias is None
    built = targets.build({"a": [{"_target_": "scidiff.core.space.Torus", "period": 2.0}], "b": {"c": 1}})
    assert isinstance(built["a"][0], Torus) and built["b"] == {"c": 1}
    assert isinstance(targets.build({"_target_": "scidiff.core.space.Euclidean"}), Euclidean)


def test_partial_and_injected() -> None:
    made = targets.build({"_target_": "torch.optim.AdamW", "lr": 0.1, "_partial_": True})
    assert isinstance(made, functools.partial)
    weight = torch.nn.Parameter(torch.zeros(1))
    assert made([weight]).param_groups[0]["lr"] == 0.1
    direct = targets.build({"_target_": "torch.optim.SGD", "lr": 0.2}, params=[weight])
    assert direct.param_groups[0]["lr"] == 0.2


@pytest.mark.parametrize(
    "dotted",
    [
        "os.system",
        "builtins.eval",
        "subprocess.Popen",
        "torch.load",
        "torch.hub.load",
        "scidiff.store.atomic.os.system",
        "scidiff.store.atomic.write_text",
        "scidiff.store.checkpoint.save",
        "scidiff.domains.molecule.reference.main",
        "scidiff.domains.graph.files.write_samples",
        "scidiff.core.errors.difflib.get_close_matches",
        "scidiff.core.space.torch.load",
        "scidiff.core.space.Tensor",
        "scidiff.core._private",
        "scidiff.core.space.Torus.retract",
        "scidiff.core.space",
        "scidiff.core.space.__builtins__",
        "torch.nn.modules.module.torch.load",
        "torch.nn.Module.__class__",
        "torch.nn.modules.module.register_module_forward_hook",
        "monai.bundle.run",
        "monai.networks.nets.unet.warnings.warn",
        "scidiff",
        "lambda",
        "scidiff.<lambda>",
        "../scidiff.core",
        "",
        7,
        ["scidiff.core.space.Torus"],
    ],
)
def test_everything_else_is_refused(dotted: object) -> None:
    with pytest.raises(ScidiffError) as caught:
        targets.build({"_target_": dotted})
    assert "\n" not in str(caught.value)


def test_unknown_names_get_the_nearest_ones() -> None:
    with pytest.raises(ScidiffError, match="'Torus'"):
        targets.locate("scidiff.core.space.Tours")
    with pytest.raises(ScidiffError, match=r"scidiff\.core\.space"):
        targets.locate("scidiff.core.spaec.Torus")
    with pytest.raises(UsageError, match="'period'"):
        targets.build({"_target_": "scidiff.core.space.Torus", "perid": 1.0})
    with pytest.raises(UsageError, match="out_features"):
        targets.build({"_target_": "torch.nn.Linear", "in_features": 1})
    with pytest.raises(UsageError, match="_recursive_"):
        targets.build({"_target_": "scidiff.core.space.Euclidean", "_recursive_": False})


def test_an_absent_library_is_named() -> None:
    with pytest.raises(MissingLibrary, match="pip install absent_library"):
        targets.locate("absent_library.nets.UNet", extra_prefixes=("absent_library",))


def test_plugin_packages_join_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "toy_plugin_for_targets"
    package.mkdir()
    (package / "__init__.py").write_text("import os\ndef make(size):\n    return size * 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(targets, "plugin_packages", lambda: ("toy_plugin_for_targets",))
    assert targets.build({"_target_": "toy_plugin_for_targets.make", "size": 4}) == 8
    with pytest.raises(ScidiffError):
        targets.locate("toy_plugin_for_targets.os.system")
    monkeypatch.undo()
    with pytest.raises(ScidiffError, match="not allowed"):
        targets.locate("toy_plugin_for_targets.make")


def test_check_walks_everything_and_survives_a_knot() -> None:
    with pytest.raises(ScidiffError, match=r"os\.system"):
        targets.check(
            {"a": [{"b": {"_target_": "scidiff.core.space.Euclidean", "x": {"_target_": "os.system"}}}]}
        )
    knot: dict = {}
    knot["again"] = knot
    for act in (targets.check, targets.build):
        with pytest.raises(ScidiffError, match="nested"):
            act(knot)
