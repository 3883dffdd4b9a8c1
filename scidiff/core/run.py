"""Counter-based noise, and the record of one sampling or training run.

Every random number is a pure function of a key and a counter,

    bits = mix(key + G * index),   key = mix(mix(seed, id) ^ hash(stream, step, tag, component)),

with `mix` the 64-bit finaliser of SplitMix64 (Steele, Lea, Flood 2014) and `G` its odd increment. `index` is the
logical index of an entry inside its sample: it does not depend on padding, on the place of the sample in a batch or on
the order in which samples are drawn, so sample `id` always meets the same noise. Entries (i, j) and (j, i) of a
symmetric component share one index. Uniforms are float64 with 53 bits in (0, 1); normals are Box-Muller in float64.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from scidiff.core.spec import Context, Site

_MASK64 = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_AXIS = 1 << 20  # stride of a padded axis: entries keep their number whatever the padding


def _signed(x: int) -> int:
    x &= _MASK64
    return x - (1 << 64) if x >> 63 else x


_C1, _C2 = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def mix_int(x: int) -> int:
    """SplitMix64 finaliser of a Python integer, as an unsigned 64-bit integer."""
    x &= _MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return x ^ (x >> 31)


def mix(x: Tensor) -> Tensor:
    """SplitMix64 finaliser, elementwise on int64 (two's complement); the argument is overwritten."""
    x.bitwise_xor_((x >> 30).bitwise_and_((1 << 34) - 1)).mul_(_C1)
    x.bitwise_xor_((x >> 27).bitwise_and_((1 << 37) - 1)).mul_(_C2)
    return x.bitwise_xor_((x >> 31).bitwise_and_((1 << 33) - 1))


@lru_cache(maxsize=4096)
def hash_text(text: str) -> int:
    """Stable 64-bit hash of a short string (FNV-1a, finalised)."""
    h = 0xCBF29CE484222325
    for byte in text.encode():
        h = ((h ^ byte) * 0x100000001B3) & _MASK64
    return mix_int(h)


@lru_cache(maxsize=256)
def _index(dims: tuple[int, ...], padded: tuple[bool, ...], symmetric: bool, device: torch.device) -> Tensor:
    """Logical indices of one sample's entries, times the increment, shape `dims`, int64."""
    with torch.inference_mode(False):
        return _numbered(dims, padded, symmetric).to(device)


def _numbered(dims: tuple[int, ...], padded: tuple[bool, ...], symmetric: bool) -> Tensor:
    tail = dims[2:] if symmetric else dims
    index = torch.zeros((), dtype=torch.int64)
    stride = 1
    for axis in range(len(tail) - 1, -1, -1):
        n = tail[axis]
        grid = torch.arange(n).view([n] + [1] * (len(tail) - 1 - axis))
        index = index + grid * stride
        leading = axis == 0 and not symmetric
        stride *= _AXIS if padded[axis + (2 if symmetric else 0)] and not leading else n
    if symmetric:
        i = torch.arange(dims[0])
        low, high = torch.minimum(i[:, None], i[None, :]), torch.maximum(i[:, None], i[None, :])
        pair = high * (high + 1) // 2 + low
        index = pair.view(dims[0], dims[1], *[1] * len(tail)) * stride + index
    return index.expand(dims).contiguous() * _signed(_GOLDEN)


def sample_keys(seed: int, ids: Tensor) -> Tensor:
    """One int64 key per sample from the seed and the sample's id; shape of `ids`."""
    return mix(ids.to(torch.int64) * _signed(_GOLDEN) + _signed(mix_int(seed ^ 0x5C1D1FF)))


def bits(keys: Tensor, salt: int, index: Tensor) -> Tensor:
    """int64 random bits, shape [B, *index.shape], for per-sample keys [B] and a 64-bit salt."""
    key = mix(keys ^ _signed(salt))
    return mix(key.view(-1, *[1] * index.dim()) + index)


def to_uniform(b: Tensor) -> Tensor:
    """Bits to float64 in (0, 1), 53 significant bits."""
    return (b >> 11).bitwise_and_((1 << 53) - 1).to(torch.float64).add_(0.5).mul_(2.0**-53)


def to_normal(b: Tensor) -> Tensor:
    """Bits to float64 standard normals: Box-Muller on the upper and lower 32 bits (|z| < 6.8)."""
    radius = (b >> 32).bitwise_and_(0xFFFFFFFF).to(torch.float64).add_(0.5).mul_(2.0**-32).log_().mul_(-2.0).sqrt_()
    angle = b.bitwise_and(0xFFFFFFFF).to(torch.float64).mul_(2.0 * torch.pi * 2.0**-32).cos_()
    return radius.mul_(angle)


def uniform(seed: int, ids: Tensor, tag: str, count: int = 1) -> Tensor:
    """float64 uniforms [B, count] that depend on (seed, id, tag) alone: what is drawn before a run (sizes)."""
    index = _index((count,), (False,), False, ids.device)
    return to_uniform(bits(sample_keys(seed, ids), hash_text(tag), index))


class Run:
    """One sampling run (or one training run): the seed, where it stands, and what lives across steps.

    `stream` separates independent uses of one sample id (rollout step, tile); `step` is the solver or optimiser step.
    `memory` holds what survives a step: self-conditioning, duals, caches. `state_dict()` is the checkpoint of a run.
    """

    __slots__ = ("_keys", "_keys_for", "memory", "seed", "step", "stream")

    def __init__(self, seed: int, stream: int = 0) -> None:
        self.seed, self.stream, self.step = int(seed), int(stream), 0
        self.memory: dict[str, Any] = {}
        self._keys: Tensor | None = None
        self._keys_for: Tensor | None = None

    def keys(self, ids: Tensor) -> Tensor:
        if self._keys is None or self._keys_for is not ids:
            self._keys, self._keys_for = sample_keys(self.seed, ids), ids
        return self._keys

    def salt(self, tag: str, component: str) -> int:
        position = mix_int((self.stream << 32) + self.step + 1)
        return mix_int(position ^ hash_text(tag) ^ (hash_text(component) >> 1))

    def noise(self, component: str, tag: str, shape: tuple[int, ...], ctx: Context, law: str = "normal",
              padded: tuple[bool, ...] | None = None, symmetric: bool = False) -> Tensor:
        """float64 noise [B, *shape]; `law` is "normal" or "uniform"; `padded` marks axes of variable length."""
        index = _index(shape, padded or (False,) * len(shape), symmetric, ctx.ids.device)
        b = bits(self.keys(ctx.ids), self.salt(tag, component), index)
        return to_normal(b) if law == "normal" else to_uniform(b)

    def handle(self, site: Site, dtype: torch.dtype = torch.float32) -> Noise:
        """The noise of one component of one batch, as a Path takes it; normals come in `dtype`."""
        return Noise(self, site, dtype)

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed, "stream": self.stream, "step": self.step, "memory": dict(self.memory)}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Run:
        run = cls(state["seed"], state["stream"])
        run.step, run.memory = state["step"], dict(state["memory"])
        return run


class Noise:
    """The `noise` argument of every Path: draws that know their component's shape, symmetry and mask."""

    __slots__ = ("dtype", "run", "site")

    def __init__(self, run: Run, site: Site, dtype: torch.dtype = torch.float32) -> None:
        self.run, self.site, self.dtype = run, site, dtype

    def _draw(self, tag: str, law: str) -> Tensor:
        site = self.site
        return self.run.noise(site.name, tag, site.dims, site.ctx, law, site.padded, site.space.symmetric)

    def normal(self, tag: str = "step", dtype: torch.dtype | None = None) -> Tensor:
        """Standard normal noise of the component's space: zero on padding, symmetric or centred where the space is."""
        return self.site.space.project(self._draw(tag, "normal").to(dtype or self.dtype), self.site.mask)

    def uniform(self, tag: str = "step") -> Tensor:
        """float64 uniforms in (0, 1), one per entry (per unordered pair in symmetric spaces), padding included."""
        return self._draw(tag, "uniform")

    def per_sample(self, tag: str = "step") -> Tensor:
        """float64 uniforms [B], one per sample."""
        return self.run.noise(self.site.name, tag, (1,), self.site.ctx, "uniform")[:, 0]
