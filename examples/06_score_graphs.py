"""Two scores for generated graphs: a property that a predictor reads off them, and how easily a classifier spots them.

"Real" are small worlds: rings whose edges were rewired with a chance that differs from graph to graph. The predictor,
message passing on edge lists, learns that chance. Three sets stand for three generators: more small worlds, small
worlds that are always rewired to the same degree, and uniformly random graphs with as many edges. Printed are the
rewiring that the predictor reads (mean, spread) and the share of held-out graphs that a classifier tells from real ones
(1/2: it cannot). The second set shows why one wants both: each of its graphs could be real, only their spread is wrong.

    python examples/06_score_graphs.py [fast=true]
"""

from __future__ import annotations

import sys

import networkx as nx
import torch

from scidiff.domains.graph.predictor import train, two_sample

NODES, NEIGHBOURS = 32, 4


def small_worlds(count: int, seed: int, low: float = 0.0, high: float = 0.5) -> tuple[list[nx.Graph], torch.Tensor]:
    """Rings of 32 nodes with 4 neighbours each, edges rewired with a chance drawn from [low, high], and the chances."""
    chance = low + (high - low) * torch.rand(count, generator=torch.Generator().manual_seed(seed))
    graphs = [nx.watts_strogatz_graph(NODES, NEIGHBOURS, p, seed=10_000 * seed + i)
              for i, p in enumerate(chance.tolist())]
    return graphs, chance


def main(fast: bool = False) -> None:
    count, epochs = (60, 8) if fast else (120, 24)
    graphs, chance = small_worlds(count, seed=1)
    predictor = train(graphs, chance, what="rewiring", epochs=epochs, width=32, depth=2)

    fresh, truth = small_worlds(count // 2, seed=2)
    error = (predictor(fresh) - truth).abs().mean().item()
    guess = (truth.median() - truth).abs().mean().item()
    print(f"Rewiring of {len(fresh)} new small worlds is read to +- {error:.3f} (a constant guess: {guess:.3f}).\n")

    edges = NODES * NEIGHBOURS // 2
    sets = {
        "small worlds": small_worlds(count, seed=3)[0],
        "one rewiring": small_worlds(count, seed=4, low=0.25, high=0.25)[0],
        "random graphs": [nx.gnm_random_graph(NODES, edges, seed=i) for i in range(count)],
    }
    print(f"{'generated set':14s} {'rewiring':>16s} {'told from real':>16s}   95 % interval")
    for name, generated in sets.items():
        read = predictor(generated)
        score = two_sample(graphs, generated, epochs=epochs // 2)
        low, high = score.interval
        print(f"{name:14s} {read.mean():8.2f} +- {read.std():.2f} {score.value:16.2f}   [{low:.2f}, {high:.2f}]")


if __name__ == "__main__":
    main(fast="fast=true" in sys.argv[1:])
