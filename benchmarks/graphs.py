"""Speed of the graph models: samples a second, where the time goes, growth with the nodes, GDSS beside its plain form.

    python benchmarks/graphs.py [--only speed shares growth gdss bf16] [--threads 1] [--out FILE]

speed   samples/s of the shipped models at 25, 50 and 100 network calls: QM9, ZINC250k, trees of 64 nodes, and the
        network of the trees on 128 nodes (its speed does not depend on what it has learned)
shares  10,000 molecules: seconds in the network, in the rest of the sampler, in decoding with verdicts, in metrics;
        the network's and the sampler's are those of 512 molecules, scaled
growth  milliseconds a graph and network call for 16 to 256 nodes, and the exponent between neighbours
gdss    the reverse process with Langevin corrector on networks of the published sizes, ours and the plain transcription
        of the published layers and loop (gdss_plain.py) in turns: milliseconds a step, and the largest difference of
        the end states from the same noise
bf16    QM9 with the network in bfloat16: time, validity, NSPDK (only where the processor has such instructions)

Times are processor time for one thread, wall time for more.
"""

from __future__ import annotations

import argparse
import math
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import gdss_plain as plain  # noqa: E402
import torch  # noqa: E402
from solvers import show  # noqa: E402

from scidiff import config  # noqa: E402
from scidiff.core.run import Run  # noqa: E402
from scidiff.core.spec import Context  # noqa: E402
from scidiff.domains import domain_class  # noqa: E402
from scidiff.domains.graph import GraphDomain  # noqa: E402
from scidiff.domains.model import Model, join  # noqa: E402
from scidiff.store import atomic  # noqa: E402
from scidiff.store.model import assemble  # noqa: E402
from scidiff.training.prepare import make_spec  # noqa: E402

PARTS = ("speed", "shares", "growth", "gdss", "bf16")
CALLS = (25, 50, 100)
MANY = 10_000
GDSS = {"qm9_gdss": (["C", "N", "O", "F"], 9), "zinc250k_gdss": (["C", "N", "O", "F", "P", "S", "Cl", "Br", "I"], 38)}


