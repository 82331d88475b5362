import itertools
import math

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy import stats

from salkit.data.files import data_dir
from salkit.report import tables


@pytest.fixture
def result():
    """Two methods, four images, two labels, with scores that can be averaged by eye."""
    dims = ("method", "image", "label")
    soundness = np.stack([np.full((4, 2), 0.9), np.full((4, 2), 0.5)])
    soundness[0, :, 1] = [0.8, 0.6, 0.8, 0.6]
    areas = {name: np.tile(pair, (2, 4, 1)) for name, pair in (("insertion_auc", [0.6, 0.2]), ("deletion_auc", [0.4, np.nan]))}
    scores = areas | {"completeness": np.full((2, 4, 2), 0.75), "soundness": soundness}
    data = {"prob": (dims[1:], np.tile([0.7, 0.3], (4, 1)))} | {name: (dims, values) for name, values in scores.items()}
    made = xr.Dataset(data, {"method": ["Ours", "Random"], "image": list("abcd"), "label": ["cat", "dog"]})
    return made.assign(prediction=made.prob.argmax("label")).assign_attrs(tables.PAPER_RUN)


def test_tidy_table_by_hand(table):
    assert list(table.columns) == ["method", "metric", "paper", "ours", "low", "high", "n", "verdict", "ties"]
    rows = table.set_index(["method", "metric"])
    ours = rows.loc["Ours"]
    assert ours.loc["soundness", "ours"] == pytest.approx(0.7)
    assert ours.loc["soundness", ["paper", "n", "verdict"]].tolist() == [0.84, 4, "compatible"]
    assert ours.loc["insertion", "ours"] == pytest.approx(0.6)
    assert ours.loc["deletion", "ours"] == pytest.approx(0.4)
    assert ours.loc["saliency_metric", ["n", "verdict"]].tolist() == [0, "not measured"]
    assert ours.loc["best_effort", "verdict"] == ""
    assert math.isnan(ours.loc["best_effort", "paper"])
    # Standard error 0.1155 / 2, and 3.182 is the 97.5 % point of Student's t with three degrees of freedom.
    assert ours.loc["soundness", ["low", "high"]].tolist() == pytest.approx([0.7 - 3.182 * 0.0577, 0.7 + 3.182 * 0.0577], abs=1e-3)
    # All four images have a completeness of 0.75.
    assert ours.loc["completeness", "verdict"] == "cannot tell at n = 4"
    assert math.isnan(ours.loc["completeness", "low"])


def test_worked_example_by_hand(result):
    rows = tables.worked_example(result.isel(method=[0])).set_index("label")
    assert rows.loc["cat", ["f", "g", "completeness", "soundness"]].tolist() == pytest.approx([0.7, 0.6, 0.6 / 0.7, 1.0])
    assert rows.loc["worst case", ["completeness", "soundness"]].tolist() == pytest.approx([0.2 / 0.3, 1.0])


def test_paper_table_is_the_papers():
    paper = tables.paper_values("table1")
    assert len(paper) == 11 * 5
    assert paper.groupby("metric").value.max().round(2).to_dict() == {
        "completeness": 0.87, "deletion": 0.66, "insertion": 0.80, "saliency_metric": -0.27, "soundness": 0.84
    }  # fmt: skip


def test_saved_tables_are_whole_csv(table, tmp_path):
    path = tables.save_table(table, tmp_path, "table1")
    assert path == tmp_path / "tables" / "table1.csv"
    again = pd.read_csv(path)
    assert again.ours.tolist() == pytest.approx(table.ours.tolist(), abs=1e-4, nan_ok=True)
    assert [p.name for p in path.parent.iterdir()] == ["table1.csv"]


@pytest.fixture
def table(result):
    return tables.tidy_table(result, tables.paper_values("table1"))


@pytest.fixture
def more(result):
    """The same with the saliency metric, label correlation and both games."""
    shape = (2, 4, 2, 2, 2)
    games = np.arange(np.prod(shape), dtype=float).reshape(shape) / 64
    games[1, :, 1] = np.nan
    metric = np.stack([np.tile([-0.9, -0.5], (4, 1)), np.tile([0.1, 0.3], (4, 1))])
    metric[0, :, 0] = [-1.2, -0.8, -1.0, -0.6]
    added = {
        "games": (("method", "image", "game", "infill", "rule"), games),
        "saliency_metric": (("method", "image", "box"), metric),
        "label_correlation": (("method", "image"), np.array([[0.1, 0.2, 0.3, 0.4], [1.0] * 4])),
        "alpha": ("method", [0.25, 0.5]),
    }
    coords = {"game": ["insertion", "deletion"], "infill": ["gray", "blur"], "rule": ["mean", "trapezoid"]}
    return result.assign(added).assign_coords(coords | {"box": ["threshold", "largest_component"]})


