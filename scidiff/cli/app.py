"""The verbs. Each one turns its flags into overrides and hands the composed settings to `scidiff.api`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from scidiff.cli import feedback, flags
from scidiff.cli.flags import Batch, Debug, Device, Dry, From, Many, Out, Seed, Steps
from scidiff.core.errors import ScidiffError, UsageError

app = typer.Typer(
    name="scidiff",
    help="Generative models for science: molecules, graphs, crystals, medical images, PDEs.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    epilog="Settings are written key=value and win over flags; 'scidiff show VERB' lists them.",
)


def _version(wanted: bool) -> None:
    if wanted:
        import scidiff
        from scidiff.store.run import git_commit

        commit = git_commit()
        print(f"scidiff {scidiff.__version__}" + (f" ({commit})" if commit else ""))
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")]


@app.callback()
def root(version: Version = False, debug: Debug = False) -> None:
    """Generative models for science: molecules, graphs, crystals, medical images, PDEs."""


@app.command()
def generate(
    words: flags.Words = None,
    num: Annotated[int | None, typer.Option("-n", "--num", help="samples to draw (sampling.num)")] = None,
    source: From = None,
    seed: Seed = None,
    steps: Steps = None,
    out: Out = None,
    resume: flags.Resume = None,
    only: flags.Only = None,
    num_atoms: flags.Sizes = None,
    formula: flags.Formula = None,
    units: flags.Units = None,
    elements: flags.Elements = None,
    lattice: flags.Lattice = None,
    sites: flags.Sites = None,
    like: flags.Like = None,
    poscar: flags.Poscar = False,
    start: flags.Start = None,
    rank: flags.Rank = False,
    condition: flags.Condition = None,
    guide: flags.Guide = None,
    device: Device = None,
    batch: Batch = None,
    multirun: Many = False,
    dry_run: Dry = False,
    debug: Debug = False,
) -> None:
    """Draw samples from a trained model.

    Examples: scidiff generate molecule -n 100; scidiff generate crystal --formula NaCl --z 1,2,4 -n 20 --rank
    """
    from scidiff.cli import overrides as o
    from scidiff.cli.work import domain_words, resumed, work

    bare, settings = o.split_words(words)
    settled = {
        "sampling.num": o.positive("-n", num),
        "seed": seed,
        "sampling.steps": o.positive("--steps", steps),
        "sampling.sizes": o.sizes(num_atoms),
        "sampling.chunk": o.positive("--batch", batch),
        "sampling.start": start,
        "sampling.rank": True if rank else None,
        **flags.of_crystals(formula, units, elements, lattice, sites, like, poscar),
    }
    asked = [*o.conditions(condition), *o.guide(guide), *o.assign(settled)]
    if resume is not None:
        more = [*asked, *settings, *(["--from"] if source else []), *(["-m"] if multirun else [])]
        ids = o.sample_ids(only)
        work("generate", resumed("generate", resume, more, bare=bare, only=ids, out=out, device=device), dry_run)
        return
    words = [*domain_words("generate", bare, settings, source), *asked]
    words += o.assign({"out": out, "device": device, "sampling.only": o.sample_ids(only)})
    work("generate", [*words, *settings], dry_run, multirun)


@app.command()
def reconstruct(
    words: flags.Scans = None,
    operator: Annotated[str | None, typer.Option(help="how it was measured (operator)")] = None,
    views: Annotated[int | None, typer.Option(help="projections of a tomograph (operator.views)")] = None,
    acceleration: Annotated[float | None, typer.Option(help="undersampling of k-space (operator.acceleration)")] = None,
    posterior: Annotated[str | None, typer.Option(help="how the measurement is used (posterior)")] = None,
    samples: Annotated[int | None, typer.Option("-n", "--samples", help="samples to draw (sampling.num)")] = None,
    sinogram: Annotated[str | None, typer.Option(help="measured line integrals, .npy (sinogram)")] = None,
    geometry: Annotated[str | None, typer.Option(help="their geometry, .yaml (geometry)")] = None,
    kspace: Annotated[str | None, typer.Option(help="measured k-space, .npy (kspace)")] = None,
    frame: Annotated[int | None, typer.Option(help="volume of a series over time (frame)")] = None,
    size: Annotated[int | None, typer.Option(help="average slices to so many pixels a side (size)")] = None,
    force: Annotated[bool, typer.Option("--force", help="go on outside of what the prior knows (force)")] = False,
    source: From = None,
    seed: Seed = None,
    steps: Steps = None,
    out: Out = None,
    resume: flags.Resume = None,
    device: Device = None,
    batch: Annotated[int | None, typer.Option(help="slices that the network sees at once (sampling.chunk)")] = None,
    condition: flags.Condition = None,
    multirun: Many = False,
    dry_run: Dry = False,
    debug: Debug = False,
) -> None:
    """Reconstruct a volume from a measurement. Not for clinical use.

    Examples: scidiff reconstruct scan.nii.gz --operator ct_sparse --views 20; scidiff reconstruct --kspace k.npy;
    scidiff reconstruct chest_phantom --operator ct_sparse --posterior fbp
    """
    from scidiff.cli import overrides as o
    from scidiff.cli.work import offered, resumed, scanned, work

    bare, settings = o.split_words(words)
    settled = {
        "operator": operator, "operator.views": o.positive("--views", views), "operator.acceleration": acceleration,
        "posterior": posterior, "sinogram": sinogram, "geometry": geometry, "kspace": kspace, "frame": frame,
        "size": o.positive("--size", size), "force": True if force else None, "from": source, "seed": seed,
        "sampling.num": o.positive("--samples", samples), "sampling.steps": o.positive("--steps", steps),
        "sampling.chunk": o.positive("--batch", batch),
    }
    asked = [*o.conditions(condition), *o.assign(settled)]
    if resume is not None:
        more = [*bare, *asked, *settings, *(["--out"] if out else []), *(["-m"] if multirun else [])]
        work("reconstruct", resumed("reconstruct", resume, more, device=device), dry_run)
        return
    about = {"domain": offered("reconstruct", settings), "out": out, "device": device}
    about["input"] = scanned(bare, measured=bool(sinogram or kspace or {"sinogram", "kspace"} & o.keys(settings)))
    work("reconstruct", [*o.assign(about), *asked, *settings], dry_run, multirun)


@app.command()
def rollout(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[EQUATION|MODEL] [KEY=VALUE]...", show_default=False)
    ] = None,
    source: From = None,
    members: Annotated[int | None, typer.Option("-n", "--members", help="size of the ensemble (sampling.num)")] = None,
    steps: Annotated[int | None, typer.Option(help="time steps (sampling.length)")] = None,
    trajectories: Annotated[int | None, typer.Option(help="first states (sampling.trajectories)")] = None,
    init: Annotated[str | None, typer.Option(help="file with first states (init)")] = None,
    condition: flags.Condition = None,
    seed: Seed = None,
    out: Out = None,
    resume: flags.Resume = None,
    device: Device = None,
    batch: Batch = None,
    multirun: Many = False,
    dry_run: Dry = False,
    debug: Debug = False,
) -> None:
    """Roll a model out in time, as an ensemble, beside the equation where it is known.

    Example: scidiff rollout ks --members 16 --steps 200
    """
    from scidiff.cli import overrides as o
    from scidiff.cli.work import offered, resumed, rolled, work

    bare, settings = o.split_words(words)
    settled = {
        "sampling.num": o.positive("--members", members), "sampling.length": o.positive("--steps", steps),
        "sampling.trajectories": o.positive("--trajectories", trajectories), "init": init, "seed": seed,
        "sampling.chunk": o.positive("--batch", batch),
    }
    asked = [*o.conditions(condition), *o.assign(settled)]
    if resume is not None:
        more = [*bare, *asked, *settings, *(["--from"] if source else []), *(["--out"] if out else [])]
        work("rollout", resumed("rollout", resume, more, device=device), dry_run)
        return
    about = {"domain": offered("rollout", settings), **rolled(bare, source), "out": out, "device": device}
    work("rollout", [*o.assign(about), *asked, *settings], dry_run, multirun)


@app.command()
def train(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME] [KEY=VALUE]...", show_default=False, help=flags.RECIPES)
    ] = None,
    condition: Annotated[list[str] | None, typer.Option(metavar="NAME", help=flags.CONDITIONED)] = None,
    seed: Seed = None,
    out: Out = None,
    resume: flags.Resume = None,
    device: Device = None,
    multirun: Many = False,
    dry_run: Dry = False,
    debug: Debug = False,
) -> None:
    """Train a model, or many in a sweep.

    Examples: scidiff train qm9_flow; scidiff train -m qm9_flow trainer.lr=1e-3,2e-3; scidiff train nci5k_flow
    --condition logp (then scidiff generate --from RUN --condition logp=1.5 --guide 2)
    """
    from scidiff.cli import overrides as o
    from scidiff.cli.work import resumed, work

    bare, settings = o.split_words(words)
    if len(bare) > 1:
        raise UsageError(f"'train' takes one experiment, not {', '.join(bare)}.")
    asked = [*o.assign({"experiment": bare[0] if bare else None, "seed": seed}), *o.conditioned(condition)]
    if resume is not None:
        more = [*asked, *settings, *(["--out"] if out else []), *(["-m"] if multirun else [])]
        work("train", resumed("train", resume, more, device=device), dry_run)
        return
    work("train", [*asked, *o.assign({"out": out, "device": device}), *settings], dry_run, multirun)


@app.command()
def evaluate(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="PATH [KEY=VALUE]...", show_default=False, help=flags.MEASURED)
    ] = None,
    reference: Annotated[str | None, typer.Option(help="data set to compare with (reference)")] = None,
    num: Annotated[int | None, typer.Option("-n", "--num", help="use the first so many (sampling.num)")] = None,
    publish: Annotated[bool, typer.Option("--publish", help="write benchmarks/RESULTS.md anew (publish)")] = False,
    out: Out = None,
    seed: Seed = None,
    device: Device = None,
    dry_run: Dry = False,
    debug: Debug = False,
) -> None:
    """Measure a run, a file or a folder of samples.

    Example: scidiff evaluate my.smi --reference qm9
    """
    from scidiff.cli import overrides as o
    from scidiff.cli.work import judged, one_path, work

    bare, settings = o.split_words(words)
    path = None if publish and not bare else one_path("evaluate", bare)
    settled = {
        "path": path, "reference": reference, "publish": True if publish else None, "out": out, "seed": seed,
        "sampling.num": o.positive("-n", num), "device": device,
    }
    work("evaluate", [*judged(path, reference, settings), *o.assign(settled), *settings], dry_run)


@app.command("list")
def list_(
    kind: Annotated[str | None, typer.Argument(metavar="[KIND]", show_default=False)] = None,
    debug: Debug = False,
) -> None:
    """Show what there is.

    Kinds: domains, data, backbones, processes, objectives, solvers, guidance, trainers, experiments, models
    """
    from scidiff.cli.catalog import list_kind, overview

    overview() if kind is None else list_kind(kind)


@app.command()
def show(
    what: Annotated[str, typer.Argument(metavar="VERB|GROUP/NAME", show_default=False)],
    words: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", show_default=False)] = None,
    debug: Debug = False,
) -> None:
    """Show the settings of a verb and where each comes from.

    Examples: scidiff show generate domain=molecule; scidiff show data/qm9
    """
    from scidiff.cli.catalog import show_option, show_verb

    show_option(what) if "/" in what else show_verb(what, words or [])


@app.command()
def copy(
    what: Annotated[str, typer.Argument(metavar="GROUP/NAME|FILE.pth", show_default=False)],
    to: Annotated[str, typer.Argument(metavar="FOLDER", show_default=False)],
    words: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", show_default=False)] = None,
    force: Annotated[bool, typer.Option("--force", help="replace what is there")] = False,
    debug: Debug = False,
) -> None:
    """Copy a config, to change it; or a released GDSS weight file, as a model of ours.

    Examples: scidiff copy experiment/qm9_flow .; scidiff copy gdss_qm9.pth my_qm9 (then scidiff generate --from
    my_qm9); data.path=FILE or data.root=FOLDER say how large its samples are
    """
    from scidiff.cli.catalog import copy_option
    from scidiff.cli.work import converted, is_released

    if is_released(what):
        converted(what, to, words or [], force)
        return
    if words:
        raise UsageError(f"'copy' of a config has no setting {words[0]!r}.")
    copy_option(what, Path(to), force)


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(metavar="DATA", show_default=False)],
    debug: Debug = False,
) -> None:
    """Bring a data set into the cache.

    Example: scidiff fetch qm9
    """
    from scidiff.cli.work import bring

    bring(name)


@app.command()
def doctor(debug: Debug = False) -> None:
    """Show versions, extras, GPU, cache and data folders."""
    from scidiff.cli.doctor import examine

    examine()


@app.command()
def new(
    what: Annotated[str, typer.Argument(metavar="domain", show_default=False)],
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False)],
    into: Annotated[str, typer.Option(help="folder that receives the package")] = ".",
    debug: Debug = False,
) -> None:
    """Write a package for a domain of your own.

    Example: scidiff new domain toy
    """
    from scidiff.cli.new import KINDS, create

    if what not in KINDS:
        raise UsageError(f"'new' cannot write a {what!r}.", f"It writes: {', '.join(KINDS)}.")
    create(what, name, Path(into))


def run(arguments: list[str]) -> int:
    """Runs one command and returns its exit code."""
    arguments = arguments or ["--help"]
    debug = "--debug" in arguments
    feedback.show_log()
    command: Any = typer.main.get_command(app)
    before, sys.argv = sys.argv, [sys.argv[0], *arguments]  # what a run folder keeps as its command
    try:
        code = command.main(arguments, prog_name="scidiff", standalone_mode=False)
    except KeyboardInterrupt:
        return feedback.fail(feedback.Interrupted("Interrupted."), debug)
    except BrokenPipeError:  # `scidiff list | head`
        sys.stderr.close()
        return 0
    except ScidiffError as error:
        return feedback.fail(error, debug)
    except Exception as error:  # the outermost frame: every defect becomes one sentence, --debug has the rest
        return feedback.fail(error, debug)
    finally:
        sys.argv = before
    return code if isinstance(code, int) else 0


def main() -> None:
    """Entry point of the command `scidiff`."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
