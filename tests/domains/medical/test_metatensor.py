"""MONAI's tensors and dictionary transforms; skipped where MONAI is not installed."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from scidiff.core.errors import MissingLibrary, UsageError
from scidiff.domains.medical import metatensor, phantom
from scidiff.domains.medical.intensity import CT
from scidiff.domains.medical.operators.ct import ParallelCT

SPARSE = {"_target_": "scidiff.domains.medical.operators.ct.ParallelCT", "size": "plane", "spacing_mm": "scan",
          "views": 6}


@pytest.fixture
def monai():
    return pytest.importorskip("monai", reason="MONAI is not installed")


def chest():
    return phantom.chest(0).volume((3, 16, 20), (8.0, 20.0, 20.0))


def test_without_monai_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "monai", None)
    monkeypatch.setitem(sys.modules, "monai.data", None)
    with pytest.raises(MissingLibrary, match="monai"):
        metatensor.to_metatensor(chest())


def test_an_image_without_a_place_is_refused():
    with pytest.raises(UsageError, match="has no affine"):
        metatensor.from_metatensor(torch.zeros(1, 2, 2, 2))


def placed(data, affine):
    """A channel-first image with an affine, MONAI or not."""
    image = data.clone()
    image.affine = torch.as_tensor(affine)
    return image


def test_a_volume_comes_back_from_any_order_of_axes():
    volume = chest()
    array = volume.data[:, 0].permute(2, 1, 0)  # [x, y, z]
    back = metatensor.from_metatensor(placed(array[None], volume.affine), "CT")
    assert torch.equal(back.data, volume.data) and np.allclose(back.affine, volume.affine)
    turned = array.flip(0).permute(1, 0, 2)  # [y, -x, z]
    affine = volume.affine[:, [1, 0, 2, 3]].copy()
    affine[:, 1] *= -1
    affine[:3, 3] = (volume.affine @ [array.shape[0] - 1, 0, 0, 1])[:3]
    again = metatensor.from_metatensor(placed(turned[None], affine), "CT")
    assert torch.equal(again.data, volume.data) and np.allclose(again.affine, volume.affine)
    with pytest.raises(UsageError, match=r"a volume is \[1, i, j, k\]"):
        metatensor.from_metatensor(placed(array[None].expand(2, -1, -1, -1), volume.affine))


def test_metatensors_hold_volumes(monai):
    volume = chest()
    image = metatensor.to_metatensor(volume)
    assert isinstance(image, monai.data.MetaTensor) and tuple(image.shape) == (1, 20, 16, 3)
    back = metatensor.from_metatensor(image, "CT")
    assert torch.equal(back.data, volume.data) and np.allclose(back.affine, volume.affine)


def test_a_measurement_is_a_step_of_compose(monai):
    volume = chest()
    steps = monai.transforms.Compose([metatensor.simulated("image", SPARSE, {"gaussian": 0.01}, seed=3)])
    out = steps({"image": metatensor.to_metatensor(volume), "label": 1})
    operator = ParallelCT((16, 20), views=6, spacing_mm=(20.0, 20.0))
    clean = operator(CT.encode(volume.data))
    sigma = 0.01 * float(clean.square().mean().sqrt())
    assert out["image_sigma"] == pytest.approx(sigma, rel=1e-5) and out["label"] == 1
    gap = out["image_measured"] - clean
    assert float(gap.std()) == pytest.approx(sigma, rel=0.1)
    assert out["image_operator"].out_shape == operator.out_shape
    again = metatensor.simulated("image", SPARSE, {"gaussian": 0.01}, seed=3)({"image": out["image"]})
    assert torch.equal(again["image_measured"], out["image_measured"])
    ready = metatensor.simulated("image", operator)({"image": out["image"]})
    torch.testing.assert_close(ready["image_measured"], clean)
