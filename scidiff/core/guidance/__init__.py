"""Guidance: wrappers that change a prediction (Denoiser -> Denoiser) and rules that change a state after a step."""

from scidiff.core.guidance.clamp import Clamp
from scidiff.core.guidance.classifier_free import ClassifierFree
from scidiff.core.guidance.given import Given
from scidiff.core.guidance.predictor import PredictorGuidance

__all__ = ["Clamp", "ClassifierFree", "Given", "PredictorGuidance"]
