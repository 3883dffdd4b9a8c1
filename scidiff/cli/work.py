"""The one place where a verb of the command line meets `scidiff.api`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scidiff import config
from scidiff.cli import feedback
from scidiff.cli.overrides import assign
from scidiff.core.errors import ScidiffError, UsageError, nearest


def work(verb: str, settings: Sequence[str] | Mapping[str, Any], dry_run: bool = False, multirun: bool = False) -> None:
    """Composes (unless the settings are whole already), then prints them, sweeps over them, or does the work."""
    if dry_run and multirun:
        raise UsageError("--dry-run shows one run.", "Leave out -m.")
    if isinstance(settings, Mapping):
        whole = dict(settings)
    elif multirun:
        folder = config.sweep(verb, settings, lambda one: call(verb, one))
        print(f"Sweep: {folder}")
        return
    else:
        whole = config.compose(verb, settings)
    if dry_run:
        from scidiff.cli.catalog import as_yaml

        print(as_yaml(whole), end="")
        return
    call(verb, whole)


def call(verb: str, settings: dict[str, Any]) -> None:
    """`api.<verb>(settings, progress)`, with a bar before and a summary after it."""
    _writable(settings.get("out"))
    with feedback.Progress() as progress:
        try:
            from scidiff import api

            result = getattr(api, verb)(settings, progress=progress)
        except KeyboardInterrupt as stop:
            folder = progress.folder or settings.get("out")
            if folder is None:
                raise feedback.Interrupted("Interrupted before anything was written.") from stop
            raise feedback.Interrupted(
                f"Interrupted; what is finished lies in {folder}.", f"Continue with: scidiff {verb} --resume {folder}"
            ) from stop
    folder = getattr(result, "folder", None) or progress.folder
    rows: Any = getattr(result, "summary", None) or {}
    feedback.summary(f"scidiff {verb}", rows() if callable(rows) else rows, folder, _following(verb, settings, folder))


def resumed(
    verb: str,
    folder: str,
    more: Sequence[str],
    *,
    bare: Sequence[str] = (),
    only: list[str] | None = None,
    out: str | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """The settings of a run that is to be continued, or of which single samples are to be drawn again."""
    from scidiff.store.run import open_existing

    if more:
        raise UsageError(f"A resumed run keeps its own settings; leave out {more[0]!r}.")
    if out is not None and only is None:
        raise UsageError("A resumed run stays in its folder.", "Leave out --out.")
    run = open_existing(folder, allow_finished=only is not None)
    settings = run.config
    made_by = {"trainer": "train", "input": "reconstruct", "init": "rollout"}
    if verb != next((v for k, v in made_by.items() if k in settings), "generate") or "sampling" not in settings:
        raise UsageError(f"{folder} is not a run of 'scidiff {verb}'.")
    own = (settings.get("domain") or {}).get("name")
    if bare and list(bare) != [own]:
        raise UsageError(f"The run {folder} belongs to the domain {own!r}, not {' '.join(bare)!r}.")
    settings["resume"], settings["out"] = str(folder), out or str(folder)
    if only is not None:
        settings["sampling"]["only"] = only
    if device is not None:
        settings["device"] = config.compose("evaluate", assign({"device": device}))["device"]
    return settings


def domain_words(verb: str, bare: Sequence[str], settings: Sequence[str], source: str | None) -> list[str]:
    """The overrides for the domain and the model; a model that is named brings its domain."""
    from scidiff.store import checkpoint

    if len(bare) > 1:
        raise UsageError(f"{verb!r} takes one domain, not {', '.join(bare)}.", "Settings are written key=value.")
    known = config.options("domain")
    domain = bare[0] if bare else None
    if domain is not None and domain not in known:
        raise UsageError(f"There is no domain named {domain!r}.", nearest(domain, known))
    if source is not None:
        content = checkpoint.read_config(checkpoint.find(source))
        own = str((content.get("domain") or {}).get("name", ""))
        if domain is not None and own != domain:
            raise UsageError(f"The model {source!r} makes objects of the domain {own!r}, not {domain!r}.")
        if own not in known:
            raise ScidiffError(f"The model {source!r} needs the domain {own!r}, which is not installed.")
        domain = own
    offers = _about(domain).get("offers", (verb,)) if domain is not None else (verb,)
    if verb not in offers:
        raise UsageError(f"The domain {domain!r} does not offer {verb!r}.", f"It offers: {', '.join(offers)}.")
    if domain is None and not any(word.startswith("domain=") for word in settings):
        able = [name for name in known if verb in _about(name).get("offers", (verb,))]
        raise UsageError(f"Say what to {verb}.", f"Name a domain ({', '.join(able)}) or a model with --from.")
    return assign({"domain": domain, "from": source})


def offered(verb: str, settings: Sequence[str]) -> str | None:
    """The domain that offers an optional verb, if the settings do not name one."""
    known = config.options("domain")
    able = [name for name in known if verb in _about(name).get("offers", ())]
    if not able:
        raise UsageError(f"No installed domain offers {verb!r} yet.", f"Installed: {', '.join(known)}.")
    named = [word.split("=", 1)[1] for word in settings if word.startswith("domain=")]
    if named and named[0] not in able:
        raise UsageError(f"The domain {named[0]!r} does not offer {verb!r}.", f"These do: {', '.join(able)}.")
    if not named and len(able) > 1:
        raise UsageError(f"Several domains offer {verb!r}.", f"Choose one: {' or '.join(f'domain={n}' for n in able)}.")
    return None if named else able[0]


def rolled(bare: Sequence[str], source: str | None) -> dict[str, str | None]:
    """The equation and the model of `rollout`: one word is a model where there is one of that name."""
    from scidiff.store import checkpoint

    if len(bare) > 1:
        raise UsageError(f"'rollout' takes one equation or model, not {', '.join(bare)}.")
    word = bare[0] if bare else None
    if word is None or source is not None:
        return {"equation": word, "from": source}
    if "/" not in word and not word.startswith((".", "~")):
        try:
            checkpoint.find(word)
        except UsageError:
            return {"equation": word}
    return {"from": word}


def _about(domain: str) -> dict[str, Any]:
    return config.read_option("domain", domain).get("domain") or {}


def one_path(verb: str, bare: Sequence[str]) -> str:
    """The one file or folder that a verb works on."""
    if len(bare) != 1:
        raise UsageError(f"{verb!r} takes one file or folder.", f"Write: scidiff {verb} PATH")
    if not Path(bare[0]).expanduser().exists():
        parent = Path(bare[0]).expanduser().parent
        beside = [entry.name for entry in parent.iterdir()] if parent.is_dir() else []
        close = nearest(Path(bare[0]).name, beside) if beside else ""
        raise UsageError(f"There is no file or folder {bare[0]!r}.", close if close.startswith("Did") else "")
    return bare[0]


def scanned(bare: Sequence[str], measured: bool) -> str | None:
    """The input of `reconstruct`: a file, a folder, or a data set of a domain that reconstructs; none beside a
    measurement."""
    from scidiff.store import cards

    if len(bare) > 1 or (bare and measured):
        raise UsageError(f"'reconstruct' takes one source, not {' and '.join([*bare, *['a measurement'] * measured])}.")
    if not bare:
        if measured:
            return None
        raise UsageError("Say what to reconstruct.", "Write: scidiff reconstruct SCAN --operator ct_sparse, or name a "
                         "measurement with --sinogram or --kspace.")
    able = [name for name in config.options("domain") if "reconstruct" in _about(name).get("offers", ())]
    if (bare[0] in cards.names() and cards.find(bare[0]).domain in able) or Path(bare[0]).expanduser().exists():
        return bare[0]
    if "/" not in bare[0] and "." not in bare[0]:
        known = [name for name in cards.names() if cards.find(name).domain in able]
        raise UsageError(f"There is no file, folder or data set {bare[0]!r} to reconstruct.", nearest(bare[0], known))
    return one_path("reconstruct", bare)


def judged(path: str | None, reference: str | None, settings: Sequence[str]) -> list[str]:
    """The domain override of `evaluate`: from the run, or from the card of the reference data set."""
    from scidiff.store import cards

    card = cards.find(reference) if reference is not None else None
    if any(word.startswith("domain=") for word in settings):
        return []
    run = Path(path).expanduser() if path else None
    if run is not None and (run / "config.yaml").is_file() and (run / "environment.json").is_file():
        from scidiff.store.run import open_existing

        own = (open_existing(run, allow_finished=True).config.get("domain") or {}).get("name")
        if card is not None and own != card.domain:
            raise UsageError(
                f"The run {path} belongs to the domain {own!r}, the data set {reference!r} to {card.domain!r}."
            )
        return assign({"domain": own})
    if card is not None:
        return assign({"domain": card.domain})
    known = [name for name in config.options("domain") if "evaluate" in _about(name).get("offers", ())]
    if path is not None and len(known) > 1:
        from scidiff.domains import domain_class

        name = path.lower().removesuffix(".gz")
        known = [k for k in known if name.endswith(tuple(domain_class(k).extensions))] or known
    if path is not None and len(known) != 1:
        raise UsageError(f"Say what {path} holds.", f"Add one of: {', '.join(f'domain={name}' for name in known)}.")
    return assign({"domain": known[0]}) if path is not None else []


def bring(name: str) -> None:
    """`scidiff fetch NAME`."""
    from scidiff.store import cards

    cards.find(name)
    with feedback.Progress() as progress:
        from scidiff import api

        found = api.fetch(name, progress=progress)
    places = found.values() if isinstance(found, Mapping) else found if isinstance(found, (list, tuple)) else [found]
    for place in places:
        print(place)


def is_released(what: str) -> bool:
    """Whether `copy` is asked for a weight file of others, not for a config."""
    return what.lower().endswith((".pth", ".pt"))


def converted(file: str, out: str, words: Sequence[str], force: bool) -> None:
    """`scidiff copy FILE.pth OUT`."""
    one_path("copy", [file])
    settings = {key: value for key, _, value in (word.partition("=") for word in words)}
    for key in settings:
        if not key.startswith("data.") or not settings[key]:
            raise UsageError(f"'copy' of a weight file has no setting {key!r}.", "It takes data.root or data.path.")
    _writable(out)
    with feedback.Progress() as progress:
        from scidiff.api.released import copy_released

        data = {key.removeprefix("data."): value for key, value in settings.items()}
        made = copy_released(file, out, data, force, progress)
    feedback.summary("scidiff copy", made.summary, made.folder, f"scidiff generate --from {out}")


def _writable(out: str | None) -> None:
    """A sentence before the work, where the folder of the results cannot be made."""
    if out is None:
        return
    import os

    place = Path(out).expanduser().absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise UsageError(f"{out} cannot be a folder: {place} is a file.", "Name another one with --out.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UsageError(f"{place} cannot be written to.", "Name another folder with --out.")


def _following(verb: str, settings: Mapping[str, Any], folder: Any) -> str:
    if folder is None:
        return ""
    domain = (settings.get("domain") or {}).get("name", "")
    if settings.get("prepare"):
        return f"python -m scidiff.training {folder}"
    offers = (settings.get("domain") or {}).get("offers") or ()
    next_verb = "rollout" if "rollout" in offers else f"generate {domain}"
    following = {"generate": f"scidiff evaluate {folder}", "train": f"scidiff {next_verb} --from {folder}",
                 "rollout": f"scidiff evaluate {folder}"}
    return following.get(verb, "")
