"""Sparse feature rows of molecules, and distances between sets of them.

Sets P (generated, n rows x_i) and Q (reference, m rows y_j) with a linear kernel <x, y>:

    biased     MMD_b^2 = || mean x - mean y ||^2
    unbiased   MMD_u^2 = [ |sum x|^2 - sum |x_i|^2 ] / (n (n - 1)) + [ same of y ] - 2 <mean x, mean y>

Both intervals describe the draw of P with Q held fixed: with d = mean x - mean y and Sigma = Cov(x), the variance is
4 Var(<x, d>) / n + 2 tr(Sigma^2) / (n (n - 1)) (first and second Hoeffding terms; tr(Sigma^2) from pairs of a
subsample). Near MMD = 0 only the second term is left, so a bootstrap of the first alone would be too narrow.

Morgan features: counts of circular environments up to radius 2, folded into 4,096 bins, without stereo, each row
divided by its Euclidean norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from rdkit.Chem import Mol

MORGAN_BINS = 4096
_PAIR_SAMPLE = 400


@dataclass(frozen=True)
class SparseRows:
    """`count` rows of `width` features: entry k adds value[k] at (row[k], column[k]); rows ascend."""

    row: np.ndarray
    column: np.ndarray
    value: np.ndarray
    count: int
    width: int

    def sum(self) -> np.ndarray:
        """Sum of the rows, float64 [width]."""
        return np.bincount(self.column, weights=self.value, minlength=self.width)

    def mean(self) -> np.ndarray:
        """Mean of the rows, float64 [width]."""
        return self.sum() / max(self.count, 1)

    def project(self, direction: np.ndarray) -> np.ndarray:
        """<x_i, direction> for every row, float64 [count]."""
        return np.bincount(self.row, weights=self.value * direction[self.column], minlength=self.count)

    def squared_norms(self) -> np.ndarray:
        """|x_i|^2, float64 [count]; entries of one row have distinct columns."""
        return np.bincount(self.row, weights=self.value**2, minlength=self.count)

    def take(self, index: np.ndarray) -> SparseRows:
        """The rows at the distinct positions `index`, in that order."""
        place = np.full(self.count, -1, dtype=np.int64)
        place[index] = np.arange(len(index))
        new = place[self.row]
        keep = np.flatnonzero(new >= 0)
        order = keep[np.argsort(new[keep], kind="stable")]
        return SparseRows(new[order], self.column[order], self.value[order], len(index), self.width)

    def dense(self) -> np.ndarray:
        """float64 [count, used columns]: the columns that occur, in ascending order."""
        used, position = np.unique(self.column, return_inverse=True)
        out = np.zeros((self.count, len(used)))
        np.add.at(out, (self.row, position), self.value)
        return out


@dataclass(frozen=True)
class LinearReference:
    """What a linear-kernel MMD needs of its reference: mean, and unbiased self term mean_{j != k} <y_j, y_k>."""

    mean: np.ndarray
    self_term: float
    count: int

    @classmethod
    def of(cls, rows: SparseRows) -> LinearReference:
        return cls(rows.mean(), unbiased_self(rows), rows.count)


def unbiased_self(rows: SparseRows) -> float:
    """Mean of <x_i, x_j> over i != j."""
    n = rows.count
    if n < 2:
        return float("nan")
    total = rows.sum()
    return float((total @ total - rows.squared_norms().sum()) / (n * (n - 1)))


def mmd_biased(rows: SparseRows, reference: LinearReference) -> float:
    """|| mean x - mean y ||^2, the published form of the NSPDK MMD."""
    difference = rows.mean() - reference.mean
    return float(difference @ difference)


def mmd_unbiased(rows: SparseRows, reference: LinearReference) -> float:
    """Unbiased in both sets; may be slightly negative."""
    return unbiased_self(rows) + reference.self_term - 2.0 * float(rows.mean() @ reference.mean)


def mmd_deviation(rows: SparseRows, reference: LinearReference) -> float:
    """Standard error of either MMD^2 over draws of the rows (module docstring)."""
    n = rows.count
    if n < 3:
        return float("nan")
    mean = rows.mean()
    sample = rows if n <= _PAIR_SAMPLE else rows.take(np.linspace(0, n - 1, _PAIR_SAMPLE).astype(np.int64))
    used = np.unique(sample.column)
    centred = sample.dense() - mean[used]
    outside = float(mean @ mean - mean[used] @ mean[used])  # centred rows also hold -mean on the unused columns
    gram = centred @ centred.T + outside
    k = sample.count
    trace = (float((gram**2).sum()) - float((np.diag(gram) ** 2).sum())) / (k * (k - 1))
    # the estimated direction carries the noise of the mean, which adds tr(Sigma^2) / n to the variance along it
    along = float(np.var(rows.project(mean - reference.mean), ddof=1)) - trace / n
    return float(np.sqrt(4.0 * max(along, 0.0) / n + 2.0 * trace / (n * (n - 1))))


def morgan_rows(molecules: Sequence[Mol]) -> SparseRows:
    """L2-normalised Morgan-2 count vectors in 4,096 bins of sanitised molecules (stereo plays no part)."""
    from rdkit.Chem import rdFingerprintGenerator

    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=MORGAN_BINS, includeChirality=False)
    row: list[int] = []
    column: list[int] = []
    value: list[float] = []
    for i, mol in enumerate(molecules):
        counts = generator.GetCountFingerprint(mol).GetNonzeroElements()
        norm = sum(c * c for c in counts.values()) ** -0.5
        row += [i] * len(counts)
        column += counts.keys()
        value += [c * norm for c in counts.values()]
    return SparseRows(
        np.array(row, dtype=np.int64),
        np.array(column, dtype=np.int64),
        np.array(value, dtype=np.float64),
        len(molecules),
        MORGAN_BINS,
    )
