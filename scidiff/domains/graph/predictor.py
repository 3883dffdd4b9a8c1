"""Predictors of graph properties: one that scores generated graphs, one that guides their chains.

`Predictor` reads edge lists (`nn.sparse.SparsePredictor` on torch_geometric's Data and Batch), so that its cost grows
with the edges: it scores graphs of any size, whole or node by node with sampled neighbourhoods. Its node features are
log(1 + degree), log(1 + triangles), the clustering coefficient and the one-hot label. `two_sample` is the score
of a set: how often a classifier tells generated graphs from real ones that it has not seen (Lopez-Paz & Oquab 2017,
arXiv 1610.06545), 1/2 where it cannot. Discrete graphs have no gradient with respect to absent edges, hence
`NoisyPredictor`: f(x_t, t) on the dense features of a noisy state, which `core.guidance.PredictorGuidance`
differentiates. Its trunk is a PairFormer; the mean of x0's property given x_t is what it learns.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scidiff.core.errors import MissingLibrary, ScidiffError, UsageError, nearest
from scidiff.core.objective import StandardObjective
from scidiff.core.run import Run, uniform
from scidiff.core.spec import Context, State, StateSpec
from scidiff.core.statistics import wilson
from scidiff.domains.base import Metric
from scidiff.nn.pairformer import PairFormer
from scidiff.nn.sparse import Neighbours, SparsePredictor
from scidiff.store import checkpoint, targets

if TYPE_CHECKING:
    from networkx import Graph
    from torch_geometric.data import Batch, Data

KINDS = ("real", "classes")
Progress = Callable[[int, float], None]


def to_data(graph: Graph, labels: Sequence[str] = ()) -> Data:
    """A networkx graph as torch_geometric's Data: x [n, 3 + labels], edge_index [2, 2 m]; directions are dropped."""
    try:
        from torch_geometric.data import Data
    except ModuleNotFoundError as error:
        raise MissingLibrary("torch_geometric", "The sparse predictor", 'pip install "scidiff[sparse]"') from error
    place = {node: i for i, node in enumerate(graph.nodes())}
    pairs = torch.tensor([(place[u], place[v]) for u, v in graph.edges() if u != v], dtype=torch.int64).reshape(-1, 2)
    both = torch.cat([pairs, pairs.flip(1)]).unique(dim=0).T.contiguous()
    kinds = {name: i for i, name in enumerate(labels)}
    hot = torch.zeros(len(place), len(labels))
    for node, about in graph.nodes(data=True) if labels else ():
        name = str(about.get("label"))
        if name not in kinds:
            raise UsageError(f"The predictor knows no node label {name!r}.", nearest(name, kinds))
        hot[place[node], kinds[name]] = 1.0
    return Data(x=torch.cat([structure(both, len(place)), hot], 1), edge_index=both, num_nodes=len(place))


def structure(edges: Tensor, nodes: int) -> Tensor:
    """log(1 + degree), log(1 + triangles), clustering coefficient of each node, [nodes, 3], without a dense matrix."""
    degree = torch.bincount(edges[1], minlength=nodes)
    first = degree.cumsum(0) - degree
    order = edges[1].argsort(stable=True)
    # Every path a - b - c that starts with an edge (a, b); it closes a triangle where (a, c) is an edge as well.
    middle, reach = edges[1], degree[edges[1]]
    start = torch.arange(edges.shape[1]).repeat_interleave(reach)
    step = torch.arange(int(reach.sum())) - (reach.cumsum(0) - reach)[start]
    end = edges[0][order][first[middle[start]] + step]
    closed = torch.isin(edges[0][start] * nodes + end, edges[0] * nodes + edges[1])
    triangles = torch.bincount(edges[0][start[closed]], minlength=nodes) // 2
    pairs = (degree * (degree - 1) / 2).clamp(min=1)
    return torch.stack([torch.log1p(degree.float()), torch.log1p(triangles.float()), triangles / pairs], 1).float()


