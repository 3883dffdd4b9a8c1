"""Configs to objects, without trusting the config.

A node is a plain mapping. `{"_target_": "scidiff.nn.pairformer.PairFormer", "width": 96}` becomes
`PairFormer(width=96)`; nodes nest; `_partial_: true` gives `functools.partial` instead of a call.

A config may come from somebody else, so a target must be a class or function
* that is written at the top level of a module below one of `ALLOWED`, or of an installed package which
  declares an entry point `scidiff.domains`, and is *defined* there (a module's imports are out of reach),
* that is neither private nor below one of `REFUSED`, the parts that touch files, network or processes,
* that is a class, unless its module is below `FUNCTIONS` or in a plug-in package.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any

from scidiff.core.errors import MissingLibrary, ScidiffError, UsageError, nearest

ALLOWED = ("scidiff", "torch.nn", "torch.optim", "monai.networks", "monai.losses")
REFUSED = (
    "scidiff.api",
    "scidiff.cli",
    "scidiff.config",
    "scidiff.evaluation",
    "scidiff.pretrained",
    "scidiff.store",
    "scidiff.testing",
    "torch.nn.parallel",
)
FUNCTIONS = ("scidiff.core", "scidiff.nn", "scidiff.domains", "torch.nn.functional", "torch.nn.init")
_FILES_OF_A_DOMAIN = re.compile(
    r"scidiff\.domains\.\w+\.(archive|bank|data|dicom|files|interactions|nifti|readers|reference|sets|view)(\.|$)"
)
_DEEPEST = 64


def build(node: Any, /, *, extra_prefixes: Iterable[str] = (), **injected: Any) -> Any:
    """The object that `node` describes; `injected` keywords are added to the outermost target.

    Lists and mappings without a target are rebuilt around their contents. Raises `ScidiffError` for a
    target that is refused or unknown, `UsageError` for a setting that the target does not have.
    """
    if injected and not (isinstance(node, Mapping) and "_target_" in node):
        raise ScidiffError(f"Values for {', '.join(injected)} need a config with a '_target_'.")
    return _build(node, tuple(extra_prefixes), injected, 0)


def locate(dotted: str, extra_prefixes: Iterable[str] = ()) -> Callable[..., Any]:
    """The class or function of that dotted name, if a config may use it."""
    prefixes = (*ALLOWED, *plugin_packages(), *extra_prefixes)
    if not isinstance(dotted, str) or not re.fullmatch(r"[A-Za-z]\w*(\.[A-Za-z]\w*)+", dotted):
        raise ScidiffError(f"{dotted!r} is not the dotted name of a public class or function.")
    module_name, _, attribute = dotted.rpartition(".")
    if not _below(dotted, prefixes) or not _below(module_name, prefixes) or _below(dotted, REFUSED):
        raise ScidiffError(
            f"The target {dotted!r} is not allowed in a config.",
            f"Targets come from {', '.join(prefixes)}.",
        )
    module = _import(module_name, dotted)
    found = vars(module).get(attribute, getattr(module, attribute, None))
    if found is None:
        raise ScidiffError(
            f"{module_name} has no {attribute!r}.", nearest(attribute, _choices(module, prefixes))
        )
    if not _permitted(found, prefixes):
        raise ScidiffError(
            f"The target {dotted!r} is not allowed in a config: no class or function made for configs."
        )
    return found


def check(node: Any, extra_prefixes: Iterable[str] = ()) -> None:
    """Raises for the first target below `node` that is refused or unknown; builds nothing."""
    for dotted in targets_in(node):
        locate(dotted, extra_prefixes)


def targets_in(node: Any, _depth: int = 0) -> Iterator[str]:
    """Every target below `node`, outermost first."""
    _not_too_deep(_depth)
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield node["_target_"]
        for value in node.values():
            yield from targets_in(value, _depth + 1)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from targets_in(value, _depth + 1)


@functools.cache
def plugin_packages() -> tuple[str, ...]:
    """Top-level packages that declare an entry point `scidiff.domains`, scidiff itself left out."""
    names = {
        point.value.split(":")[0].split(".")[0].strip() for point in entry_points(group="scidiff.domains")
    }
    return tuple(sorted(names - {"scidiff", ""}))


def _build(node: Any, prefixes: tuple[str, ...], injected: Mapping[str, Any], depth: int) -> Any:
    _not_too_deep(depth)
    if isinstance(node, (list, tuple)):
        return type(node)(_build(item, prefixes, {}, depth + 1) for item in node)
    if not isinstance(node, Mapping):
        return node
    if "_target_" not in node:
        return {key: _build(item, prefixes, {}, depth + 1) for key, item in node.items()}
    target = locate(node["_target_"], prefixes)
    odd = [key for key in node if key.startswith("_") and key not in ("_target_", "_partial_")]
    if odd:
        raise UsageError(
            f"{node['_target_']} has the unknown setting {odd[0]!r}.", "Only _target_ and _partial_ exist."
        )
    settings = {
        key: _build(item, prefixes, {}, depth + 1) for key, item in node.items() if not key.startswith("_")
    }
    settings.update(injected)
    partial = bool(node.get("_partial_", False))
    _check_settings(target, node["_target_"], settings, partial)
    return functools.partial(target, **settings) if partial else target(**settings)


def _check_settings(
    target: Callable[..., Any], dotted: str, settings: Mapping[str, Any], partial: bool
) -> None:
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):  # some compiled callables have none; calling them tells
        return
    known = [p for p in signature.parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    names = [p.name for p in known]
    if not any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
        for key in settings:
            if key not in names:
                raise UsageError(
                    f"{dotted} has no setting {key!r}.", nearest(key, names) if names else "It has none."
                )
    missing = [p.name for p in known if p.default is p.empty and p.name not in settings]
    if missing and not partial:
        raise UsageError(f"{dotted} needs the setting{'s' * (len(missing) > 1)} {', '.join(missing)}.")


def _import(name: str, dotted: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        absent = error.name or ""
        if name == absent or name.startswith(f"{absent}."):
            root = name.split(".")[0]
            if absent == root:
                raise MissingLibrary(root, f"The target {dotted!r}", f"pip install {root}") from error
            parent = importlib.import_module(absent.rpartition(".")[0])
            raise ScidiffError(f"There is no {absent!r}.", nearest(absent, _submodules(parent))) from error
        if not _below(absent, ("scidiff",)):
            raise MissingLibrary(
                absent, f"The target {dotted!r}", f"pip install {absent.split('.')[0]}"
            ) from error
        raise


def _submodules(package: ModuleType) -> list[str]:
    import pkgutil

    found = pkgutil.iter_modules(getattr(package, "__path__", ()))
    return [f"{package.__name__}.{module.name}" for module in found if not module.name.startswith("_")]


def _choices(module: ModuleType, prefixes: Iterable[str]) -> list[str]:
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and _permitted(value, prefixes)
    ]


def _permitted(found: Any, prefixes: Iterable[str]) -> bool:
    home = getattr(found, "__module__", None)
    name = getattr(found, "__qualname__", "")
    if not isinstance(home, str) or not name.isidentifier() or name.startswith("_"):
        return False
    if not _below(home, prefixes) or _below(home, REFUSED):
        return False
    if inspect.isclass(found):
        return True
    if not inspect.isfunction(found) or _FILES_OF_A_DOMAIN.match(home):
        return False
    official = _below(home, ("scidiff", "torch", "monai"))
    return _below(home, FUNCTIONS) if official else True


def _below(dotted: str, packages: Iterable[str]) -> bool:
    return any(dotted == package or dotted.startswith(f"{package}.") for package in packages)


def _not_too_deep(depth: int) -> None:
    if depth > _DEEPEST:
        raise ScidiffError(f"The config is nested more than {_DEEPEST} levels deep.")
