"""The report of a run: one HTML file that opens anywhere, offline, and prints well.

`Page` holds plain data, so that any domain (and any third party) can fill one; `render` turns it into HTML with the
template `report.html.j2`. Pictures are data URIs (an SVG inside an `<img>` can neither run scripts nor clash with its
neighbours), styles are inline, nothing is loaded from elsewhere. The page stays under `LIMIT` bytes: pictures that do
not fit are named and left out.
"""

from __future__ import annotations

import base64
import datetime
import html
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scidiff.domains.base import Domain, Metric, Rejection, Samples
from scidiff.evaluation.publish import number
from scidiff.store import atomic

if TYPE_CHECKING:
    from scidiff.store.run import RunFolder

LIMIT = 4_800_000
ROWS = 50
TEMPLATE = Path(__file__).with_name("report.html.j2")
_WORDS = {
    "model": "Model", "steps": "Network calls a sample", "seconds": "Sampling time", "source": "Source",
    "samples per second": "Speed", "rejected": "Entries that could not be read", "members": "Members of a trajectory",
    "time steps": "Time steps", "interval": "Time of a step", "ms per step": "Milliseconds a time step, all members",
    "rows together": "Rows computed together",
}


@dataclass
class Picture:
    """SVG text or PNG bytes with a caption."""

    caption: str
    content: str | bytes

    @property
    def uri(self) -> str:
        """The picture as a data URI."""
        if isinstance(self.content, bytes):
            return "data:image/png;base64," + base64.b64encode(self.content).decode()
        return "data:image/svg+xml;base64," + base64.b64encode(_standalone(self.content).encode()).decode()


@dataclass
class Page:
    """Everything on a report, as plain data; empty parts are left out.

    asked: (label, value) pairs of what was asked. tiles: (value, label, small print). reasons: (reason, count). table:
    rows of equal columns, the first `ROWS` of `total`. files: (name, what it is). references: (text, link).
    """

    title: str
    subtitle: str = ""
    asked: list[tuple[str, str]] = field(default_factory=list)
    tiles: list[tuple[str, str, str]] = field(default_factory=list)
    metrics: list[Metric] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    reasons: list[tuple[str, int]] = field(default_factory=list)
    count: int = 0
    table: list[dict[str, Any]] = field(default_factory=list)
    total: int = 0
    rejected: list[Rejection] = field(default_factory=list)
    config: str = ""
    environment: str = ""
    files: list[tuple[str, str]] = field(default_factory=list)
    references: list[tuple[str, str]] = field(default_factory=list)
    footer: str = ""


def write_report(folder: str | os.PathLike[str] | RunFolder, domain: Domain, samples: Samples, reference: Any = None, *,
                 title: str, config: Mapping[str, Any] | None = None, rejected: Sequence[Rejection] = ()) -> Path:
    """Writes report.html into a run folder; returns its path."""
    place = Path(os.fspath(folder))
    return atomic.write_text(place / "report.html", render(page_of(place, domain, samples, reference, title, config,
                                                                   rejected)))


def page_of(place: Path, domain: Domain, samples: Samples, reference: Any, title: str,
            config: Mapping[str, Any] | None, rejected: Sequence[Rejection] = ()) -> Page:
    """The page of a set of samples; what the run folder holds (command, references, environment) is read from it."""
    told = {name: _read(place / name) for name in ("command.txt", "references.bib", "environment.json")}
    about = dict(samples.meta)
    words = _WORDS if "time steps" not in about else {**_WORDS, "steps": "Network calls a time step"}
    asked = [("Command", told["command.txt"]), ("Domain", domain.title or domain.name)]
    asked += [(words[k], _quantity(k, v, about)) for k, v in about.items() if v not in (None, "", 0) and k in words]
    if config and config.get("condition"):
        asked.append(("Conditions", ", ".join(f"{k} = {v}" for k, v in config["condition"].items())))
    name = getattr(reference, "title", None) or getattr(reference, "name", None)
    asked += [("Seed", "" if about.get("source") else str(samples.seed)), ("Reference set", str(name) if name else "")]
    units = getattr(domain, "units", None)
    if isinstance(units, Mapping):
        asked.append(("Units", ", ".join(f"{k}: {v}" for k, v in units.items())))
    # A run goes on writing after its report: its closing file is no result of its own.
    files = sorted(f.name for f in place.iterdir() if not f.name.startswith(".")) if place.is_dir() else []
    pictures = domain.view(samples.objects, samples.verdicts, samples.ids, reference)
    count = len(samples)
    first = Samples(samples.objects[:ROWS], samples.ids[:ROWS], samples.seed, samples.verdicts[:ROWS], domain)
    return Page(
        title=title,
        subtitle=domain.title or domain.name,
        asked=[(k, v) for k, v in asked if v],
        tiles=_tiles(samples, about),
        metrics=list(samples.metrics),
        pictures=[Picture(caption, content) for caption, content in pictures.items()],
        reasons=reasons("valid" if v.valid else v.reason or "not valid" for v in samples.verdicts),
        count=count,
        table=first.table(),
        total=count,
        rejected=list(rejected),
        config=atomic.dump_yaml(config) if config else "",
        environment=told["environment.json"],
        files=[(f, "") for f in files if f not in ("parts", "chunks.json", "report.html")],
        references=bibliography(told["references.bib"]),
        footer=_footer(),
    )


