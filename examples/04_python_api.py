"""From a model to a report in Python: load, sample, look, measure, save.

Samples are native objects (here `rdkit.Chem.Mol`), each with an id, a verdict and the reason for it. Sample 7 is
sample 7 whatever is drawn with it, so a single one can be made again.

    python examples/04_python_api.py [model=qm9] [fast=true] [out=runs/api]
"""

from __future__ import annotations

import sys

import scidiff


def main(model: str = "qm9", fast: bool = False, out: str = "runs/api") -> None:
    loaded = scidiff.load(model, device="auto")
    number, steps = (16, 10) if fast else (200, 50)
    samples = loaded.sample(number, seed=0, steps=steps)
    print(f"{loaded.name} made {len(samples)} objects, {len(samples.valid)} of them valid.")
    for row in samples.table()[:5]:
        print(f"{row['id']}  {row['smiles']:30s}  {row['reason'] or 'valid'}")

    again = loaded.sample(1, seed=0, steps=steps, start=7)
    print(f"Sample 7 once more, alone: {again.table()[0]['smiles']}")

    files = samples.save(f"{out}/files")
    print("Files:", ", ".join(file.name for file in files))

    report = scidiff.evaluate([f"domain={loaded.domain.name}", f"path={out}/files/samples.csv",
                               f"reference={loaded.config['data']['name']}", f"out={out}/report"])
    for metric in report.metrics:
        if metric.value is not None:
            print(f"{metric.name:28s} {metric.value:.4g}   floor {metric.floor if metric.floor is not None else '-'}")
    print(f"Report: {report.folder / 'report.html'}")


if __name__ == "__main__":
    main(**{key: value == "true" if key == "fast" else value
            for key, _, value in (word.partition("=") for word in sys.argv[1:])})
