"""Training on patches: what is drawn, how slices move, what validation sees; patchworks; from a cache to a model."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from scidiff import config
from scidiff.core.denoiser import Denoiser, NetworkDenoiser
from scidiff.core.errors import UsageError
from scidiff.core.path.edm import EDM
from scidiff.core.run import Run
from scidiff.core.space import Euclidean
from scidiff.core.spec import Component, Context, StateSpec
from scidiff.domains.medical.objectives import Patches
from scidiff.domains.medical.patchwork import Patchwork, bump
from scidiff.nn.patch import POSITION, PatchUNet, coordinates, whole
from scidiff.store import targets

SIZE = 32
STILL = {"warp": 0.0, "shift": 0, "flip": 0.0, "gain": 0.0}


def spec_of(*shape):
    return StateSpec({"x": Component(Euclidean(), EDM(sigma_max=10.0), shape)})


SPEC = spec_of(1, SIZE, SIZE)


def slices(count=6, *shape):
    return torch.rand(count, *(shape or (1, SIZE, SIZE)), generator=torch.Generator().manual_seed(0))


def drawn(x, spec=SPEC, step=0, **settings):
    run = Run(0)
    run.step = step
    return Patches(spec, **{"patch": 16, **STILL, **settings}).draw(x, Context.of(len(x)), run)


def corner_of(place, size=SIZE):
    return (((place[..., 0] + 1.0) * size - 1.0) / 2.0).round().long()


# -- what is drawn


def test_patches_that_do_not_move_are_parts_of_their_slice_at_their_place():
    x = slices()
    patches, place = drawn(x)
    for one, patch, (row, column) in zip(x, patches, corner_of(place).tolist(), strict=True):
        assert torch.allclose(patch, one[:, row : row + 16, column : column + 16], atol=1e-6)
    there = coordinates(place, (16, 16))
    plane = coordinates(whole((SIZE, SIZE)), (SIZE, SIZE))[0]
    row, column = corner_of(place)[0].tolist()
    assert torch.allclose(there[0], plane[:, row : row + 16, column : column + 16], atol=1e-6)


def test_every_step_draws_anew_and_repeats_exactly():
    x = slices()
    first, again, next_step = drawn(x)[0], drawn(x)[0], drawn(x, step=1)[0]
    assert torch.equal(first, again) and not torch.equal(first, next_step)
    single = Patches(SPEC, patch=16, **STILL).draw(x[3:4], Context(torch.tensor([3])), Run(0))[0]
    assert torch.equal(single[0], first[3])


def test_all_corners_occur_and_none_beyond_the_plane():
    x = slices(1).expand(4096, -1, -1, -1)
    rows = corner_of(drawn(x, patch=30)[1])
    assert set(rows.flatten().tolist()) == {0, 1, 2}
    whole_planes, place = drawn(slices(), patch=None)
    assert whole_planes.shape[2:] == (SIZE, SIZE) and torch.allclose(place, whole((SIZE, SIZE), 6))
    assert drawn(slices(), patch=100)[0].shape[2:] == (SIZE, SIZE)


def test_mirror_images_and_shifts_keep_their_pixels():
    x = slices(64)
    mirrored = drawn(x, patch=None, flip=1.0)[0]
    assert torch.allclose(mirrored, x.flip(-1), atol=1e-5)
    moved = drawn(x, patch=None, shift=3)[0]
    seen = set()
    for one, other in zip(x, moved, strict=True):
        fits = [(r, c) for r in range(-3, 4) for c in range(-3, 4)
                if torch.allclose(one.roll((r, c), (1, 2))[:, 3:-3, 3:-3], other[:, 3:-3, 3:-3], atol=1e-5)]
        assert len(fits) == 1
        seen |= {fits[0]}
    assert len(seen) > 20  # of 49


def test_rotations_and_magnifications_move_a_disc_as_they_should():
    """A disc off the middle stays at its distance times the magnification, and its area grows by the square of it."""
    grid = torch.arange(64.0) - 31.5
    disc = torch.sigmoid(4.0 * (6.0 - ((grid[:, None] - 10.0) ** 2 + grid**2).sqrt()))[None, None]
    out = drawn(disc.expand(256, -1, -1, -1), spec_of(1, 64, 64), patch=None, warp=1.0, rotate=30.0, zoom=0.2)[0][:, 0]
    mass = out.sum((1, 2))
    y, x = (out.sum(2) @ grid) / mass, (out.sum(1) @ grid) / mass
    grown = (mass / disc.sum()).sqrt()
    assert torch.allclose((y**2 + x**2).sqrt(), 10.0 * grown, rtol=0.02)
    angle = torch.rad2deg(torch.atan2(x, y))
    assert 25 < float(angle.max()) < 30.5 and -30.5 < float(angle.min()) < -25
    assert 1.15 < float(grown.max()) < 1.21 and 1 / 1.21 < float(grown.min()) < 1 / 1.15


def test_values_change_as_scanners_differ():
    x = 0.2 + 0.6 * slices(512)
    gained = drawn(x, patch=None, gain=0.1)[0] / x
    assert torch.allclose(gained.amax((1, 2, 3)), gained.amin((1, 2, 3)), atol=1e-4)
    assert 0.9 <= float(gained.min()) < 0.91 and 1.09 < float(gained.max()) <= 1.1 + 1e-4
    curved = drawn(x, patch=None, gamma=0.2)[0].log() / x.log()
    assert torch.allclose(curved.amax((1, 2, 3)), curved.amin((1, 2, 3)), atol=1e-3)
    assert 0.8 < float(curved.min()) < 0.82 and 1.18 < float(curved.max()) < 1.201
    noise = (drawn(x, patch=None, noise=0.05)[0] - x).flatten(1).std(1)
    assert float(noise.max()) < 0.053 and 0.022 < float(noise.mean()) < 0.028


def test_blocks_are_cut_in_depth_too():
    x = slices(4, 1, 12, 16, 16)
    patches, place = drawn(x, spec_of(1, 12, 16, 16), patch=8, warp=0.5)
    assert patches.shape == (4, 1, 8, 8, 8) and place.shape == (4, 3, 2)
    n = torch.tensor([12.0, 16.0, 16.0])
    for one, patch, start in zip(x, patches, (((place[..., 0] + 1) * n - 1) / 2).round().long().tolist(), strict=True):
        d, r, c = start
        assert torch.allclose(patch, one[:, d : d + 8, r : r + 8, c : c + 8], atol=1e-5)


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(UsageError, match="Chances"):
        Patches(SPEC, flip=1.5)
    with pytest.raises(UsageError, match="moves one component"):
        Patches(StateSpec({"a": SPEC["x"], "b": SPEC["x"]}))


# -- what the network is given


class Spy(Denoiser):
    """Keeps what it was asked."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.seen = inner, []

    def forward(self, state, t, ctx, run=None):
        self.seen.append((state["x"].shape, ctx.cond.get(POSITION)))
        return self.inner(state, t, ctx, run)


