"""The conformance kit: it accepts what is right, and says in a sentence what is wrong."""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch

from scidiff.core.path import EDM, VE, VP, AbsorbingPath, Cosine, Linear, MarginalPath, SubVP, UniformPath
from scidiff.core.path.categorical_belief import CategoricalBelief
from scidiff.core.path.circular import PlanarBelief
from scidiff.core.path.von_mises_belief import VonMisesBelief
from scidiff.core.path.wrapped import WrappedPath
from scidiff.core.run import uniform
from scidiff.core.solvers.jump import Posterior
from scidiff.core.space import Categorical, Euclidean, Symmetric, Torus, ZeroMean
from scidiff.core.spec import Context
from scidiff.domains.base import Domain, Metric, Records, Rejection, Request, Verdict
from scidiff.store import atomic
from scidiff.testing import Entrywise, check_configs, check_domain, check_path, check_solver_order, state_spec


class Vectors(Domain):
    """The smallest whole domain: points of R^n as numpy arrays, kept in a CSV file; the pattern for plug-ins."""

    name: ClassVar[str] = "vectors"
    extensions: ClassVar[tuple[str, ...]] = (".csv",)

    def __init__(self, width: int = 3, scale: float = 1.0) -> None:
        self.width, self.scale = width, scale

    def options(self):
        return {"width": self.width, "scale": self.scale}

    def components(self):
        return {"x": (Euclidean(), (self.width,))}

    def fit(self, objects):
        values = np.stack(objects)
        return Vectors(values.shape[1], float(values.std()) or 1.0), {}

    def examples(self):
        return list(np.random.default_rng(0).normal(2.0, 3.0, (10, 3)))

    def read(self, path, **options):
        records = Records([], [])
        with open(path, newline="", encoding="utf-8") as file:
            for number, row in enumerate(csv.reader(file), 1):
                try:
                    records.objects.append(np.array([float(v) for v in row[1:]]))
                    records.names.append(row[0])
                except ValueError:
                    records.rejected.append(Rejection(f"line {number}", ",".join(row), "not numbers"))
        return records.require(path)

    def write(self, samples, folder):
        lines = [",".join([i, *(repr(float(v)) for v in o)]) for i, o in zip(samples.ids, samples.objects, strict=True)]
        return [atomic.write_text(folder / "vectors.csv", "\n".join(lines) + "\n")]

    def encode(self, objects):
        x = torch.tensor(np.stack(objects) / self.scale, dtype=torch.float32)
        return {"x": x}, Context.of(len(objects))

    def decode(self, state, ctx):
        return [row * self.scale for row in state["x"].double().numpy()]

    def template(self, request: Request):
        return Context(request.ids)

    def check(self, objects):
        far = [bool(np.abs(o).max() > 100) for o in objects]
        return [Verdict(not f, "farther than 100 from the origin" if f else "") for f in far]

    def metrics(self, objects, verdicts, reference=None):
        return [Metric("mean norm", float(np.mean([np.linalg.norm(o) for o in objects])), count=len(objects),
                       protocol="Euclidean norm, mean over the samples")]

    def view(self, objects, verdicts, ids, reference=None):
        return {"points": "<svg xmlns='http://www.w3.org/2000/svg'></svg>"}

    def table(self, objects, verdicts):
        return [{"norm": float(np.linalg.norm(o))} for o in objects]


class Chains(Vectors):
    """Chains of variable length: classes per node, classes per pair, positions without their mean."""

    name = "chains"

    def __init__(self, length: int = 5) -> None:
        self.length = length

    def options(self):
        return {"length": self.length}

    def components(self):
        return {"kind": (Categorical(3), ("N",)), "link": (Categorical(2, pairs=True), ("N", "N")),
                "place": (ZeroMean(), ("N", 2))}

    def examples(self):
        g = np.random.default_rng(1)
        out = []
        for n in (2, 3, 4, 5):
            links = np.triu(g.integers(0, 2, (n, n)), 1)
            place = g.normal(size=(n, 2))
            out.append((g.integers(0, 3, n), links + links.T, place - place.mean(0)))
        return out

    def fit(self, objects):
        return type(self)(max(len(o[0]) for o in objects)), {"marginals": {"kind": [1.0, 2.0, 3.0]}}

    def encode(self, objects):
        n, b = max(len(o[0]) for o in objects), len(objects)
        state = {"kind": torch.zeros(b, n, dtype=torch.int64), "link": torch.zeros(b, n, n, dtype=torch.int64),
                 "place": torch.zeros(b, n, 2)}
        for i, (kind, link, place) in enumerate(objects):
            m = len(kind)
            state["kind"][i, :m] = torch.tensor(kind)
            state["link"][i, :m, :m] = torch.tensor(link)
            state["place"][i, :m] = torch.tensor(place, dtype=torch.float32)
        return state, Context(torch.arange(b), sizes=torch.tensor([len(o[0]) for o in objects]), n_max=n)

    def decode(self, state, ctx):
        return [(state["kind"][i, :m].numpy(), state["link"][i, :m, :m].numpy(), state["place"][i, :m].double().numpy())
                for i, m in enumerate(ctx.sizes.tolist())]

    def template(self, request):
        sizes = 2 + (uniform(request.seed, request.ids, "sizes")[:, 0] * (self.length - 1)).long()
        return Context(request.ids, sizes=sizes)

    def write(self, samples, folder):
        rows = [",".join([i, *map(str, [len(k)]), *(repr(float(v)) for a in (k, e, p) for v in np.ravel(a))])
                for i, (k, e, p) in zip(samples.ids, samples.objects, strict=True)]
        return [atomic.write_text(folder / "chains.csv", "\n".join(rows) + "\n")]

    def read(self, path, **options):
        flat = super().read(path)

        def one(v):
            n = int(v[0])
            a, b, c = np.split(v[1:], [n, n + n * n])
            return a.astype(int), b.astype(int).reshape(n, n), c.reshape(n, 2)

        return replace(flat, objects=[one(v) for v in flat.objects])

    def check(self, objects):
        return [Verdict(True) for _ in objects]

    def metrics(self, objects, verdicts, reference=None):
        return [Metric("energy", None, note="not computed: no force field is installed")]

    def table(self, objects, verdicts):
        return [{} for _ in objects]


