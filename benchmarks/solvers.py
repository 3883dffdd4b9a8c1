"""Solvers beside diffusers, k-diffusion and azula: cost of a step (B1), ODE accuracy (B2), SDE variance (B3).

    python benchmarks/solvers.py [--seed 100] [--only B1 B2 B3] [--out benchmarks/results/solvers.json]

Deterministic but for the clock, one thread, about a minute. Peers get the same noise levels and the same exact network;
a peer that is not installed is left out with a printed line. `--seed S` adds five random mixtures S .. S + 4.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from scidiff.store import atomic  # noqa: E402


def show(table: dict[str, Any]) -> None:
    """Prints one table as aligned text."""
    print(f"\n{table['title']}")
    heads = list(dict.fromkeys(key for row in table["rows"] for key in row))
    body = [[_text(row.get(h)) for h in heads] for row in table["rows"]]
    widths = [max(len(h), *(len(line[i]) for line in body)) for i, h in enumerate(heads)]
    for line in [heads, *body]:
        print(
            "  "
            + "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        )
    for note in table.get("notes", []):
        print("  " + note)


def _text(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, help="add random mixtures of five fresh seeds to B2")
    parser.add_argument("--only", nargs="+", choices=("B1", "B2", "B3"), default=["B1", "B2", "B3"])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "solvers.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.filterwarnings("ignore", module=r"diffusers|torchsde|k_diffusion")

    import accuracy
    import overhead
    import peers

    for line in peers.absent():
        print(line)
    versions = {"torch": torch.__version__, **peers.versions()}
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    tables = []
    for name, measure in (("B1", overhead.overhead), ("B2", lambda: accuracy.ode_accuracy(options.seed)),
                          ("B3", accuracy.sde_variance)):
        if name in options.only:
            found = measure()
            for table in found:
                show(table)
            tables += found
    command = "python benchmarks/solvers.py" + (f" --seed {options.seed}" if options.seed is not None else "")
    content = {"kind": "benchmark", "title": "Solvers beside other libraries", "command": command, "versions": versions,
               "notes": "One thread. Ratios compare runs of the same process, taken in turns.", "tables": tables}
    print(f"\n{atomic.write_json(options.out, content)}")


if __name__ == "__main__":
    main()
