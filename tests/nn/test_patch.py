"""The network of patches: places, agreement of patches and planes, any size, blocks, conditions, its size on disk."""

from __future__ import annotations

import pytest
import torch

from scidiff import config
from scidiff.core.errors import UsageError
from scidiff.core.spec import Context
from scidiff.nn.patch import POSITION, PatchUNet, continued, coordinates, placed, whole
from scidiff.store import targets


def stirred(**settings):
    """A small network none of whose weights is zero."""
    torch.manual_seed(0)
    net = PatchUNet(**{"widths": (8, 12), "embed": 8, **settings}).double().eval()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return net


def at(place, batch=1):
    """A context of patches that lie at (start, step)."""
    return Context.of(batch, cond={POSITION: (place, torch.ones(batch, dtype=torch.bool))})


def part_of(space, corner):
    """(start, step) of the patch of a whole plane that begins at a pixel."""
    rows = whole(space)
    return torch.stack([rows[..., 0] + rows[..., 1] * torch.tensor(corner), rows[..., 1]], -1)


def run(net, x, ctx=None, t=0.7):
    with torch.no_grad():
        return net({"x": x}, torch.full((len(x),), t, dtype=torch.float64), ctx or Context.of(len(x)))["x"]


def test_coordinates_run_from_border_to_border_through_the_middle_of_pixels():
    found = coordinates(whole((4, 6), 2).double(), (4, 6))
    assert found.shape == (2, 2, 4, 6)
    assert torch.allclose(found[0, 0, :, 3], torch.tensor([-0.75, -0.25, 0.25, 0.75], dtype=torch.float64))
    assert torch.allclose(found[0, 1, 2], (torch.arange(6) * 2 + 1).double() / 6 - 1)
    patch = coordinates(part_of((4, 6), (1, 2)).double(), (2, 3))
    assert torch.allclose(patch[0], found[0, :, 1:3, 2:5])


def test_a_patch_and_its_plane_agree_out_of_reach_of_the_border():
    """Two convolutions a block, four blocks and both ends on one level: ten pixels of reach."""
    net = stirred(widths=(8,), patch=1)
    x = torch.randn(2, 1, 48, 48, dtype=torch.float64)
    corner, side, reach = (8, 4), 32, 10
    plane = run(net, x)[..., 8 : 8 + side, 4 : 4 + side]
    patch = run(net, x[..., 8 : 8 + side, 4 : 4 + side], at(part_of((48, 48), corner).expand(2, -1, -1), 2))
    inside = slice(reach, side - reach)
    assert torch.allclose(plane[..., inside, inside], patch[..., inside, inside], atol=1e-6)
    assert not torch.allclose(plane, patch, atol=1e-3)


def test_the_place_of_a_patch_matters_unless_the_network_is_not_told():
    x = torch.randn(1, 1, 16, 16, dtype=torch.float64)
    here, there = at(part_of((64, 64), (0, 0))), at(part_of((64, 64), (48, 30)))
    assert not torch.allclose(run(stirred(), x, here), run(stirred(), x, there), atol=1e-3)
    blind = stirred(position=False)
    assert torch.equal(run(blind, x, here), run(blind, x, there))


def test_places_are_never_hidden_where_conditions_are():
    """Guidance without a classifier hides conditions; where a patch lies stays known."""
    x, place = torch.randn(1, 1, 16, 16, dtype=torch.float64), part_of((64, 64), (48, 30))
    hidden = Context.of(1, cond={POSITION: (place, torch.zeros(1, dtype=torch.bool))})
    assert torch.equal(run(stirred(), x, at(place)), run(stirred(), x, hidden))


@pytest.mark.parametrize("space", [(45, 37), (16, 16), (7, 64)])
def test_planes_of_any_size_are_denoised_as_if_air_continued_them(space):
    net = stirred()
    assert net.multiple == 4
    x = torch.randn(2, 1, *space, dtype=torch.float64)
    wide = continued(x, net.multiple)
    assert all(n % 4 == 0 for n in wide.shape[2:]) and float(wide.sum()) == pytest.approx(float(x.sum()))
    again = run(net, wide, at(whole(space, 2), 2))
    assert torch.equal(run(net, x), again[..., : space[0], : space[1]])


def test_blocks_have_three_places():
    net = stirred(dims=3, widths=(4, 8))
    assert net.folded_in == 4 * 2**3
    x = torch.randn(1, 1, 8, 10, 12, dtype=torch.float64)
    assert run(net, x).shape == x.shape
    assert placed(Context.of(1), x).shape == (1, 3, 2)
    with pytest.raises(UsageError, match="images of 3 dimensions"):
        run(net, x[:, :, 0])


def test_a_condition_moves_the_answer_and_an_absent_one_adds_nothing():
    net = stirred(conditions={"flair": 1})
    x = torch.randn(1, 1, 16, 16, dtype=torch.float64)

    def told(value, known=True):
        return Context.of(1, cond={"flair": (torch.tensor([value]), torch.tensor([known]))})

    assert not torch.allclose(run(net, x, told(1.0)), run(net, x, told(-1.0)), atol=1e-4)
    assert torch.equal(run(net, x, told(1.0, False)), run(net, x))


def test_statistics_over_a_patch_are_refused():
    with pytest.raises(UsageError, match="norm: point or none"):
        PatchUNet(norm="group")


def test_the_network_starts_by_predicting_nothing():
    out = PatchUNet(widths=(8,))({"x": torch.randn(1, 1, 8, 8)}, torch.ones(1), Context.of(1))["x"]
    assert bool((out == 0).all())


@pytest.mark.parametrize("experiment", ["ct_body_128", "mr_brain_128"])
def test_shipped_priors_fit_into_two_and_a_half_megabytes_of_half_precision(experiment):
    settings = config.compose("train", [f"experiment={experiment}"])
    net = targets.build({**settings["backbone"], "conditions": dict.fromkeys(settings["condition"], 1)})
    assert 2 * sum(p.numel() for p in net.parameters()) < 2.45e6
