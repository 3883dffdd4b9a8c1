"""Which method reconstructs: a posterior solver with its coupling of slices, or one without a prior; and its rivals.

Weights of the total variation are for operators of norm 1 and images in [0, 1]. Those of whole reconstructions (`tv`)
were tuned on noise-free chests and heads: 1.5e-3, 2.1e-4 and 3.4e-5 for 8, 20 and 60 views over the half circle
(between them a power law), 4.6e-5 over a quarter of the circle, 5e-3 in the plane for MRI. In a sampler, total
variation acts between slices alone: weight 1.05e-4 and penalty 0.026 for sparse views, ten times the weight for limited
angles, 5e-3 and 0.01 for MRI (Chung et al. 2023, arXiv 2211.10655, scaled to norm 1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from scidiff.core.errors import UsageError
from scidiff.core.operator import LinearOperator
from scidiff.core.posterior import Posterior
from scidiff.domains.medical.ask import Ask
from scidiff.domains.medical.classical import CGLS, FBP, AdmmTV, Method, ZeroFilled
from scidiff.domains.medical.operators.cone import ConeCT
from scidiff.domains.medical.operators.ct import LimitedAngle, ViewTable
from scidiff.domains.medical.operators.mri import CoilOperator
from scidiff.domains.medical.scene import Scene
from scidiff.domains.medical.tv import TV3D, TVz, Watch
from scidiff.store import targets

STEPS = ("steps", "levels", "rounds")  # what solvers call the number of their steps
TUNED = ((8, 1.5e-3), (20, 2.1e-4), (60, 3.4e-5))
LIMITED, COILS, OTHERS = 4.6e-5, 5e-3, 1e-3


def is_classical(node: Mapping[str, Any] | None) -> bool:
    """Whether the config of a posterior names a method without a prior."""
    found = targets.locate(str((node or {}).get("_target_")))
    return not (isinstance(found, type) and issubclass(found, Posterior))


def classical(ask: Ask, scene: Scene) -> Method:
    """The method without a prior of a config; weights and voxel sizes that it leaves open are filled in."""
    node = dict(ask.posterior or {})
    if "spacing" in node and node["spacing"] in (None, "scan"):
        node["spacing"] = list(scene.volume.spacing)
    if "weight" in node and node["weight"] is None:
        node["weight"] = tv_weight(scene.operator)
    if "axes" in node and node["axes"] is None:
        node["axes"] = tv_axes(scene.operator)
    if "noise" in node and node["noise"] is None:
        node["noise"] = scene.sigma
    if ask.steps is not None:
        if "iterations" not in node:
            raise UsageError("This method takes no steps.", "Leave --steps out.")
        node["iterations"] = ask.steps
    if ask.kind not in ("auto", "none"):
        raise UsageError(f"volume={ask.kind} goes with a prior; this method has none.",
                         "Choose posterior=admm_tv for total variation.")
    return targets.build(node)


def solver(ask: Ask, scene: Scene, cube: bool = False) -> Posterior:
    """The posterior solver of a config, with the data step that couples the slices of a volume."""
    node = {k: v for k, v in (ask.posterior or {}).items() if k != "name"}
    if ask.steps is not None:
        key = next((k for k in STEPS if k in node), None)
        if key is None:
            raise UsageError("This solver chooses its own number of steps.", "Leave --steps out.")
        node[key] = ask.steps
    takes = ("step" in node and node["step"] is None) or isinstance(node.get("step"), Mapping)
    couples = ask.kind in ("tv_z", "tv_3d") or (ask.kind == "auto" and takes and node["step"] is None
                                                and scene.depth > 1 and not cube)
    if not couples:
        return targets.build(node)
    if not takes:
        raise UsageError(f"This solver has no data step for volume={ask.kind}.", "Choose posterior=dds or mbir.")
    if cube:
        raise UsageError("This prior knows blocks of slices, so nothing more couples them.", "Leave volume out.")
    weight, penalty = coupling(scene.operator)
    step = (TV3D if ask.kind == "tv_3d" else TVz)(
        weight=float(ask.volume.get("weight") or weight), penalty=float(ask.volume.get("penalty") or penalty),
        cg=int(node.get("cg") or 5), spacing=scene.volume.spacing,
        noise=scene.sigma / scene.operator.norm() if scene.sigma > 0 else 0.0)
    return targets.build(node, step=step)


def coupling(operator: LinearOperator) -> tuple[float, float]:
    """(weight, penalty) of the total variation between slices in a sampler."""
    if isinstance(operator, CoilOperator):
        return 5e-3, 1e-2
    return (1.05e-3, 2.6e-2) if isinstance(operator, LimitedAngle) else (1.05e-4, 2.6e-2)


def tv_weight(operator: LinearOperator) -> float:
    """The weight of a whole reconstruction by total variation."""
    if isinstance(operator, CoilOperator):
        return COILS
    if isinstance(operator, LimitedAngle):
        return LIMITED
    if not isinstance(operator, (ViewTable, ConeCT)):
        return OTHERS
    views = len(operator.angles)
    if views <= TUNED[0][0]:
        return TUNED[0][1]
    for (fewer, heavy), (more, light) in zip(TUNED, TUNED[1:], strict=False):
        if views <= more:
            share = math.log(views / fewer) / math.log(more / fewer)
            return heavy * (light / heavy) ** share
    return TUNED[-1][1]


def tv_axes(operator: LinearOperator) -> str:
    """In the plane for MRI, whose slices are often thick and far apart; in the volume for others."""
    return "yx" if isinstance(operator, CoilOperator) else "zyx"


def rivals(scene: Scene, iterations: int = 100) -> dict[str, Method]:
    """What a reconstruction is set beside: a direct method, and total variation; name -> method."""
    operator = scene.operator
    direct: dict[str, Method] = {"Zero-filled": ZeroFilled()} if isinstance(operator, CoilOperator) else \
        {"FBP": FBP()} if isinstance(operator, (ViewTable, ConeCT)) else {"CGLS": CGLS(20, noise=scene.sigma)}
    tv = AdmmTV(tv_weight(operator), axes=tv_axes(operator), iterations=iterations, noise=scene.sigma, tolerance=1e-4,
                spacing=scene.volume.spacing)
    return {**direct, "TV": tv}


def applied(method: Method, scene: Scene, watch: Watch | None = None) -> Tensor:
    """The method's volume [Z, 1, Y, X], real; watch(number, x) is told of the iterations of total variation."""
    x = method(scene.y, scene.operator, watch=watch) if isinstance(method, AdmmTV) else method(scene.y, scene.operator)
    return x.abs() if x.is_complex() else x