def clock() -> float:
    """Processor time where one thread works, wall time else."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def took(act: Callable[[], Any]) -> float:
    """Seconds of one call."""
    began = clock()
    act()
    return clock() - began


def resized(model: Model, nodes: int) -> Model:
    """A model of graphs that draws all of them with so many nodes."""
    domain = GraphDomain(**{**model.domain.options(), "n_max": nodes, "sizes": [0] * nodes + [1]})
    return Model(model.config, domain, model.spec, model.denoiser, model.folder)


def speed() -> dict[str, Any]:
    tree = Model.load("tree_flow")
    models = [("QM9, 9 atoms at most", Model.load("qm9_flow"), 512),
              ("ZINC250k, 38 at most", Model.load("zinc250k_flow"), 128),
              ("trees, 64 nodes", resized(tree, 64), 32), ("the same network, 128 nodes", resized(tree, 128), 8)]
    rows = []
    for title, model, count in models:
        model.sample(2, seed=1, steps=2)
        row: dict[str, Any] = {"model": title, "parameters": sum(p.numel() for p in model.denoiser.parameters())}
        for calls in CALLS:
            row[f"samples/s, {calls} calls"] = count / took(lambda n=calls, m=model, c=count: m.sample(c, 0, steps=n))
        rows.append(row)
        print(row, flush=True)
    return {"title": "Samples a second", "rows": rows}


@contextmanager
def timed(network: torch.nn.Module) -> Iterator[list[float]]:
    """Collects the seconds of every call of a network."""
    spent: list[float] = []
    began: list[float] = []
    hooks = [network.register_forward_pre_hook(lambda *_: began.append(clock())),
             network.register_forward_hook(lambda *_: spent.append(clock() - began.pop()))]
    try:
        yield spent
    finally:
        for hook in hooks:
            hook.remove()


def shares() -> dict[str, Any]:
    rows = [share(title, Model.load(name)) for title, name in (("QM9", "qm9_flow"), ("ZINC250k", "zinc250k_flow"))]
    return {"title": f"Where the time of {MANY:,} molecules goes", "rows": rows}


def share(title: str, model: Model, drawn: int = 512) -> dict[str, Any]:
    ctx, drawing = model.template(torch.arange(drawn), 0), model.drawing()
    chunks, states = model.chunks(ctx), {}
    with timed(model.denoiser.backbone) as spent:
        whole = took(lambda: states.update(model.draws(drawing, ctx, chunks, 0)))
    state, scale, rows = join(states, chunks), MANY / drawn, torch.arange(MANY) % drawn
    many, asked = {name: x[rows] for name, x in state.items()}, Context(torch.arange(MANY), ctx.sizes[rows], ctx.n_max)
    objects: list[Any] = []
    verdicts: list[Any] = []
    row = {"model": title, "network calls": drawing.nfe, "network s": sum(spent) * scale,
           "rest of the sampler s": (whole - sum(spent)) * scale,
           "decode s": took(lambda: objects.extend(model.domain.decode(many, asked))),
           "verdicts s": took(lambda: verdicts.extend(model.domain.check(objects))),
           "metrics without reference s": took(lambda: model.domain.metrics(objects, verdicts))}
    print(row, flush=True)
    return row


def growth() -> dict[str, Any]:
    tree, rows, calls = Model.load("tree_flow"), [], 6
    for nodes, count in ((16, 128), (32, 64), (64, 24), (128, 6), (256, 2)):
        model = resized(tree, nodes)
        model.sample(count, seed=1, steps=1)
        rows.append({"nodes": nodes, "ms a graph and call": 1e3 * took(lambda m=model, c=count: m.sample(
            c, 0, steps=calls)) / count / calls})
    for one, two in pairwise(rows):
        two["exponent"] = math.log2(two["ms a graph and call"] / one["ms a graph and call"])
    return {"title": "Growth with the nodes, network of the trees", "rows": rows}


def untrained(experiment: str) -> Model:
    """The model of a GDSS recipe before training, with all samples of the largest size."""
    recipe = config.compose("train", [f"experiment={experiment}"])
    tokens, n = GDSS[experiment]
    domain = domain_class("molecule")(tokens, n, [0] * n + [1], "gdss")
    spec = make_spec(domain, recipe["process"], {})
    backbone = {**recipe["backbone"], **domain.backbone_options(spec)}
    torch.manual_seed(0)
    _, denoiser = assemble({"spec": spec.to_config(), "backbone": backbone,
                            "denoiser": dict(recipe["process"].get("denoiser") or {})})
    return Model({"solver": recipe["solver"], "experiment": experiment}, domain, spec, denoiser.eval())


def gdss() -> dict[str, Any]:
    rows = [beside_plain(name, batch) for name, batch in (("qm9_gdss", 512), ("zinc250k_gdss", 512),
                                                          ("zinc250k_gdss", 66))]
    return {"title": "GDSS, reverse process with corrector (two joint network calls a step)", "rows": rows}


def beside_plain(experiment: str, batch: int, turns: int = 3, steps: int = 10) -> dict[str, Any]:
    model = untrained(experiment)
    ctx, method = model.template(torch.arange(batch), 0), model.config["solver"]["method"]
    sampler, real = model.drawing({"steps": steps}).sampler, torch.ones(batch, ctx.n_max)
    laws = [plain.Process(*law) for law in published(model)]
    pair = plain.lazy_scores(plain.PlainGDSS(model.denoiser.backbone), laws, real)
    run, names = Run(7), {"nodes": "atoms", "edges": "bonds"}

    def injected(name: str, role: str, step: int) -> torch.Tensor:
        run.step = 0 if role == "source" else 2 * step + (role == "step")
        return run.handle(ctx.at(names[name], model.spec[names[name]]), torch.float32).normal(role)

    def ours() -> Any:
        return sampler.run(ctx, 7).state

    def theirs(draw: Any) -> Any:
        with torch.inference_mode():
            start = injected("nodes", "source", 0), injected("edges", "source", 0)
            return plain.predictor_corrector(pair, start, laws, draw, steps, "reverse", method["snr"], method["scale"])

    found, expected = ours(), theirs(injected)
    apart = max(float((found[n] - x).abs().max() / x.abs().max())
                for n, x in zip(names.values(), expected, strict=True))
    draw = plain.randn_draw(expected[0], expected[1], real)
    times = [(took(ours), took(lambda: theirs(draw))) for _ in range(turns)]
    a, b = min(t[0] for t in times) / steps, min(t[1] for t in times) / steps
    row = {"shape": f"{experiment}, {ctx.n_max} atoms, batch {batch}", "ours ms a step": 1e3 * a,
           "plain ms a step": 1e3 * b, "ratio": a / b, "relative difference from the same noise": apart}
    print(row, flush=True)
    return row


def published(model: Model) -> list[tuple[str, float, float]]:
    """Kind and range of noise of both components, as the plain form takes them."""
    laws = []
    for component in model.spec.values():
        about = component.path.to_config()
        kind = "VE" if "sigma_min" in about else "VP"
        low, high = [k for k in about if k.endswith("_min") and k != "t_min"], [k for k in about if k.endswith("_max")]
        laws.append((kind, float(about[low[0]]), float(about[high[0]])))
    return laws


def bf16() -> dict[str, Any]:
    title = "QM9 in bfloat16"
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    if not any(flag in flags for flag in ("avx512_bf16", "amx_bf16")):
        return {"title": title, "rows": [{"processor": "has no bfloat16 products (AVX512-BF16 or AMX): not measured"}]}
    model = Model.load("qm9_flow")
    return {"title": title, "rows": [in_precision(model, precision) for precision in (32, "bf16")]}


def in_precision(model: Model, precision: int | str, count: int = 2000) -> dict[str, Any]:
    samples: list[Any] = []
    seconds = took(lambda: samples.append(model.sample(count, 0, precision=precision)))
    found = model.domain.metrics(samples[0].objects, samples[0].verdicts, model.domain.reference("qm9"))
    return {"precision": str(precision), "samples/s": count / seconds,
            **{m.name: m.value for m in found if m.name in ("valid", "NSPDK MMD^2")}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "graphs.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tables = []
    for part, measure in zip(PARTS, (speed, shares, growth, gdss, bf16), strict=True):
        if part in options.only:
            tables.append(measure())
            show(tables[-1])
    content = {"kind": "benchmark", "title": "Speed of graph models",
               "command": "python benchmarks/graphs.py", "versions": {"torch": torch.__version__},
               "notes": f"{platform.machine()}, {options.threads} thread(s). Compare ratios within a table, not times: "
                        "the machine may be shared.", "tables": tables}
    print(f"\n{atomic.write_json(options.out, content)}")


if __name__ == "__main__":
    main()
