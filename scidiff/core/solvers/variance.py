"""What a solver makes of Gaussian data, without sampling: its affine plans are linear maps.

For data N(0, q^2) each coordinate meets the exact predictions D = alpha q^2 x / v and E = sigma x / v, v = alpha^2
q^2 + sigma^2, so a plan acts linearly on (x, past predictions) and on the fresh noise. Propagating the covariance
of that vector gives the variance of the endpoint to rounding, where samples could tell two solvers apart only by
the million.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scidiff.core.errors import ScidiffError
from scidiff.core.path.gaussian import GaussianPath
from scidiff.core.plan import Row, SolverPlan


def _gain(path: GaussianPath, t: float, form: str, data_std: float) -> float:
    """Prediction over x at time t."""
    k, q2 = path.coefficients(t), data_std**2
    v = k.alpha**2 * q2 + k.sigma**2
    if form == "data":
        return k.alpha * q2 / v
    if form == "noise":
        return k.sigma / v
    if form == "score":
        return -1.0 / v
    return (k.dalpha * k.alpha * q2 + k.dsigma * k.sigma) / v


def endpoint_variance(plan: SolverPlan, path: GaussianPath, data_std: float) -> tuple[float, float]:
    """Variance of one coordinate of the endpoint, and the exact one there; starts from the exact law at the first time.

    Raises ScidiffError for plans with kernels that are not affine or with more than one component.
    """
    rows: list[Row] = [r for s in plan.stages for r in s.rows]
    if len({r.name for r in rows}) != 1 or any(r.kernel != "affine" for r in rows):
        raise ScidiffError("Only plans of one component with affine rows act linearly.")
    forms = sorted({r.form for r in rows if r.on})
    depth = {f: max(max(r.on) + 1 for r in rows if r.on and r.form == f) for f in forms}
    place, size = {}, 2  # the current value, the value at the start of the step, then the histories
    for f in forms:
        place[f], size = size, size + depth[f]
    first, end = path.coefficients(plan.stages[0].t), path.coefficients(plan.stages[-1].s)
    cov = torch.zeros(size, size, dtype=torch.float64)
    cov[:2, :2] = first.alpha**2 * data_std**2 + first.sigma**2
    for stage in plan.stages:
        if stage.evaluate:
            push = torch.eye(size, dtype=torch.float64)
            for f in forms:
                block = slice(place[f], place[f] + depth[f])
                push[block] = 0.0
                push[place[f], 0] = _gain(path, stage.t, f, data_std)
                for j in range(1, depth[f]):
                    push[place[f] + j, place[f] + j - 1] = 1.0
            cov = push @ cov @ push.T
        for row in stage.rows:
            cov = _moved(cov, row, place, row.keep or (stage.last and row is stage.rows[-1]))
    return float(cov[0, 0]), end.alpha**2 * data_std**2 + end.sigma**2


def _moved(cov: Tensor, row: Row, place: dict[str, int], keep: bool) -> Tensor:
    """The covariance after one row, and after the result became the start of the next step."""
    step = torch.eye(cov.shape[0], dtype=torch.float64)
    step[0, 0] = 0.0
    step[0, 1 if row.base == "start" else 0] = row.a
    for b, k in zip(row.b, row.on, strict=True):
        step[0, place[row.form] + k] += b
    cov = step @ cov @ step.T
    cov[0, 0] += row.c**2
    if keep:
        copy = torch.eye(cov.shape[0], dtype=torch.float64)
        copy[1] = copy[0]
        cov = copy @ cov @ copy.T
    return cov
