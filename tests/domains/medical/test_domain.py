"""The domain object: conformance, what is remembered of data, round trips, verdicts, pictures and files."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from scidiff.core.errors import MissingLibrary, UsageError
from scidiff.core.spec import Context
from scidiff.domains import load_domain
from scidiff.domains.base import Request, Samples, Verdict, sample_id
from scidiff.domains.medical import MedicalDomain, codec, likeness, sets
from scidiff.domains.medical.codec import X, cut, narrowed, subject
from scidiff.domains.medical.intensity import CT
from scidiff.domains.medical.phantom import chest
from scidiff.domains.medical.volume import Volume, centred_affine

pytest.importorskip("nibabel", reason="nibabel is not installed")


def body(size=48, slices=4, seed=1, name=None):
    return chest(seed).volume((slices, size, size), (20.0, 400 / size, 400 / size), 1, name or f"chest{seed}")


def head(name, contrast, seed=0, size=32, slices=3):
    """A made-up MR volume in scanner units."""
    draw = torch.Generator().manual_seed(seed)
    y = torch.linspace(-1, 1, size)
    disc = ((y[:, None] ** 2 + y**2) < 0.7).float() * (300.0 if contrast == "t1" else 900.0)
    data = (disc + 20.0 * torch.rand(slices, 1, size, size, generator=draw)).abs()
    return Volume(data, centred_affine((slices, size, size), (3.0, 0.9, 0.9)), "MR", name, contrast=contrast)


def fitted(size=48, **options):
    domain = MedicalDomain(size=size, **options)
    objects = domain.examples()
    return domain.fit(objects)[0], objects


def test_import_needs_no_library_of_medicine():
    code = (
        "import sys\n"
        "for name in ('nibabel', 'pydicom', 'monai', 'matplotlib', 'lightning', 'scipy'): sys.modules[name] = None\n"
        "import scidiff.domains.medical as medical\n"
        "from scidiff.domains.medical import codec, files, likeness, networks, objectives, patchwork, soundness, view\n"
        "assert medical.MedicalDomain(modality='CT').components()['x'][1] == (1, 128, 128)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_conformance_kit_accepts_the_domain():
    from scidiff.testing import check_domain

    found = check_domain(MedicalDomain(size=32))
    assert found.modality == "CT" and found.size == 32 and found.known is not None
    assert isinstance(load_domain("medical", found.options()), MedicalDomain)


def test_the_conformance_kit_accepts_blocks_of_slices():
    from scidiff.testing import check_domain

    found = check_domain(MedicalDomain(size=16, depth=4), configs=False)
    assert found.components()[X][1] == (1, 4, 16, 16)


# -- what is remembered


def test_fitting_remembers_range_spacing_and_what_slices_look_like():
    domain, objects = fitted()
    x = domain.encode(objects)[0][X]
    assert domain.spacing == pytest.approx((30.0, 400 / 48, 400 / 48), rel=1e-4)
    assert (domain.lowest, domain.highest) == (float(x.min()), float(x.max()))
    assert domain.known.low == 0.0 and 0.4 < domain.known.high < 1.0
    assert domain.floors is not None and all(f > 0 for f in domain.floors)
    assert json.loads(json.dumps(domain.options())) == domain.options()


def test_the_conformal_factors_stay_with_the_prior():
    domain, _ = fitted(conformal={"ct_20": 1.25})
    assert domain.conformal == {"ct_20": 1.25}
    assert MedicalDomain(**json.loads(json.dumps(domain.options()))).conformal == {"ct_20": 1.25}


def test_slices_of_different_kinds_are_not_mixed():
    with pytest.raises(UsageError, match=r"not all of one modality\. Some are CT and some MR"):
        MedicalDomain().fit([*cut([body(32)], 32), *cut([head("a/t1", "t1")], 32)])
    with pytest.raises(UsageError, match="Nobody says what they are"):
        MedicalDomain().fit([replace(o, modality="") for o in cut([body(32)], 32)])
    with pytest.raises(UsageError, match="The modality is CT or MR"):
        MedicalDomain(modality="PET")
    with pytest.raises(UsageError, match="knows no modality yet"):
        MedicalDomain().encode([])


def test_contrasts_are_conditions_by_name():
    objects = cut([head("a/t1", "t1"), head("b/flair", "flair", 1)], 32)
    domain = MedicalDomain(size=32).fit(objects)[0]
    assert domain.contrasts == ("flair", "t1") and domain.modality == "MR"
    found = domain.properties(objects, ["flair", "pixel_mm"])
    assert found["flair"].tolist() == [0.0] * 3 + [1.0] * 3
    assert found["pixel_mm"].tolist() == pytest.approx([0.9] * 6)
    with pytest.raises(UsageError, match=r"'t2'.*pixel_mm, flair, t1"):
        domain.properties(objects, ["t2"])
    asked = domain.template(Request(torch.arange(2), 0, {"flair": 1.0}))
    state = {X: torch.rand(2, 1, 32, 32)}
    assert [o.contrast for o in domain.decode(state, asked)] == ["flair", "flair"]


# -- slices


def test_ct_comes_back_in_hounsfield_units_at_its_place():
    volume = body()
    objects = cut([volume], 48)
    domain = MedicalDomain(size=48).fit(objects)[0]
    back = domain.decode(*domain.encode(objects))
    for a, b in zip(objects, back, strict=True):
        assert torch.allclose(a.data, b.data, atol=0.01) and np.array_equal(a.affine, b.affine)
    assert torch.allclose(objects[2].data[0], volume.data[2], atol=0.01)
    assert np.allclose(objects[2].affine, volume.cut(2, 3).affine)


def test_mr_is_kept_on_the_scale_of_its_volume():
    one, brighter = head("a/t1", "t1"), head("b/t1", "t1")
    brighter = brighter.like(brighter.data * 7.0)
    a, b = cut([one], 32), cut([brighter], 32)
    assert all(torch.allclose(p.data, q.data, atol=1e-5) for p, q in zip(a, b, strict=True))
    assert 0.95 < float(torch.stack([p.data for p in a]).max()) < 1.05


def test_slices_of_air_are_left_out_and_blocks_overlap_by_half():
    volume = body(32, 8)
    volume.data[5:] = -1000.0
    assert [o.name for o in cut([volume], 32)] == [f"chest1:{i}" for i in range(5)]
    blocks = cut([body(32, 8)], 32, depth=4)
    assert [o.name.split(":")[1] for o in blocks] == ["0", "2", "4"] and blocks[0].data.shape == (4, 1, 32, 32)
    domain = MedicalDomain(size=32, depth=4).fit(blocks)[0]
    state, ctx = domain.encode(blocks)
    assert state[X].shape == (3, 1, 4, 32, 32)
    assert torch.allclose(domain.decode(state, ctx)[1].data, blocks[1].data, atol=0.01)


def test_a_narrower_field_is_cut_out_of_the_original_about_the_body():
    volume = body(64)
    moved = volume.like(volume.data.roll(6, 3))
    small = narrowed(moved, 0.75)
    assert small.size == (48, 48)
    start = round((np.linalg.inv(moved.affine) @ small.affine)[0, 3])
    assert torch.equal(small.data, moved.data[..., 8:56, start : start + 48]) and start > 8
    whole, part = cut([volume], 32, fields=(1.0, 0.75))[::4]
    assert part.name.endswith(":0@0.75") and part.spacing[2] == pytest.approx(0.75 * whole.spacing[2])
    with pytest.raises(UsageError, match="from 0 to 1"):
        narrowed(volume, 1.5)


def test_a_slice_of_another_size_is_one_sentence():
    domain, _ = fitted()
    with pytest.raises(UsageError, match=r"is 1 slice of 32 x 32 pixels; the prior takes 1 slice of 48 x 48"):
        domain.encode(cut([body(32)], 32))


# -- judging


@pytest.mark.parametrize("change, reason", [
    (lambda x: x, ""),
    (lambda x: torch.full_like(x, torch.nan), "not finite"),
    (lambda x: x * 0 + 35.0, "35 HU everywhere"),
    (lambda x: x + 1500.0, "leave the range"),
    (lambda x: torch.where(x > 0, x - 3000.0, x), "leave the range"),
    (lambda x: -1000.0 + 20.0 * torch.rand_like(x), "air only"),
])
def test_verdicts_have_reasons(change, reason):
    domain, objects = fitted()
    found = domain.check([objects[0].like(change(objects[0].data))])[0]
    assert found.valid == (not reason) and reason in found.reason


def test_samples_that_are_the_data_have_no_distance_and_smoothed_ones_have():
    domain, objects = fitted()
    verdicts = domain.check(objects)
    same = {m.name: m for m in domain.metrics(objects, verdicts)}
    assert same["valid"].value == 1.0
    assert all(same[name].value == pytest.approx(0.0, abs=2e-3) for name in likeness.NAMES)
    smooth = [o.like(torch.nn.functional.avg_pool2d(o.data, 3, 1, 1, count_include_pad=False)) for o in objects]
    other = {m.name: m for m in domain.metrics(smooth, domain.check(smooth))}
    assert other["spectrum distance"].value > 3.0 > other["spectrum distance"].floor
    assert all(m.count == 8 and m.protocol for m in other.values())


def test_the_intensity_distance_is_how_far_values_move():
    x = 0.2 + 0.5 * torch.rand(4, 16, 16, generator=torch.Generator().manual_seed(0))
    apart = likeness.Portrait.of(likeness.rows(x)).distance(likeness.Portrait.of(likeness.rows(x + 0.1)))
    assert apart[0] == pytest.approx(0.1, abs=1e-3) and apart[2] == 0.0
    louder = likeness.Portrait.of(likeness.rows(x)).distance(likeness.Portrait.of(likeness.rows(2 * x)))
    assert louder[1] == pytest.approx(20 * np.log10(2.0), rel=1e-6)


def test_pictures_and_rows_say_their_units():
    domain, objects = fitted()
    verdicts = [Verdict(True)] * 7 + [Verdict(False, "it holds air only")]
    pictures = domain.view(objects, verdicts, [sample_id(i) for i in range(8)])
    assert list(pictures) == ["Whole range, -1000 to 1000 HU", "Soft tissue, -160 to 240 HU"]
    assert all(p[:4] == b"\x89PNG" for p in pictures.values())
    row = domain.table(objects, verdicts)[0]
    assert row["pixel_mm"] == pytest.approx(400 / 48, rel=1e-3) and -1000 <= row["lowest_HU"] < row["mean_HU"]


# -- files


def test_a_folder_of_volumes_is_cut_and_the_last_is_left_for_testing(tmp_path):
    from scidiff.domains.medical import nifti

    for seed in range(4):
        nifti.write(body(32, 3, seed), tmp_path / f"case{seed}.nii.gz")
    (tmp_path / "broken.nii.gz").write_bytes(b"no NIfTI")
    domain = MedicalDomain(modality="CT", size=16)
    everything = domain.read(tmp_path)
    assert len(everything) == 12 and [r.where for r in everything.rejected] == ["broken.nii.gz"]
    assert {subject(n) for n in domain.read(tmp_path, split="test").names} == {"case3"}
    assert len(domain.read(tmp_path, split="train")) == 9
    narrow = MedicalDomain(modality="CT", size=16, fields=(1.0, 0.8))
    assert len(narrow.read(tmp_path, split="train")) == 18 and len(narrow.read(tmp_path)) == 12
    np.save(tmp_path / "slices.npy", body(16, 3).data[:, 0].numpy())
    assert len(domain.read(tmp_path / "slices.npy")) == 3
    with pytest.raises(UsageError, match="does not exist"):
        domain.read(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="cannot be read as NIfTI"):
        domain.read(tmp_path / "broken.nii.gz")


def test_every_sample_is_written_and_a_run_folder_is_read_back(tmp_path):
    domain, objects = fitted()
    objects = [objects[0], objects[1].like(objects[1].data + 1500.0)]
    files = domain.write(Samples(objects, ["s0000", "s0001"], 0, domain.check(objects), domain), tmp_path)
    names = ["samples.csv", "slices/s0000.nii.gz", "slices/s0001.nii.gz", "slices.png"]
    assert [f.relative_to(tmp_path).as_posix() for f in files] == names
    assert "leave the range" in files[0].read_text()
    back = domain.read(tmp_path)
    assert back.names == ["s0000", "s0001"] and [v.valid for v in domain.check(back.objects)] == [True, False]
    for a, b in zip(objects, back.objects, strict=True):
        assert torch.allclose(a.data, b.data) and np.allclose(a.affine, b.affine)


def test_files_of_anybody_are_judged_without_a_model(tmp_path):
    from scidiff.domains.medical import nifti

    for name, one in (("body", body(32, 3)), ("head", head("a/t1", "t1"))):
        nifti.write(one, tmp_path / f"{name}.nii.gz")
        domain = MedicalDomain(size=24)
        objects = domain.read(tmp_path / f"{name}.nii.gz").objects
        verdicts = domain.check(objects)
        assert {o.modality for o in objects} == {"CT" if name == "body" else "MR"}
        assert all(v.valid for v in verdicts)
        assert ("mean_HU" in domain.table(objects, verdicts)[0]) == (name == "body")
        assert "no training slices" in domain.metrics(objects, verdicts)[1].note
        assert domain.view(objects, verdicts, ["a", "b", "c"])


def test_data_sets_give_slices_and_narrow_fields_to_training_alone():
    domain = MedicalDomain(size=24, fields=(1.0, 0.8))
    options = {"size": [3, 32, 32], "spacing": [20.0, 12.0, 12.0], "finer": 1,
               "subjects": {"train": {"a": 1}, "test": {"b": 2}}}
    assert len(domain.dataset({}, "phantom", options, "train")) == 6
    assert len(domain.dataset({}, "phantom", options, "test")) == 3
    assert len(domain.dataset({}, "phantom", options, None, limit=2)) == 2


def test_raw_kspace_is_nothing_to_learn_from(monkeypatch):
    monkeypatch.setattr(sets, "dataset", lambda *_: type("R", (), {"objects": [object()], "rejected": []})())
    with pytest.raises(UsageError, match="raw k-space"):
        MedicalDomain().dataset({}, "kspace", {}, "test")


def test_a_file_of_one_slice_lies_across_its_short_axis(tmp_path):
    """Readers of volumes refuse it; the domain takes it as the sample that it is."""
    import nibabel

    from scidiff.domains.medical import nifti

    values = np.random.default_rng(0).normal(size=(1, 20, 24)).astype(np.float32)
    nibabel.Nifti1Image(values, np.diag([5.0, 1.0, 1.0, 1.0])).to_filename(tmp_path / "s0000.nii.gz")
    with pytest.raises(UsageError, match="2D image"):
        nifti.read(tmp_path / "s0000.nii.gz")
    found = nifti.read(tmp_path / "s0000.nii.gz", flat=True)
    assert found.data.shape == (1, 1, 24, 20) and found.plane == "sagittal"
    assert np.array_equal(found.data[0, 0].numpy(), values[0].T)


def test_every_brain_of_the_card_has_a_contrast():
    from scidiff.store import cards

    options = cards.find("mr_brain").layouts[0].options
    named = [file for files in options["contrasts"].values() for file in files]
    assert sorted(named) == sorted(cards.find("mr_brain").layouts[0].files)
    assert all(f"_{name}_" in file for name, files in options["contrasts"].items() for file in files)


# -- staged data


def test_staged_brains_know_their_contrast(data):
    from scidiff.store import cards
    from scidiff.store.fetch import provide

    if not (data / "medical").is_dir():
        pytest.skip(f"no medical data in {data}")
    found = provide(cards.find("mr_brain"), root=data / "medical")
    options = {**found.options, "subjects": {"test": found.options["subjects"]["test"]}}
    domain = MedicalDomain(size=64)
    objects = domain.dataset(found.files, found.reader, options, "test").objects
    assert {(subject(o.name), o.contrast) for o in objects} == {("ms19", "t1"), ("ms20", "flair")}
    assert 1.0 < float(torch.stack([o.data for o in objects]).max()) < 3.0


def test_monai_is_named_where_it_is_absent(monkeypatch):
    from scidiff.domains.medical.networks import MonaiUNet

    monkeypatch.setitem(sys.modules, "monai.networks.nets", None)
    with pytest.raises(MissingLibrary, match=r"scidiff\[medical\]"):
        MonaiUNet()
    with pytest.raises(UsageError, match="multiples of its 16 groups"):
        MonaiUNet(widths=(30, 60, 90))


@pytest.mark.parametrize("dims, space", [(2, (20, 18)), (3, (8, 6, 10))])
def test_monais_network_takes_places_and_conditions(dims, space):
    pytest.importorskip("monai", reason="MONAI is not installed")
    pytest.importorskip("einops", reason="einops is not installed")
    from scidiff.domains.medical.networks import MonaiUNet

    torch.manual_seed(0)
    net = MonaiUNet(dims=dims, widths=(16, 32), attention=(False, True), head=16, conditions=["flair"]).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.05 * torch.randn_like(p))
        x, t = torch.randn(2, 1, *space), torch.tensor([0.5, 0.5])

        def answer(value, known):
            cond = {"flair": (torch.full((2,), value), torch.tensor([known, known]))}
            return net({"x": x}, t, Context.of(2, cond=cond))["x"]

        assert answer(1.0, True).shape == x.shape
        assert not torch.allclose(answer(1.0, True), answer(-1.0, True))
        assert torch.equal(answer(1.0, False), net({"x": x}, t, Context.of(2))["x"])
    assert codec.own_scale("CT") is CT
