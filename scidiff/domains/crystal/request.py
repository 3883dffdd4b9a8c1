"""What is asked of a sample, as a Context: composition, number of atoms, allowed elements, a fixed cell, fixed sites.

    formula   NaCl, or several with commas: types are clamped, `ctx.known["types"]`, atoms in order of their classes
    z         formula units (as written) per cell, 1,2,4 or 1-4: sample i takes the i-th pair of formula and z, in
              turn. Without it z is drawn by (seed, i) from the sizes of the training set
    num_atoms, sizes   7 or 4-9; with a formula: only multiples of such a size
    elements  Li,O,P,Fe: no others; `ctx.meta["allowed_types"]` bool [B, K], obeyed by guidance.AllowedElements
    lattice   a, b, c [Angstrom], alpha, beta, gamma [degrees]; or a, b, c; or a of a cube; or nine numbers:
              `ctx.known["lattice"]`
    sites     "Ti 0 0 0; O 0.5 0 0": the first atoms and where they stand, `ctx.known` of types and frac
    like      a data set, file or folder whose compositions are predicted, with split and root (rows.py)
    poscar    true: POSCAR files as well

Clamps are carried out by core/guidance/clamp.py. What is asked depends on (seed, id) alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scidiff.core.errors import UsageError, nearest
from scidiff.core.run import uniform
from scidiff.core.spec import Context
from scidiff.domains.crystal.codec import CrystalCodec
from scidiff.domains.crystal.entries import from_lengths
from scidiff.domains.crystal.formula import Composition, element, elements, formulas, multiples, parse
from scidiff.domains.crystal.formula import text as written
from scidiff.domains.sizes import Sizes

if TYPE_CHECKING:
    from scidiff.domains.base import Request

SIZES = Sizes("num_atoms", "atoms", ("5", "4-12"), "crystal.size")
OPTIONS = (*SIZES.names, "formula", "z", "elements", "lattice", "sites", "poscar", "like", "split", "root")
ALLOWED = "allowed_types"
_Z_TAG = "crystal.z"
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"

Site = tuple[str, tuple[float, float, float]]


@dataclass(frozen=True)
class Cell:
    """One content of a cell: formula as written, formula units, counted elements."""

    formula: str
    z: int
    content: Composition

    @property
    def atoms(self) -> int:
        return sum(self.content.values())


def context(request: Request, codec: CrystalCodec, histogram: Sequence[float], task: str) -> Context:
    """The Context of a request; UsageError in one sentence for what the model cannot make."""
    for key in request.options:
        if key not in OPTIONS:
            raise UsageError(f"Crystals are generated without an option {key!r}.", nearest(key, OPTIONS))
    wish = {key: value for key, value in request.options.items() if value not in (None, "")}
    _possible(wish, task)
    if "like" in wish:
        return _alike(request, wish, codec)
    held = sites(wish["sites"]) if "sites" in wish else []
    for name, _ in held:
        _known_element(name, codec)
    ctx_known: dict[str, tuple[Tensor, Tensor]] = {}
    meta: dict[str, Any] = {}
    if "formula" in wish:
        chosen = _chosen(request, wish, codec, histogram)
        sizes = torch.tensor([cell.atoms for cell in chosen], dtype=torch.int64, device=request.ids.device)
        ctx_known["types"] = _types([cell.content for cell in chosen], held, codec, request.ids.device)
    else:
        sizes = SIZES.draw(request, histogram, codec.n_max)
        if held:
            sizes = _roomy(sizes, len(held), codec.n_max)
            ctx_known["types"] = _types([{} for _ in sizes], held, codec, request.ids.device)
    if held:
        ctx_known["frac"] = _places(held, request.num, codec.n_max, request.ids.device)
    if "elements" in wish:
        allowed = torch.tensor([[name in elements(wish["elements"]) for name in codec.elements]])
        if not allowed.any():
            raise UsageError(f"This model knows none of {', '.join(elements(wish['elements']))}.",
                             f"It knows {', '.join(codec.elements)}.")
        allowed = torch.nn.functional.pad(allowed, (0, max(2 - allowed.shape[1], 0)))
        meta[ALLOWED] = allowed.repeat(request.num, 1).to(request.ids.device)
    if "lattice" in wish:
        ctx_known["lattice"] = _cell(wish["lattice"], codec, request)
    if wish.get("poscar"):
        meta["poscar"] = True
    return Context(request.ids, sizes, codec.n_max, known=ctx_known, meta=meta)


def _alike(request: Request, wish: dict[str, Any], codec: CrystalCodec) -> Context:
    from scidiff.domains.crystal import rows

    other = next((key for key in wish if key not in ("like", "split", "root", "poscar")), None)
    if other is not None:
        raise UsageError(f"The rows of {wish['like']} already say what is predicted.", f"Leave {other} out.")
    ctx = rows.context(request, str(wish["like"]), codec)
    return replace(ctx, meta={**ctx.meta, **({"poscar": True} if wish.get("poscar") else {})})


def _possible(wish: dict[str, Any], task: str) -> None:
    """UsageError where options contradict each other, or the model was trained for another task."""
    if ("formula" in wish or "like" in wish) and task == "dng":
        raise UsageError("This model makes crystals of compositions of its own and was not trained for a given one.",
                         "Leave formula out, or take a model of the task csp or both.")
    if "formula" not in wish and "like" not in wish and task == "csp":
        raise UsageError("This model predicts the structure of a given composition.", "Name one, such as formula=NaCl.")
    if "formula" in wish and "elements" in wish:
        raise UsageError("A formula already says which elements there are.", "Give a formula or elements, not both.")
    if "z" in wish and "formula" not in wish:
        raise UsageError("z counts formula units per cell, and no formula is given.",
                         "Add formula=NaCl, or leave z out.")
    if "poscar" in wish and not isinstance(wish["poscar"], bool):
        raise UsageError(f"poscar is true or false, not {wish['poscar']!r}.")


def cells(formula: str, z: Any, codec: CrystalCodec, histogram: Sequence[float] = (),
          asked: tuple[int, int] | None = None) -> tuple[list[Cell], list[float]]:
    """The cells that a formula may mean, and their weights (empty where z was given: one after the other).

    Without z every multiple up to n_max counts as often as cells of its size occur in the training set; where none
    occurs, the formula is taken as it is written.
    """
    unit = parse(formula)
    for name in unit:
        _known_element(name, codec, f" ({formula})")
    atoms = sum(unit.values())
    low, high = asked or (1, codec.n_max)
    named = multiples(z) if z is not None else tuple(range(1, codec.n_max // atoms + 1)) or (1,)
    if z is not None and (large := next((k for k in named if k * atoms > codec.n_max), None)):
        fits = codec.n_max // atoms
        raise UsageError(f"{formula} with z={large} has {large * atoms} atoms, and this model makes at most "
                         f"{codec.n_max}.", f"Take z up to {fits}." if fits else "Take a smaller formula.")
    if atoms > codec.n_max:
        raise UsageError(f"{formula} has {atoms} atoms, and this model makes at most {codec.n_max}.")
    found = [Cell(formula, k, {name: k * count for name, count in unit.items()}) for k in named
             if low <= k * atoms <= high]
    if not found:
        raise UsageError(f"No multiple of {formula} ({atoms} atoms) has between {low} and {high} atoms.",
                         f"Ask for num_atoms={atoms * max(1, min(round(high / atoms), codec.n_max // atoms))}.")
    if z is not None:
        return found, []
    weights = [float(histogram[c.atoms]) if c.atoms < len(histogram) else 0.0 for c in found]
    return (found, weights) if sum(weights) > 0 else (found[:1], [1.0])


def _chosen(request: Request, wish: dict[str, Any], codec: CrystalCodec, histogram: Sequence[float]) -> list[Cell]:
    """The cell of each sample."""
    size = SIZES.asked(request)
    asked = None if size is None else SIZES.within(size, codec.n_max)
    offered = [cells(f, wish.get("z"), codec, histogram, asked) for f in formulas(wish["formula"])]
    numbers = request.ids.cpu().tolist()
    if "z" in wish:
        pairs = [cell for found, _ in offered for cell in found]
        return [pairs[i % len(pairs)] for i in numbers]
    drawn = uniform(request.seed, request.ids.cpu(), _Z_TAG)[:, 0].tolist()
    chosen = []
    for i, u in zip(numbers, drawn, strict=True):
        found, weights = offered[i % len(offered)]
        rising = torch.tensor(weights, dtype=torch.float64).cumsum(0)
        k = int(torch.searchsorted(rising / rising[-1], torch.tensor(u, dtype=torch.float64)))
        chosen.append(found[min(k, len(found) - 1)])
    return chosen


def _types(contents: Sequence[Composition], held: Sequence[Site], codec: CrystalCodec,
           device: torch.device) -> tuple[Tensor, Tensor]:
    """Known classes [B, N] and where they are known: held sites first, then the rest of each composition."""
    index = {name: i for i, name in enumerate(codec.elements)}
    first = [index[name] for name, _ in held]
    x0 = torch.zeros(len(contents), codec.n_max, dtype=torch.int64)
    where = torch.zeros(len(contents), codec.n_max, dtype=torch.bool)
    for b, content in enumerate(contents):
        left = dict(content)
        for name, _ in held if content else ():
            left[name] = left.get(name, 0) - 1
            if left[name] < 0:
                raise UsageError(f"The fixed sites hold more {name} than {written(content)} does.")
        row = first + sorted(index[name] for name, count in left.items() for _ in range(count))
        x0[b, : len(row)] = torch.tensor(row, dtype=torch.int64)
        where[b, : len(row)] = True
    return x0.to(device), where.to(device)


def _roomy(sizes: Tensor, least: int, n_max: int) -> Tensor:
    if least > n_max:
        raise UsageError(f"{least} sites are fixed, and this model makes at most {n_max} atoms.")
    return sizes.clamp(min=least)


def _places(held: Sequence[Site], count: int, n_max: int, device: torch.device) -> tuple[Tensor, Tensor]:
    x0 = torch.zeros(n_max, 3)
    x0[: len(held)] = torch.tensor([place for _, place in held]).remainder(1.0)
    where = (torch.arange(n_max) < len(held)).unsqueeze(-1).expand(n_max, 3)
    return x0.repeat(count, 1, 1).to(device), where.repeat(count, 1, 1).to(device)


def _cell(given: Any, codec: CrystalCodec, request: Request) -> tuple[Tensor, Tensor]:
    """The fixed cell in the chart, [B, d], and where it is known."""
    x = codec.standardised(codec.cell.encode(matrix(given).unsqueeze(0))).float()
    x = x.repeat(request.num, 1).to(request.ids.device)
    return x, torch.ones_like(x, dtype=torch.bool)


def matrix(given: Any) -> Tensor:
    """The cell [3, 3], float64, that an option `lattice` describes; UsageError where it describes none."""
    words = _flat(given) if isinstance(given, (list, tuple)) else re.split(r"[\s,;]+", str(given).strip())
    numbers = [float(w) for w in words if re.fullmatch(_NUMBER, w)]
    if len(numbers) != len(words) or len(numbers) not in (1, 3, 6, 9) or not all(map(math.isfinite, numbers)):
        raise UsageError(f"lattice={given} does not describe a cell.",
                         "Write a,b,c,alpha,beta,gamma in Angstrom and degrees, such as lattice=4.2,4.2,4.2,90,90,90.")
    if len(numbers) == 9:
        found = torch.tensor(numbers, dtype=torch.float64).view(3, 3)
        if abs(float(torch.linalg.det(found))) < 1e-3:
            raise UsageError("The lattice that is asked for has no volume.")
        return found
    lengths = numbers * 3 if len(numbers) == 1 else numbers[:3]
    cell = from_lengths(lengths, numbers[3:] or [90.0] * 3)
    if isinstance(cell, str):
        raise UsageError(f"lattice={given} does not describe a cell: {cell}.")
    return torch.from_numpy(cell)


def _flat(values: Sequence[Any]) -> list[str]:
    return [x for value in values for x in (_flat(value) if isinstance(value, (list, tuple)) else [str(value)])]


def sites(given: Any) -> list[Site]:
    """"Ti 0 0 0; O .5 .5 0", or a list of such texts or of [element, x, y, z], to elements and places."""
    rows = [r for r in re.split(r"[;\n]", given) if r.strip()] if isinstance(given, str) else list(given)
    found: list[Site] = []
    for row in rows:
        words = re.split(r"[\s,@]+", row.strip()) if isinstance(row, str) else [str(x) for x in row]
        if len(words) != 4 or not all(re.fullmatch(_NUMBER, w) for w in words[1:]):
            raise UsageError(f"The site {row!r} is not an element and three fractional coordinates.",
                             "Write sites='Ti 0.5 0.5 0.5; O 0.5 0.5 0'.")
        found.append((element(words[0]), (float(words[1]), float(words[2]), float(words[3]))))
    return found


def _known_element(name: str, codec: CrystalCodec, where: str = "") -> None:
    if name not in codec.elements:
        raise UsageError(f"This model knows no {name}{where}: its training set has none.",
                         f"It knows {', '.join(codec.elements)}.")


def of_structures(structures: Sequence[Any], codec: CrystalCodec, ids: Tensor) -> Context:
    """The context that predicts structures of the compositions of given crystals; atoms in order of their classes."""
    from scidiff.domains.crystal.codec import composition

    if len(structures) != len(ids):
        raise UsageError(f"{len(structures)} crystals have {len(ids)} sample numbers.")
    contents = [composition(structure) for structure in structures]
    for content in contents:
        for name in content:
            _known_element(name, codec)
    counts = [sum(content.values()) for content in contents]
    if max(counts, default=0) > codec.n_max:
        raise UsageError(f"A crystal has {max(counts)} atoms, and this model makes at most {codec.n_max}.")
    sizes = torch.tensor(counts, dtype=torch.int64, device=ids.device)
    return Context(ids, sizes, codec.n_max, known={"types": _types(contents, [], codec, ids.device)})
