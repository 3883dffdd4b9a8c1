"""YAML and overrides in, one plain dictionary out. The only module that knows Hydra.

A verb (`train`, `generate`, ...) has a primary config `conf/<verb>.yaml`. `compose` merges it with the groups that its
defaults list names and with overrides `key=value`, checks it, and returns plain dicts, lists and numbers. Everything
that goes wrong is one `UsageError` sentence.

Places that are searched, in this order:
    ./conf                      of the working directory, where there is one
    conf/ of scidiff            from a wheel, an editable install or a bare checkout
    <package>/conf              of every package that declares an entry point in the group `scidiff.domains`

A domain's YAML (`# @package _global_`) names its whole training recipe as defaults. Verbs that sample take the recipe
from the model instead: there the recipe is dropped after the merge, and `solver` holds only what was asked for, a whole
solver (`solver=heun`) or single settings without `_target_` (`solver.eta=5`) to be laid over the model's own.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from scidiff.core.errors import MissingLibrary, ScidiffError, UsageError, nearest
from scidiff.store.locate import shared_folder
from scidiff.store.targets import plugin_packages

VERBS = ("generate", "reconstruct", "rollout", "train", "evaluate")
SAMPLING = ("generate", "reconstruct", "rollout")
RECIPE = ("data", "backbone", "process", "objective", "trainer", "logger", "experiment")
FREE = ("condition.", "domain.options.", "data.options.")
"""Mappings whose keys a model, a domain or a reader decides: any key may be set there."""

ROOT = "data.root"
"""The folder of a data set's files: the one part of the recipe that every verb may be told."""

_log = logging.getLogger("scidiff")


@dataclass(frozen=True)
class Place:
    """One folder of configs; owner: `local`, `scidiff` or the name of a plug-in package."""

    owner: str
    folder: Path


