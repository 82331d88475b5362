"""`evaluate`: run methods over all (image, label) pairs and score them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm import tqdm

from salkit import masking
from salkit.curves import auc, check_heatmaps, insertion_curves_all_labels, kept_counts
from salkit.data import ImageSet
from salkit.methods import SaliencyMethod, get_method
from salkit.models import Classifier
from salkit.scores import PROTOCOLS, Protocol, completeness, soundness


def evaluate(
    classifier: Classifier,
    images: ImageSet | Tensor,
    methods: Mapping[str, SaliencyMethod] | Sequence[str],
    *,
    distractors: ImageSet | Tensor | None = None,
    protocol: Protocol | str = "paper",
    n_steps: int | None = 28,
    baseline: float = 0.0,
    deletion: Literal["prediction", "all", "none"] = "prediction",
    seed: int = 0,
    keep_heatmaps: bool = False,
    keep_curves: bool = False,
    images_per_batch: int = 4,
    show_progress: bool = True,
) -> xr.Dataset:
    """Score saliency methods on all (image, label) pairs.

    Args:
        classifier: its softmax scope should be the protocol's; its label list gives the labels.
        images: an `ImageSet`, or normalised images `(N, 3, H, W)`.
        methods: name -> method, or names of the registry with default settings.
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
        `prediction (image)`, an index into the labels. `deletion_auc` is NaN where it was not asked for.

    Raises:
        TypeError, ValueError: wrong arguments; a method that returns maps of the wrong shape or not finite.

    Example:
        >>> scores = evaluate(load_classifier("cifar10-resnet20"), load_images("cifar10-samples"), ["random"])  # doctest: +SKIP
        >>> worst_case(scores.soundness).sel({"method": "random"})  # doctest: +SKIP
    """
    chosen = _check_evaluate(classifier, images, methods, protocol, deletion)
    inputs, ids = (images.images, list(images.ids)) if isinstance(images, ImageSet) else (images, masking.image_ids(images))
    pool = images if distractors is None else distractors
    pool = pool.images if isinstance(pool, ImageSet) else pool
    device = next((p.device for p in classifier.parameters()), inputs.device)
    rules = PROTOCOLS[protocol] if isinstance(protocol, str) else protocol
    prob = probabilities(classifier, inputs)
    n, n_labels = prob.shape
    kept = kept_counts(inputs[0, 0].numel(), n_steps)
    maps = {name: np.full((len(chosen), n, n_labels), np.nan, np.float32) for name in ("insertion_auc", "deletion_auc", "tie_share")}
    curves = np.empty((len(chosen), n, n_labels, len(kept)), np.float32) if keep_curves else None
    heat = np.empty((len(chosen), n, n_labels, *inputs.shape[-2:]), np.float32) if keep_heatmaps else None
    bar = tqdm(total=len(chosen) * n, unit="image", disable=not show_progress)
    for m, (name, method) in enumerate(chosen.items()):
        bar.set_description(f"{name:<24.24}")
        for rows in _batches(n, images_per_batch):
            at = (m, slice(rows[0], rows[-1] + 1))
            batch = inputs[rows].to(device)
            heatmaps = _heatmaps(method, classifier, batch, prob[rows].argmax(1), pool.to(device), seed, [ids[i] for i in rows], n_labels)
            per_label = _curves(classifier, batch, heatmaps, baseline, n_steps, seed)
            maps["insertion_auc"][at] = auc(per_label, rules.auc_rule).cpu()
            maps["tie_share"][at] = masking.tie_share(heatmaps.flatten(0, 1)).view(len(rows), -1).cpu()
            if deletion != "none":
                which = torch.arange(n_labels).expand(len(rows), -1) if deletion == "all" else prob[rows].argmax(1, keepdim=True)
                removed = _deletion(classifier, batch, heatmaps, which.to(device), baseline, n_steps, seed)
                maps["deletion_auc"][m, torch.tensor(rows)[:, None], which] = auc(removed, rules.auc_rule, game="deletion").cpu()
            if curves is not None:
                curves[at] = per_label.cpu()
            if heat is not None:
                heat[at] = heatmaps.cpu()
            bar.update(len(rows))
    bar.close()
    coords = {"method": list(chosen), "image": ids, "label": _label_names(classifier, images, n_labels)}
    result = xr.Dataset(
        {"prob": (("image", "label"), prob.numpy())} | {k: (("method", "image", "label"), v) for k, v in maps.items()}, coords
    )
    result["prediction"] = result.prob.argmax("label")
    result["completeness"] = completeness_array(result, rules)
    result["soundness"] = soundness_array(result, rules)
    if curves is not None:
        result["insertion_curve"] = (("method", "image", "label", "kept"), curves)
        result = result.assign_coords(kept=kept.numpy())
    if heat is not None:
        result["heatmap"] = (("method", "image", "label", "y", "x"), heat)
        if isinstance(images, ImageSet):
            result["pixels"] = (("image", "y", "x", "channel"), images.pixels().numpy())
    return result.assign_attrs(asdict(rules) | {"n_steps": len(kept) - 1, "seed": seed, "baseline": baseline})


def completeness_array(result: xr.Dataset, protocol: Protocol) -> xr.DataArray:
    """Completeness of every (method, image, label) of an evaluation under a protocol's thresholds."""
    return completeness(*xr.broadcast(result.insertion_auc, result.prob), protocol.eps_completeness)


