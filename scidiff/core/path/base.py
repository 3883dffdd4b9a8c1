"""The Path protocol: how data become source, and who owns the representation.

A path carries one component from data (t = 0) to the source (t = 1). It draws the source, corrupts data, turns what a
network returns into a Prediction, converts predictions among kinds, and owns the loss of its component. `ctx` is
always a `Site` (a Context seen from the component) and `noise` a counter-based handle.

Kinds of prediction: data D = E[x0 | x_t] | noise E = E[eps | x_t] | score | velocity dx/dt | angular alpha E - sigma D
| logits (categories).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from scidiff.core.errors import ScidiffError, nearest

if TYPE_CHECKING:
    from scidiff.core.plan import Row
    from scidiff.core.run import Noise
    from scidiff.core.space import Space
    from scidiff.core.spec import Site

KINDS = ("data", "noise", "score", "velocity", "angular", "logits")
Time = float | Tensor


class Corrupted(NamedTuple):
    """A corrupted sample: the state z at time t, the noise that made it and the far end x1 (where there are any)."""

    z: Tensor
    eps: Tensor | None = None
    x1: Tensor | None = None


def spread(t: Tensor, like: Tensor) -> Tensor:
    """A per-sample tensor [B] reshaped to broadcast against [B, ...] in the dtype of `like`."""
    return t.to(like.dtype).view(-1, *[1] * (like.dim() - 1))


@dataclass(frozen=True)
class Path(ABC):
    """What every path offers; all paths are frozen dataclasses of numbers, hence storable as JSON."""

    kernels: ClassVar[frozenset[str]] = frozenset()
    kinds: ClassVar[frozenset[str]] = frozenset()
    default_kind: ClassVar[str] = "data"

    @property
    def levels(self) -> tuple[float, ...] | None:
        """The only legal times, or None for any t in [t_min, t_max]."""
        return None

    @property
    def bounds(self) -> tuple[float, float]:
        """(t_min, t_max): where the path may be evaluated."""
        return (0.0, 1.0)

    def validate(self, space: Space) -> None:  # noqa: B027 - most paths live anywhere
        """Raises ScidiffError if this path cannot live in the space."""

    def fit(self, statistics: Any) -> Path:
        """The path with data statistics filled in (marginals); most paths have none."""
        return self

    @abstractmethod
    def source(self, ctx: Site, noise: Noise) -> Tensor:
        """A draw at t = 1, [B, *dims]."""

    @abstractmethod
    def corrupt(self, x0: Tensor, t: Time, ctx: Site, noise: Noise, x1: Tensor | None = None) -> Corrupted:
        """A draw of x_t given x0 (and x1 for two-sided paths), t a float or [B]."""

    def clean(self, x0: Tensor, ctx: Site) -> Tensor:
        """Data as states at t = 0 in a batch of mixed times: what `corrupt` gives there."""
        return x0

    def features(self, z: Tensor, t: Time, ctx: Site) -> Tensor:
        """What a network sees of z: z itself unless the representation differs (one-hot, belief mean)."""
        return z

    def read(self, raw: Tensor, z: Tensor, t: Time, ctx: Site, kind: str) -> Prediction:
        """A network's raw output as a Prediction of the given kind."""
        self.accept(kind)
        return Prediction(kind, ctx.space.project(raw, ctx.mask), self, z, t, ctx)

    def accept(self, kind: str) -> None:
        if kind not in self.kinds:
            raise ScidiffError(f"{type(self).__name__} does not understand a {kind!r} prediction.",
                               nearest(kind, self.kinds))

    def convert(self, value: Tensor, have: str, want: str, z: Tensor, t: Time, ctx: Site | None) -> Tensor:
        """A prediction of kind `have` as kind `want` at state z and time t."""
        if have == want:
            return value
        raise ScidiffError(f"{type(self).__name__} cannot turn a {have!r} prediction into {want!r}.")

    @abstractmethod
    def loss(self, pred: Prediction, x0: Tensor, noised: Corrupted, t: Time, ctx: Site) -> Tensor:
        """The training loss of this component per sample, [B], mean over its independent real entries."""

    def apply(self, row: Row, base: Tensor, pred: Prediction | None, ctx: Site, noise: Noise) -> Tensor:
        """One solver row of a kernel that is not affine; the path lists the kernels it accepts."""
        raise ScidiffError(f"{type(self).__name__} has no kernel {row.kernel!r}.", nearest(row.kernel, self.kernels))

    def to_config(self) -> dict[str, Any]:
        def plain(v: Any) -> Any:
            return list(v) if isinstance(v, tuple) else v

        fields = {k: plain(v) for k, v in asdict(self).items()}
        return {"_target_": f"{type(self).__module__}.{type(self).__name__}", **fields}


class Prediction:
    """What a denoiser says about one component; converts among kinds through its Path, lazily.

    `Prediction("noise", eps)` is enough for a denoiser to return: the sampler binds it to path, state and time.
    """

    __slots__ = ("kind", "path", "site", "t", "values", "z")

    def __init__(self, kind: str, value: Tensor, path: Path | None = None, z: Tensor | None = None,
                 t: Time | None = None, site: Site | None = None) -> None:
        self.kind = kind
        self.values: dict[str, Tensor] = {kind: value}
        self.path, self.z, self.t, self.site = path, z, t, site

    def bind(self, path: Path, z: Tensor, t: Time, site: Site) -> Prediction:
        """Fills in what is missing; returns itself."""
        if self.path is None:
            self.path, self.z, self.t, self.site = path, z, t, site
        return self

    @property
    def value(self) -> Tensor:
        return self.values[self.kind]

    def to(self, kind: str) -> Tensor:
        """The prediction as another kind; computed once."""
        found = self.values.get(kind)
        if found is None:
            if self.path is None or self.z is None or self.t is None:
                raise ScidiffError(f"This {self.kind!r} prediction is not bound to a path and cannot become {kind!r}.")
            found = self.path.convert(self.value, self.kind, kind, self.z, self.t, self.site)
            self.values[kind] = found
        return found

    @property
    def data(self) -> Tensor:
        return self.to("data")

    @property
    def noise(self) -> Tensor:
        return self.to("noise")

    @property
    def score(self) -> Tensor:
        return self.to("score")

    @property
    def velocity(self) -> Tensor:
        return self.to("velocity")

    @property
    def angular(self) -> Tensor:
        return self.to("angular")

    @property
    def logits(self) -> Tensor:
        return self.to("logits")

    @property
    def probs(self) -> Tensor:
        """Class probabilities of a categorical prediction, in the dtype of its logits."""
        found = self.values.get("probs")
        if found is None:
            found = torch.softmax(self.logits, -1)
            self.values["probs"] = found
        return found

    def replace(self, data: Tensor, keep_noise: bool = False) -> Prediction:
        """A prediction with another clean estimate; `keep_noise` keeps this one's noise estimate beside it."""
        out = Prediction("data", data, self.path, self.z, self.t, self.site)
        if keep_noise:
            out.values["noise"] = self.noise
        return out
