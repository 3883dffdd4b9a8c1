"""The tensor cache: encoded training data and a resolved config, all that training needs.

    config.yaml          resolved: spec, backbone, denoiser, objective, trainer, domain, statistics, seed
    train.safetensors    state/<component> [M, ...] (small classes as uint8), sizes [M], cond/<name>
    valid.safetensors    the same for the hold-out

A machine with torch and lightning alone trains from it: no reader, no Hydra, no domain library.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scidiff.core.batching import batches_by_length, length_buckets
from scidiff.core.errors import ScidiffError
from scidiff.core.spec import Context, State
from scidiff.store import atomic


@dataclass
class TensorData:
    """Encoded samples in memory; `batch(index)` crops the padding to the longest sample of the batch."""

    state: State
    sizes: Tensor | None
    cond: dict[str, Tensor]
    shapes: dict[str, tuple[int | str, ...]]

    def __len__(self) -> int:
        return next(iter(self.state.values())).shape[0]

    @classmethod
    def of(cls, state: State, ctx: Context, shapes: dict[str, tuple[int | str, ...]]) -> TensorData:
        return cls(state, ctx.sizes, {k: v for k, (v, _) in ctx.cond.items()}, shapes)

    def batch(self, index: Tensor, length: int | None = None) -> tuple[State, Context]:
        """The samples at `index`, padded to `length` (default: the longest of them); ids are their row numbers."""
        sizes = None if self.sizes is None else self.sizes[index]
        n = 0 if sizes is None else int(length or sizes.max())
        state = {}
        for name, x in self.state.items():
            x = x[index]
            for axis, dim in enumerate(self.shapes[name]):
                if dim == "N":
                    x = x.narrow(axis + 1, 0, n)
            state[name] = x.long() if not x.is_floating_point() else x
        present = torch.ones(len(index), dtype=torch.bool)
        cond = {k: (v[index], present) for k, v in self.cond.items()}
        return state, Context(index.clone(), sizes, n, cond)

    def tensors(self) -> dict[str, Tensor]:
        out = {f"state/{k}": v for k, v in narrowed(self.state).items()}
        if self.sizes is not None:
            out["sizes"] = self.sizes
        out.update({f"cond/{k}": v for k, v in self.cond.items()})
        return {k: v.contiguous() for k, v in out.items()}


def narrowed(state: State) -> State:
    """Classes below 256 as bytes: eight times less memory for a set of dense graphs."""
    return {k: v.to(torch.uint8) if not v.is_floating_point() and v.numel() and int(v.max()) < 256 else v
            for k, v in state.items()}


@dataclass
class Cache:
    """A prepared training set with its resolved config."""

    config: dict[str, Any]
    train: TensorData
    valid: TensorData

    def write(self, folder: str | Path) -> Path:
        from safetensors.torch import save

        target = atomic.ensure_folder(folder)
        atomic.write_bytes(target / "train.safetensors", save(self.train.tensors()))
        atomic.write_bytes(target / "valid.safetensors", save(self.valid.tensors()))
        atomic.write_text(target / "config.yaml", atomic.dump_yaml(self.config))
        return target

    @classmethod
    def open(cls, folder: str | Path) -> Cache:
        """Reads a cache folder; ScidiffError where it is none."""
        from safetensors.torch import load_file

        place = Path(folder)
        for name in ("config.yaml", "train.safetensors", "valid.safetensors"):
            if not (place / name).is_file():
                raise ScidiffError(f"{place} is not a tensor cache: it has no {name}.",
                                   "Prepare one with: scidiff train experiment=NAME prepare=FOLDER")
        config = atomic.read_yaml(place / "config.yaml", "training config")
        shapes = {k: tuple(v["shape"]) for k, v in config["spec"].items()}

        def read(name: str) -> TensorData:
            t = load_file(place / f"{name}.safetensors")
            return TensorData({k: t[f"state/{k}"] for k in shapes}, t.get("sizes"),
                              {k[5:]: v for k, v in t.items() if k.startswith("cond/")}, shapes)

        return cls(config, read("train"), read("valid"))


class TrainingBatches(torch.utils.data.IterableDataset):
    """Batches `start`, `start + 1`, ..., `stop - 1` of an endless shuffled pass: batch k depends on (seed, k) alone.

    Samples of similar length share a batch, and the remainder of a pass is left out; `as_they_fall` does neither: the
    last batch of a pass is smaller. With `buckets` every batch is padded to one of so many lengths (compiled shapes).
    Of `ranks` devices the one numbered `rank` takes every so-manieth batch: step k of it is batch k ranks + rank.
    """

    def __init__(self, data: TensorData, size: int, seed: int, start: int, stop: int, buckets: int = 0,
                 rank: int = 0, ranks: int = 1, as_they_fall: bool = False) -> None:
        self.data, self.size, self.seed, self.start, self.stop = data, min(size, len(data)), seed, start, stop
        self.rank, self.ranks, self.as_they_fall = rank, ranks, as_they_fall
        self.ends = None if data.sizes is None or not buckets else length_buckets(data.sizes, buckets)
        self.per_pass = batches_a_pass(len(data), size, as_they_fall)

    def __iter__(self) -> Iterator[tuple[State, Context]]:
        worker = torch.utils.data.get_worker_info()
        offset, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        number, plan = -1, []
        for step in range(self.start + offset, self.stop, stride):
            batch = step * self.ranks + self.rank
            if batch // self.per_pass != number:
                number = batch // self.per_pass
                plan = self._pass(self.seed * 1_000_003 + number)
            rows = plan[batch % self.per_pass]
            yield self.data.batch(rows, self._length(rows))

    def _length(self, rows: Tensor) -> int | None:
        if self.ends is None or self.data.sizes is None:
            return None
        return int(self.ends[torch.bucketize(self.data.sizes[rows].max(), self.ends)])

    def _pass(self, seed: int) -> list[Tensor]:
        """The row numbers of every batch of one pass."""
        if self.as_they_fall:
            order = torch.randperm(len(self.data), generator=torch.Generator().manual_seed(seed % (1 << 63)))
            return list(order.split(self.size))
        return batches_by_length(self.data.sizes, len(self.data), self.size, seed, self.ends)


def batches_a_pass(count: int, size: int, as_they_fall: bool = False) -> int:
    """How many batches of at most `size` samples a pass over `count` samples has."""
    return -(-count // size) if as_they_fall else max(count // min(size, count), 1)


class HoldOut(torch.utils.data.Dataset):
    """The hold-out in fixed batches."""

    def __init__(self, data: TensorData, size: int) -> None:
        self.data = data
        self.parts = list(torch.arange(len(data)).split(min(size, max(len(data), 1))))

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, i: int) -> tuple[State, Context]:
        return self.data.batch(self.parts[i])
