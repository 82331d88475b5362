"""Which experiments an evaluation is made of: for every method maps, their curves, and the crops of the saliency metric."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from salkit.engine.identity import Experiment, describe, describe_experiment, digest
from salkit.engine.shards import Job
from salkit.evaluation.tasks import Crops, Curves, Labels, Maps, Probabilities, Source, maps_are_kept
from salkit.methods import SaliencyMethod, same_map_for_all_labels
from salkit.methods.base import LearnedMap
from salkit.saliency_metric import ALPHAS


class Jobs:
    """The jobs of an evaluation on one source: what each is called, and everything its numbers depend on.

    Args:
        name: of the evaluation, for titles.
        source: classifier and images.
        seed: of every random draw.
    """

    def __init__(self, name: str, source: Source, seed: int) -> None:
        self.name, self.source, self.seed, self.n = name, source, seed, len(source.ids)
        self.subject = describe({"classifier": source.classifier, "images": {"ids": source.ids, "pixels": source.inputs}})
        self.pool = {"pool": digest(source.pool), "seed": seed}

    def probabilities(self) -> Job:
        """Of the label list on whole images."""
        about = describe_experiment("probabilities", f"{self.name}: probabilities", self.n, **self.subject)
        return Job(about, Probabilities())

    def maps(self, title: str, method: SaliencyMethod, explained: Tensor) -> Job:
        """A method's maps of all images for the labels `explained (N, k)`."""
        if isinstance(method, LearnedMap):
            # Settled here, so that all workers compute the same and the description says it.
            method = method.resolved(self.source.classifier, self.source.place())
        settings = self.subject | self.pool | {"method": method, "explained": explained.tolist()}
        settings["precision"] = getattr(method, "precision", "float32")
        settings["kept_as"] = getattr(method, "kept_as", "values")
        about = describe_experiment("maps", f"{self.name}, {title}: maps", self.n, **settings)
        return Job(about, Maps(method, explained, self.seed))

    def curves(self, title: str, method: SaliencyMethod, maps: Job | None, labels: Labels, **settings: Any) -> Job:
        """Curves of these maps; `settings` are the further fields of `Curves`."""
        about = self._describe("curves", title, method, maps, labels, settings)
        return Job(about, Curves(method, maps.experiment.key if maps else None, *labels, seed=self.seed, **settings))

    def crops(self, title: str, method: SaliencyMethod, maps: Job | None, labels: Labels, **settings: Any) -> Job:
        """The saliency metric of these maps; `settings` are the further fields of `Crops`."""
        about = self._describe("crops", title, method, maps, labels, settings)
        return Job(about, Crops(method, maps.experiment.key if maps else None, *labels, seed=self.seed, **settings))

    def of_method(
        self, title: str, method: SaliencyMethod, targets: Tensor, prob: Tensor, keep_maps: bool, crop: bool, **curve: Any
    ) -> MethodJobs:
        """All jobs of a method.

        Args:
            title: of the method.
            method: what explains.
            targets: `(N, k)` labels that are scored.
            prob: `(N, A)` probabilities of the label list on whole images.
            keep_maps: also where they are cheap.
            crop: also for the saliency metric.
            curve: the further fields of `Curves`.
        """
        best, explained = prob.gather(1, targets).argmax(1), targets
        if isinstance(method, same_map_for_all_labels):
            method, explained = method.method, prob.argmax(1, keepdim=True)
        elif not getattr(method, "depends_on_label", True):
            explained = targets.gather(1, best[:, None])
        labels = Labels(targets, best, explained)
        maps = self.maps(title, method, explained) if keep_maps or maps_are_kept(method) else None
        crops = self.crops(title, method, maps, labels, alphas=ALPHAS, largest_component=True) if crop else None
        return MethodJobs(title, method, labels, maps, self.curves(title, method, maps, labels, **curve), crops)

    def _describe(
        self,
        kind: str,
        title: str,
        method: SaliencyMethod,
        maps: Job | None,
        labels: Labels,
        settings: Mapping[str, Any],
    ) -> Experiment:
        """What is measured of maps, which go by their key or by what they are computed from."""
        source = {"method": method} | self.pool if maps is None else {"maps": maps.experiment.key, "seed": self.seed}
        about = {name: values.tolist() for name, values in zip(Labels._fields, labels, strict=True)} | self.subject | source | {**settings}
        return describe_experiment(kind, f"{self.name}, {title}: {kind}", self.n, **about)


@dataclass
class MethodJobs:
    """The jobs that one method's results come from."""

    title: str
    method: SaliencyMethod
    labels: Labels
    maps: Job | None
    curves: Job
    crops: Job | None

    def of_phase(self, phase: str) -> list[Job]:
        """Those that are computed together: maps, then what is measured of them."""
        of = {"maps": (self.maps,), "curves": (self.curves, self.crops)}
        return [job for job in of[phase] if job is not None]

    def keys(self) -> dict[str, Any]:
        """For the run's manifest."""
        named = {"maps": self.maps, "curves": self.curves, "crops": self.crops}
        return {name: job and job.experiment.key for name, job in named.items()} | {"method": self.title}
