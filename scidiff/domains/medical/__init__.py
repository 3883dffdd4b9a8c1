"""Slices of CT and MR volumes: priors of what a scan looks like, and reconstruction with them.

State: a slice [1, S, S] (or a block [1, D, S, S]) in the range of the prior, see `codec`. Native object: `Volume`, one
slice (D slices) with its place in mm; CT in HU, MR as a share of the 99.9th percentile of its volume's foreground. A
domain instance holds what a prior must remember of its data: modality and range, size and spacing of its planes, the
range of the training volumes (scans outside of it are refused), what its values and spectra look like, and the
conformal factors that were fitted on a validation subject. `reconstruct` turns measurements of whole volumes into
volumes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from scidiff.core.errors import UsageError
from scidiff.domains.base import Domain, Metric, Records, Request, Samples, Verdict

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from scidiff.core.space import Space
    from scidiff.core.spec import Context, Shape, State, StateSpec
    from scidiff.domains.medical.intensity import Known, Scale
    from scidiff.domains.medical.volume import Volume


class MedicalDomain(Domain):
    """modality: "CT" or "MR" (None: that of the data). scale: the range of CT values, ct or ct_wide. size: pixels along
    a side of a plane. depth: slices of a block (None: the prior knows single slices). spacing: of the training slices
    along (z, y, x) in mm. fields: of view, at which training slices are cut (`codec.cut`). contrasts: of MR, which a
    model can be conditioned on by name. known: the quantiles of the training volumes (`intensity.Known`). lowest,
    highest: of all training values, in the range of the prior. portrait, floors: of the training slices (`likeness`).
    conformal: {task: factor}, by how much intervals of posterior samples are widened.
    """

    name: ClassVar[str] = "medical"
    title: ClassVar[str] = "Volumes of CT and MR"
    requires: ClassVar[dict[str, str]] = {"nibabel": "pip install nibabel"}
    extensions: ClassVar[tuple[str, ...]] = (".nii", ".nii.gz")

    def __init__(self, modality: str | None = None, scale: str = "ct", size: int = 128, depth: int | None = None,
                 spacing: Sequence[float] = (), fields: Sequence[float] = (1.0,), contrasts: Sequence[str] = (),
                 known: Mapping[str, float] | None = None, lowest: float = 0.0, highest: float = 1.0,
                 portrait: Mapping[str, Any] | None = None, floors: Sequence[float] | None = None,
                 conformal: Mapping[str, float] | None = None) -> None:
        if modality not in (None, "", "CT", "MR"):
            raise UsageError(f"The modality is CT or MR, not {modality!r}.")
        if int(size) < 8 or (depth is not None and int(depth) < 2):
            raise UsageError(f"A prior knows planes of at least 8 pixels a side and blocks of at least two slices, not "
                             f"size {size} and depth {depth}.")
        self.modality, self.scale, self.size = modality or None, scale, int(size)
        self.depth = None if depth is None else int(depth)
        self.spacing = tuple(float(s) for s in spacing)
        self.fields = tuple(float(f) for f in fields)
        self.contrasts = tuple(str(c) for c in contrasts)
        self.known_range = dict(known) if known else None
        self.lowest, self.highest = float(lowest), float(highest)
        self.portrait = dict(portrait) if portrait else None
        self.floors = [float(f) for f in floors] if floors else None
        self.conformal = {str(k): float(v) for k, v in (conformal or {}).items()}

    @property
    def intensity(self) -> Scale:
        """From native values of slices to the range of the prior; UsageError before `fit`."""
        from scidiff.domains.medical.codec import own_scale

        if self.modality is None:
            raise UsageError("This medical domain knows no modality yet: fit it to slices, or load a model.")
        return own_scale(self.modality, self.scale)

    def scale_of(self, objects: Sequence[Volume]) -> Scale:
        """The scale of native slices: the domain's own, before `fit` that of their modality."""
        from scidiff.domains.medical.codec import own_scale

        found = {o.modality for o in objects}
        return own_scale(found.pop(), self.scale) if self.modality is None and len(found) == 1 else self.intensity

    @property
    def known(self) -> Known | None:
        """How far the training volumes reach, for `intensity.check_range`; None before `fit`."""
        from scidiff.domains.medical.intensity import Known

        return None if self.known_range is None else Known.from_json(self.known_range)

    @property
    def affine(self) -> np.ndarray:
        """Where a generated slice lies: the middle of the world, with the spacing of the training slices."""
        from scidiff.domains.medical.volume import centred_affine

        z, y, x = self.spacing or (1.0, 1.0, 1.0)
        return centred_affine((self.depth or 1, self.size, self.size), (z, y, x))

    def options(self) -> dict[str, Any]:
        return {"modality": self.modality, "scale": self.scale, "size": self.size, "depth": self.depth,
                "spacing": list(self.spacing), "fields": list(self.fields), "contrasts": list(self.contrasts),
                "known": self.known_range, "lowest": self.lowest, "highest": self.highest, "portrait": self.portrait,
                "floors": self.floors, "conformal": dict(self.conformal)}

    def components(self) -> dict[str, tuple[Space, Shape]]:
        from scidiff.core.space import Euclidean
        from scidiff.domains.medical.codec import X

        plane = (self.size, self.size)
        return {X: (Euclidean(), (1, *plane) if self.depth is None else (1, self.depth, *plane))}

    def fit(self, objects: Sequence[Volume]) -> tuple[MedicalDomain, dict[str, Any]]:
        """What is remembered of the training slices; none of it is a slice."""
        import torch

        from scidiff.domains.medical import likeness
        from scidiff.domains.medical.codec import X, encode, own_scale, subject
        from scidiff.domains.medical.intensity import Known

        if not objects:
            raise UsageError("There are no slices to learn from.")
        found = {o.modality for o in objects} - {""}
        modality = self.modality or (found.pop() if len(found) == 1 else None)
        if modality is None or found - {modality}:
            told = f"Some are {' and some '.join(sorted(found))}." if found else "Nobody says what they are."
            raise UsageError(f"The slices are not all of one modality. {told}",
                             "Set domain.options.modality=CT or MR, or data.options.modality for files.")
        size = int(objects[0].data.shape[-1])
        x = encode(objects, size, self.depth, own_scale(modality, self.scale))[0][X]
        planes = x.flatten(0, -3)
        owners = [subject(o.name) for o in objects for _ in range(self.depth or 1)]
        each = [planes[torch.tensor([owner == name for owner in owners])] for name in sorted(set(owners))]
        shares = likeness.rows(planes)
        spacing = torch.tensor([o.spacing for o in objects], dtype=torch.float64).median(0).values
        contrasts = sorted({o.contrast for o in objects} - {""}) or self.contrasts
        fitted = MedicalDomain(modality, self.scale, size, self.depth, [round(s, 4) for s in spacing.tolist()],
                               self.fields, contrasts, Known.of(each).to_json(), float(x.min()), float(x.max()),
                               likeness.Portrait.of(shares).to_json(), likeness.floors(shares, owners), self.conformal)
        return fitted, {}

    def read(self, path: str | Path, **options: Any) -> Records:
        """Slices of files; the fields of view serve training alone, other parts are seen whole."""
        from scidiff.domains.medical import files

        fields = self.fields if options.get("split") == "train" else (1.0,)
        given = {"modality": self.modality or "", "fields": fields, **options}
        return files.read(path, self.size, self.scale, self.depth, **given)

    def dataset(self, files: Mapping[str, Path], reader: str, options: Mapping[str, Any], split: str | None,
                limit: int | None = None) -> Records:
        """Slices of a data set, at the fields of view as in `read`."""
        from scidiff.domains.medical import sets
        from scidiff.domains.medical.codec import cut

        records = sets.dataset(files, reader, options, split)
        if not all(hasattr(one, "affine") for one in records.objects):
            raise UsageError("This data set holds raw k-space, no pictures to learn from.")
        objects = cut(records.objects, self.size, self.scale, self.depth, self.fields if split == "train" else (1.0,))
        return Records(objects[:limit], [o.name for o in objects][:limit], records.rejected)

    def properties(self, objects: Sequence[Volume], names: Sequence[str]) -> dict[str, Tensor]:
        """1 for slices of the contrast of that name and 0 for others; `pixel_mm`, the edge of a pixel."""
        import torch

        known = sorted({o.contrast for o in objects} - {""} | set(self.contrasts))
        out = {}
        for name in names:
            if name == "pixel_mm":
                out[name] = torch.tensor([o.spacing[2] for o in objects], dtype=torch.float32)
            elif name in known and all(o.contrast for o in objects):
                out[name] = torch.tensor([float(o.contrast == name) for o in objects])
            else:
                raise UsageError(f"Slices of these data cannot be told apart by {name!r}.",
                                 f"They know: {', '.join(['pixel_mm', *known])}.")
        return out

    def write(self, samples: Samples, folder: Path) -> list[Path]:
        from scidiff.domains.medical import files

        return files.write(samples, folder)

    def encode(self, objects: Sequence[Volume]) -> tuple[State, Context]:
        from scidiff.domains.medical import codec

        return codec.encode(objects, self.size, self.depth, self.intensity)

    def decode(self, state: State, ctx: Context) -> list[Volume]:
        from scidiff.domains.medical import codec

        return codec.decode(state, ctx, self.depth, self.intensity, self.modality or "", self.affine)

    def template(self, request: Request) -> Context:
        from scidiff.core.spec import Context

        asked = [c for c in self.contrasts if request.condition.get(c) == 1]
        return Context(request.ids, meta={"contrast": asked[0]} if len(asked) == 1 else {})

    def check(self, objects: Sequence[Volume]) -> list[Verdict]:
        from scidiff.domains.medical.soundness import verdict

        scale = self.scale_of(objects)
        return [verdict(o, scale, self.lowest, self.highest) for o in objects]

    def metrics(self, objects: Sequence[Volume], verdicts: Sequence[Verdict], reference: Any = None,
                seed: int = 0) -> list[Metric]:
        from scidiff.domains.medical.soundness import figures

        return figures(objects, verdicts, self, seed)

    def view(self, objects: Sequence[Volume], verdicts: Sequence[Verdict], ids: Sequence[str],
             reference: Any = None) -> dict[str, str | bytes]:
        from scidiff.domains.medical.view import sheets

        return sheets(objects, verdicts, ids, self.scale_of(objects))

    def table(self, objects: Sequence[Volume], verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
        from scidiff.domains.medical.soundness import row

        scale = self.scale_of(objects)
        return [row(o, scale) for o in objects]

    def backbone_options(self, spec: StateSpec) -> dict[str, Any]:
        """Dimensions and component of the network, for those that the config leaves open."""
        from scidiff.domains.medical.codec import X

        return {"dims": 2 if self.depth is None else 3, "component": X, "channels": 1}

    def reconstruct(self, model: Any, ask: Any, store: Any = None, progress: Any = None) -> Samples:
        """A volume from its measurement; see `scidiff.domains.medical.reconstruction`."""
        from scidiff.domains.medical.reconstruction import reconstruct

        return reconstruct(self, model, ask, store, progress)

    def prior_for(self, ask: Mapping[str, Any]) -> str | None:
        """The shipped prior for what is to be reconstructed, by the modality that its operator measures."""
        from scidiff.domains.medical.reconstruction import Ask, prior_for

        return prior_for(Ask(**ask), self.name)

    def examples(self) -> list[Volume]:
        """Eight slices of two phantoms: nobody's data."""
        from scidiff.domains.medical.codec import cut
        from scidiff.domains.medical.phantom import chest

        depth = 4 if self.depth is None else 2 * self.depth
        shape, edges = (depth, self.size, self.size), (120.0 / depth, 400.0 / self.size, 400.0 / self.size)
        made = [chest(seed).volume(shape, edges, finer=1, name=f"chest{seed}") for seed in (1, 2)]
        return cut(made, self.size, self.scale, self.depth)
