"""scidiff: diffusion, flow and Bayesian-flow models for science, with one tested core and a head for each domain.

    import scidiff
    molecules = scidiff.load("qm9").sample(16, seed=0)

The names below are loaded when they are first used; importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "load": "scidiff.api",
    "generate": "scidiff.api",
    "reconstruct": "scidiff.api",
    "rollout": "scidiff.api",
    "train": "scidiff.api",
    "evaluate": "scidiff.api",
    "fetch": "scidiff.api",
    "Domain": "scidiff.domains.base",
    "Samples": "scidiff.domains.base",
    "Verdict": "scidiff.domains.base",
    "State": "scidiff.core.spec",
    "StateSpec": "scidiff.core.spec",
    "Context": "scidiff.core.spec",
    "ScidiffError": "scidiff.core.errors",
    "UsageError": "scidiff.core.errors",
}

__all__ = [
    "Context",
    "Domain",
    "Samples",
    "ScidiffError",
    "State",
    "StateSpec",
    "UsageError",
    "Verdict",
    "__version__",
    "evaluate",
    "fetch",
    "generate",
    "load",
    "reconstruct",
    "rollout",
    "train",
]

if TYPE_CHECKING:
    from scidiff.api import evaluate, fetch, generate, load, reconstruct, rollout, train
    from scidiff.core.errors import ScidiffError, UsageError
    from scidiff.core.spec import Context, State, StateSpec
    from scidiff.domains.base import Domain, Samples, Verdict


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'scidiff' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
