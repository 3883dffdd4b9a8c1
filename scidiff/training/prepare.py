"""From a composed training config to a tensor cache: read, fit, encode, hold out, resolve.

The hold-out is a share of the training split, drawn by a hash of the row number, or with `data.hold_out=valid` the
validation part of a set that has one; test data are never seen. What the data decide (vocabulary, marginals, sizes of
the network's inputs) is filled into the config here, once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from scidiff.core.errors import UsageError, nearest
from scidiff.core.run import uniform
from scidiff.core.spec import Component, Context, State, StateSpec
from scidiff.domains import domain_class
from scidiff.domains.base import Domain, Records
from scidiff.store import cards
from scidiff.store.fetch import provide
from scidiff.store.targets import build
from scidiff.training.cache import Cache, TensorData, narrowed

Progress = Callable[[str, int, int | None], None]
HOLD_OUT, HOLD_OUT_MOST, LEAST = 0.02, 2400, 4
BLOCK = 16384  # objects encoded at once


def prepare(config: Mapping[str, Any], progress: Progress | None = None) -> Cache:
    """The tensor cache of a composed `train` config. Raises UsageError where data, domain and process do not fit."""
    about = config["domain"]
    domain = domain_class(about["name"])(**dict(about.get("options") or {}))
    domain.need()
    if progress is not None:
        progress("Reading data", 0, None)
    records, data = _records(domain, config["data"], progress)
    domain, statistics = domain.fit(records.objects)
    statistics = dict(statistics)
    wanted = [name for name, on in (config.get("condition") or {}).items() if on is not False]
    if wanted:
        statistics["conditions"] = {name: _standard(name, values)
                                    for name, values in domain.properties(records.objects, wanted).items()}
    spec = make_spec(domain, config["process"], statistics)
    backbone = {**config["backbone"], **{k: v for k, v in domain.backbone_options(spec).items()
                                         if config["backbone"].get(k) is None}}
    if wanted:
        backbone["conditions"] = {name: 1 for name in wanted}
    shapes = {name: c.shape for name, c in spec.items()}
    solver = config.get("solver") or {}
    if "_target_" in solver:
        build(solver).total(spec, 1.0)  # a solver that cannot move this state is refused before the training, not after
    known = statistics.get("conditions", {})

    def encoded(objects: Sequence[Any]) -> TensorData:
        state, ctx = _encoded(domain, objects)
        for name, values in (domain.properties(objects, wanted) if wanted else {}).items():
            ctx.cond[name] = ((values.float() - known[name]["mean"]) / known[name]["std"],
                              torch.ones(len(objects), dtype=torch.bool))
        return TensorData.of(state, ctx, shapes)

    everything, share = encoded(records.objects), config["data"].get("hold_out", HOLD_OUT)
    if isinstance(share, str):
        others, _ = _records(domain, {**config["data"], "split": share, "limit": None}, progress)
        train, valid = everything, encoded(others.objects)
    else:
        held = _hold_out(len(records), int(config.get("seed", 0)), float(share))
        train, valid = _rows(everything, ~held), _rows(everything, held)
    names = {}
    if config["data"].get("path"):  # a recipe's name belongs to its own data
        names = {"experiment": Path(str(config["data"]["path"])).name.split(".")[0], "alias": None,
                 "summary": f"Trained on {data['title']}"}
    resolved = {
        **{k: config.get(k) for k in ("experiment", "alias", "summary", "trainer", "logger", "solver", "sampling",
                                      "seed")},
        "objective": {**config["objective"], **{k: v for k, v in domain.objective_options().items()
                                                if config["objective"].get(k) is None}},
        "denoiser": dict(config["process"].get("denoiser") or {}),
        "domain": {"name": domain.name, "options": domain.options()}, "spec": spec.to_config(), "backbone": backbone,
        **names, "statistics": statistics, "data": {**data, "count": len(records), "rejected": len(records.rejected)},
    }
    return Cache(resolved, train, valid)


def _standard(name: str, values: torch.Tensor) -> dict[str, float]:
    """Mean and standard deviation of a condition over the training data."""
    mean, std = float(values.mean()), float(values.std())
    if not std > 1e-9 * max(abs(mean), 1e-9):
        raise UsageError(f"The condition {name!r} is {mean:g} for all training data: nothing can be learned from it.",
                         "Leave it out.")
    return {"mean": mean, "std": std}


def make_spec(domain: Domain, process: Mapping[str, Any], statistics: Mapping[str, Any]) -> StateSpec:
    """The domain's components on the process's paths; paths named `default` serve every component without its own."""
    paths, parts = dict(process["components"]), domain.components()
    for name in paths:
        if name != "default" and name not in parts:
            raise UsageError(f"The process moves an unknown component {name!r}.", nearest(name, parts))
    components = {}
    for name, (space, shape) in parts.items():
        config = paths.get(name, paths.get("default"))
        if config is None:
            raise UsageError(f"The process says nothing about the component {name!r}.")
        path = build(config).fit((statistics.get("marginals") or {}).get(name))
        components[name] = Component(space, path, shape)
    return StateSpec(components)


def _records(domain: Domain, data: Mapping[str, Any], progress: Progress | None) -> tuple[Records, dict[str, Any]]:
    options, limit = dict(data.get("options") or {}), data.get("limit")
    if data.get("path"):
        place = Path(str(data["path"])).expanduser()
        records = domain.read(place, split=data.get("split"), **options)
        about: dict[str, Any] = {"name": data.get("name"), "title": place.name, "licence": "as the user holds it"}
    else:
        card = cards.find(str(data["name"]))
        if card.domain != domain.name:
            raise UsageError(f"The data set {card.name!r} belongs to the domain {card.domain!r}, not {domain.name!r}.")
        found = provide(card, data.get("root"), progress)
        records = domain.dataset(found.files, found.reader, {**found.options, **options}, data.get("split"), limit)
        about = {"name": card.name, "title": card.title, "licence": card.licence, "split": data.get("split"),
                 "references": list(card.citation)}
    records.require(str(data.get("path") or data["name"]))
    if limit:
        records = Records(records.objects[:limit], records.names[:limit], records.rejected)
    if len(records) < LEAST:
        rest = f" ({len(records.rejected)} entries were rejected)" if records.rejected else ""
        raise UsageError(f"Training needs at least {LEAST} objects, and {data.get('path') or data['name']} gave "
                         f"{len(records)}{rest}.")
    return records, about


def _encoded(domain: Domain, objects: Sequence[Any]) -> tuple[State, Context]:
    """`domain.encode` block by block, so that a large set is never held in wide integers as a whole."""
    states, parts = [], []
    for start in range(0, len(objects), BLOCK):
        state, ctx = domain.encode(objects[start:start + BLOCK])
        states.append(narrowed(state))
        parts.append(ctx)
    sizes = None if parts[0].sizes is None else torch.cat([ctx.sizes for ctx in parts if ctx.sizes is not None])
    cond = {name: (torch.cat([ctx.cond[name][0] for ctx in parts]), torch.cat([ctx.cond[name][1] for ctx in parts]))
            for name in parts[0].cond}
    state = {name: torch.cat([state[name] for state in states]) for name in states[0]}
    return state, Context(torch.arange(len(objects)), sizes, parts[0].n_max, cond)


def _hold_out(count: int, seed: int, share: float) -> torch.Tensor:
    u = uniform(seed, torch.arange(count), "hold-out")[:, 0]
    number = min(max(int(share * count), 1), HOLD_OUT_MOST)
    held = torch.zeros(count, dtype=torch.bool)
    held[torch.argsort(u)[:number]] = True
    return held


def _rows(data: TensorData, where: torch.Tensor) -> TensorData:
    return TensorData({k: v[where] for k, v in data.state.items()}, None if data.sizes is None else data.sizes[where],
                      {k: v[where] for k, v in data.cond.items()}, data.shapes)