def test_only_what_an_evaluation_holds_is_measured(result, more):
    always = {"deletion", "insertion", "completeness", "soundness", "best_effort"}
    assert set(tables.metric_values(result)) == always
    assert set(tables.metric_values(more)) == always | {"saliency_metric", "label_correlation"}
    assert set(tables.metric_values(more.drop_vars("saliency_metric"))) == always | {"label_correlation"}
    mosaics = more.assign(dict.fromkeys(("localisation", "localisation_top"), more.completeness))
    assert list(tables.metric_values(mosaics)) == list(tables.METRICS)
    for name, values in tables.metric_values(mosaics).items():
        assert set(values.dims) == {"method", "image"}, name


def test_the_saliency_metric_of_the_table_is_that_of_its_definition(more):
    table = tables.tidy_table(more, tables.paper_values("table1")).set_index(["method", "metric"])
    ours = table.loc[("Ours", "saliency_metric")]
    # Boxes around all salient pixels, not the largest region's, which would be -0.5.
    assert ours[["paper", "ours", "n", "verdict"]].tolist() == [-0.90, pytest.approx(-0.9), 4, "compatible"]
    assert (ours.low, ours.high) == pytest.approx((-0.9 - 3.182 * 0.1291, -0.9 + 3.182 * 0.1291), abs=1e-3)
    assert table.loc[("Random", "saliency_metric"), ["ours", "verdict"]].tolist() == [pytest.approx(0.1), "cannot tell at n = 4"]
    assert table.loc[("Ours", "label_correlation"), "ours"] == pytest.approx(0.25)
    # A metric of the kit's own: the paper has no number.
    assert table.loc[("Ours", "label_correlation"), "verdict"] == ""
    assert table.loc["Ours"].index.tolist() == [name for name in tables.METRICS if "localisation" not in name]


def test_games_table_by_hand(more):
    table = tables.games_table(more)
    assert list(table.columns) == ["method", "game", "infill", "rule", "area", "n"]
    assert len(table) == 2 * 2 * 2 * 2
    found = table.set_index(["method", "game", "infill", "rule"])
    rows = found.area
    assert found.n.groupby("method").unique().map(list).to_dict() == {"Ours": [4], "Random": [4, 0]}
    # Images are 8 numbers apart: the mean of four is 12 above the first, whose place is 4 game + 2 infill + rule.
    assert rows["Ours", "insertion", "gray", "mean"] == pytest.approx(12 / 64)
    assert rows["Ours", "deletion", "blur", "trapezoid"] == pytest.approx((4 + 2 + 1 + 12) / 64)
    assert rows["Ours", "deletion", "gray", "trapezoid"] == pytest.approx((4 + 1 + 12) / 64)
    assert rows["Random", "insertion", "blur", "mean"] == pytest.approx((32 + 2 + 12) / 64)


def test_tables_for_reading_show_paper_ours_interval_and_images(table):
    wide = tables.wide_table(table)
    assert wide.index.tolist() == ["Ours", "Random"]
    assert wide.columns.tolist() == ["n", "deletion", "insertion", "completeness", "soundness", "best_effort"]
    assert wide.n.tolist() == [4, 4]
    assert wide.loc["Ours", ["completeness", "best_effort"]].tolist() == ["0.84 | 0.75 (all 4 equal)", "0.75 (all 4 equal)"]
    assert wide.loc["Ours", "soundness"] == "0.84 | 0.70 [0.52, 0.88]"
    both = tables.side_by_side({"first": table, "second": table[table.metric != "deletion"]}, ["completeness", "soundness"])
    assert both.index.tolist() == ["Ours", "Random"]
    assert both.loc["Ours", ("soundness", "paper")] == "0.84"
    assert both.loc["Ours", ("soundness", "first")].startswith("0.70 [")
    assert both["n"].values.tolist() == [[4, 4], [4, 4]]


def test_tables_for_reading_show_ties_composites_and_other_numbers_of_images(table):
    marked = table.assign(composites=table.method.map({"Ours": 20_000.0, "Random": math.nan}))
    marked.loc[marked.metric == "soundness", "ties"] = ["a", "b"]
    marked.loc[marked.metric == "best_effort", "n"] = 3
    wide = tables.wide_table(marked)
    assert wide.composites.tolist() == ["20,000", ""]
    assert wide.soundness.tolist() == ["0.84 | 0.70 [0.52, 0.88] a", "0.69 | 0.50 (all 4 equal) b"]
    assert wide.best_effort.tolist() == ["0.75 (all 3 equal) (n = 3)"] * 2


