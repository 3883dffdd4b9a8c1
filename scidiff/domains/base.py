"""The Domain protocol: what scidiff has to know of a science, and nothing more.

A domain turns native objects (molecules, crystals, volumes, fields) into states of the core and back, reads and writes
the files that people already open, and judges what was generated. `scidiff.testing.check_domain` is its conformance
test; third parties add one through the entry-point group `scidiff.domains`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from scidiff.core.errors import MissingLibrary, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from scidiff.core.space import Space
    from scidiff.core.spec import Context, Shape, State, StateSpec


@dataclass(frozen=True)
class Rejection:
    """An entry of an input file that could not be used: where it stood, what it said, and why it was refused."""

    where: str
    text: str
    reason: str


@dataclass
class Records:
    """What a reader found: native objects, their names, and what was rejected."""

    objects: list[Any]
    names: list[str]
    rejected: list[Rejection] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.objects)

    def require(self, path: str | Path) -> Records:
        """Itself, or a UsageError where nothing usable was found."""
        if not self.objects:
            why = f" ({len(self.rejected)} rejected, the first: {self.rejected[0].reason})" if self.rejected else ""
            raise UsageError(f"{path} holds nothing that can be read{why}.")
        return self


@dataclass(frozen=True)
class Verdict:
    """Whether a sample is sound, and if not, why not, in words of its field."""

    valid: bool
    reason: str = ""


@dataclass(frozen=True)
class Request:
    """What is to be made: `ids` [num] int64 (sample i depends on (seed, i) alone), and what is asked of the samples."""

    ids: Tensor
    seed: int
    condition: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num(self) -> int:
        return int(self.ids.shape[0])


@dataclass(frozen=True)
class Metric:
    """One figure with all it takes to read it: interval, floor, protocol, reference set and sample count.

    `value` None means not computed; `note` then says why. `floor` is the same metric between training and test data.
    """

    name: str
    value: float | None
    interval: tuple[float, float] | None = None
    floor: float | None = None
    protocol: str = ""
    reference: str = ""
    count: int = 0
    better: str = "lower"
    unit: str = ""
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Samples:
    """Generated native objects with ids, seed and verdicts; behaves as a sequence of the objects."""

    objects: list[Any]
    ids: list[str]
    seed: int
    verdicts: list[Verdict]
    domain: Domain
    metrics: list[Metric] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)
    ranks: list[dict[str, Any]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.objects)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.objects)

    def __getitem__(self, i: int) -> Any:
        return self.objects[i]

    @property
    def valid(self) -> list[Any]:
        return [o for o, v in zip(self.objects, self.verdicts, strict=True) if v.valid]

    def table(self) -> list[dict[str, Any]]:
        """One row a sample: id, seed, valid, reason, rank where there is one, and the domain's own columns."""
        rows = self.domain.table(self.objects, self.verdicts)
        head = ({"id": i, "seed": self.seed, "valid": v.valid, "reason": v.reason}
                for i, v in zip(self.ids, self.verdicts, strict=True))
        ranks = self.ranks or [{} for _ in rows]
        return [{**h, **rank, **row} for h, rank, row in zip(head, ranks, rows, strict=True)]

    def save(self, folder: str | Path) -> list[Path]:
        """Writes the files of the domain into a folder (created if absent); returns their paths."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        return self.domain.write(self, target)

    def _repr_html_(self) -> str:
        pictures = self.domain.view(self.objects[:24], self.verdicts[:24], self.ids[:24])
        return "\n".join(p for p in pictures.values() if isinstance(p, str)) or f"<p>{len(self)} samples</p>"


def sample_id(i: int) -> str:
    """The name of sample i in every file: s0007."""
    return f"s{i:04d}"


class Domain(ABC):
    """One science. Instances hold the options that a model was trained with (vocabulary, sizes), so they decode it."""

    name: ClassVar[str]
    title: ClassVar[str] = ""
    requires: ClassVar[dict[str, str]] = {}
    extensions: ClassVar[tuple[str, ...]] = ()

    def need(self) -> None:
        """Raises MissingLibrary where a library of this domain is absent."""
        for module, install in self.requires.items():
            if find_spec(module) is None:
                raise MissingLibrary(module, f"The {self.name} domain", install)

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """JSON-able constructor arguments: `type(self)(**options)` is this domain again."""

    @abstractmethod
    def components(self) -> dict[str, tuple[Space, Shape]]:
        """What a state is made of: name -> (space, shape of one sample)."""

    @abstractmethod
    def fit(self, objects: Sequence[Any]) -> tuple[Domain, dict[str, Any]]:
        """The domain with its vocabulary learned from data, and the statistics stored with a model.

        statistics["marginals"][component] holds class frequencies; statistics["sizes"] the size histogram.
        """

    @abstractmethod
    def read(self, path: str | Path, **options: Any) -> Records:
        """Native objects of a file or folder; unusable entries are rejected with a reason, not fatal."""

    def dataset(self, files: Mapping[str, Path], reader: str, options: Mapping[str, Any], split: str | None,
                limit: int | None = None) -> Records:
        """The records of a data set as its card lays it out; `split` is "train", "test" or None."""
        return self.read(next(iter(files.values())), **options)

    def properties(self, objects: Sequence[Any], names: Sequence[str]) -> dict[str, Tensor]:
        """Real-valued properties [num] by name, for training with conditions."""
        raise UsageError(f"The {self.name} domain computes no properties, so it cannot be trained with conditions.")

    @abstractmethod
    def write(self, samples: Samples, folder: Path) -> list[Path]:
        """Files that people of the field open, one id everywhere, each written whole or not at all."""

    @abstractmethod
    def encode(self, objects: Sequence[Any]) -> tuple[State, Context]:
        """Padded tensors on the CPU."""

    @abstractmethod
    def decode(self, state: State, ctx: Context) -> list[Any]:
        """Native objects of a state, valid or not: judging is `check`'s work."""

    @abstractmethod
    def template(self, request: Request) -> Context:
        """The context of what is to be made: ids, sizes, conditions."""

    def restrained(self, denoiser: Any, ctx: Context) -> Any:
        """The denoiser as it keeps to what `template` wrote into `ctx.meta`; known entries are kept by the caller."""
        return denoiser

    @abstractmethod
    def check(self, objects: Sequence[Any]) -> list[Verdict]:
        """A verdict with a reason for each object."""

    @abstractmethod
    def metrics(self, objects: Sequence[Any], verdicts: Sequence[Verdict], reference: Any = None) -> list[Metric]:
        """Figures over a set of samples; `reference` as returned by `reference(name)`, or None.

        A domain that resamples may take a further keyword `seed`; the evaluation passes it where it is accepted.
        """

    @abstractmethod
    def view(self, objects: Sequence[Any], verdicts: Sequence[Verdict], ids: Sequence[str],
             reference: Any = None) -> dict[str, str | bytes]:
        """Named pictures: SVG text or PNG bytes; the key is the caption."""

    def table(self, objects: Sequence[Any], verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
        """Columns of samples.csv besides id, seed, valid and reason; units in the column names."""
        return [{} for _ in objects]

    def start(self, kind: str, ctx: Context, data: str, root: str | Path | None = None) -> tuple[State, Tensor]:
        """Clean states [B, ...] that sampling may begin near, and which samples have one, bool [B]; `data` is the set
        that the model was trained on, `root` the folder of its files."""
        raise UsageError(f"The {self.name} domain has no start {kind!r}.", "Leave --start out.")

    def ranking(self, objects: Sequence[Any], verdicts: Sequence[Verdict],
                costs: Sequence[float]) -> list[dict[str, Any]]:
        """Columns of samples.csv that say how likely the model holds each sample: its cost, and its rank (from 1;
        valid ones first)."""
        order = sorted(range(len(objects)), key=lambda i: (not verdicts[i].valid, costs[i], i))
        place = {i: k + 1 for k, i in enumerate(order)}
        return [{"rank": place[i], "cost": round(costs[i], 4)} for i in range(len(objects))]

    def reference(self, name: str) -> Any:
        """Precomputed statistics of a reference set, by name.

        A domain whose sets lie in folders may take a further keyword `root`; it is passed where it is accepted.
        """
        raise UsageError(f"The {self.name} domain has no reference set {name!r}.")

    def judging_by(self, reference: Any) -> Domain:
        """The domain as it judges samples that are compared with `reference`, which may say what counts as valid."""
        return self

    def backbone_options(self, spec: StateSpec) -> dict[str, Any]:
        """What a backbone has to know of the state (class counts, valences); merged under the configured options."""
        return {}

    def objective_options(self) -> dict[str, Any]:
        """What an objective of this domain has to know (scales, strides), for settings that the config leaves open."""
        return {}

    def settle(self, model: Any) -> tuple[dict[str, Any], str]:
        """What a trained model chooses on validation data: settings of its config, and a note for its card."""
        return {}, ""

    def examples(self) -> list[Any]:
        """A few native objects for `scidiff.testing.check_domain` and for trying things out."""
        return []

    def preview(self, objects: Sequence[Any], verdicts: Sequence[Verdict]) -> dict[str, float]:
        """A few cheap figures to log during training."""
        return {"valid": sum(v.valid for v in verdicts) / max(len(verdicts), 1)}

    def run_options(self) -> dict[str, Any]:
        """Options of `generate` that this domain understands, name -> help."""
        return {}
