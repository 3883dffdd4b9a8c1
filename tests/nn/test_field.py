"""What networks on grids share: zero start, equivariance, previous frames, scalars, gradients, precision, errors."""

import pytest
import torch

from scidiff.core.errors import UsageError
from scidiff.core.spec import Context
from scidiff.nn.dilated import DilatedResNet
from scidiff.nn.field import Conv, FieldNetwork, Up, fold, unfold
from scidiff.nn.fno import FNO
from scidiff.nn.unet import UNet

MAKERS = {
    "unet": lambda **k: UNet(2, 1, **{"widths": (8, 12), "embed": 16, **k}),
    "unet_published": lambda **k: UNet(2, 1, **{"widths": (8, 12), "skips": "all", "condition": "add", "embed": 16,
                                                **k}),
    "dilated": lambda **k: DilatedResNet(2, 1, **{"width": 8, "blocks": 2, "rates": (1, 2, 1), "embed": 16, **k}),
    "fno": lambda **k: FNO(2, 1, **{"width": 8, "modes": 3, "layers": 2, "embed": 16, **k}),
}
EVERY = pytest.mark.parametrize("name", MAKERS)
DIMS = pytest.mark.parametrize("dims", [1, 2])


def moved(net: FieldNetwork) -> FieldNetwork:
    """The network in float64, away from its zero start."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator))
    return net.double()


def batch(dims: int, n: int = 16, b: int = 3, dtype: torch.dtype = torch.float64, **cond) -> tuple:
    generator = torch.Generator().manual_seed(7)
    space = [n] * dims
    z = torch.randn(b, 1, *space, generator=generator).to(dtype)
    before = torch.randn(b, *space, generator=generator).to(dtype)
    ctx = Context.of(b, cond={"previous": (before, torch.ones(b, dtype=torch.bool)), **cond})
    return {"u": z}, torch.rand(b, generator=generator).to(dtype), ctx


def shifted(ctx: Context, by: tuple[int, ...], axes: tuple[int, ...]) -> Context:
    value, present = ctx.cond["previous"]
    return Context.of(ctx.batch, cond={"previous": (value.roll(by, [a - 1 for a in axes]), present)})


@EVERY
@DIMS
@pytest.mark.parametrize("patch", [1, 2])
def test_it_starts_at_zero_and_keeps_the_shape(name, dims, patch):
    net = MAKERS[name](dims=dims, patch=patch)
    x, t, ctx = batch(dims, dtype=torch.float32)
    out = net(x, t, ctx)["u"]
    assert out.shape == x["u"].shape and not out.any()


@EVERY
@DIMS
@pytest.mark.parametrize("patch", [1, 2])
def test_it_moves_with_its_periodic_input(name, dims, patch):
    net = moved(MAKERS[name](dims=dims, patch=patch))
    x, t, ctx = batch(dims)
    axes, by = tuple(range(2, 2 + dims)), (net.multiple, -3 * net.multiple)[:dims]
    out = net(x, t, ctx)["u"]
    other = net({"u": x["u"].roll(by, axes)}, t, shifted(ctx, by, axes))["u"]
    assert out.std() > 0.01
    torch.testing.assert_close(other, out.roll(by, axes), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["unet", "unet_published", "dilated"])
def test_zero_padding_sees_no_wrap(name):
    """With a periodic ring the first point sees the last one at once; with zeros only through the whole width."""
    options = {"norm": "none", "padding": "zero"}
    net = moved(MAKERS[name](**options))
    ring = moved(MAKERS[name](norm="none"))
    x, t, ctx = batch(1, n=64)
    other = {"u": x["u"].clone()}
    other["u"][..., -1] += 1.0
    assert (net(x, t, ctx)["u"] - net(other, t, ctx)["u"])[..., 0].abs().max() == 0
    assert (ring(x, t, ctx)["u"] - ring(other, t, ctx)["u"])[..., 0].abs().max() > 1e-6


@EVERY
def test_previous_frames_reach_the_output_and_absent_ones_are_zero(name):
    net = moved(MAKERS[name]())
    x, t, ctx = batch(1)
    value, _ = ctx.cond["previous"]
    present = torch.tensor([True, False, False])
    some = net(x, t, Context.of(3, cond={"previous": (value, present)}))["u"]
    none = net(x, t, Context.of(3))["u"]
    zeros = net(x, t, Context.of(3, cond={"previous": (torch.zeros_like(value), torch.ones(3, dtype=torch.bool))}))["u"]
    changed = (some - none).abs().amax((1, 2)) > 1e-6
    assert changed.tolist() == [True, False, False]
    torch.testing.assert_close(none, zeros, rtol=0, atol=0)
    unknown = torch.where(present[:, None], value, torch.nan)  # what is absent is never read
    torch.testing.assert_close(net(x, t, Context.of(3, cond={"previous": (unknown, present)}))["u"], some,
                               rtol=0, atol=0)


@EVERY
def test_longer_history_enters_as_channels_in_order(name):
    narrow, (x, t, ctx) = MAKERS[name](), batch(1)
    kinds = {"unet": UNet, "unet_published": UNet, "dilated": DilatedResNet, "fno": FNO}
    net = moved(kinds[name](3, 1, **({"modes": 4} if name == "fno" else {})))
    value, present = ctx.cond["previous"]
    frames = torch.stack([value, value.flip(0)], 1)
    two, swapped = (Context.of(3, cond={"previous": (v, present)}) for v in (frames, frames.flip(1)))
    assert (net(x, t, two)["u"] - net(x, t, swapped)["u"]).abs().max() > 1e-6
    with pytest.raises(UsageError, match="made for 1 channels of previous frames on "):
        narrow(x, t, two)
    with pytest.raises(UsageError, match="made for 2 channels of previous frames on "):
        net(x, t, ctx)


@EVERY
def test_scalars_change_the_output_and_absent_ones_add_nothing(name):
    net = moved(MAKERS[name](conditions=("dt", "nu")))
    one = torch.ones(3, dtype=torch.bool)
    dt, nu = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 5.0, 6.0])
    x, t, ctx = batch(1)
    base = net(x, t, ctx)["u"]
    given = net(*batch(1, dt=(dt, one), nu=(nu, one)))["u"]
    other = net(*batch(1, dt=(dt, one), nu=(nu + torch.tensor([0.0, 0.5, 0.0]), one)))["u"]
    assert ((other - given).abs().amax((1, 2)) > 1e-6).tolist() == [False, True, False]
    absent = net(*batch(1, dt=(dt, ~one), nu=(nu, ~one)))["u"]
    torch.testing.assert_close(absent, base, rtol=0, atol=0)
    assert (given - base).abs().amax((1, 2)).min() > 1e-6
    assert (net(x, 1 - t, ctx)["u"] - base).abs().max() > 1e-6


@EVERY
def test_samples_do_not_see_each_other(name):
    net = moved(MAKERS[name]())
    x, t, ctx = batch(1)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(net({"u": x["u"][order]}, t[order], ctx.take(order))["u"], net(x, t, ctx)["u"][order],
                               rtol=0, atol=1e-12)


@EVERY
@DIMS
def test_gradients_reach_every_parameter(name, dims):
    net = moved(MAKERS[name](dims=dims, conditions=("nu",), self_conditioning=True, clocks=2))
    x, _, ctx = batch(dims, nu=(torch.rand(3), torch.ones(3, dtype=torch.bool)))
    net(x, torch.rand(3, 2).double(), ctx, {"u": x["u"] + 1})["u"].square().sum().backward()
    assert not [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()]


@EVERY
def test_float32_agrees_with_float64(name):
    net = moved(MAKERS[name]())
    x, t, ctx = batch(1)
    exact = net(x, t, ctx)["u"]
    assert exact.dtype == torch.float64
    rough = net.float()({"u": x["u"].float()}, t.float(), ctx)["u"]
    assert 0 < (rough - exact).abs().max() < 1e-4 * exact.abs().max()


@EVERY
def test_it_learns_the_derivative_of_the_previous_frame(name):
    torch.manual_seed(0)
    net = MAKERS[name]()
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    grid, one = torch.arange(16) * (2 * torch.pi / 16), torch.ones(32, dtype=torch.bool)
    losses = []
    for _ in range(60):
        phase = 2 * torch.pi * torch.rand(32, 1)
        ctx = Context.of(32, cond={"previous": (torch.sin(grid + phase), one)})
        out = net({"u": torch.zeros(32, 1, 16)}, torch.ones(32), ctx)["u"][:, 0]
        loss = (out - torch.cos(grid + phase)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(0.5, abs=1e-3) and losses[-1] < 0.02


@DIMS
@pytest.mark.parametrize("patch", [1, 2, 4])
def test_folding_keeps_neighbours_together_and_comes_back(dims, patch):
    x = torch.arange(2 * 3 * 8**dims, dtype=torch.float64).reshape(2, 3, *[8] * dims)
    folded = fold(x, patch)
    assert folded.shape == (2, *[8 // patch] * dims, 3 * patch**dims)
    corner = x[(slice(None), slice(None), *[slice(0, patch)] * dims)]
    assert set(folded[(slice(None), *[0] * dims)].flatten().tolist()) == set(corner.flatten().tolist())
    assert torch.equal(unfold(folded, patch), x)


@DIMS
@pytest.mark.parametrize("padding", ["periodic", "zero"])
@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(3, 1, 1), (5, 1, 1), (3, 2, 1), (3, 1, 4), (1, 1, 1)])
def test_convolutions_are_those_of_torch(dims, padding, kernel, stride, dilation):
    theirs = (torch.nn.Conv1d if dims == 1 else torch.nn.Conv2d)(
        3, 4, kernel, stride, dilation * (kernel // 2), dilation, dtype=torch.float64,
        padding_mode="circular" if padding == "periodic" else "zeros")
    ours = Conv(3, 4, dims, kernel, stride, dilation, padding).double()
    with torch.no_grad():
        ours.weight.copy_(theirs.weight.movedim(1, -1))
        ours.bias.copy_(theirs.bias)
    x = torch.randn(2, 3, *[8] * dims, dtype=torch.float64)
    torch.testing.assert_close(ours(x.movedim(1, -1)).movedim(-1, 1), theirs(x), rtol=0, atol=1e-12)


@DIMS
def test_going_up_is_the_transposed_convolution_of_torch(dims):
    theirs = (torch.nn.ConvTranspose1d if dims == 1 else torch.nn.ConvTranspose2d)(3, 4, 4, 2, 1, dtype=torch.float64)
    ours = Up(3, 4, dims, "zero").double()
    with torch.no_grad():
        ours.weight.copy_(theirs.weight.movedim(1, -1))
        ours.bias.copy_(theirs.bias)
    x = torch.randn(2, 3, *[6] * dims, dtype=torch.float64)
    torch.testing.assert_close(ours(x.movedim(1, -1)).movedim(-1, 1), theirs(x), rtol=0, atol=1e-12)


def test_wrong_grids_and_settings_are_refused_in_a_sentence():
    x, t, ctx = batch(1, n=18)
    with pytest.raises(UsageError, match="multiples of 8 points, not 18"):
        MAKERS["unet"](patch=4)(x, t, ctx)
    with pytest.raises(UsageError, match="2-D fields"):
        MAKERS["unet"](dims=2)(x, t, ctx)
    with pytest.raises(UsageError, match="reaches 32 points, more than the 18"):
        DilatedResNet(2, 1, rates=(32,))(x, t, ctx)
    for wrong in ({"padding": "mirror"}, {"norm": "batch"}, {"act": "tanh"}, {"dims": 4}, {"patch": 0}):
        with pytest.raises(UsageError):
            MAKERS["unet"](**wrong)
    with pytest.raises(UsageError, match="made for 2 channels; the field has 3"):
        MAKERS["fno"]()({"u": torch.zeros(3, 3, 16)}, t, ctx)
