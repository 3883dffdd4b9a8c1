"""NIfTI in and out: headers byte for byte, oblique affines bit for bit, and a sentence for every bad file."""

from __future__ import annotations

import gzip
import itertools

import numpy as np
import pytest
import torch

nibabel = pytest.importorskip("nibabel", reason="nibabel is not installed")

from scidiff.core.errors import UsageError  # noqa: E402
from scidiff.domains.medical import nifti  # noqa: E402
from scidiff.domains.medical.volume import Volume, at_size, centred_affine  # noqa: E402

OBLIQUE = np.array([[-0.71, 0.05, 0.32, 13.7], [0.06, 0.69, -0.75, -35.1], [0.09, 0.17, 2.87, 4.3], [0, 0, 0, 1.0]])
FREE = {"datatype", "bitpix", "scl_slope", "scl_inter", "vox_offset", "magic"}


def numbers(shape=(5, 6, 7), seed=0):
    return np.random.default_rng(seed).normal(100, 30, shape).astype(np.float32)


def save(path, array, affine=OBLIQUE, s=1, q=1, kind=nibabel.Nifti1Image, change=lambda header: None):
    image = kind(array, affine)
    image.set_qform(affine, q)
    image.set_sform(affine, s)
    image.header.set_xyzt_units("mm", "sec")
    change(image.header)
    kind(array, None, image.header).to_filename(path)  # without an affine, which would be written over the header's
    return path


def raw(path, kind=nibabel.Nifti1Header):
    """The header as it stands in the file, the scale factors included."""
    opened = gzip.open if str(path).endswith(".gz") else open
    with opened(path, "rb") as file:
        return kind.from_fileobj(file, check=False)


def same_header(a, b, but=()):
    for name in list(a.keys()):
        if name not in FREE | set(but):
            assert a[name].tobytes() == b[name].tobytes(), name


@pytest.mark.parametrize("order, signs", list(itertools.product([(0, 1, 2), (2, 0, 1), (1, 2, 0)],
                                                                [(1, 1, 1), (-1, 1, -1), (-1, -1, 1)])))
def test_header_and_affine_come_back_bit_for_bit(tmp_path, order, signs):
    affine = OBLIQUE.copy()
    affine[:3, :3] = OBLIQUE[:3, order] * signs
    array = numbers()

    def change(header):
        header["descrip"], header["aux_file"], header["intent_name"] = b"a scan", b"aux", b"x"
        header["cal_max"], header["toffset"], header["slice_code"] = 900.0, 2.5, 3

    source = save(tmp_path / "a.nii.gz", array, affine, s=2, q=3, change=change)
    volume = nifti.read(source)
    assert volume.orientation in ("RAS", "RSA", "ASR")
    target = nifti.write(volume.like(volume.data + 1.0), tmp_path / "out" / "b.nii.gz")
    same_header(raw(source), raw(target))
    before, after = nibabel.load(source), nibabel.load(target)
    assert np.array_equal(before.affine, after.affine)
    assert np.array_equal(before.get_qform(), after.get_qform())
    assert np.array_equal(after.get_fdata(dtype=np.float32), array + 1.0)
    again = nifti.read(target)
    assert np.array_equal(again.affine, volume.affine) and torch.equal(again.data, volume.data + 1.0)


@pytest.mark.parametrize("codes", [(0, 1), (1, 0), (4, 2)])
def test_the_form_that_has_a_code_counts_and_both_come_back(tmp_path, codes):
    s, q = codes
    source = save(tmp_path / "a.nii", numbers(), OBLIQUE, s=s, q=q)
    image = nibabel.load(source)
    volume = nifti.read(source)
    assert np.array_equal(volume.source.affine, image.affine)
    same_header(raw(source), raw(nifti.write(volume, tmp_path / "b.nii")))


def test_a_voxel_keeps_its_place_in_the_world(tmp_path):
    array = numbers()
    volume = nifti.read(save(tmp_path / "a.nii", array))
    for index in ((0, 0, 0), (4, 2, 6), (3, 5, 1)):
        where = nibabel.load(tmp_path / "a.nii").affine @ [*index, 1]
        x, y, z = np.rint(np.linalg.solve(volume.affine, where)[:3]).astype(int)
        assert float(volume.data[z, 0, y, x]) == array[index]


