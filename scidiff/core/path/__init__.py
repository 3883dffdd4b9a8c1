"""Paths: how each component travels from data (t = 0) to the source (t = 1)."""

from scidiff.core.path.base import KINDS, Corrupted, Path, Prediction, spread
from scidiff.core.path.belief import Belief, GaussianBelief
from scidiff.core.path.bridge import Bridge, BridgeCoefficients
from scidiff.core.path.categorical import AbsorbingPath, CategoricalPath, MarginalPath, UniformPath
from scidiff.core.path.categorical_belief import CategoricalBelief
from scidiff.core.path.centred import RDDM, MeanReverting, ResidualShift, ResShift
from scidiff.core.path.circular import CircularBelief, PlanarBelief
from scidiff.core.path.edm import EDM, VE
from scidiff.core.path.flow import Linear, Poly
from scidiff.core.path.gaussian import Coefficients, GaussianPath
from scidiff.core.path.levels import LevelPath
from scidiff.core.path.torus_flow import TorusFlow
from scidiff.core.path.von_mises_belief import VonMisesBelief
from scidiff.core.path.vp import VP, Cosine, DiscreteDDPM, LinearVP, SubVP
from scidiff.core.path.wrapped import WrappedPath

__all__ = [
    "EDM",
    "KINDS",
    "RDDM",
    "VE",
    "VP",
    "AbsorbingPath",
    "Belief",
    "Bridge",
    "BridgeCoefficients",
    "CategoricalBelief",
    "CategoricalPath",
    "CircularBelief",
    "Coefficients",
    "Corrupted",
    "Cosine",
    "DiscreteDDPM",
    "GaussianBelief",
    "GaussianPath",
    "LevelPath",
    "Linear",
    "LinearVP",
    "MarginalPath",
    "MeanReverting",
    "Path",
    "PlanarBelief",
    "Poly",
    "Prediction",
    "ResShift",
    "ResidualShift",
    "SubVP",
    "TorusFlow",
    "UniformPath",
    "VonMisesBelief",
    "WrappedPath",
    "spread",
]
