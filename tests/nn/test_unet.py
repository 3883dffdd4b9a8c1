"""The U-Net: the published size, levels, what the two forms of skips cost, compilation."""

import pytest
import torch

from scidiff.core.errors import UsageError
from scidiff.core.spec import Context
from scidiff.nn.unet import UNet


def count(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def test_the_published_setting_has_the_published_size():
    with torch.device("meta"):
        net = UNet(2, 1, 1, (64, 128, 256, 1024), 2, skips="all", condition="add", conditions=("dt", "dx"))
    assert count(net) == pytest.approx(53.9e6, rel=0.01)


def test_the_small_net_fits_its_budget():
    with torch.device("meta"):
        assert count(UNet(2, 1, 1, (64, 96), 1, patch=4, embed=64)) < 0.6e6
        assert count(UNet(2, 1, 1, (24, 48), 1, skips="add")) < count(UNet(2, 1, 1, (24, 48), 1, skips="all"))


@pytest.mark.parametrize("skips", ["add", "all"])
def test_the_lowest_level_sees_far(skips):
    """One more level doubles the distance over which a point is seen."""

    def reach(widths: tuple[int, ...]) -> int:
        torch.manual_seed(0)
        net = UNet(1, 1, 1, widths, norm="none", skips=skips).double()
        with torch.no_grad():
            for p in net.parameters():
                p.add_(0.2 * torch.randn_like(p))
        x = torch.randn(1, 1, 512, dtype=torch.float64)
        bumped = x.clone()
        bumped[..., 256] += 1.0
        t, ctx = torch.zeros(1).double(), Context.of(1)
        changed = (net({"u": bumped}, t, ctx)["u"] - net({"u": x}, t, ctx)["u"])[0, 0] != 0
        where = changed.nonzero()
        return int(where.max() - where.min())

    one, two, three = reach((4,)), reach((4, 4)), reach((4, 4, 4))
    assert one < two < three < 400 and three > 1.7 * two > 2.5 * one


def test_a_wider_kernel_is_used_at_the_bottom_only():
    net = UNet(2, 1, 1, (8, 8), bottom_kernel=7)
    sizes = {name: p.shape[1] for name, p in net.named_parameters() if name.endswith("conv1.weight")}
    assert {sizes["down.0.0.conv1.weight"], sizes["up.1.0.conv1.weight"]} == {3}
    assert {sizes["down.1.0.conv1.weight"], sizes["middle.0.conv1.weight"]} == {7}


@pytest.mark.parametrize("wrong", [{"condition": "film"}, {"skips": "none"}, {"blocks": 0}, {"kernel": 4}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(UsageError):
        UNet(2, 1, **wrong)


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_it_compiles_to_the_same_function(backend):
    net = UNet(2, 1, 1, (8, 8), patch=2, embed=16)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    x, t = {"u": torch.randn(4, 1, 16)}, torch.rand(4)
    ctx = Context.of(4, cond={"previous": (torch.randn(4, 16), torch.ones(4, dtype=torch.bool))})
    plain = net(x, t, ctx)["u"]
    gradient = torch.autograd.grad(plain.square().sum(), net.enter.weight)[0]
    net.compile(fullgraph=True, backend=backend)
    out = net(x, t, ctx)["u"]
    torch.testing.assert_close(out, plain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.autograd.grad(out.square().sum(), net.enter.weight)[0], gradient,
                               rtol=1e-3, atol=1e-3)
