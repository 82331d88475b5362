"""The evaluations behind the notebooks: which methods, images and protocol, in the order of their worth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from salkit.data.images import ImageSet, load_distractors, load_images
from salkit.engine.executors import Engine
from salkit.evaluation.evaluate import probabilities
from salkit.methods import LearnedMask, SaliencyMethod
from salkit.methods.learned_mask import Loss
from salkit.models.classifier import Classifier, SoftmaxScope
from salkit.models.zoo import load_classifier
from salkit.scores import PROTOCOLS, Protocol
from salkit.studies import profiles
from salkit.studies.mosaics import choose_mosaics
from salkit.studies.profiles import Profile, Study
from salkit.studies.quality import likely_labels

PAPER = PROTOCOLS["paper"]

SETTLED_ROWS = ("Ours", "Ours (s=1)")
"""Rows whose masks are also learned with twice the composites."""

LENGTHS = (12, 50, 124, 250)
"""Composites of the schedules that are too short, which notebook 07 shows beside the settled one."""

TWO_LABELS = (("two_labels", ("ours", "variants", "cheap", "prior")), ("mosaics", ("prior", "igos")))
"""Experiments on two labels an image that come late, and their rows."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Methods, the images they are evaluated on, and how.

    Attributes:
        name: of the experiment; several with the same name have different methods and belong together.
        notebook: number of the notebook that shows it.
        study: data, net and settings.
        labels: name of the study's label list.
        methods: name -> method.
        n_images: how many; the first ones of the list.
        images: `"list"`, the images of the label list; `"mosaics"`; or `"two labels"`, images with a second plausible class.
        n_labels: the most probable label, the next and those after it in the list; None for all.
        protocol: what scores are computed under.
        seed: added to that of the run.
        only: names of the images; all by default.
        keep: what else `evaluate` keeps or plays.
        pictured: whether maps are recorded, for figures.
    """

    name: str
    notebook: str
    study: Study
    labels: str = "a"
    methods: Mapping[str, SaliencyMethod]
    n_images: int
    images: str = "list"
    n_labels: int | None = None
    protocol: Protocol = PAPER
    seed: int = 0
    only: tuple[str, ...] = ()
    keep: Mapping[str, Any] = field(default_factory=dict)
    pictured: bool = False

    def classifier(self) -> Classifier:
        """With the softmax scope of the experiment, and its label list.

        With two labels an image it has all classes, unless the study's own maskers know those of the list only.
        """
        labels = self.study.lists[self.labels] if self.images == "list" or not self.study.small_maskers else None
        return load_classifier(self.study.classifier, labels, self.protocol.softmax_over)

    def labels_per_image(self) -> int:
        """How many labels each image is explained for."""
        listed = self.study.lists[self.labels]
        return 2 if self.images != "list" else self.n_labels or (10 if listed is None else len(listed))

    def scene(self, classifier: Classifier, seed: int, engine: Engine, device: str | None) -> Scene:
        """The images, the labels they are explained for, and the pool of distractors."""
        scene = self._whole(classifier, seed, engine, device)
        places = [scene.images.ids.index(name) for name in self.only] or range(min(self.n_images, len(scene.images)))
        return Scene(scene.images.subset(places), None if scene.targets is None else scene.targets[list(places)], scene.pool)

    def _whole(self, classifier: Classifier, seed: int, engine: Engine, device: str | None) -> Scene:
        """With all images that there are."""
        pool = load_distractors(self.study.data, n=self.study.pool, seed=seed)
        if self.images == "mosaics":
            mosaics = choose_mosaics(classifier, load_images(self.study.data), engine=engine, device=device)
            return Scene(mosaics.images, mosaics.targets, mosaics.others)
        if self.images == "two labels":
            images = load_images(self.study.data)
            top = probabilities(classifier, images, engine, device).topk(2)
            likely = top.values[:, 1].argsort(descending=True)
            return Scene(images.subset(likely), top.indices[likely], pool)
        images = self.study.images(self.labels)
        if self.n_labels is None:
            return Scene(images, None, pool)
        prob = probabilities(classifier, images, engine, device)
        return Scene(images, torch.stack([likely_labels(p, self.n_labels) for p in prob]), pool)


class Scene(NamedTuple):
    """Images, labels `(N, k)` of each (None for all of the list), and what hides pixels."""

    images: ImageSet
    targets: Tensor | None
    pool: ImageSet


def experiments(profile: Profile, checkpoints: str | Path | None = None) -> list[Experiment]:
    """All evaluations of a profile, the most worth first, so that a night that is cut short still tells something.

    Args:
        profile: says how many images.
        checkpoints: folder with the maskers of a net for which the kit ships none.
    """
    n, imagenet, cifar10 = profile.images, profile.imagenet, profile.cifar10
    table1 = profiles.table1_methods(imagenet, PAPER, checkpoints)
    everything = {"blur_games": True, "saliency_metric": True}

    def rows(group: str, labels: str) -> Experiment:
        methods = {name: table1[name] for name in profiles.ROWS[group]}
        settings: dict[str, Any] = {"labels": labels, "methods": methods, "n_images": n[group], "keep": everything, "pictured": True}
        return Experiment(name=f"table1_{labels}", notebook="03", study=imagenet, **settings)

    def two(name: str, group: str) -> Experiment:
        methods = {name: table1[name] for name in profiles.ROWS[group]}
        images = name.replace("_", " ")
        most = min(n[images], n["igos"]) if group == "igos" else n[images]
        settings: dict[str, Any] = {"images": images, "methods": methods, "n_images": most, "pictured": True}
        return Experiment(name=name, notebook="04", study=imagenet, **settings)

    def protocol(scope: SoftmaxScope, loss: Loss) -> Experiment:
        rules = Protocol(scope, loss=loss)
        ours = profiles.our_methods(imagenet, rules)
        # Maps of the other rows depend on neither choice, but under another scope they have other scores.
        rest = {name: table1[name] for name in profiles.LABEL_FREE_LOSS} if (scope, loss) == ("labels", "nll") else {}
        settings: dict[str, Any] = {"methods": ours | rest, "n_images": n["protocols"], "protocol": rules}
        return Experiment(name=f"protocol_{scope}_{loss}", notebook="06", study=imagenet, **settings)

    def settled(scope: SoftmaxScope, loss: Loss) -> Experiment:
        rules = Protocol(scope, loss=loss)
        methods = {
            f"{name}, twice": with_composites(ours, 2 * ours.cost().forward_backward)
            for name, ours in profiles.our_methods(imagenet, rules).items()
            if name in SETTLED_ROWS
        }
        settings: dict[str, Any] = {"methods": methods, "n_images": n["settled"], "n_labels": 3, "protocol": rules}
        return Experiment(name=f"settled_{scope}_{loss}", notebook="07", study=imagenet, **settings)

    def again(name: str, study: Study, methods: Mapping[str, SaliencyMethod], keep: Mapping[str, Any] = MappingProxyType({})) -> Experiment:
        return Experiment(name=name, notebook="03", study=study, methods=methods, n_images=n["second seed"], seed=1, keep=keep)

    sweep = profiles.tv_sweep_methods(cifar10, profile.tvs, PAPER)
    repeated = [name for group in ("ours", "variants", "prior") for name in profiles.ROWS[group]]
    shorter = {str(spent): with_composites(imagenet.learned_mask(PAPER), spent) for spent in LENGTHS}
    lists, choices = list(imagenet.lists), [(scope, loss) for scope in get_args(SoftmaxScope) for loss in get_args(Loss)]
    first, *others = lists
    found = [
        *(rows(group, first) for group in ("ours", "variants", "cheap")),
        *(rows(group, labels) for labels in others for group in ("ours", "variants", "cheap")),
        Experiment(name="sweep", notebook="02", study=cifar10, methods=sweep, n_images=n["sweep"], pictured=True),
        rows("prior", first),
        *(two("mosaics", group) for group in ("ours", "variants", "cheap")),
        again("second_seed", imagenet, {name: table1[name] for name in repeated}, everything),
        again("second_seed_sweep", cifar10, sweep),
        Experiment(name="lengths", notebook="07", study=imagenet, methods=shorter, n_images=n["lengths"], n_labels=3),
        *(settled(*choice) for choice in choices),
        *(protocol(*choice) for choice in choices if choice != ("all", "nll")),
        *(rows("prior", labels) for labels in others),
        *(two(name, group) for name, groups in TWO_LABELS for group in groups),
        rows("igos", first),
    ]
    return [each for each in found if each.n_images]


def with_composites(method: LearnedMask, spent: int) -> LearnedMask:
    """The method with a schedule of so many composites."""
    return replace(method, n_steps=max(1, spent // method.composites_per_step))