@pytest.mark.parametrize(
    ("attrs", "composites", "verdict"),
    [
        ({}, math.nan, "compatible"),
        ({}, 20_000, "compatible"),
        ({}, 500, "not comparable: other schedule"),
        ({"data": "imagenet-samples"}, 500, "not comparable: other data"),
        ({"data": "imagenet-samples", "classifier": "efficientnet-lite0"}, math.nan, "not comparable: other net"),
        ({"classifier": None}, 20_000, "not comparable: other net"),
    ],
)
def test_only_the_same_net_data_and_schedule_are_comparable(result, attrs, composites, verdict):
    changed = result.assign_attrs(attrs).assign_coords(composites=("method", [composites, math.nan]))
    table = tables.tidy_table(changed, tables.paper_values("table1")).set_index(["method", "metric"])
    assert table.loc[("Ours", "soundness"), "verdict"] == verdict
    np.testing.assert_equal(table.loc[("Ours", "soundness"), "composites"], composites)
    # Random learns no mask: its schedule cannot be another one.
    expected = "cannot tell at n = 4" if "schedule" in verdict or verdict == "compatible" else verdict
    assert table.loc[("Random", "soundness"), "verdict"] == expected
    # What nobody measured, and what the paper has not, are not compared.
    assert table.loc[("Ours", "saliency_metric"), "verdict"] == "not measured"
    assert table.loc[("Ours", "best_effort"), "verdict"] == ""


def test_a_far_value_is_not_reproduced(result):
    far = pd.DataFrame({"method": ["Ours", "Ours"], "metric": ["soundness", "insertion"], "value": [0.95, 0.6]})
    table = tables.tidy_table(result, far).set_index(["method", "metric"])
    assert table.loc[("Ours", "soundness"), "verdict"] == "not reproduced"


def scores_of(**values):
    return xr.DataArray(list(values.values()), {"method": list(values)}, ("method", "image"))


def test_tie_groups_by_hand():
    image = np.linspace(0, 0.1, 12)
    wobble = 0.05 * np.resize([1.0, -1.0], 12)
    # A and B differ by noise; C is below both, and D far below.
    scores = scores_of(D=image, A=image + 0.5, B=image + 0.5 + wobble, C=image + 0.4)
    assert tables.tie_groups(scores) == {"D": "c", "A": "a", "B": "a", "C": "b"}
    assert tables.tie_groups(scores, lower_is_better=True) == {"D": "a", "A": "c", "B": "c", "C": "b"}
    # E is not told apart from A or from C, which are told apart.
    between = scores_of(A=image + 0.5, C=image + 0.4, E=image + 0.45 + 0.2 * np.resize([1.0, -1.0], 12))
    assert tables.tie_groups(between) == {"A": "a", "C": "b", "E": "ab"}


def test_tie_groups_against_the_definition():
    rng = np.random.default_rng(0)
    noise = 0.06 * rng.random((7, 1)) * rng.standard_normal((7, 10))
    values = 0.5 + np.linspace(0, 0.2, 7)[:, None] + noise
    groups = tables.tie_groups(scores_of(**dict(zip("ABCDEFG", values, strict=True))))
    pairs = list(itertools.combinations("ABCDEFG", 2))
    p_values = [permutation_p_value(values["ABCDEFG".index(a)] - values["ABCDEFG".index(b)]) for a, b in pairs]
    ordered, apart = sorted(p_values), set()
    # Holm, written as he did: from the smallest on, stop at the first that is too large.
    for rank, p_value in enumerate(ordered):
        if p_value * (len(pairs) - rank) >= 0.05:
            break
        apart |= {pair for pair, p in zip(pairs, p_values, strict=True) if p <= p_value}
    assert 3 <= len(apart) < len(pairs) - 3
    for a, b in pairs:
        assert bool(set(groups[a]) & set(groups[b])) == ((a, b) not in apart), (a, b)
    # No letter's group is part of another's.
    members = [{m for m, own in groups.items() if letter in own} for letter in set("".join(groups.values()))]
    assert not any(one < other for one in members for other in members)


def permutation_p_value(differences):
    flips = np.array(list(itertools.product((-1, 1), repeat=len(differences))))
    return np.mean(np.abs(flips @ differences) >= abs(differences.sum()) - 1e-9)