def soundness_array(result: xr.Dataset, protocol: Protocol) -> xr.DataArray:
    """Soundness of every (method, image, label) of an evaluation under a protocol's thresholds."""
    return soundness(*xr.broadcast(result.insertion_auc, result.prob), protocol.eps_soundness)


def _check_evaluate(
    classifier: Classifier,
    images: ImageSet | Tensor,
    methods: Mapping[str, SaliencyMethod] | Sequence[str],
    protocol: Protocol | str,
    deletion: str,
) -> dict[str, SaliencyMethod]:
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
    return chosen


@torch.no_grad()
def probabilities(classifier: Classifier, inputs: Tensor) -> Tensor:
    """Probabilities of the label list on whole images, `(N, 3, H, W)` -> `(N, A)` on the CPU, computed where the classifier is."""
    device = next((p.device for p in classifier.parameters()), inputs.device)
    return torch.cat([classifier(x.to(device)).exp().cpu() for x in inputs.split(32)])


def _batches(n: int, size: int) -> Iterator[list[int]]:
    for start in range(0, n, size):
        yield list(range(start, min(start + size, n)))


def _heatmaps(
    method: SaliencyMethod,
    classifier: Classifier,
    inputs: Tensor,
    prediction: Tensor,
    pool: Tensor,
    seed: int,
    ids: list[str],
    n_labels: int,
) -> Tensor:
    """Maps for all labels of each image, `(m, A, H, W)`, or `(m, 1, H, W)` for a method that does not depend on the label."""
    labels = torch.arange(n_labels).expand(len(inputs), -1) if getattr(method, "depends_on_label", True) else prediction[:, None]
    each = labels.shape[1]
    pairs = inputs.repeat_interleave(each, 0)
    target = labels.flatten().to(inputs.device)
    names = [i for i in ids for _ in range(each)]
    heatmaps = method.attribute(classifier, pairs, target, distractors=pool, seed=seed, ids=names).detach()
    check_heatmaps(pairs, heatmaps)
    return heatmaps.float().unflatten(0, (len(inputs), each))


def _curves(classifier: Classifier, inputs: Tensor, heatmaps: Tensor, baseline: float, n_steps: int | None, seed: int) -> Tensor:
    """Insertion curves `(m, A, points)` from maps `(m, A or 1, H, W)`."""
    each = heatmaps.shape[1]
    pairs = inputs.repeat_interleave(each, 0)
    curves = insertion_curves_all_labels(classifier, pairs, heatmaps.flatten(0, 1), baseline=baseline, n_steps=n_steps, seed=seed)
    curves = curves.unflatten(0, (len(inputs), each)).movedim(-1, 2)
    return curves.squeeze(1) if each == 1 else curves.diagonal(dim1=1, dim2=2).movedim(-1, 1)


def _deletion(
    classifier: Classifier, inputs: Tensor, heatmaps: Tensor, labels: Tensor, baseline: float, n_steps: int | None, seed: int
) -> Tensor:
    """Deletion curves `(m, k, points)` for the labels `(m, k)`: inserting by -m."""
    rows = torch.arange(len(inputs), device=inputs.device)[:, None]
    chosen = -heatmaps[rows, labels if heatmaps.shape[1] > 1 else torch.zeros_like(labels)]
    if heatmaps.shape[1] == 1:
        return _curves(classifier, inputs, chosen[:, :1], baseline, n_steps, seed)[rows, labels]
    pairs = inputs.repeat_interleave(labels.shape[1], 0)
    curves = insertion_curves_all_labels(classifier, pairs, chosen.flatten(0, 1), baseline=baseline, n_steps=n_steps, seed=seed)
    return curves.gather(2, labels.flatten()[:, None, None].expand(-1, curves.shape[1], 1)).squeeze(2).unflatten(0, labels.shape)


def _label_names(classifier: Classifier, images: ImageSet | Tensor, n_labels: int) -> list[str]:
    indices = range(n_labels) if classifier.labels is None else classifier.labels
    known = images.class_names if isinstance(images, ImageSet) and len(images.class_names) > max(indices) else None
    names = [str(i) if known is None else known[i] for i in indices]
    return names if len(set(names)) == len(names) else [f"{name} ({i})" for name, i in zip(names, indices, strict=True)]
