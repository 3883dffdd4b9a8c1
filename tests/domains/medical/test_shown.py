"""Pictures of reconstructions: pixels, hanging, letters, and that every sheet says what it is not for."""

from __future__ import annotations

import base64
import re
import zlib
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from scidiff.domains.medical import shown
from scidiff.domains.medical.intensity import CT
from scidiff.domains.medical.operators.ct import ParallelCT
from scidiff.domains.medical.result import Reconstruction
from scidiff.domains.medical.sampled import Archive
from scidiff.domains.medical.scene import Scene
from scidiff.domains.medical.volume import Volume, centred_affine

SHAPE = (4, 6, 8)


def pixels(content):
    """The inverse of `shown.png`."""
    size, parts, at = None, b"", 8
    while at < len(content):
        length, kind = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8]
        body = content[at + 8 : at + 8 + length]
        assert zlib.crc32(kind + body) == int.from_bytes(content[at + 8 + length : at + 12 + length], "big")
        if kind == b"IHDR":
            size = int.from_bytes(body[4:8], "big"), int.from_bytes(body[:4], "big"), {0: 1, 2: 3}[body[9]]
        parts += body if kind == b"IDAT" else b""
        at += 12 + length
    rows, columns, channels = size
    lines = np.frombuffer(zlib.decompress(parts), np.uint8).reshape(rows, 1 + columns * channels)
    assert (lines[:, 0] == 0).all()
    return lines[:, 1:].reshape(rows, columns, channels).squeeze()


def found(affine=None, notes=()):
    x = torch.rand(SHAPE[0], 1, *SHAPE[1:], generator=torch.Generator().manual_seed(0))
    affine = centred_affine(SHAPE, (3.0, 1.0, 2.0)) if affine is None else affine
    operator = ParallelCT(SHAPE[1:], views=3)
    scene = Scene(Volume(CT.decode(x), affine, "CT", "toy"), x, CT, operator, operator(x), 0.0)
    return Reconstruction(scene, "DDS", 2, Archive(), x * 0.9, 0.1 * x, notes=list(notes), rivals={"FBP": x + 0.1})


@pytest.mark.parametrize("shape", [(5, 7), (3, 4, 3)])
def test_png_holds_the_pixels(shape):
    values = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert np.array_equal(pixels(shown.png(values)), values)


def test_colours_lie_between_their_ends():
    assert shown.grey(np.array([-1.0, 0.0, 0.5, 2.0]), 0, 1).tolist() == [0, 0, 128, 255]
    ends = shown.coloured(np.array([-1.0, 0.0, 1.0]), -1, 1, shown.ERROR)
    assert ends.tolist() == [[round(255 * c) for c in colour] for colour in shown.ERROR]


def test_axial_slices_hang_with_the_right_on_the_left_and_the_front_on_top():
    x = torch.zeros(4, 1, 6, 8)
    x[:, :, 5, 7] = 1.0  # the front-most row, the right-most column
    x[3, :, 0, 0] = 2.0  # head, back, left
    axial, coronal, sagittal = shown.hangings(Volume(x, centred_affine(SHAPE, (1.0, 1.0, 1.0))))
    assert axial.slice(x, 0)[0, 0] == 1.0 and axial.edges == ("R", "L", "A", "P")
    assert coronal.slice(x, 0)[0, 7] == 2.0 and coronal.edges == ("R", "L", "S", "I")
    assert sagittal.slice(x, 0)[0, 5] == 2.0 and sagittal.edges == ("A", "P", "S", "I")
    assert [h.slice(x, 0).shape for h in (axial, coronal, sagittal)] == [(6, 8), (4, 8), (4, 6)]


def test_planes_are_found_by_the_world_and_not_by_the_order_of_axes():
    """Slices across the front: the first axis of the tensor is A, the second S, the third R."""
    affine = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    planes = {h.name: h.across for h in shown.hangings(Volume(torch.rand(4, 1, 6, 8), affine))}
    assert planes == {"coronal": 0, "axial": 1, "sagittal": 2}


def test_sheets_hold_truth_rivals_ours_error_and_spread():
    pictures = shown.pictures(found(notes=["The noise is taken for zero, & <that> matters."]))
    assert [name.split()[0] for name in pictures] == ["What", "Axial", "Coronal", "Sagittal", "Axis"]
    for caption, text in pictures.items():
        root = ElementTree.fromstring(text)
        assert root.tag.endswith("svg")
        assert caption == "What to mind" or "Not for clinical use" in text
    axial = pictures["Axial slice 2: truth, fbp, dds, error, std"]
    images = [base64.b64decode(x) for x in re.findall(r"base64,([^\"]+)", axial)]
    assert len(images) == 5
    truth = found().scene.truth[2, 0].numpy()
    assert np.array_equal(pixels(images[0]), shown.grey(np.flip(truth, (0, 1)), 0, 1))
    error = pixels(images[3])
    assert error.shape == (6, 8, 3) and (error[..., 2] >= error[..., 0]).all(), "ours is darker: blue everywhere"
    assert "zero, &amp; &lt;that&gt; matters" in pictures["What to mind"]


def test_the_axis_order_is_drawn_with_lengths():
    text = shown.axes(found().scene.volume)
    assert "x: columns, axis 3 grows to the patient's right: 8 of 2 mm" in text
    assert "z: slices, axis 0 grows to the patient's head: 4 of 3 mm" in text