def test_no_tie_groups_where_no_outcome_could_tell_methods_apart():
    image = np.linspace(0, 0.1, 5)
    assert tables.tie_groups(scores_of(A=image, B=image + 0.5)) == {"A": "", "B": ""}
    # Seven images can tell two methods apart (1/64), and three (3 pairs, 3/64), but not four (6 pairs, 6/64).
    image = np.linspace(0, 0.1, 7)
    two = {"A": image, "B": image + 0.5}
    assert tables.tie_groups(scores_of(**two)) == {"A": "b", "B": "a"}
    assert tables.tie_groups(scores_of(**two, C=image + 0.7)) == {"A": "c", "B": "b", "C": "a"}
    assert set(tables.tie_groups(scores_of(**two, C=image + 0.7, D=image + 0.9)).values()) == {""}
    missing = scores_of(A=image, B=image + 0.5, C=np.full(7, np.nan))
    assert tables.tie_groups(missing) == {"A": "b", "B": "a", "C": ""}


def test_ties_of_deletion_begin_with_the_lowest(result):
    many = xr.concat([result, result.assign_coords(image=list("efgh"))], "image", join="outer", data_vars="minimal")
    many["deletion_auc"] = many.deletion_auc.copy(data=np.stack([np.full((8, 2), 0.4), np.full((8, 2), 0.3)]))
    many["insertion_auc"] = many.insertion_auc.copy(data=np.stack([np.full((8, 2), 0.4), np.full((8, 2), 0.3)]))
    table = tables.tidy_table(many).set_index(["metric", "method"]).ties
    assert table["deletion"].to_dict() == {"Ours": "b", "Random": "a"}
    assert table["insertion"].to_dict() == {"Ours": "a", "Random": "b"}


def test_order_of_the_methods_against_scipy():
    rng = np.random.default_rng(1)
    names = [f"m{i}" for i in range(6)]
    values = rng.random((6, 9))
    paper = pd.DataFrame({"method": [*names, "absent"], "metric": "label_correlation", "value": [0.1, 0.5, 0.2, 0.2, 0.9, 0.3, 0.7]})
    result = xr.Dataset({"label_correlation": (("method", "image"), values)}, {"method": names, "image": list("abcdefghi")})
    row = tables.order_table(result, paper).iloc[0]
    known = paper.value[:6]
    assert row[["metric", "methods", "n"]].tolist() == ["label_correlation", 6, 9]
    assert row.correlation == pytest.approx(stats.spearmanr(values.mean(1), known).statistic)
    drawn = [stats.spearmanr(values[:, rng.integers(0, 9, 9)].mean(1), known).statistic for _ in range(1000)]
    assert [row.low, row.high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.12)


def test_order_of_the_methods_is_that_of_the_paper_or_its_reverse():
    paper = tables.paper_values("table1").query("metric == 'soundness'")
    names, noise = paper.method.tolist(), np.linspace(-1e-4, 1e-4, 5)
    for sign in (1, -1):
        values = 0.5 + sign * 0.4 * (paper.value.to_numpy()[:, None] - 0.5) + noise
        made = xr.Dataset({"label_correlation": (("method", "image"), values)}, {"method": names, "image": list("abcde")})
        table = tables.order_table(made, paper.assign(metric="label_correlation"))
        assert table.correlation.item() == pytest.approx(sign)
        assert table[["low", "high"]].isna().all(axis=None), "every draw of images gives this order"
        one = tables.order_table(made.isel(image=[0]), paper.assign(metric="label_correlation"))
        assert (one.n.item(), one.correlation.item()) == (1, pytest.approx(sign))
    # Two methods have no order worth a number.
    assert len(tables.order_table(made.isel(method=[0, 1]), paper.assign(metric="label_correlation"))) == 0


def test_labels_may_differ_between_images(more):
    """Lists of labels an image: `label 1`, `label 2`, and their names as a coordinate over images."""
    shuffled = more.assign_coords(label=["label 1", "label 2"], label_name=(("image", "label"), [["cat", "dog"], ["dog", "cat"]] * 2))
    pd.testing.assert_frame_equal(tables.tidy_table(shuffled), tables.tidy_table(more))
    pd.testing.assert_frame_equal(tables.games_table(shuffled), tables.games_table(more))
    assert tables.worked_example(shuffled.isel(image=[1])).label.tolist() == ["dog", "cat", "worst case"] * 2


def test_the_worked_example_of_the_paper_follows_equation_1():
    paper = pd.read_csv(data_dir() / "paper" / "section33.csv").set_index(["method", "label"])
    pairs = paper[paper.g.notna()]
    ratio = pairs.g / pairs.f
    # The text prints two digits of f and g.
    assert pairs.completeness.tolist() == pytest.approx(ratio.clip(upper=1).tolist(), abs=0.011)
    assert pairs.soundness.tolist() == pytest.approx((1 / ratio).clip(upper=1).tolist(), abs=0.03)
    for method, rows in paper.groupby("method"):
        labels, worst = rows.drop((method, "worst case")), rows.loc[(method, "worst case")]
        assert worst.completeness == labels.completeness.min()
        assert worst.soundness == labels.soundness.min()
