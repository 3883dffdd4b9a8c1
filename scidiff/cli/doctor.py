"""`scidiff doctor`: what this machine offers, and what is missing with the line that installs it."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from scidiff import __version__, config
from scidiff.cli.feedback import table
from scidiff.store import checkpoint
from scidiff.store.fetch import cache_folder
from scidiff.store.locate import shared_folder
from scidiff.store.run import git_commit

EXTRAS = {
    "hub": ("huggingface_hub",),
    "slurm": ("submitit", "hydra_plugins.hydra_submitit_launcher"),
    "dicom": ("pydicom",),
    "zarr": ("zarr",),
    "metrics": ("fcd",),
    "equivariant": ("e3nn",),
    "crystal-eval": ("matminer",),
    "chgnet": ("chgnet",),
    "bench": ("diffusers", "azula"),
}
NEEDED = ("torch", "numpy", "scipy", "lightning", "hydra-core", "omegaconf", "rdkit", "safetensors", "typer", "rich")


def examine() -> None:
    """Prints one table; nothing is changed."""
    commit = git_commit()
    rows = [
        ("scidiff", f"{__version__}{f' ({commit})' if commit else ''} in {Path(config.__file__).parent}"),
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        *((name, _version(name)) for name in NEEDED),
        *((f"extra {name}", _extra(name, modules)) for name, modules in EXTRAS.items()),
        *_hardware(),
        ("configs", ", ".join(str(place.folder) for place in config.places())),
        ("datasets", str(shared_folder("datasets"))),
        ("cache", f"{cache_folder()}{'' if cache_folder().is_dir() else ' (not made yet)'}"),
        ("SCIDIFF_DATA", os.environ.get("SCIDIFF_DATA") or "not set (cache, or data.root=FOLDER)"),
        ("domains", ", ".join(config.options("domain"))),
        ("models", ", ".join(model.experiment for model in checkpoint.shipped()) or "none shipped"),
    ]
    table(("WHAT", "STATE"), rows)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return f"missing: pip install {name}"


def _extra(name: str, modules: tuple[str, ...]) -> str:
    absent = [module for module in modules if not _present(module)]
    if not absent:
        return "installed"
    return f'not installed ({", ".join(module.rpartition(".")[2] for module in absent)}): pip install "scidiff[{name}]"'


def _present(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the parent package of a dotted name is absent
        return False


def _hardware() -> list[tuple[str, str]]:
    cores = os.cpu_count() or 1
    if not _present("torch"):
        return [("cpu", f"{cores} cores")]
    import torch

    rows = [("cpu", f"{cores} cores, {torch.get_num_threads()} threads used by torch")]
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        rows += [(f"gpu {i}", f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB") for i, gpu in enumerate(names)]
    else:
        rows.append(("gpu", "none that torch can use; device=auto takes the CPU"))
    return rows
