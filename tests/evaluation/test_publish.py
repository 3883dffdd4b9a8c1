"""Published results: the JSON files, and the page that is made of them."""

import json

import pytest

from scidiff.core.errors import ScidiffError, UsageError
from scidiff.domains.base import Metric
from scidiff.evaluation.publish import number, publish, record, results_folder, table

METRICS = [
    Metric("valid", 0.987654, (0.98, 0.99), 1.0, "sanitised", "qm9 test", 1000, "higher"),
    Metric("MMD^2", 1.23456e-5, (1e-6, 2e-5), 5e-5, "linear kernel", "qm9 test", 990, "lower", note="may be negative"),
    Metric("FCD", None, protocol="ChemNet", reference="qm9 test", count=990, note="not computed: no weights"),
]


def write(folder, name, content):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(content))


def test_an_evaluation_is_recorded_with_its_machine(tmp_path):
    card = tmp_path / "card"
    card.mkdir()
    for steps in (50, 100):
        file = record("qm9_flow", METRICS, {"steps": steps, "samples per second": 40.0}, "scidiff evaluate x", card,
                      tmp_path / "results")
        assert file.name == f"qm9_flow_{steps}.json"
    content = json.loads(file.read_text())
    assert content["kind"] == "evaluation" and content["model"] == "qm9_flow" and content["about"]["cores"] >= 1
    assert content["rows"][2]["value"] is None and content["versions"]["torch"]
    beside = json.loads((card / "evaluation.json").read_text())
    assert list(beside["evaluations"]) == ["50", "100"]


def test_the_page_puts_the_network_calls_of_a_model_side_by_side(tmp_path):
    results = tmp_path / "results"
    for steps, valid in ((100, 0.998), (50, 0.993)):
        record("qm9_flow", [Metric("valid", valid, (valid - 0.01, 1.0), 1.0, "sanitised", "qm9 test", 500, "higher"),
                            METRICS[2]], {"steps": steps, "samples per second": 12.5}, f"scidiff --steps {steps}",
               results=results)
    text = publish(results).read_text()
    assert (tmp_path / "RESULTS.md").read_text() == text and text.startswith("<!-- Made by")
    assert "| metric | 50 calls | 100 calls | floor | reference |" in text
    assert "| valid ↑ | 0.993 [0.983, 1] (n = 500) | 0.998 [0.988, 1] (n = 500) | 1 | qm9 test |" in text
    assert "| FCD ↓ | not computed | not computed |  | qm9 test |" in text
    assert "| samples per second | 12.5 | 12.5 |" in text
    assert "* valid ↑: sanitised" in text and text.index("`scidiff --steps 50`") < text.index("`scidiff --steps 100`")
    assert text == publish(results).read_text()


def test_benchmarks_with_rows_or_tables(tmp_path):
    results = tmp_path / "results"
    common = {"kind": "benchmark", "command": "python benchmarks/solvers.py", "versions": {"torch": "2.13.0"}}
    write(results, "a.json", {**common, "title": "Overhead", "rows": [
        {"solver": "ours", "us": 12.0, "ratio": 0.14}, {"solver": "peer|x", "us": 85.123456, "ratio": None}],
        "notes": "one thread"})
    write(results, "b.json", {**common, "title": "Quality", "date": "2026-11-21", "tables": [
        {"title": "ring", "rows": [{"NFE": 8, "ours": 1e-5}], "notes": ["first", "second"]},
        {"title": "mixture", "columns": ["ours"], "rows": [{"NFE": 8, "ours": 0.25}]}]})
    text = publish(results, tmp_path / "page.md").read_text()
    assert "## Models" not in text and "### Overhead" in text and "`python benchmarks/solvers.py`" in text
    assert "| solver | us | ratio |\n|---|---:|---:|\n| ours | 12 | 0.14 |\n| peer\\|x | 85.12 |  |" in text
    assert "one thread" in text and "_torch 2.13.0; 2026-11-21_" in text
    assert "* first\n* second" in text and "#### ring" in text
    assert "| 8 | 1.00e-05 |" in text and "| ours |\n|---:|\n| 0.25 |" in text


def test_wrong_files_are_one_sentence(tmp_path):
    results = tmp_path / "results"
    with pytest.raises(UsageError, match="holds no results"):
        publish(results)
    write(results, "a.json", {"kind": "poem"})
    with pytest.raises(ScidiffError, match="its kind must be"):
        publish(results)
    write(results, "a.json", {"kind": "benchmark", "title": "x"})
    with pytest.raises(ScidiffError, match="it has no versions, rows"):
        publish(results)


def test_numbers_are_for_people():
    assert [number(v) for v in (None, True, 3, 0.0, 1.0, 0.123456, 123456.7, 1e-9, 2e7, "x", -0.5)] == [
        "", "yes", "3", "0", "1", "0.1235", "123457", "1.00e-09", "2.00e+07", "x", "-0.5"]
    assert table([{"a": 1}, {"b": "x"}]).splitlines()[0] == "| a | b |"


def test_the_results_of_a_checkout_lie_beside_its_sources(root):
    assert results_folder() == root / "benchmarks" / "results"