class _Places(SearchPathPlugin):
    """Puts `places()` around Hydra's own entry for the packaged configs."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for place in places():
            if place.owner == "local":
                search_path.prepend("local", f"file://{place.folder}")
            elif place.owner != "scidiff":
                search_path.append(place.owner, f"file://{place.folder}")


def places() -> list[Place]:
    """Every folder that is searched for configs, first match first."""
    own = shared_folder("conf")
    local = Path.cwd() / "conf"
    found = [Place("local", local)] if local.is_dir() and local.resolve() != own.resolve() else []
    found.append(Place("scidiff", own))
    for package in plugin_packages():
        spec = find_spec(package)
        for root in (spec.submodule_search_locations or ()) if spec else ():
            if (Path(root) / "conf").is_dir():
                found.append(Place(package, Path(root) / "conf"))
    return found


def options(group: str) -> dict[str, Path]:
    """Name -> file of every option of a config group, as found in `places()`."""
    found: dict[str, Path] = {}
    for place in places():
        for file in sorted((place.folder / group).glob("*.yaml")):
            found.setdefault(file.stem, file)
    return dict(sorted(found.items()))


def groups() -> list[str]:
    """Every config group that has an option."""
    folders = {file.parent.relative_to(p.folder).as_posix() for p in places() for file in p.folder.rglob("*.yaml")}
    return sorted(folders - {"."})


def read_option(group: str, name: str) -> dict[str, Any]:
    """The raw content of one option's file; nearest names where there is none."""
    known = options(group)
    if name not in known:
        raise UsageError(f"There is no {_noun(group)} named {name!r}.", nearest(name, known))
    try:
        content = yaml.safe_load(known[name].read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ScidiffError(f"The config {known[name]} cannot be read: {_line(error)}") from error
    return content if isinstance(content, dict) else {}


def compose(verb: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The checked, resolved settings of `verb` as a plain dictionary."""
    words = _prepare(verb, overrides)
    with _session(), _sentences(verb, words):
        return _composed(verb, words)


def explain(verb: str, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], dict[str, str]]:
    """The settings and, for each dotted key, the file (or `command line`) that it came from."""
    words = _prepare(verb, overrides)
    with _session(), _sentences(verb, words):
        settings = _composed(verb, words)
        return settings, _origins(verb, words, settings)


def sweep(verb: str, overrides: Sequence[str], job: Callable[[dict[str, Any]], Any]) -> Path:
    """Runs `job` for every combination (`seed=1,2`) through Hydra's sweeper and launcher; returns the sweep's folder.

    Inside a job `sys.argv` is the command of that job alone, so that processes which a trainer starts anew repeat the
    job and not the sweep.
    """
    words = _prepare(verb, overrides)
    given = [word.split("=", 1)[1].strip("'\"") for word in words if word.startswith("hydra.sweep.dir=")]
    folder = Path(given[0] if given else f"runs/{verb}/sweep_{time.strftime('%Y-%m-%d_%H-%M-%S')}").absolute()
    words = [word for word in words if not word.startswith("hydra.sweep.dir=")]
    program = sys.argv[0]

    def task(merged: DictConfig) -> Any:
        about = HydraConfig.get()
        mine = [str(word) for word in about.overrides.task]
        settings = _finish(merged, dict(about.runtime.choices), verb, mine)
        if settings.get("out") is None:
            settings["out"] = str(about.runtime.output_dir)
        before, sys.argv = sys.argv, [program, verb, *mine, f"out={quote(settings['out'])}"]
        try:
            return job(settings)
        finally:
            sys.argv = before

    with _session(), _sentences(verb, words):
        GlobalHydra.instance().hydra.multirun(verb, task, [*words, f"hydra.sweep.dir={quote(folder)}"])
    return folder


def quote(value: object) -> str:
    """The value as Hydra's override grammar reads it back unchanged."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"[{','.join(quote(item) for item in value)}]"
    text = re.sub(r"(\\+)('|\$\{|$)", r"\1\1\2", str(value))
    escaped = text.replace("'", "\\'").replace("${", "\\${")
    return f"'{escaped}'"


@contextmanager
def _session() -> Iterator[None]:
    """Hydra, initialised on the packaged configs; a Hydra application around us gets its own state back."""
    plugins = Plugins.instance()
    if _Places not in plugins.discover(SearchPathPlugin):
        plugins.register(_Places)
    holder = GlobalHydra.instance()
    outer = holder.hydra
    holder.clear()
    try:
        with hydra.initialize_config_dir(str(shared_folder("conf")), job_name="scidiff", version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra = outer


def _prepare(verb: str, overrides: Sequence[str]) -> list[str]:
    if verb not in VERBS:
        raise UsageError(f"There is no verb {verb!r} with a config.", nearest(verb, VERBS))
    words = []
    for word in overrides:
        key = word.split("=", 1)[0].lstrip("+~")
        root = key.split("@")[0].split(".")[0]
        if not root or not ("=" in word or word.startswith("~")):
            raise UsageError(f"{word!r} is not a setting.", "Settings are written key=value.")
        if verb in SAMPLING and root in RECIPE and key != ROOT:
            raise UsageError(
                f"{verb!r} takes the {_noun(root)} from the model, so {key!r} cannot be set.",
                "Choose another model with --from, or set it in 'scidiff train'.",
            )
        free = key.startswith(FREE) or (key == ROOT and verb != "train")
        words.append(f"++{word}" if word[0] not in "+~" and free else word)
    for place in places():
        if place.owner == "local":
            _log.info("Configs in ./conf are searched first.")
    return words


def _composed(verb: str, words: Sequence[str]) -> dict[str, Any]:
    merged = hydra.compose(verb, list(words), return_hydra_config=True)
    return _finish(merged, dict(merged.hydra.runtime.choices), verb, words)


def _finish(merged: DictConfig, choices: dict[str, Any], verb: str, words: Sequence[str]) -> dict[str, Any]:
    """Plain dict without Hydra's part; domain agreement checked; the recipe dropped where a model decides it."""
    dropped = {"hydra"} if verb == "train" else {"hydra", *RECIPE}
    settings: dict[str, Any] = {}
    for key in map(str, merged):
        if key in dropped:
            continue
        if OmegaConf.is_missing(merged, key):
            raise UsageError(f"The setting {key!r} has no value.", f"Give one: {key}=...")
        node = merged[key]
        if OmegaConf.is_config(node) and (missing := sorted(OmegaConf.missing_keys(node))):
            raise UsageError(f"The setting {missing[0]!r} has no value.", f"Give one: {missing[0]}=...")
        settings[key] = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    root = OmegaConf.select(merged, ROOT, default=None) if verb != "train" else None
    if root is not None:
        settings["data"] = {"root": str(Path(str(root)).expanduser().absolute())}
    _agree(settings, choices)
    if verb == "train" and settings.get("experiment") is None:
        settings["experiment"] = choices.get("experiment")
    if verb in SAMPLING:
        asked = [word.split("=", 1)[0].lstrip("+") for word in words]
        if "solver" not in asked:
            whole, settings["solver"] = settings.get("solver"), {}
            for key in (key for key in asked if key.startswith("solver.")):
                _pick({"solver": whole}, settings, key.split("."))
    elif verb == "evaluate":
        settings.pop("solver", None)
    _ranges(settings)
    return settings


def _pick(source: Any, target: dict[str, Any], path: Sequence[str]) -> None:
    """Copies the one value at `path` from nested dicts into nested dicts."""
    for step in path[:-1]:
        source, target = source[step], target.setdefault(step, {})
    target[path[-1]] = source[path[-1]]


def _agree(settings: dict[str, Any], choices: dict[str, Any]) -> None:
    """Data and backbone say which domain they are made for; a node with a target loses that word afterwards."""
    name = (settings.get("domain") or {}).get("name")
    for group in ("data", "backbone", "objective", "operator"):
        node = settings.get(group)
        if not isinstance(node, dict):
            continue
        made_for = node.get("domain")
        accepted = [made_for] if isinstance(made_for, str) else list(made_for or ())
        if name and accepted and name not in accepted:
            fitting = [option for option in options(group) if name in str(read_option(group, option).get("domain"))]
            raise UsageError(
                f"The {_noun(group)} {choices.get(group) or node.get('name')!r} belongs to the domain "
                f"{' or '.join(accepted)}, not to {name!r}.",
                f"For {name}: {', '.join(fitting)}." if fitting else f"There is no {_noun(group)} for {name!r}.",
            )
        if "_target_" in node:
            node.pop("domain", None)


def _ranges(settings: dict[str, Any]) -> None:
    sampling = settings.get("sampling") or {}
    for place, key in ((sampling, "num"), (sampling, "chunk"), (sampling, "steps")):
        value = place.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise UsageError(f"sampling.{key} must be a whole number above 0, not {value!r}.")
    seed = settings.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise UsageError(f"The seed must be a whole number from 0 to 2^63 - 1, not {seed!r}.")


def _origins(verb: str, words: Sequence[str], settings: dict[str, Any]) -> dict[str, str]:
    """Dotted leaf key -> where its value was set last."""
    loader = GlobalHydra.instance().config_loader()
    repository = loader.repository  # type: ignore[attr-defined]
    found: dict[str, str] = {}
    for default in loader.compute_defaults_list(verb, list(words), RunMode.RUN).defaults:
        if default.config_path is None or default.config_path.startswith("hydra/"):
            continue
        loaded = repository.load_config(default.config_path)
        folder = Path(loaded.path.removeprefix("file://"))
        inside = default.package or ""
        for key in _leaves(OmegaConf.to_container(loaded.config)):
            found[f"{inside}.{key}" if inside else key] = _shown(folder / f"{default.config_path}.yaml")
    for word in words:
        found[word.split("=", 1)[0].lstrip("+~")] = "command line"
    return {key: found.get(key, _nearest_parent(key, found)) for key in _leaves(settings)}


def _leaves(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    elif prefix:
        yield prefix


def _nearest_parent(key: str, found: dict[str, str]) -> str:
    while "." in key:
        key = key.rpartition(".")[0]
        if key in found:
            return found[key]
    return ""


def _shown(file: Path) -> str:
    for base in (Path.cwd(), shared_folder("conf").parent):
        if file.is_relative_to(base):
            return file.relative_to(base).as_posix()
    return str(file)


@contextmanager
def _sentences(verb: str, words: Sequence[str]) -> Iterator[None]:
    try:
        yield
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise _sentence(error, verb, words) from error
    except ValueError as error:
        if "override" not in str(error):  # Hydra's complaint about `domain=4`; any other is not ours to reword
            raise
        raise _sentence(error, verb, words) from error


def _sentence(error: Exception, verb: str, words: Sequence[str]) -> ScidiffError:
    """Hydra's and OmegaConf's errors in the words of this program."""
    text = str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        if group == "hydra/launcher" and name.startswith("submitit"):
            return MissingLibrary("hydra-submitit-launcher", "The SLURM launcher", 'pip install "scidiff[slurm]"')
        known = set(error.options or ()) | set(options(group)) if group else set(VERBS)
        return UsageError(f"There is no {_noun(group)} named {name!r}.", nearest(name, known))
    if "Could not override" in text:
        key = text.split("'")[1]
        known = _keys(verb) | set(groups())
        if not key:
            return UsageError("A setting has no name.", "Settings are written key=value.")
        return UsageError(f"{verb!r} has no setting {key!r}.", nearest(key, known))
    if text.startswith("Ambiguous value"):
        word = text.split("'")[1]
        return UsageError(f"{word!r} lists several values.", "Add -m to run them all, or write key=[a,b] for a list.")
    if isinstance(error, OverrideParseException):
        culprit = next((word for word in words if word in text), " ".join(words))
        return UsageError(f"The setting {culprit!r} cannot be read ({_line(error)}).", "Quote it: key='value'.")
    cause = error.__cause__ or error
    return UsageError(f"The settings of {verb!r} cannot be put together: {_line(cause)}.")


def _keys(verb: str) -> set[str]:
    """Every dotted key that `verb` knows without overrides."""
    try:
        merged = OmegaConf.to_container(hydra.compose(verb, []))
    except (HydraException, OmegaConfBaseException):
        return set()
    dropped = RECIPE if verb != "train" else ()
    leaves = [key for key in _leaves(merged) if key.split(".")[0] not in dropped]
    return set(leaves) | {key.split(".")[0] for key in leaves}


def _noun(group: str) -> str:
    return {"data": "data set", "hydra/launcher": "launcher", "": "config"}.get(group, group)


def _line(error: object) -> str:
    return " ".join(str(error).split("\n    ")[0].split("\nSee")[0].split()).rstrip(".")
