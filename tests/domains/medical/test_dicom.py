"""DICOM series in and out: geometry from positions, values, identity of what was written, sentences for bad input."""

from __future__ import annotations

import datetime

import numpy as np
import pytest
import torch

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")

from scidiff.core.errors import MissingLibrary, UsageError  # noqa: E402
from scidiff.domains.medical import dicom, nifti  # noqa: E402
from scidiff.domains.medical.volume import Volume, centred_affine  # noqa: E402

CT_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
STUDY, SERIES = "1.2.826.0.1.3680043.8.498.1", "1.2.826.0.1.3680043.8.498.2"


def slice_file(path, pixels, position, orientation=(1, 0, 0, 0, 1, 0), **changes):
    """One CT slice; `changes` sets attributes, None removes one."""
    one = pydicom.dataset.Dataset()
    one.SOPClassUID, one.SOPInstanceUID = CT_STORAGE, pydicom.uid.generate_uid()
    one.StudyInstanceUID, one.SeriesInstanceUID, one.SeriesNumber = STUDY, SERIES, 3
    one.PatientName, one.PatientID, one.StudyDescription = "Phantom^One", "P1", "test study"
    one.Modality, one.ImageType, one.InstanceNumber = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"], 1
    one.ImagePositionPatient = [f"{v:.6f}" for v in position]
    one.ImageOrientationPatient = [f"{v:.9f}" for v in orientation]
    one.PixelSpacing, one.SliceThickness = ["0.7", "0.9"], "3.0"
    one.Rows, one.Columns = pixels.shape
    one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
    one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 1
    one.RescaleSlope, one.RescaleIntercept, one.PixelPaddingValue = "2", "-1024", -2000
    for name, value in changes.items():
        if value is None:
            delattr(one, name)
        else:
            setattr(one, name, value)
    one.PixelData = pixels.astype("<i2").tobytes()
    one["PixelData"].VR = "OW"
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CT_STORAGE, one.SOPInstanceUID
    one.file_meta = meta
    path.parent.mkdir(parents=True, exist_ok=True)
    one.save_as(path, enforce_file_format=True)


def orientation(tilt=0.0, turn=0.0):
    a, b = np.radians((tilt, turn))
    row = np.array([np.cos(b), np.sin(b), 0.0])
    column = np.array([-np.sin(b) * np.cos(a), np.cos(b) * np.cos(a), np.sin(a)])
    return row, column, np.cross(row, column)


def series(folder, count=5, step=2.0, tilt=0.0, turn=0.0, order=None, seed=0, shift=(0, 0, 0), places=None, **changes):
    """Slices along their normal, in files named without regard to their order; the stored numbers [k, row, column]."""
    row, column, normal = orientation(tilt, turn)
    stored = np.random.default_rng(seed).integers(0, 1000, (count, 6, 8))
    order = list(order or np.random.default_rng(1).permutation(count))
    for name, k in enumerate(order):
        along = k * step if places is None else places[k]
        where = np.array([-20.0, -30.0, 40.0]) + along * normal + k * np.asarray(shift)
        slice_file(folder / f"{name:02d}.dcm", stored[k], where, (*row, *column), InstanceNumber=name + 1, **changes)
    return stored


def test_values_and_places_of_an_axial_series(tmp_path):
    stored = series(tmp_path / "a", step=2.0)
    volume = dicom.read(tmp_path / "a")
    assert volume.modality == "CT" and volume.orientation == "RAS" and volume.plane == "axial"
    assert volume.spacing == pytest.approx((2.0, 0.7, 0.9))  # not the thickness of 3 that the header states
    turned = stored[:, ::-1, ::-1]  # columns of DICOM grow to the left, rows to the back
    assert np.array_equal(volume.data[:, 0].numpy(), (2.0 * turned - 1024).astype(np.float32))
    assert np.allclose(volume.affine @ [7, 5, 0, 1], [20.0, 30.0, 40.0, 1.0])  # the first pixel of the lowest slice


@pytest.mark.parametrize("tilt, turn", [(25.0, 0.0), (-70.0, 10.0), (90.0, -20.0), (0.0, 100.0), (200.0, 5.0)])
def test_every_pixel_keeps_its_place_whatever_the_orientation(tmp_path, tilt, turn):
    stored = series(tmp_path / "a", step=1.7, tilt=tilt, turn=turn)
    volume = dicom.read(tmp_path / "a")
    row, column, normal = orientation(tilt, turn)
    for k, j, i in ((0, 0, 0), (4, 5, 7), (2, 3, 1)):
        left, back, head = np.array([-20.0, -30.0, 40.0]) + 1.7 * k * normal + 0.9 * i * row + 0.7 * j * column
        x, y, z = np.linalg.solve(volume.affine, [-left, -back, head, 1.0])[:3]
        assert np.allclose([x, y, z], np.rint([x, y, z]), atol=1e-4)
        assert float(volume.data[round(z), 0, round(y), round(x)]) == 2.0 * stored[k, j, i] - 1024
    assert len(volume.data) == 5


