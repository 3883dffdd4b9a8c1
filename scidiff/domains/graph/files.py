"""Writers of graph files: one run, one id everywhere.

samples.csv holds a row a sample, graphs.npz all graphs (archive.py; `scidiff evaluate` reads it), graphml/<id>.graphml
one graph each, for other programs, with id, seed and verdict as attributes. Invalid samples are in all of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from scidiff.domains.graph import archive, view
from scidiff.domains.graph.data import RUN_FILE
from scidiff.store import atomic

if TYPE_CHECKING:
    from networkx import Graph

    from scidiff.domains.base import Samples

_MOST_DRAWN = 48


def write_samples(samples: Samples, folder: Path) -> list[Path]:
    """samples.csv, graphs.npz, graphml/<id>.graphml and graphs.png; each appears whole or not at all."""
    rows = samples.table()
    written = [atomic.write_table(folder / "samples.csv", rows),
               atomic.write_bytes(folder / RUN_FILE, archive.packed(samples.objects, samples.ids))]
    if samples.objects:
        with atomic.writing_folder(folder / "graphml") as new:
            for graph, row in zip(samples.objects, rows, strict=True):
                (new / f"{row['id']}.graphml").write_bytes(as_graphml(graph, row))
        written += [folder / "graphml" / f"{row['id']}.graphml" for row in rows]
        drawn = slice(0, _MOST_DRAWN)
        picture = view.grid_png(samples.objects[drawn], samples.verdicts[drawn], samples.ids[drawn])
        written.append(atomic.write_bytes(folder / "graphs.png", picture))
    return written


def as_graphml(graph: Graph, about: dict[str, Any]) -> bytes:
    """A GraphML document of one graph: its id, what is known of it as attributes, labels of the nodes."""
    from networkx.readwrite.graphml import generate_graphml

    plain = graph.copy()
    plain.graph = {k: v for k, v in about.items() if v not in ("", None)}
    return ("\n".join(generate_graphml(plain)) + "\n").encode("utf-8")
