"""CSPNet in the published edge-list form, and how long its training step takes beside the dense form.

    python benchmarks/cspnet_edges.py [--width 128] [--depth 4] [--frequencies 16] [--sizes FILE.npz] [--out PATH]

`CSPNetEdges` takes the weights of a `CSPNetDense` and computes the same function the way the published networks do
(Jiao et al. 2023, arXiv 2309.04475): crystals as one torch_geometric batch, an edge for each ordered pair, sines and
cosines of every edge's difference, one linear map of the concatenated [u_i, u_j, c, g_ij], `scatter` to the targets.
It exists to be compared with, in value and in time. Timed are forward and backward on one thread, CPU time, the two
forms taking turns; edge lists are made before the clock starts (the published code makes them in every step). `--sizes`
is a file with an array `num_atoms`, from which batches of 128 are drawn; the dense form gets them bucketed by length.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from scidiff.core.batching import batches_by_length, length_buckets  # noqa: E402
from scidiff.core.spec import Context  # noqa: E402
from scidiff.nn.cspnet import CSPNetDense  # noqa: E402

CLASSES = 89


class CSPNetEdges(nn.Module):
    """The function of a CSPNetDense without self-conditioning and conditions, on edge lists."""

    def __init__(self, net: CSPNetDense) -> None:
        super().__init__()
        if net.self_conditioning or net.inputs.condition is not None:
            raise ValueError("The edge-list form has no self-conditioning and no conditions.")
        self.net = net

    def forward(self, data: Any, t: Tensor) -> dict[str, Tensor]:
        """data: a torch_geometric batch of `graphs`; t [B] or [B, times]. Atoms come back as rows [M, ...]."""
        from torch_geometric.utils import scatter

        net, graph, (target, source) = self.net, data.batch, data.edge_index
        position = data.frac[..., 0]
        turn = torch.remainder(position[source] - position[target], 1.0)
        angle = (2 * math.pi * turn.unsqueeze(-1) * net.frequencies).flatten(1)
        geometry = torch.cat([angle.sin(), angle.cos()], -1)
        cell = net.invariants(data.lattice)
        h = net.inputs.enter(torch.cat([net.inputs.types(data.types), data.frac[..., 1:].flatten(1),
                                        self._common(data, t)[graph]], -1))
        for layer in net.layers:
            u = layer.norm(h)
            edge = torch.cat([u[target], u[source], cell[graph[target]], geometry], -1)
            e = F.silu(layer.second(F.silu(F.linear(edge, layer.first.weight, layer.first.bias))))
            mean = scatter(e, target, 0, len(h), "mean")
            h = h + layer.node(torch.cat([u, mean], -1))
        h = net.norm(h)
        pooled = scatter(h, graph, 0, len(data.lattice), "mean")
        return {"types": net.types_out(h), "frac": net.frac_out(h) / (2 * math.pi),
                "lattice": net.lattice_of(net.lattice_out(pooled), data.lattice)}

    def _common(self, data: Any, t: Tensor) -> Tensor:
        inputs, b = self.net.inputs, len(data.lattice)
        common = [inputs.time(t.reshape(b, -1).expand(b, inputs.times))]
        if inputs.size_input:
            common.append((data.ptr[1:] - data.ptr[:-1]).to(t.dtype).log().unsqueeze(-1))
        return torch.cat(common, -1)


def graphs(features: dict[str, Tensor], sizes: Sequence[int], self_pairs: bool) -> Any:
    """Padded features as a torch_geometric batch with an edge (target, source) for each ordered pair of atoms."""
    from torch_geometric.data import Batch, Data

    out = []
    for row, n in enumerate(sizes):
        pairs = torch.cartesian_prod(torch.arange(n), torch.arange(n)).T
        if not self_pairs and n > 1:
            pairs = pairs[:, pairs[0] != pairs[1]]
        frac = features["frac"][row, :n]
        out.append(Data(types=features["types"][row, :n], frac=frac if frac.dim() == 3 else frac.unsqueeze(-1),
                        lattice=features["lattice"][row : row + 1], edge_index=pairs, num_nodes=n))
    return Batch.from_data_list(out)


def crystals(sizes: Sequence[int], seed: int = 0, extra: int = 0) -> tuple[dict[str, Tensor], Tensor, Context]:
    """Random crystals of the given sizes: features, times and context."""
    g = torch.Generator().manual_seed(seed)
    b, n = len(sizes), max(sizes)
    ctx = Context(torch.arange(b), sizes=torch.tensor(sizes), n_max=n)
    real = ctx.mask(("N",)).unsqueeze(-1)
    features = {"types": F.one_hot(torch.randint(CLASSES, (b, n), generator=g), CLASSES).float() * real,
                "frac": torch.rand(b, n, 3, 1 + extra, generator=g) * real.unsqueeze(-1),
                "lattice": torch.randn(b, 6, generator=g)}
    return features, torch.rand(b, generator=g), ctx


def spent(contestants: dict[str, Callable[[], dict[str, Tensor]]], repeats: int) -> dict[str, float]:
    """Least CPU milliseconds of forward and backward of each, over `repeats` turns after one to warm up."""
    best = dict.fromkeys(contestants, math.inf)
    for turn in range(repeats + 1):
        for name, run in contestants.items():
            begin = time.process_time()
            sum(x.square().mean() for x in run().values()).backward()
            if turn:
                best[name] = min(best[name], 1e3 * (time.process_time() - begin))
    return best


def compared(net: CSPNetDense, title: str, batches: Sequence[Sequence[int]], repeats: int) -> dict[str, Any]:
    """One row: mean milliseconds a training step of both forms over some batches of crystals."""
    edges, total = CSPNetEdges(net), {"edges": 0.0, "dense": 0.0}
    for sizes in batches:
        features, t, ctx = crystals(sizes)
        data = graphs(features, sizes, net.self_pairs)
        took = spent({"edges": lambda d=data, t=t: edges(d, t),
                      "dense": lambda f=features, t=t, c=ctx: net(f, t, c)}, repeats)
        total = {name: total[name] + took[name] / len(batches) for name in total}
    return {"batch": title, "edge list ms": round(total["edges"], 1), "dense ms": round(total["dense"], 1),
            "ratio": round(total["edges"] / total["dense"], 2)}


def main() -> None:
    from solvers import show

    from scidiff.store import atomic

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("width", 128), ("depth", 4), ("frequencies", 16), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--sizes", type=Path, help="npz file with an array num_atoms")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = CSPNetDense(CLASSES, width=options.width, depth=options.depth, frequencies=options.frequencies)
    rows = [compared(net, f"N = {n}, B = {b}", [[n] * b], options.repeats) for n, b in ((5, 256), (20, 64))]
    if options.sizes is not None:
        import numpy as np

        sizes = torch.from_numpy(np.load(options.sizes)["num_atoms"].astype("int64"))
        buckets = batches_by_length(sizes, len(sizes), 128, 0, length_buckets(sizes, 8))[:8]
        rows.append(compared(net, f"{options.sizes.stem}, B = 128", [sizes[rows].tolist() for rows in buckets],
                             options.repeats))
    weights = sum(p.numel() for p in net.parameters())
    table = {"title": f"CSPNet, width {options.width}, {options.depth} layers, {options.frequencies} frequencies, "
                      f"{weights / 1e6:.2f} M parameters: forward and backward on one thread", "rows": rows}
    show(table)
    if options.out is not None:
        print(f"\n{atomic.write_json(options.out, {'tables': [table], 'torch': torch.__version__})}")


if __name__ == "__main__":
    main()
