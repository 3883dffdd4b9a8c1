"""The dilated residual network: shift by a single point, the distance it sees, its size."""

import torch

from scidiff.core.spec import Context
from scidiff.nn.dilated import DilatedResNet


def moved(**options) -> DilatedResNet:
    torch.manual_seed(0)
    net = DilatedResNet(1, 1, **{"width": 6, "blocks": 1, **options}).double()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return net


def test_it_moves_with_its_input_by_any_number_of_points():
    net, x, t, ctx = moved(), torch.randn(2, 1, 33).double(), torch.rand(2).double(), Context.of(2)
    out = net({"u": x}, t, ctx)["u"]
    for by in (1, 5, -16):
        torch.testing.assert_close(net({"u": x.roll(by, -1)}, t, ctx)["u"], out.roll(by, -1), rtol=0, atol=1e-10)


def test_a_block_sees_as_far_as_its_rates_add_up():
    rates = (1, 2, 4, 8, 4, 2, 1)
    net, ctx = moved(norm="none", rates=rates), Context.of(1)
    x, t = torch.randn(1, 1, 101).double(), torch.zeros(1).double()
    bumped = x.clone()
    bumped[..., 50] += 1.0
    seen = (net({"u": bumped}, t, ctx)["u"] - net({"u": x}, t, ctx)["u"])[0, 0].nonzero().flatten()
    reach = sum(rates) + 2  # and one each for the first and the last convolution
    assert seen.tolist() == list(range(50 - reach, 50 + reach + 1))


def test_its_size_is_that_of_its_convolutions():
    with torch.device("meta"):
        net = DilatedResNet(2, 1, width=128, blocks=4)
    assert sum(p.numel() for b in net.blocks for p in b.parameters()) == 28 * (3 * 128 * 128 + 128)