def test_good_domains_pass_from_class_or_instance(tmp_path):
    assert check_domain(Vectors).width == 3
    assert check_domain(Chains(), Chains().examples(), folder=tmp_path).length == 5
    assert [f.name for f in tmp_path.iterdir()] == ["chains.csv"]


def broken(base, **methods):
    return type("Broken", (base,), {"fit": lambda self, objects: (self, base().fit(objects)[1]), **methods})


@pytest.mark.parametrize(("base", "methods", "sentence"), [
    (Vectors, {"examples": lambda self: []}, "pass objects"),
    (Vectors, {"decode": lambda self, s, c: Vectors.decode(self, s, c)[1:]}, "decode gives 9 objects for 10"),
    (Vectors, {"decode": lambda self, s, c: [o + 1 for o in Vectors.decode(self, s, c)]}, "are not the objects"),
    (Vectors, {"encode": lambda self, o: ({"y": torch.zeros(len(o), 3)}, Context.of(len(o)))}, r"encode gives \['y'\]"),
    (Vectors, {"check": lambda self, o: [Verdict(False)] * len(o)}, "has a reason"),
    (Vectors, {"view": lambda self, *a: {"a": "no picture"}}, "SVG text or PNG"),
    (Vectors, {"metrics": lambda self, *a: [Metric("m", 1.0)]}, "count and its protocol"),
    (Vectors, {"write": lambda self, s, f: [f / "missing.csv"]}, "do not exist"),
    (Vectors, {"write": lambda self, s, f: Vectors.write(self, replace(s, ids=["a"] * len(s)), f)}, "carries the ids"),
    (Chains, {"encode": lambda self, o: (lambda s, c: ({**s, "kind": s["kind"] + 1 - s["kind"].clamp(max=1)}, c))(
        *Chains.encode(self, o))}, "padding of 'kind'"),
    (Chains, {"encode": lambda self, o: (lambda s, c: ({**s, "link": s["link"].triu()}, c))(*Chains.encode(self, o))},
     "'link' is not symmetric"),
    (Chains, {"encode": lambda self, o: (lambda s, c: ({**s, "kind": s["kind"].float()}, c))(*Chains.encode(self, o))},
     "not int64"),
    (Chains, {"template": lambda self, r: Context(r.ids, sizes=torch.arange(r.num) % 4 + 2)}, "depends on the batch"),
])
def test_each_defect_is_named(base, methods, sentence):
    with pytest.raises(AssertionError, match=sentence):
        check_domain(broken(base, **methods))


def test_a_torus_gets_a_wrapped_path_in_its_own_units():
    class Angles(Vectors):
        def components(self):
            return {"x": (Torus(360.0), (self.width,))}

    path = state_spec(Angles(), {})["x"].path
    assert isinstance(path, WrappedPath) and path.sigma_max == 180.0
    assert isinstance(state_spec(Angles(), {}, {"x": WrappedPath(sigma_max=90.0)})["x"].path, WrappedPath)


def test_the_wrapped_path_conforms():
    check_path(WrappedPath(), Torus(), (4,))
    check_path(WrappedPath(sigma_min=0.03, sigma_max=3.0), Torus(6.283), (2,))


def test_molecules_conform():
    Chem = pytest.importorskip("rdkit.Chem")
    from scidiff.domains import domain_class

    smiles = "CCO c1ccccc1 CC(=O)O C#N CN1C=NC=C1 OCC1CC1 FC(F)F C[N+](=O)[O-] CC1=CC=CN1 NC=O"
    check_domain(domain_class("molecule"), [Chem.MolFromSmiles(s) for s in smiles.split()])