def test_nifti2_pairs_units_and_other_byte_orders(tmp_path):
    array = numbers()
    two = save(tmp_path / "a.nii", array, kind=nibabel.Nifti2Image)
    kind = nibabel.Nifti2Header
    same_header(raw(two, kind), raw(nifti.write(nifti.read(two), tmp_path / "b.nii"), kind))
    big = nibabel.Nifti1Image(array, OBLIQUE, nibabel.Nifti1Header(endianness=">"))
    big.to_filename(tmp_path / "big.nii")
    volume = nifti.read(tmp_path / "big.nii")
    same_header(raw(tmp_path / "big.nii"), raw(nifti.write(volume, tmp_path / "big2.nii")))
    assert np.array_equal(nibabel.load(tmp_path / "big2.nii").get_fdata(dtype=np.float32), array)
    nibabel.Nifti1Pair(array, OBLIQUE).to_filename(tmp_path / "pair.img")
    pair = nifti.read(tmp_path / "pair.img")
    assert np.array_equal(nibabel.load(nifti.write(pair, tmp_path / "one.nii")).affine, pair.source.affine)
    metres = OBLIQUE.copy()
    metres[:3] /= 1000
    save(tmp_path / "m.nii", array, metres, change=lambda h: h.set_xyzt_units("meter"))
    far = nifti.read(tmp_path / "m.nii")
    assert far.spacing == pytest.approx(nifti.read(save(tmp_path / "mm.nii", array)).spacing, rel=1e-5)
    assert np.array_equal(nibabel.load(nifti.write(far, tmp_path / "m2.nii")).affine, far.source.affine)


def test_integers_are_kept_where_they_fit_and_scaled_where_not(tmp_path):
    whole = np.random.default_rng(1).integers(-1024, 3071, (5, 6, 7)).astype(np.int16)
    volume = nifti.read(save(tmp_path / "a.nii", whole), modality="CT")
    assert volume.data.dtype == torch.float32 and volume.modality == "CT"
    same = nibabel.load(nifti.write(volume, tmp_path / "b.nii", integers=True))
    assert same.get_data_dtype() == np.int16 and np.array_equal(np.asanyarray(same.dataobj), whole)
    other = nibabel.load(nifti.write(volume.like(volume.data * 0.37), tmp_path / "c.nii", integers=True))
    assert other.get_data_dtype() == np.int16
    step = float(raw(tmp_path / "c.nii")["scl_slope"])
    assert step < 4100 * 0.37 / 60000
    assert np.abs(other.get_fdata() - 0.37 * whole).max() <= 0.51 * step


def test_scaled_integers_and_complex_numbers_are_read(tmp_path):
    save(tmp_path / "a.nii", numbers().astype(np.int16), change=lambda h: h.set_slope_inter(0.5, -7.0))
    stored = np.asanyarray(nibabel.load(tmp_path / "a.nii").dataobj)
    volume = nifti.read(tmp_path / "a.nii")
    assert np.allclose(volume.source.layout.to_file(volume.data), stored)
    waves = (numbers() + 1j * numbers(seed=1)).astype(np.complex64)
    seen = nifti.read(save(tmp_path / "c.nii", waves))
    assert seen.data.dtype == torch.complex64
    back = nibabel.load(nifti.write(seen, tmp_path / "d.nii", window=True))
    assert np.array_equal(np.asanyarray(back.dataobj), waves)
    assert float(back.header["cal_max"]) == pytest.approx(np.abs(waves).max())


def test_one_frame_of_a_series(tmp_path):
    series = np.stack([numbers(seed=k) for k in range(3)], -1)
    source = save(tmp_path / "a.nii.gz", series, change=lambda h: h.set_zooms((*h.get_zooms()[:3], 2.0)))
    volume = nifti.read(source, frame=1)
    target = nifti.write(volume, tmp_path / "b.nii.gz")
    assert np.array_equal(nibabel.load(target).get_fdata(dtype=np.float32), series[..., 1])
    same_header(raw(source), raw(target), but=("dim", "pixdim"))
    assert np.array_equal(raw(source)["pixdim"][:4], raw(target)["pixdim"][:4])
    for frame, words in ((None, "series of 3 volumes.*--frame 0 to --frame 2"), (3, "no frame 3"), (-1, "no frame -1")):
        with pytest.raises(UsageError, match=words):
            nifti.read(source, frame=frame)
    single = save(tmp_path / "s.nii", series[..., :1])
    kept = nifti.write(nifti.read(single), tmp_path / "s2.nii")
    assert nibabel.load(kept).shape == (5, 6, 7, 1)
    same_header(raw(single), raw(kept))
    with pytest.raises(UsageError, match="no frame 2"):
        nifti.read(single, frame=2)


