"""Crystals to states and back: the same crystal up to a rotation, standards, ASE, soundness by brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

pytest.importorskip("pymatgen.core", reason="pymatgen is not installed")

from scidiff.core.errors import UsageError
from scidiff.domains.crystal import codec, soundness, validity
from scidiff.domains.crystal.codec import CrystalCodec, build
from scidiff.domains.crystal.lattice import CHARTS
from scidiff.domains.crystal.textbook import crystals


def distances(structure):
    """Sorted distances of all pairs over 125 images: what no rotation, shift or numbering changes."""
    shifts = np.array(list(itertools.product((-2, -1, 0, 1, 2), repeat=3)))
    f = structure.frac_coords
    d = (f[:, None, None] - f[None, :, None] + shifts) @ structure.lattice.matrix
    return np.sort(np.linalg.norm(d, axis=-1).ravel())


@pytest.fixture(scope="module")
def known():
    return crystals()


@pytest.mark.parametrize("chart", CHARTS)
@pytest.mark.parametrize("scaled", [False, True])
def test_decoding_gives_the_same_crystal(chart, scaled, known):
    names = tuple(sorted({s for c in known for s in codec.symbols(c)}))
    made = CrystalCodec(names, 8, chart, codec.standard(known, chart) if scaled else None)
    state, sizes = made.encode(known)
    assert state["types"].dtype == torch.int64 and state["frac"].shape == (12, 8, 3)
    assert state["lattice"].shape == (12, 9 if chart == "matrix9" else 6)
    assert float(state["frac"].min()) >= 0 and float(state["frac"].max()) < 1
    real = torch.arange(8) < sizes[:, None]
    assert not state["types"][~real].any() and not state["frac"][~real].any()
    for a, b in zip(known, made.decode(state, sizes), strict=True):
        assert codec.symbols(a) == codec.symbols(b)
        np.testing.assert_allclose(distances(a), distances(b), atol=2e-5)
    if scaled and chart != "matrix9":
        torch.testing.assert_close(state["lattice"].mean(0), torch.zeros(6), atol=1e-5, rtol=0)


def test_a_left_handed_cell_is_the_same_crystal_and_no_mirror_image():
    chiral = build([34, 34, 34], [(0.22, 0, 0), (0, 0.22, 1 / 3), (0.78, 0.78, 2 / 3)],
                   [[4.4, 0, 0], [-2.2, 3.81, 0], [0, 0, 4.95]])

    def nearest(s):
        """The two shortest ways from the first atom to others, in space."""
        shifts = np.array(list(itertools.product((-1, 0, 1), repeat=3)))
        f = s.frac_coords
        d = ((f[None, :, None] - f[:, None, None] + shifts) @ s.lattice.matrix)[0].reshape(-1, 3)
        return d[np.lexsort((*d.round(6).T, np.linalg.norm(d, axis=1).round(6)))][1:3]

    swapped = build([34, 34, 34], chiral.frac_coords[:, [1, 0, 2]], chiral.lattice.matrix[[1, 0, 2]])
    assert np.linalg.det(swapped.lattice.matrix) < 0
    np.testing.assert_allclose(nearest(swapped), nearest(chiral), atol=1e-9)
    frac, cells = codec.right_handed(swapped.frac_coords[None], swapped.lattice.matrix[None])
    assert np.linalg.det(cells[0]) > 0
    np.testing.assert_allclose(frac[0] @ cells[0], swapped.cart_coords, atol=1e-12)


def test_matrix9_is_scaled_by_one_number_as_published(data):
    from scidiff.domains.crystal.data import read

    found = read(data / "crystal" / "perov_5_val.npz", limit=400).objects
    standard = codec.standard(found, "matrix9")
    assert standard["mean"] == [0.0] * 9 and len(set(standard["std"])) == 1
    assert standard["std"][0] == pytest.approx(1.9612, rel=0.02)  # CrysBFN's figure for the whole set


def test_what_cannot_be_encoded_is_named(known):
    from pymatgen.core import Lattice, Structure

    made = CrystalCodec(("Na", "Cl"), 2)
    shared = Structure(Lattice.cubic(4), [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]])
    for structure, why in ((known[1], "the element Mg is not among Na, Cl"), (known[6], "4 atoms, more than 2"),
                           (shared, "partial occupancy"), ("NaCl", "it is a str"),
                           (build([11], [(0, 0, np.nan)], 4 * np.eye(3)), "not finite"),
                           (build([11], [(0, 0, 0)], np.zeros((3, 3))), "no volume")):
        assert why in made.supports(structure)
        with pytest.raises(UsageError, match="Crystal 2 cannot be encoded"):
            made.encode([known[0], structure])
    with pytest.raises(UsageError, match="a mean and a std of 6 numbers"):
        CrystalCodec(("Na",), 2, "polar6", {"mean": [0.0], "std": [1.0]})
    with pytest.raises(UsageError, match="positive std"):
        CrystalCodec(("Na",), 2, "polar6", {"mean": [0.0] * 6, "std": [0.0] * 6})


def test_ase_objects(known):
    pytest.importorskip("ase", reason="ase is not installed")
    atoms = codec.to_ase(known[7])
    assert atoms.get_chemical_formula() == "O4Ti2" and atoms.pbc.all() and atoms.info["id"] == "rutile"
    assert atoms.get_volume() == pytest.approx(known[7].volume)
    back = codec.from_ase(atoms)
    np.testing.assert_allclose(back.frac_coords, known[7].frac_coords, atol=1e-12)
    assert codec.identity(back) == "rutile"
    atoms.set_cell(np.zeros((3, 3)))
    with pytest.raises(UsageError, match="no cell"):
        codec.from_ase(atoms)


def test_densities_of_the_textbook(known):
    literature = {"rock-salt": 2.16, "periclase": 3.58, "diamond": 3.515, "rutile": 4.25, "magnesium": 1.738}
    for structure in known:
        if codec.identity(structure) in literature:
            assert codec.density(structure) == pytest.approx(literature[codec.identity(structure)], rel=0.005)
    assert [codec.formula(s) for s in known[:3]] == ["NaCl", "MgO", "CaF2"]


def test_the_closest_pair_is_that_of_brute_force():
    draw = np.random.default_rng(0)
    shifts = np.array(list(itertools.product(range(-3, 4), repeat=3)))
    for _ in range(20):
        matrix = 3 * np.eye(3) + draw.normal(size=(3, 3))
        frac = draw.random((5, 3))
        d = np.linalg.norm((frac[:, None, None] - frac[None, :, None] + shifts) @ matrix, axis=-1).min(-1)
        d[np.diag_indices(5)] = np.inf
        i, j, found = soundness.closest(frac, matrix)
        assert found == pytest.approx(d.min(), abs=1e-9) and d[i, j] == pytest.approx(found, abs=1e-9) and i < j


@pytest.mark.parametrize("frac, matrix, why", [
    ([(0, 0, 0), (0.5, 0.5, 0.5)], 4 * np.eye(3), ""),
    ([(0, 0, 0)], 0.47 * np.eye(3), ""),  # the image of an atom itself does not count
    ([(0, 0, 0), (0, 0, 0.124)], 4 * np.eye(3), "Na1 and Na2 are 0.50 A apart"),
    ([(0, 0, 0), (0, 0, 0.126)], 4 * np.eye(3), ""),
    ([(0, 0, 0.02), (0, 0, 0.98)], 4 * np.eye(3), "0.16 A apart"),
    ([(0, 0, 0)], 0.46 * np.eye(3), "volume of 0.0973 A^3 (less than 0.1 A^3)"),
    ([(0, 0, 0)], np.full((3, 3), np.nan), "the cell is not finite"),
    ([(0, 0, np.inf)], 4 * np.eye(3), "a coordinate is not finite"),
    ([(0, 0, 0)], np.diag([4.0, 4.0, 0.0]), "an edge of the cell is 0 A long"),
    ([(0, 0, 0)], np.diag([4.0, 4.0, 2e4]), "an edge of the cell is 2e+04 A long"),
    ([(0, 0, 0)], [[900, 0, 0], [900, 9e-4, 0], [0, 0, 900]], "the angles of the cell are impossible"),
])
def test_verdicts_with_reasons(frac, matrix, why):
    found = validity.structural([build([11] * len(frac), frac, np.asarray(matrix, dtype=float))])[0]
    assert found.valid is not bool(why)
    assert why in found.reason
