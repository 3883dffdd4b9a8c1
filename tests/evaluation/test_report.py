"""The report: complete, self-contained, escaped, small, and drawn by a browser where there is one."""

import base64
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from scidiff.domains.base import Metric, Rejection, Samples, Verdict
from scidiff.evaluation.report import LIMIT, Page, Picture, bibliography, percent, reasons, render, write_report

SVG = "<svg xmlns='http://www.w3.org/2000/svg' width='40' height='20'><rect width='9' height='9'/></svg>"
PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ"
                       "AAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")


class Tracks:
    """A domain of words, as far as a report needs one."""

    name, title = "words", "Words"

    def view(self, objects, verdicts, ids, reference=None):
        return {"the words": SVG, "a dot": PNG}

    def table(self, objects, verdicts):
        return [{"word": o, "length": len(o), "share": len(o) / 7} for o in objects]


def samples(count=60):
    words = [f"w{i}<b>" for i in range(count)]
    verdicts = [Verdict(i % 4 > 0, "" if i % 4 else f"valence 5 of C{i} exceeds 4") for i in range(count)]
    out = Samples(words, [f"s{i:04d}" for i in range(count)], 3, verdicts, Tracks())
    out.metrics = [Metric("valid", 0.75, (0.62, 0.84), 1.0, "spelling", "dictionary", count, "higher"),
                   Metric("MMD^2", 2e-5, None, 1e-5, "letters", "dictionary", 45, "lower", "nm"),
                   Metric("FCD", None, protocol="ChemNet", note="not computed: no <weights>")]
    out.meta = {"model": "w_flow", "steps": 50, "seconds": 12.0, "samples per second": 5.0}
    return out


class Outside(HTMLParser):
    """Collects what a page would load, and checks that tags close."""

    def __init__(self):
        super().__init__()
        self.loads, self.open, self.images = [], [], 0

    def handle_starttag(self, tag, attrs):
        about = dict(attrs)
        if tag in ("script", "link", "iframe", "object"):
            self.loads.append(tag)
        if tag == "img":
            self.images += 1
            if not about["src"].startswith("data:image/"):
                self.loads.append(about["src"])
        if tag not in ("img", "meta", "br", "link", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, (tag, self.open[-3:])
        self.open.pop()


@pytest.fixture
def page(tmp_path):
    (tmp_path / "command.txt").write_text("scidiff generate words -n 60 --seed 3\n")
    (tmp_path / "environment.json").write_text('{"device": "cpu"}\n')
    (tmp_path / "references.bib").write_text(
        "@article{a,\n  author = {Doe, Jane and Roe, Richard},\n  title = {{On} words},\n  journal = {J. Words},\n"
        "  eprint = {2011.13456},\n  year = {2021},\n}\n")
    path = write_report(tmp_path, Tracks(), samples(), None, title="60 words <of> w_flow",
                        config={"seed": 3, "condition": {"tone": 0.5}}, rejected=[Rejection("line 2", "<i>", "odd")])
    return path.read_text(encoding="utf-8")


def test_it_stands_alone_and_is_well_formed(page):
    seen = Outside()
    seen.feed(page)
    assert seen.loads == [] and seen.open == [] and seen.images == 2
    assert not re.search(r"url\(|@import|<script", page) and len(page) < 100_000


def test_it_says_what_was_asked_and_found(page):
    for text in ("60 words &lt;of&gt; w_flow", "scidiff generate words -n 60 --seed 3", "tone = 0.5", "12 s",
                 "62 % to 84 %", "MMD²", "not computed: no &lt;weights&gt;", "dictionary", "s0049", "line 2",
                 "the first 50 of 60", "valence 5 of C exceeds 4", "Jane Doe, Richard Roe. On words. J. Words, 2021",
                 "https://arxiv.org/abs/2011.13456", "condition:", "samples/s"):
        assert text in page, text
    assert "s0050" not in page and "<b>" not in page.split("<main>")[1].replace('<div class="tile"><b>', "")


def test_pictures_that_do_not_fit_are_named():
    big = Picture("huge", b"\x89PNG" + b"0" * LIMIT)
    text = render(Page("t", pictures=[Picture("one", SVG), big, Picture("two", PNG)]))
    assert "Too large for this page: huge." in text and len(text) < LIMIT + 1000 and "two" in text


def test_empty_parts_are_left_out():
    text = render(Page("nothing"))
    assert "<h2>" not in text and "<h1>nothing</h1>" in text


def test_svg_gets_its_namespace_and_loses_what_precedes_it():
    uri = Picture("x", "<?xml version='1.0'?>\n<svg width='1'><g/></svg>").uri
    assert base64.b64decode(uri.split(",")[1]).decode() == (
        "<svg width='1' xmlns=\"http://www.w3.org/2000/svg\"><g/></svg>")


def test_shares_never_round_to_certainty():
    assert [percent(v) for v in (1.0, 0.0, 0.5, 0.9996, 0.99999, 0.0004, 0.00001)] == [
        "100 %", "0 %", "50 %", "99.96 %", ">99.99 %", "0.04 %", "<0.01 %"]


def test_equal_reasons_count_as_one():
    texts = ["valence 3 of O5 exceeds 2"] * 2 + ["valence 3 of O9 exceeds 2", "valid"] + [f"r{i}" for i in range(20)]
    found = reasons(texts, most=4)
    assert found[0] == ("valence 3 of O exceeds 2", 3) and found[-1] == ("18 other reasons", 18)


def test_bibliography_reads_what_the_store_writes():
    from scidiff.store import references

    text = references.collect({"solver": {"_target_": "x"}}, references.keys())
    found = bibliography(text)
    assert len(found) == len(references.keys()) and all(len(t) > 15 and "{" not in t for t, _ in found)


@pytest.mark.slow
def test_a_browser_draws_it(page, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine")
    file = tmp_path / "page.png"
    subprocess.run([browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
                    f"--screenshot={file}", "--window-size=1200,1600", f"file://{tmp_path / 'report.html'}"],
                   check=True, capture_output=True, timeout=60)
    assert file.stat().st_size > 20_000
