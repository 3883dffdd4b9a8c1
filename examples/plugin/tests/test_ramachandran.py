"""The conformance kit of scidiff, and what only this domain can know."""

from __future__ import annotations

import math

import pytest
from scidiff_ramachandran import RamachandranDomain
from scidiff_ramachandran.basins import BASINS, REACH, Residue, draw, folded, nearest_basin
from scidiff_ramachandran.codec import decode, encode

from scidiff.core.errors import UsageError
from scidiff.core.path.wrapped import WrappedPath
from scidiff.testing import check_domain


def test_domain():
    paths = {"angles": WrappedPath(sigma_min=0.03, sigma_max=math.pi)}
    check_domain(RamachandranDomain(), draw(24, seed=1), paths=paths)


def test_weights_are_shares():
    for basins in BASINS.values():
        assert sum(basin.weight for basin in basins) == pytest.approx(1.0)


def test_draws_are_allowed():
    """Outside a two-dimensional normal's radius r lies exp(-r^2 / 2) of it."""
    outside = sum(nearest_basin(r)[1] > REACH for r in draw(20000, seed=0)) / 20000
    assert outside < math.exp(-REACH**2 / 2) * 1.2


def test_neighbours_across_the_seam():
    """179 and -179 degrees are 2 degrees apart, in the codec as in the judgement."""
    state = encode([Residue("glycine", 179.0, 0.0), Residue("glycine", -179.0, 0.0)])
    gap = RamachandranDomain().components()["angles"][0].log(*state["angles"])
    assert math.degrees(abs(float(gap[0]))) == pytest.approx(2.0, abs=1e-4)
    assert BASINS["glycine"][2].distance(-179.0, 179.0) < 0.1
    assert folded(180.0) == -180.0


def test_round_trip():
    objects = draw(100, seed=2)
    for before, after in zip(objects, decode(encode(objects)), strict=True):
        assert before.kind == after.kind
        assert after.phi == pytest.approx(before.phi, abs=1e-4)
        assert after.psi == pytest.approx(before.psi, abs=1e-4)


def test_verdict_says_why():
    good, bad = RamachandranDomain().check([Residue("proline", -62, -34), Residue("proline", 60, 45)])
    assert good.valid
    assert not bad.valid
    assert "phi 60, psi 45" in bad.reason


def test_bad_lines_are_listed(tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text("residue,phi_deg,psi_deg\nproline,-62,-34\nproline,left,-34\nwater,0,0\n")
    records = RamachandranDomain().read(file)
    assert len(records) == 1
    assert [r.where for r in records.rejected] == ["mine.csv:3", "mine.csv:4"]
    file.write_text("residue,phi\n")
    with pytest.raises(UsageError, match="phi_deg"):
        RamachandranDomain().read(file)


def test_data_against_themselves():
    domain = RamachandranDomain()
    reference = domain.reference("ramachandran_basins")
    test = domain.dataset({}, "generator", {}, "test").objects
    valid, occupancy = domain.metrics(test, domain.check(test), reference)
    assert valid.value > 0.99
    assert occupancy.value == 0.0
    assert occupancy.floor > 0.0
