"""Samples of a volume from a prior and a measurement, one after the other, each kept as soon as it is done.

    sample_00003    a finished sample: `x` [Z, 1, Y, X] in the range of the prior, on the grid of the scan
    step            the state of the sample that is being drawn, after its last stored step

Both are parts of a store (`store.run.RunFolder`): an interrupted reconstruction keeps its finished samples, takes up
the one that was being drawn at the stored step, and ends with the same numbers. Without a store samples stay in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from time import monotonic
from typing import Any, Protocol

import torch
from torch import Tensor

from scidiff.core.errors import ScidiffError
from scidiff.core.plan import Driver
from scidiff.core.posterior import Posterior, Problem, stream
from scidiff.core.spec import Context

STEP = "step"
KEEP = 1_500_000_000  # bytes of volumes that stay in the memory beside a store
Progress = Callable[[str, int, int | None], None]


class Store(Protocol):
    """Where parts of a reconstruction are kept; nothing is written before the request is known to be possible."""

    def has_part(self, name: str) -> bool: ...

    def write_part(self, name: str, tensors: Mapping[str, Tensor], notes: Mapping[str, Any] | None = None) -> Any: ...

    def read_part(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]: ...


class Archive:
    """Volumes by name: as parts of a store where there is one, and in the memory as far as `KEEP` allows."""

    def __init__(self, store: Store | None = None) -> None:
        self._store = store
        self._kept: dict[str, Tensor] = {}

    def has(self, name: str) -> bool:
        return name in self._kept or (self._store is not None and self._store.has_part(name))

    def put(self, name: str, x: Tensor, notes: Mapping[str, Any] | None = None) -> None:
        if self._store is not None:
            self._store.write_part(name, {"x": x}, notes)
        self._keep(name, x)

    def get(self, name: str) -> Tensor:
        if name in self._kept:
            return self._kept[name]
        if self._store is None or not self._store.has_part(name):
            raise ScidiffError(f"{name} is no longer in the memory.", "Read it from the files of the run.")
        x = self._store.read_part(name)[0]["x"]
        self._keep(name, x)
        return x

    def _keep(self, name: str, x: Tensor) -> None:
        if self._store is None or sum(v.nbytes for v in self._kept.values()) + x.nbytes <= KEEP:
            self._kept[name] = x

    def once(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """What is kept under a name, made where it is not there yet."""
        if not self.has(name):
            self.put(name, make())
        return self.get(name)

    def put_step(self, number: int, state: Mapping[str, Any]) -> None:
        """Keeps where sample `number` stands, in a store alone."""
        if self._store is not None:
            tensors, tree = taken_apart(state)
            self._store.write_part(STEP, tensors, {"sample": number, "tree": tree})

    def step(self, number: int) -> dict[str, Any] | None:
        """Where sample `number` stood when it was interrupted."""
        if self._store is None or not self._store.has_part(STEP):
            return None
        tensors, notes = self._store.read_part(STEP)
        return put_together(tensors, notes["tree"]) if notes.get("sample") == number else None


def sample_part(number: int) -> str:
    return f"sample_{number:05d}"


def drawn(problem: Problem, posterior: Posterior, context: Context, samples: int, seed: int, archive: Archive,
          finished: Callable[[Tensor], Tensor], solver: Driver | None = None, every: float = 30.0,
          progress: Progress | None = None) -> Iterator[tuple[int, Tensor]]:
    """(number, sample) of all samples; `finished` turns a final state [B, *dims] into a volume of the scan.

    `every`: seconds between two stored steps. Sample i depends on (seed, i) alone.
    """
    done = 0
    while done < samples and archive.has(sample_part(done)):
        yield done, archive.get(sample_part(done))
        done += 1
    last, current = monotonic(), done

    def on_step(at: Any) -> None:
        nonlocal last
        if progress is not None:
            progress("Sampling", current * at.total + at.stage, samples * at.total)
        if at.stage < at.total and monotonic() - last >= every:
            archive.put_step(current, at.state_dict())
            last = monotonic()

    groups = stream(problem, posterior, samples, seed, solver, context, 1, on_step, done, archive.step(done))
    for numbers, result in groups:
        x = finished(result.state[problem.name])
        archive.put(sample_part(numbers[0]), x, {"nfe": result.nfe})
        current = numbers[0] + 1
        yield numbers[0], x


# -- nested states as flat tensors


def taken_apart(state: Any) -> tuple[dict[str, Tensor], Any]:
    """(tensors by number, the rest as JSON) of nested dictionaries and lists of tensors and plain values."""
    tensors: dict[str, Tensor] = {}

    def walk(node: Any) -> Any:
        if isinstance(node, Tensor):
            tensors[str(len(tensors))] = node
            return {"tensor": str(len(tensors) - 1)}
        if isinstance(node, Mapping):
            return {"mapping": [[key, walk(value)] for key, value in node.items()]}
        if isinstance(node, Sequence) and not isinstance(node, str):
            return {"list": [walk(value) for value in node]}
        return {"value": node}

    return tensors, walk(state)


def put_together(tensors: Mapping[str, Tensor], tree: Any) -> Any:
    """The inverse of `taken_apart`; sequences come back as lists."""
    kind, content = next(iter(tree.items()))
    if kind == "tensor":
        return tensors[content]
    if kind == "mapping":
        return {key: put_together(tensors, value) for key, value in content}
    return [put_together(tensors, value) for value in content] if kind == "list" else content


def stacked(archive: Archive, samples: int, start: int, stop: int) -> Tensor:
    """Slices start .. stop - 1 of all samples, [samples, slices, 1, Y, X]."""
    return torch.stack([archive.get(sample_part(i))[start:stop] for i in range(samples)])
