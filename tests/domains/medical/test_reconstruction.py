"""Reconstructions end to end: files, what a result depends on, and how an interrupted one goes on."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch

nibabel = pytest.importorskip("nibabel", reason="nibabel is not installed")

from scidiff import api  # noqa: E402
from scidiff.core.errors import UsageError  # noqa: E402
from scidiff.domains.medical import phantom  # noqa: E402
from scidiff.domains.medical.classical import FBP, AdmmTV  # noqa: E402
from scidiff.domains.medical.intensity import CT  # noqa: E402
from scidiff.domains.medical.operators.ct import ParallelCT  # noqa: E402
from tests.domains.medical.white_prior import save_model  # noqa: E402

SIZE, EDGES = (4, 32, 32), (8.0, 12.0, 12.0)
SMALL = ["input=chest_phantom", f"reading.size={list(SIZE)}".replace(" ", ""),
         f"reading.spacing={list(EDGES)}".replace(" ", "")]
QUICK = ["sampling.rivals=false", "sampling.report=false", "sampling.metrics=false"]
CHEST = [*SMALL, "operator=ct_sparse", "operator.views=20"]


@pytest.fixture(scope="module")
def white(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("white") / "model")


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A prior whose slices depend on their neighbours in the plane: an untrained network."""
    return save_model(tmp_path_factory.mktemp("odd") / "model", scatter=0.05, name="odd")


def reconstruct(out, *words, progress=None):
    return api.reconstruct([f"out='{out}'", *words], progress=progress)


def chest():
    return phantom.chest(0).volume(SIZE, EDGES, finer=2)


def truth_and_sinogram():
    operator = ParallelCT(SIZE[1:], views=20, spacing_mm=EDGES[1:])
    x = CT.encode(chest().data)
    return x, operator, operator(x)


def read(file):
    """A file of the phantom's grid as [Z, 1, Y, X]."""
    return torch.from_numpy(np.asarray(nibabel.load(file).dataobj, dtype=np.float32).transpose(2, 1, 0).copy())[:, None]


def test_a_chest_from_twenty_views_by_filtered_back_projection(tmp_path):
    made = reconstruct(tmp_path / "run", *CHEST, "posterior=fbp")
    x, operator, y = truth_and_sinogram()
    torch.testing.assert_close(read(tmp_path / "run" / "reconstruction.nii.gz"), CT.decode(FBP()(y, operator)))
    torch.testing.assert_close(torch.from_numpy(np.load(tmp_path / "run" / "measurement.npy")), y)
    tv = AdmmTV(2.1e-4, iterations=100, tolerance=1e-4, spacing=EDGES)(y, operator)
    torch.testing.assert_close(read(tmp_path / "run" / "tv.nii.gz"), CT.decode(tv), rtol=1e-4, atol=0.05)
    assert np.allclose(nibabel.load(tmp_path / "run" / "reconstruction.nii.gz").affine, chest().affine)
    figures = {m["name"]: m for m in json.loads((tmp_path / "run" / "metrics.json").read_text())["metrics"]}
    assert figures["PSNR axial, TV"]["value"] > figures["PSNR axial"]["value"] + 3
    error = read(tmp_path / "run" / "reconstruction.nii.gz") - CT.decode(x)
    expected = -10 * torch.log10((error / 2000).square().flatten(1).mean(1)).mean()
    assert figures["PSNR axial"]["value"] == pytest.approx(float(expected), abs=1e-3)
    soft = (CT.decode(x) >= -160) & (CT.decode(x) < 240)
    assert figures["mean error, soft tissue"]["value"] == pytest.approx(float(error[soft].abs().mean()), rel=1e-3)
    there, truly = (v.diff(dim=0).abs().sum() for v in (read(tmp_path / "run" / "reconstruction.nii.gz"), CT.decode(x)))
    assert figures["variation between slices"]["value"] == pytest.approx(float(there / truly), rel=1e-3)
    assert len(made.samples) == 1 and made.samples[0].modality == "CT"


