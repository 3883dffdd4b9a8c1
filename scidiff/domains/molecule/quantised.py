"""Molecules as real-valued graphs of elements and bond orders: the coding of GDSS.

    atoms [N, F]   float32, the element as one-hot; an absent atom is the zero vector
    bonds [N, N]   float32, order 0, 1, 2 or 3 of the kekulised molecule, symmetric, zero diagonal

Charges and stereo are dropped: decode(encode(m)) is m without its stereo only where no atom but N+ and O+ (and these
by the rule below) carries a charge, 67.8 % of ZINC250k and 99.3 % of QM9. Decoding a real state:

    order     0 below 1/2, 1 below 3/2, 2 below 5/2, 3 from there on
    element   the first channel above 1/2; an atom with none is absent, and so are its bonds
    charge    bonds are added one by one, (i, j) with i > j, row by row. After each, the first atom whose valence
              exceeds what RDKit permits becomes +1 if it is N, O or S and exceeds its normal valence (3, 2, 2) by
              exactly one

RDKit lets sulfur have 2, 4 or 6 bonds, so the rule never meets it there. A graph is *valid without correction* where
its valences pass now; nothing else in RDKit's sanitisation can fail on a kekulised graph, so this is
`chemistry.reason`, save that a graph without atoms counts as invalid. `correct` goes on: while a valence is exceeded,
the first such atom's highest bond (of equal ones the earliest) is lowered by one, and removed at zero; then the
component with the longest SMILES string is kept.
Source: Jo, Lee & Hwang 2022, arXiv 2202.02514, and its published code.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from scidiff.core.errors import UsageError
from scidiff.domains.molecule import chemistry
from scidiff.domains.molecule.codec import coloured, lossless, parse_token

if TYPE_CHECKING:
    from rdkit.Chem import Mol

THRESHOLDS = (0.5, 1.5, 2.5)
_GAINING = {"N": 3, "O": 2, "S": 2}


class QuantisedCodec:
    """Elements (most frequent first) and the largest number of heavy atoms; encodes and decodes."""

    def __init__(self, elements: Sequence[str], n_max: int) -> None:
        self.tokens, self.n_max = tuple(str(e) for e in elements), int(n_max)
        if not self.tokens or len(set(self.tokens)) != len(self.tokens):
            raise UsageError("A molecule codec needs elements without repetition.")
        if self.n_max < 1:
            raise UsageError(f"A molecule codec needs n_max >= 1, not {n_max}.")
        for token in self.tokens:
            if parse_token(token)[1]:
                raise UsageError(f"The codec 'gdss' knows elements without charges, and {token!r} has one.")

    @classmethod
    def fit(cls, molecules: Iterable[Mol]) -> QuantisedCodec:
        """Elements by falling frequency (ties by name) and the largest size of a set of molecules."""
        counts: Counter[str] = Counter()
        n_max = 0
        for mol in molecules:
            counts.update(a.GetSymbol() for a in mol.GetAtoms())
            n_max = max(n_max, mol.GetNumAtoms())
        if not counts:
            raise UsageError("There is no molecule to learn the elements from.")
        return cls(sorted(counts, key=lambda e: (-counts[e], e)), n_max)

    def supports(self, mol: Mol) -> str:
        """Why this molecule cannot be encoded with these elements and this size; empty where it can. Charges may."""
        if mol.GetNumAtoms() > self.n_max:
            return f"{mol.GetNumAtoms()} heavy atoms exceed the largest size {self.n_max}"
        for atom in mol.GetAtoms():
            if atom.GetSymbol() not in self.tokens:
                return f"the element {atom.GetSymbol()} is not among {', '.join(self.tokens)}"
        return lossless(mol)

    def encode(self, molecules: Sequence[Mol]) -> tuple[dict[str, Tensor], Tensor]:
        """Sanitised molecules to ({"atoms" [B, N, F], "bonds" [B, N, N]} float32, sizes [B] int64), N = n_max.

        ScidiffError names the first molecule with an unknown element, too many atoms or a bond without a class.
        """
        index = {e: i for i, e in enumerate(self.tokens)}
        state, sizes = coloured(molecules, self.n_max, lambda a: index[a.GetSymbol()], self.supports, torch.uint8)
        hot = torch.nn.functional.one_hot(state["atoms"].long(), len(self.tokens)).float()
        real = torch.arange(self.n_max)[None, :] < sizes[:, None]
        return {"atoms": hot * real[..., None], "bonds": state["bonds"].float()}, sizes

    def quantised(self, state: dict[str, Tensor], sizes: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Elements [B, N] (index, -1 for an absent atom) and bond orders [B, N, N] between atoms that are there."""
        on = state["atoms"].detach().cpu() > 0.5
        n = on.shape[1]
        on &= (torch.arange(n)[None, :] < sizes.cpu()[:, None])[..., None]
        there = on.any(-1)
        # The index of the first maximum is promised by numpy, not by torch.
        elements = np.where(there.numpy(), on.numpy().argmax(-1), -1)
        orders = torch.bucketize(state["bonds"].detach().cpu(), torch.tensor(THRESHOLDS), right=True)
        orders = orders * (there[:, :, None] & there[:, None, :])
        return elements, orders.to(torch.uint8).numpy()

    def decode(self, state: dict[str, Tensor], sizes: Tensor, correct: bool = False) -> list[Mol]:
        """A real state to molecules, one per sample: sanitised where that succeeds, else the graph as it was drawn.

        Only entries below `sizes` and the lower triangle of the bonds are read. With `correct` every graph is corrected
        (module docstring) and remembers whether it had to be: `chemistry.was_corrected`.
        """
        elements, orders = self.quantised(state, sizes)
        number = (elements >= 0).cumsum(1) - 1
        b, i, j = np.nonzero(np.tril(orders, -1))
        bonds = list(zip(number[b, i].tolist(), number[b, j].tolist(), orders[b, i, j].tolist(), strict=True))
        ends = np.searchsorted(b, np.arange(len(elements) + 1)).tolist()
        out = []
        for row, first, last in zip(elements.tolist(), ends, ends[1:], strict=False):
            graph = _Graph([self.tokens[k] for k in row if k >= 0])
            for bond in bonds[first:last]:
                graph.add(*bond)
            if not correct:
                out.append(chemistry.finished(graph.molecule()))
                continue
            wrong = bool(graph.wrong)
            graph.correct()
            mol = chemistry.longest_component(chemistry.finished(graph.molecule()))
            out.append(chemistry.note_correction(mol, wrong))
        return out


