"""Figures: what is passed on, what is refused, and their JSON form."""

import json
import math

import pytest

from scidiff.core.errors import UsageError
from scidiff.domains.base import Metric, Rejection, Verdict
from scidiff.evaluation.evaluate import evaluate, figures, load_figures, measure


class Numbers:
    """A domain of plain numbers, as far as figures need one."""

    def check(self, objects):
        return [Verdict(x >= 0, "" if x >= 0 else "negative") for x in objects]

    def reference(self, name):
        return {"small": 2.0}[name]

    def metrics(self, objects, verdicts, reference=None):
        gap = None if reference is None else abs(sum(objects) / len(objects) - reference)
        share = sum(v.valid for v in verdicts) / len(verdicts)
        return [Metric("valid", share, (0.0, 1.0), None, "sign", "", len(objects), "higher"),
                Metric("gap", gap, None, 0.1, "difference of means", "small", len(objects),
                       note="" if gap is not None else "not computed: no reference"),
                Metric("odd", math.nan, (0.0, 1.0), protocol="none", count=1)]


class Seeded(Numbers):
    def metrics(self, objects, verdicts, reference=None, seed=0):
        return [Metric("seed", float(seed), count=1, protocol="none")]


def test_figures_pass_and_nan_is_not_computed():
    found = {m.name: m for m in evaluate(Numbers(), [1.0, -1.0, 3.0, 5.0], reference="small")}
    assert found["valid"].value == 0.75 and found["gap"].value == 0.0
    assert found["odd"].value is None and found["odd"].interval is None and "not computed" in found["odd"].note


def test_unreadable_entries_are_counted():
    found = measure(Numbers(), [1.0, 2.0, 3.0], [Verdict(True)] * 3, rejected=[Rejection("line 2", "x", "no number")])
    assert (found[0].name, found[0].value, found[0].count) == ("readable", 0.75, 4)


def test_the_seed_reaches_domains_that_resample():
    assert measure(Seeded(), [1.0], [Verdict(True)], seed=7)[0].value == 7.0


def test_progress_is_told():
    heard = []
    measure(Numbers(), [1.0], [Verdict(True)], progress=lambda *what: heard.append(what))
    assert heard == [("Measuring", 0, 1), ("Measuring", 1, 1)]


def test_nothing_and_unequal_lengths_are_refused():
    with pytest.raises(UsageError, match="nothing to evaluate"):
        evaluate(Numbers(), [])
    with pytest.raises(UsageError, match="1 objects have 2 verdicts"):
        measure(Numbers(), [1.0], [Verdict(True)] * 2)


def test_the_json_form_is_read_back(tmp_path):
    metrics = evaluate(Numbers(), [1.0, 2.0])
    path = figures(tmp_path, metrics, {"model": "m", "steps": 50}, [Rejection("line 1", "y" * 900, "broken")] * 150)
    content = json.loads(path.read_text())
    assert content["format"] == 1 and content["rejected"]["count"] == 150 and len(content["rejected"]["first"]) == 100
    assert len(content["rejected"]["first"][0]["text"]) == 200 and content["versions"]["python"]
    again, about = load_figures(tmp_path)
    assert again == metrics and about == {"model": "m", "steps": 50}
