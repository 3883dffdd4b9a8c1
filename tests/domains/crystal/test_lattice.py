"""Lattice charts: round trips over cells of every shape and of the staged sets, closed forms, rotations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from scidiff.core.errors import ScidiffError, UsageError
from scidiff.domains.crystal.lattice import CHARTS, chart, from_parameters, parameters, upright


def random_cells(count, seed=0):
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.exp(1.8 + 0.4 * torch.randn(count, 3, generator=draw, dtype=torch.float64))
    angles = 90 + 29 * (2 * torch.rand(count, 3, generator=draw, dtype=torch.float64) - 1)
    flat = angles[:, 2] > angles[:, :2].sum(1) - 5  # three angles make a cell only where none exceeds the other two
    angles[flat, 2] = angles[flat, :2].sum(1) - 20
    return from_parameters(lengths, angles.clamp(61, 119))


def rotations(count, seed=1):
    draw = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(count, 3, 3, generator=draw, dtype=torch.float64))[0]


@pytest.mark.parametrize("name", CHARTS)
def test_round_trip_of_random_cells_is_exact_and_forgets_rotations(name):
    cells = random_cells(500)
    made = chart(name)
    x = made.encode(cells)
    assert x.shape == (500, made.dim) and made.name == name
    torch.testing.assert_close(made.decode(x), cells, rtol=1e-9, atol=1e-9)
    turned = cells @ rotations(500)  # reflections too
    torch.testing.assert_close(made.encode(turned), x, rtol=1e-8, atol=1e-8)
    single = made.decode(made.encode(cells.float()))
    assert single.dtype == torch.float32
    assert float((single - cells).abs().max()) < 1e-4  # of cells of up to 20 Angstrom, in float32


@pytest.mark.parametrize("name", CHARTS)
def test_round_trip_over_all_cells_of_the_staged_sets(name, data):
    made, worst, count = chart(name), 0.0, 0
    for file in sorted((data / "crystal").glob("*.npz")):
        with np.load(file) as stored:
            lengths, angles = (torch.from_numpy(stored[k].astype(np.float64)) for k in ("lengths", "angles"))
        back = parameters(made.decode(made.encode(from_parameters(lengths, angles))))
        worst = max(worst, float(((back[0] - lengths) / lengths).abs().max()), float((back[1] - angles).abs().max()))
        count += len(lengths)
    assert count > 40_000 and worst < 1e-5


def test_parameters_follow_the_convention():
    lengths, angles = torch.tensor([[3.0, 4.0, 5.0]]).double(), torch.tensor([[70.0, 80.0, 100.0]]).double()
    cell = from_parameters(lengths, angles)[0]
    assert cell[2].tolist() == [0.0, 0.0, 5.0] and float(cell[0, 1]) == 0.0 and float(torch.linalg.det(cell)) > 0
    cosine = (cell @ cell.T) / torch.outer(lengths[0], lengths[0])
    torch.testing.assert_close(torch.rad2deg(torch.arccos(cosine[[1, 0, 0], [2, 2, 1]])), angles[0])
    found = parameters(cell.unsqueeze(0))
    torch.testing.assert_close(found[0], lengths)
    torch.testing.assert_close(found[1], angles)


def test_angles_near_zero_and_180_are_exact():
    tiny = 1e-6
    cell = torch.tensor([[[1.0, 0, 0], [math.cos(tiny), math.sin(tiny), 0], [0, 0, 1.0]]], dtype=torch.float64)
    assert float(parameters(cell)[1][0, 2]) == pytest.approx(math.degrees(tiny), rel=1e-6)


def test_polar6_keeps_the_volume_apart():
    cells = random_cells(64)
    x = chart("polar6").encode(cells)
    torch.testing.assert_close(3 * x[:, 5], torch.linalg.det(cells).abs().log())
    larger = chart("polar6").encode(1.3 * cells)
    torch.testing.assert_close(larger[:, :5], x[:, :5], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(larger[:, 5], x[:, 5] + math.log(1.3))
    gram = cells @ cells.transpose(1, 2)  # |dev S|^2 is the sum of squares of the first five
    half_log = 0.5 * torch.linalg.eigvalsh(gram).log()
    torch.testing.assert_close(x[:, :5].square().sum(1), (half_log - half_log.mean(1, keepdim=True)).square().sum(1))


def test_polar6_of_a_cube_has_no_shape_and_ltri6_is_the_cholesky_factor():
    cube = 4.2 * torch.eye(3, dtype=torch.float64).unsqueeze(0)
    expected = torch.tensor([[0, 0, 0, 0, 0, math.log(4.2)]], dtype=torch.float64)
    torch.testing.assert_close(chart("polar6").encode(cube), expected)
    cells = random_cells(8)
    x = chart("ltri6").encode(cells)
    torch.testing.assert_close(x[:, :3].sum(1), torch.linalg.det(cells).log())
    torch.testing.assert_close(x[:, 0].exp(), parameters(cells)[0][:, 0])


def test_any_numbers_decode_to_a_cell_and_gradients_pass():
    draw = torch.Generator().manual_seed(3)
    for name in ("lengths_angles", "polar6", "ltri6"):
        x = torch.randn(200, 6, generator=draw).requires_grad_()
        cells = chart(name).decode(x)
        assert torch.isfinite(cells).all()
        cells.det().clamp(max=10).sum().backward()
        assert torch.isfinite(x.grad).all()


def test_what_is_no_cell_is_refused():
    for wrong in (torch.zeros(1, 3, 3), torch.full((1, 3, 3), torch.nan)):
        with pytest.raises(ScidiffError, match="no coordinates"):
            chart("polar6").encode(wrong)
    steep = from_parameters(torch.ones(1, 3), torch.tensor([[90.0, 90.0, 130.0]]))
    with pytest.raises(UsageError, match=r"between 59\.9 and 120\.1"):
        chart("lengths_angles").encode(steep)
    with pytest.raises(UsageError, match="Did you mean 'polar6'"):
        chart("polar")
    torch.testing.assert_close(upright(steep), steep)
