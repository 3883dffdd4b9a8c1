"""A run folder: all that is needed to understand, repeat, continue and cite one run.

    runs/<verb>/<name>/<timestamp>_s<seed>/
      README.txt  command.txt  config.yaml  environment.json  references.bib       written first
      chunks.json             which samples were computed together (bits repeat for the same composition)
      parts/<name>.safetensors  finished chunks, so that a killed run continues
      finished                present when the run is complete

Every file appears under its name whole or not at all. Files of the domain (samples.csv, *.sdf ...) are
written by it.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scidiff import __version__
from scidiff.core.errors import ScidiffError, UsageError
from scidiff.store import atomic, references
from scidiff.store.locate import PACKAGE

if TYPE_CHECKING:
    from torch import Tensor

_LIBRARIES = (
    "scidiff",
    "torch",
    "numpy",
    "scipy",
    "safetensors",
    "lightning",
    "hydra-core",
    "omegaconf",
    "rdkit",
    "networkx",
    "nibabel",
    "pydicom",
)
_EXPLAINED = {
    "README.txt": "this list",
    "command.txt": "the command that started the run",
    "config.yaml": "every setting, resolved; the run can be repeated from it",
    "environment.json": "versions, git commit, device, seed, machine type",
    "references.bib": "the papers behind the methods and data that this run used; please cite them",
    "chunks.json": "which samples were computed together",
    "parts": "finished chunks, from which an interrupted run continues",
    "trajectory": "the states after every step of each chunk: <component> [steps, samples, ...], t [steps]",
    "molecules.png": "a picture of the first samples",
    "card.md": "model card: data, evaluation, limits (MI-CLAIM-GEN)",
    "card.json": "the same for programs",
    "samples.sdf": "the samples with 2-D coordinates, for chemistry programs",
    "smiles.smi": "one line a valid sample: SMILES, id",
    "graphs.npz": "all graphs, in arrays: n_nodes, edge_ptr, edges, name, and node_label where nodes have one",
    "graphs.png": "a picture of the first samples",
    "graphml": "one file a graph, for other programs; the id is its name",
    "log": "losses and figures of the training, as CSV",
    "last.ckpt": "the state of the training, for --resume alone",
    "cache": "the encoded training data",
    "checkpoint": "the trained model: model.safetensors, config.yaml, card.md",
    "samples.csv": "one row a sample: id, seed, valid, reason, properties",
    "rollout.nc": "the forecasts and their reference: dimensions trajectory, member, time and space, with units",
    "metrics.json": "metrics with intervals, floors, reference and sample count",
    "report.html": "the whole run on one page; opens offline in a browser",
    "finished": "present when the run is complete",
}


class RunFolder:
    """One run on the disk. `RunFolder.create(...)` starts one, `open_existing(path)` returns to one."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    @classmethod
    def create(
        cls,
        verb: str,
        name: str,
        seed: int,
        config: Mapping[str, Any],
        *,
        out: str | os.PathLike[str] | None = None,
        root: str | os.PathLike[str] = "runs",
        command: Sequence[str] | None = None,
        device: str = "cpu",
        cite: Sequence[str] = (),
    ) -> RunFolder:
        """Makes the folder (`out`, or below `root`) and writes what is known before the run starts."""
        bibliography = references.collect(config, cite)
        settings = atomic.dump_yaml(config)
        if out is not None:
            path = atomic.ensure_folder(free(out))
        else:
            stamp = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
            path = _fresh(atomic.ensure_folder(Path(root).expanduser() / verb / name), f"{stamp}_s{seed}")
        run = cls(path)
        words = _words(command)
        atomic.write_text(path / "config.yaml", settings)
        atomic.write_text(path / "command.txt", shlex.join(words) + "\n")
        atomic.write_json(path / "environment.json", environment(seed, device))
        atomic.write_text(path / "references.bib", bibliography)
        run.describe()
        return run

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config of the run."""
        return atomic.read_yaml(self.path / "config.yaml", "run config")

    @property
    def finished(self) -> bool:
        return (self.path / "finished").is_file()

    def set_chunks(self, chunks: Sequence[Sequence[int]]) -> None:
        """Stores which sample numbers are computed together; a second call must agree with the first."""
        wanted = [[int(number) for number in chunk] for chunk in chunks]
        stored = self.chunks()
        if stored and stored != wanted:
            raise ScidiffError(
                f"The run {self.path} was made with other chunks of samples.",
                "Continue it with its own settings.",
            )
        if not stored:
            atomic.write_json(self.path / "chunks.json", wanted)
            self.describe()

    def chunks(self) -> list[list[int]]:
        """The stored chunk composition; empty where none was stored."""
        file = self.path / "chunks.json"
        return atomic.read_json(file) if file.is_file() else []

    def remaining(self) -> list[int]:
        """Positions in `chunks()` without a finished part: what a resumed run must repeat, nothing else."""
        return [index for index in range(len(self.chunks())) if not self.has_part(part_name(index))]

    def write_part(
        self, name: str, tensors: Mapping[str, Tensor], notes: Mapping[str, Any] | None = None
    ) -> Path:
        """Stores tensors (and small notes, as JSON) under parts/<name>.safetensors, whole or not at all."""
        from safetensors.torch import save

        stored = {key: value.detach().to("cpu").clone().contiguous() for key, value in tensors.items()}
        text = json.dumps(atomic.plain(dict(notes or {})))
        return atomic.write_bytes(self._part(name), save(stored, metadata={"notes": text}))

    def has_part(self, name: str) -> bool:
        return self._part(name).is_file()

    def read_part(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors and notes of a stored part."""
        from safetensors import SafetensorError, safe_open

        file = self._part(name)
        try:
            with safe_open(file, framework="pt") as handle:
                notes = json.loads((handle.metadata() or {}).get("notes", "{}"))
                return {key: handle.get_tensor(key) for key in handle.keys()}, notes  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            raise ScidiffError(
                f"The finished part {file} cannot be read ({error}).",
                "Delete it and resume: it is computed again.",
            ) from error

    def parts(self) -> list[str]:
        """Names of the stored parts, sorted."""
        return sorted(
            file.stem for file in (self.path / "parts").glob("*.safetensors") if not file.name.startswith(".")
        )

    def finish(self, summary: Mapping[str, Any] | None = None, *, keep_parts: bool = False) -> None:
        """Marks the run complete; its parts are no longer needed then."""
        files = sorted(entry.name for entry in self.path.iterdir() if not entry.name.startswith("."))
        now = datetime.datetime.now().isoformat(timespec="seconds")
        kept = [name for name in files if keep_parts or name != "parts"]
        atomic.write_json(self.path / "finished", {"at": now, "files": kept, **(summary or {})})
        if not keep_parts:
            shutil.rmtree(self.path / "parts", ignore_errors=True)
        self.describe()

    def describe(self, notes: Mapping[str, str] | None = None) -> None:
        """Rewrites README.txt: one line for each file that is there; `notes` explains files of the domain."""
        known = {**_EXPLAINED, **(notes or {})}
        names = {entry.name for entry in self.path.iterdir() if not entry.name.startswith(".")} | {
            "README.txt"
        }
        lines = [
            f"{name:<18} {known.get(name, 'results in the format of this suffix')}" for name in sorted(names)
        ]
        state = "complete" if self.finished else "not finished yet; continue it with --resume"
        head = f"This folder holds one run of scidiff ({state}).\n\n"
        atomic.write_text(self.path / "README.txt", head + "\n".join(lines) + "\n")

    def _part(self, name: str) -> Path:
        return self.path / "parts" / f"{name}.safetensors"


