"""A trained model of a domain: everything between a checkpoint folder and native objects.

`Model.load("qm9").sample(16, seed=0)` draws 16 molecules. Sample i depends on (seed, i) alone; which samples are
computed together (`chunks`) changes rounding only, and a run stores it, so that its bits repeat.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scidiff.core import bound
from scidiff.core.batching import chunks_by_length
from scidiff.core.denoiser import NetworkDenoiser
from scidiff.core.errors import ScidiffError, UsageError, nearest
from scidiff.core.guidance.clamp import Clamp
from scidiff.core.guidance.given import Given, known_whole
from scidiff.core.run import Run
from scidiff.core.sampler import Sampler
from scidiff.core.spec import Context, State, StateSpec, stack_ids
from scidiff.domains import load_domain
from scidiff.domains.base import Domain, Request, Samples, sample_id
from scidiff.store import checkpoint
from scidiff.store.model import assemble
from scidiff.store.targets import build

Progress = Callable[[str, int, int | None], None]
CHUNK, PAIRS = 256, 1 << 20
"""Samples computed together at most, and pairs of their atoms or nodes, where a state has any."""
_START_STREAM = 1
UNCONDITIONAL = ("scidiff.core.guidance.predictor.PredictorGuidance",)
"""Guidance that needs no conditions of the model."""


def pick_device(wanted: str | None) -> torch.device:
    """`auto` takes a GPU where there is one; UsageError where cuda is asked for and absent."""
    if wanted in (None, "auto"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if wanted not in ("cpu", "cuda"):
        raise UsageError(f"There is no device {wanted!r}.", nearest(str(wanted), ("auto", "cpu", "cuda")))
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UsageError("device=cuda, but no CUDA GPU is visible.", "Use device=cpu or device=auto.")
    return torch.device(wanted)


def merged_solver(own: Mapping[str, Any], asked: Mapping[str, Any] | None, steps: int | None) -> dict[str, Any]:
    """The model's solver config with a whole other solver, single settings, or another number of steps laid over it."""
    asked = dict(asked or {})
    result = copy.deepcopy(asked) if "_target_" in asked else _over(copy.deepcopy(dict(own)), asked)
    if steps is not None:
        if "steps" not in result and "_target_" in asked:
            raise UsageError("This solver chooses its own number of steps.", "Leave --steps out.")
        result["steps"] = int(steps)
    return result


