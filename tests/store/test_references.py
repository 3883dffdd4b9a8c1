"""What a run cites follows from its config."""

from __future__ import annotations

import re

import pytest

from scidiff.core.errors import UsageError
from scidiff.store import references


def keys_of(text: str) -> list[str]:
    return re.findall(r"^@\w+\{(\w+),", text, flags=re.MULTILINE)


def test_every_entry_is_wellformed() -> None:
    entries = references._entries()
    for key, entry in entries.items():
        text = entry["bibtex"]
        assert keys_of(text) == [key] and entry["when"]
        assert text.count("{") == text.count("}")
        for field in ("title", "author", "year"):
            assert f" {field} = {{" in text
    titles = [re.search(r"title = \{(.*)\}", entry["bibtex"]).group(1).lower() for entry in entries.values()]
    assert len(titles) == len(set(titles))


def test_a_molecule_flow_cites_its_methods_and_data() -> None:
    config = {
        "experiment": "qm9_flow",
        "domain": {"name": "molecule"},
        "data": {"name": "qm9"},
        "backbone": {"_target_": "scidiff.nn.pairformer.PairFormer"},
        "process": {"components": {"atoms": {"_target_": "scidiff.core.path.categorical.MarginalPath"}}},
        "objective": {"self_conditioning": 0.5},
    }
    found = keys_of(references.collect(config))
    assert {"scidiff", "defog", "digress", "qm9", "rdkit", "grit", "analog_bits"} <= set(found)
    assert not {"edm", "zinc", "gdss", "cfg", "immiscible"} & set(found)
    assert len(found) == len(set(found))


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"process": {"components": {"x": {"_target_": "scidiff.core.path.gaussian.VP"}}}}, "score_sde"),
        ({"solver": {"name": "multistep", "variant": "dpmpp"}}, "dpm_solver_pp"),
        ({"solver": {"_target_": "scidiff.core.solvers.FirstHitting"}}, "first_hitting"),
        ({"experiment": "qm9_gdss"}, "gdss"),
        ({"objective": {"coupling": {"_target_": "scidiff.core.coupling.Immiscible"}}}, "immiscible"),
        ({"references": ["bfn"]}, "bfn"),
        ({"data": {"name": "zinc250k"}}, "zinc"),
    ],
)
def test_single_settings(config: dict, key: str) -> None:
    assert key in keys_of(references.collect(config))


def test_nothing_but_itself_and_unknown_keys() -> None:
    assert keys_of(references.collect({"objective": {"self_conditioning": False}})) == ["scidiff"]
    assert keys_of(references.collect({}, extra=["fcd"])) == ["scidiff", "fcd"]
    with pytest.raises(UsageError, match="'defog'"):
        references.collect({"references": ["defogg"]})


def test_a_reconstruction_cites_its_solver_projector_and_data() -> None:
    config = {
        "domain": {"name": "medical"},
        "data": {"name": "ct_body"},
        "operator": {"_target_": "scidiff.domains.medical.operators.ct.ParallelCT"},
        "posterior": {"method": {"_target_": "scidiff.core.posterior.consistency.DDS"}},
    }
    found = set(keys_of(references.collect(config)))
    assert {"dds", "joseph", "lidc_idri", "tcia", "totalsegmentator"} <= found
    assert not {"dps", "diffpir", "ddnm", "lesjak_longitudinal", "soft_tissue_sarcoma"} & found
