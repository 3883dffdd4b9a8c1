"""What a reconstruction starts from: a grid of voxels, an operator, its measurement, and the truth where it is known.

A given volume is measured by an operator (simulated, with noise); a sinogram or k-space was measured already. Inside,
values are x in the range of the prior (`intensity`); `scale` leads back to the values of the file.

Real k-space of a complex image is seen as that of a real one: the phase of the image, which is smooth, is taken from
the fully measured centre and goes into the coil maps. Its scale is the 99.9th percentile of a least-squares image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from scidiff.core.errors import UsageError
from scidiff.core.operator import LinearOperator, least_squares
from scidiff.domains.medical import measurements
from scidiff.domains.medical.ask import Ask
from scidiff.domains.medical.dicom import DicomSource
from scidiff.domains.medical.inputs import cut_of, volume_of
from scidiff.domains.medical.intensity import CT, Scale, check_range, magnitude_scale, scale_for
from scidiff.domains.medical.memory import afford, afford_measurement
from scidiff.domains.medical.noise import Gaussian, Poisson, Ring
from scidiff.domains.medical.operators.coils import espirit
from scidiff.domains.medical.operators.cone import ConeCT
from scidiff.domains.medical.operators.ct import ViewTable
from scidiff.domains.medical.operators.mri import MRI, ifft2c
from scidiff.domains.medical.phantom import Phantom
from scidiff.domains.medical.prior import Facts
from scidiff.domains.medical.streaming import slabs
from scidiff.domains.medical.volume import Volume, at_size, centred_affine
from scidiff.store import targets

HU = -200.0  # no magnitude lies below
WATER = 0.0193  # attenuation of water at 70 keV, 1/mm
OWN = {"plane": "size", "volume": "size", "scan": "spacing_mm"}  # words of conf/operator, and what they stand for


@dataclass(frozen=True, eq=False)
class Scene:
    """volume: the grid, with the values of the file (zeros where nothing but a measurement is given). truth
    [Z, 1, Y, X] in the range of the prior, or None. y [Z, *out_shape], or [1, *out_shape] of an operator of volumes;
    sigma: standard deviation of its numbers. notes: sentences for whoever looks at the result. about: of the model card
    (`card.of_run`).
    """

    volume: Volume
    truth: Tensor | None
    scale: Scale
    operator: LinearOperator
    y: Tensor
    sigma: float
    notes: list[str] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        return len(self.volume.data)

    @property
    def simulated(self) -> bool:
        return self.truth is not None

    def values(self, x: Tensor) -> Tensor:
        """x in the values of the file."""
        return self.scale.decode(x)


def scene_of(ask: Ask, facts: Facts) -> Scene:
    """Reads what was asked for and measures it where it was not measured; UsageError for all that cannot be."""
    if ask.sinogram:
        return _sinogram(ask, facts)
    if ask.kspace:
        return _kspace(ask)
    return _simulated(ask, facts)


# -- measured


def _sinogram(ask: Ask, facts: Facts) -> Scene:
    assert ask.sinogram is not None and ask.geometry is not None
    found = measurements.read_sinogram(ask.sinogram, ask.geometry)
    scale = CT if facts.modality == "MR" else scale_for(torch.zeros(1), "CT", facts.scale)
    y, sigma = found.scaled(scale)
    depth = len(y) if found.operator.slice_separable else found.operator.in_shape[0]
    afford(depth * math.prod(found.operator.in_shape[-2:]) * 4 * 10, f"A volume of {depth} slices")
    grid = Volume(torch.zeros(depth, 1, *found.operator.in_shape[-2:]), found.affine, "CT", ask.name)
    notes = [] if found.water_per_mm else ["The geometry states no attenuation of water, so the sinogram is taken for "
                                           "sums of the prior's own values."]
    about = {"origin": "sinogram (.npy) with its geometry", "preprocessing": "Line integrals"}
    return _measured(grid, scale, found.operator, y, sigma, notes, about, ask)


def _kspace(ask: Ask) -> Scene:
    assert ask.kspace is not None
    options = {k: ask.reading[k] for k in ("axes", "centre") if ask.reading.get(k) is not None}
    found = measurements.read_kspace(ask.kspace, **options)
    afford(found.y.nelement() * 8 * 6, f"k-space of {' x '.join(map(str, found.y.shape))}")
    maps = espirit(found.y)[0] if found.y.shape[1] > 1 else torch.ones_like(found.y)
    phase = smooth_phase(found, maps)
    operator = MRI(found.mask, maps * phase, real=True)
    y = operator.samples(found.y)
    level = magnitude_scale(least_squares(operator, y, None, 10).clamp(min=0.0))
    depth = len(y)
    grid = Volume(torch.zeros(depth, 1, *operator.size), centred_affine((depth, *operator.size), _edges(ask)), "MR",
                  ask.name)
    notes = ["The phase of the image was estimated from the centre of k-space; the picture shows the magnitude."]
    if ask.reading.get("spacing") is None:
        notes.append("K-space says nothing about lengths and directions: voxels are written as 1 mm "
                     "(reading.spacing=[z,y,x] in mm), and the letters at the edges of the pictures are a guess.")
    about = {"origin": "k-space (.npy)", "preprocessing": "Coil maps by ESPIRiT; smooth phase moved into the maps; "
             "scaled to the 99.9th percentile"}
    return _measured(grid, level, operator, y / level.high, 0.0, notes, about, ask)


def _edges(ask: Ask) -> tuple[float, float, float]:
    given = ask.reading.get("spacing") or (1.0, 1.0, 1.0)
    if isinstance(given, (int, float)) or len(given) != 3 or min(given) <= 0:
        raise UsageError(f"reading.spacing has three positive edges (z, y, x) in mm, not {given}.")
    return float(given[0]), float(given[1]), float(given[2])


def smooth_phase(found: measurements.KSpace, maps: Tensor) -> Tensor:
    """exp(i phase) of the image [Z, 1, Y, X], from the fully measured centre under a Hann window."""
    rows, columns = (max(n, 1) for n in found.calibration)
    window = torch.zeros(found.y.shape[-2:])
    top, left = window.shape[0] // 2 - rows // 2, window.shape[1] // 2 - columns // 2
    hann = [torch.hann_window(n + 2, periodic=False)[1:-1] for n in (rows, columns)]
    window[top : top + rows, left : left + columns] = hann[0][:, None] * hann[1]
    coarse = (ifft2c(found.y * window) * maps.conj()).sum(1, keepdim=True)
    return torch.where(coarse.abs() > 0, torch.sgn(coarse), torch.ones_like(coarse))


def _measured(grid: Volume, scale: Scale, operator: LinearOperator, y: Tensor, sigma: float, notes: list[str],
              about: dict[str, Any], ask: Ask) -> Scene:
    told = {"operator": repr(operator), "noise": f"standard deviation {sigma:.3g}" if sigma else "unknown",
            "measurement": list(y.shape), "simulated": False, "subjects": [ask.name], **about}
    return Scene(grid, None, scale, operator, y.float() if not y.is_complex() else y, sigma, notes, told)


# -- simulated


def _simulated(ask: Ask, facts: Facts) -> Scene:
    read, phantom = volume_of(ask)
    volume = cut_of(read, ask.reading.get("cut"))
    told = str(ask.reading.get("modality") or volume.modality or facts.modality)
    modality = told or modality_of(ask) or ("CT" if not volume.data.is_complex() and bool((volume.data < HU).any())
                                            else "MR")
    if facts.modality and volume.modality and modality != facts.modality and not ask.force:
        raise UsageError(f"{volume.name} is a volume of {modality}, and the prior was made for {facts.modality}.",
                         "Choose another prior with --from; --force reconstructs all the same.")
    notes = []
    if not told:
        unit = "HU" if modality == "CT" else "magnitudes"
        notes.append(f"The file does not say what it holds; it was taken for {modality} in {unit} (reading.modality).")
    if volume.data.is_complex():
        volume = volume.like(volume.data.abs())
        notes.append("The file is complex; its magnitude was measured.")
    if ask.size is not None and volume.size != (ask.size, ask.size):
        before = volume.size
        volume = at_size(volume, ask.size, fill=CT.low if modality == "CT" else 0.0)
        notes.append(f"Slices of {before[0]} x {before[1]} pixels were averaged to {ask.size} x {ask.size}.")
    if isinstance(read.source, DicomSource) and (volume.data.shape != read.data.shape):
        notes.append("The voxels are no longer those of the series, so no derived series is written.")
    volume = replace(volume, modality=modality)
    scale = scale_for(volume.data, modality, facts.scale)
    if facts.known is not None:
        notes += [n for n in [check_range(volume.data, scale, facts.known, volume.name, ask.force)] if n]
    lost = scale.lost(volume.data)
    if lost > 0.001:
        notes.append(f"{100 * lost:.1f} % of the values lie above {scale.high:g} HU and were cut.")
    truth = scale.encode(volume.data)
    operator = operator_of(ask, volume)
    noise, words = noise_of(ask, operator, scale)
    clean = _exact(phantom, operator, volume, scale, ask) if ask.simulation == "exact" else measured(operator, truth)
    y, sigma = noisy(clean, noise, ask.seed)
    about = {"operator": {"name": repr(operator), **_plain(ask.operator)}, "noise": words, "measurement": list(y.shape),
             "simulated": True, "subjects": [volume.name], "origin": _origin(volume, phantom),
             "preprocessing": f"x = (value - {scale.low:g}) / {scale.width:g}{', cut to 0..1' * scale.clip}"}
    return Scene(volume, truth, scale, operator, y, sigma, notes, about)


def modality_of(ask: Ask) -> str:
    """What an operator measures: CT or MR, "" where it says neither."""
    return "CT" if any(w in ask.measured_by for w in (".ct.", ".cone.", "metal_trace")) else \
        "MR" if any(w in ask.measured_by for w in (".mri.", ".nufft.")) else ""


def operator_of(ask: Ask, volume: Volume) -> LinearOperator:
    """The operator of the config for the grid of a volume."""
    node = {k: v for k, v in (ask.operator or {}).items() if k != "name"}
    z, y, x = volume.spacing
    shape = {"plane": list(volume.size), "volume": [len(volume.data), *volume.size]}
    own: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, str) and value in OWN and OWN[value] == key:
            whole = node.get("size") == "volume"
            own[key] = shape[value] if key == "size" else [z, y, x] if whole else [y, x]
    afford_measurement(node, volume)
    operator = targets.build(node, **own)
    if not isinstance(operator, LinearOperator):
        raise UsageError(f"{ask.measured_by} is no measurement operator.")
    plane, whole = (1, *volume.size), (len(volume.data), 1, *volume.size)
    if operator.in_shape != (plane if operator.slice_separable else whole):
        raise UsageError(f"{operator} does not measure volumes of {' x '.join(map(str, whole))} values, but "
                         f"{' x '.join(map(str, operator.in_shape))}.",
                         "Leave operator.size at its word, or name another operator.")
    if operator.dtype.is_complex:
        raise UsageError(f"{operator} measures complex images, and the volume is real.", "Set operator.real=true.")
    return operator


Noises = list[Any]


def noise_of(ask: Ask, operator: LinearOperator, scale: Scale) -> tuple[Noises, str]:
    """Functions of the root mean square of a measurement that give noise and its standard deviation, and words."""
    gaussian, ring, photons = (float(ask.noise.get(k) or 0.0) for k in ("gaussian", "ring", "photons"))
    found, words = [], []
    if photons:
        if not isinstance(operator, (ViewTable, ConeCT)):
            raise UsageError(f"{operator} counts no photons.", "Take noise.gaussian instead.")
        law = Poisson(photons, WATER * scale.width / 1000.0)
        found.append(lambda y: (law, float(law.std(y.double()).square().mean().sqrt())))
        words.append(f"Poisson counts of {photons:g} photons a ray")
    if gaussian:
        found.append(lambda y: (Gaussian(gaussian * _rms(y)), gaussian * _rms(y)))
        words.append(f"Gaussian of {100 * gaussian:g} % of the root mean square")
    if ring:
        found.append(lambda y: (Ring(ring * _rms(y)), ring * _rms(y)))
        words.append(f"rings of {100 * ring:g} % of the root mean square")
    return found, ", ".join(words) or "none"


def _rms(y: Tensor) -> float:
    return float(y.abs().double().square().mean().sqrt()) / (math.sqrt(2.0) if y.is_complex() else 1.0)


def measured(operator: LinearOperator, x: Tensor) -> Tensor:
    """A x of a volume [Z, 1, Y, X], slab by slab."""
    if not operator.slice_separable:
        return operator.forward(x[None])
    return torch.cat([operator.slab(a, b).forward(x[a:b]) for a, b in slabs(len(x))])


def noisy(y: Tensor, noises: Noises, seed: int) -> tuple[Tensor, float]:
    """(noisy y, its standard deviation), each noise taken from the clean measurement."""
    out, square, ids = y, 0.0, torch.arange(len(y))
    for made in noises:
        law, sigma = made(y)
        out, square = law(out, seed, ids), square + sigma**2
    return out, math.sqrt(square)


def _exact(phantom: Phantom | None, operator: LinearOperator, volume: Volume, scale: Scale, ask: Ask) -> Tensor:
    if phantom is None or not isinstance(operator, ViewTable):
        raise UsageError("Exact line integrals exist for phantoms seen by parallel or fan beams alone.",
                         "Leave simulation=exact out.")
    if ask.size is not None:
        raise UsageError("An exact sinogram belongs to the phantom's own grid.", "Set reading.size instead of --size.")
    depths = volume.affine[2, 3] + volume.affine[2, 2] * torch.arange(len(volume.data)).double()
    return phantom.sinogram(operator, depths, scale)


def _origin(volume: Volume, phantom: Phantom | None) -> str:
    if phantom is not None:
        return "A chest of ellipsoids, drawn from a seed"
    kind = type(volume.source).__name__.removesuffix("Source")
    return {"Nifti": "NIfTI", "Dicom": "DICOM series"}.get(kind, "a volume")


def _plain(node: Mapping[str, Any] | None) -> dict[str, Any]:
    """The settings of a config that are values, for the card."""
    return {k: v for k, v in (node or {}).items() if isinstance(v, (int, float, bool)) and not k.startswith("_")}
