"""Chemistry rules: is this graph a molecule, why not, and what is its name.

*Valid* means that RDKit's full sanitisation passes (valences, kekulisation, aromaticity) on the graph exactly as it
was drawn. No step that edits the graph takes part: RDKit's clean-up rules (which would turn a five-valent nitrogen
into a charged pair) are switched off, no hydrogen moves, no charge is guessed, no bond is lowered.
*Connected* means one fragment; it is counted apart from validity. *Canonical* strings carry no stereo.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from scidiff.core.errors import MissingLibrary

if TYPE_CHECKING:
    from rdkit.Chem import Mol

_PROBLEM = "_scidiff_problem"
_CORRECTED = "_scidiff_corrected"


def require_rdkit() -> None:
    """MissingLibrary with the pip line where RDKit is absent."""
    try:
        import rdkit  # noqa: F401
    except ImportError as error:
        raise MissingLibrary("rdkit", "Working with molecules", "pip install rdkit") from error


def _sanitise_flags() -> int:
    from rdkit.Chem import SanitizeFlags

    edits = SanitizeFlags.SANITIZE_CLEANUP | SanitizeFlags.SANITIZE_CLEANUP_ORGANOMETALLICS
    return int(SanitizeFlags.SANITIZE_ALL) & ~int(edits)


def finished(mol: Mol) -> Mol:
    """A sanitised copy of a raw graph, or the raw graph marked with its problem where sanitisation fails."""
    from rdkit import Chem, rdBase

    copy = Chem.Mol(mol)
    with rdBase.BlockLogs():
        failed = Chem.SanitizeMol(copy, sanitizeOps=_sanitise_flags(), catchErrors=True)
    if not failed:
        return copy
    raw = Chem.Mol(mol)
    raw.SetProp(_PROBLEM, _explain(raw))
    raw.UpdatePropertyCache(strict=False)
    Chem.FastFindRings(raw)
    return raw


def _explain(mol: Mol) -> str:
    """The first thing chemically wrong with a raw graph; atoms are numbered from 1 in the order of the state."""
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        problems = Chem.DetectChemistryProblems(mol, sanitizeOps=_sanitise_flags())
    for problem in problems:
        if problem.GetType() == "AtomValenceException":
            atom = mol.GetAtomWithIdx(problem.GetAtomIdx())
            used = sum(b.GetValenceContrib(atom) for b in atom.GetBonds())
            allowed = largest_valence(atom.GetSymbol(), atom.GetFormalCharge())
            sign = atom.GetFormalCharge()
            charge = "" if sign == 0 else f" (charge {sign:+d})"
            limit = f"exceeds {allowed}" if allowed is not None else "is impossible"
            return f"valence {used:g} of {atom.GetSymbol()}{atom.GetIdx() + 1}{charge} {limit}"
        if problem.GetType() in ("KekulizeException", "AtomKekulizeException"):
            return "the aromatic rings have no Kekulé form"
        return problem.Message().strip().rstrip(".")
    return "sanitisation fails"


@lru_cache(maxsize=256)
def largest_valence(element: str, charge: int) -> int | None:
    """Largest valence RDKit permits an atom, found by asking; None where even one bond is too many."""
    from rdkit import Chem, rdBase

    number = Chem.GetPeriodicTable().GetAtomicNumber(element)
    best = None
    with rdBase.BlockLogs():
        for bonds in range(9):
            star = Chem.RWMol()
            centre = Chem.Atom(number)
            centre.SetFormalCharge(charge)
            star.AddAtom(centre)
            for k in range(bonds):
                star.AddAtom(Chem.Atom(9))
                star.AddBond(0, k + 1, Chem.BondType.SINGLE)
            if Chem.SanitizeMol(star, sanitizeOps=_sanitise_flags(), catchErrors=True) == 0:
                best = bonds
    return best


def reason(mol: Mol) -> str:
    """Why a molecule (which stays as it is) is invalid, as half a sentence; the empty string where it is valid."""
    if mol.GetNumAtoms() == 0:
        return "no atoms"
    return noted_problem(mol) or noted_problem(finished(mol))


def noted_problem(mol: Mol) -> str:
    """The problem that `finished` noted on this molecule, without looking again; empty where it noted none."""
    return mol.GetProp(_PROBLEM) if mol.HasProp(_PROBLEM) else ""


def fragments(mol: Mol) -> int:
    """Number of connected parts."""
    from rdkit import Chem

    return len(Chem.GetMolFrags(mol))


def largest_fragment(mol: Mol) -> Mol:
    """The fragment with most heavy atoms (ties: the longer canonical string); a changed molecule, never the default."""
    from rdkit import Chem

    parts = Chem.GetMolFrags(mol, asMols=True, sanitizeFrags=not mol.HasProp(_PROBLEM))
    if len(parts) <= 1:
        return mol
    return max(parts, key=lambda m: (m.GetNumHeavyAtoms(), Chem.MolToSmiles(m)))


def longest_component(mol: Mol) -> Mol:
    """The component with the longest canonical string (ties: the first in alphabetical order) of a valid molecule."""
    from rdkit import Chem

    if fragments(mol) <= 1:
        return mol
    parts = Chem.GetMolFrags(mol, asMols=True, sanitizeFrags=False)
    return finished(min(parts, key=lambda m: (-len(canonical(m)), canonical(m))))


def note_correction(mol: Mol, needed: bool) -> Mol:
    """The molecule itself, with a note whether its valences had to be corrected."""
    mol.SetBoolProp(_CORRECTED, needed)
    return mol


def was_corrected(mol: Mol) -> bool | None:
    """Whether a molecule had to be corrected when it was decoded; None where no correction was asked for."""
    return bool(mol.GetBoolProp(_CORRECTED)) if mol.HasProp(_CORRECTED) else None


def canonical(mol: Mol) -> str:
    """Canonical SMILES without stereo, isotopes kept out; of the raw graph where the molecule is invalid."""
    from rdkit import Chem

    return Chem.MolToSmiles(mol, isomericSmiles=False)


def stable_hash(texts: Iterable[str]) -> np.ndarray:
    """64-bit hashes, uint64: the first 8 bytes (little endian) of BLAKE2b-64 of the UTF-8 text; the same everywhere."""
    digests = [int.from_bytes(hashlib.blake2b(t.encode(), digest_size=8).digest(), "little") for t in texts]
    return np.array(digests, dtype=np.uint64)


def formula(mol: Mol) -> str:
    """Sum formula in Hill order, charge included; empty where hydrogens cannot be counted."""
    from rdkit.Chem import rdMolDescriptors

    return "" if mol.HasProp(_PROBLEM) else rdMolDescriptors.CalcMolFormula(mol)


PROPERTIES = {"logP": "1", "QED": "1", "MW": "g/mol", "heavy atoms": "1"}


def properties(mol: Mol) -> dict[str, float]:
    """Crippen logP, QED, molecular weight in g/mol and heavy atoms of a valid molecule; computed once per object."""
    from rdkit.Chem import QED, Crippen, Descriptors

    if not mol.HasProp("_scidiff_QED"):
        ready = finished(mol)
        for name, value in (
            ("logP", Crippen.MolLogP(ready)),
            ("QED", QED.qed(ready)),
            ("MW", Descriptors.MolWt(ready)),
            ("heavy atoms", ready.GetNumHeavyAtoms()),
        ):
            mol.SetDoubleProp(f"_scidiff_{name}", float(value))
    return {name: mol.GetDoubleProp(f"_scidiff_{name}") for name in PROPERTIES}
