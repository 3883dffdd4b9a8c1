"""Backbone torsion angles of proteins as a domain of scidiff; the entry point in pyproject.toml names this class.

State: angles [2] on a torus, residue [1] of four classes (codec.py). Native object: `Residue`. Files: CSV.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from scidiff.core.errors import UsageError, nearest
from scidiff.domains.base import Domain, Metric, Records, Request, Samples, Verdict
from scidiff_ramachandran import basins, data, metrics
from scidiff_ramachandran.basins import Residue

if TYPE_CHECKING:
    from scidiff.core.space import Space
    from scidiff.core.spec import Context, Shape, State, StateSpec

GENERATED = "ramachandran_basins"
COUNT, SEED = 4000, 0


class RamachandranDomain(Domain):
    """Nothing is learned from the data but the frequencies of the classes, so there are no options."""

    name: ClassVar[str] = "ramachandran"
    title: ClassVar[str] = "Backbone torsion angles"
    extensions: ClassVar[tuple[str, ...]] = (".csv",)

    def options(self) -> dict[str, Any]:
        return {}

    def components(self) -> dict[str, tuple[Space, Shape]]:
        from scidiff_ramachandran.codec import COMPONENTS

        return dict(COMPONENTS)

    def fit(self, objects: Sequence[Residue]) -> tuple[RamachandranDomain, dict[str, Any]]:
        shares = [sum(r.kind == kind for r in objects) / len(objects) for kind in basins.CLASSES]
        return self, {"marginals": {"residue": shares}}

    def read(self, path: str | Path, split: str | None = None, **options: Any) -> Records:
        """Residues of a CSV file or of a run folder; `split` takes nine tenths of them or the rest."""
        if options:
            raise UsageError(f"The reader of residues has no option {next(iter(options))!r}.")
        return data.split_of(data.read(path), split)

    def dataset(self, files: Mapping[str, Path], reader: str, options: Mapping[str, Any], split: str | None,
                limit: int | None = None) -> Records:
        """The generated set, or the files of a card whose reader is "csv"."""
        if reader == "csv":
            return super().dataset(files, reader, options, split, limit)
        if reader != "generator":
            raise UsageError(f"This domain has no reader {reader!r}.", nearest(reader, ("generator", "csv")))
        objects = basins.draw(int(options.get("count", COUNT)), int(options.get("seed", SEED)))
        return data.split_of(Records(objects, [str(i) for i in range(len(objects))]), split)

    def write(self, samples: Samples, folder: Path) -> list[Path]:
        return data.write(samples, folder)

    def encode(self, objects: Sequence[Residue]) -> tuple[State, Context]:
        from scidiff.core.spec import Context
        from scidiff_ramachandran.codec import encode

        return encode(objects), Context.of(len(objects))

    def decode(self, state: State, ctx: Context) -> list[Residue]:
        from scidiff_ramachandran.codec import decode

        return decode(state)

    def template(self, request: Request) -> Context:
        from scidiff.core.spec import Context

        return Context(request.ids)

    def check(self, objects: Sequence[Residue]) -> list[Verdict]:
        out = []
        for residue in objects:
            basin, distance = basins.nearest_basin(residue)
            far = f"phi {residue.phi:.0f}, psi {residue.psi:.0f} lies {distance:.1f} standard deviations from the basin"
            valid = distance <= basins.REACH
            out.append(Verdict(valid, "" if valid else f"{far} nearest to it of {residue.kind} ({basin.name})"))
        return out

    def metrics(self, objects: Sequence[Residue], verdicts: Sequence[Verdict],
                reference: metrics.Reference | None = None) -> list[Metric]:
        return metrics.metrics(objects, verdicts, reference)

    def reference(self, name: str) -> metrics.Reference:
        if name != GENERATED:
            return super().reference(name)
        parts = [self.dataset({}, "generator", {}, split).objects for split in ("train", "test")]
        return metrics.reference_of(name, *parts)

    def view(self, objects: Sequence[Residue], verdicts: Sequence[Verdict], ids: Sequence[str],
             reference: metrics.Reference | None = None) -> dict[str, str | bytes]:
        from scidiff_ramachandran.view import pictures

        return pictures(objects, verdicts)

    def table(self, objects: Sequence[Residue], verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
        return [{"residue": r.kind, "phi_deg": round(r.phi, 3), "psi_deg": round(r.psi, 3)} for r in objects]

    def backbone_options(self, spec: StateSpec) -> dict[str, Any]:
        return {"classes": len(basins.CLASSES)}
