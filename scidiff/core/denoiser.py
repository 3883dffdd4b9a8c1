"""Denoisers: from a state at time t to a Prediction per component.

Everything that predicts is a Denoiser, `forward(state, t, ctx, run=None) -> dict[str, Prediction]`: networks, closed
forms, guidance and composition wrap Denoisers in Denoisers, so they nest freely. t is a float, a tensor [B] or a
dict of either per component.

`NetworkDenoiser` owns what stands between a network and the mathematics: features, the kind of each raw output,
preconditioning and self-conditioning. With preconditioning (Karras et al. 2022, arXiv 2206.00364) for data of standard
deviation sd, S = alpha^2 sd^2 + sigma^2:

    D = (alpha sd^2 / S) x + (sigma sd / sqrt(S)) F(x / sqrt(S)),    target of F has unit variance
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from scidiff.core.errors import ScidiffError, nearest
from scidiff.core.path.base import Prediction, Time, spread
from scidiff.core.path.gaussian import GaussianPath
from scidiff.core.spec import Context, Site, State, StateSpec

if TYPE_CHECKING:
    from scidiff.core.run import Run

Times = Time | Mapping[str, Time]
Predictions = dict[str, Prediction]
HALF = (torch.bfloat16, torch.float16)
MEMORY = "self-conditioning"


def time_of(t: Times, name: str) -> Time:
    """The time of one component."""
    return t[name] if isinstance(t, Mapping) else t


class Denoiser(nn.Module):
    """Protocol: predicts every component of the state at once. `needs_grad` turns inference mode off in the Sampler."""

    needs_grad = False
    self_conditioning = False

    def forward(self, state: State, t: Times, ctx: Context, run: Run | None = None) -> Predictions:
        raise ScidiffError(f"{type(self).__name__} has no forward().")


class NetworkDenoiser(Denoiser):
    """A backbone as a Denoiser.

    `kinds` names what each component's raw output means (a key `default` for all continuous ones; else the path's
    own); "preconditioned" is EDM's F with `data_std`. The backbone's signature is
    `(features, time [B] or [B, C], ctx, previous) -> raw`, with `previous` the last clean estimates (None without
    self-conditioning). `clock` is "t" or "lambda". The network sees one time
    per sample, that of the first component; with `separate_times` it always sees one per component, [B, C].
    """

    def __init__(self, spec: StateSpec, backbone: nn.Module, kinds: Mapping[str, str] | None = None,
                 self_conditioning: bool = False, data_std: float = 1.0, clock: str = "t",
                 separate_times: bool = False) -> None:
        super().__init__()
        kinds = dict(kinds or {})
        rest = kinds.pop("default", None)
        for name in kinds:
            if name not in spec:
                raise ScidiffError(f"The state has no component {name!r}.", nearest(name, spec))
        self.spec, self.backbone, self.clock, self.separate_times = spec, backbone, clock, separate_times
        # Categories have one kind; `default` speaks for the continuous components.
        self.kinds = {n: kinds.get(n, c.path.default_kind if rest is None or c.space.categorical else rest)
                      for n, c in spec.items()}
        self.self_conditioning, self.data_std = self_conditioning, float(data_std)
        self._first_gaussian = next((n for n, c in spec.items() if not c.space.categorical), None)

    def forward(self, state: State, t: Times, ctx: Context, run: Run | None = None) -> Predictions:
        sites = {name: ctx.at(name, c) for name, c in self.spec.items()}
        features = {}
        for name, c in self.spec.items():
            z = c.path.features(state[name], time_of(t, name), sites[name])
            if self.kinds[name] == "preconditioned":
                y = self._off_centre(z, time_of(t, name), sites[name])
                z = y * self._scale(c.path.preconditioning(time_of(t, name), self.data_std)[2], z)  # type: ignore[attr-defined]
            features[name] = z
        previous = run.memory.get(MEMORY) if self.self_conditioning and run is not None else None
        raw = self.backbone(features, self._time(t, ctx), ctx, previous)
        raw = {name: x.float() if x.dtype in HALF else x for name, x in raw.items()}  # probabilities need more digits
        out = {}
        for name, c in self.spec.items():
            z, when = state[name], time_of(t, name)
            if self.kinds[name] == "preconditioned":
                skip, gain, _ = c.path.preconditioning(when, self.data_std)  # type: ignore[attr-defined]
                y = self._off_centre(z, when, sites[name])
                clean = y * self._scale(skip, z) + raw[name] * self._scale(gain, z)
                out[name] = c.path.read(clean, z, when, sites[name], "data")
            else:
                out[name] = c.path.read(raw[name], z, when, sites[name], self.kinds[name])
        if self.self_conditioning and run is not None:
            run.memory[MEMORY] = {
                n: (p.probs if self.spec[n].space.categorical else p.data).detach() for n, p in out.items()}
        return out

    @staticmethod
    def _off_centre(z: Tensor, t: Time, site: Site) -> Tensor:
        """z - c mu: what preconditioning is derived for."""
        path = site.component.path
        return path.shifted(z, -path.coefficients(t).c, site)  # type: ignore[attr-defined]

    @staticmethod
    def _scale(value: Any, like: Tensor) -> Any:
        return spread(value, like) if isinstance(value, Tensor) else value

    def _time(self, t: Times, ctx: Context) -> Tensor:
        if self.separate_times:
            return torch.stack([ctx.time(self._clocked(time_of(t, n), n)).clone() for n in self.spec], -1)
        lead = self._first_gaussian or next(iter(self.spec))
        return ctx.time(self._clocked(time_of(t, lead), self._first_gaussian))

    def _clocked(self, t: Time, name: str | None) -> Time:
        path = None if name is None else self.spec[name].path
        return path.coefficients(t).lam if self.clock == "lambda" and isinstance(path, GaussianPath) else t


class ByComponent(Denoiser):
    """Separate denoisers, each answering for some components of the whole state (the system of SDEs of GDSS)."""

    def __init__(self, parts: Mapping[str, Denoiser]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(dict(parts))

    def forward(self, state: State, t: Times, ctx: Context, run: Run | None = None) -> Predictions:
        return {name: part(state, t, ctx, run)[name] for name, part in self.parts.items()}
