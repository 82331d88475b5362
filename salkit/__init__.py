"""Completeness and soundness of saliency maps: a reproducibility kit (see README.md)."""

from importlib.metadata import version

from salkit.curves import auc, deletion_curve, insertion_curve
from salkit.data import ImageSet, load_images
from salkit.evaluation.evaluate import evaluate
from salkit.evaluation.results import open_results, rescore
from salkit.methods import METHODS, LearnedMask, get_method, same_map_for_all_labels
from salkit.models.classifier import Classifier
from salkit.models.zoo import load_classifier
from salkit.scores import PROTOCOLS, Protocol, completeness, soundness, worst_case

__version__ = version("salkit")

__all__ = [
    "METHODS",
    "PROTOCOLS",
    "Classifier",
    "ImageSet",
    "LearnedMask",
    "Protocol",
    "auc",
    "completeness",
    "deletion_curve",
    "evaluate",
    "get_method",
    "insertion_curve",
    "load_classifier",
    "load_images",
    "open_results",
    "rescore",
    "same_map_for_all_labels",
    "soundness",
    "worst_case",
]
