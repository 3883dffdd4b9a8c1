"""From a plain config to a model: the StateSpec and the denoiser that it describes, with weights if there are any."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from scidiff.core.denoiser import NetworkDenoiser
from scidiff.core.errors import ScidiffError
from scidiff.core.spec import StateSpec
from scidiff.store.targets import build

if TYPE_CHECKING:
    from torch import Tensor


def assemble(
    config: Mapping[str, Any], weights: Mapping[str, Tensor] | None = None
) -> tuple[StateSpec, NetworkDenoiser]:
    """Builds `config["spec"]`, `config["backbone"]` and `config["denoiser"]`; loads `weights` into the backbone.

    Raises ScidiffError where the weights do not belong to the described backbone.
    """
    spec = StateSpec.from_config(config["spec"], build)
    backbone = build(config["backbone"])
    if weights is not None:
        try:
            backbone.load_state_dict(dict(weights))
        except RuntimeError as error:
            raise ScidiffError("The weights do not fit the network that the config describes.",
                               f"({str(error).splitlines()[-1].strip()})") from error
    return spec, NetworkDenoiser(spec, backbone, **dict(config.get("denoiser") or {}))