def test_training_sees_patches_and_validation_whole_slices():
    net = PatchUNet(widths=(8,), embed=8)
    spy = Spy(NetworkDenoiser(SPEC, net, {"default": "preconditioned"}, data_std=0.5, clock="lambda"))
    objective, batch = Patches(SPEC, patch=16), ({"x": slices(8)}, Context.of(8))
    loss, _ = objective.loss(spy, batch, Run(0))
    loss.backward()
    assert spy.seen[0][0] == (8, 1, 16, 16) and spy.seen[0][1][0].shape == (8, 2, 2)
    with torch.no_grad():
        _, metrics = objective.loss(spy, batch, Run(0))
    assert spy.seen[1][0] == (8, 1, SIZE, SIZE) and spy.seen[1][1] is None
    assert any(name.startswith("rmse_") for name in metrics) and objective.spec is SPEC


def test_large_patches_are_fewer_and_as_frequent_as_asked():
    objective, run, sizes = Patches(SPEC, patch=8, large=0.3), Run(3), []
    spy = Spy(NetworkDenoiser(SPEC, PatchUNet(widths=(4,), embed=4), {"default": "preconditioned"}))
    for step in range(200):
        run.step = step
        sizes.append(objective.sides(run))
    assert set(sizes) == {(8, 8), (16, 16)} and 40 < sizes.count((16, 16)) < 80
    for run.step in (sizes.index((8, 8)), sizes.index((16, 16))):
        objective.loss(spy, ({"x": slices(8)}, Context.of(8)), run)
    assert [seen[0] for seen in spy.seen] == [(8, 1, 8, 8), (2, 1, 16, 16)]


def test_the_reported_error_is_that_of_the_noise_where_nothing_is_removed():
    """A network of zeros returns c_skip z: the error is that of the best linear shrinkage of each pixel."""
    x = slices(256)
    denoiser = NetworkDenoiser(SPEC, PatchUNet(widths=(8,), embed=8), {"default": "preconditioned"}, data_std=3.0)
    objective = Patches(SPEC, patch=16)
    with torch.no_grad():
        _, metrics = objective.loss(denoiser, ({"x": x}, Context.of(256)), Run(0))
    assert 0.3 < metrics["rmse_0.3"] < 1.0 and 1.0 < metrics["rmse_1"] < 3.0


# -- patchworks


def test_a_patchwork_of_pixelwise_denoisers_is_the_denoiser_of_the_plane():
    spec = spec_of(1, 21, 30)

    class Shrink(Denoiser):
        def forward(self, state, t, ctx, run=None):
            site = ctx.at("x", spec["x"])
            return {"x": spec["x"].path.read(0.5 * state["x"], state["x"], t, site, "data")}

    z = torch.randn(3, 1, 21, 30)
    for overlap, step in ((0, 0), (0, 5), (7, 2)):
        run = Run(1)
        run.step = step
        out = Patchwork(Shrink(), spec, patch=8, overlap=overlap, chunk=5)({"x": z}, 0.1, Context.of(3), run)
        assert torch.allclose(out["x"].data, 0.5 * z, atol=1e-6)


