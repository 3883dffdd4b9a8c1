"""Crystals of a data set, file or folder as what is asked of samples: predict the structures of these compositions.

Sample i takes row i modulo the number of rows, so that k times as many samples give k attempts at each; it bears the
name of its row, by which an evaluation pairs it with the truth.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from scidiff.core.errors import UsageError
from scidiff.domains.base import Records
from scidiff.store import cards, fetch

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from scidiff.core.spec import Context
    from scidiff.domains.base import Request
    from scidiff.domains.crystal.codec import CrystalCodec

ROW, NAMES = "row", "names"


def records(name: str, split: str = "test", root: str | Path | None = None) -> Records:
    """The crystals of a part of a data set, or all of a file or folder."""
    from scidiff.domains.crystal import data

    if Path(name).exists():
        return data.read(name).require(name)
    card = cards.find(name)
    if card.domain != "crystal":
        raise UsageError(f"The data set {name!r} belongs to the domain {card.domain!r}, not to 'crystal'.")
    given = fetch.provide(card, root)
    return data.dataset(given.files, given.reader, given.options, split).require(name)


def context(request: Request, name: str, codec: CrystalCodec) -> Context:
    """The Context of samples whose compositions are those of the rows; `meta` remembers the rows and their names."""
    from scidiff.domains.crystal.request import of_structures

    wish = request.options
    found = records(name, str(wish.get("split") or "test"), wish.get("root"))
    place = request.ids.cpu() % len(found)
    ctx = of_structures([found.objects[i] for i in place.tolist()], codec, request.ids)
    ctx.meta[ROW], ctx.meta[NAMES] = place.to(request.ids.device), tuple(found.names)
    return ctx


def named(structures: list[Structure], ctx: Context) -> list[Structure]:
    """The structures with the names of their rows, where the context has any."""
    if ROW in ctx.meta:
        for structure, row in zip(structures, ctx.meta[ROW].tolist(), strict=True):
            structure.properties["id"] = structure.properties["material_id"] = ctx.meta[NAMES][row]
    return structures