class _Graph:
    """A molecular graph that grows bond by bond and knows which of its atoms exceed their valence."""

    def __init__(self, elements: list[str]) -> None:
        self.elements = elements
        self.charges = [0] * len(elements)
        self.used = [0] * len(elements)
        self.most = [_most(e, 0) for e in elements]
        self.bonds: dict[tuple[int, int], int] = {}  # in the order in which they came
        self.wrong: set[int] = set()

    def add(self, i: int, j: int, order: int) -> None:
        """One more bond, and the charge that it may call for."""
        self.bonds[i, j] = order
        self._count(i, order)
        self._count(j, order)
        if self.wrong:
            atom = min(self.wrong)
            if self.used[atom] - _GAINING.get(self.elements[atom], self.used[atom]) == 1:
                self.charges[atom], self.most[atom] = 1, _most(self.elements[atom], 1)
                self._count(atom, 0)

    def correct(self) -> None:
        """Lowers bonds until no valence is exceeded."""
        while self.wrong:
            atom = min(self.wrong)
            bond = max((b for b in self.bonds if atom in b), key=self.bonds.__getitem__)
            order = self.bonds.pop(bond)
            if order > 1:
                self.bonds[bond] = order - 1
            for end in bond:
                self._count(end, -1)

    def _count(self, atom: int, change: int) -> None:
        self.used[atom] += change
        if self.used[atom] > self.most[atom]:
            self.wrong.add(atom)
        else:
            self.wrong.discard(atom)

    def molecule(self) -> Mol:
        """The raw graph as RDKit holds it."""
        from rdkit import Chem

        kinds = (None, Chem.BondType.SINGLE, Chem.BondType.DOUBLE, Chem.BondType.TRIPLE)
        mol = Chem.RWMol()
        for element, charge in zip(self.elements, self.charges, strict=True):
            atom = Chem.Atom(element)
            if charge:
                atom.SetFormalCharge(charge)
            mol.AddAtom(atom)
        for (i, j), order in self.bonds.items():
            mol.AddBond(i, j, kinds[order])
        return mol


def _most(element: str, charge: int) -> int:
    return chemistry.largest_valence(element, charge) or 0
