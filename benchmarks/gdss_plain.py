"""GDSS the plain way: the published layers and sampling loop written down equation by equation, to measure against.

Every channel has its own three GCNs, every GCN normalises its own copy of A, edge tensors are [B, N, N, C], and the
predictor and the corrector each call the two networks on their own. `PlainGDSS(network)` takes the weights of a
`scidiff.nn.gdss.GDSS`; `predictor_corrector` and `splitting` take any pair of score functions and any source of noise.
Equations: Jo, Lee & Hwang 2022, arXiv 2202.02514; discretisation of Song et al. 2021, arXiv 2011.13456.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]
Scores = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]
Draw = Callable[[str, str, int], Tensor]


def part(weights: Weights, prefix: str) -> Weights:
    """The entries below a prefix, without it."""
    return {k[len(prefix):]: v for k, v in weights.items() if k.startswith(prefix)}


def mlp(weights: Weights, x: Tensor) -> Tensor:
    """Linear maps with ELU between them."""
    depth = len(weights) // 2
    for k in range(depth):
        x = F.linear(x, weights[f"linears.{k}.weight"], weights[f"linears.{k}.bias"])
        x = F.elu(x) if k < depth - 1 else x
    return x


def gcn(weight: Tensor, bias: Tensor, x: Tensor, a: Tensor) -> Tensor:
    """Dense GCN with unit self-loops and degrees of at least one."""
    a = a.clone()
    diagonal = torch.arange(a.shape[-1])
    a[:, diagonal, diagonal] = 1.0
    scale = a.sum(-1).clamp(min=1.0).pow(-0.5)
    a = scale.unsqueeze(-1) * a * scale.unsqueeze(-2)
    return torch.matmul(a, torch.matmul(x, weight)) + bias


def attention_layer(w: Weights, x: Tensor, edges: Tensor, real: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """x [B, N, F], edges [B, C, N, N], real float [B, N] to the next of both."""
    maps, values = [], []
    for c in range(edges.shape[1]):
        q, k, v = (gcn(w[r][c], w[f"{r}_bias"][c], x, edges[:, c]) for r in ("query", "key", "value"))
        width = q.shape[-1] // heads
        q, k = torch.cat(q.split(width, -1)), torch.cat(k.split(width, -1))
        m = torch.tanh(torch.bmm(q, k.transpose(1, 2)) / math.sqrt(v.shape[-1]))
        m = m.view(heads, *edges.shape[:1], *edges.shape[2:]).mean(0)
        maps.append((m + m.transpose(1, 2)) / 2)
        values.append(v)
    nodes = torch.tanh(mlp(part(w, "node_mlp."), torch.cat(values, -1)) * real.unsqueeze(-1))
    pairs = torch.cat([torch.stack(maps, -1), edges.permute(0, 2, 3, 1)], -1)
    out = mlp(part(w, "edge_mlp."), pairs).permute(0, 3, 1, 2)
    return nodes, masked(out + out.transpose(2, 3), real)


def masked(edges: Tensor, real: Tensor) -> Tensor:
    """Zeros on the rows and columns of padding, for [B, N, N] and [B, C, N, N]."""
    real = real.unsqueeze(1) if edges.dim() == 4 else real
    return edges * real.unsqueeze(-1) * real.unsqueeze(-2)


class PlainGDSS:
    """The two networks with the weights of a GDSS backbone."""

    def __init__(self, network: torch.nn.Module) -> None:
        weights = {k: v.detach() for k, v in network.state_dict().items()}
        self.x, self.a = part(weights, "node_score."), part(weights, "edge_score.")
        self.heads, self.powers = network.edge_score.heads, network.edge_score.channels[0]  # type: ignore[union-attr]
        self.x_layers = [part(self.x, f"layers.{k}.") for k in range(_depth(self.x))]
        self.a_layers = [part(self.a, f"layers.{k}.") for k in range(_depth(self.a))]

    def powers_of(self, a: Tensor) -> Tensor:
        out = [a]
        for _ in range(self.powers - 1):
            out.append(torch.bmm(out[-1], a))
        return torch.stack(out, 1)

    def nodes(self, x: Tensor, a: Tensor, real: Tensor) -> Tensor:
        """Raw output of the network of the nodes."""
        features, edges = [x], None if "weight" in self.x_layers[0] else self.powers_of(a)
        for w in self.x_layers:
            if edges is None:
                x = torch.tanh(gcn(w["weight"], w["bias"], x, a))
            else:
                x, edges = attention_layer(w, x, edges, real, self.heads)
                x = torch.tanh(x)
            features.append(x)
        return mlp(part(self.x, "readout."), torch.cat(features, -1)) * real.unsqueeze(-1)

    def edges(self, x: Tensor, a: Tensor, real: Tensor) -> Tensor:
        """Raw output of the network of the edges."""
        edges = self.powers_of(a)
        channels = [edges]
        for w in self.a_layers:
            x, edges = attention_layer(w, x, edges, real, self.heads)
            channels.append(edges)
        out = mlp(part(self.a, "readout."), torch.cat(channels, 1).permute(0, 2, 3, 1)).squeeze(-1)
        return masked(out * (1.0 - torch.eye(a.shape[-1], dtype=a.dtype)), real)


def _depth(weights: Weights) -> int:
    return 1 + max(int(k.split(".")[1]) for k in weights if k.startswith("layers."))


@dataclass(frozen=True)
class Process:
    """kind "VP" (low, high = beta at 0 and 1) or "VE" (sigma at 0 and 1)."""

    kind: str
    low: float
    high: float

    def std(self, t: float) -> float:
        if self.kind == "VE":
            return self.low * (self.high / self.low) ** t
        return math.sqrt(1.0 - math.exp(2.0 * (-0.25 * t**2 * (self.high - self.low) - 0.5 * t * self.low)))

    def score(self, raw: Tensor, t: float) -> Tensor:
        return raw if self.kind == "VE" else -raw / self.std(t)

    def beta(self, t: float) -> float:
        return self.low + t * (self.high - self.low)

    def g2(self, t: float) -> float:
        return 2.0 * math.log(self.high / self.low) * self.std(t) ** 2 if self.kind == "VE" else self.beta(t)

    def alpha(self, level: int, count: int) -> float:
        """Factor of the corrector's step at a discrete level."""
        return 1.0 if self.kind == "VE" else 1.0 - self.beta(level / (count - 1)) / count

    def ancestral(self, x: Tensor, score: Tensor, level: int, count: int) -> tuple[Tensor, float]:
        """Mean and standard deviation of the discretised reverse step."""
        if self.kind == "VE":
            here = self.std(level / (count - 1))
            below = self.std((level - 1) / (count - 1)) if level else 0.0
            g2 = here**2 - below**2
            return x + g2 * score, math.sqrt(g2)
        beta = self.beta(level / (count - 1)) / count
        return (2.0 - math.sqrt(1.0 - beta)) * x + beta * score, math.sqrt(beta)

    def euler(self, x: Tensor, score: Tensor, t: float, count: int) -> tuple[Tensor, float]:
        """Mean and standard deviation of an Euler-Maruyama step of 1 / count."""
        drift = torch.zeros_like(x) if self.kind == "VE" else -0.5 * self.beta(t) * x
        return x - (drift - self.g2(t) * score) / count, math.sqrt(self.g2(t) / count)

    def transition(self, t: float, dt: float, exact: bool) -> tuple[float, float]:
        """Factor of the mean and standard deviation of the linear part over dt < 0."""
        if self.kind == "VE":
            return 1.0, math.sqrt(self.std(t) ** 2 - self.std(t + dt) ** 2)
        c = 0.25 * dt * (2.0 * self.low + (2.0 * t + dt) * (self.high - self.low))
        return math.exp(-c), math.sqrt(math.exp(-2.0 * c) - 1.0 if exact else 1.0 - math.exp(2.0 * c))


