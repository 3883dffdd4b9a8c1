"""Reference sets of crystals: what evaluation needs of a test split and its training split.

`datasets/<name>/reference.npz` holds derived numbers only (allow_pickle=False), no crystal:

    meta                      JSON: name, part, floor, counts, ids (hash of the test ids in their order), shares
    density, elements         quantiles [512] and counts (properties.py) of the test crystals; with _train, of training
    template                  float16 [m]: rms of the template prediction (retrieval.py) of each test row, NaN: none
    template_sound            uint8 [m]: whether that pair passes the filter V (metrics.py)

Crystals themselves are read from the data set where it lies on this machine: they are needed for match rates, METRe and
novelty. Where no template prediction is stored for them, it is made on the spot from the training crystals. The floors
of shares are the shares of the test crystals.

    python -m scidiff.domains.crystal.reference mp_20_open datasets/mp_20_open/reference.npz --root DATA
"""

from __future__ import annotations

import argparse
import hashlib
import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scidiff.core.errors import ScidiffError, UsageError
from scidiff.domains.crystal import charges, validity
from scidiff.domains.crystal.matching import displacements, identity
from scidiff.domains.crystal.pool import Pool
from scidiff.domains.crystal.properties import Distribution
from scidiff.domains.crystal.retrieval import CubicPerovskite, TemplateRetrieval
from scidiff.domains.references import Search
from scidiff.store import atomic, cards, fetch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pymatgen.core import Structure

FLOORS = {"retrieval": TemplateRetrieval, "perovskite": CubicPerovskite}
PUBLISHED = {"perov_5_open": "perovskite", "perov_5": "perovskite"}
"""Data set -> template that is its floor; the others have retrieval."""
_FORMAT = 1


@dataclass(frozen=True)
class Floor:
    """The template prediction of each test row: rms [m] (NaN: no match) and whether the pair passes the filter V."""

    rms: NDArray[np.float64]
    sound: NDArray[np.bool_]
    title: str = ""


@dataclass
class Reference:
    """A test split with what is known of it; the module docstring says what each part is for."""

    name: str
    test: Distribution
    train: Distribution | None = None
    shares: dict[str, float] = field(default_factory=dict)
    floor: Floor | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    crystals: list[Structure] | None = None
    known: list[Structure] | None = None
    root: str | Path | None = None

    @property
    def described(self) -> dict[str, NDArray]:
        """Values of the test crystals by the words under the histograms of view.py."""
        return {"density (g/cm^3)": self.test.values("density"), "elements per crystal": self.test.values("elements")}

    @property
    def title(self) -> str:
        """What the metrics print as their reference."""
        return f"{self.name} {self.meta.get('part', 'test')} ({self.meta.get('count', self.test.count)})"

    def structures(self) -> list[Structure] | None:
        """The test crystals, where they lie on this machine; a stored floor of others is given up."""
        if self.crystals is None:
            self.crystals = _read(self.name, "test", self.root)
        if self.crystals is not None and self.floor is not None and self.meta.get("ids") != ids_hash(self.crystals):
            self.floor = None
        return self.crystals

    def training(self) -> list[Structure] | None:
        """The training crystals, where they lie on this machine."""
        if self.known is None:
            self.known = _read(self.name, "train", self.root)
        return self.known

    def rows(self, chosen: Sequence[int], pool: Pool) -> Floor | None:
        """The template predictions of these test rows, stored or made; None without test or training crystals."""
        structures = self.structures()
        if structures is None:
            return None
        if self.floor is not None:
            at = np.asarray(chosen, dtype=np.int64)
            return Floor(self.floor.rms[at], self.floor.sound[at], self.floor.title)
        training = self.training()
        if not training:
            return None
        return predicted([structures[j] for j in chosen], training, pool, str(self.meta.get("floor", "retrieval")),
                         numbers=chosen)


def predicted(structures: Sequence[Structure], training: Sequence[Structure], pool: Pool, kind: str = "retrieval",
              numbers: Sequence[int] | None = None) -> Floor:
    """The floor of given test crystals; `numbers` are their rows, which throw the coin of the perovskites."""
    source = FLOORS[kind].fit(training)
    rows = range(len(structures)) if numbers is None else numbers
    made = [source.find(s.atomic_numbers, row=int(k)) for s, k in zip(structures, rows, strict=True)]
    answered = [j for j, template in enumerate(made) if template is not None]
    guesses = [template.structure() for template in made if template is not None]
    pairs = list(zip(range(len(guesses)), answered, strict=True))
    rms = displacements(guesses, structures, pairs, pool).best(pairs, len(structures))
    sound = np.array([v.valid for v in validity.structural(structures)])
    sound &= np.array([v.valid for v in charges.compositional(structures, pool)])
    sound[answered] &= np.array([v.valid for v in validity.structural(guesses)], dtype=bool)
    return Floor(rms, sound, f"{kind} of {len(training)} training crystals")