def test_every_part_of_a_run_is_there(tmp_path, white):
    made = reconstruct(tmp_path / "run", *CHEST, f"from='{white}'", "sampling.num=3", "posterior.steps=5",
                       "noise.gaussian=0.02")
    folder = tmp_path / "run"
    names = {f.name for f in folder.iterdir()}
    assert names >= {"reconstruction.nii.gz", "std.nii.gz", "low.nii.gz", "high.nii.gz", "error.nii.gz", "fbp.nii.gz",
                     "tv.nii.gz", "invented.nii.gz", "truth.nii.gz", "samples", "measurement.npy", "metrics.json",
                     "samples.csv", "card.md", "card.json", "report.html", "finished", "README.txt"}
    assert "parts" not in names
    each = torch.stack([read(folder / "samples" / f"s{i:04d}.nii.gz") for i in range(3)])
    torch.testing.assert_close(read(folder / "reconstruction.nii.gz"), each.mean(0), rtol=1e-4, atol=0.05)
    torch.testing.assert_close(read(folder / "std.nii.gz"), each.std(0), rtol=1e-3, atol=0.05)
    torch.testing.assert_close(read(folder / "low.nii.gz"), each.amin(0), rtol=1e-4, atol=0.05)
    with open(folder / "samples.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [r["id"] for r in rows] == ["s0000", "s0001", "s0002"] and all(r["valid"] for r in rows)
    report = (folder / "report.html").read_text()
    assert "Not for clinical use" in report and "Axial slice" in report and "Axis order" in report
    card = json.loads((folder / "card.json").read_text())
    assert card["warning"].startswith("Not for clinical use")
    assert card["sections"]["reproducibility"]["checksum"]["value"]
    assert "std.nii.gz" in (folder / "README.txt").read_text()
    assert len(made.samples) == 3 and made.samples[1].data.shape == (4, 1, 32, 32)
    torch.testing.assert_close(made.samples[1].data, each[1], rtol=1e-4, atol=0.05)


def test_the_invented_part_is_what_the_measurement_does_not_see(tmp_path, white):
    found = reconstruct(tmp_path / "run", *SMALL, "operator=inpainting", f"from='{white}'", "sampling.num=1",
                        "posterior.steps=4", "volume.kind=none", *QUICK).samples.domain.found
    known = found.scene.operator.adjoint(torch.ones(1, *found.scene.operator.out_shape)) > 0
    assert bool((found.invented[known.expand_as(found.invented)] == 0).all())
    hidden = ~known.expand_as(found.mean)
    torch.testing.assert_close(found.invented[hidden], found.mean[hidden])
    assert found.share == pytest.approx(float(found.mean[hidden].square().sum() / found.mean.square().sum()), rel=1e-4)


def test_the_chunk_of_the_network_changes_nothing(tmp_path, odd):
    words = [*CHEST, f"from='{odd}'", "sampling.num=1", "posterior.steps=4", *QUICK]
    one, all_ = (reconstruct(tmp_path / str(n), *words, f"sampling.chunk={n}").samples[0].data for n in (1, 4))
    assert float((one - all_).abs().max()) < 1e-5 * 2000
    assert float(one.std()) > 1


class Stop:
    """Progress that interrupts the second of two samples after its first step."""

    def __call__(self, label, done, total=None):
        if label == "Sampling" and done > total // 2 + 1:
            raise KeyboardInterrupt


@pytest.mark.parametrize("posterior, words", [
    ("dds", ["posterior.steps=4"]), ("mbir", ["posterior.levels=4"]), ("red_diff", ["posterior.steps=4"]),
])
def test_an_interrupted_run_goes_on_from_its_last_step_with_the_same_bits(tmp_path, odd, posterior, words):
    words = [*CHEST, f"from='{odd}'", f"posterior={posterior}", *words, "sampling.num=2", "sampling.checkpoint=0.0",
             *QUICK]
    whole = reconstruct(tmp_path / "whole", *words)
    calls: list = []
    with pytest.raises(KeyboardInterrupt):
        reconstruct(tmp_path / "broken", *words, progress=Stop())
    assert (tmp_path / "broken" / "parts" / "sample_00000.safetensors").is_file()
    assert (tmp_path / "broken" / "parts" / "step.safetensors").is_file()
    settings = [w for w in words if not w.startswith("out=")]
    later = api.reconstruct([*settings, f"out='{tmp_path / 'broken'}'", f"resume='{tmp_path / 'broken'}'"],
                            progress=lambda label, done, total=None: calls.append((label, done, total)))
    (first, *_), total = zip(*[(d, t) for label, d, t in calls if label == "Sampling"], strict=True)
    assert first > total[0] // 2 + 1, "the steps that were stored are not done again"
    for a, b in zip(whole.samples, later.samples, strict=True):
        assert torch.equal(a.data, b.data)


def test_a_run_is_continued_with_its_own_settings_alone(tmp_path, odd):
    words = [*CHEST, f"from='{odd}'", "posterior.steps=4", "sampling.num=2", "sampling.checkpoint=0.0",
             "sampling.rivals=false"]
    with pytest.raises(KeyboardInterrupt):
        reconstruct(tmp_path / "broken", *words, progress=Stop())
    with pytest.raises(UsageError, match=r"was begun with seed=0, not 5"):
        api.reconstruct([*words, "seed=5", f"out='{tmp_path / 'broken'}'", f"resume='{tmp_path / 'broken'}'"])


def test_a_smaller_scan_stands_in_the_middle_of_the_prior(tmp_path, white):
    """Pixels of a white prior are independent: those that are measured exactly come back, whatever lies around."""
    words = ["input=chest_phantom", "reading.size=[3,24,28]", "reading.spacing=[8,16,14]", "operator=inpainting",
             "operator.share=1.0", f"from='{white}'", "sampling.num=1", "posterior.steps=6", "volume.kind=none",
             *QUICK]
    found = reconstruct(tmp_path / "run", *words).samples.domain.found
    torch.testing.assert_close(found.mean, found.scene.truth, rtol=0, atol=1e-4)


def test_samples_differ_and_depend_on_seed_and_number_alone(tmp_path, white):
    words = [*CHEST, f"from='{white}'", "posterior.steps=4", *QUICK]
    three = reconstruct(tmp_path / "a", *words, "sampling.num=3").samples
    one = reconstruct(tmp_path / "b", *words, "sampling.num=1").samples
    other = reconstruct(tmp_path / "c", *words, "sampling.num=1", "seed=1").samples
    assert torch.equal(three[0].data, one[0].data)
    assert not torch.equal(three[0].data, three[1].data) and not torch.equal(one[0].data, other[0].data)


def test_perpendicular_slices_of_white_noise_look_alike(tmp_path, white):
    """Both priors are the same white noise, so taking turns changes nothing."""
    words = [*CHEST, f"from='{white}'", "posterior.steps=4", "sampling.num=1", *QUICK]
    turns, alone = (reconstruct(tmp_path / kind, *words, f"volume.kind={kind}").samples[0].data
                    for kind in ("perpendicular", "none"))
    torch.testing.assert_close(turns, alone, rtol=1e-4, atol=0.1)


def test_patches_of_white_noise_look_like_whole_slices(tmp_path, white):
    words = [*CHEST, f"from='{white}'", "posterior.steps=4", "sampling.num=1", *QUICK]
    parts, whole = (reconstruct(tmp_path / str(n), *words, f"volume.patch={n}").samples[0].data for n in (16, "null"))
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=0.1)


def test_an_exact_sinogram_is_that_of_the_phantom_itself(tmp_path):
    reconstruct(tmp_path / "run", *CHEST, "posterior=fbp", "simulation=exact", *QUICK)
    _, operator, y = truth_and_sinogram()
    exact = phantom.chest(0).sinogram(operator, [-12.0, -4.0, 4.0, 12.0])
    found = torch.from_numpy(np.load(tmp_path / "run" / "measurement.npy"))
    torch.testing.assert_close(found, exact)
    assert 0.001 < float((exact - y).norm() / y.norm()) < 0.1, "no inverse crime, and no other phantom"


def test_noise_has_the_strength_that_was_asked_for(tmp_path):
    found = reconstruct(tmp_path / "run", *CHEST, "posterior=fbp", "noise.photons=1e5", "noise.ring=0.02",
                        *QUICK).samples.domain.found.scene
    _, _, y = truth_and_sinogram()
    assert float((found.y - y).square().mean().sqrt()) == pytest.approx(found.sigma, rel=0.2)
    assert "Poisson counts of 100000 photons" in found.about["noise"]
