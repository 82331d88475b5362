"""`evaluate`: run methods over all (image, label) pairs and score them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from salkit import masking
from salkit.curves import auc, check_heatmaps, insertion_curves_all_labels, kept_counts
from salkit.data import ImageSet, progress_bar
from salkit.methods import SaliencyMethod, get_method
from salkit.models import Classifier
from salkit.scores import PROTOCOLS, Protocol, completeness, soundness


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
        seed: of every random draw.
        keep_heatmaps: also return `heatmap` with dims y and x, and `pixels (image, y, x, channel)` of an `ImageSet`.
        keep_curves: also return `insertion_curve` with dim kept.
        images_per_batch: images (with all their labels) handed to a method at a time; changes no number.
        show_progress: a bar over methods and images.

    Returns:
        `prob (image, label)`; `insertion_auc`, `deletion_auc`, `completeness`, `soundness`, `tie_share` `(method, image, label)`;
        `prediction (image)`, an index into the labels. `deletion_auc` is NaN where it was not asked for. With `targets` the labels
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
    pool = pool.images if isinstance(pool, ImageSet) else pool
    device = next((p.device for p in classifier.parameters()), inputs.device)
    pool = pool.to(device)
    every = probabilities(classifier, inputs)
    targets = _check_targets(targets, every)
    prob = every.gather(1, targets)
    shape = (len(chosen), *prob.shape)
    kept = kept_counts(inputs[0, 0].numel(), n_steps)
    scores = {name: np.full(shape, np.nan, np.float32) for name in ("insertion_auc", "deletion_auc", "tie_share")}
    curves = np.empty((*shape, len(kept)), np.float32) if keep_curves else None
    maps = np.empty((*shape, *inputs.shape[-2:]), np.float32) if keep_heatmaps else None
    settings: dict[str, Any] = {"baseline": baseline, "n_steps": n_steps, "seed": seed}
    bar = progress_bar(None, show_progress, total=len(chosen) * len(ids), unit="image")
    for m, (name, method) in enumerate(chosen.items()):
        bar.set_description(f"{name:<24.24}")
        for rows in torch.arange(len(ids)).split(images_per_batch):
            at = (m, slice(int(rows[0]), int(rows[-1]) + 1))
            batch, asked = inputs[rows].to(device), targets[rows].to(device)
            best = prob[rows].argmax(1, keepdim=True).to(device)
            explained = asked if getattr(method, "depends_on_label", True) else asked.gather(1, best)
            heatmaps = _heatmaps(method, classifier, batch, explained, pool, seed, [ids[i] for i in rows])
            shown = _curves(classifier, batch, heatmaps, asked, **settings)
            scores["insertion_auc"][at] = auc(shown, rules.auc_rule).cpu()
            scores["tie_share"][at] = masking.tie_share(heatmaps.flatten(0, 1)).view(len(rows), -1).cpu()
            if deletion != "none":
                places = best if deletion == "prediction" else torch.arange(prob.shape[1], device=device).expand(len(rows), -1)
                hidden = _deletion_curves(classifier, batch, heatmaps, asked, places, **settings)
                scores["deletion_auc"][m, rows[:, None].numpy(), places.cpu().numpy()] = auc(hidden, rules.auc_rule, game="deletion").cpu()
            if curves is not None:
                curves[at] = shown.cpu()
            if maps is not None:
                maps[at] = heatmaps.cpu()
            bar.update(len(rows))
    bar.close()
    dims = ("method", "image", "label")
    result = xr.Dataset(
        {"prob": (dims[1:], prob.numpy())} | {k: (dims, v) for k, v in scores.items()}, {"method": list(chosen), "image": ids}
    )
    result = result.assign_coords(_label_coords(classifier, images, targets, every.shape[1]))
    result["prediction"] = result.prob.argmax("label")
    result = rescore(result, rules)
    if curves is not None:
        result["insertion_curve"] = ((*dims, "kept"), curves)
        result = result.assign_coords(kept=kept.numpy())
    if maps is not None:
        result["heatmap"] = ((*dims, "y", "x"), maps)
        if isinstance(images, ImageSet):
            result["pixels"] = (("image", "y", "x", "channel"), images.pixels().numpy())
    return result.assign_attrs(asdict(rules) | {"n_steps": len(kept) - 1, "seed": seed, "baseline": baseline})


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


def _heatmaps(
    method: SaliencyMethod, classifier: Classifier, inputs: Tensor, targets: Tensor, pool: Tensor, seed: int, ids: Sequence[str]
) -> Tensor:
    """Maps of images `(m, 3, H, W)` for k labels each, `(m, k, H, W)`."""
    k = targets.shape[1]
    pairs = inputs.repeat_interleave(k, 0)
    names = [i for i in ids for _ in range(k)]
    heatmaps = method.attribute(classifier, pairs, targets.flatten(), distractors=pool, seed=seed, ids=names).detach()
    check_heatmaps(pairs, heatmaps)
    return heatmaps.float().unflatten(0, targets.shape)


def _curves(
    classifier: Classifier, inputs: Tensor, heatmaps: Tensor, targets: Tensor, baseline: float, n_steps: int | None, seed: int
) -> Tensor:
    """Insertion curves `(m, k, points)` for k labels an image from maps `(m, k, H, W)`, or `(m, 1, H, W)` that serve all labels."""
    each = heatmaps.shape[1]
    pairs = inputs.repeat_interleave(each, 0)
    curves = insertion_curves_all_labels(classifier, pairs, heatmaps.flatten(0, 1), baseline=baseline, n_steps=n_steps, seed=seed)
    image = torch.arange(len(inputs), device=inputs.device)[:, None]
    place = torch.arange(targets.shape[1], device=inputs.device) if each > 1 else torch.zeros_like(targets)
    return curves.unflatten(0, (len(inputs), each))[image, place, :, targets]


def _deletion_curves(classifier: Classifier, inputs: Tensor, heatmaps: Tensor, targets: Tensor, places: Tensor, **settings: Any) -> Tensor:
    """Deletion curves `(m, p, points)` for the labels at `places (m, p)` among an image's targets: deleting by m is inserting by -m."""
    rows = torch.arange(len(inputs), device=inputs.device)[:, None]
    chosen = heatmaps if heatmaps.shape[1] == 1 else heatmaps[rows, places]
    return _curves(classifier, inputs, -chosen, targets.gather(1, places), **settings)


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
