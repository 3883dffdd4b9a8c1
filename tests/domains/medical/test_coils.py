"""Coil maps: the symmetry of a birdcage, and ESPIRiT against maps that are known and on a real scan."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scidiff.core.errors import UsageError
from scidiff.domains.medical.operators.coils import birdcage, centre, espirit
from scidiff.domains.medical.operators.masks import Mask, acquired, calibration_size
from scidiff.domains.medical.operators.mri import MRI, fft2c, measured


def head(height=56, width=48):
    """(complex image [Y, X] with smooth phase and some texture, where it is not zero)."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, height).double(), torch.linspace(-1, 1, width).double(), indexing="ij")
    inside = (x / 0.7) ** 2 + (y / 0.8) ** 2 <= 1
    texture = torch.rand(height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.polar((0.6 + 0.4 * texture) * inside, 1.5 * x - y**2), inside


IMAGE, INSIDE = head()
MAPS = birdcage(IMAGE.shape, 8, dtype=torch.complex128)
KSPACE = fft2c(MAPS * IMAGE)


def agreement(found, maps):
    """|<S', S>| of unit vectors at each pixel: 1 where maps are the same up to phase."""
    return (found.conj() * maps).sum(0).abs()


def test_a_birdcage_is_the_field_of_its_wires():
    maps = birdcage((24, 24), 8, dtype=torch.complex128)
    assert torch.allclose(maps.abs().square().sum(0), torch.ones(24, 24, dtype=torch.float64))
    turned = torch.rot90(maps, -1, (1, 2))  # a quarter turn takes each wire to the place of the next but one
    assert torch.allclose(turned, maps.roll(2, 0)) or torch.allclose(turned, maps.roll(-2, 0))
    wire, pixel = 1.5 * np.exp(2j * np.pi * 3 / 8), complex((20 - 11.5) / 12, (5 - 11.5) / 12)
    ratio = complex(maps[3, 5, 20] / maps[0, 5, 20])
    assert ratio == pytest.approx((1 / (1 - pixel / wire)) / (1 / (1 - pixel / 1.5)))
    nearest = maps.abs()[:, 12, 23].argmax()
    assert int(nearest) == 0  # the wire on the x axis is loudest at the right edge


def test_espirit_finds_the_maps_up_to_phase():
    maps, value = espirit(KSPACE, calibration=24)
    same = agreement(maps, MAPS)[INSIDE]
    assert float(same.min()) > 0.995 and float(same.mean()) > 0.9998
    assert float(value[INSIDE].min()) > 0.98 and float(value.max()) < 1 + 1e-9
    outside = torch.nn.functional.max_pool2d(INSIDE[None].float(), 9, 1, 4)[0] == 0
    assert float(value[outside].median()) < 0.6 and bool((maps[:, value < 0.9] == 0).all())
    common = (maps.conj() * MAPS).sum(0)  # the phase that is left is smooth
    step = (common[1:] * common[:-1].conj()).angle().abs()
    assert float(step[INSIDE[1:] & INSIDE[:-1]].max()) < 0.2


def test_espirit_follows_a_change_of_coils():
    """Coils combined by a unitary matrix have the maps combined by it, up to one phase for all pixels."""
    mixing = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.complex128))[0]
    maps, value = espirit(KSPACE, calibration=20)
    mixed, again = espirit(torch.einsum("cd,dyx->cyx", mixing, KSPACE), calibration=20)
    assert torch.allclose(again, value, atol=1e-9)
    product = (mixed.conj() * torch.einsum("cd,dyx->cyx", mixing, maps)).sum(0)[value >= 0.9]
    assert torch.allclose(product, product[0].expand_as(product)) and float(product[0].abs()) == pytest.approx(1.0)


def test_espirit_needs_the_centre_alone_and_survives_noise():
    mask = Mask("poisson", 5.0, 20, seed=1).draw(IMAGE.shape)
    noise = torch.randn(KSPACE.shape, generator=torch.Generator().manual_seed(2), dtype=torch.complex128)
    noisy = torch.where(mask, KSPACE + 0.01 * noise, 0.0)
    maps, _ = espirit(noisy)
    assert float(agreement(maps, MAPS)[INSIDE].mean()) > 0.998
    beyond = noisy.clone()
    beyond[:, 0] = 100.0
    assert torch.equal(espirit(beyond, calibration=20)[0], espirit(noisy, calibration=20)[0])
    error = []
    for used in (maps, MAPS):
        operator, y = measured(noisy, used)
        found = operator.pinv(y, iterations=60, noise=0.01 / 2**0.5)
        error.append(float((found[0, 0].abs() - IMAGE.abs())[INSIDE].norm() / IMAGE.abs().norm()))
    assert error[0] < 1.1 * error[1] < 0.2  # as good as with the true maps


def test_a_volume_is_estimated_slice_by_slice():
    both = torch.stack([KSPACE, KSPACE.flip(-1)])
    maps, value = espirit(both, calibration=16, kernel=4)
    alone, its = espirit(both[1], calibration=16, kernel=4)
    assert torch.equal(maps[1], alone) and torch.equal(value[1], its) and maps.shape == (2, 8, *IMAGE.shape)


def test_a_real_scan_fits_its_own_maps(data):
    """8 coils, 12 % of k-space: estimated maps explain it but for noise, those of another scanner do not."""
    kspace = torch.from_numpy(np.load(data / "medical" / "kspace_brain_8coil.npy"))
    mask = acquired(kspace)
    assert calibration_size(mask) == (24, 24)
    maps, value = espirit(kspace)
    residual = {}
    for name, tried in (("ESPIRiT", maps), ("birdcage", birdcage(kspace.shape[1:], 8))):
        operator, y = measured(kspace, tried)
        found = operator.pinv(y, iterations=20)
        residual[name] = float((y - operator(found)).norm() / y.norm())
    # a tenth of the samples outside of the centre is left out and predicted from the others
    hidden = mask & (torch.rand(mask.shape, generator=torch.Generator().manual_seed(0)) < 0.1)
    hidden[103:127, 78:102] = False
    operator = MRI(mask & ~hidden, maps)
    found = operator.pinv(operator.samples(kspace), iterations=20)
    judge = MRI(hidden, maps)
    predicted = float((judge(found) - judge.samples(kspace)).norm() / judge.samples(kspace).norm())
    print(f"\nresidual of the model: {residual['ESPIRiT']:.4f} with estimated maps, {residual['birdcage']:.4f} with a "
          f"birdcage; of predicted samples: {predicted:.3f}; maps cover {float((value >= 0.9).double().mean()):.2f}")
    assert residual["ESPIRiT"] < 0.05 < 0.5 < residual["birdcage"]
    assert predicted < 0.5  # 1 for nothing at all


def test_what_is_not_sampled_is_not_used():
    gap = KSPACE.clone()
    gap[:, 28, 20] = 0.0
    for wrong, sentence in ((lambda: espirit(gap, calibration=24), "not fully sampled over 24 x 24"),
                            (lambda: espirit(KSPACE, calibration=7), "larger than that, not 7 x 7"),
                            (lambda: espirit(KSPACE, calibration=99), "99 x 99"),
                            (lambda: centre(IMAGE), "axes coil, y, x"), (lambda: espirit(KSPACE.real), "is complex"),
                            (lambda: birdcage((8, 8), 4, radius=1.0), "beyond the corners"),
                            (lambda: birdcage((8, 8), 0), "at least one coil")):
        with pytest.raises(UsageError, match=sentence):
            wrong()
