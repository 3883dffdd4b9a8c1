"""What moves, and what is known about it: StateSpec, Context, Site.

A `State` is a plain `dict[str, Tensor]` with tensors [B, *shape]. A `StateSpec` says, per component, in which space it
lives, which path carries it from data (t = 0) to the source (t = 1) and what one sample's shape is; the letter "N" in
a shape is an axis of variable length (atoms, nodes), padded to `Context.n_max` and masked by `Context.sizes`.
A `Context` is what a batch knows besides its state. A `Site` is a Context seen from one component: the `ctx` argument
of every Path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scidiff.core.errors import ScidiffError
from scidiff.core.space import Space

if TYPE_CHECKING:
    from scidiff.core.path.base import Path

State = dict[str, Tensor]
Shape = tuple[int | str, ...]


@dataclass(frozen=True)
class Component:
    """One moving thing: where it lives, how it travels, and the shape of one sample of it."""

    space: Space
    path: Path
    shape: Shape

    def __post_init__(self) -> None:
        if any(not (n == "N" or (isinstance(n, int) and n > 0)) for n in self.shape):
            raise ScidiffError(f"A component's shape holds positive integers and 'N', not {self.shape}.")
        self.path.validate(self.space)

    @property
    def padded(self) -> tuple[bool, ...]:
        return tuple(n == "N" for n in self.shape)


class StateSpec(Mapping[str, Component]):
    """Immutable mapping name -> Component, with a JSON form."""

    def __init__(self, components: Mapping[str, Component]) -> None:
        if not components:
            raise ScidiffError("A state needs at least one component.")
        self._components = dict(components)

    def __getitem__(self, name: str) -> Component:
        return self._components[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._components)

    def __len__(self) -> int:
        return len(self._components)

    def to_config(self) -> dict[str, Any]:
        """A JSON-able form; `from_config(config, build)` is its inverse."""
        return {
            name: {"space": c.space.to_config(), "path": c.path.to_config(), "shape": list(c.shape)}
            for name, c in self.items()
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any], build: Callable[[Any], Any]) -> StateSpec:
        """`build` turns {"_target_": ..., ...} into an object (the caller owns the allow-list)."""
        return cls({
            name: Component(build(c["space"]), build(c["path"]), tuple(c["shape"])) for name, c in config.items()
        })

    def masked(self, state: State, ctx: Context) -> State:
        """The state with zeros (class 0) on padding."""
        out = {}
        for name, x in state.items():
            mask = ctx.mask(self[name].shape)
            out[name] = x if mask is None else x * mask.to(x.dtype)
        return out


@dataclass
class Context:
    """What a batch of B samples knows besides its state.

    ids [B] int64 name the samples; sizes [B] int64 count the real entries along "N" (None: no such axis) and n_max is
    the padded length; cond holds (value [B, ...], present [B] bool) by name; centre the means of centred paths; known
    the clamped entries (x0, where) of a component; source a given far end of two-sided paths; meta what decoding needs.
    """

    ids: Tensor
    sizes: Tensor | None = None
    n_max: int = 0
    cond: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    centre: dict[str, Tensor] = field(default_factory=dict)
    known: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    source: dict[str, Tensor] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    _masks: dict[tuple, Tensor | None] = field(default_factory=dict, repr=False, compare=False)
    _time: Tensor | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.sizes is not None and self.n_max <= 0:
            self.n_max = int(self.sizes.max())

    @classmethod
    def of(cls, batch: int, device: torch.device | str = "cpu", **more: Any) -> Context:
        """A context of `batch` samples with ids 0, 1, ..."""
        return cls(torch.arange(batch, device=device), **more)

    @property
    def batch(self) -> int:
        return self.ids.shape[0]

    @property
    def device(self) -> torch.device:
        return self.ids.device

    def dims(self, shape: Shape) -> tuple[int, ...]:
        """A per-sample shape with "N" replaced by the padded length."""
        if "N" in shape and self.n_max <= 0:
            raise ScidiffError("This state has an axis of variable length: the context needs sizes.")
        return tuple(self.n_max if n == "N" else int(n) for n in shape)

    def mask(self, shape: Shape) -> Tensor | None:
        """Boolean mask that broadcasts against [B, *shape], or None where nothing is padded."""
        if self.sizes is None or "N" not in shape:
            return None
        key = tuple(shape)
        if key not in self._masks:
            # What is kept must serve gradients too, and tensors born in inference mode cannot.
            with torch.inference_mode(False):
                self._masks[key] = self._mask(shape, self.sizes)
        return self._masks[key]

    def _mask(self, shape: Shape, sizes: Tensor) -> Tensor | None:
        real = torch.arange(self.n_max, device=self.device)[None, :] < sizes[:, None]
        mask: Tensor | None = None
        for axis, n in enumerate(shape):
            if n != "N":
                continue
            view = [self.batch] + [1] * len(shape)
            view[axis + 1] = self.n_max
            m = real.view(view)
            mask = m if mask is None else mask & m
        return mask

    def time(self, t: float | Tensor) -> Tensor:
        """The time as a [B] float32 tensor; without gradients a float fills one reused buffer in place."""
        if isinstance(t, (int, float)):
            if torch.is_grad_enabled():  # a backward pass may need the time of an earlier call
                return torch.full((self.batch,), float(t), device=self.device)
            buffer = self._time
            if buffer is None:
                with torch.inference_mode(False):
                    buffer = self._time = torch.empty(self.batch, device=self.device)
            return buffer.fill_(t)
        when = t.to(torch.float32)
        return when.expand(self.batch) if when.dim() == 0 else when

    def _map(self, f: Callable[[Tensor], Tensor]) -> Context:
        def meta(v: Any) -> Any:
            return f(v) if isinstance(v, Tensor) and v.dim() and v.shape[0] == self.batch else v

        return replace(
            self, ids=f(self.ids), sizes=None if self.sizes is None else f(self.sizes),
            cond={k: (f(v), f(p)) for k, (v, p) in self.cond.items()},
            centre={k: f(v) for k, v in self.centre.items()},
            known={k: (f(v), f(w)) for k, (v, w) in self.known.items()},
            source={k: f(v) for k, v in self.source.items()},
            meta={k: meta(v) for k, v in self.meta.items()}, _masks={}, _time=None)

    def to(self, device: torch.device | str) -> Context:
        return self._map(lambda x: x.to(device))

    def take(self, index: Tensor) -> Context:
        """The samples at `index` (a long or boolean tensor), padding unchanged."""
        return self._map(lambda x: x[index])

    def doubled(self) -> Context:
        """The batch twice over, the second half with every condition absent: one call for classifier-free guidance."""
        out = self._map(lambda x: torch.cat([x, x]))
        keep = torch.arange(2 * self.batch, device=self.device) < self.batch
        out.cond = {k: (v, p & keep) for k, (v, p) in out.cond.items()}
        return out

    def at(self, name: str, component: Component) -> Site:
        return Site(self, name, component)


class Site:
    """A Context seen from one component: its name, space, shape, mask, centre and known entries."""

    __slots__ = ("component", "ctx", "dims", "mask", "name", "padded", "space")

    def __init__(self, ctx: Context, name: str, component: Component) -> None:
        self.ctx, self.name, self.component = ctx, name, component
        self.space, self.padded = component.space, component.padded
        self.dims, self.mask = ctx.dims(component.shape), ctx.mask(component.shape)

    @property
    def batch(self) -> int:
        return self.ctx.batch

    @property
    def centre(self) -> Tensor | None:
        return self.ctx.centre.get(self.name)

    @property
    def given_source(self) -> Tensor | None:
        return self.ctx.source.get(self.name)

    def entries(self) -> Tensor:
        """Float weights [B, *dims] of the independent real entries: padding 0; pairs count once (i < j), diagonal 0."""
        return _entries(self)

    def count(self) -> Tensor:
        """Independent real entries per sample, float32 [B], at least 1."""
        return self.entries().flatten(1).sum(1).clamp(min=1.0)


def _entries(site: Site) -> Tensor:
    weight = torch.ones(site.batch, *site.dims, device=site.ctx.device)
    if site.mask is not None:
        weight = weight * site.mask.to(weight.dtype)
    if site.space.symmetric:
        upper = _upper(site.dims[0], site.ctx.device)
        weight = weight * upper.view(1, *upper.shape, *[1] * (len(site.dims) - 2))
    return weight


@lru_cache(maxsize=64)
def _upper(n: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.triu(torch.ones(n, n, device=device), diagonal=1)


def stack_ids(start: int, count: int) -> Tensor:
    """Sample ids start, start + 1, ... as int64 [count]."""
    return torch.arange(start, start + count, dtype=torch.int64)