def langevin(x: Tensor, score: Tensor, noise: Tensor, snr: float, scale: float, alpha: float) -> Tensor:
    """One corrector step with norms averaged over the batch."""
    of_score, of_noise = score.flatten(1).norm(dim=1).mean(), noise.flatten(1).norm(dim=1).mean()
    step = 2.0 * alpha * (snr * of_noise / of_score) ** 2
    return x + step * score + torch.sqrt(2.0 * step) * scale * noise


def times(steps: int, end: float = 1e-4) -> list[float]:
    """Falling times from 1 to `end`."""
    return torch.linspace(1.0, end, steps, dtype=torch.float64).tolist()


def predictor_corrector(scores: Scores, start: tuple[Tensor, Tensor], laws: Sequence[Process], draw: Draw,
                        steps: int = 1000, rule: str = "reverse", snr: float | None = None, scale: float = 1.0,
                        stop: int | None = None) -> tuple[Tensor, Tensor]:
    """Last means of nodes and edges. `draw(part, role, step)` gives noise; `stop` ends after so many steps.

    `snr` None leaves the corrector out. Each of the four updates of a step asks for its own network's score.
    """
    x, a = mean_x, mean_a = start
    for k, t in enumerate(times(steps)[:stop]):
        level = steps - 1 - k
        if snr is not None:
            new = [langevin(z, scores(x, a, t)[i], draw(name, "langevin", k), snr, scale, law.alpha(level, steps))
                   for i, (name, z, law) in enumerate(zip(("nodes", "edges"), (x, a), laws, strict=True))]
            x, a = new
        new, means = [], []
        for i, (name, z, law) in enumerate(zip(("nodes", "edges"), (x, a), laws, strict=True)):
            score = scores(x, a, t)[i]
            mean, std = law.ancestral(z, score, level, steps) if rule == "reverse" else law.euler(z, score, t, steps)
            means.append(mean)
            new.append(mean + std * draw(name, "step", k))
        (x, a), (mean_x, mean_a) = new, means
    return mean_x, mean_a


