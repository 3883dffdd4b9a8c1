"""Scores against their definitions written out, planes of a volume, intervals over slices."""

from __future__ import annotations

import math

import pytest
import torch

from scidiff.core.errors import UsageError
from scidiff.domains.medical.metrics import (
    PLANES,
    by_plane,
    mean_score,
    nrmse,
    paired,
    plane,
    psnr,
    residual,
    residual_ratio,
    ssim,
    window,
)
from scidiff.domains.medical.operators.ct import ParallelCT
from scidiff.domains.medical.operators.simple import DownsampleZ

torch.set_num_threads(1)
F64 = torch.float64


def draw(*shape, seed=0):
    return torch.rand(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def test_psnr_of_a_known_error():
    truth = draw(3, 1, 8, 8)
    error = torch.tensor([0.1, 0.01, 0.0], dtype=F64).view(3, 1, 1, 1)
    assert psnr(truth + error, truth).tolist() == pytest.approx([20.0, 40.0, math.inf])
    assert psnr(truth + error, truth, 2000.0)[0] == pytest.approx(20.0 + 20 * math.log10(2000.0))
    turned = (truth + 0.1) * torch.exp(1j * draw(3, 1, 8, 8, seed=1))
    assert psnr(turned, truth).tolist() == pytest.approx([20.0] * 3)  # magnitudes are compared


def test_ssim_is_its_definition():
    """Every 11 x 11 window by itself."""
    a, b = draw(2, 1, 14, 13), draw(2, 1, 14, 13, seed=1)
    weight = torch.outer(window(14), window(13))
    assert weight.shape == (11, 11) and float(weight.sum()) == pytest.approx(1.0)
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    for k in range(2):
        values = []
        for i in range(4):
            for j in range(3):
                p, q = a[k, 0, i : i + 11, j : j + 11], b[k, 0, i : i + 11, j : j + 11]
                mp, mq = (weight * p).sum(), (weight * q).sum()
                vp, vq = (weight * (p - mp) ** 2).sum(), (weight * (q - mq) ** 2).sum()
                cov = (weight * (p - mp) * (q - mq)).sum()
                values.append((2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
        assert float(ssim(a, b, 2.0)[k]) == pytest.approx(float(torch.stack(values).mean()), rel=1e-10)


def test_ssim_of_equals_opposites_and_narrow_slices():
    a = draw(18, 1, 16, 16)
    assert ssim(a, a).tolist() == pytest.approx([1.0] * 18)
    assert float(ssim(1.0 - a, a).max()) < 0.0
    torch.testing.assert_close(ssim(a, draw(18, 1, 16, 16, seed=1)), ssim(draw(18, 1, 16, 16, seed=1), a))
    assert [len(window(n)) for n in (40, 12, 11, 10, 4, 1)] == [11, 11, 11, 9, 3, 1]
    assert ssim(a[:, :, :4], a[:, :, :4]).tolist() == pytest.approx([1.0] * 18)


def test_planes_cut_where_they_say():
    v = torch.zeros(4, 1, 5, 6)
    v[1, 0, 2, 3] = 1.0
    for name, index, place in (("axial", 1, (2, 3)), ("coronal", 2, (1, 3)), ("sagittal", 3, (1, 2))):
        slices = plane(v, name)
        assert slices[index, 0][place] == 1.0 and float(slices.sum()) == 1.0
    assert [tuple(plane(v, n).shape) for n in PLANES] == [(4, 1, 5, 6), (5, 1, 4, 6), (6, 1, 4, 5)]
    with pytest.raises(UsageError, match="axial, coronal"):
        plane(v, "oblique")


def test_empty_slices_do_not_count():
    truth = draw(5, 1, 12, 12).clamp(min=0.1)
    truth[2] = 0.01
    found = by_plane(psnr, truth + 0.1, truth)
    assert {n: len(values) for n, values in found.items()} == {"axial": 4, "coronal": 12, "sagittal": 12}
    assert found["axial"].tolist() == pytest.approx([20.0] * 4)
    assert len(by_plane(psnr, truth, truth, 1000.0)["axial"]) == 0


def test_whole_volume_error():
    truth = draw(3, 1, 4, 4)
    assert nrmse(1.25 * truth, truth) == pytest.approx(0.25)


def test_paired_intervals_see_what_single_ones_do_not():
    """Two methods whose scores vary together: their difference is known far better than either."""
    base = 30 + 3 * draw(40)
    better = base + 0.5 + 0.1 * draw(40, seed=1)
    one, gain = mean_score(better), paired(better, base)
    assert gain.value == pytest.approx(float((better - base).mean()))
    assert gain.low > 0.5 and gain.high - gain.low < 0.1 * (one.high - one.low)
    assert paired(better, base, seed=1) != gain == paired(better, base)


def test_blocks_widen_the_interval_of_slices_that_resemble_each_other():
    values = draw(12).repeat_interleave(8)
    narrow, wide = mean_score(values), mean_score(values, block=8)
    assert [wide.value, narrow.value] == pytest.approx([float(values.mean())] * 2)
    assert 2.0 < (wide.high - wide.low) / (narrow.high - narrow.low) < 4.0  # sqrt(8)
    odd = mean_score(values[:91], block=8)
    assert odd.value == pytest.approx(float(values[:91].mean())) and odd.low < odd.value < odd.high


def test_residuals_against_the_noise():
    operator = ParallelCT((16, 16), views=20)
    truth = draw(4, 1, 16, 16)
    noise = torch.randn(4, *operator.out_shape, dtype=F64, generator=torch.Generator().manual_seed(0))
    y = operator(truth) + 0.3 * noise
    torch.testing.assert_close(residual(truth, y, operator, chunk=3), 0.3 * noise.flatten(1).norm(dim=1))
    assert residual_ratio(truth, y, operator, 0.3).tolist() == pytest.approx([1.0] * 4, abs=0.1)
    thick = DownsampleZ((4, 16, 16), 2)
    assert residual(truth, thick(truth[None]) + 1.0, thick).tolist() == pytest.approx([math.sqrt(2 * 256)])


@pytest.mark.parametrize("make, words", [
    (lambda: psnr(draw(2, 1, 4, 4), draw(2, 1, 4, 5)), "one of its shape"),
    (lambda: psnr(draw(4, 4), draw(4, 4)), "one of its shape"),
    (lambda: paired(draw(3), draw(4)), "the same slices"), (lambda: mean_score(draw(0)), "one score a slice"),
    (lambda: residual_ratio(draw(1, 1, 4, 4), draw(1, 1, 2, 6), ParallelCT((4, 4), views=2), 0.0), "positive standard"),
])
def test_what_makes_no_sense_is_refused(make, words):
    with pytest.raises(UsageError, match=words):
        make()
