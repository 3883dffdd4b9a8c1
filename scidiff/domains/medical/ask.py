"""What is asked of a reconstruction, as plain values; the checks that need no file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scidiff.core.errors import UsageError, nearest

VOLUMES = ("auto", "none", "tv_z", "tv_3d", "perpendicular", "triplets")
NOISES = ("gaussian", "photons", "ring")
SIMULATIONS = ("same", "exact")
STUDY = ("problem", "question", "cohort_selection", "cohort")
READING = ("series", "plane", "modality", "cut", "split", "number", "size", "spacing", "finer", "axes", "centre")


@dataclass(frozen=True)
class Ask:
    """One reconstruction.

    input        a NIfTI file, a folder of DICOM, or the name of a medical data set: a volume to be measured
    sinogram, geometry, kspace   files of a real measurement, in place of input and operator
    operator     config of the operator with its words "plane", "volume" and "scan" (conf/operator)
    noise        {gaussian, ring: standard deviation as a share of the root mean square of the measurement;
                 photons: that enter each ray of a tomograph}
    simulation   same: measured by the operator that reconstructs; exact: line integrals of a phantom without pixels
    posterior    config of a posterior solver, or of a method without a prior (conf/posterior)
    steps        network calls of the solver (None: its own number)
    volume       {kind: see VOLUMES, weight, penalty, model, every, jump}: what couples the slices; {patch}: pixels of
                 the patches in which the prior sees a slice (None: whole slices)
    samples, seed, chunk (slices that the network sees at once), device, precision (32 or 64)
    condition    {name: value} of what the prior was trained to be told (contrast, pixel_mm); others are filled in
    frame, reading {see READING}: how the input is read
    size         average the slices to size x size first; None: the grid of the file
    force        go on where the intensities are far from what the prior knows, or the file has no orientation
    study        {see STUDY}: what only the user knows, for the card
    rivals       compute filtered back projection (or zero filling) and total variation beside it
    checkpoint   seconds between two stored steps
    """

    input: str | None = None
    sinogram: str | None = None
    geometry: str | Mapping[str, Any] | None = None
    kspace: str | None = None
    operator: Mapping[str, Any] | None = None
    noise: Mapping[str, Any] = field(default_factory=dict)
    simulation: str = "same"
    posterior: Mapping[str, Any] | None = None
    steps: int | None = None
    volume: Mapping[str, Any] = field(default_factory=dict)
    samples: int = 1
    seed: int = 0
    chunk: int | None = None
    device: str = "cpu"
    precision: int = 32
    condition: Mapping[str, Any] = field(default_factory=dict)
    frame: int | None = None
    reading: Mapping[str, Any] = field(default_factory=dict)
    size: int | None = None
    force: bool = False
    study: Mapping[str, Any] = field(default_factory=dict)
    rivals: bool = True
    checkpoint: float = 30.0

    def __post_init__(self) -> None:
        for name in ("samples", "chunk", "steps", "size"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise UsageError(f"The setting {name} must be a whole number above 0, not {value!r}.")
        for name, known in (("noise", NOISES), ("reading", READING), ("study", STUDY)):
            for key in getattr(self, name):
                if key not in known:
                    raise UsageError(f"A reconstruction has no setting {name}.{key}.", nearest(key, known))
        if self.simulation not in SIMULATIONS:
            raise UsageError(f"There is no simulation {self.simulation!r}.", nearest(self.simulation, SIMULATIONS))
        if self.kind not in VOLUMES:
            raise UsageError(f"There is no coupling of slices {self.kind!r}.", nearest(self.kind, VOLUMES))
        if self.precision not in (32, 64):
            raise UsageError(f"Volumes are reconstructed with precision 32 or 64, not {self.precision}.")
        self._one_source()

    def _one_source(self) -> None:
        given = [f"--{n}" for n in ("sinogram", "kspace") if getattr(self, n)]
        if len(given) == 2 or (given and self.input):
            what = f"the input {self.input}" if self.input else given[0]
            raise UsageError(f"A reconstruction has one source, not {what} and {given[-1]}.")
        if not given and not self.input:
            raise UsageError("Say what to reconstruct.", "Name a NIfTI file, a folder of DICOM or a data set, or a "
                             "measurement with --sinogram or --kspace.")
        if self.sinogram and not self.geometry:
            raise UsageError(f"The sinogram {self.sinogram} needs a geometry.", "Name it with --geometry geo.yaml.")
        if self.geometry and not self.sinogram:
            raise UsageError("A geometry describes a sinogram.", "Name it with --sinogram y.npy.")
        if given and self.measured_by:
            raise UsageError(f"{given[0]} brings its own operator, so {self.measured_by} cannot be chosen.",
                             "Leave --operator out.")
        if not given and not self.measured_by:
            raise UsageError("Say how it was measured.", "Choose an operator, such as --operator ct_sparse or "
                             "--operator mri; 'scidiff list operators' shows them.")
        if self.posterior is None or "_target_" not in self.posterior:
            raise UsageError("Say how the measurement is used.", "Choose one, such as --posterior dds or "
                             "--posterior fbp; 'scidiff list posteriors' shows them.")

    @property
    def measured_by(self) -> str:
        """The target of the operator's config; "" where none was chosen."""
        return str((self.operator or {}).get("_target_") or "")

    @property
    def kind(self) -> str:
        """What couples the slices."""
        return str(self.volume.get("kind") or "auto")

    @property
    def name(self) -> str:
        """The source in a word, for titles and folders."""
        text = self.input or self.sinogram or self.kspace or ""
        stem = Path(str(text)).name or str(text)
        for suffix in (".nii.gz", ".nii", ".npy", ".hdr", ".img"):
            stem = stem.removesuffix(suffix)
        return stem or "scan"
