"""`evaluate`: run methods over all (image, label) pairs and score them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from salkit import masking
from salkit.curves import AucRule, auc, check_heatmaps, insertion_curves_all_labels, kept_counts
from salkit.data import ImageSet, progress_bar
from salkit.methods import SaliencyMethod, get_method
from salkit.models import Classifier
from salkit.saliency_metric import BoxRule, choose_alpha, saliency_metric
from salkit.scores import PROTOCOLS, Protocol, completeness, label_correlation, soundness


def evaluate(
    classifier: Classifier,
    images: ImageSet | Tensor,
    methods: Mapping[str, SaliencyMethod] | Sequence[str],
    *,
    targets: Tensor | None = None,
    distractors: ImageSet | Tensor | None = None,
    protocol: Protocol | str = "paper",
    n_steps: int | None = 28,
    baseline: float = 0.0,
    deletion: Literal["prediction", "all", "none"] = "prediction",
    blur_games: bool = False,
    held_out: ImageSet | Tensor | None = None,
    seed: int = 0,
    keep_heatmaps: bool = False,
    keep_curves: bool = False,
    images_per_batch: int = 16,
    show_progress: bool = True,
) -> xr.Dataset:
    """Score saliency methods on all (image, label) pairs.

    Args:
        classifier: its softmax scope should be the protocol's; its label list gives the labels.
        images: an `ImageSet`, or normalised images `(N, 3, H, W)`.
        methods: name -> method, or names of the registry with default settings.
        targets: `(N, k)` int64, k labels of each image (indices into the label list) instead of all of them; the paper's footnote 3
            suggests the k most probable.
        distractors: pool for random-image infill; None takes `images` (never the explained image itself).
        protocol: a `Protocol` or its name; the thresholds and the AUC rule are used here.
        n_steps: points of a curve, None for every pixel count.
        baseline: what hides a pixel, in normalised space.
        deletion: compute deletion for the predicted label (the paper's column), for all labels, or not at all.
        blur_games: also play insertion and deletion with RISE's blur as infill, for the predicted label.
        held_out: other images, on which the threshold of the saliency metric is chosen for every method; None leaves that metric out.
        seed: of every random draw.
        keep_heatmaps: also return `heatmap` with dims y and x, and `pixels (image, y, x, channel)` of an `ImageSet`.
        keep_curves: also return `insertion_curve` with dim kept.
        images_per_batch: images (with all their labels) handed to a method at a time; changes no number.
        show_progress: a bar over methods and images.

    Returns:
        `prob (image, label)`; `insertion_auc`, `deletion_auc`, `completeness`, `soundness`, `tie_share` `(method, image, label)`;
        `label_correlation (method, image)`; `games (method, image, game, infill, rule)`, the areas for the predicted label under both
        rules; with `held_out` also `saliency_metric (method, image, box)` and `alpha (method)`;
        `prediction (image)`, an index into the labels. What was not asked for is NaN. With `targets` the labels
        are called `label 1` to `label k`, and the coordinate `label_name (image, label)` says which they are.

    Raises:
        TypeError: wrong types.
        ValueError: wrong values; a method that returns maps of the wrong shape or not finite.

    Example:
        >>> scores = evaluate(load_classifier("cifar10-resnet20"), load_images("cifar10-samples"), ["random"])  # doctest: +SKIP
        >>> worst_case(scores.soundness).sel({"method": "random"})  # doctest: +SKIP
    """
    chosen, rules = _check_evaluate(classifier, images, methods, protocol, deletion)
    inputs, ids = (images.images, list(images.ids)) if isinstance(images, ImageSet) else (images, masking.image_ids(images))
    pool = images if distractors is None else distractors
    device = next((p.device for p in classifier.parameters()), inputs.device)
    every = probabilities(classifier, inputs)
    targets = _check_targets(targets, every)
    prob = every.gather(1, targets)
    kept = kept_counts(inputs[0, 0].numel(), n_steps)
    run = _Run(
        classifier=classifier,
        pool=_tensor(pool).to(device),
        rule=rules.auc_rule,
        deletion=deletion,
        blur_games=blur_games,
        keep=(["insertion_curve"] if keep_curves else []) + (["heatmap"] if keep_heatmaps else []),
        seed=seed,
        curve={"n_steps": n_steps, "seed": seed},
        baseline=baseline,
    )
    bar = progress_bar(None, show_progress, total=len(chosen) * len(ids), unit="image")
    found: dict[str, list[Tensor]] = {}
    for name, method in chosen.items():
        bar.set_description(f"{name:<24.24}")
        alpha = None if held_out is None else run.choose_alpha(method, held_out)
        batches = []
        for rows in torch.arange(len(ids)).split(images_per_batch):
            names = [ids[i] for i in rows]
            batches.append(run.score(method, inputs[rows].to(device), names, targets[rows].to(device), prob[rows].to(device), alpha))
            bar.update(len(rows))
        for key in batches[0]:
            found.setdefault(key, []).append(torch.cat([batch[key].cpu() for batch in batches]))
        if alpha is not None:
            found.setdefault("alpha", []).append(torch.tensor(alpha))
    bar.close()
    variables = {key: (("method", *DIMS[key]), torch.stack(values).numpy()) for key, values in found.items()}
    coords = {"method": list(chosen), "image": ids} | ({"kept": kept.numpy()} if keep_curves else {})
    coords |= {"game": list(GAMES), "infill": list(run.infills), "rule": list(get_args(AucRule)), "box": list(get_args(BoxRule))}
    result = xr.Dataset({"prob": (("image", "label"), prob.numpy())} | variables, coords)
    result = result.assign_coords(_label_coords(classifier, images, targets, every.shape[1]))
    result["prediction"] = result.prob.argmax("label")
    result = rescore(result, rules)
    if keep_heatmaps and isinstance(images, ImageSet):
        result["pixels"] = (("image", "y", "x", "channel"), images.pixels().numpy())
    return result.assign_attrs(asdict(rules) | {"n_steps": len(kept) - 1, "seed": seed, "baseline": baseline})


GAMES = ("insertion", "deletion")
DIMS = {
    "insertion_auc": ("image", "label"),
    "deletion_auc": ("image", "label"),
    "tie_share": ("image", "label"),
    "label_correlation": ("image",),
    "games": ("image", "game", "infill", "rule"),
    "saliency_metric": ("image", "box"),
    "alpha": (),
    "insertion_curve": ("image", "label", "kept"),
    "heatmap": ("image", "label", "y", "x"),
}
"""Dims of what is measured for every method."""


@dataclass(frozen=True)
class _Run:
    """The settings of an evaluation that stay the same for all methods and images."""

    classifier: Classifier
    pool: Tensor
    rule: AucRule
    deletion: str
    blur_games: bool
    keep: list[str]
    seed: int
    curve: dict[str, Any]
    baseline: float

    @property
    def infills(self) -> tuple[str, ...]:
        return ("gray", "blur") if self.blur_games else ("gray",)

    def score(
        self, method: SaliencyMethod, inputs: Tensor, ids: list[str], targets: Tensor, prob: Tensor, alpha: float | None
    ) -> dict[str, Tensor]:
        """Everything that is measured of a method on images `(m, 3, H, W)` with `targets (m, k)`; every value has m rows."""
        best = prob.argmax(1, keepdim=True)
        explained = targets if getattr(method, "depends_on_label", True) else targets.gather(1, best)
        heatmaps = self.heatmaps(method, inputs, explained, ids)
        shown = _curves(self.classifier, inputs, heatmaps, targets, baseline=self.baseline, **self.curve)
        row = torch.arange(len(inputs), device=inputs.device)
        predicted = heatmaps[row, best[:, 0] if heatmaps.shape[1] > 1 else 0][:, None]
        asked = targets.gather(1, best)
        places = best if self.deletion == "prediction" else torch.arange(targets.shape[1], device=inputs.device).expand(len(inputs), -1)
        deletion_auc = torch.full_like(prob, torch.nan)
        curves = {("insertion", "gray"): shown[row, best[:, 0]]}
        if self.deletion != "none":
            chosen = heatmaps if heatmaps.shape[1] == 1 else heatmaps[row[:, None], places]
            hidden = _curves(self.classifier, inputs, -chosen, targets.gather(1, places), baseline=self.baseline, **self.curve)
            deletion_auc.scatter_(1, places, auc(hidden, self.rule, game="deletion"))
            curves["deletion", "gray"] = hidden[row, best[:, 0] if self.deletion == "all" else 0]
        if self.blur_games:
            blurred = masking.rise_blur(inputs)
            for game, sign in (("insertion", 1), ("deletion", -1)):
                curve = _curves(self.classifier, inputs, sign * predicted, asked, baseline=blurred, **self.curve)
                curves[game, "blur"] = curve[:, 0]
        found = {
            "insertion_auc": auc(shown, self.rule),
            "deletion_auc": deletion_auc,
            "tie_share": masking.tie_share(heatmaps.flatten(0, 1)).view(len(inputs), -1).expand_as(prob),
            "label_correlation": label_correlation(heatmaps, self.seed),
            "games": self.areas(curves, len(inputs)),
        }
        if alpha is not None:
            call = (self.classifier, inputs, asked[:, 0], predicted[:, 0], alpha)
            found["saliency_metric"] = torch.stack([saliency_metric(*call, rule=rule) for rule in get_args(BoxRule)], 1)
        if "insertion_curve" in self.keep:
            found["insertion_curve"] = shown
        if "heatmap" in self.keep:
            found["heatmap"] = heatmaps.expand(-1, targets.shape[1], -1, -1)
        return found

    def areas(self, curves: dict[tuple[str, str], Tensor], n: int) -> Tensor:
        """Areas under the curves by game, infill and rule, `(n, 2, infills, 2)`; NaN for games that were not played."""
        areas = torch.full((n, len(GAMES), len(self.infills), len(get_args(AucRule))), torch.nan)
        for g, game in enumerate(GAMES):
            for i, infill in enumerate(self.infills):
                for r, rule in enumerate(get_args(AucRule)):
                    if (game, infill) in curves:
                        areas[:, g, i, r] = auc(curves[game, infill], rule, game=game)  # type: ignore[arg-type]
        return areas

    def heatmaps(self, method: SaliencyMethod, inputs: Tensor, targets: Tensor, ids: Sequence[str]) -> Tensor:
        """Maps of images `(m, 3, H, W)` for k labels each, `(m, k, H, W)`."""
        k = targets.shape[1]
        pairs = inputs.repeat_interleave(k, 0)
        names = [i for i in ids for _ in range(k)]
        heatmaps = method.attribute(self.classifier, pairs, targets.flatten(), distractors=self.pool, seed=self.seed, ids=names).detach()
        check_heatmaps(pairs, heatmaps)
        return heatmaps.float().unflatten(0, targets.shape)

    def choose_alpha(self, method: SaliencyMethod, held_out: ImageSet | Tensor) -> float:
        """The threshold of the saliency metric that is best for a method's maps of held-out images' predictions."""
        images = _tensor(held_out).to(self.pool.device)
        ids = list(held_out.ids) if isinstance(held_out, ImageSet) else masking.image_ids(images)
        target = probabilities(self.classifier, images).argmax(1).to(images.device)
        heatmaps = self.heatmaps(method, images, target[:, None], ids)[:, 0]
        return choose_alpha(self.classifier, images, target, heatmaps)


def _tensor(images: ImageSet | Tensor) -> Tensor:
    return images.images if isinstance(images, ImageSet) else images


@torch.no_grad()
def probabilities(classifier: Classifier, inputs: Tensor) -> Tensor:
    """Probabilities of the label list on whole images, `(N, 3, H, W)` -> `(N, A)` on the CPU, computed where the classifier is."""
    device = next((p.device for p in classifier.parameters()), inputs.device)
    return torch.cat([classifier(x.to(device)).exp().cpu() for x in inputs.split(32)])


def rescore(result: xr.Dataset, protocol: Protocol | str) -> xr.Dataset:
    """Completeness and soundness of an evaluation under another protocol's thresholds; areas and probabilities stay as they are.

    Example:
        >>> rescore(scores, "released").soundness  # doctest: +SKIP
    """
    rules = PROTOCOLS[protocol] if isinstance(protocol, str) else protocol
    g, f = xr.broadcast(result.insertion_auc, result.prob)
    thresholds = {"eps_completeness": rules.eps_completeness, "eps_soundness": rules.eps_soundness}
    scored = result.assign(completeness=completeness(g, f, rules.eps_completeness), soundness=soundness(g, f, rules.eps_soundness))
    return scored.assign_attrs(thresholds)


def _check_evaluate(
    classifier: Classifier,
    images: ImageSet | Tensor,
    methods: Mapping[str, SaliencyMethod] | Sequence[str],
    protocol: Protocol | str,
    deletion: str,
) -> tuple[dict[str, SaliencyMethod], Protocol]:
    if not isinstance(classifier, Classifier):
        raise TypeError(f"classifier: expected a salkit.models.Classifier, got {type(classifier).__name__}")
    if not isinstance(images, (ImageSet, Tensor)):
        raise TypeError(f"images: expected an ImageSet or a tensor (N, 3, H, W), got {type(images).__name__}")
    if not len(images):
        raise ValueError("images: expected at least one image, got none")
    if isinstance(protocol, str) and protocol not in PROTOCOLS:
        raise ValueError(f"protocol: expected a Protocol or one of {sorted(PROTOCOLS)}, got {protocol!r}")
    if deletion not in ("prediction", "all", "none"):
        raise ValueError(f"deletion: expected 'prediction', 'all' or 'none', got {deletion!r}")
    if isinstance(methods, str):
        raise TypeError(f"methods: expected names or a mapping of name to method, got the string {methods!r}")
    chosen = dict(methods) if isinstance(methods, Mapping) else {name: get_method(name) for name in methods}
    for name, method in chosen.items():
        if not isinstance(method, SaliencyMethod):
            raise TypeError(f"methods: expected objects with an `attribute` method, got {type(method).__name__} for {name!r}")
    if not chosen:
        raise ValueError("methods: expected at least one, got none")
    return chosen, PROTOCOLS[protocol] if isinstance(protocol, str) else protocol


def _check_targets(targets: Tensor | None, prob: Tensor) -> Tensor:
    n, n_labels = prob.shape
    if targets is None:
        return torch.arange(n_labels).expand(n, -1)
    if targets.dtype != torch.int64 or targets.ndim != 2 or len(targets) != n or not targets.shape[1]:
        raise ValueError(f"targets: expected int64 of shape ({n}, k), got {targets.dtype} of shape {tuple(targets.shape)}")
    if targets.min() < 0 or targets.max() >= n_labels:
        raise ValueError(f"targets: expected indices 0 to {n_labels - 1}, got {targets.min()} to {targets.max()}")
    return targets.cpu()


def _curves(
    classifier: Classifier, inputs: Tensor, heatmaps: Tensor, targets: Tensor, baseline: float | Tensor, n_steps: int | None, seed: int
) -> Tensor:
    """Insertion curves `(m, k, points)` for k labels an image from maps `(m, k, H, W)`, or `(m, 1, H, W)` that serve all labels."""
    each = heatmaps.shape[1]
    settings: dict[str, Any] = {"baseline": baseline, "n_steps": n_steps, "seed": seed, "maps_per_image": each}
    curves = insertion_curves_all_labels(classifier, inputs, heatmaps.flatten(0, 1), **settings)
    image = torch.arange(len(inputs), device=inputs.device)[:, None]
    place = torch.arange(targets.shape[1], device=inputs.device) if each > 1 else torch.zeros_like(targets)
    return curves.unflatten(0, (len(inputs), each))[image, place, :, targets]


def _label_coords(classifier: Classifier, images: ImageSet | Tensor, targets: Tensor, n_labels: int) -> dict[str, object]:
    """Names of the labels; where every image has labels of its own, their names a (image, label)."""
    indices = list(range(n_labels) if classifier.labels is None else classifier.labels)
    known = isinstance(images, ImageSet) and len(images.class_names) > max(indices)
    names = np.array([images.class_names[i] if known and isinstance(images, ImageSet) else str(i) for i in indices])
    if len(set(names)) < len(names):
        names = np.array([f"{name} ({i})" for name, i in zip(names, indices, strict=True)])
    if torch.equal(targets, torch.arange(n_labels).expand(len(targets), -1)):
        return {"label": names}
    places = [f"label {i + 1}" for i in range(targets.shape[1])]
    return {"label": places, "label_name": (("image", "label"), names[targets.numpy()])}
