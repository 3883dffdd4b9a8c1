"""A checkpoint of a small untrained network for steps of Kuramoto-Sivashinsky, L = 22 on 32 points."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml

from scidiff.core.path import LevelPath
from scidiff.core.spec import Component, StateSpec
from scidiff.domains.pde import PdeDomain
from scidiff.store import checkpoint
from scidiff.store.targets import build

CONF = Path(__file__).resolve().parents[3] / "conf"
LARGEST = 2.9


def save_model(folder, stds=(0.05, 1.0), scatter=0.05, shift=None, conditions=None, name="small", **options):
    """Writes the checkpoint and returns its folder.

    scatter: random numbers of this size on all weights; 0 leaves a network that predicts zero. shift: the network
    returns this constant everywhere. conditions {name: (mean, std)}; options: of the domain.
    """
    about = {"equation": {"name": "ks", "viscosity": 1.0}, "shape": (32,), "extent": (22.0,), "interval": 0.8,
             "stride": 4, "scale": 0.2, "mean": (0.0,), "std": (1.2,), "largest": (LARGEST,), "burn_in": 24.0}
    domain = PdeDomain(**{**about, **options})
    spec = StateSpec({n: Component(space, LevelPath(tuple(stds)), dims)
                      for n, (space, dims) in domain.components().items()})
    known = {n: {"mean": mean, "std": std} for n, (mean, std) in (conditions or {}).items()}
    backbone = {"_target_": "scidiff.nn.unet.UNet", **domain.backbone_options(spec), "widths": [8, 8], "patch": 2,
                "embed": 8, **({"conditions": dict.fromkeys(known, 1)} if known else {})}
    torch.manual_seed(0)
    network = build(backbone)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(scatter * torch.randn_like(p))
        if shift is not None:
            network.leave.weight.zero_()
            network.leave.bias.fill_(shift)
    config = {"experiment": name, "alias": "", "domain": {"name": "pde", "options": domain.options()},
              "spec": spec.to_config(), "backbone": backbone, "denoiser": {}, "data": {"name": "none"},
              "solver": yaml.safe_load((CONF / "solver" / "refiner.yaml").read_text()),
              "statistics": {"conditions": known} if known else {}}
    return checkpoint.save(folder, network.state_dict(), config, "# A small model\n\nFor tests.")
