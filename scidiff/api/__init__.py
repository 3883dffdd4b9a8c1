"""The verbs as functions: what the command line does, callable from Python.

Each verb takes the settings that `scidiff.config.compose(verb, overrides)` returns (or the overrides themselves, as a
list of `key=value` strings), does the work in a run folder and returns an `Outcome` with the native objects. For
samples without any file use `load(name).sample(num, seed=...)`.

`progress(label, done, total)` is called along the way; where it has a `started(folder)`, that is told the run folder.
"""

from __future__ import annotations

from pathlib import Path

from scidiff.api.evaluate import evaluate
from scidiff.api.generate import generate
from scidiff.api.reconstruct import reconstruct
from scidiff.api.rollout import rollout
from scidiff.api.settings import Outcome, Progress, Settings, load
from scidiff.api.train import train

__all__ = ["Outcome", "Progress", "Settings", "evaluate", "fetch", "generate", "load", "reconstruct", "rollout",
           "train"]


def fetch(name: str, progress: Progress | None = None) -> dict[str, Path]:
    """Brings a data set into the cache (or finds it in a folder or an installed package); its files by name."""
    from scidiff.store import cards
    from scidiff.store import fetch as store

    return store.provide(cards.find(name), progress=progress).files
