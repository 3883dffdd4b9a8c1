"""GraphML, read as a stream: every <graph> of a file, without document types, entities or anything else that acts.

A graph has an optional `id` and `edgedefault` (directed or undirected), nodes with ids, edges with source and target.
The label of a node is its <data> under the key of a given name. What generative models of simple graphs cannot use
(directed edges, hyperedges, graphs inside nodes, edges to unknown nodes) costs that graph alone; text that is no
well-formed XML costs the rest of the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO
from xml.parsers import expat

from scidiff.domains.graph.entries import Entry, Rules, broken, judged

_BLOCK = 1 << 16


class _Refused(Exception):
    """A document that is not read on, and why."""


class _Document:
    """The handlers of one document; finished graphs wait in `ready`."""

    def __init__(self, file: str, rules: Rules) -> None:
        self.file, self.rules = file, rules
        self.ready: list[Entry] = []
        self.number = self.depth = 0
        self.keys: dict[str, str] = {}
        self.begun = False
        self._reset({})
        self.parser = expat.ParserCreate(namespace_separator=" ")
        self.parser.buffer_text = True
        self.parser.StartDoctypeDeclHandler = self.doctype
        self.parser.StartElementHandler = self.start
        self.parser.EndElementHandler = self.end
        self.parser.CharacterDataHandler = self.text

    def _reset(self, about: dict[str, str]) -> None:
        self.about, self.reason = about, ""
        self.nodes: dict[str, int] = {}
        self.labels: dict[int, str] = {}
        self.edges: list[tuple[int, int]] = []
        self.ends: list[tuple[str, str]] = []
        self.node: int | None = None
        self.value: list[str] | None = None

    def doctype(self, *_: Any) -> None:
        raise _Refused("it declares a document type, which scidiff does not follow; remove its <!DOCTYPE ...>")

    def start(self, name: str, about: dict[str, str]) -> None:
        tag = name.rpartition(" ")[2]
        if not self.begun:
            self.begun = True
            if tag != "graphml":
                raise _Refused(f"its root element is <{tag}>, not <graphml>")
        if tag == "key":
            self.keys[about.get("id", "")] = about.get("attr.name") or about.get("id", "")
        elif tag == "graph":
            self.depth += 1
            if self.depth == 1:
                self._reset(about)
                self.number += 1
            else:
                self.flaw("it holds graphs inside its nodes")
        elif self.depth == 1:
            self.part(tag, about)

    def part(self, tag: str, about: dict[str, str]) -> None:
        """Something inside a graph."""
        if tag == "node":
            name = about.get("id", "")
            if not name or name in self.nodes:
                self.flaw(f"two of its nodes are called {name!r}" if name else "one of its nodes has no id")
            self.node = self.nodes.setdefault(name, len(self.nodes))
        elif tag == "edge":
            directed = about.get("directed", str(self.about.get("edgedefault") == "directed").lower())
            if directed == "true" and not self.rules.simplify:
                self.flaw("its edges are directed (data.options.simplify=true drops the directions)")
            if "source" not in about or "target" not in about:
                self.flaw("one of its edges has no source or no target")
            elif len(self.nodes) <= self.rules.most:
                self.ends.append((about["source"], about["target"]))
        elif tag == "hyperedge":
            self.flaw("it has a hyperedge")
        elif tag == "data" and self.node is not None and self.keys.get(about.get("key", "")) == self.rules.label:
            self.value = []

    def text(self, characters: str) -> None:
        if self.value is not None:
            self.value.append(characters)

    def end(self, name: str) -> None:
        tag = name.rpartition(" ")[2]
        if tag == "graph":
            self.depth -= 1
            if self.depth == 0:
                self.ready.append(self.finished())
        elif self.depth == 1 and tag == "node":
            self.node = None
        elif self.depth == 1 and tag == "data" and self.value is not None and self.node is not None:
            self.labels[self.node] = "".join(self.value).strip()
            self.value = None

    def flaw(self, reason: str) -> None:
        self.reason = self.reason or reason

    def finished(self) -> Entry:
        where = f"{self.file}, graph {self.number}"
        own = self.about.get("id", "")
        unknown = next((end for pair in self.ends for end in pair if end not in self.nodes), None)
        if unknown is not None:
            self.flaw(f"an edge names the node {unknown!r}, which the graph does not have")
        if self.labels and len(self.labels) != len(self.nodes):
            self.flaw(f"{len(self.nodes) - len(self.labels)} of its {len(self.nodes)} nodes have no label, and the "
                      "others have one")
        if self.reason:
            return Entry(where, own, reason=self.reason, text=own)
        labels = [self.labels[i] for i in range(len(self.nodes))] if self.labels else None
        edges = [(self.nodes[u], self.nodes[v]) for u, v in self.ends]
        return judged(Entry(where, own, len(self.nodes), edges, labels, text=own), self.rules, list(self.nodes))


def entries(stream: BinaryIO, file: str, rules: Rules) -> Iterator[Entry]:
    """Every graph of a GraphML document; `file` names it in messages."""
    document = _Document(file, rules)
    last = False
    while not last:
        block = stream.read(_BLOCK)
        last = not block
        try:
            document.parser.Parse(block, last)
        except _Refused as refusal:
            yield from document.ready
            yield broken(file, str(refusal))
            return
        except expat.ExpatError as error:
            yield from document.ready
            what = expat.ErrorString(error.code)
            yield broken(f"{file}, line {error.lineno}", f"it is not well-formed XML ({what})")
            return
        except (LookupError, ValueError) as error:  # an encoding that Python does not have, or expat cannot use
            yield broken(file, f"it is not well-formed XML ({error})")
            return
        yield from document.ready
        document.ready = []
