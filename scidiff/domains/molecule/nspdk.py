"""Neighbourhood-subgraph pairwise-distance features (Costa and De Grave, ICML 2010), vectorised over molecules.

Graph: heavy atoms labelled by element, bonds by the integer part of their order in the sanitised molecule (aromatic
counts as 1). With D the distances in bonds, an atom v has layers

    nodes(v, k) = multiset of (element, degree) of atoms at distance k
    edges(v, k) = multiset of bond labels whose nearer end is at distance k

and the neighbourhood code P(v, r) hashes nodes(v, 0), edges(v, 0), ..., edges(v, r-1), nodes(v, r); it exists
where some atom lies at distance >= r. Every ordered pair (v, u) at distance d <= 4 gives, for each radius r <= 4
that both have, the feature hash({P(v, r), P(u, r)}, r, d) and the half feature hash(P(u, r), r, d), 16 bits each.
Counts are divided by their Euclidean norm within each (r, d), then each molecule by its own. The distance between
sets is the linear-kernel MMD^2 || mean phi(P) - mean phi(Q) ||^2 (GDSS, Jo et al., ICML 2022, through EDeN). Two
details differ from EDeN: hashes are stable (it uses Python's randomised string hash), and features of different
(r, d) that share a bin add up (it overwrites).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from scidiff.domains.molecule.fingerprints import SparseRows

if TYPE_CHECKING:
    from rdkit.Chem import Mol

BITS = 16
RADIUS = DISTANCE = 4
_FAR = 64
_CHUNK = 2048
_STEP = np.uint64(0x9E3779B97F4A7C15)
_A, _B = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64 finaliser of uint64 numbers, elementwise."""
    x = (x ^ (x >> np.uint64(30))) * _A
    x = (x ^ (x >> np.uint64(27))) * _B
    return x ^ (x >> np.uint64(31))


def combine(left: np.ndarray, right: np.ndarray | int) -> np.ndarray:
    """An order-sensitive hash of two uint64 numbers."""
    return mix(mix(left + _STEP) * _STEP + np.asarray(right, dtype=np.uint64))


def nspdk_rows(molecules: Sequence[Mol], bits: int = BITS) -> SparseRows:
    """Feature rows of sanitised molecules, width 2^bits (published: 16; at most 40), each of Euclidean norm 1."""
    parts = []
    for start in range(0, len(molecules), _CHUNK):
        row, column, value = _chunk(molecules[start : start + _CHUNK], bits)
        parts.append((row + start, column, value))
    if not parts:
        empty = np.zeros(0, dtype=np.int64)
        return SparseRows(empty, empty, np.zeros(0), 0, 1 << bits)
    row, column, value = (np.concatenate(x) for x in zip(*parts, strict=True))
    return SparseRows(row, column, value, len(molecules), 1 << bits)


def _chunk(molecules: Sequence[Mol], bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    width, low = np.uint64(bits), np.uint64((1 << bits) - 1)
    label, distance, bonds, nearest = _arrays(molecules)
    codes, reach = _codes(label, distance, bonds, nearest)
    keys = []
    with np.errstate(over="ignore"):
        for d in range(DISTANCE + 1):
            b, v, u = np.nonzero(distance == d)
            for r in range(RADIUS + 1):
                keep = (reach[b, v] >= r) & (reach[b, u] >= r)
                p, q, mol = codes[r, b[keep], v[keep]], codes[r, b[keep], u[keep]], b[keep]
                block = np.uint64(r * (DISTANCE + 1) + d)
                pair = combine(combine(np.minimum(p, q), np.maximum(p, q)), block)
                half = combine(mix(q), block + np.uint64(64))
                feature = np.concatenate([pair, half]) & low
                where = (np.concatenate([mol, mol]).astype(np.uint64) << np.uint64(5)) | block
                keys.append((where << width) | feature)
    key, counts = np.unique(np.concatenate(keys), return_counts=True)
    group = (key >> width).astype(np.int64)
    value = counts / np.sqrt(np.bincount(group, weights=counts.astype(np.float64) ** 2))[group]
    # blocks of one molecule that share a bin become one entry
    merged, inverse = np.unique(((key >> (width + np.uint64(5))) << width) | (key & low), return_inverse=True)
    value = np.bincount(inverse, weights=value)
    row = (merged >> width).astype(np.int64)
    norm = np.sqrt(np.bincount(row, weights=value**2, minlength=len(molecules)))
    return row, (merged & low).astype(np.int64), value / norm[row]


def _arrays(molecules: Sequence[Mol]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Hashed atoms [B, N] (0 on padding), distances [B, N, N], hashed bonds [B, E] and their ends [B, E, 2]."""
    from rdkit import Chem

    n_max = max(m.GetNumAtoms() for m in molecules)
    e_max = max(max(m.GetNumBonds() for m in molecules), 1)
    size = len(molecules)
    label = np.zeros((size, n_max), dtype=np.uint64)
    distance = np.full((size, n_max, n_max), _FAR, dtype=np.int64)
    bond = np.zeros((size, e_max), dtype=np.uint64)
    ends = np.zeros((size, e_max, 2), dtype=np.int64)
    for b, mol in enumerate(molecules):
        n = mol.GetNumAtoms()
        label[b, :n] = [(a.GetAtomicNum() << 8) + a.GetDegree() for a in mol.GetAtoms()]
        distance[b, :n, :n] = np.minimum(Chem.GetDistanceMatrix(mol), _FAR)
        rows = [(x.GetBeginAtomIdx(), x.GetEndAtomIdx(), int(x.GetBondTypeAsDouble()) + 1) for x in mol.GetBonds()]
        if rows:
            table = np.array(rows, dtype=np.int64)
            ends[b, : len(rows)], bond[b, : len(rows)] = table[:, :2], table[:, 2]
    with np.errstate(over="ignore"):
        label = np.where(label > 0, mix(label * _STEP), np.uint64(0))
        bond = np.where(bond > 0, mix(bond * _STEP + np.uint64(1)), np.uint64(0))
    return label, distance, bond, ends


def _codes(
    label: np.ndarray, distance: np.ndarray, bond: np.ndarray, ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Neighbourhood codes uint64 [radius, B, N], and the largest radius that each atom has [B, N]."""
    size, n_max = label.shape
    index = np.arange(size)[:, None]
    nearest = np.minimum(distance[index, ends[..., 0]], distance[index, ends[..., 1]])  # [B, E, N]
    codes = np.zeros((RADIUS + 1, size, n_max), dtype=np.uint64)
    near = distance < _FAR
    reach = np.where(near, distance, 0).max(-1)
    with np.errstate(over="ignore"):
        code = np.zeros((size, n_max), dtype=np.uint64)
        for r in range(RADIUS + 1):
            if r:
                edges = ((nearest == r - 1) * bond[:, :, None]).sum(1, dtype=np.uint64)
                code = combine(code, edges)
            nodes = ((distance == r) * label[:, None, :]).sum(-1, dtype=np.uint64)
            code = combine(code, nodes)
            codes[r] = code
    return codes, reach
