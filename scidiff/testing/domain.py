"""Conformance of a domain: round trips, files, templates, learning, sampling, configs."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor, nn

from scidiff.core.denoiser import NetworkDenoiser
from scidiff.core.errors import UsageError
from scidiff.core.objective import StandardObjective
from scidiff.core.path import Linear, MarginalPath, Path, UniformPath
from scidiff.core.path.categorical import CategoricalPath
from scidiff.core.path.circular import CircularBelief
from scidiff.core.path.wrapped import WrappedPath
from scidiff.core.run import Run
from scidiff.core.sampler import Sampler
from scidiff.core.solvers.bayes import Bayes
from scidiff.core.solvers.fixed import Fixed
from scidiff.core.solvers.jump import Posterior
from scidiff.core.space import Space
from scidiff.core.spec import Component, Context, State, StateSpec, stack_ids
from scidiff.domains.base import Domain, Metric, Request, Samples, Verdict, sample_id
from scidiff.testing.require import require


class Entrywise(nn.Module):
    """The smallest backbone that fits every state: each entry for itself, given its features and the time."""

    def __init__(self, spec: StateSpec) -> None:
        super().__init__()
        self.parts = nn.ModuleDict()
        self.classes = {n: c.space.classes for n, c in spec.items() if c.space.categorical}  # type: ignore[attr-defined]
        for name, c in spec.items():
            channels = 2 if isinstance(c.path, CircularBelief) else 1  # position and sharpness
            seen = c.path.classes(c.space) if isinstance(c.path, CategoricalPath) else self.classes.get(name, channels)
            self.parts[name] = nn.Linear(seen + 1, self.classes.get(name, 1))

    def forward(self, features: dict[str, Tensor], t: Tensor, ctx: Context, previous: Any = None) -> dict[str, Tensor]:
        out = {}
        for name, part in self.parts.items():
            x = features[name]
            x = x if name in self.classes or part.in_features == x.shape[-1] + 1 > 2 else x.unsqueeze(-1)
            clock = t.reshape(ctx.batch, -1).mean(-1).to(x.dtype).view(-1, *[1] * (x.dim() - 1))
            y = part(torch.cat([x, clock.expand(*x.shape[:-1], 1)], -1))
            out[name] = y if name in self.classes else y.squeeze(-1)
        return out


def state_spec(domain: Domain, statistics: Mapping[str, Any], paths: Mapping[str, Path] | None = None) -> StateSpec:
    """A spec with plain paths unless given: marginal or uniform for categories, wrapped on a torus, lines else."""
    marginals = statistics.get("marginals") or {}

    def path(name: str, space: Space) -> Path:
        if paths and name in paths:
            return paths[name].fit(marginals.get(name))
        if space.categorical:
            return MarginalPath().fit(marginals[name]) if name in marginals else UniformPath()
        if space.wraps:
            period = space.period  # type: ignore[attr-defined]
            return WrappedPath(sigma_min=0.005 * period, sigma_max=0.5 * period)
        return Linear()

    return StateSpec({n: Component(space, path(n, space), shape) for n, (space, shape) in domain.components().items()})


def check_domain(domain: Domain | type[Domain], objects: Sequence[Any] | None = None,
                 folder: str | FilePath | None = None, paths: Mapping[str, Path] | None = None,
                 backbone: nn.Module | None = None, same: Callable[[Any, Any], bool] | None = None,
                 configs: bool = True) -> Domain:
    """Checks a domain on some of its native objects; returns it as fitted to them.

    objects: a dozen or so (default: the domain's own `examples()`). folder: where files are written (default: a
    temporary one). paths: of some components, in place of plain ones. same: equality of two native objects (default:
    equal rows of `table`, else equal states). configs=False leaves the package's YAML files out.
    """
    made = domain() if isinstance(domain, type) else domain
    made.need()
    offered = getattr(made, "examples", None)
    given = list(objects if objects is not None else offered() if callable(offered) else ())
    require(len(given) >= 2, f"The domain {made.name!r} is checked on a few native objects: pass objects=[...], "
                              "or give it a method examples().")
    fitted, statistics = made.fit(given)
    options = json.loads(json.dumps(fitted.options()))
    json.dumps(statistics)
    again = type(fitted)(**options)
    require(json.loads(json.dumps(again.options())) == options, "type(domain)(**domain.options()) has other options.")
    spec = state_spec(fitted, statistics, paths)
    state, ctx = fitted.encode(given)
    _check_state(spec, state, ctx, len(given))
    _check_round_trip(fitted, given, state, ctx, same)
    _check_files(fitted, given, same, folder)
    _check_template(fitted)
    _check_learning(spec, backbone or Entrywise(spec), state, ctx)
    _check_sampling(fitted, spec, backbone or Entrywise(spec))
    if configs:
        check_configs(fitted, statistics, state, ctx)
    return fitted


def _check_state(spec: StateSpec, state: State, ctx: Context, count: int) -> None:
    """Shapes, kinds of numbers, symmetry, zeros on padding."""
    require(set(state) == set(spec), f"encode gives {sorted(state)}, components() names {sorted(spec)}.")
    require(ctx.batch == count, f"encode gives a context of {ctx.batch} samples for {count} objects.")
    for name, c in spec.items():
        x = state[name]
        require(x.shape == (count, *ctx.dims(c.shape)), f"{name!r} has shape {tuple(x.shape)}, not (B, {c.shape}).")
        if c.space.categorical:
            require(x.dtype == torch.int64, f"The categories of {name!r} are {x.dtype}, not int64.")
            require((x >= 0).all() and (x < c.space.classes).all(), f"{name!r} has classes out of range.")  # type: ignore[attr-defined]
        else:
            require(x.is_floating_point() and torch.isfinite(x).all(), f"{name!r} is not finite and real.")
        if c.space.symmetric:
            require(torch.equal(x, x.transpose(1, 2)), f"{name!r} is not symmetric.")
            require((x.diagonal(dim1=1, dim2=2) == 0).all(), f"{name!r} has entries on its diagonal.")
    for name, x in spec.masked(state, ctx).items():
        require(torch.equal(x, state[name]), f"The padding of {name!r} is not zero (class 0).")


def _agree(domain: Domain, a: Sequence[Any], b: Sequence[Any], same: Callable[[Any, Any], bool] | None) -> bool:
    if len(a) != len(b):
        return False
    if same is not None:
        return all(same(x, y) for x, y in zip(a, b, strict=True))
    tables = [domain.table(objects, domain.check(objects)) for objects in (a, b)]
    if any(tables[0]) and all(_close(x, y) for x, y in zip(*tables, strict=True)):
        return True
    (one, ctx), (two, other) = domain.encode(a), domain.encode(b)
    equal = all(x.shape == two[n].shape and torch.allclose(x.double(), two[n].double(), rtol=1e-4, atol=1e-5)
                for n, x in one.items())
    return equal and (ctx.sizes is None or other.sizes is None or torch.equal(ctx.sizes, other.sizes))


def _close(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    def near(x: Any, y: Any) -> bool:
        real = isinstance(x, float) and isinstance(y, float)
        return math.isclose(x, y, rel_tol=1e-3, abs_tol=1e-4) or (x != x and y != y) if real else x == y

    return a.keys() == b.keys() and all(near(a[k], b[k]) for k in a)


def _check_round_trip(domain: Domain, objects: Sequence[Any], state: State, ctx: Context,
                      same: Callable[[Any, Any], bool] | None) -> None:
    back = domain.decode(state, ctx)
    require(len(back) == len(objects), f"decode gives {len(back)} objects for {len(objects)} samples.")
    require(_agree(domain, objects, back, same), "decode(encode(objects)) are not the objects.")


def _check_files(domain: Domain, objects: Sequence[Any], same: Callable[[Any, Any], bool] | None,
                 folder: str | FilePath | None) -> None:
    """What `write` writes, `read` reads, with one id everywhere and nothing half-written left behind."""
    with tempfile.TemporaryDirectory() as temporary:
        place = FilePath(folder or temporary)
        verdicts = domain.check(objects)
        require(len(verdicts) == len(objects), f"check gives {len(verdicts)} verdicts for {len(objects)} objects.")
        require(all(isinstance(v, Verdict) and (v.valid or v.reason) for v in verdicts),
                 "A verdict is a Verdict, and one that is not valid has a reason.")
        ids = [sample_id(i) for i in range(len(objects))]
        files = [FilePath(f) for f in domain.write(Samples(list(objects), ids, 0, verdicts, domain), place)]
        require(files, "write returns no files.")
        require(all(f.is_file() for f in files), "write names files that do not exist.")
        require(not list(place.rglob(".tmp-*")), "write leaves temporary files behind.")
        kept = [o for o, v in zip(objects, verdicts, strict=True) if v.valid]
        named = [i for i, v in zip(ids, verdicts, strict=True) if v.valid]
        readable = [f for f in files if "".join(f.suffixes).endswith(tuple(domain.extensions or ("",)))]
        require(readable, f"None of {[f.name for f in files]} can be read back ({domain.extensions}).")
        names: set[str] = set()
        for file in readable:
            records = domain.read(file)
            if len(records) == 1 and file.name.split(".")[0] in named:  # one file a sample
                expected = [kept[named.index(file.name.split(".")[0])]]
            else:
                expected = list(objects) if len(records) == len(objects) else kept
                names |= set(records.names)
            require(_agree(domain, expected, records.objects, same), f"read({file.name}) gives other objects.")
        single = {f.name.split(".")[0] for f in readable}
        require(set(named) <= names | single, "No file carries the ids of the samples.")


def _check_template(domain: Domain) -> None:
    """The context of a sample is a function of (seed, id) alone."""
    def ask(ids: Sequence[int], seed: int = 3) -> Context:
        return domain.template(Request(torch.tensor(ids, dtype=torch.int64), seed))

    def facts(ctx: Context) -> dict[str, Tensor]:
        out = {} if ctx.sizes is None else {"sizes": ctx.sizes}
        out.update({f"cond.{k}": v for k, (v, _) in ctx.cond.items()})
        return {"ids": ctx.ids, **out}

    whole, part = ask([0, 1, 2, 3, 4, 5, 6, 7]), ask([6, 2])
    require(whole.batch == 8, f"template gives a context of {whole.batch} samples for 8.")
    for name, value in facts(whole).items():
        require(torch.equal(value[[6, 2]], facts(part)[name]), f"{name} of a sample depends on the batch around it.")
        require(torch.equal(value, facts(ask(range(8)))[name]), f"{name} of a sample changes from call to call.")


def _check_learning(spec: StateSpec, backbone: nn.Module, state: State, ctx: Context,
                    options: Mapping[str, Any] | None = None, clean: Mapping[str, float] | None = None) -> None:
    denoiser = NetworkDenoiser(spec, backbone, **dict(options or {}))
    loss, _ = StandardObjective(spec, clean=clean).loss(denoiser, (state, ctx), Run(0))
    require(torch.isfinite(loss), f"The loss of the first batch is {loss.item()}.")
    loss.backward()
    grads = [p.grad for p in backbone.parameters() if p.grad is not None]
    require(grads, "No gradient reaches the network.")
    require(all(torch.isfinite(g).all() for g in grads), "The gradient of the first batch is not finite.")


def _check_sampling(domain: Domain, spec: StateSpec, backbone: nn.Module) -> None:
    """Two steps from the source, decoded, judged, measured and drawn; a sample alone is the sample among others."""
    beliefs = {n: Bayes() for n, c in spec.items() if "posterior" not in c.path.kernels and "bayes" in c.path.kernels}
    sampler = Sampler(spec, NetworkDenoiser(spec, backbone.eval()), Fixed(Posterior(), steps=2, methods=beliefs))
    ids = stack_ids(0, 6)
    ctx = domain.template(Request(ids, 0))
    state = sampler.run(ctx, seed=0).state
    _check_state(spec, {n: _settled(x, spec[n]) for n, x in state.items()}, ctx, 6)
    objects = domain.decode(state, ctx)
    verdicts = domain.check(objects)
    require(len(objects) == len(verdicts) == 6, "decode or check loses samples.")
    table = domain.table(objects, verdicts)
    require(len(table) == 6 and len({tuple(row) for row in table}) == 1, "table has not one equal row a sample.")
    metrics = domain.metrics(objects, verdicts, None)
    require(all(isinstance(m, Metric) and (m.value is not None or m.note) for m in metrics),
             "metrics gives Metric objects; one without a value says why in its note.")
    require(all(m.count > 0 and m.protocol for m in metrics if m.value is not None),
             "A metric with a value names its count and its protocol.")
    pictures = domain.view(objects, verdicts, [sample_id(i) for i in range(6)])
    require(all(p.lstrip().startswith("<") if isinstance(p, str) else p[:4] == b"\x89PNG" for p in pictures.values()),
             "view gives SVG text or PNG bytes.")
    alone = domain.template(Request(ids[4:5], 0))
    single = sampler.run(alone, seed=0).state
    for name, c in spec.items():
        cut = tuple(slice(0, alone.n_max) if n == "N" else slice(None) for n in c.shape)
        x, y = state[name][(slice(4, 5), *cut)], single[name]
        equal = torch.allclose(x.double(), y.double(), rtol=1e-4, atol=1e-5)
        require(equal, f"{name!r} of a sample depends on the samples around it.")


def _settled(x: Tensor, c: Component) -> Tensor:
    """Rounding between (i, j) and (j, i) is no asymmetry."""
    return 0.5 * (x + x.transpose(1, 2)) if c.space.symmetric and not c.space.categorical else x


def check_configs(domain: Domain, statistics: Mapping[str, Any], state: State, ctx: Context) -> list[str]:
    """Composes what the domain's package brings in its `conf/`, and trains the configured network on one batch.

    Returns the settings that were composed; nothing to do where the domain is not installed with configs.
    """
    from scidiff import config
    from scidiff.store.targets import build

    owner = type(domain).__module__.split(".")[0]
    done: list[str] = []
    recipe: dict[str, Any] | None = None
    for place in config.places():
        if place.owner != owner:
            continue
        files = [f for f in sorted(place.folder.rglob("*.yaml")) if f.parent != place.folder]
        if owner == "scidiff":
            files = [f for f in files if f.parent.name == "domain" and f.stem == domain.name]
        for file in files:
            group, choice = file.parent.relative_to(place.folder).as_posix(), file.stem
            words = [f"{group}={choice}"] if group in ("domain", "experiment") else [f"domain={domain.name}",
                                                                                     f"{group}={choice}"]
            try:
                settings = config.compose("train", words)
            except UsageError as error:
                if "has no value" not in str(error):  # the person's own file, for example
                    raise AssertionError(f"{file.name} of the group {group} does not compose: {error}") from error
                continue
            done.append(" ".join(words))
            recipe = settings if group == "domain" and choice == domain.name else recipe
    if recipe is None:
        return done
    nodes = recipe["process"]["components"]
    configured = {n: build(nodes[n] if n in nodes else nodes["default"]) for n in state}
    spec = state_spec(domain, statistics, configured)
    network = build({**domain.backbone_options(spec), **recipe["backbone"]})
    _check_learning(spec, network, state, ctx, recipe["process"].get("denoiser"),
                    domain.objective_options().get("clean"))
    return done
