"""DiffGraph: latent diffusion from auxiliary relations to a target relation (Li et al. 2025, arXiv 2501.02313).

Users and items are the nodes of one graph per relation; every node has an embedding e of `dim` numbers, and a relation
sees it through a light convolution (`nn.sparse`). The target relation gives the view E_t, the auxiliary ones, summed,
the view E_s. A path leads from E_s at t = 0 to E_s with noise at t = 1, and a denoiser (one network for users, one for
items) predicts E_t from any point of it; with abar_k the signal kept at step k = 0 .. steps - 1, t = (k + 1) / steps,

    1 - abar_k = noise_scale (noise_low .. noise_high, linear in k), the first step's beta replaced by `first_beta`
    x_k = sqrt(abar_k) E_s + sqrt(1 - abar_k) eps,    D = MLP(normalise(x_k), k)
    loss = BPR + penalty mean(|u|^2 + |i|^2 + |j|^2) + sum over u, i of mean w_k |E_t - D|^2 / dim,   z = E_t + D
    BPR = -mean log sigmoid(u.i - u.j) of bought pairs (u, i) and other items j;   w_k = SNR_(k-1) - SNR_k, w_0 = 1

Recommendations start from E_s without noise and take all posterior means down to k = 0; final embedding E_t + result.
That is ancestral sampling on the shared Sampler with no fresh noise (eta = 1, gain = 0), whose rows are

    x_(k-1) = beta_k sqrt(abar_(k-1)) / (1 - abar_k) D + (1 - abar_(k-1)) sqrt(1 - beta_k) / (1 - abar_k) x_k

With the published scales `first_beta` outweighs the rest of the schedule: 1 - abar_k is 1e-4 for every k to three
digits, so the chain moves by less than a thousandth until its last call, which replaces x_0 by D.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scidiff.core.denoiser import Denoiser, Predictions, Times, time_of
from scidiff.core.errors import UsageError, nearest
from scidiff.core.objective import Batch
from scidiff.core.path import DiscreteDDPM, Prediction
from scidiff.core.run import Run
from scidiff.core.sampler import Sampler
from scidiff.core.solvers.ancestral import Ancestral
from scidiff.core.solvers.fixed import Fixed
from scidiff.core.solvers.grid import PowerGrid
from scidiff.core.space import Euclidean
from scidiff.core.spec import Component, Context, State, StateSpec
from scidiff.domains.graph.interactions import Interactions, ranking
from scidiff.nn.sparse import light_convolution, normalised_adjacency

BRIDGES = ("diffusion", "sum", "none")
LATENT = "latent"


def latent_path(steps: int = 200, noise_scale: float = 1e-4, noise_low: float = 1e-4, noise_high: float = 1e-3,
                first_beta: float = 1e-4) -> DiscreteDDPM:
    """The published schedule as a path of the core; UsageError where its variances do not rise within (0, 1)."""
    if steps < 2 or not 0.0 < noise_scale * noise_low < noise_scale * noise_high < 1.0 or not 0.0 < first_beta < 1.0:
        raise UsageError("The noise of the latent path must rise from above 0 to below 1, in at least two steps.")
    variance = torch.linspace(noise_scale * noise_low, noise_scale * noise_high, steps, dtype=torch.float64)
    kept = (1.0 - first_beta) * torch.exp(torch.log1p(-variance) - torch.log1p(-variance[0]))
    return DiscreteDDPM(alphas_bar=tuple(kept.tolist()))


class LatentNetwork(nn.Module):
    """x [B, dim] of unit length and step k [B] to a view [B, dim]: one hidden layer with tanh."""

    def __init__(self, dim: int, time_width: int, dropout: float) -> None:
        super().__init__()
        half = time_width // 2
        self.register_buffer("frequencies", torch.exp(-math.log(1e4) * torch.arange(half) / half), persistent=False)
        self.clock = nn.Linear(2 * half, 2 * half)
        self.enter, self.leave = nn.Linear(dim + 2 * half, dim), nn.Linear(dim, dim)
        self.drop = nn.Dropout(dropout)
        for layer in (self.clock, self.enter, self.leave):
            nn.init.xavier_normal_(layer.weight)
            nn.init.normal_(layer.bias, std=1e-3)

    def forward(self, x: Tensor, k: Tensor) -> Tensor:
        angle = k[:, None].to(x.dtype) * self.frequencies
        clock = self.clock(torch.cat([angle.cos(), angle.sin()], -1))
        hidden = self.enter(torch.cat([self.drop(F.normalize(x, dim=-1)), clock], -1))
        return self.leave(torch.tanh(hidden))


class DiffGraph(Denoiser):
    """Embeddings, relations and the two denoisers.

    State: "latent" [B, dim], one row a node; `Context.ids` are the nodes' numbers. bridge: how the auxiliary relations
    reach the final embedding: by "diffusion", as a "sum" E_t + E_s (the same model without diffusion), or "none".
    """

    def __init__(self, interactions: Interactions, target: str = "buy", auxiliary: Sequence[str] = ("cart", "view"),
                 dim: int = 64, layers: int = 2, bridge: str = "diffusion", steps: int = 200,
                 noise_scale: float = 1e-4, noise_low: float = 1e-4, noise_high: float = 1e-3,
                 first_beta: float = 1e-4, dropout: float = 0.5, time_width: int = 8) -> None:
        super().__init__()
        if bridge not in BRIDGES:
            raise UsageError(f"The auxiliary relations have no bridge {bridge!r}.", nearest(bridge, BRIDGES))
        if bridge != "none" and not auxiliary:
            raise UsageError(f"The bridge {bridge!r} needs an auxiliary relation.", "Use bridge=none without one.")
        self.users, self.items, self.layers, self.bridge = interactions.users, interactions.items, int(layers), bridge
        self.target, self.auxiliary = target, tuple(auxiliary)
        self.embedding = nn.Parameter(torch.cat([nn.init.xavier_uniform_(torch.empty(n, dim))
                                                 for n in (self.users, self.items)]))
        for name in (target, *self.auxiliary):
            matrix = normalised_adjacency(interactions.edges(name), self.users + self.items)
            self.register_buffer(f"graph_{name}", matrix, persistent=False)
        self.path = latent_path(steps, noise_scale, noise_low, noise_high, first_beta)
        self.spec = StateSpec({LATENT: Component(Euclidean(), self.path, (int(dim),))})
        if bridge == "diffusion":
            self.of_users = LatentNetwork(dim, time_width, dropout)
            self.of_items = LatentNetwork(dim, time_width, dropout)

    def views(self) -> tuple[Tensor, Tensor]:
        """(E_t, E_s), [users + items, dim]; E_s is zero where nothing asks for it."""
        seen = light_convolution(self.get_buffer(f"graph_{self.target}"), self.embedding, self.layers)
        if self.bridge == "none":
            return seen, torch.zeros_like(seen)
        others = [light_convolution(self.get_buffer(f"graph_{name}"), self.embedding, self.layers)
                  for name in self.auxiliary]
        return seen, torch.stack(others).sum(0)

    def forward(self, state: State, t: Times, ctx: Context, run: Run | None = None) -> Predictions:
        x = state[LATENT]
        when = ctx.time(time_of(t, LATENT))
        k = (when * self.path.steps).round() - 1.0
        item = ctx.ids >= self.users
        out = torch.empty_like(x)
        out[~item] = self.of_users(x[~item], k[~item])
        out[item] = self.of_items(x[item], k[item])
        return {LATENT: Prediction("data", out)}

    def denoised(self, source: Tensor, calls: int | None = None) -> Tensor:
        """The end of the chain of posterior means from `source` [users + items, dim]; `calls` default: every step."""
        driver = Fixed(Ancestral(eta=1.0, gain=0.0, form="data", last="data"), calls or self.path.steps, PowerGrid())
        ctx = Context.of(len(source), source.device)
        return Sampler(self.spec, self, driver).run(ctx, 0, start={LATENT: source}).state[LATENT]

    @torch.no_grad()
    def embeddings(self, calls: int | None = None) -> tuple[Tensor, Tensor]:
        """Final embeddings of users and of items; `calls` network calls of the chain (default: every step)."""
        before = self.training
        self.eval()
        seen, source = self.views()
        final = seen + (self.denoised(source, calls) if self.bridge == "diffusion" else source)
        self.train(before)
        return final[:self.users], final[self.users:]


@dataclass(frozen=True)
class PairwiseObjective:
    """What DiffGraph minimises; batches are {"user", "liked", "other"}, int64 [B], with any context of B samples.

    penalty weighs the squared length of the final embeddings, diffusion the error of the denoiser.
    """

    penalty: float = 3e-2
    diffusion: float = 1.0

    def loss(self, denoiser: DiffGraph, batch: Batch, run: Run) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise, and its parts. A node that a batch meets twice is noised once."""
        triples, ctx = batch
        count = ctx.batch
        rows = torch.cat([triples["user"], triples["liked"] + denoiser.users, triples["other"] + denoiser.users])
        nodes, place = rows.unique(return_inverse=True)
        seen, source = denoiser.views()
        seen, source = seen[nodes], source[nodes]
        error = seen.new_zeros(2)
        if denoiser.bridge == "diffusion":
            source, each = self._denoised(denoiser, seen, source, Context(nodes), run)
            error = torch.stack([each[place[:count]].mean(), each[place[count:2 * count]].mean()])
        user, liked, other = (seen + source)[place].chunk(3)
        ranked = F.softplus((user * (other - liked)).sum(-1)).mean()
        length = (user.square() + liked.square() + other.square()).sum(-1).mean()
        total = ranked + self.penalty * length + self.diffusion * error.sum()
        return total, {"loss": total.detach(), "bpr": ranked.detach(), "length": length.detach(),
                       "diffusion": error.sum().detach()}

    @staticmethod
    def _denoised(denoiser: DiffGraph, seen: Tensor, source: Tensor, ctx: Context, run: Run) -> tuple[Tensor, Tensor]:
        """The denoiser's answer at one random step per node, and its weighted error [nodes]."""
        path, site = denoiser.path, ctx.at(LATENT, denoiser.spec[LATENT])
        k = (run.noise("", "time", (1,), ctx, "uniform")[:, 0] * path.steps).floor()
        t = (k + 1.0) / path.steps
        noised = path.corrupt(source, t, site, run.handle(site, source.dtype))
        answer = denoiser({LATENT: noised.z}, t, ctx, run)[LATENT].value
        return answer, step_weights(path)[k.long()].to(answer.dtype) * (seen - answer).square().mean(-1)


