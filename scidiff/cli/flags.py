"""Flags that several verbs share, and those of `generate` that belong to one domain."""

from __future__ import annotations

from typing import Annotated, Any

import typer

WORDS = "what to make (scidiff list domains), and settings"
RECIPES = "experiment (scidiff list experiments), and settings"
MEASURED = "run folder, file or folder of samples, and settings"
Words = Annotated[
    list[str] | None, typer.Argument(metavar="[DOMAIN] [KEY=VALUE]...", show_default=False, help=WORDS)
]
SCANS = "NIfTI file, folder of DICOM or medical data set, and settings"
Scans = Annotated[list[str] | None, typer.Argument(metavar="[INPUT] [KEY=VALUE]...", show_default=False, help=SCANS)]
From = Annotated[str | None, typer.Option("--from", help="shipped model, run, checkpoint or org/name (from)")]
Seed = Annotated[int | None, typer.Option(help="sample i depends on (seed, i) alone (seed)")]
Steps = Annotated[int | None, typer.Option(help="network calls a sample (sampling.steps)")]
Out = Annotated[str | None, typer.Option(help="folder of the results (out)")]
Resume = Annotated[str | None, typer.Option(metavar="DIR", help="continue this run (resume)")]
Only = Annotated[list[str] | None, typer.Option(metavar="ID", help="draw these samples alone, s0007 (sampling.only)")]
Wanted = typer.Option(metavar="K=V", help="what is wanted, logp=1.5; repeatable (condition.K)")
Condition = Annotated[list[str] | None, Wanted]
CONDITIONED = "property that samples can be asked for later; repeatable (condition.NAME=true)"
Guide = Annotated[float | None, typer.Option(help="strength of the condition (guidance=cfg guidance.weight)")]
Device = Annotated[str | None, typer.Option(help="auto, cpu or cuda (device)")]
Batch = Annotated[int | None, typer.Option(help="samples computed together (sampling.chunk)")]
Many = Annotated[bool, typer.Option("-m", "--multirun", help="run every combination of values a,b (sweep)")]
Dry = Annotated[bool, typer.Option("--dry-run", help="print the composed settings and stop")]
Debug = Annotated[bool, typer.Option("--debug", help="show tracebacks")]

_O = "domain.options"
Sizes = Annotated[
    str | None,
    typer.Option("--num-atoms", "--num-nodes", metavar="7|4-9", help="atoms or nodes of a sample (sampling.sizes)"),
]
Formula = Annotated[str | None, typer.Option(help=f"crystals: composition, NaCl ({_O}.formula)")]
Units = Annotated[str | None, typer.Option("--z", help=f"crystals: formula units per cell, 1,2,4 or 1-4 ({_O}.z)")]
Elements = Annotated[str | None, typer.Option(help=f"crystals: only these elements, Li,O ({_O}.elements)")]
Lattice = Annotated[str | None, typer.Option(help=f"crystals: fixed cell, a,b,c,alpha,beta,gamma ({_O}.lattice)")]
Sites = Annotated[str | None, typer.Option(help=f"crystals: fixed atoms, 'Ti 0 0 0; O .5 .5 0' ({_O}.sites)")]
Like = Annotated[str | None, typer.Option(metavar="DATA", help=f"crystals: predict its compositions ({_O}.like)")]
Poscar = Annotated[bool, typer.Option("--poscar", help=f"crystals: POSCAR files as well ({_O}.poscar)")]
Start = Annotated[str | None, typer.Option(metavar="template", help="where to begin, if not in noise (sampling.start)")]
Rank = Annotated[bool, typer.Option("--rank", help="order samples by the model's cost of them (sampling.rank)")]


def of_crystals(formula: str | None, units: str | None, elements: str | None, lattice: str | None, sites: str | None,
                like: str | None, poscar: bool) -> dict[str, Any]:
    """Overrides of the options of the crystal domain."""
    given = {"formula": formula, "z": units, "elements": elements, "lattice": lattice, "sites": sites, "like": like,
             "poscar": True if poscar else None}
    return {f"{_O}.{key}": value for key, value in given.items()}
