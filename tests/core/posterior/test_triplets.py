"""A prior of triplets of slices on whole volumes, against closed forms of Gaussian volumes."""

from __future__ import annotations

import pytest
import torch

from scidiff.core.denoiser import Denoiser
from scidiff.core.errors import UsageError
from scidiff.core.path import VP
from scidiff.core.path.base import Prediction
from scidiff.core.posterior.chunked import Chunked
from scidiff.core.posterior.triplets import SPACING, Triplets, division, of_slices
from scidiff.core.run import Run
from scidiff.core.space import Euclidean
from scidiff.core.spec import Component, Context, StateSpec

PATH = VP(t_min=1e-3)
SPEC = StateSpec({"x": Component(Euclidean(), PATH, (3, 2, 2))})
LENGTH = 4.0


def cov(places):
    """Covariance of single pixels of slices at these places: exp(-distance / length)."""
    z = torch.as_tensor(places, dtype=torch.float64)
    return torch.exp(-(z[:, None] - z).abs() / LENGTH)


def gain(places, t):
    """D = G x_t of the slices at these places."""
    k, c = PATH.coefficients(t), cov(places)
    return k.alpha * torch.linalg.solve(k.alpha**2 * c + k.sigma**2 * torch.eye(len(c), dtype=torch.float64), c)


class Three(Denoiser):
    """The exact denoiser of triplets that lie as far apart as the condition says; counts what it sees at once."""

    def __init__(self):
        super().__init__()
        self.spec, self.most = SPEC, 0

    def forward(self, state, t, ctx, run=None):
        x, (apart, _) = state["x"], ctx.cond[SPACING]
        self.most = max(self.most, len(x))
        matrices = torch.stack([gain([0, float(j), 2 * float(j)], t) for j in apart])
        clean = torch.einsum("bij,bjyx->biyx", matrices, x)
        return {"x": Prediction("data", clean, PATH, x, t, ctx.at("x", SPEC["x"]))}


@pytest.mark.parametrize("depth", range(9, 25))
@pytest.mark.parametrize("jump", [1, 3])
def test_every_slice_is_owned_once_by_a_triplet_inside_of_the_volume(depth, jump):
    for offset in range(3 * jump):
        groups, owner = division(depth, offset, jump)
        assert all(b - a == jump and c - b == jump for a, b, c in groups)
        assert all(0 <= z < depth for group in groups for z in group)
        assert [groups[place // 3][place % 3] for place in owner] == list(range(depth))
        assert len(set(owner)) == depth
        assert len(groups) <= depth // 3 + 2 * jump + 2


@pytest.mark.parametrize("step", [0, 1, 2, 3])
@pytest.mark.parametrize("volumes", [1, 2])
def test_the_estimate_is_that_of_the_triplet_that_owns_a_slice(step, volumes):
    depth, t, run = 11, 0.3, Run(7)
    run.step = step
    wrapped, ctx = Triplets(Three(), SPEC, depth), Context.of(volumes * depth)
    x = torch.randn(volumes * depth, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = wrapped({"x": x}, t, ctx, run)["x"].data.view(volumes, depth, 4)
    groups, owner, spacing = wrapped.divided(ctx, run)
    assert spacing == (3 if step % 2 else 1)
    for v in range(volumes):
        volume = x.view(volumes, depth, 4)[v]
        for z in range(depth):
            group, place = groups[owner[z] // 3], owner[z] % 3
            torch.testing.assert_close(found[v, z], (gain(group, t) @ volume[group])[place])


def test_offsets_change_from_step_to_step_and_repeat_with_the_seed():
    wrapped, ctx, run = Triplets(Three(), SPEC, 30), Context.of(30), Run(1)
    seen = []
    for step in range(0, 40, 2):
        run.step = step
        seen.append(tuple(map(tuple, wrapped.divided(ctx, run)[0][:2])))
    assert len(set(seen)) == 3
    run.step = 4
    assert tuple(map(tuple, wrapped.divided(ctx, run)[0][:2])) == seen[2]


def test_independent_slices_are_denoised_by_themselves():
    """Triplets of a law without coupling: D is that of the single slice, whatever the division."""

    class Apart(Denoiser):
        def forward(self, state, t, ctx, run=None):
            x, k = state["x"], PATH.coefficients(t)
            return {"x": Prediction("data", x * (k.alpha / (k.alpha**2 + k.sigma**2)), PATH, x, t,
                                    ctx.at("x", SPEC["x"]))}

    x = torch.randn(10, 1, 2, 2, dtype=torch.float64)
    k = PATH.coefficients(0.5)
    for step in range(4):
        run = Run(0)
        run.step = step
        found = Triplets(Apart(), SPEC, 10)({"x": x}, 0.5, Context.of(10), run)["x"].data
        torch.testing.assert_close(found, x * (k.alpha / (k.alpha**2 + k.sigma**2)))


def test_the_network_sees_a_few_triplets_at_a_time():
    inner = Three()
    x, ctx = torch.randn(12, 1, 2, 2, dtype=torch.float64), Context.of(12)
    whole = Triplets(Three(), SPEC, 12)({"x": x}, 0.4, ctx, Run(0))["x"].data
    parts = Triplets(Chunked(inner, 2), SPEC, 12)({"x": x}, 0.4, ctx, Run(0))["x"].data
    torch.testing.assert_close(whole, parts)
    assert inner.most == 2


def test_volumes_too_thin_for_jumps_are_divided_into_neighbours():
    wrapped, run = Triplets(Three(), SPEC, 8), Run(0)
    run.step = 1
    assert wrapped.divided(Context.of(8), run)[2] == 1
    assert of_slices(SPEC, "x")["x"].shape == (1, 2, 2)


def test_what_cannot_be_is_refused():
    with pytest.raises(UsageError, match="3 slices or more, not 2"):
        Triplets(Three(), SPEC, 2)
    with pytest.raises(UsageError, match="makes 3 slices"):
        Triplets(Three(), of_slices(SPEC, "x"), 9)
    with pytest.raises(UsageError, match="no volumes of 9"):
        Triplets(Three(), SPEC, 9)({"x": torch.zeros(10, 1, 2, 2)}, 0.4, Context.of(10), Run(0))
    with pytest.raises(UsageError, match="need volumes of 9 slices"):
        division(8, 0, 3)