def test_a_series_agrees_with_its_nifti_file(tmp_path):
    series(tmp_path / "a", tilt=20.0)
    volume = dicom.read(tmp_path / "a")
    again = nifti.read(nifti.write(volume, tmp_path / "a.nii.gz"))
    assert torch.equal(again.data, volume.data) and np.allclose(again.affine, volume.affine, atol=1e-5)


@pytest.mark.parametrize("whole", [True, False])
def test_a_derived_series_has_a_new_identity_and_the_same_patient(tmp_path, whole):
    series(tmp_path / "a", tilt=15.0, turn=5.0)
    volume = dicom.read(tmp_path / "a")
    values = volume.data + (7.0 if whole else 0.123 * torch.arange(volume.data.numel()).view_as(volume.data))
    now = datetime.datetime(2026, 1, 2, 3, 4, 5)
    told = "From 20 views; not for clinical use."
    target = dicom.write(volume.like(values), tmp_path / "out", "reconstruction", told, now)
    again = dicom.read(target)
    assert np.array_equal(again.affine, volume.affine)
    files = [pydicom.dcmread(f) for f in sorted(target.iterdir())]
    error = (again.data - values).abs().max()
    assert float(error) == 0.0 if whole else float(error) <= 0.51 * float(files[0].RescaleSlope)
    old = {str(h.ImagePositionPatient): h for h in volume.source.headers}
    for one in files:
        before = old[str(one.ImagePositionPatient)]
        for name in ("PatientName", "PatientID", "StudyInstanceUID", "StudyDescription", "ImageOrientationPatient",
                     "PixelSpacing", "InstanceNumber", "SOPClassUID", "Modality"):
            assert one[name] == before[name], name
        assert one.SeriesInstanceUID != before.SeriesInstanceUID and one.SOPInstanceUID != before.SOPInstanceUID
        assert one.file_meta.MediaStorageSOPInstanceUID == one.SOPInstanceUID
        assert list(one.ImageType) == ["DERIVED", "SECONDARY", "AXIAL"]
        assert one.SourceImageSequence[0].ReferencedSOPInstanceUID == before.SOPInstanceUID
        assert "not for clinical use" in one.DerivationDescription and one.SeriesDescription == "reconstruction"
        assert one.ContentDate == "20260102" and "PixelPaddingValue" not in one
    assert len({one.SOPInstanceUID for one in files}) == len(files)
    assert len({one.SeriesInstanceUID for one in files}) == 1
    assert pydicom.dcmread(tmp_path / "a" / "00.dcm").ImageType[0] == "ORIGINAL"  # the source is untouched


def test_what_cannot_be_written_as_a_series(tmp_path):
    series(tmp_path / "a")
    volume = dicom.read(tmp_path / "a")
    own = Volume(torch.rand(3, 1, 4, 5), centred_affine((3, 4, 5), (2.0, 1.0, 1.0)))
    for wrong, words in ((own, "not read from DICOM"), (volume.cut(0, 3), "other voxels"),
                         (volume.like(volume.data + 0j), "real values"),
                         (volume.like(volume.data * float("nan")), "not finite")):
        with pytest.raises(UsageError, match=words):
            dicom.write(wrong, tmp_path / "out", "x", "y")
    assert not (tmp_path / "out").exists()


def test_several_series_are_listed_and_can_be_chosen(tmp_path):
    series(tmp_path / "a" / "one", seed=0)
    series(tmp_path / "a" / "two", seed=1, SeriesInstanceUID=SERIES + ".77", SeriesNumber=8, SeriesDescription="lung")
    (tmp_path / "a" / "readme.txt").write_text("no image")
    with pytest.raises(UsageError, match=r"mixes 2 series.*3 \(CT, 5 images.*8 \(CT, 5 images, lung\)"):
        dicom.read(tmp_path / "a")
    first, second = (dicom.read(tmp_path / "a", series=name) for name in (3, ".77"))
    assert not torch.equal(first.data, second.data)
    assert torch.equal(second.data, dicom.read(tmp_path / "a", series="8").data)
    with pytest.raises(UsageError, match="no series '9'"):
        dicom.read(tmp_path / "a", series=9)


