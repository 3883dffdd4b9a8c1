"""The capability behind `scidiff reconstruct`: a volume from a measurement, with what is known and not known of it.

    reconstruct(domain, model, ask, store=None, progress=None) -> Samples

model: the prior (`domains.model.Model`), None for methods that need none. ask: an `Ask` or the mapping of its fields.
store: where parts are kept (`store.run.RunFolder` or the like); an interrupted call goes on from there and returns the
same numbers. progress(label, done, total) is told on the way. The objects of the result are the samples, each a
`Volume` in the values of the file; its `domain` is a `Reconstructed`, whose `found` holds mean, spread, intervals and
rivals, and which writes files, figures, pictures and the card. `cost` says beforehand what it will take.

The slices of a volume are the batch that moves; they stream through the network `chunk` at a time, which changes memory
and speed and no result beyond rounding. Samples are drawn one after the other; the duals of total variation belong to
one sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scidiff.core.errors import ScidiffError, UsageError
from scidiff.core.posterior import Guided, Posterior, Problem, network_bytes, problem_of
from scidiff.domains.base import Samples, Verdict, sample_id
from scidiff.domains.medical import findings
from scidiff.domains.medical.ask import Ask
from scidiff.domains.medical.intensity import check_range
from scidiff.domains.medical.memory import afford
from scidiff.domains.medical.methods import applied, classical, is_classical, rivals, solver
from scidiff.domains.medical.prior import Facts, Prior, conformal_of, context_of, prior_for, prior_of, task_of
from scidiff.domains.medical.result import Drawn, Reconstruction, gathered, interval
from scidiff.domains.medical.sampled import Archive, Store, drawn, sample_part
from scidiff.domains.medical.scene import Scene, scene_of
from scidiff.domains.medical.streaming import CHUNK
from scidiff.domains.medical.uncertainty import split
from scidiff.domains.model import Model, pick_device

if TYPE_CHECKING:
    from scidiff.domains.medical import MedicalDomain

Progress = Callable[[str, int, int | None], None]
POINTS = ("REDDiff", "PnPFlow")  # estimates near a mode, whatever their noise
FINER = 1.5  # times as many pixels as the prior was trained on, from which a note is due
ARRAYS = 12  # volumes that live at once beside the samples

__all__ = ["Ask", "needs_prior", "prior_for", "reconstruct"]


def needs_prior(ask: Ask | Mapping[str, Any]) -> bool:
    """Whether a request asks for a trained prior."""
    asked = ask if isinstance(ask, Ask) else Ask(**ask)
    return not is_classical(asked.posterior)


def reconstruct(domain: MedicalDomain, model: Model | None, ask: Mapping[str, Any] | Ask, store: Store | None = None,
                progress: Progress | None = None) -> Samples:
    """See the module docstring. UsageError for what is impossible, before anything is stored."""
    asked = ask if isinstance(ask, Ask) else Ask(**ask)
    learned = not is_classical(asked.posterior)
    if learned and model is None:
        raise UsageError("This posterior solver needs a prior.", "Name one with --from ('scidiff list models' shows "
                         "them), or take a method without one, such as posterior=admm_tv.")
    model = model if learned else None
    scene = scene_of(asked, Facts.of(model))
    afford(scene.truth.nbytes * ARRAYS if scene.truth is not None else 0, f"{scene.depth} slices")
    archive, begun = Archive(store), monotonic()
    if model is None:
        found = _classical(asked, scene, archive, progress)
    else:
        found = _learned(asked, scene, model, archive, progress)
    found.seconds = round(monotonic() - begun, 2)
    return _samples(domain, asked, found, model)


def _classical(ask: Ask, scene: Scene, archive: Archive, progress: Progress | None) -> Reconstruction:
    method = classical(ask, scene)
    name = _named(type(method).__name__)
    x = archive.once(sample_part(0), lambda: applied(method, scene, _watch(progress, name, method)).float())
    found = Reconstruction(scene, name, 1, archive, x, learned=False,
                           notes=list(scene.notes))
    found.rivals = _rivals(ask, scene, archive, progress, found.method)
    return found


def _learned(ask: Ask, scene: Scene, model: Model, archive: Archive, progress: Progress | None) -> Reconstruction:
    prior = prior_of(model, ask, scene.operator, scene.depth, ask.chunk)
    posterior = solver(ask, scene, len(prior.shape) == 4)
    problem = problem_for(ask, scene, prior, Facts.of(model))
    context = context_of(model, ask, scene.volume, problem.measurement.count).to(pick_device(ask.device))
    expected = cost(posterior, problem, ask)
    if isinstance(posterior, Guided):  # what it refuses, it refuses before anything is stored
        posterior.attach(problem)
        posterior.driver(problem)
    notes = [*_cautions(ask, scene, model, posterior), *_range_of(ask, scene, model)]
    beside = _rivals(ask, scene, archive, progress)
    notes = [*scene.notes, *notes]
    moments = gathered(drawn(problem, posterior, context, ask.samples, ask.seed, archive,
                             _finisher(prior, scene, Facts.of(model)), every=ask.checkpoint, progress=progress))
    found = Reconstruction(scene, _named(type(posterior).__name__), ask.samples, archive, moments.mean.float(),
                           rivals=beside, notes=notes, expected=expected, prior=_told(model))
    if ask.samples > 1:
        found.conformal = conformal_of(model, scene.operator)
        found.std = moments.std.float()
        found.low, found.high = interval(archive, moments, found.conformal[0])
    _tell(progress, "Splitting what was measured from what was invented", 0)
    parts = split(found.mean, scene.operator)
    found.invented, found.share = parts.invented, parts.share
    return found


def problem_for(ask: Ask, scene: Scene, prior: Prior, facts: Facts) -> Problem:
    """The problem in the states of the prior: values x are gain s + shift of them."""
    place, dtype = pick_device(ask.device), torch.float64 if ask.precision == 64 else torch.float32
    operator, y = prior.operator, scene.y
    if len(prior.shape) == 4 and scene.operator.slice_separable:  # a block is one sample, with all of its slices
        y = y[None]
    if facts.shift != 0.0:
        y = y - operator.forward(torch.full((1, *operator.in_shape), facts.shift, dtype=torch.float32))
    y = (y / facts.gain).to(place)
    return problem_of(operator, y, prior.denoiser, prior.spec, scene.sigma / facts.gain, prior.name, dtype=dtype)


def _finisher(prior: Prior, scene: Scene, facts: Facts) -> Callable[[Tensor], Tensor]:
    """Final states to volumes [Z, 1, Y, X] of the scan, float32 on the CPU."""
    rows, columns = scene.volume.size

    def finished(state: Tensor) -> Tensor:
        x = state.detach().to("cpu", torch.float32)
        x = x[0].transpose(0, 1) if len(prior.shape) == 4 else x
        top, left = (x.shape[-2] - rows) // 2, (x.shape[-1] - columns) // 2
        return (x[..., top : top + rows, left : left + columns] * facts.gain + facts.shift).clone()

    return finished


def cost(posterior: Posterior, problem: Problem, ask: Ask) -> str:
    """What a sample will take, in words; UsageError where the memory is too small."""
    batch, chunk = problem.measurement.count, ask.chunk or CHUNK
    try:
        network = network_bytes(problem)
    except ScidiffError:  # a prior that takes whole volumes alone
        network = 0
    expected = posterior.cost(problem, batch, network=network, chunk=chunk)
    if problem.measurement.y.device.type == "cpu":
        afford(expected.memory, "This solver", "Take a smaller --batch or fewer slices.")
    return str(expected)


# -- what stands beside


def _rivals(ask: Ask, scene: Scene, archive: Archive, progress: Progress | None, ours: str = "") -> dict[str, Tensor]:
    """Volumes of the methods that ours is set beside; a method that cannot take the measurement is left out."""
    out: dict[str, Tensor] = {}
    for name, method in rivals(scene).items() if ask.rivals else ():
        if name == ours:
            continue
        told = _watch(progress, f"{name} for comparison", method)
        try:
            out[name] = archive.once(f"rival_{name.lower()}", lambda m=method, w=told: applied(m, scene, w).float())
        except UsageError as error:
            scene.notes.append(f"{name} is left out: {error.message}")
    return out


def _range_of(ask: Ask, scene: Scene, model: Model) -> list[str]:
    """The range check of a real measurement, on its direct reconstruction."""
    known = Facts.of(model).known
    if scene.simulated or known is None:
        return []
    x = applied(next(iter(rivals(scene).values())), scene)
    note = check_range(scene.values(x), scene.scale, known, scene.volume.name, ask.force)
    return [note] if note else []


def _cautions(ask: Ask, scene: Scene, model: Model, posterior: Posterior) -> list[str]:
    """Sentences that belong beside the pictures."""
    out, name = [], type(posterior).__name__
    trained = int(next(iter(model.spec.values())).shape[-1])
    if max(scene.volume.size) > FINER * trained:
        out.append(f"The prior was trained on slices of {trained} pixels a side and works on {max(scene.volume.size)}: "
                   f"finer detail than it has seen. --size {trained} averages the scan to its size.")
    if name in POINTS or getattr(posterior, "eta", 1.0) == 0.0:
        out.append(f"{_named(name)} gives an estimate, not a sample of the posterior: the spread is that of restarts.")
    if not scene.sigma > 0:
        out.append("The noise of the measurement is taken for zero.")
    return out


def _told(model: Model) -> dict[str, Any]:
    """The prior on the card."""
    config = model.config
    data = config.get("data") or {}
    return {"name": model.name, "sha256": config.get("weights_sha256"), "trained_on": data.get("name"),
            "independence": "The split is by subject; see the card of the prior.",
            "licence": config.get("licence") or "See the card of the prior."}


def _named(name: str) -> str:
    return {"ZeroFilled": "Zero-filled", "AdmmTV": "TV", "REDDiff": "RED-diff", "PnPDM": "PnP-DM",
            "PnPFlow": "PnP-Flow", "MBIR": "DiffusionMBIR"}.get(name, name)


def _watch(progress: Progress | None, label: str, method: Any) -> Callable[[int, Tensor], None] | None:
    """Tells of the iterations of a method that has any."""
    _tell(progress, label, 0)
    total = getattr(method, "iterations", None)
    if progress is None or total is None:
        return None
    return lambda number, _: progress(label, number, total)


def _tell(progress: Progress | None, label: str, done: int) -> None:
    if progress is not None:
        progress(label, done, 1)


def _samples(domain: MedicalDomain, ask: Ask, found: Reconstruction, model: Model | None) -> Samples:
    from scidiff.domains.medical.reconstructed import Reconstructed

    found.settings = {"samples": found.count, "volume": ask.kind, "size": ask.size,
                      **{k: v for k, v in (ask.posterior or {}).items() if isinstance(v, (int, float, str))}}
    found.study = {key: value for key, value in ask.study.items() if value}
    judged: list[Verdict] = [findings.verdict(found.sample(i), found) for i in range(found.count)]
    meta = {"model": "" if model is None else model.name, "source": "", "seconds": found.seconds,
            "method": found.method, "operator": repr(found.scene.operator), "simulated": found.scene.simulated,
            "task": task_of(found.scene.operator),
            "notes": found.notes, "cost": found.expected}
    objects: Any = Drawn(found)
    return Samples(objects, [sample_id(i) for i in range(found.count)], ask.seed, judged, Reconstructed(domain, found),
                   meta={k: v for k, v in meta.items() if v not in ("", None)})
