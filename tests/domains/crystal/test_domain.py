"""The crystal domain as a whole: conformance, options, what may be asked of samples, elements, configs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from scidiff.core.denoiser import Denoiser
from scidiff.core.errors import UsageError
from scidiff.core.path.base import Prediction
from scidiff.core.spec import Component, Context, StateSpec
from scidiff.domains.base import Request
from scidiff.domains.crystal import CrystalDomain
from scidiff.domains.crystal.guidance import AllowedElements
from scidiff.domains.crystal.lattice import chart
from scidiff.domains.crystal.request import cells, matrix, sites

ELEMENTS = ("O", "Na", "Mg", "Cl", "Ti", "Sr")
SIZES = (0, 0, 6, 0, 3, 3, 0, 0, 1)
DOMAIN = CrystalDomain(ELEMENTS, 8, SIZES)
IDS = torch.arange(12)


def asked(domain=DOMAIN, ids=IDS, seed=0, **options):
    return domain.template(Request(ids, seed, options=options))


def test_import_needs_no_library_of_crystals():
    code = (
        "import sys\n"
        "for name in ('pymatgen', 'ase', 'spglib', 'smact'): sys.modules[name] = None\n"
        "import scidiff.domains.crystal as c\n"
        "from scidiff.domains.crystal import codec, data, files, lattice, request, soundness, view\n"
        "assert 'matplotlib' not in sys.modules\n"
        "c.CrystalDomain(['Na', 'Cl'], 4).components()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_it_conforms():
    pytest.importorskip("pymatgen.core", reason="pymatgen is not installed")
    from scidiff.testing import check_domain

    fitted = check_domain(CrystalDomain)
    assert fitted.n_max == 6 and sum(fitted.sizes) == 12 and fitted.elements[0] == "C"


@pytest.mark.parametrize("name", ["matrix9", "lengths_angles", "ltri6"])
def test_options_make_the_domain_again(name):
    pytest.importorskip("pymatgen.core", reason="pymatgen is not installed")
    from scidiff.domains.crystal.textbook import crystals

    known = crystals()[:4]
    fitted, statistics = CrystalDomain(chart=name, task="csp").fit(known)
    again = CrystalDomain(**json.loads(json.dumps(fitted.options())))
    assert again.options() == fitted.options() and again.task == "csp" and again.chart == name
    assert fitted.elements == ("O", "F", "Na", "Mg", "Cl", "Ca", "Cs")
    assert statistics["sizes"] == [0, 0, 3, 1] and sum(statistics["marginals"]["types"]) == pytest.approx(1)
    assert statistics["marginals"]["types"][1] == pytest.approx(2 / 9)
    state, ctx = again.encode(known)
    assert state["lattice"].shape == (4, chart(name).dim) and ctx.n_max == 3
    assert CrystalDomain().fit([known[0], known[0]])[0].components()["types"][0].classes == 2


def test_sizes_follow_the_histogram_by_seed_and_id_alone():
    ids = torch.arange(4000)
    sizes = asked(ids=ids).sizes
    share = torch.bincount(sizes, minlength=9).double() / 4000
    assert share.tolist() == pytest.approx([n / 13 for n in SIZES], abs=0.03)
    assert asked(ids=ids[[7, 3999]]).sizes.tolist() == [int(sizes[7]), int(sizes[3999])]
    assert set(asked(num_atoms="4-5").sizes.tolist()) <= {4, 5} and set(asked(sizes=[3, 3]).sizes.tolist()) == {3}


def test_a_composition_is_clamped():
    ctx = asked(formula="SrTiO3")
    assert ctx.sizes.tolist() == [5] * 12
    x0, where = ctx.known["types"]
    assert where.sum(1).tolist() == [5] * 12 and where[:, :5].all()
    assert [ELEMENTS[k] for k in x0[0, :5].tolist()] == ["O", "O", "O", "Ti", "Sr"]
    assert set(ctx.known) == {"types"}
    taken = ctx.take(torch.tensor([3, 5]))
    assert taken.known["types"][0].shape == (2, 8)


def test_formula_units_are_enumerated_one_after_the_other():
    assert asked(formula="NaCl", z="1,2,4").sizes.tolist() == [2, 4, 8] * 4
    assert asked(formula="NaCl,MgO", z=[1, 4]).sizes.tolist() == [2, 8, 2, 8] * 3
    ctx = asked(formula="NaCl,MgO", z=[1, 4])
    names = ["".join(sorted({ELEMENTS[k] for k in row[:n].tolist()})) for row, n in
             zip(ctx.known["types"][0], ctx.sizes.tolist(), strict=True)]
    assert names == ["ClNa", "ClNa", "MgO", "MgO"] * 3
    assert torch.equal(asked(formula="NaCl", z="1,2,4", ids=IDS[5:]).sizes,
                       asked(formula="NaCl", z="1,2,4").sizes[5:])


def test_unknown_multiples_are_drawn_as_often_as_cells_of_their_size_occur():
    ids = torch.arange(4000)
    sizes = asked(formula="NaCl", ids=ids).sizes  # 2, 4, 8 atoms occur 6, 3, 1 times; 6 never does
    share = torch.bincount(sizes, minlength=9).double() / 4000
    assert share.tolist() == pytest.approx([0, 0, 0.6, 0, 0.3, 0, 0, 0, 0.1], abs=0.03)
    assert asked(formula="NaCl", ids=ids[10:20]).sizes.tolist() == sizes[10:20].tolist()
    assert set(asked(formula="NaCl", num_atoms="6-8").sizes.tolist()) == {8}
    found, weights = cells("MgCl2", None, DOMAIN.codec, SIZES)  # 3 and 6 atoms never occur: as it is written
    assert [c.atoms for c in found] == [3] and weights == [1.0]


def test_a_fixed_cell_and_fixed_sites():
    domain = CrystalDomain(ELEMENTS, 8, SIZES, standard={"mean": [0.1] * 6, "std": [0.5] * 6})
    ctx = asked(domain, lattice="4,5,6,80,90,100", formula="SrTiO3", sites="Ti .5 .5 .5; O 0.5, 0.5, -0.25")
    x, where = ctx.known["lattice"]
    assert x.shape == (12, 6) and where.all()
    decoded = domain.codec.cells(x)
    torch.testing.assert_close(decoded[3].norm(dim=-1), torch.tensor([4.0, 5.0, 6.0]).double(), atol=1e-5, rtol=0)
    types, known = ctx.known["types"]
    assert [ELEMENTS[k] for k in types[0, :5].tolist()] == ["Ti", "O", "O", "O", "Sr"] and known[0].sum() == 5
    frac, held = ctx.known["frac"]
    assert frac[5, :2].tolist() == [[0.5, 0.5, 0.5], [0.5, 0.5, 0.75]] and held.sum((1, 2)).tolist() == [6] * 12
    free = asked(domain, sites=[["Na", 0, 0, 0], "Cl 0.5 0.5 0.5", ["O", 0, 0, 0.5]])
    assert int(free.sizes.min()) >= 3 and free.known["types"][1].sum(1).tolist() == [3] * 12
    assert matrix("4.2").tolist() == matrix([4.2, 4.2, 4.2]).tolist()
    torch.testing.assert_close(matrix("4.2"), 4.2 * torch.eye(3).double(), atol=1e-12, rtol=0)
    assert sites("Ti 0 0 0;") == [("Ti", (0.0, 0.0, 0.0))]


@pytest.mark.parametrize("options, why", [
    ({"formula": "XeF2"}, "knows no Xe (XeF2)"),
    ({"formula": "nacl"}, "begin with a capital letter"),
    ({"formula": "Sr2TiO4", "z": 2}, "14 atoms, and this model makes at most 8. Take z up to 1"),
    ({"formula": "Na9Cl"}, "Na9Cl has 10 atoms, and this model makes at most 8"),
    ({"formula": "NaCl", "z": 0}, "z=0 does not name formula units"),
    ({"formula": "SrTiO3", "num_atoms": 4}, "No multiple of SrTiO3 (5 atoms) has between 4 and 4 atoms"),
    ({"formula": "NaCl", "elements": "Na,Cl"}, "Give a formula or elements, not both"),
    ({"z": 2}, "no formula is given"),
    ({"elements": "Fe,Co"}, "knows none of Fe, Co"),
    ({"elements": "Oxygen"}, "'Oxygen' is no chemical element"),
    ({"num_atoms": 9}, "no number or range of atoms within 1-8"),
    ({"lattice": "4,5"}, "does not describe a cell"),
    ({"lattice": "4,4,4,10,10,100"}, "no cell has the angles 10, 10, 100"),
    ({"lattice": "-4"}, "an edge of its cell is -4 A long"),
    ({"lattice": "4,4,nan"}, "does not describe a cell"),
    ({"lattice": [[1, 0, 0], [2, 0, 0], [0, 0, 1]]}, "no volume"),
    ({"sites": "Ti 0 0"}, "is not an element and three fractional coordinates"),
    ({"sites": "Xx 0 0 0"}, "'Xx' is no chemical element"),
    ({"sites": "Fe 0 0 0"}, "knows no Fe"),
    ({"formula": "NaCl", "sites": "Mg 0 0 0"}, "fixed sites hold more Mg than"),
    ({"poscar": "yes"}, "poscar is true or false"),
    ({"formulas": "NaCl"}, "Did you mean 'formula'"),
])
def test_impossible_requests_are_one_sentence(options, why):
    with pytest.raises(UsageError) as caught:
        asked(**options)
    assert why in str(caught.value) and "\n" not in str(caught.value)


def test_tasks_refuse_what_they_were_not_trained_for():
    with pytest.raises(UsageError, match="structure of a given composition"):
        asked(CrystalDomain(ELEMENTS, 8, SIZES, task="csp"))
    with pytest.raises(UsageError, match="was not trained for a given one"):
        asked(CrystalDomain(ELEMENTS, 8, SIZES, task="dng"), formula="NaCl")
    for wrong, why in (({"task": "cps"}, "Did you mean 'csp'"), ({"chart": "polar"}, "Did you mean 'polar6'"),
                       ({"elements": ["Xx"]}, "no chemical element"), ({"elements": ["O", "O"]}, "without repetition"),
                       ({"n_max": 2, "sizes": [0, 0, 1, 1]}, "4 entries, but the largest size is 2")):
        with pytest.raises(UsageError, match=why):
            CrystalDomain(**wrong)
    with pytest.raises(UsageError, match="knows no elements yet"):
        _ = CrystalDomain().codec


class Fixed(Denoiser):
    def forward(self, state, t, ctx, run=None):
        return {"types": Prediction("logits", torch.zeros(*state["types"].shape, 6))}


def test_only_allowed_elements_are_predicted():
    ctx = asked(elements="O,Ti")
    state = {"types": torch.zeros(12, 8, dtype=torch.int64)}
    for batch, expected in ((ctx, [0.5, 0, 0, 0, 0.5, 0]), (asked(), [1 / 6] * 6)):
        logits = AllowedElements(Fixed())(state, 0.5, batch)["types"].value
        assert torch.softmax(logits, -1)[3, 2].tolist() == pytest.approx(expected)
    assert ctx.take(IDS[:4]).meta["allowed_types"].shape == (4, 6)


def test_the_network_is_told_what_the_paths_show():
    from scidiff.core.path import Linear, MarginalPath
    from scidiff.core.path.wrapped import WrappedPath

    parts = DOMAIN.components()
    paths = {"types": MarginalPath().fit([1 / 6] * 6), "frac": WrappedPath(0.005, 0.5), "lattice": Linear()}
    spec = StateSpec({n: Component(space, paths[n], shape) for n, (space, shape) in parts.items()})
    assert DOMAIN.backbone_options(spec) == {"classes": 6, "seen": 6, "extra": 0, "lattice_size": 6}
    assert isinstance(asked(), Context)


def test_properties_come_from_the_crystal_or_its_file():
    pytest.importorskip("pymatgen.core", reason="pymatgen is not installed")
    from scidiff.domains.crystal.textbook import crystals

    known = crystals()[:2]
    for structure, gap in zip(known, (8.5, 7.8), strict=True):
        structure.properties["gap"] = gap
    found = DOMAIN.properties(known, ["gap", "num_elements", "density"])
    assert found["gap"].tolist() == pytest.approx([8.5, 7.8]) and found["num_elements"].tolist() == [2.0, 2.0]
    assert found["density"][0] == pytest.approx(2.16, rel=0.01)
    with pytest.raises(UsageError, match="Did you mean 'density'"):
        DOMAIN.properties(known, ["densty"])
    ctx = DOMAIN.compositions(known, torch.tensor([4, 9]))
    assert ctx.sizes.tolist() == [2, 2] and ctx.ids.tolist() == [4, 9]
    assert ctx.known["types"][0][:, :2].tolist() == [[1, 3], [0, 2]]
    assert DOMAIN.preview(known, DOMAIN.check(known))["valid"] == 1.0