def step_weights(path: DiscreteDDPM) -> Tensor:
    """w_k = SNR_(k-1) - SNR_k and w_0 = 1, float64 [steps]."""
    lam = path.lam((torch.arange(path.steps, dtype=torch.float64) + 1.0) / path.steps)
    snr = (2.0 * lam).exp()
    return torch.cat([snr.new_ones(1), snr[:-1] - snr[1:]])


@dataclass(frozen=True)
class Training:
    """How a model is fitted. Every `every` epochs it is judged on validation pairs by Recall@`top` with `calls` network
    calls; after `patience` epochs without a better one the training ends, and the best state is kept."""

    epochs: int = 100
    batch: int = 2048
    lr: float = 1e-3
    decay: float = 0.96
    patience: int = 20
    every: int = 1
    calls: int = 2
    top: int = 20


@dataclass
class Fitted:
    """A fitted model, the epochs it was trained for and what each epoch gave."""

    model: DiffGraph
    epochs: int
    history: list[dict[str, float]] = field(default_factory=list)


def fit(build: Callable[[], DiffGraph], data: Interactions, valid: Tensor | None, objective: PairwiseObjective,
        training: Training, seed: int = 0, progress: Callable[[dict[str, float]], None] | None = None) -> Fitted:
    """Trains `build()` on the target relation of `data`.

    With validation pairs the best epoch is kept, without them the last. `seed` decides everything: initial embeddings,
    order, other items, noise and dropout.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        subject = build()
        optimiser = torch.optim.Adam(subject.parameters(), lr=training.lr)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, training.decay)
        draws, run = torch.Generator().manual_seed(seed), Run(seed)
        out, best, kept = Fitted(subject, 0), -math.inf, None
        for epoch in range(1, training.epochs + 1):
            subject.train()
            line = {"epoch": float(epoch), **_epoch(subject, data, objective, optimiser, training.batch, draws, run)}
            schedule.step()
            if valid is not None and epoch % training.every == 0:
                known = data.relation(subject.target)
                found = ranking(*subject.embeddings(training.calls), known, valid, training.top)
                line |= {name: float(value.mean()) for name, value in found.items()}
                reached = line[f"Recall@{training.top}"]
                if reached > best:
                    best, out.epochs, kept = reached, epoch, copy.deepcopy(subject.state_dict())
            out.history.append(line)
            if progress is not None:
                progress(line)
            if valid is not None and epoch - out.epochs >= training.patience:
                break
    if kept is not None:
        subject.load_state_dict(kept)
    out.epochs = out.epochs or len(out.history)
    subject.eval()
    return out


def _epoch(subject: DiffGraph, data: Interactions, objective: PairwiseObjective, optimiser: torch.optim.Optimizer,
           batch: int, draws: torch.Generator, run: Run) -> dict[str, float]:
    """One pass over the target pairs in random order; mean figures of its batches."""
    pairs = data.relation(subject.target)
    pairs = pairs[torch.randperm(len(pairs), generator=draws)]
    others = other_items(data, subject.target, pairs[:, 0], draws)
    sums: dict[str, float] = {}
    parts = torch.arange(len(pairs)).split(batch)
    for rows in parts:
        triples = {"user": pairs[rows, 0], "liked": pairs[rows, 1], "other": others[rows]}
        loss, figures = objective.loss(subject, (triples, Context.of(len(rows))), run)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        run.step += 1
        sums = {name: sums.get(name, 0.0) + float(value) for name, value in figures.items()}
    return {name: value / len(parts) for name, value in sums.items()}


def other_items(data: Interactions, target: str, users: Tensor, draws: torch.Generator) -> Tensor:
    """For each user an item without a pair of the target relation, uniformly, int64 [n]."""
    known = data.key(data.relation(target))
    if int(torch.bincount(data.relation(target)[:, 0]).max()) >= data.items:
        raise UsageError(f"A user has a pair {target!r} with every item, so no other item can be drawn.")
    found = torch.randint(data.items, (len(users),), generator=draws)
    while bool((taken := torch.isin(data.key(torch.stack([users, found], 1)), known)).any()):
        found = torch.where(taken, torch.randint(data.items, (len(users),), generator=draws), found)
    return found
