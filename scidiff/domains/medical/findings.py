"""The figures of a reconstruction: against the truth where it is known, beside its rivals, and against its measurement.

PSNR and SSIM are means over the slices of each plane whose largest true value exceeds a twentieth of the range; their
95 % intervals resample blocks of neighbouring slices. They are those of one volume: nothing is said of others.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scidiff.core.errors import ScidiffError
from scidiff.core.statistics import Estimate
from scidiff.domains.base import Metric, Verdict
from scidiff.domains.medical import metrics
from scidiff.domains.medical.result import Reconstruction
from scidiff.domains.medical.scene import Scene
from scidiff.domains.medical.tv import Gradient, total_variation
from scidiff.domains.medical.uncertainty import conformal_factor, coverage

BLOCK = 4  # neighbouring slices that are resampled together
BODY = 0.05  # of the range: what lies below is air
AMISS = 0.25  # of the measurement that a sample may leave unexplained
FAR = 5.0  # times the noise that it may
WINDOWS = (("lung", -950.0, -500.0), ("soft tissue", -160.0, 240.0), ("bone", 300.0, 3072.0))
SCORES = (("PSNR", metrics.psnr, "dB"), ("SSIM", metrics.ssim, ""))


def figures(found: Reconstruction, seed: int = 0) -> list[Metric]:
    """Every figure that can be had, ours first; computed once, as files and card show the same."""
    if seed not in found.figures:
        found.figures[seed] = _figures(found, seed)
    return found.figures[seed]


def _figures(found: Reconstruction, seed: int) -> list[Metric]:
    scene = found.scene
    first, others = ([], []) if scene.truth is None else _against_truth(found, scene.truth, seed)
    return [*first, _residual(found.mean, scene), *_honesty(found, seed), *others]


def _against_truth(found: Reconstruction, truth: Tensor, seed: int) -> tuple[list[Metric], list[Metric]]:
    """(PSNR of axial slices beside the rivals, everything else)."""
    main, rest, range_ = [], [], f"range {found.scene.scale.low:g} to {found.scene.scale.high:g}"
    for name, score, unit in SCORES:
        ours = metrics.by_plane(score, found.mean, truth)
        others = {rival: metrics.by_plane(score, x, truth) for rival, x in found.rivals.items()}
        for plane, values in ours.items():
            out = main if (name, plane) == ("PSNR", "axial") else rest
            told = f"mean over {plane} slices that are not empty; {range_}; intervals by blocks of {BLOCK} slices"
            out.append(_mean(f"{name} {plane}", values, unit, told, seed))
            out += [_mean(f"{name} {plane}, {rival}", theirs[plane], unit, told, seed)
                    for rival, theirs in others.items()]
        if name == "PSNR" and found.learned:
            main += [_gain(f"PSNR axial over {rival}", ours["axial"], theirs["axial"], seed)
                     for rival, theirs in others.items()]
    rest += [*_in_windows(found, truth), _smoothness(found.mean, truth, found.scene.volume.spacing)]
    rest.append(Metric("NRMSE", metrics.nrmse(found.mean, truth), None, None, "|x - truth| / |truth| of the volume", "",
                       len(truth)))
    return main, rest


def _in_windows(found: Reconstruction, truth: Tensor) -> list[Metric]:
    """The mean |error| in HU where the truth is lung, soft tissue or bone."""
    scale = found.scene.scale
    if scale.unit != "HU":
        return []
    out, values = [], scale.decode(truth)
    error = (found.mean - truth).abs() * scale.width
    for name, low, high in WINDOWS:
        where = (values >= low) & (values < high)
        if bool(where.any()):
            out.append(Metric(f"mean error, {name}", float(error[where].double().mean()), None, None,
                              f"|error| of the voxels whose truth lies from {low:g} to {high:g} HU", "",
                              int(where.sum()), "lower", "HU"))
    return out


def _smoothness(x: Tensor, truth: Tensor, spacing: tuple[float, float, float]) -> Metric:
    name, told = "variation between slices", "total variation along z over that of the truth; below 1: too smooth"
    if len(truth) < 2:
        return Metric(name, None, None, None, told, "", len(truth), "one", "", "there is one slice")
    along = Gradient("z", spacing)
    whole = float(total_variation(truth, along))
    if whole == 0.0:
        return Metric(name, None, None, None, told, "", len(truth), "one", "", "the slices of the truth are alike")
    return Metric(name, float(total_variation(x, along)) / whole, None, None, told, "", len(truth), "one")


def _mean(name: str, values: Tensor, unit: str, told: str, seed: int) -> Metric:
    if not len(values):
        return Metric(name, None, None, None, told, "", 0, "higher", unit, "every slice is empty")
    estimate = _estimate(values, None, seed)
    span = (estimate.low, estimate.high) if estimate.low < estimate.high else None
    return Metric(name, estimate.value, span, None, told, "", len(values), "higher", unit)


def _gain(name: str, values: Tensor, others: Tensor, seed: int) -> Metric:
    told = f"paired over the same slices; interval by blocks of {BLOCK}"
    if not len(values):
        return Metric(name, None, None, None, told, "", 0, "higher", "dB", "every slice is empty")
    estimate = _estimate(values, others, seed)
    span = (estimate.low, estimate.high) if estimate.low < estimate.high else None
    return Metric(name, estimate.value, span, None, told, "", len(values), "higher", "dB")


def _estimate(values: Tensor, others: Tensor | None, seed: int) -> Estimate:
    """A mean over slices; the interval is empty where there are too few of them."""
    block = min(BLOCK, max(len(values) // 2, 1))
    try:
        if others is None:
            return metrics.mean_score(values, block, seed=seed)
        return metrics.paired(values, others, block, seed=seed)
    except ScidiffError:  # one slice
        mean = float((values if others is None else values - others).mean())
        return Estimate(mean, mean, mean)


def misfit(x: Tensor, scene: Scene) -> float:
    """|A x - y| / |y| of a volume."""
    off = float(metrics.residual(x, scene.y, scene.operator).square().sum().sqrt())
    return off / max(float(scene.y.abs().double().norm()), 1e-300)


def against_noise(x: Tensor, scene: Scene) -> float | None:
    """|A x - y| in units of the noise, over the whole measurement; None where the noise is not known."""
    if not scene.sigma > 0:
        return None
    ratios = metrics.residual_ratio(x, scene.y, scene.operator, scene.sigma)
    return float(ratios.square().mean().sqrt())


def _residual(x: Tensor, scene: Scene) -> Metric:
    ratio = against_noise(x, scene)
    if ratio is None:
        return Metric("residual", misfit(x, scene), None, None, "|A x - y| / |y|; the noise is not known or zero", "",
                      len(scene.y))
    return Metric("residual", ratio, None, None, "|A x - y| in units of the noise; well below 1 the picture follows "
                  "the noise", "", len(scene.y), "one")


def _honesty(found: Reconstruction, seed: int) -> list[Metric]:
    out = []
    if found.share is not None:
        out.append(Metric("invented share", found.share, None, None, "energy of the mean in the null space of the "
                          "measurement: the prior put it there", "", found.count))
    truth = found.scene.truth
    if truth is None or found.low is None or found.high is None or found.std is None:
        return out
    body = truth > BODY
    if not bool(body.any()):
        return out
    factor, task = found.conformal
    told = f"share of the voxels above air whose truth lies in the interval; widened {factor:.3g} times " \
           f"(fitted on {task})" if task else "share of the voxels above air whose truth lies in the interval; no " \
           "conformal factor is stored for this measurement"
    nominal = (found.count - 1) / (found.count + 1)
    note = f"{found.count} samples without a factor would cover {100 * nominal:.0f} % at best" if nominal < 0.9 else ""
    try:
        share = coverage(found.low, found.high, truth, body, seed)
        out.append(Metric("coverage of the 90 % interval", share.value, (share.low, share.high), None, told, "",
                          int(body.sum()), "higher", "", note))
    except ScidiffError:  # one slice above air
        inside = ((truth >= found.low) & (truth <= found.high))[body].double().mean()
        out.append(Metric("coverage of the 90 % interval", float(inside), None, None, told, "", int(body.sum()),
                          "higher", "", note))
    needed = conformal_factor((found.low + found.high) / 2, (found.high - found.low) / 2, truth, 0.9, body) * factor
    out.append(Metric("conformal factor of this volume", needed, None, None, "by how much intervals without a factor "
                      "must be widened to cover 90 %; a validation subject's is stored with a prior", "",
                      int(body.sum()), "one"))
    error, spread = (found.mean - truth).abs()[body].double(), found.std[body].double()
    if float(spread.std()) > 0 and float(error.std()) > 0:
        value = float(torch.corrcoef(torch.stack([error, spread]))[0, 1])
        out.append(Metric("correlation of spread and error", value, None, None, "of std and |error| over the voxels "
                          "above air", "", int(body.sum()), "higher"))
    return out


def verdict(x: Tensor, found: Reconstruction) -> Verdict:
    """A sample is sound where it is finite and explains its measurement; a method without a prior need not."""
    if not bool(torch.isfinite(x).all()):
        return Verdict(False, f"{int((~torch.isfinite(x)).sum())} values are not finite")
    if not found.learned:
        return Verdict(True)
    ratio, share = against_noise(x, found.scene), misfit(x, found.scene)
    if ratio is not None and ratio > FAR and share > AMISS:
        return Verdict(False, f"does not fit the measurement: the residual is {ratio:.3g} times the noise")
    if ratio is None and share > AMISS:
        return Verdict(False, f"does not fit the measurement: {100 * share:.0f} % of it are left over")
    return Verdict(True)


def row(x: Tensor, found: Reconstruction) -> dict[str, float | str]:
    """Columns of samples.csv."""
    scene = found.scene
    out: dict[str, float | str] = {"residual": round(against_noise(x, scene) or misfit(x, scene), 5)}
    if scene.truth is not None:
        values = metrics.by_plane(metrics.psnr, x, scene.truth)["axial"]
        out["PSNR axial (dB)"] = round(float(values.mean()), 3) if len(values) else math.nan
    return out