class Predictor:
    """A trained sparse network with what its numbers mean.

    about: labels, kind ("real": standardised numbers, "classes": logits), mean, std, what (the property's name).
    """

    def __init__(self, network: SparsePredictor, settings: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        self.network, self.settings, self.about = network.eval(), dict(settings), dict(about)

    def data(self, graphs: Sequence[Graph]) -> list[Data]:
        return [to_data(graph, self.about["labels"]) for graph in graphs]

    def __call__(self, graphs: Sequence[Graph], batch: int = 64) -> Tensor:
        """The property [G] of each graph (or of all nodes in turn, [nodes]); class probabilities [.., classes]."""
        return self.of_data(self.data(graphs), batch)

    @torch.no_grad()
    def of_data(self, parts: Sequence[Data], batch: int = 64) -> Tensor:
        out = [self._meant(self.network(joined.x, joined.edge_index, joined.batch, len(parts[i:i + batch])))
               for i in range(0, len(parts), batch) for joined in [_joined(parts[i:i + batch])]]
        return torch.cat(out) if out else torch.zeros(0)

    @torch.no_grad()
    def at_nodes(self, graph: Graph, seeds: Tensor, fanouts: Sequence[int], batch: int = 1024, seed: int = 0) -> Tensor:
        """A node-level property at `seeds` of one large graph, read from sampled neighbourhoods (-1: whole ones)."""
        if self.network.level != "node" or self.network.attends:
            raise UsageError("Only a predictor of nodes with layer=gine reads neighbourhoods.")
        whole = to_data(graph, self.about["labels"])
        near, draws = Neighbours(whole.edge_index, whole.num_nodes), torch.Generator().manual_seed(seed)
        out = [self._meant(self.network(whole.x[found.nodes], found.edges))[: len(part)]
               for part in seeds.split(batch) for found in [near.sample(part, fanouts, draws)]]
        return torch.cat(out) if out else torch.zeros(0)

    def _meant(self, raw: Tensor) -> Tensor:
        if self.about["kind"] == "classes":
            return torch.softmax(raw, -1)
        return raw[:, 0] * self.about["std"] + self.about["mean"]

    def save(self, folder: str | os.PathLike[str], card: str) -> Path:
        """Safetensors weights beside a config, as every checkpoint; replaces an older one."""
        config = {"predictor": "sparse", "summary": f"Predictor of {self.about['what']}", "network": self.settings,
                  "about": self.about}
        return checkpoint.save(folder, self.network.state_dict(), config, card)


def load(folder: str | os.PathLike[str] | None = None) -> Predictor | NoisyPredictor:
    """A saved predictor of either kind; targets that are not on the list of the store are refused."""
    if folder is None:
        raise UsageError("Guidance by a predictor needs a trained one.", "Name it: guidance.predictor.folder=...")
    stored = checkpoint.load(folder)
    kind = stored.config.get("predictor")
    if kind not in ("sparse", "noisy"):
        raise ScidiffError(f"The checkpoint {stored.folder} holds no predictor of graphs.")
    network = targets.build(stored.config["network"])
    if kind == "noisy":
        spec = StateSpec.from_config(stored.config["spec"], targets.build)
        found = NoisyPredictor(spec, network, stored.config["network"], stored.config["about"])
        found.load_state_dict(stored.weights)
        return found.eval()
    network.load_state_dict(stored.weights)
    return Predictor(network, stored.config["network"], stored.config["about"])


def train(graphs: Sequence[Graph], values: Tensor | Sequence[float], *, what: str = "property", kind: str = "real",
          labels: Sequence[str] = (), level: str = "graph", layer: str = "gine", width: int = 48, depth: int = 3,
          epochs: int = 30, batch: int = 32, lr: float = 3e-3, fanouts: Sequence[int] = (), seed: int = 0,
          progress: Progress | None = None) -> Predictor:
    """Fits a predictor of `values`: one per graph, or for level="node" one per node of all graphs in turn.

    kind "real" minimises the squared error of standardised values, "classes" (whole numbers from 0) the cross-entropy.
    Nodes are met `batch` at a time with neighbourhoods of `fanouts` edges a round (default: ten) where layer is "gine".
    """
    if kind not in KINDS:
        raise UsageError(f"A predictor has no kind {kind!r}.", nearest(kind, KINDS))
    parts = [to_data(graph, labels) for graph in graphs]
    goal = torch.as_tensor(values)
    wanted = len(parts) if level == "graph" else sum(part.num_nodes for part in parts)
    if not parts or goal.shape != (wanted,):
        raise UsageError(f"A predictor needs one value for each {level}: {wanted} of them, not {list(goal.shape)}.")
    if kind == "real" and not bool(torch.isfinite(goal.float()).all()):
        raise UsageError("A predictor cannot be trained on values that are not finite.")
    real = kind == "real"
    mean, std = (float(goal.float().mean()), float(goal.float().std(unbiased=False))) if real else (0.0, 1.0)
    std = std if std > 1e-12 else 1.0
    goal = (goal.float() - mean) / std if real else goal.long()
    settings = {"_target_": "scidiff.nn.sparse.SparsePredictor", "features": parts[0].x.shape[1], "width": width,
                "depth": depth, "outputs": 1 if real else int(goal.max()) + 1, "layer": layer, "level": level,
                "size": sum(part.num_nodes for part in parts) / len(parts)}
    about = {"kind": kind, "labels": list(labels), "mean": mean, "std": std, "what": what}

    def loss(raw: Tensor, truth: Tensor) -> Tensor:
        return F.mse_loss(raw[:, 0], truth) if real else F.cross_entropy(raw, truth)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found = Predictor(targets.build(settings), settings, about)
        draws = torch.Generator().manual_seed(seed)
        subject = found.network.train()
        if level == "node" and layer == "gine":
            rounds = fanouts or (10,) * depth
            passes = (_by_nodes(subject, _joined(parts), goal, loss, batch, rounds, draws) for _ in range(epochs))
            total = math.ceil(wanted / batch) * epochs
        else:
            passes = (_by_graphs(subject, parts, goal, loss, batch, draws) for _ in range(epochs))
            total = math.ceil(len(parts) / batch) * epochs
        _descend(subject, passes, total, lr, progress)
    subject.eval()
    return found


def _by_graphs(subject: SparsePredictor, parts: Sequence[Data], goal: Tensor, loss: Callable[[Tensor, Tensor], Tensor],
               batch: int, draws: torch.Generator) -> Any:
    """Losses of one pass over the graphs."""
    first = torch.tensor([0, *(part.num_nodes for part in parts)]).cumsum(0)
    for rows in torch.randperm(len(parts), generator=draws).split(batch):
        joined = _joined([parts[i] for i in rows.tolist()])
        place = rows if subject.level == "graph" else torch.cat(
            [torch.arange(int(first[i]), int(first[i + 1])) for i in rows])
        yield loss(subject(joined.x, joined.edge_index, joined.batch, len(rows)), goal[place])


def _by_nodes(subject: SparsePredictor, whole: Batch, goal: Tensor, loss: Callable[[Tensor, Tensor], Tensor],
              batch: int, fanouts: Sequence[int], draws: torch.Generator) -> Any:
    """Losses of one pass over the nodes, each batch with its sampled neighbourhood."""
    near = Neighbours(whole.edge_index, whole.num_nodes)
    for seeds, found in near.batches(torch.arange(whole.num_nodes), batch, fanouts, draws):
        yield loss(subject(whole.x[found.nodes], found.edges)[: len(seeds)], goal[seeds])


def _descend(subject: nn.Module, passes: Any, total: int, lr: float, progress: Progress | None) -> None:
    """AdamW with a rate that falls to zero along a cosine over `total` losses."""
    optimiser = torch.optim.AdamW(subject.parameters(), lr=lr, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(total, 1))
    for number, losses in enumerate(passes, 1):
        seen = []
        for value in losses:
            optimiser.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(subject.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            seen.append(float(value.detach()))
        if progress is not None:
            progress(number, sum(seen) / max(len(seen), 1))


def _joined(parts: Sequence[Data]) -> Batch:
    from torch_geometric.data import Batch

    return Batch.from_data_list(list(parts))


def two_sample(real: Sequence[Graph], generated: Sequence[Graph], *, labels: Sequence[str] = (), folds: int = 4,
               epochs: int = 20, width: int = 32, seed: int = 0, reference: str = "") -> Metric:
    """How often a classifier tells the two sets apart on graphs that it was not trained on: 1/2 where it cannot.

    Both sets are cut to the size of the smaller one (which graphs stay depends on the seed); every graph is judged
    once, by the classifier of the fold that left it out. The interval is Wilson's over the graphs.
    """
    count = min(len(real), len(generated))
    if count < 2 * folds:
        raise UsageError(f"Telling two sets apart in {folds} folds takes {2 * folds} graphs of each, not {count}.")
    chosen = [[side[i] for i in uniform(seed, torch.arange(len(side)), f"two_sample.{name}")[:, 0].argsort()[:count]]
              for name, side in (("real", real), ("generated", generated))]
    truth = torch.arange(2).repeat_interleave(count)
    fold = (torch.arange(count) % folds).repeat(2)
    graphs = [*chosen[0], *chosen[1]]
    right = 0
    for k in range(folds):
        seen, left = (fold != k).nonzero()[:, 0].tolist(), (fold == k).nonzero()[:, 0].tolist()
        judge = train([graphs[i] for i in seen], truth[seen], what="real or generated", kind="classes", labels=labels,
                      epochs=epochs, width=width, seed=seed + k)
        right += int((judge([graphs[i] for i in left]).argmax(1) == truth[left]).sum())
    found = wilson(right, 2 * count)
    return Metric("told from real graphs", found.value, (found.low, found.high), floor=0.5, reference=reference,
                  protocol=f"share of held-out graphs that a message-passing classifier assigns rightly, {folds} folds",
                  count=2 * count, better="lower")


class NoisyPredictor(nn.Module):
    """f(x_t, t) [B] on dense features: E[property of x0 | x_t] in units of its spread, hence of order one.

    Reads out the sum of a PairFormer's node and pair outputs over the graph, divided by its size.
    """

    def __init__(self, spec: StateSpec, network: PairFormer, settings: Mapping[str, Any],
                 about: Mapping[str, Any]) -> None:
        super().__init__()
        self.spec, self.network, self.settings, self.about = spec, network, dict(settings), dict(about)
        self.offset = nn.Parameter(torch.zeros(()))

    def forward(self, features: dict[str, Tensor], t: Tensor, ctx: Context) -> Tensor:
        out = self.network(features, t, ctx)
        pairs = out[self.network.pairs][..., 0]
        n = pairs.shape[1]
        real = ctx.mask(("N",))
        real = torch.ones(len(pairs), n, dtype=torch.bool, device=pairs.device) if real is None else real
        both = torch.triu(real[:, :, None] & real[:, None, :], 1)
        total = (pairs * both).sum((1, 2))
        if self.network.nodes is not None:
            total = total + (out[self.network.nodes][..., 0] * real).sum(1)
        return self.offset + total / real.sum(1).clamp(min=1)

    def meant(self, value: Tensor) -> Tensor:
        """The value in the property's own unit."""
        return value * self.about["std"] + self.about["mean"]

    def save(self, folder: str | os.PathLike[str], card: str) -> Path:
        config = {"predictor": "noisy", "summary": f"Noisy predictor of {self.about['what']}", "network": self.settings,
                  "about": self.about, "spec": self.spec.to_config()}
        return checkpoint.save(folder, self.state_dict(), config, card)


def train_noisy(spec: StateSpec, state: State, ctx: Context, values: Tensor, *, nodes: str | None, pairs: str,
                what: str = "property", count: int = 1000, batch: int = 64, lr: float = 2e-3, seed: int = 0,
                progress: Progress | None = None, **network: Any) -> NoisyPredictor:
    """Fits f(x_t, t) to `values` [G] of the clean state at times and noise of the spec's own paths, in `count` batches.

    nodes, pairs: the components (nodes None where only pairs move), of classes. `network` are further settings of the
    PairFormer (dx, de, dc, depth, walks, orders ...).
    """
    used = [name for name in (nodes, pairs) if name is not None]
    if any(name not in spec or not spec[name].space.categorical for name in used):
        raise UsageError(f"A noisy predictor reads classes of nodes and pairs, which {', '.join(used)} are not.")
    goal = torch.as_tensor(values).float()
    if goal.shape != (ctx.batch,) or not bool(torch.isfinite(goal).all()):
        raise UsageError(f"A predictor needs one finite value for each graph: {ctx.batch} of them.")
    mean, spread_ = float(goal.mean()), float(goal.std(unbiased=False))
    about = {"what": what, "mean": mean, "std": spread_ if spread_ > 1e-12 else 1.0}
    goal = (goal - mean) / about["std"]
    width = {name: spec[name].path.classes(spec[name].space) for name in used}  # type: ignore[attr-defined]
    settings = {"_target_": "scidiff.nn.pairformer.PairFormer", "nodes": nodes, "pairs": pairs, "node_logits": 1,
                "node_classes": width.get(nodes or "", 0), "pair_classes": width[pairs], "pair_logits": 1,
                "max_size": ctx.n_max,
                "self_conditioning": False, "dx": 48, "de": 16, "dc": 48, "depth": 2, "heads": 4, "walks": 6,
                "orders": [0.0] + [1.0] * (spec[pairs].space.classes - 1), **network}  # type: ignore[attr-defined]
    noising = StandardObjective(spec)
    run = Run(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found = NoisyPredictor(spec, targets.build(settings), settings, about)
        draws = torch.Generator().manual_seed(seed)

        def losses() -> Any:
            for _ in range(count):
                rows = torch.randint(ctx.batch, (batch,), generator=draws)
                part = ctx.take(rows)
                part.ids = torch.arange(batch)  # a graph met twice in a batch gets two draws of noise
                t = noising.times(part, run)
                noised = noising.corrupt({name: x[rows] for name, x in state.items()}, t, part, run)
                features = {name: c.path.features(noised[name].z, t, part.at(name, c)) for name, c in spec.items()}
                yield F.mse_loss(found(features, part.time(t), part), goal[rows])
                run.step += 1

        _descend(found.train(), [losses()], count, lr, progress)
    return found.eval()
