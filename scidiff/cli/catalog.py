"""`list`, `show` and `copy`: what there is, what a command would use, and a copy to change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from scidiff import config
from scidiff.cli.feedback import table
from scidiff.core.errors import UsageError, nearest

if TYPE_CHECKING:
    from scidiff.store.checkpoint import Shipped

KINDS = {
    "domains": "domain",
    "data": "data",
    "backbones": "backbone",
    "processes": "process",
    "objectives": "objective",
    "solvers": "solver",
    "guidance": "guidance",
    "posteriors": "posterior",
    "operators": "operator",
    "trainers": "trainer",
    "experiments": "experiment",
    "models": "",
}


def overview() -> None:
    """One line for every kind."""
    rows = []
    for kind, group in KINDS.items():
        names = list(config.options(group)) if group else [model.experiment for model in _models()]
        rows.append((kind, ", ".join(names) or "-"))
    table(("KIND", "NAMES"), rows)


def list_kind(kind: str) -> None:
    """One line for every option of a kind: name, what it is, and who brings it where that is not scidiff."""
    if kind not in KINDS:
        singular = [name for name, group in KINDS.items() if group == kind or name == f"{kind}s"]
        if not singular:
            raise UsageError(f"There is no list of {kind!r}.", nearest(kind, KINDS))
        kind = singular[0]
    if kind == "models":
        rows = [(m.experiment, m.alias or "-", m.domain, f"{m.megabytes:.1f} MB", m.summary) for m in _models()]
        table(("MODEL", "ALIAS", "DOMAIN", "SIZE", "SUMMARY"), rows)
        return
    owners = {str(place.folder): place.owner for place in config.places()}
    rows = []
    for name, file in config.options(KINDS[kind]).items():
        owner = owners.get(str(file.parents[1]), "")
        rows.append((name, owner, headline(file)))
    table((kind.upper(), "FROM", "SUMMARY"), rows)


def headline(file: Path) -> str:
    """The first comment of a YAML file that is not a directive."""
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("# @"):
            continue
        return line.lstrip("# ").strip() if line.startswith("#") else ""
    return ""


def show_verb(verb: str, words: Sequence[str]) -> None:
    """Resolved settings with the origin of each value as a comment; the output is YAML."""
    settings, origins = config.explain(verb, words)
    lines = list(_lines(settings, origins))
    width = min(max((len(text) for text, _ in lines), default=0), 60)
    for text, origin in lines:
        print(f"{text:<{width}}  # {origin}" if origin else text)


def show_option(what: str) -> None:
    """The file of one option, as it stands."""
    file = _file(what)
    print(f"# {file}")
    print(file.read_text(encoding="utf-8"), end="")


def copy_option(what: str, folder: Path, force: bool) -> None:
    """Copies an option's file to where commands started in `folder` find it (folder/conf/group/name.yaml)."""
    from scidiff.store.atomic import ensure_folder, write_text

    source = _file(what)
    group = what.rpartition("/")[0]
    inside = folder.name == Path(group).name or folder.name == "conf"
    target = folder if folder.name == Path(group).name else folder / group if inside else folder / "conf" / group
    target = target / source.name
    if target.exists() and not force:
        raise UsageError(f"{target} is already there.", "Replace it with --force.")
    ensure_folder(target.parent)
    write_text(target, source.read_text(encoding="utf-8"))
    print(target)


def as_yaml(settings: Mapping[str, Any]) -> str:
    """Settings as YAML text, in their own order."""
    return yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True, default_flow_style=None, width=110)


def _file(what: str) -> Path:
    group, _, name = what.rpartition("/")
    group = KINDS.get(group, group)
    if group not in config.groups():
        raise UsageError(f"There is no config group {group!r}.", nearest(group, config.groups()))
    known = config.options(group)
    name = name.removesuffix(".yaml")
    if name not in known:
        raise UsageError(f"There is no {group} named {name!r}.", nearest(name, known))
    return known[name]


def _lines(
    node: Mapping[str, Any], origins: Mapping[str, str], prefix: str = "", depth: int = 0
) -> Iterator[tuple[str, str]]:
    for key, value in node.items():
        dotted = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping) and value:
            yield "  " * depth + f"{key}:", ""
            yield from _lines(value, origins, dotted, depth + 1)
        else:
            text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
            yield "  " * depth + f"{key}: {text.removesuffix('...' + chr(10)).strip()}", origins.get(dotted, "")


def _models() -> list[Shipped]:
    from scidiff.store import checkpoint

    return checkpoint.shipped()
