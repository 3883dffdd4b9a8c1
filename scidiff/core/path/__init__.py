"""Paths: how each component travels from data (t = 0) to the source (t = 1)."""

from scidiff.core.path.base import KINDS, Corrupted, Path, Prediction, spread
from scidiff.core.path.bridge import Bridge, BridgeCoefficients
from scidiff.core.path.categorical import AbsorbingPath, CategoricalPath, MarginalPath, UniformPath
from scidiff.core.path.centred import RDDM, MeanReverting, ResidualShift, ResShift
from scidiff.core.path.edm import EDM, VE
from scidiff.core.path.flow import Linear, Poly
from scidiff.core.path.gaussian import Coefficients, GaussianPath
from scidiff.core.path.levels import LevelPath
from scidiff.core.path.vp import VP, Cosine, DiscreteDDPM, LinearVP, SubVP
from scidiff.core.path.wrapped import WrappedPath

__all__ = [
    "EDM",
    "KINDS",
    "RDDM",
    "VE",
    "VP",
    "AbsorbingPath",
    "Bridge",
    "BridgeCoefficients",
    "CategoricalPath",
    "Coefficients",
    "Corrupted",
    "Cosine",
    "DiscreteDDPM",
    "GaussianPath",
    "LevelPath",
    "Linear",
    "LinearVP",
    "MarginalPath",
    "MeanReverting",
    "Path",
    "Poly",
    "Prediction",
    "ResShift",
    "ResidualShift",
    "SubVP",
    "UniformPath",
    "WrappedPath",
    "spread",
]
