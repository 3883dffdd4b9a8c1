"""The band of a rollout: where the data hold nothing, a forecast keeps nothing."""

from __future__ import annotations

import math
import runpy
from pathlib import Path

import pytest
import torch

from scidiff.core.errors import UsageError
from scidiff.domains.pde import PdeDomain
from scidiff.domains.pde.codec import band, band_limited, conserves_mean

made = runpy.run_path(str(Path(__file__).with_name("test_rollout.py")))
N, tiny = made["N"], made["tiny"]

X = torch.arange(32, dtype=torch.float64) * 2 * math.pi / 32


def test_the_band_is_where_the_variance_ends():
    frames = (torch.sin(3 * X) + 1e-2 * torch.cos(7 * X) + 1e-5 * torch.sin(11 * X)).expand(2, 3, 1, 32)
    assert band(frames, 1) == (7,)  # 1e-10 of the variance lies at 11
    assert band(frames, 1, share=1e-12) == (11,)
    assert band(frames, 1, share=1e-3) == (3,)
    assert band(frames + 5.0, 1) == (7,), "the mean is no variance"


def test_the_band_of_two_axes_is_their_own():
    frames = (torch.sin(2 * X)[:, None] + torch.cos(5 * X)[None, :]).expand(1, 1, 1, 32, 32)
    assert band(frames, 2) == (2, 5)


@pytest.mark.parametrize("shape", [(32,), (16, 24), (15, 9)])
def test_projection_is_idempotent_self_adjoint_and_keeps_what_lies_inside(shape):
    a, b = torch.randn(2, 4, 1, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    limits = tuple(n // 4 for n in shape)
    pa, pb = band_limited(a, limits), band_limited(b, limits)
    torch.testing.assert_close(band_limited(pa, limits), pa)
    assert float((pa * b).sum() - (a * pb).sum()) == pytest.approx(0.0, abs=1e-10)
    assert float(pa.pow(2).sum()) < float(a.pow(2).sum())
    torch.testing.assert_close(pa.mean(tuple(range(-len(shape), 0))), a.mean(tuple(range(-len(shape), 0))))


def test_a_rollout_keeps_the_band_and_nothing_else():
    """The power beyond the band is gone, inside it is the model's own."""
    free, limited = tiny(), tiny(band=(3,))
    start = torch.randn(2, 1, 1, N, generator=torch.Generator().manual_seed(1))
    ids = torch.arange(2)
    a, b = free(start, ids, 0, 1), limited(start, ids, 0, 1)
    torch.testing.assert_close(b, band_limited(a, (3,)))
    power = torch.fft.rfft(b).abs()
    assert float(power[..., 4:].max()) < 1e-5 < float(power[..., :4].max())


def test_a_domain_learns_its_band_and_keeps_it():
    domain = PdeDomain(bandlimit="auto")
    fitted, _ = domain.fit(domain.examples())
    assert len(fitted.bandlimit) == 1 and 3 <= fitted.bandlimit[0] <= 16
    again = PdeDomain(**fitted.options())
    assert again.bandlimit == fitted.bandlimit and PdeDomain().options()["bandlimit"] is None


def test_a_rollout_keeps_the_mean_and_changes_nothing_else():
    free, kept = tiny(), tiny(conserve=True)
    start = torch.randn(2, 1, 1, N, generator=torch.Generator().manual_seed(2)) + 0.7
    a, b = (f(start, torch.arange(2), 0, 1) for f in (free, kept))
    torch.testing.assert_close(b.mean(-1), start[:, 0].mean(-1))
    torch.testing.assert_close(b - b.mean(-1, keepdim=True), a - a.mean(-1, keepdim=True))
    assert float((a.mean(-1) - start[:, 0].mean(-1)).abs().max()) > 1e-3


def test_what_is_conserved_is_seen_in_the_data():
    moving = torch.sin(X + torch.arange(5.0, dtype=torch.float64)[:, None]).expand(3, 5, 32)[:, :, None]
    levels = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64).view(3, 1, 1, 1)
    assert conserves_mean(moving + levels, 1), "every trajectory may have a mean of its own"
    assert not conserves_mean(moving + 1e-3 * torch.arange(5.0).view(1, 5, 1, 1), 1)
    fitted, _ = PdeDomain(conserve="auto").fit(PdeDomain().examples())
    assert fitted.conserve is True and PdeDomain(**fitted.options()).conserve is True
    with pytest.raises(UsageError, match="conserve"):
        PdeDomain(conserve="maybe")


@pytest.mark.parametrize("wrong", ["fine", [0], [4, 4], []])
def test_an_impossible_band_is_refused(wrong):
    with pytest.raises(UsageError, match="bandlimit"):
        PdeDomain(shape=(32,), extent=(22.0,), bandlimit=wrong)