def command(given: Sequence[str] | None = None) -> str:
    """The command that is being worked on, as one types it; `given` stands for a call from Python."""
    return shlex.join(_words(given))


def _words(given: Sequence[str] | None) -> list[str]:
    return ["scidiff", *sys.argv[1:]] if given is None else list(given)


def part_name(index: int) -> str:
    """Name of the part that holds chunk number `index`."""
    return f"chunk_{index:05d}"


def open_existing(path: str | os.PathLike[str], *, allow_finished: bool = False) -> RunFolder:
    """The run at `path`, cleared of half-written files; a sentence where there is none or it is finished."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise UsageError(f"The run folder {folder} does not exist.")
    if not (folder / "config.yaml").is_file() or not (folder / "environment.json").is_file():
        raise UsageError(
            f"{folder} is not a run folder.", "Name one that holds config.yaml and environment.json."
        )
    run = RunFolder(folder)
    if run.finished and not allow_finished:
        raise UsageError(f"The run {folder} is already finished.", "Nothing is left to resume.")
    atomic.sweep(folder)
    return run


def environment(seed: int, device: str) -> dict[str, Any]:
    """Versions, git commit of a checkout, device, seed and machine type; no names of persons or hosts."""
    versions = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    versions.setdefault("scidiff", __version__)  # a bare checkout has no metadata
    torch = sys.modules.get("torch")
    return {
        "versions": versions,
        "git": git_commit(),
        "device": device,
        "seed": seed,
        "threads": torch.get_num_threads() if torch is not None else None,
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "started": datetime.datetime.now().isoformat(timespec="seconds"),
    }


def git_commit() -> str | None:
    """Short hash of the source checkout, `+` appended where it has local changes; None outside a checkout."""
    root = PACKAGE.parent
    if not (root / ".git").exists():
        return None
    try:
        commit, changes = (
            subprocess.run(
                ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=5, check=True
            ).stdout
            for words in (("rev-parse", "--short=12", "HEAD"), ("status", "--porcelain", "-uno"))
        )
    except (OSError, subprocess.SubprocessError):  # no git, or a repository without a commit
        return None
    return commit.strip() + ("+" if changes.strip() else "")


def free(out: str | os.PathLike[str]) -> Path:
    """The path of a folder that a run may be written to; UsageError where it holds something already."""
    path = Path(out).expanduser()
    if path.is_dir() and any(path.iterdir()):
        raise UsageError(f"The folder {path} is not empty.", "Name a new one, or continue a run with --resume.")
    return path


def _fresh(parent: Path, name: str) -> Path:
    for attempt in range(1, 1000):
        path = parent / (name if attempt == 1 else f"{name}_{attempt}")
        try:
            path.mkdir()
        except FileExistsError:  # two runs within one second
            continue
        except OSError as error:
            raise ScidiffError(f"Cannot create the folder {path}: {error.strerror}.") from error
        return path
    raise ScidiffError(f"The folder {parent} holds too many runs named {name}.")

