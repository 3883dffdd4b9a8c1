"""The Fourier neural operator: the spectral convolution by its definition, gradients, resolutions, shifts."""

import math

import pytest
import torch

from scidiff.core.errors import UsageError
from scidiff.core.spec import Context
from scidiff.nn.fno import FNO, SpectralConv


def band_limited(n: int, waves: int, dims: int, channels: int) -> torch.Tensor:
    """The same trigonometric polynomial [1, *n, C] on any grid."""
    generator = torch.Generator().manual_seed(1)
    x = torch.arange(n, dtype=torch.float64) * (2 * math.pi / n)
    out = torch.zeros(1, *[n] * dims, channels, dtype=torch.float64)
    for k in range(waves + 1):
        for j in range(-waves, waves + 1) if dims == 2 else (0,):
            a, phase = torch.rand(2, channels, generator=generator, dtype=torch.float64)
            angle = k * x if dims == 1 else j * x[:, None] + k * x
            out += (a - 0.5) * torch.cos(angle[None, ..., None] + 2 * math.pi * phase)
    return out


def test_the_spectral_convolution_multiplies_each_wave():
    """R_k e^{ikx} c, written out: Re(R_k a e^{i(kx + p)}) for an input a cos(kx + p)."""
    conv = SpectralConv(2, 3, 1, 5).double()
    weight = torch.view_as_complex(conv.weight.detach())
    x = torch.arange(16, dtype=torch.float64) * (2 * math.pi / 16)
    for k in (1, 4):
        v = torch.stack([1.5 * torch.cos(k * x + 0.3), 0.7 * torch.cos(k * x - 1.1)], -1)[None]
        waves = torch.stack([1.5 * torch.exp(1j * (k * x + 0.3)), 0.7 * torch.exp(1j * (k * x - 1.1))], -1)
        torch.testing.assert_close(conv(v)[0], (waves @ weight[k]).real, rtol=0, atol=1e-12)
    assert conv(torch.cos(5 * x)[None, :, None].expand(1, 16, 2)).abs().max() < 1e-12


@pytest.mark.parametrize("dims", [1, 2])
def test_its_gradient_is_right(dims):
    torch.manual_seed(0)
    conv = SpectralConv(2, 2, dims, 2).double()
    x = torch.randn(2, *[6] * dims, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: torch.func.functional_call(conv, {"weight": w}, x), (x, conv.weight))


@pytest.mark.parametrize("dims", [1, 2])
def test_the_spectral_convolution_is_the_same_on_every_grid(dims):
    torch.manual_seed(0)
    conv = SpectralConv(3, 2, dims, 4).double()
    coarse, fine = (conv(band_limited(n, 5, dims, 3)) for n in (12, 36))
    torch.testing.assert_close(fine[(slice(None), *[slice(None, None, 3)] * dims)], coarse, rtol=0, atol=1e-12)
    assert coarse.std() > 0.1


def test_the_network_is_the_same_function_on_finer_grids():
    """Pointwise nonlinearities fill the spectrum, so agreement is not exact but falls off faster than any power."""
    torch.manual_seed(0)
    net = FNO(1, 1, width=8, modes=4, layers=3, embed=16).double()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.4 * torch.randn_like(p))

    def on(n: int) -> torch.Tensor:
        return net({"u": band_limited(n, 3, 1, 1).movedim(-1, 1)}, torch.zeros(1).double(), Context.of(1))["u"]

    exact = on(480)
    errors = [float((exact[..., :: 480 // n] - on(n)).abs().max().detach()) for n in (8, 16, 32)]
    assert exact.std() > 0.1 and errors[1] < errors[0] / 50 and errors[2] < errors[1] ** 2 and errors[2] < 1e-7


@pytest.mark.parametrize("dims", [1, 2])
def test_it_moves_with_its_input_by_any_number_of_points(dims):
    torch.manual_seed(0)
    net = FNO(1, 1, dims, width=6, modes=4, layers=2, embed=16).double()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.2 * torch.randn_like(p))
    x, t, ctx = torch.randn(2, 1, *[11] * dims, dtype=torch.float64), torch.rand(2).double(), Context.of(2)
    axes, by = tuple(range(2, 2 + dims)), (1, 4)[:dims]
    torch.testing.assert_close(net({"u": x.roll(by, axes)}, t, ctx)["u"], net({"u": x}, t, ctx)["u"].roll(by, axes),
                               rtol=0, atol=1e-10)


def test_more_modes_than_the_grid_has_are_refused():
    with pytest.raises(UsageError, match="needs 24 points along every axis; the field has 16"):
        FNO(1, 1, modes=12)({"u": torch.zeros(1, 1, 16)}, torch.zeros(1), Context.of(1))
    with pytest.raises(UsageError, match="periodic fields only"):
        FNO(1, 1, padding="zero")