def build(name: str, test: Sequence[Structure], train: Sequence[Structure] = (), *, pool: Pool | None = None,
          floor: str = "", meta: dict[str, Any] | None = None) -> Reference:
    """A reference from crystals; with `floor` ("retrieval", "perovskite") and a pool, template predictions too."""
    usable = [s for s in test if not validity.constructible(s)]
    if not usable:
        raise UsageError("A reference set needs at least one crystal.")
    shares = {"structurally valid": float(np.mean([v.valid for v in validity.structural(test)])),
              "compositionally valid": float(np.mean([v.valid for v in charges.compositional(test, pool)]))}
    about = {"format": _FORMAT, "count": len(test), "train_count": len(train), "ids": ids_hash(test), **(meta or {})}
    if floor:
        about["floor"] = floor
    made = predicted(test, train, pool, floor) if floor and train and pool is not None else None
    return Reference(name, Distribution.of(usable), Distribution.of(train) if train else None, shares, made, about,
                     list(test), list(train) or None)


def ids_hash(structures: Sequence[Structure]) -> str:
    """16 hex digits over the ids in their order; crystals without ids count by their place."""
    text = "\n".join(identity(s) or str(k) for k, s in enumerate(structures))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def save(reference: Reference, path: str | Path) -> Path:
    """Writes the derived numbers atomically."""
    arrays: dict[str, Any] = {"density": reference.test.quantiles.astype(np.float32),
                              "elements": reference.test.elements}
    if reference.train is not None:
        arrays |= {"density_train": reference.train.quantiles.astype(np.float32),
                   "elements_train": reference.train.elements}
    meta = {**reference.meta, "name": reference.name, "shares": reference.shares}
    if reference.floor is not None:
        meta["template"] = reference.floor.title
        arrays |= {"template": reference.floor.rms.astype(np.float16),
                   "template_sound": reference.floor.sound.astype(np.uint8)}
    with atomic.writing(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, meta=np.array(json.dumps(meta)), **arrays)
    return Path(path)


def load(path: str | Path) -> Reference:
    """A stored reference; one sentence where the file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            held = {name: archive[name] for name in archive.files}
        meta = json.loads(str(held["meta"]))
        name, shares, title = str(meta.pop("name")), meta.pop("shares"), str(meta.pop("template", ""))
        train = None if "density_train" not in held else Distribution(
            held["density_train"].astype(np.float64), held["elements_train"].astype(np.int64))
        floor = None if "template" not in held else Floor(
            held["template"].astype(np.float64), held["template_sound"].astype(bool), title)
        test = Distribution(held["density"].astype(np.float64), held["elements"].astype(np.int64))
        return Reference(name, test, train, shares, floor, meta)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ScidiffError(f"The reference file {path} is damaged or of another kind ({error}).") from error


def find(name: str, root: str | Path | None = None) -> Reference:
    """A reference by the name of its data set, or the crystals of a file or folder, read on the spot.

    root: the folder that holds the files of the data set, where it is not found otherwise.
    """
    search = Search("crystal", "crystals", ("density", "elements"), load, _of_samples, lambda n: _of_set(n, root))
    return replace(search(name), root=root)


def _of_samples(path: Path) -> Reference:
    from scidiff.domains.crystal import data

    return build(path.name, data.read(path).require(path).objects, meta={"part": "all", "source": path.name})


def _of_set(name: str, root: str | Path | None) -> Reference:
    test = _read(name, "test", root)
    if test is None:
        raise UsageError(f"The crystals of {name} are not on this machine.",
                         "Name their folder with SCIDIFF_DATA or run `scidiff fetch`.")
    return build(name, test, _read(name, "train", root) or (),
                 meta={"part": "test", "source": name, "floor": PUBLISHED.get(name, "retrieval")})


def _read(name: str, split: str, root: str | Path | None = None) -> list[Structure] | None:
    """One part of a data set, where its files lie on this machine."""
    from scidiff.domains.crystal import data

    try:
        given = fetch.provide(cards.find(name), root, download_missing=False)
        return data.dataset(given.files, given.reader, given.options, split).objects
    except ScidiffError:
        return None


def main(arguments: Sequence[str] | None = None) -> None:
    """Builds the reference file of a data set."""
    parser = argparse.ArgumentParser(description="Statistics and floors of a set of crystals, without its crystals.")
    parser.add_argument("name")
    parser.add_argument("out", type=Path)
    parser.add_argument("--root", type=Path, help="folder that holds the files of the data set")
    parser.add_argument("--floor", choices=sorted(FLOORS))
    given = parser.parse_args(arguments)
    test, train = (_read(given.name, part, given.root) for part in ("test", "train"))
    if not test or not train:
        raise UsageError(f"The crystals of {given.name} are not on this machine.", "Name their folder with --root.")
    floor = given.floor or PUBLISHED.get(given.name, "retrieval")
    with Pool() as pool:
        made = build(given.name, test, train, pool=pool, floor=floor, meta={"part": "test", "source": given.name})
    save(made, given.out)
    assert made.floor is not None
    rms = made.floor.rms
    matched = ~np.isnan(rms)
    print(f"{given.out}: {len(test)} test and {len(train)} training crystals, {given.out.stat().st_size / 1e3:.0f} kB")
    print(f"  {floor}: match F {100 * matched.mean():.2f} %, V {100 * (matched & made.floor.sound).mean():.2f} %, "
          f"RMSE {np.nanmean(rms):.4f}; " + ", ".join(f"{k} {v:.3f}" for k, v in made.shares.items()))


if __name__ == "__main__":
    main()
