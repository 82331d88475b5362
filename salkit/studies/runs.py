"""The experiments behind the notebooks, at the size of a profile. Each is computed once and kept in a store."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import xarray as xr
from torch import Tensor, nn

from salkit.checks import check_integer
from salkit.curves import auc
from salkit.data.files import open_images
from salkit.data.images import ImageSet, load_distractors
from salkit.engine.executors import Engine, check_executor, open_engine
from salkit.engine.identity import describe_experiment
from salkit.engine.shards import Job
from salkit.evaluation.evaluate import evaluate, probabilities
from salkit.evaluation.results import rescore
from salkit.evaluation.tasks import Source, Table
from salkit.methods import LearnedMask, SaliencyMethod
from salkit.methods.learned_mask import SCHEDULES
from salkit.methods.masker import MaskerMethod, masker_metadata, save_masker
from salkit.methods.masker_training import make_masker, taps_of, train_masker
from salkit.models.classifier import Classifier, resolve_device
from salkit.models.zoo import load_classifier
from salkit.scores import PROTOCOLS, Protocol
from salkit.studies import profiles
from salkit.studies.profiles import Profile, Study, get_profile
from salkit.studies.quality import learning_quality
from salkit.studies.sanity import STAGES, layer_randomisation

Pick = Callable[[ImageSet, Tensor], tuple[ImageSet, Tensor | None]]
"""From all images of a study and their probabilities: the images to explain, and their labels (None for all)."""


@dataclass(frozen=True)
class Runs:
    """The experiments of the notebooks, at the size of a profile. Each is computed once and kept in one store.

    Args:
        profile: smoke, demo or paper.
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
        >>> Runs("smoke").chosen.cifar10.n_images
        4
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

    def tv_sweep(self) -> xr.Dataset:
        """Evaluate the CIFAR-10 sweep (notebook 02), with curves and heatmaps."""
        study = self.chosen.cifar10
        methods = profiles.tv_sweep_methods(study, self.chosen.tvs, PROTOCOLS["paper"])
        return self._evaluate("tv_sweep", study, methods, keep_curves=True, keep_heatmaps=True)

    def table1(self) -> xr.Dataset:
        """Evaluate all methods of Table 1 (notebooks 03, 04 and 06), with curves, games with blur, and the saliency metric.

        Raises:
            FileNotFoundError: the profile's classifier has no maskers yet; notebook 00 trains them.
        """
        return self._evaluate("table1", self.chosen.imagenette, self._methods(), keep_curves=True, blur_games=True)

    def protocol_grid(self) -> dict[tuple[str, str], xr.Dataset]:
        """Evaluate our four settings and the cheap rows for each softmax scope and loss (notebook 06), with curves.

        The images are the first ones of Table 1. Maps are learned once for each (scope, loss); those of the cheap rows depend on neither,
        but their scores depend on the scope. Results that Table 1 has are taken from there.

        Returns:
            (softmax_over, loss) -> evaluation of the same methods and images.
        """
        study = self.chosen.imagenette
        methods = self._methods()
        cheap = {name: methods[name] for name in profiles.CHEAP_ROWS}
        names = [*profiles.our_methods(study, PROTOCOLS["paper"]), *cheap]
        grid = {("all", "nll"): self.table1().isel(image=slice(study.grid_images)).sel({"method": names})}
        for protocol in (Protocol("all", loss="released"), Protocol("labels", loss="nll"), Protocol("labels", loss="released")):
            learned = self._grid(study, profiles.our_methods(study, protocol), protocol)
            if protocol.softmax_over == "all":
                rest = grid["all", "nll"].sel({"method": list(cheap)})
            else:
                rest = self._grid(study, cheap, replace(protocol, loss="nll"), "cheap")
            shared = ["prob", "prediction", "insertion_auc", "insertion_curve"]
            grid[protocol.softmax_over, protocol.loss] = _joined([learned[shared], rest[shared]])
        return grid

    def table1_under(self, protocol: Protocol) -> xr.Dataset:
        """The paper's eleven rows of Table 1 under another protocol, on the images of the grid unless scope and loss are Table 1's."""
        table1 = self.table1()
        scope, rule = (protocol.softmax_over, protocol.loss), protocol.auc_rule
        if scope == ("all", "nll"):
            result = table1
        else:
            grid, methods = self.protocol_grid()[scope], self._methods(protocol)
            rest = {name: methods[name] for name in ("iGOS++", "Fong and Vedaldi")}
            more = self._grid(self.chosen.imagenette, rest, replace(protocol, loss="nll"), "slow")
            result = _joined([grid, more[list(grid.data_vars)]])
        curves = torch.from_numpy(result.insertion_curve.transpose("method", "image", "label", "kept").values)
        areas = result.insertion_auc.transpose("method", "image", "label").copy(data=auc(curves, rule).numpy())
        rows = [name for name in table1.method.values if name in result.method.values and name in profiles.PAPER_ROWS]
        return rescore(result.assign(insertion_auc=areas), protocol).sel({"method": rows})

    def two_labels(self, *, picture: bool = False) -> xr.Dataset:
        """Evaluate methods for the two most probable labels of each image, on the images whose second label is the most probable.

        All methods of Table 1 on many images measure best effort (Figure 4, right). With `picture` it is one image, three methods and
        their heatmaps (Figure 2).

        The two labels are the best of all classes of the net. They are the best of the label list if some masker is trained for that list
        only, as in the profile `paper`, and so all methods can be asked. `attrs["two_best_of"]` says which.
        """
        study = replace(self.chosen.imagenette, held_out=0)
        if picture:
            methods = profiles.picture_methods(study, PROTOCOLS["paper"], "Ours", "Ours (TV=0.001)", "Ours (cheating)")
        else:
            methods = self._methods()
        maskers = [method.network() for method in methods.values() if isinstance(method, MaskerMethod)]
        all_classes = all(isinstance(masker.settings["classes"], int) for masker in maskers)
        study = replace(study, labels=None if all_classes else study.labels)

        def pick(images: ImageSet, prob: Tensor) -> tuple[ImageSet, Tensor]:
            top = prob.topk(2)
            second = top.values[:, 1].argsort(descending=True)[: 1 if picture else study.own_label_images]
            return images.subset(second), top.indices[second]

        result = self._evaluate("figure2" if picture else "two_labels", study, methods, pick, keep_heatmaps=picture)
        return result.assign_attrs(two_best_of="all classes" if all_classes else "the label list")

    def gallery(self) -> xr.Dataset:
        """Evaluate the paper's method for every label of the image whose prediction is the most confident."""
        study = replace(self.chosen.imagenette, held_out=0)
        ours = profiles.picture_methods(study, PROTOCOLS["paper"], "Ours")

        def pick(images: ImageSet, prob: Tensor) -> tuple[ImageSet, None]:
            return images.subset([int(prob.amax(1).argmax())]), None

        return self._evaluate("gallery", study, ours, pick, keep_heatmaps=True)

    def sanity(self) -> xr.Dataset:
        """Layer randomisation (notebook 05) of ours and two cheap methods, in both modes, on a few images."""
        study, table1 = self.chosen.imagenette, self._methods()
        classifier = load_classifier(study.classifier, study.labels, PROTOCOLS["paper"].softmax_over)
        images = self._sample(study.images(), study.sanity_images)
        scene = (classifier, STAGES[study.classifier], images, {name: table1[name] for name in profiles.SANITY_ROWS})
        with self._engine() as engine:
            return layer_randomisation(*scene, distractors=self._pool(study), seed=self.seed, device=self.device, engine=engine)

    def schedules(self) -> dict[str, pd.DataFrame]:
        """Scores during learning with both schedules, for a few images of each study (notebook 07): data set -> `learning_quality`."""
        scores = {}
        for study, scale in ((self.chosen.cifar10, 1), (self.chosen.imagenette, 4)):
            n, labels_per_image, most = study.followed
            scores[study.data] = self.table(
                learning_quality,
                classifier=load_classifier(study.classifier, study.labels, "all", self.device),
                images=self._sample(study.images(), n),
                pool=self._pool(study),
                methods={name: LearnedMask(scale, l1=study.l1, schedule=name) for name in SCHEDULES},
                labels_per_image=labels_per_image,
                n_points=study.followed_points,
                seed=self.seed,
                most=most,
            )
        return scores

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
        study = self.chosen.imagenette
        folder = self._checkpoints or Path(tempfile.mkdtemp()) / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        files = open_images(study.data, split="train")
        if study.preset == "fast":
            files = files.subset([i for i, label in enumerate(files.labels) if label not in (study.labels or ())])
        curves = []
        for name, recipe in profiles.masker_recipes(study).items():
            recipe = replace(recipe, seed=self.seed)
            settings = {"recipe": recipe, "classifier": study.classifier, "data": study.data}
            key = describe_experiment("masker", name, 1, **settings).key
            path = folder / f"{name}-{study.classifier}.safetensors"
            if not path.is_file() or masker_metadata(path).get("settings_key") != key:
                classifier = load_classifier(study.classifier, device=resolve_device(self.device))
                held_out = self._sample(study.images(), 200)
                masker = make_masker(classifier, taps_of(study.classifier), recipe, held_out.images.shape[-1])
                log = train_masker(masker, classifier, files, held_out, recipe, state_path=folder / f"{name}-{key}.state")
                trained = {"classifier": study.classifier, "recipe": asdict(recipe), "n_train": len(files.ids), "n_val": len(held_out)}
                save_masker(masker, path, trained | {"log": log, "settings_key": key})
            curves.append(pd.DataFrame(masker_metadata(path)["log"]).assign(masker=name))
        return pd.concat(curves, ignore_index=True)

    def _sample(self, images: ImageSet, n: int) -> ImageSet:
        return images.sample(min(n, len(images)), self.seed)

    def _pool(self, study: Study) -> ImageSet:
        return load_distractors(study.data, n=study.pool, seed=self.seed)

    @property
    def _checkpoints(self) -> Path | None:
        return None if self.output_dir is None else Path(self.output_dir) / "checkpoints"

    @contextmanager
    def _engine(self) -> Iterator[Engine]:
        kept = self.store or (None if self.output_dir is None else Path(self.output_dir) / "store")
        with open_engine(kept, self.executor, self.workers) as engine:
            yield engine

    def _methods(self, protocol: Protocol = PROTOCOLS["paper"]) -> dict[str, SaliencyMethod]:
        return profiles.table1_methods(self.chosen.imagenette, protocol, self._checkpoints)

    def _grid(self, study: Study, methods: dict[str, SaliencyMethod], protocol: Protocol, rows: str = "ours") -> xr.Dataset:
        """Evaluate methods under another protocol, on the first images of Table 1."""

        def pick(images: ImageSet, prob: Tensor) -> tuple[ImageSet, None]:
            sample = self._sample(images, study.n_images)
            return sample.subset(range(min(study.grid_images, len(sample)))), None

        name = f"grid_{protocol.softmax_over}_{protocol.loss}_{rows}"
        return self._evaluate(name, replace(study, held_out=0), methods, pick, protocol, keep_curves=True)

    def _evaluate(
        self,
        name: str,
        study: Study,
        methods: dict[str, SaliencyMethod],
        pick: Pick | None = None,
        protocol: Protocol = PROTOCOLS["paper"],
        **kept: bool,
    ) -> xr.Dataset:
        """Evaluate methods at a study's size: all labels of a random sample, or the images and labels that `pick` chooses."""
        classifier = load_classifier(study.classifier, study.labels, protocol.softmax_over)
        images, targets, held_out = study.images(), None, None
        with self._engine() as engine:
            if pick is None:
                images, rest = images.split(min(study.n_images, len(images)), self.seed)
                held_out = self._sample(rest, study.held_out) if study.held_out and len(rest) else None
            else:
                images, targets = pick(images, probabilities(classifier, images, engine, self.device))
            given: dict[str, Any] = {"targets": targets, "distractors": self._pool(study), "held_out": held_out, "protocol": protocol}
            given |= {"n_steps": study.n_points, "images_per_batch": study.images_per_batch, "seed": self.seed, "device": self.device}
            given |= {"store": engine.store, "executor": self.executor, "workers": self.workers}
            result = evaluate(classifier, images, methods, name=name, **given | kept)
        return result.assign_attrs(data=study.data, classifier=study.classifier)


def _joined(parts: list[xr.Dataset]) -> xr.Dataset:
    """One evaluation from those of different methods on the same images."""
    return xr.concat(parts, "method", data_vars="minimal", coords="minimal", compat="override", join="override", combine_attrs="override")