def splitting(scores: Scores, start: tuple[Tensor, Tensor], laws: Sequence[Process], draw: Draw, steps: int = 1000,
              snr: float = 0.15, scale: float = 0.7, exact: bool = False) -> tuple[Tensor, Tensor]:
    """Last means of the symmetric splitting (S4): one score a step, the linear part in two exact halves."""
    state, means, h = list(start), list(start), 1.0 / steps
    for k, t in enumerate(times(steps)):
        level, score = steps - 1 - k, scores(state[0], state[1], t)
        for i, (name, law) in enumerate(zip(("nodes", "edges"), laws, strict=True)):
            z = langevin(state[i], score[i], draw(name, "langevin", k), snr, scale, law.alpha(level, steps))
            factor, std = law.transition(t, -h / 2, exact)
            z = factor * z + std * draw(name, "half", k) + h * law.g2(t) * score[i]
            factor, std = law.transition(t - h / 2, -h / 2, exact)
            means[i] = factor * z
            state[i] = means[i] + std * draw(name, "step", k)
    return means[0], means[1]


def randn_draw(x: Tensor, a: Tensor, real: Tensor) -> Draw:
    """Noise as published: normal numbers, symmetric for edges, zero on padding."""
    def draw(name: str, role: str, step: int) -> Tensor:
        if name == "nodes":
            return torch.randn_like(x) * real.unsqueeze(-1)
        z = torch.randn_like(a).triu(1)
        return masked(z + z.transpose(1, 2), real)

    return draw


def lazy_scores(plain: PlainGDSS, laws: Sequence[Process], real: Tensor) -> Callable[..., object]:
    """The scores of both networks, each computed only when it is looked at: one network call an update."""
    class Pair:
        def __init__(self, x: Tensor, a: Tensor, t: float) -> None:
            self.asked = (x, a, t)

        def __getitem__(self, i: int) -> Tensor:
            x, a, t = self.asked
            raw = plain.nodes(x, a, real) if i == 0 else plain.edges(x, a, real)
            return laws[i].score(raw, t)

    return Pair