@pytest.mark.parametrize("path", [VP(), SubVP(), VE(), EDM(), Cosine(offset=0.008), Linear(), VP(weight="min_snr")],
                         ids=lambda p: type(p).__name__)
def test_the_gaussian_paths_conform(path):
    check_path(path, Euclidean(), (4,))


@pytest.mark.parametrize(("space", "shape"), [(ZeroMean(), ("N", 3)), (Symmetric(), ("N", "N"))])
def test_paths_conform_in_subspaces_with_padding(space, shape):
    sizes = 2 + torch.arange(2048) % 4
    check_path(VP(), space, shape, ctx=Context(torch.arange(2048), sizes=sizes), batch=2048)


@pytest.mark.parametrize(
    "path", [MarginalPath(marginal=(0.1, 0.2, 0.7)), UniformPath(schedule="cosine"), AbsorbingPath()],
    ids=lambda p: type(p).__name__)
def test_the_categorical_paths_conform(path):
    check_path(path, Categorical(3), (6,))
    check_path(path, Categorical(3, pairs=True), (4, 4))


def test_wrong_paths_are_found():
    @dataclass(frozen=True)
    class Slow(VP):
        def dsigma(self, t):
            return 0.9 * super().dsigma(t)

    @dataclass(frozen=True)
    class Loud(VP):
        def corrupt(self, x0, t, ctx, noise, x1=None):
            out = super().corrupt(x0, t, ctx, noise, x1)
            return out._replace(z=x0 + 1.05 * (out.z - x0))

    @dataclass(frozen=True)
    class Unjust(UniformPath):
        def transition(self, z, probs, t, s, ctx):
            return super().transition(z, probs, t, 0.9 * s, ctx)

    with pytest.raises(AssertionError, match="dsigma is not the derivative"):
        check_path(Slow(), Euclidean())
    with pytest.raises(AssertionError, match="another"):
        check_path(Loud(), Euclidean())
    with pytest.raises(AssertionError, match="Bayes"):
        check_path(Unjust(), Categorical(3))


@pytest.mark.parametrize("path, space", [
    (PlanarBelief(), Torus()), (PlanarBelief(target="fixed", error="square"), Torus(2.0)),
    (VonMisesBelief(steps=4), Torus()),
    (CategoricalBelief(), Categorical(3)), (CategoricalBelief(steps=5), Categorical(3))], ids=str)
def test_beliefs_whose_states_are_no_data_are_accepted(path, space):
    check_path(path, space, (4, 3), batch=64)


def test_a_domain_is_checked_on_beliefs(tmp_path):
    paths = {"kind": CategoricalBelief(), "link": CategoricalBelief()}
    assert check_domain(Chains(), Chains().examples(), folder=tmp_path, paths=paths).length == 5


def test_the_order_of_a_solver_is_measured():
    assert check_solver_order(Posterior(eta=0.0)) == pytest.approx(1.0, abs=0.3)
    with pytest.raises(AssertionError, match="has order 1"):
        check_solver_order(Posterior(eta=0.0), order=2)


def test_the_plain_backbone_fits_every_state():
    domain = Chains()
    spec = state_spec(domain, {"marginals": {"kind": [1.0, 1.0, 2.0]}}, {"link": AbsorbingPath()})
    state, ctx = domain.encode(domain.examples())
    features = {n: c.path.features(state[n], 0.5, ctx.at(n, c)) for n, c in spec.items()}
    out = Entrywise(spec)(features, torch.full((4,), 0.5), ctx)
    assert {n: tuple(v.shape) for n, v in out.items()} == {"kind": (4, 5, 3), "link": (4, 5, 5, 2), "place": (4, 5, 2)}


def test_the_configs_of_a_package_are_composed_and_its_network_learns(tmp_path, monkeypatch):
    class Local(Vectors):
        """Counts as living in the package whose configs are those of the working directory."""

        def backbone_options(self, spec):
            return {"inputs": {"x": self.width}}

    Local.__module__ = "local.vectors"
    for name, text in {
        "domain/vectors.yaml": "# @package _global_\ndefaults:\n  - /data: points\n"
                               "  - /backbone: mlp\n  - /process: vp\n  - /objective: standard\n"
                               "  - /solver: mixture\n\ndomain:\n  name: vectors\n"
                               "  offers: [train]\n  options: {}\n",
        "data/points.yaml": "name: points\ndomain: vectors\n",
        "data/mine.yaml": "name: mine\ndomain: vectors\npath: ???\n",
    }.items():
        atomic.write_text(tmp_path / "conf" / name, text)
    monkeypatch.chdir(tmp_path)
    domain = Local()
    state, ctx = domain.encode(domain.examples())
    assert check_configs(domain, {}, state, ctx) == ["domain=vectors data=points", "domain=vectors"]
    atomic.write_text(tmp_path / "conf/data/odd.yaml", "name: odd\ndomain: molecule\n")
    with pytest.raises(AssertionError, match=r"odd.yaml of the group data does not compose"):
        check_configs(domain, {}, state, ctx)