def test_every_bad_series_has_its_sentence(tmp_path):
    bad = {
        "missing": (dict(count=4, places=[0, 2, 8, 10]), r"2 slices are missing: 6 mm lie between slices 2 and 3 of 4"),
        "one missing": (dict(count=4, places=[0, 2, 6, 8]), "1 slice is missing: 4 mm"),
        "uneven": (dict(count=4, places=[0, 2, 4.7, 6.7]), "steps are uneven"),
        "doubled": (dict(count=4, places=[0, 2, 2, 4]), "2 images at the position"),
        "tilted": (dict(shift=(0, 0.5, 0)), "tilted by 14.0 degrees"),
        "stated": (dict(GantryDetectorTilt="12.5"), "tilted by 12.5 degrees, says"),
        "single": (dict(count=1), "one slice"),
        "colour": (dict(PhotometricInterpretation="RGB"), r"pictures \(RGB\)"),
        "frames": (dict(NumberOfFrames="4"), "4 frames each"),
        "nowhere": (dict(ImagePositionPatient=None), "lack ImagePositionPatient"),
        "scale": (dict(RescaleSlope="0"), "no linear scale"),
    }
    for name, (how, words) in bad.items():
        series(tmp_path / name, **how)
        with pytest.raises(UsageError, match=words):
            dicom.read(tmp_path / name)
    series(tmp_path / "mixed", count=3)
    slice_file(tmp_path / "mixed" / "other.dcm", np.ones((6, 9)), (0, 0, 99.0))
    with pytest.raises(UsageError, match="size differs"):
        dicom.read(tmp_path / "mixed")
    series(tmp_path / "cut", count=3)
    whole = (tmp_path / "cut" / "01.dcm").read_bytes()
    (tmp_path / "cut" / "01.dcm").write_bytes(whole[:-40])
    with pytest.raises(UsageError, match=r"pixels of .*01\.dcm cannot be read"):
        dicom.read(tmp_path / "cut")
    (tmp_path / "empty").mkdir()
    for place, words in ((tmp_path / "empty", "no DICOM images"), (tmp_path / "none", "does not exist"),
                         (tmp_path / "cut" / "00.dcm", "one 2D image")):
        with pytest.raises(UsageError, match=words):
            dicom.read(place)


def test_frames_of_a_series_over_time(tmp_path):
    first = series(tmp_path / "a" / "t0", seed=0, order=range(5))
    row, column, normal = orientation()
    second = np.random.default_rng(5).integers(0, 1000, (5, 6, 8))
    for k in range(5):
        where = np.array([-20.0, -30.0, 40.0]) + 2.0 * k * normal
        slice_file(tmp_path / "a" / "t1" / f"{k}.dcm", second[k], where, (*row, *column), InstanceNumber=50 + k)
    with pytest.raises(UsageError, match=r"series of 2 volumes.*--frame 0 to --frame 1"):
        dicom.read(tmp_path / "a")
    for frame, stored in ((0, first), (1, second)):
        found = dicom.read(tmp_path / "a", frame=frame).data[:, 0].numpy()
        assert np.array_equal(found, (2.0 * stored[:, ::-1, ::-1] - 1024).astype(np.float32))
    with pytest.raises(UsageError, match="no frame 2"):
        dicom.read(tmp_path / "a", frame=2)


def test_a_missing_decoder_is_named(tmp_path, monkeypatch):
    series(tmp_path / "a")

    def undecodable(self):
        raise RuntimeError("no decoder")

    monkeypatch.setattr(pydicom.dataset.Dataset, "pixel_array", property(undecodable))
    with pytest.raises(MissingLibrary, match="pip install pylibjpeg"):
        dicom.read(tmp_path / "a")


def test_staged_series_take_their_spacing_from_positions(data):
    if not (data / "medical").is_dir():
        pytest.skip(f"no medical data in {data}")
    plain = dicom.read(data / "medical" / "dicom_ct_uncompressed")
    assert plain.spacing == pytest.approx((2.5, 0.898438, 0.898438)) and tuple(plain.data.shape) == (4, 1, 512, 512)
    volume = nifti.read(data / "medical" / "ct_chest_cmbcrc01068.nii.gz")
    halved = plain.data[:, 0].clamp(-1024, 3071).unfold(1, 2, 2).unfold(2, 2, 2).mean((-1, -2))
    where = volume.affine @ [0.0, 0.0, 0.0, 1.0]
    start = np.linalg.solve(plain.affine, where)[:3]
    assert start[:2] == pytest.approx([0.5, 0.5], abs=2e-3)  # the conversion averaged 2 x 2 pixels
    first = round(-start[2])
    assert float((halved - volume.data[first : first + 4, 0]).abs().max()) <= 0.5 + 1e-3


def test_staged_jpeg_2000_series(data):
    if not (data / "medical").is_dir():
        pytest.skip(f"no medical data in {data}")
    try:
        volume = dicom.read(data / "medical" / "dicom_ct_jpeg2000")
    except MissingLibrary as error:
        pytest.skip(str(error))
    assert volume.spacing == pytest.approx((2.0, 0.9765625, 0.9765625))  # its header says a thickness of 3 mm
    assert float(volume.data.min()) >= -1024 and float(volume.data.max()) > 200 and volume.orientation == "RAS"
