"""Priors on the grid of a scan: sizes, coupling, conformal factors; samples of a Gaussian posterior in closed form."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml

from scidiff.core.analytic import AnalyticMixture, GaussianMixture
from scidiff.core.errors import UsageError
from scidiff.core.path.edm import EDM
from scidiff.core.posterior import DDS, PiGDM
from scidiff.core.space import Euclidean
from scidiff.core.spec import Component, StateSpec
from scidiff.domains.medical import MedicalDomain, reconstruction
from scidiff.domains.medical.ask import Ask
from scidiff.domains.medical.findings import figures
from scidiff.domains.medical.intensity import Scale
from scidiff.domains.medical.methods import classical, is_classical, rivals, solver, tv_weight
from scidiff.domains.medical.noise import Gaussian
from scidiff.domains.medical.operators.cone import ConeCT
from scidiff.domains.medical.operators.ct import LimitedAngle, ParallelCT
from scidiff.domains.medical.operators.grids import Crop, Cropped, Whole
from scidiff.domains.medical.operators.mri import cartesian
from scidiff.domains.medical.operators.simple import AveragePool, DownsampleZ, Inpainting
from scidiff.domains.medical.prior import Facts, conformal_of, context_of, prior_of, task_of
from scidiff.domains.medical.reconstructed import Reconstructed
from scidiff.domains.medical.sampled import Archive, put_together, taken_apart
from scidiff.domains.medical.scene import Scene
from scidiff.domains.medical.tv import TVz
from scidiff.domains.medical.volume import Volume, centred_affine
from scidiff.domains.model import Model
from scidiff.store import checkpoint
from scidiff.testing import check_operator

PATH = EDM(0.002, 40.0)
STD, MEAN = 0.3, 2.0
SOLVERS, OPERATORS = "scidiff.core.posterior", "scidiff.domains.medical.operators"


def white(shape=(1, 8, 8), name="x", **options):
    """A model whose slices are white noise about zero; `options` of the domain."""
    n = math.prod(shape)
    denoiser = AnalyticMixture(GaussianMixture(torch.zeros(1, n), torch.full((1, n), STD)), PATH, name)
    spec = StateSpec({name: Component(Euclidean(), PATH, shape)})
    domain = MedicalDomain(**{"modality": "MR", "size": shape[-1], **options})
    return Model({"experiment": "white"}, domain, spec, denoiser)


def ask(target=f"{SOLVERS}.pigdm.PiGDM", volume=None, **more):
    operator = {"_target_": "scidiff.domains.medical.operators.simple.Inpainting"}
    posterior = {"_target_": target, **more.pop("settings", {})}
    return Ask(input="x", operator=operator, posterior=posterior, volume=volume or {}, **more)


def scene(operator, depth=6, sigma=0.05, seed=0, shift=MEAN):
    """A volume drawn from the prior itself, shifted to positive values, and its noisy measurement."""
    g = torch.Generator().manual_seed(seed)
    truth = shift + STD * torch.randn(depth, 1, 8, 8, generator=g)
    y = Gaussian(sigma)(operator(truth), seed, torch.arange(depth))
    grid = Volume(truth, centred_affine((depth, 8, 8), (3.0, 1.0, 1.0)), "MR", "toy")
    return Scene(grid, truth, Scale(0.0, 1.0), operator, y, sigma)


def test_grids_are_operators_with_exact_adjoints():
    check_operator(Crop((1, 9, 8), (4, 5)))
    check_operator(Crop((3, 1, 6, 6), (5, 4)))
    check_operator(Cropped(AveragePool((4, 6), 2), (1, 7, 6)))
    check_operator(Whole(AveragePool((4, 6), 2), 3))
    check_operator(Whole(DownsampleZ((4, 3, 3), 2), 4))
    x = torch.arange(30.0).view(1, 1, 5, 6)
    assert torch.equal(Crop((1, 5, 6), (3, 3))(x)[0, 0], x[0, 0, 1:4, 1:4]), "the smaller margin comes first"
    volume = torch.randn(2, 1, 3, 4, 6)
    slices = AveragePool((4, 6), 2)(volume.transpose(1, 2).flatten(0, 1)).view(2, 3, 1, 2, 3)
    assert torch.equal(Whole(AveragePool((4, 6), 2), 3)(volume), slices)
    with pytest.raises(UsageError, match="no middle of 6 x 6"):
        Crop((1, 5, 6), (6, 6))


def test_a_prior_takes_smaller_scans_and_refuses_larger_ones():
    small = prior_of(white(), ask(), Inpainting((6, 5), share=0.5), 4)
    assert small.shape == (1, 8, 8) and small.operator.in_shape == (1, 8, 8)
    same = Inpainting((8, 8), share=0.5)
    assert prior_of(white(), ask(), same, 4).operator is same
    with pytest.raises(UsageError, match=r"10 x 8 pixels, those of the prior white 8 x 8\. --size 8 averages"):
        prior_of(white(), ask(), Inpainting((10, 8), share=0.5), 4)
    block = prior_of(white((1, 4, 8, 8), depth=4), ask(), Inpainting((8, 8), share=0.5), 4)
    assert isinstance(block.operator, Whole) and block.shape == (1, 4, 8, 8)
    with pytest.raises(UsageError, match="volumes of 4 slices, and this one has 5"):
        prior_of(white((1, 4, 8, 8), depth=4), ask(), Inpainting((8, 8), share=0.5), 5)
    with pytest.raises(UsageError, match="single slices, not triplets"):
        prior_of(white(), ask(volume={"kind": "triplets"}), Inpainting((8, 8), share=0.5), 9)


def test_tasks_have_names_and_conformal_factors_are_found_by_them():
    assert task_of(ParallelCT((8, 8), views=20)) == "ct_20" and task_of(LimitedAngle((8, 8))) == "ct_limited"
    assert task_of(cartesian((32, 32), acceleration=4, real=True)) == "mri_4"
    assert task_of(ConeCT((2, 8, 8), views=9)) == "cone_9" and task_of(Inpainting((8, 8), share=0.5)) == "inpainting"
    model = white(conformal={"ct_20": 1.4, "ct_60": 1.1, "ct_limited": 2.0})
    assert conformal_of(model, ParallelCT((8, 8), views=20)) == (1.4, "ct_20")
    assert conformal_of(model, ParallelCT((8, 8), views=50)) == (1.1, "ct_60")
    assert conformal_of(model, LimitedAngle((8, 8))) == (2.0, "ct_limited")
    assert conformal_of(model, Inpainting((8, 8), share=0.5)) == (1.0, "")


def test_what_couples_slices_is_chosen_by_solver_and_volume():
    at = scene(Inpainting((8, 8), share=0.5))
    dds = ask(f"{SOLVERS}.consistency.DDS", settings={"step": None, "cg": 4, "steps": 7})
    made = solver(dds, at)
    assert isinstance(made, DDS) and isinstance(made.step, TVz) and made.step.cg == 4
    assert made.step.noise == pytest.approx(at.sigma / at.operator.norm()) and made.step.spacing == (3.0, 1.0, 1.0)
    assert solver(Ask(**{**vars(dds), "volume": {"kind": "none"}}), at).step is None
    assert solver(Ask(**{**vars(dds), "steps": 3}), at).steps == 3
    assert isinstance(solver(ask(), at), PiGDM)
    with pytest.raises(UsageError, match="has no data step for volume=tv_z"):
        solver(ask(volume={"kind": "tv_z"}), at)
    assert not is_classical({"_target_": f"{SOLVERS}.consistency.DDS"})
    assert is_classical({"_target_": "scidiff.domains.medical.classical.FBP"})


@pytest.mark.parametrize("name", ["zero_filled", "fbp", "cgls", "sirt", "admm_tv"])
def test_a_config_of_a_method_without_a_prior_has_its_settings(name):
    """What the config leaves open comes from the scan: weight, voxel size, noise."""
    node = yaml.safe_load((Path(__file__).parents[3] / "conf" / "posterior" / f"{name}.yaml").read_text())
    at = scene(ParallelCT((8, 8), views=20), sigma=0.03)
    asked = Ask(input="x", operator={"_target_": "x"}, posterior=node)
    made = classical(asked, at)
    assert {k for k in node if k != "_target_"} == {f.name for f in fields(made)} - {"chunk", "unit_norm"}
    assert getattr(made, "noise", 0.03) == 0.03
    if name == "admm_tv":
        assert made.weight == pytest.approx(2.1e-4) and (made.axes, list(made.spacing)) == ("zyx", [3.0, 1.0, 1.0])
    if name in ("cgls", "sirt", "admm_tv"):
        assert classical(Ask(**{**vars(asked), "steps": 7}), at).iterations == 7


def test_weights_fall_with_the_number_of_views():
    weights = [tv_weight(ParallelCT((8, 8), views=v)) for v in (4, 8, 14, 20, 40, 60, 90)]
    assert weights == sorted(weights, reverse=True) and weights[3] == pytest.approx(2.1e-4)
    assert [*rivals(scene(Inpainting((8, 8), share=0.5)))] == ["CGLS", "TV"]


def exact(samples, steps=60, **more):
    settings = {"steps": steps, "covariance": "exact", "cg": 2}  # of a matrix with one eigenvalue
    return ask(settings=settings, samples=samples, rivals=False, **more)


@pytest.fixture(scope="module")
def drawn():
    """40 samples of a volume that was drawn from the prior, from the half of its pixels that was measured."""
    operator = Inpainting((8, 8), share=0.5)
    at = scene(operator, depth=8)
    facts = Facts(shift=MEAN, gain=1.0)
    model, asked = white(), exact(40)
    archive = Archive()
    prior = prior_of(model, asked, operator, at.depth)
    problem = reconstruction.problem_for(asked, at, prior, facts)
    moments = reconstruction.gathered(reconstruction.drawn(
        problem, solver(asked, at), context_of(model, asked, at.volume, at.depth), 40, 0, archive,
        reconstruction._finisher(prior, at, facts)))
    found = reconstruction.Reconstruction(at, "PiGDM", 40, archive, moments.mean.float(), moments.std.float())
    found.low, found.high = reconstruction.interval(archive, moments)
    return found


def test_samples_have_the_moments_of_the_posterior(drawn):
    """A pixel of the prior N(m, s^2), measured with noise q, or not at all."""
    at = drawn.scene
    seen = at.operator.adjoint(torch.ones_like(at.y)) > 0
    weight = STD**2 / (STD**2 + at.sigma**2)
    mean = torch.where(seen, MEAN + weight * (at.operator.adjoint(at.y) - MEAN), MEAN)
    std = torch.where(seen, math.sqrt(weight) * at.sigma, STD)
    assert float(((drawn.mean - mean) / std).square().mean()) == pytest.approx(1 / 40, rel=0.25)
    ratio = (drawn.std / std).square()
    assert float(ratio[seen].mean()) == pytest.approx(1.0, abs=0.15), "60 steps of first order leave some percent"
    assert float(ratio[~seen].mean()) == pytest.approx(1.0, abs=0.15)


def test_the_interval_of_exact_samples_covers_nine_tenths(drawn):
    metric = {m.name: m for m in figures(drawn)}["coverage of the 90 % interval"]
    assert metric.value == pytest.approx(0.9, abs=0.04) and metric.interval[0] < 0.9 < metric.interval[1] + 0.02
    needed = {m.name: m for m in figures(drawn)}["conformal factor of this volume"].value
    assert needed == pytest.approx(1.0, abs=0.15)
    wide = {m.name: m for m in figures(drawn)}["correlation of spread and error"]
    assert wide.value > 0.3, "hidden pixels are uncertain and wrong"


def test_a_conformal_factor_widens_intervals_about_their_centres(drawn):
    moments = reconstruction.gathered(iter([(i, drawn.sample(i)) for i in range(40)]))
    low, high = reconstruction.interval(drawn.archive, moments, 2.0)
    torch.testing.assert_close(high - low, 2 * (drawn.high - drawn.low))
    torch.testing.assert_close(high + low, drawn.high + drawn.low)


def test_the_residual_of_exact_samples_is_that_of_the_noise(drawn):
    domain = Reconstructed(MedicalDomain(), drawn)
    verdicts = domain.check([None] * 3)
    assert all(v.valid for v in verdicts)
    assert domain.table([None] * 2, verdicts[:2])[0]["residual"] == pytest.approx(1.0, abs=0.25)
    card = domain.card()
    assert "examination.shift" not in card.missing and "study.question" in card.missing


def test_blocks_triplets_and_slices_of_a_white_prior_agree():
    """White noise does not care how it is cut: priors of blocks or triplets have the posterior of one of slices."""
    operator, facts = Inpainting((8, 8), share=0.5), Facts(shift=MEAN)
    at = scene(operator, depth=4)
    means = []
    for model in (white(), white((1, 4, 8, 8), depth=4), white((3, 8, 8))):
        asked = exact(1, steps=30)
        prior = prior_of(model, asked, operator, 4)
        problem = reconstruction.problem_for(asked, at, prior, facts)
        posterior = solver(asked, at, len(prior.shape) == 4)
        state = posterior.run(problem, context_of(model, asked, at.volume, problem.measurement.count), 0).state["x"]
        means.append(reconstruction._finisher(prior, at, facts)(state))
    seen = operator.adjoint(torch.ones_like(at.y)) > 0
    for other in means[1:]:
        assert other.shape == at.truth.shape
        gap = (means[0] - other)[seen]
        assert float(gap.square().mean().sqrt()) < 3 * at.sigma, "what was measured agrees but for the spread"


def test_states_of_a_run_come_back_from_parts():
    state = {"stage": 3, "history": {"x": {"data": [torch.ones(2), torch.zeros(1)]}}, "t": 0.1 + 0.2,
             "memory": {"tv": {"0": {"mark": [1.0, -2.5], "w": torch.arange(3)}}}, "none": None, "name": "a"}
    tensors, tree = taken_apart(state)
    back = put_together({k: v.clone() for k, v in tensors.items()}, json.loads(json.dumps(tree)))
    assert back["t"] == state["t"] and back["stage"] == 3 and back["none"] is None and back["name"] == "a"
    assert back["memory"]["tv"]["0"]["mark"] == [1.0, -2.5]
    assert torch.equal(back["history"]["x"]["data"][0], torch.ones(2))
    assert torch.equal(back["memory"]["tv"]["0"]["w"], torch.arange(3))


def test_the_shipped_prior_of_the_modality_is_chosen(monkeypatch, tmp_path):
    places = {"a_ct": "CT", "b_mr": "MR"}
    shipped = [checkpoint.Shipped(n, "", "medical", 1.0, "", tmp_path / n) for n in places]
    monkeypatch.setattr(checkpoint, "shipped", lambda root=None: shipped)
    monkeypatch.setattr(checkpoint, "read_config", lambda folder: {
        "domain": {"name": "medical", "options": {"modality": places[folder.name]}}})
    wanted = {f"{OPERATORS}.ct.ParallelCT": "a_ct", f"{OPERATORS}.mri.cartesian": "b_mr",
              f"{OPERATORS}.nufft.radial": "b_mr", f"{OPERATORS}.simple.GaussianBlur": "a_ct"}
    for target, name in wanted.items():
        asked = vars(Ask(**{**vars(ask()), "operator": {"_target_": target}}))
        assert MedicalDomain().prior_for(asked) == name
    kspace = Ask(kspace="k.npy", posterior=ask().posterior)
    assert MedicalDomain().prior_for(vars(kspace)) == "b_mr"
