"""The domain object: sizes by (seed, id), fitting, pictures, imports without rdkit."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from scidiff.core.errors import UsageError
from scidiff.domains.base import Request
from scidiff.domains.molecule import SIZES, MoleculeDomain

COUNTS = (0, 1, 0, 3, 4, 0, 2)


def _domain():
    return MoleculeDomain(["C", "N", "O-"], 6, COUNTS)


def test_import_needs_no_rdkit():
    code = (
        "import sys; sys.modules['rdkit'] = None\n"
        "import scidiff.domains.molecule as m\n"
        "from scidiff.domains.molecule import codec, data, chemistry, metrics, nspdk, fingerprints\n"
        "from scidiff.domains.molecule import reference, view, chemnet\n"
        "assert 'matplotlib' not in sys.modules\n"
        "m.MoleculeDomain(['C'], 3).components()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_sizes_depend_on_seed_and_id_alone():
    domain = _domain()
    ids = torch.arange(200)
    sizes = domain.template(Request(ids, 5)).sizes
    shuffled = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    assert torch.equal(domain.template(Request(ids[shuffled], 5)).sizes, sizes[shuffled])
    assert torch.equal(domain.template(Request(ids[150:], 5)).sizes, sizes[150:])
    assert not torch.equal(domain.template(Request(ids, 6)).sizes, sizes)


def test_sizes_follow_the_histogram():
    sizes = _domain().template(Request(torch.arange(20000), 0)).sizes
    share = torch.bincount(sizes, minlength=7).double() / 20000
    assert share.tolist() == pytest.approx([s / 10 for s in COUNTS], abs=0.015)
    assert not share[[0, 2, 5]].any()


@pytest.mark.parametrize(("wanted", "allowed"), [("3-4", {3, 4}), (6, {6}), ("5", {5}), ([2, 3], {3})])
def test_requested_sizes(wanted, allowed):
    domain, ids = _domain(), torch.arange(300)
    assert set(domain.template(Request(ids, 0, {"num_atoms": wanted})).sizes.tolist()) == allowed
    assert set(domain.template(Request(ids, 0, {}, {"sizes": wanted})).sizes.tolist()) == allowed


def test_impossible_requests():
    for wanted in ("0", "7", "4-2", "many", -1):
        with pytest.raises(UsageError, match="heavy atoms within 1-6"):
            SIZES.within(wanted, 6)
    with pytest.raises(UsageError, match=r"'num_atom'.*'num_atoms'"):
        _domain().template(Request(torch.arange(2), 0, {}, {"num_atom": 3}))
    with pytest.raises(UsageError, match=r"no option 'colum'.*'column'"):
        _domain().read("x.csv", colum="smiles")
    with pytest.raises(UsageError, match="no atom types"):
        _ = MoleculeDomain().codec


def test_fit_and_options_rebuild_the_domain():
    chem = pytest.importorskip("rdkit.Chem", reason="rdkit is not installed")
    molecules = [chem.MolFromSmiles(s) for s in ("CCO", "CC=O", "C[NH3+]", "C")]
    fitted, statistics = MoleculeDomain().fit(molecules)
    assert fitted.tokens == ("C", "O", "N+") and fitted.sizes == (0, 1, 1, 2)
    assert sum(statistics["marginals"]["atoms"]) == pytest.approx(1.0)
    assert statistics["marginals"]["bonds"] == pytest.approx([2 / 7, 4 / 7, 1 / 7, 0.0])
    again = MoleculeDomain(**fitted.options())
    state, ctx = again.encode(molecules)
    assert ctx.n_max == 3 and state["bonds"].shape == (4, 3, 3)
    assert [m.GetNumAtoms() for m in again.decode(state, ctx)] == [3, 3, 2, 1]
    space, shape = again.components()["bonds"]
    assert space.symmetric and shape == ("N", "N")


def test_pictures_name_the_reason():
    chem = pytest.importorskip("rdkit.Chem", reason="rdkit is not installed")
    from scidiff.domains.molecule import chemistry, view

    smiles = ["CCO", "c1ccccc1", "C[N](C)(C)C", "C.C"]
    molecules = [chemistry.finished(chem.MolFromSmiles(s, sanitize=False)) for s in smiles]
    domain = MoleculeDomain()
    verdicts = domain.check(molecules)
    pictures = domain.view(molecules, verdicts, ["s0000", "s0001", "s0002", "s0003"])
    assert len(pictures) == 2 and all(str(p).startswith("<svg") for p in pictures.values())
    assert view._legend("s0002", verdicts[2], 1) == "s0002: valence 4 of N2 exceeds 3"
    assert view._legend("s0003", verdicts[3], 2) == "s0003: 2 parts"


def test_properties_by_name():
    chem = pytest.importorskip("rdkit.Chem", reason="rdkit is not installed")
    molecules = [chem.MolFromSmiles(s) for s in ("CCO", "C")]
    found = MoleculeDomain().properties(molecules, ["mw", "heavy_atoms"])
    assert found["mw"].tolist() == pytest.approx([46.069, 16.043], abs=1e-3)
    assert found["heavy_atoms"].tolist() == [3.0, 1.0]
    with pytest.raises(UsageError, match="no property 'logD'"):
        MoleculeDomain().properties(molecules, ["logD"])
