"""The four processes as configured: they learn on real cells, sample with their solvers, and keep a composition."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("pymatgen.core", reason="pymatgen is not installed")

from scidiff import config
from scidiff.core.denoiser import NetworkDenoiser
from scidiff.core.errors import UsageError
from scidiff.core.run import Run
from scidiff.core.spec import stack_ids
from scidiff.domains.base import Request
from scidiff.domains.crystal import CrystalDomain
from scidiff.domains.crystal.textbook import crystals
from scidiff.domains.model import Model, Start
from scidiff.store.targets import build
from scidiff.training.prepare import make_spec

PAIRS = [("periodic_bfn2", "end_back"), ("periodic_bfn2", "vanilla"), ("crysbfn", "end_back"),
         ("torus_fm", "torus_annealed"), ("wrapped_sde", "wrapped_pc")]
STEPS = {"wrapped_pc": 6}
PERFECT = ("periodic_bfn2", "end_back")


def assembled(process, solver, backbone="cspnet_xs", **options):
    """A model with random weights, what it was fitted to, and its objective, all as the configs say."""
    torch.manual_seed(0)
    objective = "levels" if process == "crysbfn" else "uniform"
    settings = config.compose("train", ["domain=crystal", f"process={process}", f"solver={solver}",
                                        f"backbone={backbone}", f"objective={objective}"])
    domain, statistics = CrystalDomain(**options).fit(crystals())
    spec = make_spec(domain, settings["process"], statistics)
    network = build({**domain.backbone_options(spec), **settings["backbone"]})
    denoiser = NetworkDenoiser(spec, network, **settings["process"]["denoiser"])
    clean = domain.objective_options()["clean"]
    objective = build({**settings["objective"], "clean": clean}, spec=spec)
    about = {"solver": settings["solver"], "objective": {"clean": clean}, "experiment": process}
    return Model(about, domain, spec, denoiser), objective


@pytest.mark.parametrize("process, solver", PAIRS)
def test_a_process_learns_and_samples_what_is_asked(process, solver):
    model, objective = assembled(process, solver)
    loss, told = objective.loss(model.denoiser, model.domain.encode(crystals()), Run(0))
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.denoiser.parameters() if p.grad is not None)
    assert all(torch.isfinite(v) for v in told.values()) and set(told) == {"loss", "types", "frac", "lattice"}
    steps = STEPS.get(solver, 3) if process != "crysbfn" else None
    asked = {"formula": "MgO", "z": "1,2"}
    drawn = model.sample(4, steps=steps, **asked)
    assert [s.formula.replace(" ", "") for s in drawn] == ["Mg1O1", "Mg2O2"] * 2
    with_cell = model.sample(2, steps=steps, lattice="5,5,5,60,60,60", sites="Mg 0 0 0", **asked)
    for structure in with_cell:
        assert structure.lattice.parameters == pytest.approx((5, 5, 5, 60, 60, 60), abs=1e-3)
        assert structure.frac_coords[0] % 1 == pytest.approx([0, 0, 0], abs=1e-5)
    free = model.sample(3, steps=steps, elements="Mg,O", num_atoms="2-3")
    assert all({e.symbol for e in s.composition} <= {"Mg", "O"} and len(s) in (2, 3) for s in free)


@pytest.mark.parametrize("task, share", [("csp", 1.0), ("dng", 0.0), ("both", 0.5)])
def test_the_task_says_how_often_a_composition_is_shown(task, share):
    _, objective = assembled(*PERFECT, task=task)
    assert objective.clean == ({"types": share} if share else {})


def test_the_loss_does_not_know_where_the_origin_is():
    """A quarter of a turn of all coordinates turns the noise in the plane with them, and changes no loss."""
    model, _ = assembled(*PERFECT)
    (state, ctx), net, t, run = model.domain.encode(crystals()), model.denoiser.eval(), 0.4, Run(0)
    sites = {n: ctx.at(n, c) for n, c in model.spec.items()}
    noised = {n: c.path.corrupt(state[n], t, sites[n], run.handle(sites[n])) for n, c in model.spec.items()}
    z, path, site = noised["frac"].z, model.spec["frac"].path, sites["frac"]
    turned = torch.stack([-z[..., 1], z[..., 0]], -1)
    shifted = (state["frac"] + 0.25).remainder(1.0) * site.mask
    losses = []
    for x0, seen in ((state["frac"], z), (shifted, turned)):
        found = net({**{n: v.z for n, v in noised.items()}, "frac": seen}, t, ctx)["frac"]
        losses.append(path.loss(found, x0, noised["frac"]._replace(z=seen), t, site))
    assert torch.allclose(*losses, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_cost_is_less_for_what_a_network_was_trained_on():
    """After some steps on twelve crystals, those cost less than the same crystals with their atoms moved."""
    model, objective = assembled(*PERFECT)
    state, ctx = model.domain.encode(crystals())
    optimiser = torch.optim.Adam(model.denoiser.parameters(), 3e-3)
    for number in range(60):
        run = Run(0)
        run.step = number
        loss, _ = objective.loss(model.denoiser, (state, ctx), run)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    ctx.known = {"types": (state["types"], torch.ones_like(state["types"], dtype=torch.bool))}
    moved = {**state, "frac": (state["frac"] + 0.2 * torch.rand_like(state["frac"])).remainder(1.0)}
    moved = {**state, "frac": model.spec.masked(moved, ctx)["frac"]}
    chunks = model.chunks(ctx)
    assert float((model.costs(moved, ctx, chunks, 0) - model.costs(state, ctx, chunks, 0)).mean()) > 0


def test_what_is_asked_depends_on_the_sample_alone():
    model, _ = assembled(*PERFECT)
    ids = torch.tensor([7, 2])
    ctx = model.domain.template(Request(ids, 0, options={"formula": "MgO"}))
    whole = model.domain.template(Request(torch.arange(8), 0, options={"formula": "MgO"}))
    assert torch.equal(ctx.sizes, whole.sizes[ids])


@pytest.fixture
def book(monkeypatch):
    """The textbook crystals in place of a training set."""
    from scidiff.domains.base import Records
    from scidiff.domains.crystal import rows

    known = crystals()
    monkeypatch.setattr(rows, "records", lambda name, split, root=None: Records(known, [str(i) for i in known]))
    return known


def test_a_known_composition_has_itself_as_template(book):
    model, _ = assembled(*PERFECT)
    ctx = model.domain.compositions(book, stack_ids(0, len(book)))
    state, found = model.domain.start("template", ctx, "aflow")
    assert found.all()
    for made, known in zip(model.domain.decode(state, ctx), book, strict=True):
        assert made.composition == known.composition
        assert made.volume == pytest.approx(known.volume, rel=1e-3)
    with pytest.raises(UsageError, match="do not start from 'noise'"):
        model.domain.start("noise", ctx, "aflow")


def test_samples_without_a_template_begin_from_noise(book):
    model, _ = assembled(*PERFECT)
    ctx = model.domain.template(Request(torch.arange(4), 0, options={"formula": "MgO,Mg5O", "z": "1"}))
    state, found = model.domain.start("template", ctx, "aflow")
    assert found.tolist() == [True, False, True, False]
    drawing = model.drawing(None, 4, ctx=ctx)
    plain = model.draw(drawing, ctx, range(4), 0)
    near = model.draw(drawing, ctx, range(4), 0, start=Start(state, found, 0.05))
    at = model.draw(drawing, ctx, range(4), 0, start=Start(state, found, 0.0))
    assert torch.allclose(near["lattice"][1::2], plain["lattice"][1::2], atol=1e-4)
    assert not torch.allclose(near["lattice"][::2], plain["lattice"][::2], atol=1e-2)
    assert torch.equal(at["lattice"][::2], state["lattice"][::2])
    assert torch.equal(near["types"], plain["types"])
