"""The experiments behind the notebooks, at the size of a profile. Each is computed once and kept in a store."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import xarray as xr
from torch import nn

from salkit.checks import check_integer
from salkit.data.files import open_images
from salkit.data.images import ImageSet, load_distractors, load_images
from salkit.engine.executors import Engine, check_executor, open_engine
from salkit.engine.identity import describe_experiment
from salkit.engine.shards import Job
from salkit.evaluation.evaluate import evaluate
from salkit.evaluation.tasks import Source, Table
from salkit.methods.masker import masker_metadata, save_masker
from salkit.methods.masker_training import make_masker, taps_of, train_masker
from salkit.models.classifier import Classifier, resolve_device
from salkit.models.zoo import load_classifier
from salkit.scores import PROTOCOLS
from salkit.studies import profiles, recorded
from salkit.studies.experiments import SETTLED_ROWS, Experiment, experiments
from salkit.studies.mosaics import add_localisation
from salkit.studies.profiles import Profile, get_profile
from salkit.studies.quality import against_published, by_length, settled
from salkit.studies.recorded import joined, stacked
from salkit.studies.sanity import STAGES, layer_randomisation


@dataclass(frozen=True)
class Runs:
    """The experiments of the notebooks, at the size of a profile. Each is computed once and kept in one store.

    Args:
        profile: smoke, demo, overnight or paper.
        seed: of every random draw.
        device: where to compute; `"auto"` for a GPU if there is one.
        output_dir: folder of the notebooks' results; trained maskers are in its `checkpoints`.
        store: folder of the store; default `output_dir/store`. With neither, results are not kept.
        executor: `"serial"`, `"dask"` or the address of a Dask scheduler, see `salkit.engine.executors`.
        workers: number of workers of `"dask"`; None for one a GPU, or one a core.
        schedule, precision: of mask learning, see `LearnedMask`; empty for the profile's.

    Raises:
        ValueError: unknown profile, schedule, precision, executor or device, or a seed that is not an integer >= 0.

    Example:
        >>> Runs("smoke").chosen.images["sweep"]
        1
    """

    profile: str
    seed: int = 0
    device: str = "auto"
    output_dir: str | Path | None = None
    store: str | Path | None = None
    executor: str = "serial"
    workers: int | None = None
    schedule: str = ""
    precision: str = ""

    def __post_init__(self) -> None:
        get_profile(self.profile, self.schedule, self.precision)
        check_executor(self.executor, self.workers)
        check_integer("seed", self.seed)
        if self.executor == "serial":
            resolve_device(self.device)

    @property
    def chosen(self) -> Profile:
        """The profile, with the `schedule` and `precision` that were given."""
        return get_profile(self.profile, self.schedule, self.precision)

    def result(self, name: str) -> xr.Dataset:
        """An experiment's results: the recorded ones where the profile is a part of a recorded one, else this run's own.

        Raises:
            ValueError: no such experiment.
            FileNotFoundError: it is not recorded.
        """
        if not self.chosen.recorded:
            return self.live(name)
        result = recorded.load(self.chosen.recorded, name)
        methods = [method for part in self._parts(name, shown=True) for method in part.methods]
        return result.sel({"method": [method for method in methods if method in result.method.values]})

    def live(self, name: str) -> xr.Dataset:
        """Evaluate an experiment now, on as many images as the profile has for each of its methods. NaN where a method has fewer images.

        Raises:
            ValueError: no such experiment, or one of which the profile computes nothing.
            FileNotFoundError: the profile's classifier has no maskers yet; notebook 00 trains them.
        """
        return joined([self.evaluate(part) for part in self._parts(name)])

    def images(self, name: str) -> ImageSet:
        """The images of an experiment's results, for figures."""
        part = self._parts(name, shown=True)[0]
        with self._engine() as engine:
            return part.scene(part.classifier(), self.seed + part.seed, engine, self.device).images

    def experiments(self) -> list[Experiment]:
        """The profile's evaluations, see `experiments`."""
        return experiments(self.chosen, self._checkpoints)

    def _parts(self, name: str, *, shown: bool = False) -> list[Experiment]:
        """The evaluations of a name, as this run computes them, or as its results are shown."""
        profile = get_profile(self.chosen.recorded) if shown and self.chosen.recorded else self.chosen
        every = experiments(profile, self._checkpoints)
        if parts := [part for part in every if part.name == name]:
            return parts
        raise ValueError(f"name: expected one of {sorted({part.name for part in every})}, got {name!r}")

    def evaluate(self, part: Experiment, *, maps: bool = False) -> xr.Dataset:
        """One evaluation, kept in the store; with `maps` also the maps, as `recorded.pictures` has them."""
        classifier, seed = part.classifier(), self.seed + part.seed
        with self._engine() as engine:
            scene = part.scene(classifier, seed, engine, self.device)
            given: dict[str, Any] = {"targets": scene.targets, "distractors": scene.pool, "protocol": part.protocol}
            given |= {"n_steps": part.study.n_points, "images_per_batch": part.study.images_per_batch, "seed": seed, "device": self.device}
            given |= {"store": engine.store, "executor": self.executor, "workers": self.workers}
            mosaics = part.images == "mosaics"
            given |= {"keep_curves": True, "keep_heatmaps": maps or mosaics}
            result = evaluate(classifier, scene.images, part.methods, name=part.name, **given | dict(part.keep))
            if mosaics:
                result = add_localisation(result)
            if maps:
                result = result.assign(recorded.pictures(result, engine.store))
        result = result.drop_vars(["heatmap", "pixels"], errors="ignore")
        return result.assign_attrs(data=part.study.data, classifier=part.study.classifier)

    def record(self) -> Iterator[tuple[str, str, bool]]:
        """Compute all experiments, the most worth first, and record what is not recorded yet, one method at a time.

        Yields:
            Experiment, method, and whether its results are there; first that it is to be computed, then that it has been.
        """
        for part in self.experiments():
            with self._engine() as engine:
                images = part.scene(part.classifier(), self.seed + part.seed, engine, self.device).images.ids
            for name, method in part.methods.items():
                if not recorded.is_recorded(self.profile, part, name, images):
                    yield part.name, name, False
                    start = time.process_time()
                    result = self.evaluate(replace(part, methods={name: method}), maps=part.pictured)
                    about = recorded.provenance(method, time.process_time() - start)
                    recorded.save(self.profile, part.name, result.assign_coords(about))
                yield part.name, name, True
        if self.chosen.images["sanity"]:
            if not recorded.path_of(self.profile, "sanity").is_file():
                yield "sanity", "layer randomisation", False
                recorded.save_other(self.profile, "sanity", self.sanity())
            yield "sanity", "layer randomisation", True

    def table1(self) -> xr.Dataset:
        """Table 1 on the images of all label lists (notebooks 03 and 04)."""
        result = stacked([self.result(f"table1_{labels}") for labels in self.chosen.imagenet.lists])
        rows = profiles.table1_methods(self.chosen.imagenet, PROTOCOLS["paper"], self._checkpoints)
        return result.sel({"method": [name for name in rows if name in result.method.values]})

    def protocol_grid(self) -> dict[tuple[str, str], xr.Dataset]:
        """Our four settings and five rows that cost little for each softmax scope and loss (notebook 06), on the first label list.

        Maps of the cheap rows depend on neither choice; their scores depend on the scope.

        Returns:
            (softmax_over, loss) -> evaluation of the same methods and images.
        """
        listed = self.result("protocol_labels_nll")
        names, cheap = listed.method.values.tolist(), list(profiles.LABEL_FREE_LOSS)
        text = self.result(self._first_list).sel({"method": names})
        grid = {("all", "nll"): text, ("labels", "nll"): listed}
        for (scope, _), rest in list(grid.items()):
            grid[scope, "released"] = joined([self.result(f"protocol_{scope}_released"), rest.sel({"method": cheap})])
        shared = ["prob", "prediction", "insertion_auc", "insertion_curve"]
        return {choice: evaluation[shared] for choice, evaluation in grid.items()}

    def settled(self) -> pd.DataFrame:
        """Scores of the study's masks beside masks of twice the composites, for each softmax scope and loss (notebook 07)."""
        tables = []
        for (scope, loss), evaluation in self.protocol_grid().items():
            twice = self.result(f"settled_{scope}_{loss}")
            for row in SETTLED_ROWS:
                tables.append(settled(f"softmax over {scope}, loss {loss}", row, evaluation, twice))
        return pd.concat(tables, ignore_index=True)

    def lengths(self) -> pd.DataFrame:
        """Scores of schedules of different lengths on the same images and labels (notebook 07)."""
        shorter, whole = self.result("lengths"), self.result(self._first_list)
        twice = self.result("settled_all_nll")
        spent = {float(name): (shorter, str(name)) for name in shorter.method.values}
        for evaluation, name in ((whole, "Ours"), (twice, "Ours, twice")):
            spent[float(evaluation.composites.sel({"method": name}))] = (evaluation, name)
        return by_length(spent, twice.label_name)

    def against_published(self, measured: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
        """The recorded masks beside those of the published schedule, where that has been run (notebook 07).

        Args:
            measured: data set -> rows of `learning_quality`.
        """
        tables = []
        cases = (("cifar10", self.chosen.cifar10, "sweep", "0.01"), ("imagenet", self.chosen.imagenet, self._first_list, "Ours"))
        for case, study, experiment, method in cases:
            labels, names = study.labels, load_images(study.data).class_names
            called = [names[i] for i in labels] if labels else list(names)
            rows = measured[case].assign(label=[called[i] for i in measured[case].label])
            tables.append(against_published(rows, self.result(experiment), method).assign(case=case))
        return pd.concat(tables, ignore_index=True)

    def sanity(self) -> xr.Dataset:
        """Layer randomisation (notebook 05) of ours and two cheap methods, in both modes, on a few images."""
        if self.chosen.recorded:
            return recorded.load_other(self.chosen.recorded, "sanity")
        study, methods = self.chosen.imagenet, profiles.table1_methods(self.chosen.imagenet, PROTOCOLS["paper"], self._checkpoints)
        classifier = load_classifier(study.classifier, study.labels, PROTOCOLS["paper"].softmax_over)
        images = study.images()
        images = images.subset(range(min(self.chosen.images["sanity"], len(images))))
        scene = (classifier, STAGES[study.classifier], images, {name: methods[name] for name in profiles.SANITY_ROWS})
        pool = load_distractors(study.data, n=study.pool, seed=self.seed)
        with self._engine() as engine:
            return layer_randomisation(*scene, distractors=pool, seed=self.seed, device=self.device, engine=engine)

    @property
    def _first_list(self) -> str:
        return f"table1_{next(iter(self.chosen.imagenet.lists))}"

    def table(self, function: Callable[..., pd.DataFrame], **settings: Any) -> pd.DataFrame:
        """The table that a function makes of these settings, kept like everything else (notebook 01).

        Example:
            >>> from salkit.studies import theory_study
            >>> Runs("smoke").table(theory_study.theorem_lengths, ds=[1000], margins=[0.2], delta=0.05).L1.item()
            150
        """
        about = describe_experiment("table", function.__name__, 1, function=function, settings=settings)
        nothing = torch.zeros(0, 3, 1, 1)
        with self._engine() as engine:
            job, source = Job(about, Table(function, settings)), Source(Classifier(nn.Identity()), nothing, (), nothing)
            replace(engine, executor="serial", strict=True, show_progress=False).run([job], [source])
            engine.store.keep_experiments(function.__name__, [about.key])
            columns = {name: values[0] for name, values in engine.store.read(about.key).items()}
        return pd.DataFrame({name: columns[name] for name in columns["columns"]})

    def train_maskers(self) -> pd.DataFrame:
        """Train the maskers of the ImageNet classifier (notebook 00) and save them in `output_dir/checkpoints`.

        A stopped training goes on where it was; a finished one is not repeated. `paper` trains on Imagenette's training images. The other
        profiles use the shipped maskers and only show a short training, on the packaged images outside the label list.

        Returns:
            The learning curves: column `masker`, and those of `train_masker`.
        """
        study = self.chosen.imagenet
        folder = self._checkpoints or Path(tempfile.mkdtemp()) / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        files = open_images(study.data, split="train")
        if study.small_maskers:
            files = files.subset([i for i, label in enumerate(files.labels) if label not in (study.labels or ())])
        curves = []
        for name, recipe in profiles.masker_recipes(study).items():
            recipe = replace(recipe, seed=self.seed)
            settings = {"recipe": recipe, "classifier": study.classifier, "data": study.data}
            key = describe_experiment("masker", name, 1, **settings).key
            path = folder / f"{name}-{study.classifier}.safetensors"
            if not path.is_file() or masker_metadata(path).get("settings_key") != key:
                classifier = load_classifier(study.classifier, device=resolve_device(self.device))
                held_out = study.images()
                held_out = held_out.sample(min(200, len(held_out)), self.seed)
                masker = make_masker(classifier, taps_of(study.classifier), recipe, held_out.images.shape[-1])
                log = train_masker(masker, classifier, files, held_out, recipe, state_path=folder / f"{name}-{key}.state")
                trained = {"classifier": study.classifier, "recipe": asdict(recipe), "n_train": len(files.ids), "n_val": len(held_out)}
                save_masker(masker, path, trained | {"log": log, "settings_key": key})
            curves.append(pd.DataFrame(masker_metadata(path)["log"]).assign(masker=name))
        return pd.concat(curves, ignore_index=True)

    @property
    def _checkpoints(self) -> Path | None:
        return None if self.output_dir is None else Path(self.output_dir) / "checkpoints"

    @contextmanager
    def _engine(self) -> Iterator[Engine]:
        kept = self.store or (None if self.output_dir is None else Path(self.output_dir) / "store")
        with open_engine(kept, self.executor, self.workers) as engine:
            yield engine
