"""Passes to quality: how good learned masks are after so many composites, and whether two schedules lead to the same scores."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from salkit.curves import auc, insertion_curve
from salkit.data.images import ImageSet
from salkit.methods import LearnedMask
from salkit.methods.base import heatmaps_one_by_one
from salkit.models.classifier import Classifier
from salkit.models.passes import pass_by_pass, pass_size
from salkit.scores import completeness, soundness
from salkit.statistics import mean_interval, paired_comparison

SCORES = {
    "completeness": "worst-case completeness",
    "soundness": "worst-case soundness",
    "insertion": "insertion AUC of the prediction",
    "area": "g of all labels",
}
"""Columns of `per_image`, and what they are called in tables and figures."""

MARGIN, SHARE = 0.01, 0.1
"""Schedules are told apart when their scores differ by more than `MARGIN`, and by more than this share of the score itself."""


def learning_quality(
    classifier: Classifier,
    images: ImageSet,
    pool: ImageSet,
    methods: Mapping[str, LearnedMask],
    labels_per_image: int,
    n_points: int,
    seed: int = 0,
    most: int | None = None,
) -> pd.DataFrame:
    """Scores of masks along their learning, a row for each (method, image, label, number of composites spent on the pair).

    The labels of an image are its most probable one, the most probable of the others, and those that follow it in the list.

    Args:
        classifier: whose label list is meant.
        images: one or more.
        pool: where distractors are drawn from.
        methods: name -> method.
        labels_per_image: how many labels masks are learned for.
        n_points: of the insertion curves.
        seed: of the draws.
        most: composites a pair at which learning is stopped; None for the end of the schedule.

    Returns:
        Columns `schedule, seed, image, label, composites, f, g`, and whether the label is the `predicted` one.
    """
    place = next((p.device for p in classifier.parameters()), images.images.device)
    inputs = images.images.to(place)
    with torch.no_grad():
        prob = classifier(inputs).exp()
    targets = torch.stack([likely_labels(p, labels_per_image) for p in prob])
    n, k = targets.shape
    pairs, names, target = inputs.repeat_interleave(k, 0), [i for i in images.ids for _ in range(k)], targets.flatten().to(place)
    f = prob.gather(1, targets.to(place)).flatten().tolist()

    def learned(method: LearnedMask) -> dict[int, Tensor]:
        """Composites spent on a pair -> heatmaps `(N, H, W)`, after each of `scored_steps`."""
        wanted = sorted(scored_steps(method, most))

        def learn(rows: Tensor) -> Tensor:
            along = method.trajectory(classifier, pairs[rows], target[rows], pool.images, seed, [names[i] for i in rows])
            steps = enumerate(itertools.islice(along, wanted[-1]), 1)
            return torch.stack([logits.clone() for step, logits in steps if step in wanted], 1)

        cost = method.composites_per_step
        logits = pass_by_pass(learn, names, pass_size(pairs, cost), pairs.device)
        return {step * cost: heatmaps_one_by_one(method, logits[:, i], pairs.shape[-2:]) for i, step in enumerate(wanted)}

    rows = []
    for name, method in methods.items():
        for spent, heatmaps in learned(method).items():
            g = auc(insertion_curve(classifier, pairs, target, heatmaps, n_steps=n_points)).tolist()
            rows += [[name, seed, names[j], int(target[j]), spent, f[j], g[j], j % k == 0] for j in range(n * k)]
    return pd.DataFrame(rows, columns=["schedule", "seed", "image", "label", "composites", "f", "g", "predicted"])


def likely_labels(prob: Tensor, n: int) -> Tensor:
    """The most probable label, the most probable of the others, and those that follow it in the list; `(A,)` -> `(n,)`."""
    first, second = prob.topk(2).indices.tolist()
    following = [(first + i) % len(prob) for i in range(1, len(prob))]
    return torch.tensor([first, second, *(a for a in following if a != second)][:n])


def scored_steps(method: LearnedMask, most: int | None = None) -> set[int]:
    """The steps after which masks are scored: 1, 2, 5, 10, 20, ... and the last one.

    Example:
        >>> sorted(scored_steps(LearnedMask(), most=250))
        [1, 2, 5, 10, 20, 25]
    """
    last = method.n_steps if most is None else min(method.n_steps, max(1, most // method.composites_per_step))
    return {step for power in range(6) for lead in (1, 2, 5) if (step := lead * 10**power) < last} | {last}


def per_image(measured: pd.DataFrame) -> pd.DataFrame:
    """Scores an image, the worst over its labels: columns `schedule, seed, image, composites` and those of `SCORES`."""
    f, g = torch.tensor(measured.f.tolist()), torch.tensor(measured.g.tolist())
    scored = measured.assign(
        completeness=completeness(g, f, 0.01).numpy(),
        soundness=soundness(g, f, 0.001).numpy(),
        insertion=measured.g.where(measured.predicted),
    )
    by = scored.groupby(["schedule", "seed", "image", "composites"])
    return by.agg(
        completeness=("completeness", "min"), soundness=("soundness", "min"), insertion=("insertion", "max"), area=("g", "mean")
    ).reset_index()


SETTLED = 0.02
"""Masks count as settled when twice the composites change the mean of each score by less."""


def pair_scores(evaluation: xr.Dataset, method: str, pairs: xr.DataArray) -> pd.DataFrame:
    """Scores of a method an image, the worst over some of its labels.

    Args:
        evaluation: with all of those labels.
        method: which of its methods.
        pairs: names of the labels, dims image and label; the first is the most probable one.

    Returns:
        Index image; columns `completeness`, `soundness` (thresholds of the text), `insertion` (g of the first label) and `area` (mean g).
    """
    one = evaluation.sel({"method": method, "image": pairs.image.values})
    names = one.label_name if "label_name" in one.coords else one.label.expand_dims(image=one.image)
    places = np.stack([[list(names.sel(image=i).values).index(name) for name in pairs.sel(image=i).values] for i in pairs.image.values])
    f, g = (
        torch.from_numpy(np.take_along_axis(one[name].transpose("image", "label").values, places, 1)) for name in ("prob", "insertion_auc")
    )
    scores = {"completeness": completeness(g, f, 0.01).amin(1), "soundness": soundness(g, f, 0.001).amin(1), "insertion": g[:, 0]}
    return pd.DataFrame({name: values.numpy() for name, values in (scores | {"area": g.mean(1)}).items()}, pd.Index(pairs.image.values))


def settled(choice: str, method: str, at_c: xr.Dataset, at_2c: xr.Dataset) -> pd.DataFrame:
    """Do scores change when the composites are doubled? A row for each score.

    Args:
        choice: what the rows are called, for example the softmax scope and loss.
        method: name of the method in `at_c`; in `at_2c` it is called `"<method>, twice"`.
        at_c: an evaluation for all labels of the list.
        at_2c: one with twice the composites, for some labels of some of the images.

    Returns:
        Columns `choice, method, score, at_c, at_2c, difference, low, high, n, settled`: means over the images of `at_2c`, the mean of the
        paired differences with its 95 % interval, and whether that mean is below `SETTLED`.
    """
    pairs, other = at_2c.label_name, f"{method}, twice"
    rows = []
    for score in list(SCORES)[:3]:
        a, b = (pair_scores(found, name, pairs)[score].to_numpy() for found, name in ((at_c, method), (at_2c, other)))
        change = paired_comparison(b, a)
        numbers = [a.mean(), b.mean(), change.mean, change.low, change.high, change.n, abs(change.mean) < SETTLED]
        rows.append([choice, method, SCORES[score], *numbers])
    return pd.DataFrame(rows, columns=["choice", "method", "score", "at_c", "at_2c", "difference", "low", "high", "n", "settled"])


def against_published(measured: pd.DataFrame, evaluation: xr.Dataset, method: str) -> pd.DataFrame:
    """The settled schedule beside the published one, on the pairs for which both have been run.

    Args:
        measured: rows of `learning_quality`, with the published schedule to its end; `label` is the label's name.
        evaluation: with the same images and labels.
        method: its method with the same settings but for the schedule.

    Returns:
        Columns `score, published, settled, difference, low, high, n`: means over images, and the paired difference, settled minus published.
    """
    ends = measured[(measured.schedule == "paper") & (measured.composites == measured.composites.max()) & (measured.seed == 0)]
    ends = ends[ends.image.isin(evaluation.image.values)].sort_values("predicted", ascending=False, kind="stable")
    names = ends.groupby("image", sort=True).label.agg(list)
    pairs = xr.DataArray(np.array(names.tolist()), dims=("image", "label"), coords={"image": names.index.to_numpy()})
    ours = pair_scores(evaluation, method, pairs)
    published = per_image(ends).set_index("image").loc[ours.index]
    rows = []
    for score in list(SCORES)[:3]:
        change = paired_comparison(ours[score].to_numpy(), published[score].to_numpy())
        means = [published[score].mean(), ours[score].mean()]
        rows.append([SCORES[score], *means, change.mean, change.low, change.high, change.n])
    return pd.DataFrame(rows, columns=["score", "published", "settled", "difference", "low", "high", "n"])


def settled_sentence(table: pd.DataFrame) -> str:
    """What `settled` found for several choices, in words."""
    worst = table.loc[table.difference.abs().idxmax()]
    whole = int((table[["low", "high"]].abs().max(axis=1) < SETTLED).sum())
    return (
        f"{int(table.settled.sum())} of {len(table)} mean differences are below {SETTLED}, of {whole} the whole interval is. The largest: "
        f"{worst.score} of {worst.method}, {worst.choice}, {worst.difference:+.3f} [{worst.low:+.3f}, {worst.high:+.3f}], "
        f"{worst.n} images."
    )


def by_length(evaluations: Mapping[float, tuple[xr.Dataset, str]], pairs: xr.DataArray) -> pd.DataFrame:
    """Scores of schedules of different lengths on the same images and labels.

    Args:
        evaluations: composites a pair -> an evaluation and the name of the method in it.
        pairs: see `pair_scores`.

    Returns:
        Columns `composites, score, mean, low, high, n`.
    """
    rows = []
    for spent, (evaluation, method) in sorted(evaluations.items()):
        scores = pair_scores(evaluation, method, pairs)
        for score in list(SCORES)[:3]:
            interval = mean_interval(scores[score].to_numpy())
            rows.append([spent, SCORES[score], interval.mean, interval.low, interval.high, interval.n])
    return pd.DataFrame(rows, columns=["composites", "score", "mean", "low", "high", "n"])


def compare_schedules(measured: pd.DataFrame, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Paired differences between the ends of two schedules on the same images, for each score, with intervals over images.

    A schedule with several seeds counts with their mean. `"equal"` says that the whole interval is within the margin of 0, `"different"`
    that all of it is beyond; anything else has too few images to say. The margin is `MARGIN`, for small scores `SHARE` of them.

    Args:
        measured: see `learning_quality`.
        pairs: schedules to compare: the first minus the second. `"paper/1"` is the seed 1 of the schedule `paper`.
    """
    scores = per_image(measured)
    ends = scores[scores.composites == scores.groupby("schedule").composites.transform("max")]
    rows = []
    for one, other in pairs:
        both = [_mean_over_seeds(ends, name) for name in (one, other)]
        images = both[0].index.intersection(both[1].index)
        for score, title in SCORES.items():
            a, b = (found.loc[images, score].to_numpy() for found in both)
            difference = paired_comparison(a, b)
            margin = min(MARGIN, SHARE * np.nanmean(b))
            inside, outside = max(-difference.low, difference.high) <= margin, difference.low > margin or difference.high < -margin
            verdict = "equal" if inside else "different" if outside else "too few images to say"
            numbers = [np.nanmean(a), np.nanmean(b), difference.mean, difference.low, difference.high, difference.n]
            rows.append([one, other, title, *numbers, verdict])
    names = ["schedule", "reference", "score", "value", "reference_value", "difference", "low", "high", "n", "verdict"]
    return pd.DataFrame(rows, columns=names)


def _mean_over_seeds(ends: pd.DataFrame, name: str) -> pd.DataFrame:
    schedule, _, seed = name.partition("/")
    chosen = ends[(ends.schedule == schedule) & ((ends.seed == int(seed)) if seed else True)]
    return chosen.groupby("image")[list(SCORES)].mean()
