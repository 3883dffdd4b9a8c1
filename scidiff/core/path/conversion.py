"""The linear maps among the kinds of a Gaussian prediction.

Every conversion is `want = p x + q have` with two numbers per time. Here x stands for z - c mu and v for v - c' mu;
a, s are signal and noise scale, da, ds their derivatives, w = da s - a ds (negative), r = sqrt(a^2 + s^2):

    data D, noise E, x = a D + s E | score = -E / s | velocity v = da D + ds E | angular u = (a E - s D) / r

Source: the identities of one-sided Gaussian paths (Kingma et al. 2021, arXiv 2107.00630; Salimans & Ho 2022, arXiv
2202.00512; Albergo et al. 2023, arXiv 2303.08797). `angular` is Salimans & Ho's v for every path, not only where r = 1;
with data of unit standard deviation it is minus the raw output of a preconditioned network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

KINDS = ("data", "noise", "score", "velocity", "angular")
NEEDS_SIGNAL = frozenset({("noise", "data"), ("score", "data"), ("noise", "velocity"), ("score", "velocity"),
                          ("noise", "angular"), ("score", "angular")})

_Pair = Callable[[Any, Any, Any, Any, Any, Any], tuple[Any, Any]]

_TABLE: dict[tuple[str, str], _Pair] = {
    ("data", "noise"): lambda a, s, da, ds, w, r: (1 / s, -a / s),
    ("data", "score"): lambda a, s, da, ds, w, r: (-1 / (s * s), a / (s * s)),
    ("data", "velocity"): lambda a, s, da, ds, w, r: (ds / s, w / s),
    ("data", "angular"): lambda a, s, da, ds, w, r: (a / (s * r), -r / s),
    ("noise", "data"): lambda a, s, da, ds, w, r: (1 / a, -s / a),
    ("noise", "score"): lambda a, s, da, ds, w, r: (0.0, -1 / s),
    ("noise", "velocity"): lambda a, s, da, ds, w, r: (da / a, -w / a),
    ("noise", "angular"): lambda a, s, da, ds, w, r: (-s / (a * r), r / a),
    ("score", "data"): lambda a, s, da, ds, w, r: (1 / a, s * s / a),
    ("score", "noise"): lambda a, s, da, ds, w, r: (0.0, -s),
    ("score", "velocity"): lambda a, s, da, ds, w, r: (da / a, s * w / a),
    ("score", "angular"): lambda a, s, da, ds, w, r: (-s / (a * r), -s * r / a),
    ("velocity", "data"): lambda a, s, da, ds, w, r: (-ds / w, s / w),
    ("velocity", "noise"): lambda a, s, da, ds, w, r: (da / w, -a / w),
    ("velocity", "score"): lambda a, s, da, ds, w, r: (-da / (s * w), a / (s * w)),
    ("velocity", "angular"): lambda a, s, da, ds, w, r: ((a * da + s * ds) / (w * r), -r / w),
    ("angular", "data"): lambda a, s, da, ds, w, r: (a / (r * r), -s / r),
    ("angular", "noise"): lambda a, s, da, ds, w, r: (s / (r * r), a / r),
    ("angular", "score"): lambda a, s, da, ds, w, r: (-1 / (r * r), -a / (s * r)),
    ("angular", "velocity"): lambda a, s, da, ds, w, r: ((a * da + s * ds) / (r * r), -w / r),
}


def conversion(have: str, want: str, alpha: Any, sigma: Any, dalpha: Any, dsigma: Any) -> tuple[Any, Any]:
    """(p, q) with want = p x + q have; floats give floats, tensors [B] give tensors."""
    if have == want:
        return 0.0, 1.0
    radius = (alpha * alpha + sigma * sigma) ** 0.5
    return _TABLE[have, want](alpha, sigma, dalpha, dsigma, dalpha * sigma - alpha * dsigma, radius)
