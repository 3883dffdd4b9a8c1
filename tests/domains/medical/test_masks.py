"""Masks of k-space: exact counts, the laws they are drawn by, distances, and what cannot be."""

from __future__ import annotations

import math

import pytest
import torch

from scidiff.core.errors import UsageError
from scidiff.domains.medical.operators.masks import LINES, SAMPLES, Mask, acquired, calibration_size


def centre_of(mask, rows, columns):
    y, x = mask.shape[0] // 2 - rows // 2, mask.shape[1] // 2 - columns // 2
    return mask[y : y + rows, x : x + columns]


@pytest.mark.parametrize("kind", LINES)
@pytest.mark.parametrize("n, acceleration, calibration, centre", [
    (64, 4.0, None, 5), (63, 8.0, None, 3), (50, 2.5, 12, 12), (40, 3.0, 0.2, 8), (48, 4.0, 0, 0), (10, 1.0, None, 1),
])
def test_lines_are_counted_exactly_and_hold_the_centre(kind, n, acceleration, calibration, centre):
    for seed in range(5):
        made = Mask(kind, acceleration, calibration, seed)
        mask = made.draw((7, n))
        assert int(mask[0].sum()) == round(n / acceleration)
        assert torch.equal(mask, mask[:1].expand(7, n)) and bool(centre_of(mask, 7, centre).all())
        assert made.centre(n) == centre and (not centre or bool(mask[3, n // 2]))
        turned = Mask(kind, acceleration, calibration, seed, axis="y").draw((n, 7))
        assert torch.equal(turned, mask.T)


@pytest.mark.parametrize("kind", SAMPLES)
@pytest.mark.parametrize("size, acceleration, calibration", [((40, 33), 5.0, None), ((32, 48), 8.0, 6)])
def test_samples_are_counted_exactly_and_hold_the_centre(kind, size, acceleration, calibration):
    made = Mask(kind, acceleration, calibration, seed=3)
    mask, wanted = made.draw(size), round(math.prod(size) / acceleration)
    if kind == "radial":  # whole spokes: the nearest count, half a spoke away at most
        assert abs(int(mask.sum()) - wanted) <= max(size) / 2
    else:
        assert int(mask.sum()) == wanted
    assert bool(centre_of(mask, made.centre(size[0]), made.centre(size[1])).all())


@pytest.mark.parametrize("kind", LINES + SAMPLES)
def test_a_mask_is_a_function_of_its_seed(kind):
    first, again, other = (Mask(kind, 4.0, 4, seed).draw((24, 32)) for seed in (5, 5, 6))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_one_line_is_drawn_by_its_weight():
    """A single draw has the law w / sum w; chi square over many seeds, 5 standard deviations."""
    n, seeds = 12, 1000
    offsets = (torch.arange(n, dtype=torch.float64) - n // 2) / n
    for kind, weight in (("random", torch.ones(n).double()), ("gaussian", torch.exp(-(offsets**2) / (2 * 0.3**2)))):
        hits = sum(Mask(kind, float(n), 0, seed, std=0.3).draw((1, n))[0].double() for seed in range(seeds))
        expected = seeds * weight / weight.sum()
        chi = float(((hits - expected) ** 2 / expected).sum())
        assert chi < (n - 1) + 5 * math.sqrt(2 * (n - 1))


def test_lines_and_samples_beside_the_centre_are_drawn_alike():
    count = sum(Mask("random", 4.0, 6, seed).draw((1, 48))[0].double() for seed in range(800))
    outer, p = torch.cat([count[:21], count[27:]]), 6 / 42
    assert float(((outer - 800 * p) / math.sqrt(800 * p * (1 - p))).abs().max()) < 5
    dense = sum(Mask("gaussian2d", 4.0, 0, seed, std=0.2).draw((32, 24)).double() for seed in range(20)) / 20
    assert float(dense[12:20, 9:15].mean()) > 0.6 > 6 * float(dense[:4].mean())
    even = sum(Mask("random2d", 4.0, 0, seed).draw((32, 24)).double() for seed in range(20)) / 20
    assert abs(float(even[:16].mean()) - 0.25) < 5 * math.sqrt(0.25 * 0.75 / (384 * 20))


def test_equispaced_lines_have_equal_gaps_and_any_offset():
    offsets = set()
    for seed in range(40):
        kept = Mask("equispaced", 4.0, 0, seed).draw((2, 64))[0].nonzero()[:, 0]
        assert bool((kept.diff() == 4).all())
        offsets.add(int(kept[0]))
        line = Mask("equispaced", 3.0, 10, seed).draw((2, 90))[0]  # 20 lines among the 80 outside of the centre
        rest = torch.cat([line[:40], line[50:]]).nonzero()[:, 0]
        assert bool((rest.diff() == 4).all())
    assert offsets == {0, 1, 2, 3}


def gaps(mask):
    """Distance of each sample from its nearest neighbour, and the samples, [n] and [n, 2]."""
    points = mask.nonzero().double()
    apart = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    return apart.fill_diagonal_(math.inf).min(1).values, points


def test_poisson_discs_keep_their_distance():
    """At one sample in nine points, discs of diameter 2 have room for all; thrown anywhere, many samples touch."""
    flat, _ = gaps(Mask("poisson", 9.0, 0, density=0.0).draw((54, 60)))
    assert float(flat.min()) >= 2.0
    assert float(gaps(Mask("random2d", 9.0, 0).draw((54, 60)))[0].min()) == 1.0


def test_poisson_discs_grow_towards_the_edge_of_k_space():
    size, density = (96, 80), 2.0
    k = [(torch.arange(n, dtype=torch.float64) - n // 2) / (n / 2) for n in size]
    radius = 1 + density * torch.hypot(k[0][:, None], k[1])
    taken = sum(Mask("poisson", 10.0, 0, seed, density=density).draw(size).double() for seed in range(4)) / 4
    shells = [(radius > low) & (radius <= low + 0.5) for low in (1.0, 1.5, 2.0, 2.5)]
    filling = torch.stack([(taken * radius**2)[shell].mean() for shell in shells])  # density times area of a disc
    assert float(filling.max() / filling.min()) < 1.5  # 3.2 if all were alike
    nearest, points = gaps(Mask("poisson", 10.0, 0, density=density).draw(size))
    own = radius[points[:, 0].long(), points[:, 1].long()]
    assert float((nearest / own).min()) > 0.6 * float((nearest / own).median())


def test_spokes_pass_the_centre():
    mask = Mask("radial", 6.0, 0, seed=1).draw((65, 65))
    assert torch.equal(mask, mask.flip(0, 1)) and bool(mask[32, 32])
    y, x = torch.meshgrid(torch.arange(65) - 32, torch.arange(65) - 32, indexing="ij")
    ring = (torch.hypot(y.double(), x.double()) - 25).abs() < 0.5
    inner = (torch.hypot(y.double(), x.double()) - 10).abs() < 0.5
    ratio = float(mask[inner].double().mean() / mask[ring].double().mean())
    assert 2.0 < ratio < 3.3  # spokes thin out as 1 / |k|


def test_the_calibration_centre_of_a_scan_is_found():
    mask = Mask("poisson", 8.0, 12, seed=2).draw((64, 50))
    assert min(calibration_size(mask)) == 12
    kspace = torch.where(mask, 1.0 + 1j, 0.0).expand(3, 64, 50).clone()
    kspace[1:, 0, 0] = 2.0
    found = acquired(kspace)
    assert bool(found[0, 0]) and torch.equal(found.flatten()[1:], mask.flatten()[1:])
    assert calibration_size(Mask("random", 4.0, 8, seed=1).draw((20, 40)))[0] == 20
    assert calibration_size(torch.zeros(8, 8).bool()) == (0, 0)
    assert calibration_size(torch.ones(9, 6).bool()) == (9, 6)


def test_what_cannot_be_is_refused():
    for wrong, sentence in ((lambda: Mask("randm"), "no mask 'randm'. Did you mean 'random'"),
                            (lambda: Mask(acceleration=0.5), "1 or more"), (lambda: Mask(calibration=-1), "share"),
                            (lambda: Mask(axis="z"), "'x' or 'y'"), (lambda: Mask(std=0.0), "positive std"),
                            (lambda: Mask("random", 8.0, 20).draw((8, 64)), "20 of 64 lines"),
                            (lambda: Mask("poisson", 8.0, 20).draw((32, 32)), "400 of 1024 samples"),
                            (lambda: acquired(torch.zeros(2, 4, 4)), "zero everywhere"),
                            (lambda: acquired(torch.ones(4, 4)), "axes coil")):
        with pytest.raises(UsageError, match=sentence):
            wrong()
