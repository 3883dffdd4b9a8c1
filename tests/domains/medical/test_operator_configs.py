"""Every operator of the configs is built from its plain settings, measures, and follows its settings."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import pytest
import torch

from scidiff import config
from scidiff.core.errors import UsageError
from scidiff.core.operator import LinearOperator, dot
from scidiff.store import targets

NAMES = sorted(f.stem for f in (Path(__file__).parents[3] / "conf" / "operator").glob("*.yaml") if f.stem != "none")
SIZES = {"plane": (16, 12), "volume": (4, 16, 12)}


@cache
def composed(name):
    return config.compose("reconstruct", [f"operator={name}"])["operator"]


def made(name, **changes):
    """The operator of a scan of SIZES with pixels of 1.5 mm."""
    settings = {**composed(name), **changes}
    given = {"size": SIZES[settings["size"]]}
    if "spacing_mm" in settings:
        given["spacing_mm"] = 1.5
    return targets.build(settings, **given)


@pytest.mark.parametrize("name", NAMES)
def test_every_config_builds_an_operator_that_measures(name):
    operator = made(name)
    assert isinstance(operator, LinearOperator)
    draw = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, *shape, generator=draw, dtype=torch.complex128 if kind.is_complex else torch.float64)
            for shape, kind in ((operator.in_shape, operator.dtype), (operator.out_shape, operator.out_dtype)))
    scale = (dot(operator(x), operator(x)) * dot(y, y)).sqrt()
    assert bool(((dot(operator(x), y) - dot(x, operator.adjoint(y))).abs() < 1e-10 * scale).all())
    assert bool((scale > 0).all())


@pytest.mark.parametrize("name", NAMES)
def test_every_config_says_what_it_takes_from_the_scan(name):
    settings, operator = composed(name), made(name)
    assert settings["size"] in SIZES and settings.get("spacing_mm", "scan") == "scan"
    assert operator.slice_separable == (settings["size"] == "plane")


def test_settings_reach_their_operator():
    assert made("ct_sparse", views=7).out_shape[1] == 7 and made("ct_sparse").out_shape[1] == 20
    assert made("ct_sparse", angles=[0, 45, 90], views=None).angles.tolist() == [0.0, 45.0, 90.0]
    assert made("ct_limited").angles.tolist() == list(range(90))
    assert made("ct_fan", views=9).angles[1] == 40.0
    assert made("mri", acceleration=2).out_shape == (1, 16 * 6)
    assert not made("mri").dtype.is_complex and made("mri", real=False).dtype.is_complex
    assert made("mri_multicoil").out_shape[0] == 8
    assert made("mri_poisson", acceleration=6).out_shape == (8, 32)
    assert made("mri_radial", spokes=5, coils=2).out_shape == (2, 5 * 32)
    assert made("superresolution_z", factor=2).out_shape == (2, 1, 16, 12)
    assert made("haze", gains=[1, 2, 3]).in_shape == (3, 1, 16, 12)
    assert made("inpainting", share=1).out_shape == (192,)
    views = made("ct_sparse", views=180)
    lost = math.prod(views.out_shape) - math.prod(made("metal_trace").out_shape)
    assert 180 <= lost <= 3 * 180  # the implant of the default holds a pixel or two of 12


def test_words_on_the_command_line_reach_their_operator():
    words = ["operator=mri_multicoil", "operator.acceleration=3", "operator.kind=equispaced", "operator.calibration=4"]
    operator = targets.build(config.compose("reconstruct", words)["operator"], size=(24, 30))
    assert operator.out_shape == (8, 24 * 10) and bool(operator.mask[:, 13:17].all())


def test_a_source_and_a_detector_are_settings_too():
    place = "scidiff.domains.medical.operators.rays"
    settings = dict(composed("ct_fan"))
    settings["source"] = {"_target_": f"{place}.Source", "radius": 100.0, "to_detector": 180.0, "curved": True}
    settings["detector"] = {"_target_": f"{place}.Detector", "cells": 33, "spacing": 2.0, "offset": 0.5}
    operator = targets.build(settings, size=(16, 12), spacing_mm=1.5)
    assert operator.source.curved and operator.out_shape == (1, 60, 33)


def test_a_wrong_setting_is_one_sentence():
    with pytest.raises(UsageError, match=r"no setting 'operator\.aceleration'"):
        config.compose("reconstruct", ["operator=mri", "operator.aceleration=4"])
    with pytest.raises(UsageError, match="calibration centre alone"):
        made("mri", calibration=10)
    with pytest.raises(UsageError, match="cannot be averaged"):
        made("superresolution", factor=5)
