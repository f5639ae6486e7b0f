"""Predictors: how the value at a skipped call is guessed from those at full calls, by name."""

from .anchors import Anchors
from .base import (
    PREDICTORS,
    IndexPredictor,
    Predictor,
    PredictorInfo,
    PredictorSetting,
    predictor_class,
    predictor_names,
    register,
    take_predictor,
)
from .differences import Newton, Reuse, Taylor, check_degree, check_forecast, choose_predictor
from .dmd import Poles
from .fitted import Fitted
from .foca import FoCa
from .hermite import Hermite
from .spectrum import Spectrum

__all__ = [
    "PREDICTORS",
    "Anchors",
    "Fitted",
    "FoCa",
    "Hermite",
    "IndexPredictor",
    "Newton",
    "Poles",
    "Predictor",
    "PredictorInfo",
    "PredictorSetting",
    "Reuse",
    "Spectrum",
    "Taylor",
    "check_degree",
    "check_forecast",
    "choose_predictor",
    "predictor_class",
    "predictor_names",
    "register",
    "take_predictor",
]
