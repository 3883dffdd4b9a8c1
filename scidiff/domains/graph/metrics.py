"""Figures over a set of generated graphs, each with interval, floor, protocol, reference and count.

valid      share of the kind that the reference demands (planar, tree, sbm), else that the model was asked for
connected  share in one piece
unique     share of graphs that are not isomorphic to an earlier one of the same repeat
novel      share that are isomorphic to no training graph
V.U.N.     share that are all of these: valid, unique, novel
degree, clustering, orbit, spectrum, wavelet MMD^2    biased, kernels of the reference's protocol (distances.py)
mean MMD^2 of degree, clustering and orbit (gdss), ratio = mean of MMD^2(generated, test) / MMD^2(train, test) (spectre)
nodes, edges   means over graphs

A repeat is 40 graphs where 200 are given (then the first five repeats), else all graphs together. Shares carry Wilson
95 % intervals. The biased MMD^2 shrinks as graphs are added, so more graphs than the test set has enter as the mean
over all choices of as many as it has; floors hold for the same number. Intervals of MMD^2 and ratio come from
resampling generated and test graphs (1,000 draws of weights, bias removed). Of more than 2,000 graphs with nodes the
first 2,000 enter. Labels of nodes take part in nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from scidiff.core.errors import UsageError
from scidiff.core.statistics import mean_interval, wilson
from scidiff.domains.base import Metric, Verdict
from scidiff.domains.graph import distances, isomorphism, topology, validity

if TYPE_CHECKING:
    from networkx import Graph

    from scidiff.domains.graph.reference import Reference

REPEAT, REPEATS = 40, 5
RESAMPLES = 1000
MOST_COMPARED = 2000
_GDSS_MEAN = ("degree", "clustering", "orbit")


def metrics(graphs: Sequence[Graph], verdicts: Sequence[Verdict], reference: Reference | None = None,
            seed: int = 0) -> list[Metric]:
    """All figures of the module docstring; those that need a reference only where one is given."""
    if not graphs:
        raise UsageError("There are no graphs to evaluate.")
    batch = topology.padded(graphs)
    out = _shares(graphs, verdicts, batch, reference)
    out += _sizes(batch, reference)
    return out if reference is None else out + _distances(batch, reference, seed)


def _shares(graphs: Sequence[Graph], verdicts: Sequence[Verdict], batch: tuple[np.ndarray, np.ndarray],
            reference: Reference | None) -> list[Metric]:
    from networkx import is_connected

    valid = np.array([v.valid for v in verdicts])
    meaning = "the verdict of the model's kind of graph"
    if reference is not None and reference.kind:
        valid &= np.array([validity.check(g, reference.kind).valid for g in graphs])
        meaning = validity.describe(reference.kind)
    whole = np.array([g.number_of_nodes() > 0 and is_connected(g) for g in graphs])
    found = isomorphism.classes(graphs)
    many = len(graphs) >= REPEAT * REPEATS
    repeat = np.arange(len(graphs)) // REPEAT if many else np.zeros(len(graphs), dtype=np.int64)
    first = _first(found.labels, repeat)
    used = repeat < REPEATS
    note = f"{REPEATS} repeats of {REPEAT}" if many else f"{len(graphs)} graphs at once, fewer than {REPEATS * REPEAT}"
    if found.undecided:
        note += f"; {found.undecided} pairs with equal hashes not decided, taken as isomorphic"
    out = [_share("valid", valid, reference, meaning), _share("connected", whole, reference, "in one piece"),
           _share("unique", first[used], reference, "not isomorphic to an earlier graph of the repeat", note)]
    if reference is None or not len(reference.hashes):
        return out
    known, how = _known(graphs, batch, reference)
    out.append(_share("novel", ~known, reference, "isomorphic to no training graph", how))
    both = (valid & first & ~known)[used]
    if many:
        shares = both.reshape(REPEATS, REPEAT).mean(1)
        note += f", {100 * shares.mean():.1f} ± {100 * shares.std():.1f} %"
    out.append(_share("V.U.N.", both, reference, f"valid ({meaning}), unique and novel", note))
    return out


def _first(labels: np.ndarray, repeat: np.ndarray) -> np.ndarray:
    """Which graphs are the first of their class within their repeat."""
    place = np.unique(np.stack([repeat, labels]), axis=1, return_index=True)[1]
    return np.isin(np.arange(len(labels)), place)


def _known(graphs: Sequence[Graph], batch: tuple[np.ndarray, np.ndarray],
           reference: Reference) -> tuple[np.ndarray, str]:
    """Which graphs are in the training split, and how sure that is: a hash that is not there settles it alone."""
    hashes = isomorphism.hashes(*batch)
    known = reference.known(hashes)
    if not known.any():
        return known, ""
    training = reference.training()
    if training is None:
        return known, "by equal 64-bit hashes; the training graphs are not on this machine"
    alike: dict[int, list[Graph]] = {}
    for other, number in zip(training, isomorphism.hashes(*topology.padded(training)).tolist(), strict=True):
        alike.setdefault(number, []).append(other)
    for i in np.flatnonzero(known).tolist():
        known[i] = any(isomorphism.isomorphic(graphs[i], g) is not False for g in alike.get(int(hashes[i]), ()))
    return known, ""


def _share(name: str, flags: np.ndarray, reference: Reference | None, protocol: str, note: str = "") -> Metric:
    share = wilson(int(flags.sum()), len(flags))
    floor = None if reference is None else reference.shares.get(name)
    against = "" if reference is None or name not in ("novel", "V.U.N.") else (
        f"{reference.name} train ({reference.meta.get('train_count', len(reference.hashes))})")
    return Metric(name, share.value, (share.low, share.high), floor, protocol, against, len(flags), "higher", note=note)


def _sizes(batch: tuple[np.ndarray, np.ndarray], reference: Reference | None) -> list[Metric]:
    adjacency, nodes = batch
    out = []
    for name, values in (("nodes", nodes), ("edges", adjacency.sum((1, 2), dtype=np.int64) / 2)):
        mean = mean_interval(values)
        floor = None
        if reference is not None:
            degrees = reference.features["degree"]
            own = reference.nodes if name == "nodes" else degrees @ np.arange(degrees.shape[1]) / 2
            floor = float(own.mean())
        out.append(Metric(name, mean.value, (mean.low, mean.high) if len(values) > 1 else None, floor,
                          "mean over graphs", "" if reference is None else reference.title, len(values), "",
                          note="" if floor is None else "floor: the mean of the reference"))
    return out


def _distances(batch: tuple[np.ndarray, np.ndarray], reference: Reference, seed: int) -> list[Metric]:
    adjacency, nodes = (x[batch[1] > 0][:MOST_COMPARED] for x in batch)
    kernels = reference.kernels
    empty = f"without {missing} graphs that have no nodes" if (missing := int((batch[1] == 0).sum())) else ""
    if not len(nodes):
        return [Metric(f"{name} MMD^2", None, None, None, str(kernel), reference.title, 0,
                       note="not computed: no graph has nodes") for name, kernel in kernels.items()]
    found = topology.features(adjacency, nodes, wavelet="wavelet" in kernels)
    grams = distances.grams(kernels, found, reference.features)
    count = min(len(nodes), reference.count)
    draws = distances.weights(len(nodes), reference.count, RESAMPLES, seed)
    values = {name: gram.expected(count) for name, gram in grams.items()}
    spread = {name: gram.deviations(*draws) for name, gram in grams.items()}
    floors = {name: reference.floor(name, count) for name in kernels}
    size = f"n = {count}" if count == len(nodes) else f"mean over choices of n = {count} of {len(nodes)}"
    rows = {}
    for name, kernel in kernels.items():
        told = [empty, _drawn(reference, name)]
        rows[name] = (f"{name} MMD^2", values[name], spread[name], floors[name],
                      f"{reference.protocol}: {kernel}, biased, {size}", "; ".join(x for x in told if x))
    rows["whole"] = _together(reference, values, spread, floors)
    out = []
    for name, value, deviation, floor, protocol, note in rows.values():
        if value is None:
            out.append(Metric(name, None, None, None, protocol, reference.title, len(nodes), note=note))
            continue
        low, high = distances.span(value + deviation)
        low = max(low, 0.0) if value >= 0.0 else low
        out.append(Metric(name, value, (low, high), floor, protocol, reference.title, len(nodes), note=note))
    return out


def _drawn(reference: Reference, name: str) -> str:
    known = reference.floors.get(name)
    if known is None:
        return "no floor: the reference has no training graphs"
    spread = f"{known['draws']:.4f} ± {known['draws_std']:.4f}"
    return f"floor over draws of {known['draws_size']:.0f} training graphs: {spread}"


def _together(reference: Reference, values: Mapping[str, float], spread: Mapping[str, np.ndarray],
              floors: Mapping[str, float | None]) -> tuple[str, float | None, np.ndarray, float | None, str, str]:
    """The one figure of the protocol over all of its metrics: name, value, deviations, floor, protocol, note."""
    if reference.protocol == "gdss":
        mean = float(np.mean([values[n] for n in _GDSS_MEAN]))
        moved = np.mean([spread[n] for n in _GDSS_MEAN], axis=0)
        known = [x for n in _GDSS_MEAN if (x := floors[n]) is not None]
        floor = float(np.mean(known)) if known else None
        return "mean MMD^2", mean, moved, floor, "gdss: mean of degree, clustering and orbit", ""
    bases = {name: known["whole"] for name, known in reference.floors.items()}
    protocol = f"{reference.protocol}: mean of MMD^2(generated, test) / MMD^2(train, test) over {', '.join(values)}"
    value = distances.ratio(values, bases)
    if not np.isfinite(value):
        return "ratio", None, np.zeros(1), None, protocol, "not computed: no training graphs that differ from the test"
    floor = distances.ratio({n: x for n, x in floors.items() if x is not None}, bases)
    rounded = distances.ratio(values, bases, decimals=4)
    left = [name for name in bases if round(bases[name], 4) == 0.0]
    note = f"{rounded:.2f} with denominators of four decimals, as published tables have it"
    note += f"; without {', '.join(left)}, where training and test graphs agree" if left else ""
    return "ratio", float(value), np.asarray(distances.ratio(spread, bases)), float(floor), protocol, note
