"""Published results: JSON files in `benchmarks/results/`, and the page `benchmarks/RESULTS.md` made from them alone.

One JSON file is one result:

    kind      "evaluation" (figures of a model) or "benchmark" (a measurement beside peers)
    title     one line
    command   what to type to get it again
    versions  {library: version}
    date      optional, ISO
    notes     optional: a sentence, or a list of them
    rows      a list of rows, or
    tables    a list of {title, rows, notes}

A row of a benchmark is a mapping column -> number, text or null; columns appear in the order of their first use.
A row of an evaluation is a metric {name, value, interval, floor, count, reference, protocol, better, unit, note}; its
file also has `model`, and `about` with the number of network calls (`steps`), seconds, samples per second. Evaluations
of one model with different numbers of network calls stand side by side.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scidiff.core.errors import ScidiffError, UsageError
from scidiff.domains.base import Metric
from scidiff.store import atomic
from scidiff.store.locate import shared_folder
from scidiff.store.run import environment

Place = str | os.PathLike[str]
HEAD = "<!-- Made by `scidiff evaluate --publish` from benchmarks/results/*.json. Do not edit. -->"


def results_folder() -> Path:
    """`benchmarks/results` of a source checkout; of the working directory elsewhere."""
    root = shared_folder("conf").parent
    return (root if (root / "pyproject.toml").is_file() else Path.cwd()) / "benchmarks" / "results"


def record(name: str, metrics: Sequence[Metric], about: Mapping[str, Any] | None = None, command: str = "",
           card: Place | None = None, results: Place | None = None) -> Path:
    """Writes the evaluation of a model as a result; returns its path.

    `card` names a checkpoint folder: its evaluation.json {"model", "evaluations": {network calls: result}} is
    brought up to date too.
    """
    about = dict(about or {})
    machine = environment(0, "")
    steps = about.get("steps")
    content = {
        "kind": "evaluation",
        "title": f"{name}, {steps} network calls a sample" if steps else name,
        "model": name,
        "command": command,
        "date": datetime.date.today().isoformat(),
        "versions": machine["versions"],
        "about": {**about, "cores": machine["cores"], "processor": machine["processor"]},
        "rows": [m.to_json() for m in metrics],
    }
    file = Path(results or results_folder()) / f"{_file_name(name)}{f'_{steps}' if steps else ''}.json"
    if card is not None and Path(card).is_dir():
        beside = Path(card) / "evaluation.json"
        known = atomic.read_json(beside).get("evaluations", {}) if beside.is_file() else {}
        atomic.write_json(beside, {"model": name, "evaluations": {**known, str(steps or "default"): content}})
    return atomic.write_json(file, content)


def publish(results: Place | None = None, out: Place | None = None) -> Path:
    """Makes RESULTS.md (default: beside the folder of the results) from every JSON file; returns its path.

    Raises UsageError where there is none, ScidiffError where one is not a result.
    """
    folder = Path(results or results_folder())
    files = sorted(folder.glob("*.json"))
    if not files:
        raise UsageError(f"{folder} holds no results.", "Write one with: scidiff evaluate RUN --publish")
    found = [_checked(atomic.read_json(file), file) for file in files]
    models: dict[str, list[dict[str, Any]]] = {}
    for result in found:
        if result["kind"] == "evaluation":
            models.setdefault(str(result.get("model") or result["title"]), []).append(result)
    parts = [HEAD, "# Results", "A figure stands beside its sample count and, where there is one, its 95 % interval "
             "and its floor: what the data themselves score. The command above a table repeats it."]
    if models:
        parts.append("## Models")
        parts += [_model(name, sorted(group, key=_calls)) for name, group in sorted(models.items())]
    others = [r for r in found if r["kind"] == "benchmark"]
    if others:
        parts.append("## Benchmarks")
        parts += [_benchmark(r) for r in others]
    target = Path(out or folder.parent / "RESULTS.md")
    return atomic.write_text(target, "\n\n".join(parts) + "\n")


def _checked(content: Any, file: Path) -> dict[str, Any]:
    if not isinstance(content, dict) or content.get("kind") not in ("evaluation", "benchmark"):
        raise ScidiffError(f"{file} is not a result: its kind must be 'evaluation' or 'benchmark'.")
    missing = [key for key in ("title", "versions") if key not in content]
    if not ("rows" in content or "tables" in content):
        missing.append("rows")
    if missing:
        raise ScidiffError(f"{file} is not a result: it has no {', '.join(missing)}.")
    return content


def _calls(result: Mapping[str, Any]) -> float:
    steps = (result.get("about") or {}).get("steps")
    return float(steps) if steps else 0.0


def _model(name: str, group: Sequence[Mapping[str, Any]]) -> str:
    """One table: a row a metric, a column an evaluation."""
    heads = [f"{int(_calls(r))} calls" if _calls(r) else str(r["title"]) for r in group]
    rows: dict[str, dict[str, str]] = {}
    protocols: dict[str, str] = {}
    for head, result in zip(heads, group, strict=True):
        for metric in result["rows"]:
            title = _titled(metric)
            row = rows.setdefault(title, {"metric": title, "reference": "", "floor": ""})
            row["reference"] = row["reference"] or str(metric.get("reference") or "")
            row["floor"] = number(metric.get("floor")) if metric.get("floor") is not None else row["floor"]
            row[head] = _cell(metric)
            text = "; ".join(str(x) for x in (metric.get("protocol"), metric.get("note")) if x)
            if text:
                protocols.setdefault(title, text)
    for key, label in (("samples per second", "samples per second"), ("seconds", "seconds")):
        speeds = {h: (r.get("about") or {}).get(key) for h, r in zip(heads, group, strict=True)}
        if any(v is not None for v in speeds.values()):
            rows[label] = {"metric": label, **{h: number(v) for h, v in speeds.items()}}
    columns = ["metric", *heads, "floor", "reference"]
    lines = [f"### {name}", *[f"`{r['command']}`" for r in group if r.get("command")]]
    lines.append(table([{c: row.get(c, "") for c in columns} for row in rows.values()], columns))
    lines.append("\n".join(f"* {k}: {v}" for k, v in protocols.items()))
    return "\n\n".join([*lines, _foot(group[-1])])


def _titled(metric: Mapping[str, Any]) -> str:
    arrow = {"higher": " ↑", "lower": " ↓"}.get(str(metric.get("better")), "")
    unit = f" ({metric['unit']})" if metric.get("unit") else ""
    return f"{metric['name']}{unit}{arrow}"


def _cell(metric: Mapping[str, Any]) -> str:
    if metric.get("value") is None:
        return "not computed"
    span = metric.get("interval")
    inside = f" [{number(span[0])}, {number(span[1])}]" if span else ""
    return f"{number(metric['value'])}{inside} (n = {metric.get('count', 0)})"


def _benchmark(result: Mapping[str, Any]) -> str:
    lines = [f"### {result['title']}"]
    if result.get("command"):
        lines.append(f"`{result['command']}`")
    for part in result.get("tables") or [{"rows": result["rows"]}]:
        if part.get("title"):
            lines.append(f"#### {part['title']}")
        lines.append(table(part["rows"], part.get("columns")))
        lines += _notes(part)
    return "\n\n".join([*lines, *_notes(result), _foot(result)])


def _notes(node: Mapping[str, Any]) -> list[str]:
    notes = node.get("notes") or []
    return [notes] if isinstance(notes, str) else ["\n".join(f"* {n}" for n in notes)] if notes else []


def _foot(result: Mapping[str, Any]) -> str:
    about = result.get("about") or {}
    machine = f"{about['cores']} cores of {about.get('processor', 'unknown type')}; " if about.get("cores") else ""
    versions = ", ".join(f"{k} {v}" for k, v in result["versions"].items())
    return f"_{machine}{versions}{'; ' + str(result['date']) if result.get('date') else ''}_"


def table(rows: Iterable[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """A Markdown table; numbers with four significant digits."""
    rows = list(rows)
    heads = list(columns or dict.fromkeys(key for row in rows for key in row))
    body = [[_escape(number(row.get(h))) for h in heads] for row in rows]
    right = [all(isinstance(row.get(h), (int, float)) or row.get(h) is None for row in rows) for h in heads]
    lines = ["| " + " | ".join(_escape(h) for h in heads) + " |",
             "|" + "|".join("---:" if r else "---" for r in right) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in body])


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def number(value: Any) -> str:
    """A value for people: four significant digits, whole numbers whole, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, float):
        return str(value)
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        text = f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
        return text
    return f"{value:.2e}"


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name) or "evaluation"
