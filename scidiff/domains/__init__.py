"""The domains: an in-code table of the built-in ones, and whatever the entry-point group `scidiff.domains` adds."""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

from scidiff.core.errors import UsageError, nearest
from scidiff.domains.base import Domain

BUILT_IN = {"molecule": "scidiff.domains.molecule:MoleculeDomain", "graph": "scidiff.domains.graph:GraphDomain",
            "crystal": "scidiff.domains.crystal:CrystalDomain", "pde": "scidiff.domains.pde:PdeDomain",
            "medical": "scidiff.domains.medical:MedicalDomain"}


@lru_cache(maxsize=1)
def table() -> dict[str, str]:
    """Domain name -> "module:Class"; third parties cannot replace a built-in one."""
    found = {e.name: e.value for e in _entries()}
    return {**found, **BUILT_IN}


def _entries() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group="scidiff.domains"))


def domain_class(name: str) -> type[Domain]:
    """The class of a domain by name; unknown names get the nearest known ones."""
    known = table()
    if name not in known:
        raise UsageError(f"There is no domain {name!r}.", nearest(name, known))
    module, _, attribute = known[name].partition(":")
    return getattr(import_module(module), attribute)


def load_domain(name: str, options: dict | None = None) -> Domain:
    """A domain with its options; its libraries must be installed."""
    domain = domain_class(name)(**(options or {}))
    domain.need()
    return domain