def render(page: Page) -> str:
    """The page as one HTML text of less than `LIMIT` bytes."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = number
    environment.filters["percent"] = percent
    environment.filters["raised"] = raised
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    shown, left, used = [], [], len(template.render(page=page, pictures=[], left=[], columns=_columns(page)))
    for picture in page.pictures:
        size = len(picture.uri)
        if used + size > LIMIT:
            left.append(picture.caption)
            continue
        used += size
        shown.append(picture)
    return template.render(page=page, pictures=shown, left=left, columns=_columns(page))


def percent(share: float) -> str:
    """A share in percent; never 100 or 0 unless it is."""
    text = f"{100 * share:.1f}"
    if (text == "100.0" and share < 1) or (text == "0.0" and share > 0):
        text = f"{100 * share:.2f}" if 0.0001 < share < 0.9999 else (">99.99" if share > 0.5 else "<0.01")
    return text.removesuffix(".0") + " %"


def reasons(texts: Iterable[str], most: int = 15) -> list[tuple[str, int]]:
    """Verdicts by frequency. The number of an atom or site (O5) is dropped, so that equal defects count as one."""
    counts = Counter(re.sub(r"\b([A-Z][a-z]?)\d+\b", r"\1", text) for text in texts).most_common()
    rest = sum(count for _, count in counts[most:])
    return counts[:most] + ([(f"{len(counts) - most} other reasons", rest)] if rest else [])


def raised(text: str) -> str:
    """Squares as people write them: MMD^2 becomes MMD²."""
    return text.replace("^2", "²").replace("^3", "³")


def _columns(page: Page) -> list[tuple[str, bool]]:
    """The columns of the sample table, and whether they hold numbers."""
    heads = list(dict.fromkeys(k for row in page.table for k in row))

    def numeric(head: str) -> bool:
        values = [row.get(head) for row in page.table if row.get(head) not in (None, "")]
        return bool(values) and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)

    return [(head, numeric(head)) for head in heads]


def _tiles(samples: Samples, about: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The figures that one looks for first: how many, the shares, the cost."""
    count = len(samples)
    tiles = [(str(count), "samples", str(about["source"]) if about.get("source") else f"seed {samples.seed}")]
    good = [m for m in samples.metrics if m.better == "higher" and m.value is not None and m.interval]
    tiles += [(number(m.value), f"{m.name}, {m.unit}", " to ".join(map(number, m.interval or ())))
              for m in good if m.unit][:1]
    shares = [m for m in good if not m.unit]
    if not any(m.name in ("valid", "stable") for m in shares):
        tiles.append((percent(sum(v.valid for v in samples.verdicts) / max(count, 1)), "valid", f"of {count}"))
    for m in shares[:4]:
        low, high = m.interval or (0.0, 0.0)
        fraction = low >= 0.0 and high <= 1.0
        shown = percent(m.value or 0.0) if fraction else number(m.value)
        span = f"{percent(low)} to {percent(high)}" if fraction else f"{number(low)} to {number(high)}"
        tiles.append((shown, m.name, span))
    if about.get("steps"):
        tiles.append((str(about["steps"]), "network calls", "a time step" if "time steps" in about else "a sample"))
    if about.get("samples per second"):
        small = f"{number(float(about['seconds']))} s in all" if about.get("seconds") else ""
        tiles.append((number(float(about["samples per second"])), "samples/s", small))
    if about.get("ms per step"):
        tiles.append((number(float(about["ms per step"])), "ms a time step", "all members of all trajectories"))
    return tiles


def _quantity(key: str, value: Any, about: Mapping[str, Any]) -> str:
    text = number(value) if isinstance(value, (int, float)) else str(value)
    unit = {"seconds": "s", "samples per second": "samples a second", "interval": str(about.get("time unit", ""))}
    return f"{text} {unit[key]}".strip() if key in unit else text


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8").strip() if file.is_file() else ""


def _standalone(svg: str) -> str:
    """SVG as a document of its own: starts at its root, names its namespace."""
    text = svg[max(svg.find("<svg"), 0):]
    head, _, rest = text.partition(">")
    return text if "xmlns=" in head else f'{head} xmlns="http://www.w3.org/2000/svg">{rest}'


_ENTRY = re.compile(r"@\w+\{[^,]+,(.*?)\n\}", re.S)
_FIELD = re.compile(r"(\w+)\s*=\s*\{((?:[^{}]|\{[^{}]*\})*)\}")


def bibliography(bibtex: str) -> list[tuple[str, str]]:
    """(authors, title, place, year as one line; link) of every BibTeX entry."""
    out = []
    for body in _ENTRY.findall(bibtex):
        f = {k.lower(): re.sub(r"[{}]", "", " ".join(v.split())) for k, v in _FIELD.findall(body)}
        authors = f.get("author", "").split(" and ")
        people = [" ".join(part.strip() for part in reversed(a.split(",", 1))) for a in authors]
        names = ", ".join(people[:4]) + (" and others" if len(people) > 4 else "")
        where = f.get("journal") or f.get("booktitle") or ""
        link = f"https://doi.org/{f['doi']}" if "doi" in f else f.get("url", "")
        if not link and "eprint" in f:
            link = f"https://arxiv.org/abs/{f['eprint']}"
        printed = ", ".join(x for x in (where, f.get("year", "")) if x)
        text = ". ".join(x for x in (names, f.get("title", ""), printed) if x)
        out.append((html.unescape(text), link))
    return out


def _footer() -> str:
    from importlib import metadata

    try:
        version = metadata.version("scidiff")
    except metadata.PackageNotFoundError:
        from scidiff import __version__ as version
    return f"scidiff {version}, {datetime.date.today().isoformat()}"
