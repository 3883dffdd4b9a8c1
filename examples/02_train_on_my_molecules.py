"""Train a model on molecules of your own and draw new ones from it.

`data` is a .smi, .csv or .sdf file, or nci5k: 4,999 real molecules that RDKit's package carries, so nothing is
downloaded. The same with two commands:

    scidiff train experiment=nci5k_flow
    scidiff generate molecule --from runs/train/nci5k_flow/...

    python examples/02_train_on_my_molecules.py [data=mine.smi] [fast=true] [out=runs/mine]
"""

from __future__ import annotations

import sys

import scidiff


def main(data: str = "nci5k", fast: bool = False, out: str = "runs/mine") -> None:
    settings = ["data=nci5k"] if data == "nci5k" else ["data=smiles_file", f"data.path={data}"]
    # trainer=cpu_short takes some minutes; debug stops after twenty steps, when the molecules are still nonsense.
    settings += ["trainer=debug", "data.limit=200"] if fast else ["trainer=cpu_short"]
    trained = scidiff.train(["domain=molecule", *settings, f"out={out}/model"])
    print(f"Model: {trained.folder}")

    number, steps = (8, 5) if fast else (100, 50)
    drawn = scidiff.generate(["domain=molecule", f"from={trained.folder}", f"sampling.num={number}",
                              f"sampling.steps={steps}", f"out={out}/samples"])
    for row in drawn.samples.table()[:5]:
        print(f"{row['id']}  {row['smiles'][:60]}  {'valid' if row['valid'] else row['reason']}")
    print(f"{len(drawn.samples.valid)} of {len(drawn.samples)} are valid. Report: {drawn.folder / 'report.html'}")


if __name__ == "__main__":
    main(**{key: value == "true" if key == "fast" else value
            for key, _, value in (word.partition("=") for word in sys.argv[1:])})
