"""Inorganic crystals: elements, fractional coordinates and a cell.

State: types [N] of K elements; frac [N, 3] on the torus of period 1; lattice [d], the cell in a chart (lattice.py),
standardised with mean and std of the set. Native object: `pymatgen.core.Structure`. A domain instance holds elements,
largest size, size histogram, chart and standard of the set it was fitted to.

task: "dng" makes crystals of compositions of its own, "csp" predicts the structure of a given composition, whose types
are clamped (`Context.known`), "both" does either. What may be asked for is said in request.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from scidiff.core.errors import UsageError, nearest
from scidiff.domains.base import Domain, Metric, Records, Request, Samples, Verdict

if TYPE_CHECKING:
    from pymatgen.core import Structure
    from torch import Tensor

    from scidiff.core.space import Space
    from scidiff.core.spec import Context, Shape, State, StateSpec
    from scidiff.domains.crystal.codec import CrystalCodec
    from scidiff.domains.crystal.reference import Reference

TASKS = ("both", "csp", "dng")
_COMPUTED = ("density", "volume_per_atom", "num_atoms", "num_elements")


class CrystalDomain(Domain):
    """elements: symbols of the types; n_max: most atoms; sizes: histogram by atoms; chart: of the cell (polar6,
    matrix9, lengths_angles, ltri6); task: both, csp or dng; standard: mean and std of the chart's numbers."""

    name: ClassVar[str] = "crystal"
    title: ClassVar[str] = "Inorganic crystals"
    requires: ClassVar[dict[str, str]] = {"pymatgen": "pip install pymatgen", "spglib": "pip install spglib",
                                          "ase": "pip install ase"}
    extensions: ClassVar[tuple[str, ...]] = (".cif", ".extxyz", ".vasp", ".npz", ".zip")

    def __init__(self, elements: Sequence[str] = (), n_max: int = 0, sizes: Sequence[float] = (),
                 chart: str | None = None, task: str | None = None,
                 standard: Mapping[str, Sequence[float]] | None = None) -> None:
        from scidiff.domains.crystal.formula import element
        from scidiff.domains.crystal.lattice import chart as named

        self.elements, self.n_max = tuple(element(str(e)) for e in elements), int(n_max)
        self.sizes, self.chart, self.task = tuple(sizes), named(chart or "polar6").name, task or TASKS[0]
        self.standard = None if standard is None else {k: [float(x) for x in v] for k, v in standard.items()}
        if self.task not in TASKS:
            raise UsageError(f"There is no crystal task {self.task!r}.", nearest(self.task, TASKS))
        if len(set(self.elements)) != len(self.elements):
            raise UsageError("The elements of a crystal domain are given without repetition.")
        if len(self.sizes) > self.n_max + 1:
            raise UsageError(f"The size histogram has {len(self.sizes)} entries, but the largest size is {self.n_max}.")

    @property
    def codec(self) -> CrystalCodec:
        """The codec of this set; UsageError before `fit`."""
        from scidiff.domains.crystal.codec import CrystalCodec

        if not self.elements:
            raise UsageError("This crystal domain knows no elements yet: fit it to crystals, or load a model.")
        return CrystalCodec(self.elements, self.n_max, self.chart, self.standard)

    def options(self) -> dict[str, Any]:
        return {"elements": list(self.elements), "n_max": self.n_max, "sizes": list(self.sizes), "chart": self.chart,
                "task": self.task, "standard": self.standard}

    def components(self) -> dict[str, tuple[Space, Shape]]:
        from scidiff.core.space import Categorical, Euclidean, Torus
        from scidiff.domains.crystal.lattice import chart

        return {"types": (Categorical(classes=max(len(self.elements), 2)), ("N",)), "frac": (Torus(1.0), ("N", 3)),
                "lattice": (Euclidean(), (chart(self.chart).dim,))}

    def fit(self, objects: Sequence[Structure]) -> tuple[CrystalDomain, dict[str, Any]]:
        """Elements (unless given) in order of their numbers, size histogram, standard of the chart (unless given); the
        share of each element among the atoms."""
        from scidiff.domains.crystal import codec
        from scidiff.domains.crystal.formula import NUMBER

        if not objects:
            raise UsageError("There are no crystals to learn from.")
        for number, structure in enumerate(objects, 1):
            if why := codec.unfit(structure):
                raise UsageError(f"Crystal {number} cannot be used: {why}.")
        counts: dict[str, int] = {}
        for structure in objects:
            for name, count in codec.composition(structure).items():
                counts[name] = counts.get(name, 0) + count
        elements = self.elements or tuple(sorted(counts, key=NUMBER.__getitem__))
        strange = next((name for name in counts if name not in elements), None)
        if strange is not None:
            raise UsageError(f"The element {strange} is not among {', '.join(elements)}.")
        lengths = [len(structure) for structure in objects]
        n_max = self.n_max or max(lengths)
        if max(lengths) > n_max:
            raise UsageError(f"A crystal has {max(lengths)} atoms, more than {n_max}.",
                             f"Leave such out with data.options.max_atoms={n_max}.")
        sizes = [lengths.count(n) for n in range(n_max + 1)]
        fitted = CrystalDomain(elements, n_max, sizes, self.chart, self.task,
                               self.standard or codec.standard(objects, self.chart))
        shares = [counts.get(name, 0) / sum(lengths) for name in elements]
        return fitted, {"marginals": {"types": shares if len(shares) > 1 else [1.0, 0.0]}, "sizes": sizes}

    def read(self, path: str | Path, **options: Any) -> Records:
        """Crystals of a file, run folder or folder; options of `data.read`."""
        from scidiff.domains.crystal.data import known, read

        known({key: value for key, value in options.items() if key not in ("split", "limit")})
        return read(path, **options)

    def dataset(self, files: Mapping[str, Path], reader: str, options: Mapping[str, Any], split: str | None,
                limit: int | None = None) -> Records:
        """Crystals of a data set as its card lays it out (readers of data.py)."""
        from scidiff.domains.crystal.data import dataset

        return dataset(files, reader, options, split, limit)

    def properties(self, objects: Sequence[Structure], names: Sequence[str]) -> dict[str, Tensor]:
        """density [g/cm^3], volume_per_atom [Angstrom^3], num_atoms, num_elements, and whatever number the files gave
        to every crystal (energies, gaps): float32 [num] by the name asked for."""
        import torch

        from scidiff.domains.crystal import codec

        given = set.intersection(*(set(s.properties) for s in objects)) - {"id"} if objects else set()
        computed = {"density": codec.density, "volume_per_atom": lambda s: s.volume / len(s), "num_atoms": len,
                    "num_elements": lambda s: len(codec.composition(s))}
        found = {}
        for name in names:
            if name not in computed and name not in given:
                raise UsageError(f"These crystals have no property {name!r}.", nearest(name, {*_COMPUTED, *given}))
            values = [computed[name](s) if name in computed else s.properties[name] for s in objects]
            found[name] = torch.tensor([float(v) for v in values])
        return found

    def write(self, samples: Samples, folder: Path) -> list[Path]:
        from scidiff.domains.crystal.files import write_samples

        return write_samples(samples, folder)

    def encode(self, objects: Sequence[Structure]) -> tuple[State, Context]:
        import torch

        from scidiff.core.spec import Context

        state, sizes = self.codec.encode(objects)
        return state, Context(torch.arange(len(objects)), sizes, self.n_max)

    def decode(self, state: State, ctx: Context) -> list[Structure]:
        if ctx.sizes is None:
            raise UsageError("A crystal state cannot be decoded without its sizes.")
        from scidiff.domains.crystal import rows

        found = rows.named(self.codec.decode(state, ctx.sizes), ctx)
        for structure in found if ctx.meta.get("poscar") else ():
            structure.properties["poscar"] = True
        return found

    def template(self, request: Request) -> Context:
        """Sizes from the histogram or as asked for; composition, cell and sites clamped; see request.py."""
        from scidiff.domains.crystal.request import context

        return context(request, self.codec, self.sizes, self.task)

    def restrained(self, denoiser: Any, ctx: Context) -> Any:
        """Only the elements that are asked for."""
        from scidiff.domains.crystal.guidance import AllowedElements
        from scidiff.domains.crystal.request import ALLOWED

        return AllowedElements(denoiser) if ALLOWED in ctx.meta else denoiser

    def objective_options(self) -> dict[str, Any]:
        """How often the network is shown the composition: always, never, or to half of the samples (task)."""
        return {"clean": {"types": {"csp": 1.0, "dng": 0.0, "both": 0.5}[self.task]}}

    def compositions(self, objects: Sequence[Structure], ids: Tensor) -> Context:
        """The context of samples `ids` that predict structures of the compositions of given crystals."""
        from scidiff.domains.crystal.request import of_structures

        return of_structures(objects, self.codec, ids)

    def check(self, objects: Sequence[Structure]) -> list[Verdict]:
        from scidiff.domains.crystal.validity import structural

        return structural(objects)

    def metrics(self, objects: Sequence[Structure], verdicts: Sequence[Verdict], reference: Reference | None = None,
                seed: int = 0) -> list[Metric]:
        from scidiff.domains.crystal.metrics import metrics

        return metrics(objects, verdicts, reference, seed)

    def start(self, kind: str, ctx: Context, data: str, root: str | Path | None = None) -> tuple[State, Tensor]:
        """The template of each sample's composition among the training crystals (start.py)."""
        from scidiff.domains.crystal.start import templates

        if kind != "template":
            raise UsageError(f"Crystals do not start from {kind!r}.", nearest(kind, ("template",)))
        return templates(ctx, self.codec, data, root)

    def ranking(self, objects: Sequence[Structure], verdicts: Sequence[Verdict],
                costs: Sequence[float]) -> list[dict[str, Any]]:
        """Ranks within each reduced formula, by the model's cost per atom."""
        from scidiff.domains.crystal.files import ranking

        return ranking(objects, verdicts, costs)

    def reference(self, name: str, root: str | Path | None = None) -> Reference:
        from scidiff.domains.crystal.reference import find

        return find(name, root)

    def view(self, objects: Sequence[Structure], verdicts: Sequence[Verdict], ids: Sequence[str],
             reference: Reference | None = None) -> dict[str, str | bytes]:
        from scidiff.domains.crystal.view import pictures

        return pictures(objects, verdicts, ids, reference)

    def table(self, objects: Sequence[Structure], verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
        from scidiff.domains.crystal.files import table

        return table(objects, verdicts)

    def backbone_options(self, spec: StateSpec) -> dict[str, Any]:
        """How many types are predicted, how many numbers the chart has, and what the paths show of types (`seen`) and
        of coordinates (`extra` channels besides the position)."""
        from scidiff.core.run import Run
        from scidiff.core.spec import Context

        ctx, run = Context.of(1, n_max=1), Run(0)
        shown = {}
        for name in ("types", "frac"):
            site = ctx.at(name, spec[name])
            drawn = spec[name].path.source(site, run.handle(site))
            shown[name] = spec[name].path.features(drawn, 1.0, site)
        channels = shown["frac"].shape[3] - 1 if shown["frac"].dim() == 4 else 0
        return {"classes": spec["types"].space.classes, "seen": shown["types"].shape[-1],  # type: ignore[attr-defined]
                "extra": channels, "lattice_size": spec["lattice"].shape[0]}

    def examples(self) -> list[Structure]:
        """A dozen textbook crystals: rock salt, perovskites, rutile, wurtzite, diamond and others."""
        from scidiff.domains.crystal.textbook import crystals

        return crystals()

    def preview(self, objects: Sequence[Structure], verdicts: Sequence[Verdict]) -> dict[str, float]:
        """Valid share and mean volume per atom of the valid ones."""
        good = [s for s, v in zip(objects, verdicts, strict=True) if v.valid]
        mean = sum(s.volume / len(s) for s in good) / max(len(good), 1)
        return {**super().preview(objects, verdicts), "volume_per_atom": float(mean)}

    def run_options(self) -> dict[str, Any]:
        return {
            "num_atoms": "atoms per cell: a number (5) or a range (4-12); default: as in the training set",
            "formula": "composition of the cell: NaCl, Ca(OH)2, or several with commas",
            "z": "formula units per cell: 2, 1,2,4 or 1-4; default: drawn from the sizes of the training set",
            "elements": "only these elements: Li,O,P,Fe",
            "lattice": "fixed cell: a,b,c,alpha,beta,gamma in Angstrom and degrees",
            "sites": "fixed atoms: 'Ti 0.5 0.5 0.5; O 0.5 0.5 0' in fractional coordinates",
            "like": "predict the compositions of this data set, file or folder (split=test, root=folder of its files)",
            "poscar": "true writes POSCAR files as well",
        }
