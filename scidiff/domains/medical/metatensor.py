"""MONAI: volumes as MetaTensors and back, and simulated measurements as a dictionary transform for `Compose`.

    to_metatensor(volume)         [C, X, Y, Z] with the affine of the volume (right, front, head, in mm)
    from_metatensor(image)        the volume of a channel-first image, in the pose of `volume.layout`
    simulated(keys, operator=...) a MapTransform: data[key] -> data[key + "_measured"], and what goes with it

The transform builds its operator for each image from a config (`conf/operator`) or takes a ready one, measures the
image in the range of the prior, adds noise that depends on the seed and the number of the call alone, and keeps beside
the measurement the operator and the standard deviation of its noise, under key + "_operator" and key + "_sigma".
MONAI is an extra; nothing here needs it before it is called.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch

from scidiff.core.errors import MissingLibrary, UsageError
from scidiff.core.operator import LinearOperator
from scidiff.domains.medical.ask import Ask
from scidiff.domains.medical.intensity import scale_for
from scidiff.domains.medical.scene import measured, noise_of, noisy, operator_of
from scidiff.domains.medical.volume import Volume, layout

RECIPE = {"_target_": "scidiff.domains.medical.classical.ZeroFilled"}


def _monai() -> Any:
    try:
        import monai.data
        import monai.transforms
    except ImportError as error:
        raise MissingLibrary("monai", "MONAI's tensors and transforms", 'pip install "scidiff[medical]"') from error
    return monai


def to_metatensor(volume: Volume) -> Any:
    """A MetaTensor [C, X, Y, Z] of a volume [Z, C, Y, X]."""
    data = volume.data.permute(1, 3, 2, 0).contiguous()
    return _monai().data.MetaTensor(data, affine=torch.from_numpy(volume.affine.copy()))


def from_metatensor(image: Any, modality: str = "", name: str = "image", slices: str = "auto") -> Volume:
    """The volume of a channel-first image [1, i, j, k] with an affine; UsageError where it is none."""
    affine = getattr(image, "affine", None)
    if affine is None:
        raise UsageError(f"{name} has no affine, so nobody knows where it lies.", "Load it with MONAI's LoadImage.")
    if image.ndim != 4 or image.shape[0] != 1:
        raise UsageError(f"{name} has the shape {tuple(image.shape)}; a volume is [1, i, j, k].",
                         "Use EnsureChannelFirst, and choose one frame of a series.")
    of_file = np.asarray(affine, dtype=np.float64)
    pose = layout(of_file, slices)
    array = torch.as_tensor(image)[0].detach().cpu().to(torch.float32).numpy()
    return Volume(pose.to_tensor(array), pose.affine(of_file, array.shape), modality, name)


def simulated(keys: Hashable | Sequence[Hashable], operator: Mapping[str, Any] | LinearOperator,
              noise: Mapping[str, Any] | None = None, modality: str = "CT", scale: str = "ct", seed: int = 0,
              allow_missing_keys: bool = False) -> Any:
    """A MONAI MapTransform that measures volumes (module docstring). noise: {gaussian, photons, ring} as in `Ask`."""
    return _transform()(keys, operator, noise, modality, scale, seed, allow_missing_keys)


@cache
def _transform() -> type:
    """The class, made once MONAI is there."""

    class Measured(_monai().transforms.MapTransform):
        def __init__(self, keys: Any, operator: Any, noise: Any, modality: str, scale: str, seed: int,
                     allow_missing_keys: bool) -> None:
            super().__init__(keys, allow_missing_keys)
            self.operator, self.modality, self.scale, self.seed = operator, modality, scale, int(seed)
            node = None if isinstance(operator, LinearOperator) else dict(operator)
            self.ask = Ask(input="volume", operator=node or RECIPE, noise=dict(noise or {}), posterior=RECIPE)
            self.calls = 0

        def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
            out = dict(data)
            for key in self.key_iterator(out):
                volume = from_metatensor(out[key], self.modality, str(key))
                own = scale_for(volume.data, self.modality, self.scale)
                ready = isinstance(self.operator, LinearOperator)
                operator = self.operator if ready else operator_of(self.ask, volume)
                laws, _ = noise_of(self.ask, operator, own)
                y, sigma = noisy(measured(operator, own.encode(volume.data)), laws, self.seed + self.calls)
                out.update({f"{key}_measured": y, f"{key}_operator": operator, f"{key}_sigma": sigma})
            self.calls += 1
            return out

    return Measured
