"""A prior in closed form as a checkpoint: slices of white noise, N(0, std^2) at every pixel, by a network of zeros.

With preconditioning, a network that returns zero makes D = std^2 x / (std^2 + sigma^2), the exact denoiser of that law.
"""

from __future__ import annotations

import torch

from scidiff.core.path.edm import EDM
from scidiff.core.spec import Component, StateSpec
from scidiff.domains.medical import MedicalDomain
from scidiff.store import checkpoint
from scidiff.store.targets import build

SETTINGS = ["sampling.report=false", "sampling.metrics=false"]


def save_model(folder, size=32, std=0.3, scatter=0.0, name="white", widths=(8, 8), modality="CT", known=(0.0, 0.7),
               depth=None):
    """Writes the checkpoint and returns its folder. scatter: random numbers on all weights, for another law."""
    domain = MedicalDomain(modality=modality, size=size, depth=depth,
                           known=None if known is None else dict(zip(("low", "high"), known, strict=True)))
    spec = StateSpec({n: Component(space, EDM(0.002, 40.0, data_std=std), dims)
                      for n, (space, dims) in domain.components().items()})
    backbone = {"_target_": "scidiff.nn.patch.PatchUNet", **domain.backbone_options(spec), "widths": list(widths),
                "embed": 8, "patch": 2}
    torch.manual_seed(0)
    network = build(backbone)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(scatter * torch.randn_like(p))
    config = {"experiment": name, "alias": "", "domain": {"name": "medical", "options": domain.options()},
              "spec": spec.to_config(), "backbone": backbone, "data": {"name": "none"},
              "denoiser": {"kinds": {"default": "preconditioned"}, "data_std": std, "clock": "lambda"},
              "solver": {"_target_": "scidiff.core.solvers.fixed.Fixed"}, "statistics": {}}
    return checkpoint.save(folder, network.state_dict(), config, "# White noise\n\nFor tests.")