def test_changed_voxels_get_a_new_affine_in_the_same_header(tmp_path):
    source = save(tmp_path / "a.nii", numbers((6, 8, 5)), s=2, q=1, change=lambda h: h.set_dim_info(0, 1, 2))
    volume = nifti.read(source)
    part = nifti.read(nifti.write(volume.cut(1, 4), tmp_path / "b.nii"))
    assert torch.equal(part.data, volume.data[1:4]) and np.allclose(part.affine, volume.cut(1, 4).affine, atol=1e-5)
    moved = ("dim", "pixdim", *(f"srow_{a}" for a in "xyz"), *(f"quatern_{a}" for a in "bcd"),
             *(f"qoffset_{a}" for a in "xyz"))
    same_header(raw(source), raw(tmp_path / "b.nii"), but=moved)
    assert raw(tmp_path / "b.nii")["sform_code"] == 2 and raw(tmp_path / "b.nii")["qform_code"] == 1
    small = at_size(volume, 4)
    again = nifti.read(nifti.write(small, tmp_path / "c.nii"))
    assert np.allclose(again.affine, small.affine, atol=1e-5) and torch.equal(again.data, small.data)
    own = Volume(torch.rand(3, 1, 4, 5), centred_affine((3, 4, 5), (2.0, 1.0, 1.0)), "CT")
    back = nifti.read(nifti.write(own, tmp_path / "d.nii.gz"))
    assert torch.equal(back.data, own.data) and np.array_equal(back.affine, own.affine)


def test_every_bad_file_has_its_sentence(tmp_path):
    array = numbers()
    flat = OBLIQUE.copy()
    flat[:3, 2] = 0.0
    holed = array.copy()
    holed[1, 2, 3] = np.inf
    save(tmp_path / "flat.nii", array, change=lambda h: [h.__setitem__(f"srow_{a}", r) for a, r in zip("xyz", flat)])
    save(tmp_path / "holed.nii", holed)
    save(tmp_path / "same.nii", np.full((5, 6, 7), 3.0, np.float32))
    save(tmp_path / "flat2d.nii", array[:, :, :1])
    save(tmp_path / "five.nii", np.zeros((4, 4, 4, 2, 2), np.float32))
    save(tmp_path / "nowhere.nii", array, s=0, q=0)
    colours = np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.Nifti1Image(colours, OBLIQUE).to_filename(tmp_path / "colours.nii")
    nibabel.MGHImage(array, OBLIQUE).to_filename(tmp_path / "other.mgz")
    (tmp_path / "text.nii").write_text("no image")
    whole = save(tmp_path / "whole.nii", array).read_bytes()
    (tmp_path / "short.nii").write_bytes(whole[: len(whole) // 2])
    packed = save(tmp_path / "whole.nii.gz", array).read_bytes()
    (tmp_path / "short.nii.gz").write_bytes(packed[: len(packed) // 2])
    for name, words in (("flat.nii", "singular"), ("holed.nii", r"not finite.*voxel \(1, 2, 3\)"),
                        ("same.nii", "value 3 everywhere"), ("flat2d.nii", "2D image"), ("five.nii", "5 axes"),
                        ("nowhere.nii", "no affine"), ("colours.nii", "colours"), ("other.mgz", "not NIfTI"),
                        ("text.nii", "cannot be read"), ("short.nii", "cannot be read"),
                        ("short.nii.gz", "cannot be read"), ("none.nii", "does not exist"), ("", "folder")):
        with pytest.raises(UsageError, match=words):
            nifti.read(tmp_path / name)
    volume = nifti.read(tmp_path / "nowhere.nii", force=True)
    edges = np.linalg.norm(OBLIQUE[:3, :3], axis=0)
    assert volume.spacing == pytest.approx([edges[a] for a in volume.source.layout.axes], rel=1e-6)
    same_header(raw(tmp_path / "nowhere.nii"), raw(nifti.write(volume, tmp_path / "b.nii")))
    with pytest.raises(UsageError, match="ends in"):
        nifti.write(volume, tmp_path / "b.png")
    with pytest.raises(UsageError, match="2 channels"):
        nifti.write(volume.like(torch.rand(len(volume.data), 2, *volume.size)), tmp_path / "b.nii")
    assert not (tmp_path / "b.png").exists()


def test_the_scan_that_nibabel_carries():
    volume = nifti.read(f"{nibabel.__path__[0]}/tests/data/example4d.nii.gz", frame=0, modality="MR")
    assert tuple(volume.data.shape) == (24, 1, 96, 128) and volume.orientation == "RAS"
    assert volume.spacing == pytest.approx((2.2, 2.0, 2.0), rel=1e-4)
    image = nibabel.load(f"{nibabel.__path__[0]}/tests/data/example4d.nii.gz")
    mirrored = np.asanyarray(image.dataobj[..., 0])[::-1]  # its first axis points to the left
    assert np.array_equal(volume.data[:, 0].numpy(), mirrored.transpose(2, 1, 0).astype(np.float32))
