"""Classifiers: nets with a label list and a softmax scope, how images go through them, and the four nets of the kit."""

from salkit.models.classifier import Classifier, resolve_device, resolve_precision
from salkit.models.zoo import CLASSIFIERS, FEATURE_TAPS, load_classifier

__all__ = ["CLASSIFIERS", "FEATURE_TAPS", "Classifier", "load_classifier", "resolve_device", "resolve_precision"]
