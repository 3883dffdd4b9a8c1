"""Small molecules: (element, charge) atoms and kekulised bonds of a dense graph.

State with the codec "charged": atoms [N] of K token classes and bonds [N, N] of 4 classes (none, single, double,
triple; by unordered pair). With the codec "gdss": atoms [N, F], a real one-hot element, and bonds [N, N], the real
bond order (quantised.py). Native object: `rdkit.Chem.Mol`. A domain instance holds the vocabulary, the largest size
and the size histogram of the set it was fitted to. The size of sample i is drawn from that histogram by (seed, i)
alone, or within a range that the request names (`num_atoms=7`, `num_atoms=4-9`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from scidiff.core.errors import UsageError, nearest
from scidiff.domains.base import Domain, Metric, Records, Request, Samples, Verdict
from scidiff.domains.sizes import Sizes

if TYPE_CHECKING:
    from rdkit.Chem import Mol
    from torch import Tensor

    from scidiff.core.space import Space
    from scidiff.core.spec import Context, Shape, State, StateSpec
    from scidiff.domains.molecule.codec import MoleculeCodec
    from scidiff.domains.molecule.quantised import QuantisedCodec
    from scidiff.domains.molecule.reference import Reference

CODECS = ("charged", "gdss")
SIZES = Sizes("num_atoms", "heavy atoms", ("7", "4-9"), "molecule.size")
_AS_DRAWN = "valences pass after the +1 rule for N, O and S; no correction, no largest-fragment rule"
_READERS = ("smiles_table", "smiles_lines")


class MoleculeDomain(Domain):
    """tokens: atom types such as "C", "N+" (elements for the codec "gdss"); n_max: most heavy atoms; sizes: histogram
    by heavy atoms; codec: "charged" (default) or "gdss"."""

    name: ClassVar[str] = "molecule"
    title: ClassVar[str] = "Small molecules"
    requires: ClassVar[dict[str, str]] = {"rdkit": "pip install rdkit"}
    extensions: ClassVar[tuple[str, ...]] = (".smi", ".csv", ".sdf", ".mol")

    def __init__(
        self, tokens: Sequence[str] = (), n_max: int = 0, sizes: Sequence[float] = (), codec: str | None = None
    ) -> None:
        self.tokens, self.n_max, self.sizes = tuple(tokens), int(n_max), tuple(sizes)
        self.coding = CODECS[0] if codec is None else str(codec)
        if self.coding not in CODECS:
            raise UsageError(f"There is no molecule codec {self.coding!r}.", nearest(self.coding, CODECS))
        if len(self.sizes) > self.n_max + 1:
            raise UsageError(
                f"The size histogram has {len(self.sizes)} entries, but the largest size is {self.n_max}."
            )

    @property
    def codec(self) -> MoleculeCodec | QuantisedCodec:
        """The codec of this vocabulary; UsageError before `fit`."""
        if not self.tokens:
            raise UsageError("This molecule domain has no atom types yet: fit it to molecules, or load a model.")
        return self._codec_class(self.tokens, self.n_max)

    @property
    def _codec_class(self) -> type[MoleculeCodec] | type[QuantisedCodec]:
        from scidiff.domains.molecule.codec import MoleculeCodec
        from scidiff.domains.molecule.quantised import QuantisedCodec

        return QuantisedCodec if self.coding == "gdss" else MoleculeCodec

    def options(self) -> dict[str, Any]:
        return {"tokens": list(self.tokens), "n_max": self.n_max, "sizes": list(self.sizes), "codec": self.coding}

    def components(self) -> dict[str, tuple[Space, Shape]]:
        from scidiff.core.space import Categorical, Euclidean, Symmetric

        if self.coding == "gdss":
            return {"atoms": (Euclidean(), ("N", max(len(self.tokens), 1))), "bonds": (Symmetric(), ("N", "N"))}
        return {
            "atoms": (Categorical(classes=max(len(self.tokens), 2)), ("N",)),
            "bonds": (Categorical(classes=4, pairs=True), ("N", "N")),
        }

    def fit(self, objects: Sequence[Mol]) -> tuple[MoleculeDomain, dict[str, Any]]:
        """Vocabulary (unless given), size histogram, and class frequencies of atoms and of unordered pairs.

        The codec "gdss" has no classes, hence no frequencies, and learns the largest size where it is not given.
        """
        import torch

        from scidiff.domains.molecule.codec import MoleculeCodec

        if self.coding == "gdss":
            return self._fit_quantised(objects)
        codec = MoleculeCodec(self.tokens, self.n_max) if self.tokens else MoleculeCodec.fit(objects)
        found = codec.statistics(*codec.encode(objects, torch.uint8))
        fitted = MoleculeDomain(codec.tokens, codec.n_max, found.sizes)
        marginals = {"atoms": list(found.atoms), "bonds": list(found.bonds)}
        if len(codec.tokens) == 1:
            marginals["atoms"] = [1.0, 0.0]
        return fitted, {"marginals": marginals, "sizes": list(found.sizes)}

    def _fit_quantised(self, objects: Sequence[Mol]) -> tuple[MoleculeDomain, dict[str, Any]]:
        from scidiff.domains.molecule.quantised import QuantisedCodec

        found = QuantisedCodec.fit(objects)
        n_max = self.n_max or found.n_max
        sizes = [0] * (n_max + 1)
        for mol in objects:
            sizes[min(mol.GetNumAtoms(), n_max)] += 1
        return MoleculeDomain(self.tokens or found.tokens, n_max, sizes, "gdss"), {"sizes": sizes}

    def read(self, path: str | Path, **options: Any) -> Records:
        """Molecules of a file (.smi, .csv, .sdf), run folder or folder; options of `data.read_table`."""
        from scidiff.domains.molecule import chemistry
        from scidiff.domains.molecule.data import READ_OPTIONS, read_table
        from scidiff.domains.molecule.files import corrections

        for key in options:
            if key not in (*READ_OPTIONS, "split", "limit"):
                raise UsageError(f"The molecule readers have no option {key!r}.", nearest(key, READ_OPTIONS))
        found = read_table(path, **options)
        corrected = corrections(Path(path))
        for mol, name in zip(found.objects, found.names, strict=True):
            if name in corrected:
                chemistry.note_correction(mol, corrected[name])
        return found

    def dataset(
        self,
        files: Mapping[str, Path],
        reader: str,
        options: Mapping[str, Any],
        split: str | None,
        limit: int | None = None,
    ) -> Records:
        """Molecules of a data set as its card lays it out (readers `smiles_table`, `smiles_lines`)."""
        from scidiff.domains.molecule.data import read_card

        if reader not in _READERS:
            raise UsageError(f"The molecule domain has no reader {reader!r}.", nearest(reader, _READERS))
        return read_card(files, options, split, limit=limit)

    def properties(self, objects: Sequence[Mol], names: Sequence[str]) -> dict[str, Tensor]:
        """logP, QED, MW (g/mol), heavy_atoms of valid molecules, float32 [num] by the name asked for."""
        import torch

        from scidiff.domains.molecule import chemistry

        known = {p.lower().replace(" ", "_"): p for p in chemistry.PROPERTIES}
        for name in names:
            if name.lower() not in known:
                raise UsageError(f"The molecule domain computes no property {name!r}.", nearest(name, known))
        rows = [chemistry.properties(m) for m in objects]
        return {name: torch.tensor([row[known[name.lower()]] for row in rows]) for name in names}

    def write(self, samples: Samples, folder: Path) -> list[Path]:
        from scidiff.domains.molecule.files import write_samples

        return write_samples(samples, folder)

    def encode(self, objects: Sequence[Mol]) -> tuple[State, Context]:
        import torch

        from scidiff.core.spec import Context

        state, sizes = self.codec.encode(objects)
        return state, Context(torch.arange(len(objects)), sizes, self.n_max)

    def decode(self, state: State, ctx: Context) -> list[Mol]:
        if ctx.sizes is None:
            raise UsageError("A molecule state cannot be decoded without its sizes.")
        more = {"correct": True} if ctx.meta.get("correct") else {}
        return self.codec.decode(state, ctx.sizes, **more)

    def template(self, request: Request) -> Context:
        """Sizes from the histogram, or uniform over a requested range that the histogram does not cover.

        The option `correct` of the codec "gdss" is kept for `decode`. Conditions other than the size are the model's
        affair.
        """
        from scidiff.core.spec import Context

        known = (*SIZES.names, "correct", "codec")
        for key in request.options:
            if key not in known:
                raise UsageError(f"Molecules are generated without an option {key!r}.", nearest(key, known))
        meta = {"correct": True} if self._correction_asked(request.options) else {}
        return Context(request.ids, SIZES.draw(request, self.sizes, self.n_max), self.n_max, meta=meta)

    def _correction_asked(self, options: Mapping[str, Any]) -> bool:
        if options.get("codec") not in (None, self.coding):
            raise UsageError(f"This model codes molecules as {self.coding!r}.", "The codec is chosen in training.")
        asked = options.get("correct") or False
        if not isinstance(asked, bool):
            raise UsageError(f"correct is true or false, not {asked!r}.")
        if asked and self.coding != "gdss":
            raise UsageError("Only models of the codec 'gdss' have their valences corrected.", "Leave correct out.")
        return asked

    def check(self, objects: Sequence[Mol]) -> list[Verdict]:
        from scidiff.domains.molecule.chemistry import reason

        return [Verdict(not why, why) for why in map(reason, objects)]

    def metrics(
        self, objects: Sequence[Mol], verdicts: Sequence[Verdict], reference: Reference | None = None
    ) -> list[Metric]:
        """The figures of metrics.py; for corrected molecules the share that was valid without correction as well."""
        from scidiff.domains.molecule import chemistry
        from scidiff.domains.molecule.metrics import metrics, wilson

        rows = metrics(objects, verdicts, reference)
        if self.coding == "charged":
            return rows
        noted = [w for w in map(chemistry.was_corrected, objects) if w is not None]
        corrected = "after valency correction; the longest component kept"
        told = {"valid": corrected, "connected": corrected} if noted else {"valid": _AS_DRAWN}
        rows = [replace(row, protocol=told.get(row.name, row.protocol)) for row in rows]
        if noted:
            good = len(noted) - sum(noted)
            share, interval = good / len(noted), wilson(good, len(noted))
            rows.insert(1, replace(rows[0], name="valid without correction", value=share, interval=interval,
                                   protocol=_AS_DRAWN, count=len(noted)))
        return rows

    def reference(self, name: str) -> Reference:
        from scidiff.domains.molecule.reference import find

        return find(name)

    def view(
        self,
        objects: Sequence[Mol],
        verdicts: Sequence[Verdict],
        ids: Sequence[str],
        reference: Reference | None = None,
    ) -> dict[str, str | bytes]:
        from scidiff.domains.molecule.view import pictures

        return pictures(objects, verdicts, ids, reference)

    def table(self, objects: Sequence[Mol], verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
        from scidiff.domains.molecule import chemistry

        rows = []
        corrected = any(chemistry.was_corrected(mol) is not None for mol in objects)
        for mol, verdict in zip(objects, verdicts, strict=True):
            row: dict[str, Any] = {
                "connected": chemistry.fragments(mol) == 1,
                "smiles": chemistry.canonical(mol),
                "formula": chemistry.formula(mol) if verdict.valid else "",
                "heavy_atoms": mol.GetNumHeavyAtoms(),
                "logP": "",
                "QED": "",
                "MW_g_per_mol": "",
            }
            if verdict.valid:
                found = chemistry.properties(mol)
                row |= {
                    "logP": round(found["logP"], 3),
                    "QED": round(found["QED"], 3),
                    "MW_g_per_mol": round(found["MW"], 3),
                }
            if corrected:
                row["corrected"] = bool(chemistry.was_corrected(mol))
            rows.append(row)
        return rows

    def backbone_options(self, spec: StateSpec) -> dict[str, Any]:
        """Class counts, bond orders and normal valences for a graph network; the width of the real features for the
        networks of the codec "gdss"."""
        from scidiff.domains.molecule.codec import normal_valence

        if self.coding == "gdss":
            return {"features": len(self.tokens), "nodes": "atoms", "edges": "bonds"}
        return {
            "node_classes": max(len(self.tokens), 2),
            "pair_classes": 4,
            "orders": [0.0, 1.0, 2.0, 3.0],
            "normal_valence": [float(normal_valence(token)) for token in self.codec.tokens],
            "max_size": self.n_max,
        }

    def examples(self) -> list[Mol]:
        """A dozen small molecules; one is charged, where the codec keeps charges."""
        from rdkit import Chem

        lines = "CC CCO C1CC1 CC(=O)O c1ccoc1 C#N NC=O C1COC1 CC#C C[N+](=O)[O-] CCF N1CC1"
        kept = [line for line in lines.split() if self.coding == "charged" or "+" not in line]
        return [Chem.MolFromSmiles(line) for line in kept]

    def preview(self, objects: Sequence[Mol], verdicts: Sequence[Verdict]) -> dict[str, float]:
        """Valid, connected (of all) and unique (of valid) shares."""
        from scidiff.domains.molecule import chemistry

        n = max(len(verdicts), 1)
        good = [m for m, v in zip(objects, verdicts, strict=True) if v.valid]
        whole = sum(chemistry.fragments(m) == 1 for m in good)
        distinct = len({chemistry.canonical(m) for m in good})
        return {"valid": len(good) / n, "connected": whole / n, "unique": distinct / max(len(good), 1)}

    def run_options(self) -> dict[str, Any]:
        return {
            "num_atoms": "heavy atoms per molecule: a number (7) or a range (4-9); default: as in the training set",
            "correct": "true lowers bonds until every valence passes and keeps the longest component (codec gdss)",
        }