def test_tiles_cover_the_plane_and_begin_elsewhere_at_every_step():
    work, run, seen = Patchwork(Denoiser(), SPEC, patch=12), Run(4), set()
    for step in range(12):
        run.step = step
        corners = work.corners((SIZE, SIZE), run)
        covered = torch.zeros(SIZE, SIZE)
        for r, c in corners:
            assert 0 <= r <= SIZE - 12 and 0 <= c <= SIZE - 12
            covered[r : r + 12, c : c + 12] += 1
        assert bool((covered > 0).all())
        seen |= {tuple(corners)}
    assert len(seen) > 6 and work.corners((8, 8)) == [(0, 0)]
    assert float(bump((12, 12)).min()) > 0


def test_patches_of_a_patchwork_know_their_place():
    spec = spec_of(1, 24, 24)

    class Place(Denoiser):
        def forward(self, state, t, ctx, run=None):
            here = coordinates(ctx.cond[POSITION][0], state["x"].shape[2:])[:, 1:]
            return {"x": spec["x"].path.read(here, state["x"], t, ctx.at("x", spec["x"]), "data")}

    out = Patchwork(Place(), spec, patch=10)({"x": torch.randn(2, 1, 24, 24)}, 0.3, Context.of(2), Run(0))["x"].data
    assert torch.allclose(out, coordinates(whole((24, 24), 2), (24, 24))[:, 1:], atol=1e-5)
    with pytest.raises(UsageError, match="overlap by 0 to 9"):
        Patchwork(Place(), spec, patch=10, overlap=10)


# -- from a cache to a model


def small(tmp_path, *words):
    from scidiff.training.prepare import prepare

    settings = config.compose("train", [
        "domain=medical", "trainer=debug", "domain.options.size=32", "data.options.size=[6,32,32]",
        "data.options.spacing=[12,12,12]", "data.options.finer=1", "backbone.widths=[8,12]", "backbone.embed=8",
        "objective.patch=16", "trainer.max_steps=4", "trainer.batch=4", *words])
    return prepare(settings).write(tmp_path / "cache")


def test_a_cache_trains_without_any_library_of_medicine_and_the_model_draws(tmp_path):
    cache = small(tmp_path)
    code = (
        "import sys\n"
        "for name in ('nibabel', 'pydicom', 'monai', 'hydra', 'omegaconf'): sys.modules[name] = None\n"
        "import torch; torch.set_num_threads(1)\n"
        "from scidiff.training.__main__ import main\n"
        f"sys.exit(main([{str(cache)!r}, '--out', {str(tmp_path / 'run')!r}, 'trainer.preview.num=0']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    from scidiff.domains.model import Model

    model = Model.load(tmp_path / "run" / "checkpoint")
    assert model.domain.modality == "CT" and model.domain.spacing[1] == pytest.approx(12.0)
    samples = model.sample(2, seed=1, steps=3)
    assert [tuple(o.data.shape) for o in samples] == [(1, 1, 32, 32)] * 2
    assert torch.allclose(samples[1].data, model.sample(1, seed=1, steps=3, start=1)[0].data, atol=0.2)


def test_training_lowers_the_loss_on_patches():
    torch.manual_seed(0)
    disc = ((torch.arange(32.0)[:, None] - 15.5) ** 2 + (torch.arange(32.0) - 15.5) ** 2 < 100).float()[None, None]
    x = disc.expand(8, -1, -1, -1) * torch.linspace(0.5, 1.0, 8).view(-1, 1, 1, 1)
    net = PatchUNet(widths=(16, 24), embed=16)
    denoiser = NetworkDenoiser(SPEC, net, {"default": "preconditioned"}, data_std=0.4, clock="lambda")
    time = targets.build({"_target_": "scidiff.core.objective.LogNormalSigmaTime", "sigma_max": 10.0})
    objective = Patches(SPEC, patch=16, shift=2, warp=0.2, time=time)
    optimiser, run, losses = torch.optim.Adam(net.parameters(), 3e-3), Run(0), []
    for step in range(40):
        run.step = step
        loss, _ = objective.loss(denoiser, ({"x": x}, Context.of(8)), run)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_blocks_of_slices_are_learned_in_patches_of_three_dimensions(tmp_path):
    from scidiff.store.model import assemble
    from scidiff.training.cache import Cache

    words = ("domain.options.depth=4", "backbone=patch_unet_3d", "data.options.size=[8,32,32]")
    cache = Cache.open(small(tmp_path, *words))
    assert cache.config["backbone"]["dims"] == 3 and cache.train.state["x"].shape[1:] == (1, 4, 32, 32)
    spec, denoiser = assemble(cache.config)
    objective = targets.build(cache.config["objective"], spec=spec)
    loss, _ = objective.loss(denoiser, cache.train.batch(torch.arange(3)), Run(0))
    loss.backward()
    assert 0.5 < float(loss.detach()) < 2.0
