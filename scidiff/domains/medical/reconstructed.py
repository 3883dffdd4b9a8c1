"""A reconstruction as the other parts of the house take results: files, figures, pictures, a row a sample, a card.

    reconstruction.nii.gz   mean of the samples, in the values and with the header and affine of the scan
    std, low, high, error, invented .nii.gz     where there are any; fbp.nii.gz, tv.nii.gz ...: the rivals
    samples/s0000.nii.gz    each sample
    measurement.npy         what was measured
    dicom/                  the mean as a derived series, where a series was read
    samples.csv  card.md  card.json
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from scidiff.core.errors import ScidiffError
from scidiff.domains.base import Metric, Samples, Verdict
from scidiff.domains.medical import MedicalDomain, dicom, findings, nifti, shown
from scidiff.domains.medical.card import NOT_CLINICAL, RECONSTRUCTION, Card, merged, of_run
from scidiff.domains.medical.dicom import DicomSource
from scidiff.domains.medical.result import Reconstruction
from scidiff.domains.medical.volume import Volume
from scidiff.store import atomic

EXPLAINED = {
    "reconstruction.nii.gz": "the reconstruction (mean of the samples), with header and affine of the scan",
    "std.nii.gz": "standard deviation of the samples", "error.nii.gz": "reconstruction minus truth",
    "low.nii.gz": "lower end of the 90 % interval", "high.nii.gz": "upper end of the 90 % interval",
    "invented.nii.gz": "the part that the measurement does not see: the prior put it there",
    "truth.nii.gz": "what was measured, where the input is not a file with these voxels",
    "measurement.npy": "the measurement", "samples": "each sample of the posterior", "dicom": "a derived DICOM series",
    "fbp.nii.gz": "filtered back projection of the same measurement", "tv.nii.gz": "total variation likewise",
    "zero-filled.nii.gz": "zero filling likewise", "cgls.nii.gz": "least squares likewise",
}


class Reconstructed(MedicalDomain):
    """The medical domain as it judges and writes one `found` reconstruction; its objects are the samples."""

    title: ClassVar[str] = f"Reconstruction of a volume. {NOT_CLINICAL}"
    explained: ClassVar[Mapping[str, str]] = EXPLAINED

    def __init__(self, domain: MedicalDomain, found: Reconstruction) -> None:
        super().__init__(**domain.options())
        self.found = found

    def check(self, objects: Sequence[Volume]) -> list[Verdict]:
        return [findings.verdict(self.found.sample(i), self.found) for i in range(len(objects))]

    def metrics(self, objects: Sequence[Volume], verdicts: Sequence[Verdict], reference: Any = None,
                seed: int = 0) -> list[Metric]:
        return findings.figures(self.found, seed)

    def view(self, objects: Sequence[Volume], verdicts: Sequence[Verdict], ids: Sequence[str],
             reference: Any = None) -> dict[str, str | bytes]:
        return shown.pictures(self.found)

    def table(self, objects: Sequence[Volume], verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
        return [findings.row(self.found.sample(i), self.found) for i in range(len(objects))]

    def write(self, samples: Samples, folder: Path) -> list[Path]:
        found, scene = self.found, self.found.scene
        out = [nifti.write(found.volume(found.mean), folder / "reconstruction.nii.gz")]
        spreads = {"std": found.std, "invented": found.invented,
                   "error": None if scene.truth is None else found.mean - scene.truth}
        out += [nifti.write(found.width(x), folder / f"{name}.nii.gz", window=True)
                for name, x in spreads.items() if x is not None]
        values = {"low": found.low, "high": found.high, **{n.lower(): x for n, x in found.rivals.items()}}
        if scene.truth is not None and scene.volume.source is None:
            values["truth"] = scene.truth
        out += [nifti.write(found.volume(x), folder / f"{name}.nii.gz") for name, x in values.items() if x is not None]
        out += [nifti.write(volume, atomic.ensure_folder(folder / "samples") / f"{name}.nii.gz")
                for name, volume in zip(samples.ids, samples.objects, strict=True)]
        with atomic.writing(folder / "measurement.npy") as temporary, open(temporary, "wb") as file:
            np.save(file, scene.y.cpu().numpy(), allow_pickle=False)
        out.append(folder / "measurement.npy")
        if isinstance(scene.volume.source, DicomSource) and len(scene.volume.data) == len(scene.volume.source.headers) \
                and np.array_equal(scene.volume.affine, scene.volume.source.tensor_affine):
            told = f"{found.method} by scidiff from a {'simulated ' * scene.simulated}measurement. {NOT_CLINICAL}"
            out.append(dicom.write(found.volume(found.mean), folder / "dicom", f"{found.method} reconstruction", told))
        out.append(atomic.write_table(folder / "samples.csv", samples.table()))
        return [*out, *self.card(folder).write(folder)]

    def card(self, folder: Path | None = None) -> Card:
        """The model card of this reconstruction; what the run folder knows of the machine goes into it."""
        found, scene = self.found, self.found.scene
        ratio = findings.against_noise(found.mean, scene)
        residual = {"|Ax - y| / |y|": round(findings.misfit(found.mean, scene), 6)}
        if ratio is not None:
            residual["|Ax - y| in units of the noise"] = round(ratio, 4)
        record = {
            **scene.about, "posterior": found.method, "prior": found.prior, "residual": residual,
            "invented": found.share, "shift": " ".join(found.notes), "seconds": found.seconds,
            "settings": found.settings, "tier": "1: code, data of the run, versions and evaluation, where the input "
            "may be shared; else 2B: code", "environment": _read(folder, "environment.json"),
            "command": _text(folder, "command.txt"),
        }
        if scene.truth is not None:
            record["metrics"] = {m.name: round(m.value, 4) for m in findings.figures(found) if m.value is not None}
        told = merged(of_run(record), {"study": found.study}, {} if found.learned else without_prior(found.method))
        return Card(RECONSTRUCTION, f"Reconstruction of {scene.volume.name} by {found.method}", told)


def without_prior(method: str) -> dict[str, dict[str, Any]]:
    """What a card says where nothing was learned."""
    none = "None: nothing was learned from data."
    return {
        "label": {"summary": f"A reconstruction by {method}, without a learned prior.", "developed": none,
                  "training_data": none, "biases": "Those of the method: smoothness, streaks, or flat regions.",
                  "limitations": "What the measurement does not determine is filled in by the method's own rule.",
                  "risks": "Artefacts can look like structure; small findings can vanish.",
                  "recommendations": "Compare with a second method and with more data."},
        "data": {"model": {"method": method}, "independence": none},
        "examination": {"invented": "None by a prior: there is none."},
        "reproducibility": {"checksum": "None: there is no prior."},
    }


def _read(folder: Path | None, name: str) -> dict[str, Any]:
    if folder is None or not (folder / name).is_file():
        return {}
    try:
        return atomic.read_json(folder / name)
    except ScidiffError:
        return {}


def _text(folder: Path | None, name: str) -> str:
    file = None if folder is None else folder / name
    return file.read_text(encoding="utf-8").strip() if file is not None and file.is_file() else ""
