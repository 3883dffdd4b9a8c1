"""Readers of graph files, and splits.

Accepted: GraphML (`.graphml`, `.xml`; any number of graphs in a file), archives of many graphs (`.npz`, archive.py),
edge lists (`.edges`, `.edgelist`, `.el`, `.txt`), networkx node-link data (`.json`; one graph or a list), each text
format also gzipped; TU collections (`.zip`); a run folder; any folder of such files. A graph that is not simple and
undirected becomes a Rejection (where it stood, what is wrong) and reading goes on; nothing is repaired unless
`simplify` asks.

Edge list: two node names a line, anything behind them ignored, commas allowed; a name alone is a node without edges;
a blank line begins the next graph; lines that begin with # or % are comments.

Splits: the archive's own (train, valid, test), or else a share of the graphs chosen by a hash that does not depend on
the order of nodes, so that a graph falls on the same side whatever else the file holds.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from scidiff.core.errors import UsageError, nearest
from scidiff.domains.base import Records, Rejection
from scidiff.domains.graph import archive, collection, graphml
from scidiff.domains.graph.codec import build
from scidiff.domains.graph.entries import MOST_NODES, Entry, Rules, broken, judged, numbered

if TYPE_CHECKING:
    from networkx import Graph

EXTENSIONS = (".graphml", ".xml", ".npz", ".edges", ".edgelist", ".el", ".txt", ".json", ".zip")
EDGE_LISTS = (".edges", ".edgelist", ".el", ".txt")
RUN_FILE = "graphs.npz"
READERS = ("graph_file", "family")
READ_OPTIONS = ("label", "max_nodes", "min_nodes", "simplify", "test_share", "first_test", "split_seed", "kind")
_HEADER = {"source", "target", "from", "to", "node1", "node2", "u", "v"}


def read(path: str | Path, split: str | None = None, *, limit: int | None = None, label: str | None = "label",
         max_nodes: int = MOST_NODES, min_nodes: int = 1, simplify: bool = False, test_share: float = 0.1,
         first_test: float = 0.0, split_seed: int = 0, kind: str = "") -> Records:
    """The graphs of a file or folder (module docstring).

    split        "train", "valid" or "test"; None reads everything
    label        the node attribute that holds classes; None: nodes have none
    max_nodes, min_nodes   other graphs are rejected;   simplify   drops directions and loops, merges repeated edges
    test_share   share of test graphs of a file without a split, chosen by hash
    first_test   the test graphs are this first share of the usable graphs instead
    kind         what a data card says of its graphs, for whoever judges them; reading ignores it
    """
    if split not in (None, *archive.PARTS):
        raise UsageError(f"There is no split {split!r} of graphs.", nearest(str(split), archive.PARTS))
    found = list(_entries(Path(path), Rules(label, int(max_nodes), bool(simplify))))
    if not found:
        raise UsageError(f"{path} holds no graph.")
    usable = [e for e in found if not e.reason and e.count >= min_nodes]
    first = int(first_test * len(usable))
    records = Records([], [])
    for entry in found:
        if entry.reason or entry.count < min_nodes:
            why = entry.reason or f"it has {entry.count} nodes, fewer than {min_nodes}"
            records.rejected.append(Rejection(entry.where, entry.text or entry.name, why))
    for number, entry in enumerate(usable):
        if limit is not None and len(records) >= limit:
            break
        side = entry.part or (("test" if number < first else "train") if first_test else None)
        if split is not None and side not in (None, split):
            continue
        graph = build(entry.count, entry.edges, entry.labels)
        if split is not None and side is None and hashed_side(graph, test_share, split_seed) != split:
            continue
        graph.graph["name"] = entry.name
        records.objects.append(graph)
        records.names.append(entry.name or str(number))
    return records


def dataset(files: Mapping[str, Path], reader: str, options: Mapping[str, Any], split: str | None = None,
            limit: int | None = None) -> Records:
    """The graphs of a data set as its card lays it out; readers `graph_file` and `family`."""
    if reader not in READERS:
        raise UsageError(f"The graph domain has no reader {reader!r}.", nearest(reader, READERS))
    if reader == "family":
        from scidiff.domains.graph.families import drawn

        return drawn(options, split, limit)
    known(options)
    return read(next(iter(files.values())), split, limit=limit, **options)


def known(options: Mapping[str, Any]) -> None:
    """UsageError for an option that the readers do not have."""
    for key in options:
        if key not in READ_OPTIONS:
            raise UsageError(f"The graph readers have no option {key!r}.", nearest(key, READ_OPTIONS))


def hashed_side(graph: Graph, test_share: float = 0.1, seed: int = 0) -> str:
    """ "train" or "test", from the degrees of the nodes and of their neighbours and a seed alone."""
    degree = dict(graph.degree())
    colours = {u: hashlib.blake2b(repr((degree[u], sorted(degree[v] for v in graph[u]))).encode(),
                                  digest_size=8).digest() for u in graph}
    rounds = {u: sorted(colours[v] for v in graph[u]) for u in graph}
    text = repr((seed, graph.number_of_nodes(), sorted((colours[u], rounds[u]) for u in graph)))
    number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
    return "test" if number < test_share * 2.0**64 else "train"


def _entries(path: Path, rules: Rules) -> Iterator[Entry]:
    if not path.exists():
        raise UsageError(f"{path} does not exist.")
    if path.is_dir():
        files = [path / RUN_FILE] if (path / RUN_FILE).is_file() else sorted(
            f for f in path.iterdir() if f.is_file() and _kind(f) in EXTENSIONS and not f.name.startswith("."))
        if not files:
            raise UsageError(f"The folder {path} holds no graph file.", f"Readable: {', '.join(EXTENSIONS)}.")
        for file in files:
            yield from _entries(file, rules)
        return
    kind = _kind(path)
    if kind not in EXTENSIONS:
        raise UsageError(f"{path.name} is no graph file.", f"Readable: {', '.join(EXTENSIONS)}; text also with .gz.")
    if kind == ".npz":
        yield from archive.entries(path, rules)
    elif kind == ".zip":
        yield from collection.entries(path, rules)
    else:
        yield from _named(_text(path, kind, rules), path)


def _named(entries: Iterator[Entry], path: Path) -> Iterator[Entry]:
    """Graphs without names of their own get those of their file, numbered where there are several."""
    stem, found = path.name.split(".")[0], list(entries)
    for number, entry in enumerate(found):
        name = entry.name or (stem if len(found) == 1 else f"{stem}_{number}")
        yield replace(entry, name=name)


def _text(path: Path, kind: str, rules: Rules) -> Iterator[Entry]:
    try:
        with _open(path) as stream:
            if kind in (".graphml", ".xml"):
                yield from graphml.entries(stream, path.name, rules)
            elif kind == ".json":
                yield from _node_link(stream.read(), path.name, rules)
            else:
                yield from _edge_list(stream.read().decode("utf-8"), path.name, rules)
    except (gzip.BadGzipFile, EOFError) as error:
        yield broken(path.name, f"it is no complete gzip file ({error})")
    except UnicodeDecodeError:
        yield broken(path.name, "it is not UTF-8 text")


def _kind(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if path.name.lower().endswith(".gz") else path.open("rb")


def _edge_list(text: str, file: str, rules: Rules) -> Iterator[Entry]:
    lines: list[tuple[int, list[str]]] = []
    for number, line in enumerate([*text.splitlines(), ""], 1):
        words = line.replace(",", " ").replace(";", " ").split()
        if words and words[0][0] in "#%":
            continue
        if words and not (number == 1 and {w.lower() for w in words[:2]} <= _HEADER):
            lines.append((number, words[:2]))
        elif not words and lines:
            names = numbered(word for _, pair in lines for word in pair)
            edges = [(names[pair[0]], names[pair[1]]) for _, pair in lines if len(pair) == 2]
            where = f"{file}, line {lines[0][0]}"
            yield judged(Entry(where, "", len(names), edges), rules, list(names))
            lines = []


def _node_link(data: bytes, file: str, rules: Rules) -> Iterator[Entry]:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        yield broken(file, "it is no valid JSON")
        return
    for number, graph in enumerate(content if isinstance(content, list) else [content], 1):
        yield _linked(graph, f"{file}, graph {number}", rules)


def _linked(graph: Any, where: str, rules: Rules) -> Entry:
    """One graph in node-link form: {"nodes": [{"id": ...}], "edges" or "links": [{"source": ..., "target": ...}]}."""
    if not isinstance(graph, dict) or not isinstance(graph.get("nodes"), list):
        return broken(where, "it has no list of nodes")
    links = graph.get("edges", graph.get("links"))
    if not isinstance(links, list):
        return broken(where, "it has no list of edges or links")
    if graph.get("directed") is True and not rules.simplify:
        return broken(where, "its edges are directed (data.options.simplify=true drops the directions)")
    if not all(isinstance(n, dict) and isinstance(n.get("id"), (str, int)) for n in graph["nodes"]):
        return broken(where, "one of its nodes has no id")
    place = {n["id"]: i for i, n in enumerate(graph["nodes"])}
    if len(place) < len(graph["nodes"]):
        return broken(where, "two of its nodes have the same id")
    edges = []
    for link in links:
        ends = (link.get("source"), link.get("target")) if isinstance(link, dict) else (None, None)
        if not all(isinstance(end, (str, int)) and end in place for end in ends):
            return broken(where, f"an edge joins {ends[0]!r} and {ends[1]!r}, which are not both nodes")
        edges.append((place[ends[0]], place[ends[1]]))
    labels = [n.get(rules.label) for n in graph["nodes"]] if rules.label else []
    if any(label is not None for label in labels) and any(label is None for label in labels):
        return broken(where, "some of its nodes have a label, and others have none")
    told = [str(label) for label in labels] if labels and labels[0] is not None else None
    about = graph.get("graph")
    name = about.get("name", about.get("id", "")) if isinstance(about, dict) else ""
    return judged(Entry(where, str(name), len(place), edges, told), rules, [str(i) for i in place])
