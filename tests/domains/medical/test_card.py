"""Model cards: missing fields are named, cards of runs fill themselves, JSON and text say the same."""

from __future__ import annotations

import json

import pytest

from scidiff.core.errors import ScidiffError, UsageError
from scidiff.domains.medical.card import NOT_CLINICAL, PRIOR, RECONSTRUCTION, SECTIONS, Card, merged, of_run

RUN = {
    "environment": {"versions": {"scidiff": "0.1", "torch": "2.13"}, "git": "abc", "device": "cpu", "threads": 2,
                    "cores": 4, "processor": "x86_64", "seed": 7},
    "command": "scidiff reconstruct a.nii.gz", "settings": {"steps": 50}, "seconds": 61.4,
    "operator": {"name": "ParallelCT", "views": 20}, "noise": "Poisson, 1e5 photons", "measurement": [32, 1, 20, 182],
    "simulated": True, "posterior": "DDS",
    "prior": {"name": "ct_body_128", "sha256": "f" * 64, "trained_on": "ct_body, 3 subjects", "licence": "CC BY",
              "independence": "No test subject was trained on."},
    "subjects": ["rider0117"], "origin": "NIfTI", "preprocessing": "HU cut to [-1000, 1000]",
    "residual": {"ratio": 1.02}, "invented": 0.0834, "shift": "", "metrics": {"PSNR axial": 29.1234567}, "tier": "1",
}
ONLY_A_PERSON_KNOWS = ["study.problem", "study.question", "study.cohort_selection", "study.cohort"]


def complete(kind):
    return Card(kind, "x", {s: {f.key: f"answer to {f.key}" for f in fields} for s, (_, fields) in SECTIONS.items()})


@pytest.mark.parametrize("kind", [PRIOR, RECONSTRUCTION])
def test_every_mandatory_field_is_missed_when_absent(kind):
    whole = complete(kind)
    assert whole.missing == [] and whole.require() is whole
    wanted = [(s, f.key) for s, (_, fields) in SECTIONS.items() for f in fields if kind in f.mandatory]
    assert Card(kind, "x", {}).missing == [f"{s}.{k}" for s, k in wanted]
    for section, key in wanted:
        for nothing in (None, "", "  ", [], {}):
            record = merged(whole.record)
            record[section][key] = nothing
            card = Card(kind, "x", record)
            assert card.missing == [f"{section}.{key}"]
            with pytest.raises(ScidiffError, match=f"model card of x lacks {section}.{key}"):
                card.require()
    record = merged(whole.record, {"study": {"labels": 0}})
    assert Card(kind, "x", record).missing == []  # a number is an answer, zero too


def test_a_run_fills_all_but_what_only_a_person_knows():
    card = Card(RECONSTRUCTION, "rider0117", of_run(RUN))
    assert card.missing == ONLY_A_PERSON_KNOWS
    assert card.value("data", "measurement") == {"operator": {"name": "ParallelCT", "views": 20},
                                                 "noise": "Poisson, 1e5 photons", "shape": [32, 1, 20, 182],
                                                 "origin": "simulated from the given volume"}
    assert card.value("reproducibility", "checksum") == "f" * 64
    assert card.value("reproducibility", "settings") == {"seed": 7, "steps": 50}
    assert card.value("reproducibility", "versions") == {"scidiff": "0.1", "torch": "2.13", "git": "abc"}
    assert "8.3 % of the energy" in card.value("examination", "invented")
    assert "range that the prior was trained on" in card.value("examination", "shift")
    answers = {"study": {k.split(".")[1]: "told" for k in ONLY_A_PERSON_KNOWS}}
    assert Card(RECONSTRUCTION, "rider0117", merged(of_run(RUN), answers)).require()


@pytest.mark.parametrize("gone, field", [("residual", "performance.residual"), ("invented", "examination.invented"),
                                         ("shift", "examination.shift"), ("operator", "data.measurement"),
                                         ("subjects", "data.subjects"), ("environment", "reproducibility.versions"),
                                         ("tier", "reproducibility.tier"), ("origin", "data.origin"),
                                         ("preprocessing", "data.preprocessing")])
def test_what_a_run_did_not_record_is_missing_and_not_made_up(gone, field):
    card = Card(RECONSTRUCTION, "x", of_run({k: v for k, v in RUN.items() if k != gone}))
    assert field in card.missing and field not in ONLY_A_PERSON_KNOWS
    empty = Card(RECONSTRUCTION, "x", of_run({}))
    assert {"label.summary", "label.performance", "reproducibility.checksum", "data.model"} <= set(empty.missing)


def test_a_measured_scan_has_no_figures_and_says_so():
    told = of_run({**RUN, "simulated": False, "metrics": None, "shift": "Values are far off."})
    card = Card(RECONSTRUCTION, "x", told)
    assert card.value("label", "performance") == "No reference exists for this measurement."
    assert card.value("performance", "evaluation") == "None: there is no reference."
    assert card.value("examination", "shift") == "Values are far off."
    assert card.value("data", "measurement")["origin"] == "measured"


def test_files(tmp_path):
    card = Card(RECONSTRUCTION, "rider0117", of_run(RUN))
    files = card.write(tmp_path / "run")
    assert [f.name for f in files] == ["card.md", "card.json"]
    text, stored = files[0].read_text(), json.loads(files[1].read_text())
    assert NOT_CLINICAL in text and stored["warning"] == NOT_CLINICAL
    assert "4 mandatory fields" in text and "study.problem" in text and "*Missing.*" in text
    assert stored["missing"] == ONLY_A_PERSON_KNOWS and stored["complete"] is False
    assert "- PSNR axial: 29.1235" in text
    for section, fields in stored["sections"].items():
        for key, entry in fields.items():
            assert entry["value"] == json.loads(json.dumps(card.value(section, key)))
            assert entry["question"] in text
    whole = complete(PRIOR)
    assert "Missing" not in whole.to_markdown() and whole.to_json()["complete"] is True
    for section, (title, _) in SECTIONS.items():
        assert f"## {title}" in whole.to_markdown(), section


def test_unknown_fields_are_refused():
    for record, words in (({"studies": {}}, "no section 'studies'.*'study'"),
                          ({"study": {"cohorts": "x"}}, "no field 'cohorts'.*'cohort'")):
        with pytest.raises(UsageError, match=words):
            Card(PRIOR, "x", record)
    with pytest.raises(UsageError, match="model card of a 'model'"):
        Card("model", "x", {})


def test_later_records_win_only_where_they_say_something():
    both = merged({"study": {"problem": "a", "question": "b"}}, {"study": {"problem": "", "question": "c"}})
    assert both == {"study": {"problem": "a", "question": "c"}}