def _over(base: dict[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in top.items():
        base[key] = _over(base[key], value) if isinstance(value, Mapping) and isinstance(base.get(key), dict) else value
    return base


@dataclass(frozen=True)
class Drawing:
    """How a chunk is drawn: the sampler, the device; with `autocast` matrix products of the network in bfloat16."""

    sampler: Sampler
    device: torch.device
    nfe: int
    graphed: bool = False
    autocast: bool = False


@dataclass(frozen=True)
class Start:
    """Clean states [B, ...] that samples are carried to time t from; those that are not `found` begin from noise."""

    state: State
    found: Tensor
    t: float


class Model:
    """A domain, a StateSpec and a denoiser, with the solver that the model was made for."""

    def __init__(self, config: dict[str, Any], domain: Domain, spec: StateSpec, denoiser: NetworkDenoiser,
                 folder: Path | None = None) -> None:
        self.config, self.domain, self.spec, self.denoiser, self.folder = config, domain, spec, denoiser, folder

    @classmethod
    def load(cls, name_or_path: str | Path, device: str | None = "cpu") -> Model:
        """A shipped model by name or alias, a run folder, a checkpoint folder, or org/name on the hub."""
        stored = checkpoint.load(checkpoint.find(name_or_path))
        about = stored.config.get("domain") or {}
        if "name" not in about:
            raise ScidiffError(f"The checkpoint {stored.folder} does not say to which domain it belongs.")
        domain = load_domain(about["name"], about.get("options"))
        spec, denoiser = assemble(stored.config, stored.weights)
        return cls(stored.config, domain, spec, denoiser.eval().to(pick_device(device)), stored.folder)

    @property
    def name(self) -> str:
        return str(self.config.get("experiment") or self.domain.name)

    def drawing(self, solver: Mapping[str, Any] | None = None, steps: int | None = None,
                guidance: Mapping[str, Any] | None = None, device: str | None = "cpu",
                precision: int | str = 32, rules: Sequence[Any] = (), ctx: Context | None = None) -> Drawing:
        """A sampler ready to run; `guidance` is a config with a `_target_` and the settings of a wrapper, `rules` act
        after every step. `ctx`: what is known or asked of the samples is kept to."""
        if precision not in (32, 64, "bf16"):
            raise UsageError(f"precision is 32, 64 or bf16, not {precision!r}.")
        place = pick_device(device)
        dtype = torch.float64 if precision == 64 else torch.float32
        self.denoiser.to(place, dtype)
        driver = build(merged_solver(self.config["solver"], solver, steps))
        denoiser: Any = self.denoiser
        if ctx is not None:
            denoiser, rules = self._keeping(denoiser, ctx, rules)
        if guidance and "_target_" in guidance:
            denoiser = build(guidance, denoiser=denoiser)
        sampler = Sampler(self.spec, denoiser, driver, rules, dtype=dtype,
                          compile=bool(getattr(driver, "compile", False)),
                          cuda_graph=bool(getattr(driver, "cuda_graph", False)))
        return Drawing(sampler, place, int(driver.total(self.spec, 1.0)), bool(getattr(driver, "cuda_graph", False)),
                       precision == "bf16")

    def _keeping(self, denoiser: Any, ctx: Context, rules: Sequence[Any]) -> tuple[Any, Sequence[Any]]:
        """The denoiser and the rules that keep to what a context knows and to what the domain reads in it."""
        shown = [n for n, share in ((self.config.get("objective") or {}).get("clean") or {}).items() if share]
        given = [n for n in shown if n in ctx.known]
        if given:
            denoiser = Given(denoiser, self.spec, given)
        whole = all(n in given and bool(known_whole(ctx.at(n, self.spec[n])).all()) for n in ctx.known)
        return self.domain.restrained(denoiser, ctx), (*rules, *(() if whole else (Clamp(self.spec),)))

    @property
    def conditions(self) -> dict[str, dict[str, float]]:
        """What the model was conditioned on in training: name -> mean and standard deviation of the data."""
        return dict((self.config.get("statistics") or {}).get("conditions") or {})

    def agree(self, guidance: Mapping[str, Any] | None, condition: Mapping[str, Any] | None) -> None:
        """UsageError where guidance by conditions has nothing to act on."""
        if not guidance or "_target_" not in guidance or guidance["_target_"] in UNCONDITIONAL:
            return
        if not self.conditions:
            raise UsageError(f"The model {self.name!r} was trained without conditions, so it cannot be guided.",
                             "Leave --guide out.")
        if not condition:
            raise UsageError("Guidance needs something to guide to.",
                             f"Add --condition NAME=VALUE; this model knows {', '.join(self.conditions)}.")

    def template(self, ids: Tensor, seed: int, condition: Mapping[str, Any] | None = None,
                 options: Mapping[str, Any] | None = None) -> Context:
        """The context of samples `ids`, conditions standardised as in training."""
        known = self.conditions
        for name, value in (condition or {}).items():
            if name not in known:
                raise UsageError(f"The model {self.name!r} knows no condition {name!r}.",
                                 nearest(name, known) if known else "It was trained without conditions.")
            if value is not None and not _is_number(value):
                raise UsageError(f"The condition {name} must be a number, not {value!r}.",
                                 f"In the training data it was {known[name]['mean']:.3g} +- {known[name]['std']:.2g}.")
        ctx = self.domain.template(Request(ids, seed, dict(condition or {}), dict(options or {})))
        for name, about in known.items():
            wanted = (condition or {}).get(name)
            value = (float(wanted if wanted is not None else about["mean"]) - about["mean"]) / about["std"]
            ctx.cond[name] = (torch.full((len(ids),), value), torch.full((len(ids),), wanted is not None))
        return ctx

    def chunks(self, ctx: Context, chunk: int | None = None) -> list[list[int]]:
        """Which rows of the context are computed together: similar sizes, at most `chunk` (default: what the model's
        own `sampling.chunk` says, else 256, fewer where pairs of a large graph would fill the memory)."""
        chunk = chunk or (self.config.get("sampling") or {}).get("chunk")
        if chunk is None and any(c.shape.count("N") > 1 for c in self.spec.values()) and ctx.sizes is not None:
            chunk = min(CHUNK, max(PAIRS // int(ctx.sizes.max()) ** 2, 1))
        return [part.tolist() for part in chunks_by_length(ctx.sizes, ctx.batch, chunk or CHUNK)]

    def draw(self, drawing: Drawing, ctx: Context, rows: Sequence[int], seed: int,
             on_step: Callable[[Any], None] | None = None, start: Start | None = None) -> State:
        """The final state of some rows of a context, on the CPU, padded like the context."""
        index = torch.as_tensor(rows, dtype=torch.int64)
        if start is not None:
            has = start.found[index]
            if not bool(has.all()):
                return self._apart(drawing, ctx, index, has, seed, on_step, start)
            if start.t <= 0.0:
                return {name: x[index].clone() for name, x in start.state.items()}
        part = ctx.take(index)
        padded, part = part.n_max, _shortened(part, self.spec)
        with torch.autocast(drawing.device.type, torch.bfloat16, enabled=drawing.autocast):
            part = part.to(drawing.device)
            begin = None if start is None else self._begun(drawing, part, index, seed, start)
            result = drawing.sampler.run(part, seed, start=begin, t_start=1.0 if start is None else start.t,
                                         on_step=on_step)
        return {name: _repad(x.cpu(), self.spec[name].shape, padded) for name, x in result.state.items()}

    def _apart(self, drawing: Drawing, ctx: Context, index: Tensor, has: Tensor, seed: int,
               on_step: Callable[[Any], None] | None, start: Start) -> State:
        """Rows with a start and rows without one, each drawn by themselves."""
        parts = [(has.nonzero()[:, 0], start), ((~has).nonzero()[:, 0], None)]
        made = [(k, self.draw(drawing, ctx, index[k].tolist(), seed, on_step, begin)) for k, begin in parts if len(k)]
        order = torch.argsort(torch.cat([k for k, _ in made]))
        return {name: torch.cat([state[name] for _, state in made])[order] for name in self.spec}

    def _begun(self, drawing: Drawing, part: Context, index: Tensor, seed: int, start: Start) -> State:
        """The start states of some rows at the start's time."""
        out, run = {}, Run(seed, _START_STREAM)
        for name, c in self.spec.items():
            x0 = _cropped(start.state[name][index], c.shape, part.n_max).to(part.device)
            x0 = x0.to(drawing.sampler.dtype) if x0.is_floating_point() else x0
            site = part.at(name, c)
            out[name] = c.path.corrupt(x0, start.t, site, run.handle(site, drawing.sampler.dtype)).z
        return out

    def costs(self, state: State, ctx: Context, chunks: Sequence[Sequence[int]], seed: int,
              progress: Progress | None = None) -> Tensor:
        """What the model holds against each sample of a state (core/bound.py), float64 [B]; less is likelier."""
        denoiser, _ = self._keeping(self.denoiser.to("cpu", torch.float32), ctx, ())
        out = torch.zeros(ctx.batch, dtype=torch.float64)
        for number, rows in enumerate(chunks):
            index = torch.as_tensor(rows, dtype=torch.int64)
            part = _shortened(ctx.take(index), self.spec)
            held = {name: _cropped(x[index], self.spec[name].shape, part.n_max) for name, x in state.items()}
            out[index] = bound.cost(self.spec, denoiser, held, part, seed)
            if progress is not None:
                progress("Ranking", number + 1, len(chunks))
        return out

    def draws(self, drawing: Drawing, ctx: Context, chunks: Sequence[Sequence[int]], seed: int,
              progress: Progress | None = None, skip: Sequence[int] = (),
              watch: Callable[[Any], None] | None = None, start: Start | None = None) -> Iterator[tuple[int, State]]:
        """(chunk number, state) for each chunk that is not in `skip`; `watch` is called with the Loop after each step.

        A captured loop cannot be looked into: without `watch`, its progress is told by whole chunks.
        """
        total = sum(len(c) for c in chunks)
        done = sum(len(chunks[i]) for i in skip)
        for i, rows in enumerate(chunks):
            if i in skip:
                continue

            def on_step(loop: Any, rows: Sequence[int] = rows, before: int = done) -> None:
                if progress is not None:
                    progress("Sampling", before + int(len(rows) * loop.stage / max(loop.total, 1)), total)
                if watch is not None:
                    watch(loop)

            looked_at = watch is not None or (progress is not None and not drawing.graphed)
            state = self.draw(drawing, ctx, rows, seed, on_step if looked_at else None, start)
            done += len(rows)
            if progress is not None:
                progress("Sampling", done, total)
            yield i, state

    def sample(self, num: int, seed: int = 0, *, steps: int | None = None, solver: Mapping[str, Any] | None = None,
               condition: Mapping[str, Any] | None = None, guidance: Mapping[str, Any] | None = None,
               chunk: int | None = None, device: str | None = "cpu", precision: int | str = 32, start: int = 0,
               progress: Progress | None = None, **options: Any) -> Samples:
        """Draws samples start, start + 1, ... as native objects with verdicts; `options` are the domain's (sizes=...).

        Raises UsageError for impossible requests, NonFinite if the network fails.
        """
        if int(num) < 1:
            raise UsageError(f"The number of samples must be positive, not {num}.")
        self.agree(guidance, condition)
        ids = stack_ids(int(start), int(num))
        ctx = self.template(ids, seed, condition, options)
        drawing = self.drawing(solver, steps, guidance, device, precision, ctx=ctx)
        chunks = self.chunks(ctx, chunk)
        states = dict(self.draws(drawing, ctx, chunks, seed, progress))
        return self.samples(join(states, chunks), ctx, seed, ids.tolist())

    def samples(self, state: State, ctx: Context, seed: int, numbers: Sequence[int]) -> Samples:
        """Native objects and verdicts of a whole state."""
        objects = self.domain.decode(state, ctx)
        return Samples(objects, [sample_id(i) for i in numbers], seed, self.domain.check(objects), self.domain)


def join(states: Mapping[int, State], chunks: Sequence[Sequence[int]]) -> State:
    """The states of all chunks, put back in the order of the rows."""
    order = torch.argsort(torch.tensor([row for i in sorted(states) for row in chunks[i]]))
    first = next(iter(states.values()))
    return {name: torch.cat([states[i][name] for i in sorted(states)])[order] for name in first}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _shortened(ctx: Context, spec: StateSpec) -> Context:
    """The context with no more padding than its longest sample needs."""
    if ctx.sizes is not None:
        ctx.n_max = int(ctx.sizes.max())
        ctx.known = {name: (_cropped(x0, spec[name].shape, ctx.n_max), _cropped(where, spec[name].shape, ctx.n_max))
                     for name, (x0, where) in ctx.known.items()}
    return ctx


def _cropped(x: Tensor, shape: Sequence[int | str], n: int) -> Tensor:
    """x [B, ...] with the axes of variable length cut to n."""
    for axis, dim in enumerate(shape[: x.dim() - 1]):
        x = x.narrow(axis + 1, 0, n) if dim == "N" else x
    return x


def _repad(x: Tensor, shape: Sequence[int | str], n: int) -> Tensor:
    dims = [n if d == "N" else x.shape[axis + 1] for axis, d in enumerate(shape)]
    if list(x.shape[1:]) == dims:
        return x
    out = x.new_zeros(x.shape[0], *dims)
    out[tuple(slice(0, size) for size in x.shape)] = x
    return out
