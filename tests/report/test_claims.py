import math

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from salkit.evaluation.results import rescore
from salkit.report import claims as claims_module
from salkit.report.claims import (
    BEST_EFFORT_CLAIMS,
    PRIOR,
    SLIGHT,
    TABLE1_CLAIMS,
    Claim,
    claim_sentences,
    claims_table,
    table2_claims,
    wide_claims,
)
from salkit.report.tables import paper_values

N = 12
WOBBLE = np.linspace(-0.01, 0.01, N)
PAPER = pd.DataFrame(
    [("A", "soundness", 0.8), ("B", "soundness", 0.6), ("C", "soundness", 0.6), ("A", "completeness", 0.9), ("B", "completeness", 0.92)],
    columns=["method", "metric", "value"],
)


def evaluation(soundness, completeness=None, eps=0.001):
    """Scores `(method, image)` of one label an image, f = 1 for it and 0 for the other. Insertion differs between methods."""
    names, n = list(soundness), len(next(iter(soundness.values())))
    dims = ("method", "image", "label")
    worst = {"soundness": soundness, "completeness": completeness or dict.fromkeys(soundness, np.full(n, 0.5))}
    scores = {name: np.stack([np.stack([of[m], np.ones(n)], 1) for m in names]) for name, of in worst.items()}
    areas = np.broadcast_to(np.linspace(0.2, 0.8, len(names))[:, None, None], (len(names), n, 2))
    data = {"prob": (dims[1:], np.tile([1.0, 0.0], (n, 1)))} | {name: (dims, values) for name, values in scores.items()}
    data |= {"insertion_auc": (dims, areas), "deletion_auc": (dims, areas)}
    made = xr.Dataset(data, {"method": names, "image": [str(i) for i in range(n)], "label": ["cat", "dog"]})
    return made.assign(prediction=made.prob.argmax("label")).assign_attrs(eps_soundness=eps, eps_completeness=10 * eps)


def sounder(by, n=N, **other):
    """An evaluation in which A is sounder than B by so much, give or take 0.01."""
    base = np.linspace(0.4, 0.6, n)
    return evaluation({"A": base + by + np.resize(WOBBLE, n), "B": base}, **other)


RAISES = Claim("A is sounder than B", "soundness", "A", "B")


@pytest.mark.parametrize(
    ("by", "paper", "verdict"),
    [
        (0.2, PAPER, "reproduced"),
        (0.11, PAPER, "reproduced"),  # just over half of the paper's 0.2
        (0.09, PAPER, "right sign, 45 % of the paper's effect"),
        (0.012, PAPER, "right sign, 6 % of the paper's effect"),
        (0.0, PAPER, "cannot tell at n = 12"),
        (-0.1, PAPER, "opposite"),
        # Without a number of the paper a slight difference is 0.05.
        (0.06, PAPER[:0], "reproduced"),
        (0.04, PAPER[:0], "right sign, but slight"),
        (-0.04, PAPER[:0], "opposite"),
    ],
)
def test_a_verdict_is_a_test_and_an_effect(by, paper, verdict):
    row = claims_table(sounder(by), [RAISES], paper).iloc[0]
    assert row.verdict == verdict
    assert row.ours == pytest.approx(by)
    assert row.effect == pytest.approx(by / 0.2, nan_ok=True) if len(paper) else math.isnan(row.effect)
    assert row.low <= row.ours <= row.high
    # All differences have one sign, or (without an effect) are symmetric about 0.
    assert row.p_value == (1 if by == 0 else 2 / 2**N)


@pytest.mark.parametrize(
    ("by", "verdict"), [(0.02, "reproduced"), (-0.03, "reproduced"), (-0.05, "cannot tell at n = 12"), (-0.07, "opposite")]
)
def test_not_much_less_is_tested_against_its_threshold(by, verdict):
    row = claims_table(sounder(by), [Claim("A is at least as sound as B", "soundness", "A", "B", -SLIGHT)], PAPER).iloc[0]
    assert row.threshold == pytest.approx(-SLIGHT)
    assert row.verdict == verdict
    assert math.isnan(row.effect)


def test_what_is_slight_shrinks_with_the_score():
    # A has half of B's soundness. The difference of 0.02 is within 0.05, but it is not slight.
    result = evaluation({"A": 0.02 + WOBBLE / 10, "B": np.full(N, 0.04)})
    row = claims_table(result, [Claim("A is at least as sound as B", "soundness", "A", "B", -SLIGHT)], PAPER).iloc[0]
    assert row.threshold == pytest.approx(-0.004)
    assert row.verdict == "opposite"


def test_five_images_cannot_tell_whatever_they_show():
    found = [claims_table(sounder(0.3, n), [RAISES], PAPER).iloc[0] for n in (1, 2, 5, 6)]
    assert [row.verdict for row in found] == ["cannot tell at n = 1", "cannot tell at n = 2", "cannot tell at n = 5", "reproduced"]
    assert [row.p_least for row in found] == [1, 0.5, 0.0625, 0.03125]
    # One more claim doubles what the smallest p-value has to be below.
    both = claims_table(sounder(0.3, 6), [RAISES, Claim("A is less sound", "soundness", "B", "A")], PAPER)
    assert both.p_least.tolist() == both.p_holm.tolist() == [0.0625] * 2
    assert both.verdict.tolist() == ["cannot tell at n = 6"] * 2
    assert claim_sentences(both)[0].endswith("p = 0.062, and no outcome at this n could have told.")
    assert "no outcome" not in claim_sentences(claims_table(sounder(0.0), [RAISES], PAPER))[0]


def test_claims_of_a_table_are_corrected_together():
    base = np.linspace(0.4, 0.6, 7)
    # Seven images: p = 2/128 for the first and the second claim, 1 for the third.
    result = evaluation({"A": base + 0.2, "B": base, "C": base + 0.2 * np.array([1, -1, 1, -1, 1, -1, 0])})
    claims = [RAISES, Claim("B is less sound", "soundness", "B", "A"), Claim("C is sounder", "soundness", "C", "B")]
    table = claims_table(result, claims, PAPER)
    assert table.p_value.tolist() == pytest.approx([2 / 128, 2 / 128, 1])
    assert table.p_holm.tolist() == pytest.approx([6 / 128, 6 / 128, 1])
    assert table.verdict.tolist() == ["reproduced", "opposite", "cannot tell at n = 7"]
    # A fourth claim takes the first two out of reach, though nothing about them has changed.
    more = claims_table(result, [*claims, Claim("C is less sound", "soundness", "B", "C")], PAPER)
    assert set(more.verdict) == {"cannot tell at n = 7"}


def test_both_near_the_least_score_are_at_the_floor():
    low = {"A": np.linspace(0.006, 0.008, N), "B": np.linspace(0.002, 0.003, N)}
    assert claims_table(evaluation(low), [RAISES], PAPER).verdict.item() == "at the floor"
    # It ends at 0.001 to the power of 2/3, which is 0.01.
    for mean, verdict in ((0.0099, "at the floor"), (0.0101, "right sign, 4 % of the paper's effect")):
        near = {"A": mean + WOBBLE / 100, "B": mean - 0.008 + WOBBLE / 100 * np.resize([1, -1], N)}
        assert claims_table(evaluation(near), [RAISES], PAPER).verdict.item() == verdict
    # One method above it is a finding, and under another threshold the floor is elsewhere.
    high = {"A": low["A"] + 0.3, "B": low["B"]}
    assert claims_table(evaluation(high), [RAISES], PAPER).verdict.item() == "reproduced"
    assert claims_table(evaluation(low, eps=1e-5), [RAISES], PAPER).verdict.item() != "at the floor"
    released = {"A": np.linspace(0.18, 0.22, N), "B": np.linspace(0.11, 0.12, N)}
    assert claims_table(evaluation(released, eps=0.1), [RAISES], PAPER).verdict.item() == "at the floor"
    # The saliency metric is a logarithm: below 0 is not its floor.
    values = np.stack([np.tile(np.linspace(-0.9, -0.8, N)[:, None], 2), np.tile(np.linspace(-0.4, -0.3, N)[:, None], 2)])
    metric = (
        evaluation(low).assign(saliency_metric=(("method", "image", "box"), values)).assign_coords(box=["threshold", "largest_component"])
    )
    assert claims_table(metric, [Claim("", "saliency_metric", "B", "A")], PAPER).verdict.item() == "reproduced"


@pytest.fixture
def cheating():
    """Our map for each label, and one map for all: the prediction's g is the same. f of the second label is 0.005 or 0.2 in turn."""
    names, rng = ["Ours", "Ours (cheating)"], np.random.default_rng(0)
    second = np.resize([0.005, 0.2], 2 * N)
    prob = np.stack([0.79 - second, second, np.full(2 * N, 0.001)], 1)
    g = 0.3 * rng.random((2, 2 * N, 3))
    g[1, :, 0] = g[0, :, 0]
    g[1, :, 1] = 0.5 * g[0, :, 1]
    dims = ("method", "image", "label")
    made = xr.Dataset({"prob": (dims[1:], prob), "insertion_auc": (dims, g), "deletion_auc": (dims, g)}, {"method": names})
    made = made.assign_coords(image=[str(i) for i in range(2 * N)], label=["label 1", "label 2", "label 3"])
    made = made.assign_coords(label_name=(dims[1:], np.resize(["cat", "dog", "ship"], (2 * N, 3))))
    return rescore(made.assign(prediction=made.prob.argmax("label")), "paper")


def test_an_identity_is_no_finding(cheating):
    claims = [c for c in TABLE1_CLAIMS if {c.method, c.reference} == {"Ours", "Ours (cheating)"}]
    sure = cheating.isel(image=slice(0, None, 2))
    table = claims_table(sure, claims).set_index("claim")
    row = table.loc["Cheating costs no completeness"]
    assert (row.verdict, row.ours, row.n) == ("holds by construction", 0, N)
    assert math.isnan(row.p_holm)
    assert "every other label has f below eps" in claim_sentences(table.loc[[row.name]].reset_index())[0]
    # It is no test, so it takes nothing from the others; the best effort has no image that counts.
    assert table.loc["Cheating raises soundness", "p_holm"] == pytest.approx(table.loc["Cheating raises soundness", "p_value"])
    assert table.loc["Cheating shows in best effort", ["verdict", "n"]].tolist() == ["cannot tell at n = 0", 0]
    # Under a lower threshold the same images could contradict it.
    tight = claims_table(rescore(sure, "paper").assign_attrs(eps_completeness=1e-4), claims).set_index("claim")
    assert tight.loc[row.name, "verdict"] != "holds by construction"
    # Another map for the prediction could, too.
    other = sure.copy(deep=True)
    other.insertion_auc[1, 0, 0] += 0.1
    assert claims_table(rescore(other, "paper"), claims).set_index("claim").loc[row.name, "n"] == 1


def test_only_images_that_could_contradict_a_claim_count(cheating):
    claim = Claim("Cheating costs no completeness", "completeness", "Ours (cheating)", "Ours", -SLIGHT)
    row = claims_table(cheating, [claim]).iloc[0]
    could = claims_table(cheating.isel(image=slice(1, None, 2)), [claim]).iloc[0]
    assert row.n == could.n == N
    assert row.ours == could.ours < 0


def test_claims_of_what_did_not_run_are_left_out():
    claims = [
        RAISES,
        Claim("", "soundness", "A", "Phang et al."),
        Claim("", "saliency_metric", "A", "B"),
        Claim("", "insertion", "prior methods", "A"),
    ]
    table = claims_table(sounder(0.2), claims, PAPER)
    assert table.claim.tolist() == [RAISES.text]
    assert len(claims_table(sounder(0.2), claims[1:], PAPER)) == 0


def test_a_group_is_the_mean_of_its_methods_on_each_image(monkeypatch):
    monkeypatch.setitem(claims_module.GROUPS, "both", ("B", "C"))
    base = np.linspace(0.4, 0.6, N)
    result = evaluation({"A": base + 0.2, "B": base + WOBBLE, "C": base + 0.1})
    row = claims_table(result, [Claim("", "soundness", "A", "both")], PAPER).iloc[0]
    assert row.ours == pytest.approx(0.15)
    assert row.paper == pytest.approx(0.2)
    assert row.high - row.low == pytest.approx(2 * 2.201 * (WOBBLE / 2).std(ddof=1) / N**0.5, abs=1e-4)


def test_composites_are_the_fewest_of_a_learned_mask():
    base = np.linspace(0.4, 0.6, N)
    result = evaluation({"A": base + 0.2, "B": base, "C": base}).assign_coords(composites=("method", [20_000.0, 500.0, math.nan]))
    claims = [RAISES, Claim("", "soundness", "A", "C"), Claim("", "soundness", "C", "C")]
    table = claims_table(result, claims, PAPER)
    np.testing.assert_equal(table.composites.tolist(), [500, 20_000, math.nan])
    assert wide_claims(table).composites.tolist() == ["500", "20,000", ""]


@pytest.mark.parametrize(
    ("text", "paper"),
    [
        ("TV raises soundness", 0.84 - 0.65),
        ("TV costs little completeness", 0.84 - 0.87),
        ("Upsampling costs little completeness", 0.84 - 0.86),
        ("Ours is more complete than Phang et al.", 0.84 - 0.71),
        ("Ours is at least as sound as Fong and Vedaldi", 0.84 - 0.60),
        ("Random is as good at deletion as the mean prior method", (0.42 + 0.37 + 0.48 + 0.58 + 0.41) / 5 - 0.45),
        ("Centered Gaussian beats the mean prior method: insertion", 0.74 - (0.56 + 0.68 + 0.66 + 0.59 + 0.75) / 5),
        ("Centered Gaussian beats the mean prior method: saliency metric", (-0.35 - 0.36 - 0.85 - 0.40 - 0.27) / 5 + 0.97),
        ("Cheating shows in best effort", math.nan),
    ],
)
def test_the_papers_differences_are_those_of_its_table(text, paper, table1):
    assert table1.loc[text, "paper"] == pytest.approx(paper, nan_ok=True)


@pytest.fixture(scope="module")
def table1():
    """All claims of Table 1 on an evaluation of noise with all methods."""
    names = [*dict.fromkeys(paper_values("table1").method), "Ours (cheating)"]
    rng = np.random.default_rng(3)
    dims, shape = ("method", "image", "label"), (len(names), 20, 10)
    data = {"prob": (dims[1:], rng.dirichlet(np.full(10, 0.3), 20)), "insertion_auc": (dims, rng.random(shape))}
    data |= {"deletion_auc": (dims, rng.random(shape)), "saliency_metric": (("method", "image", "box"), rng.normal(size=(*shape[:2], 2)))}
    coords = {"method": names, "image": [str(i) for i in range(20)], "label": [f"label {i}" for i in range(1, 11)]}
    made = xr.Dataset(data, coords | {"box": ["threshold", "largest_component"]})
    return claims_table(rescore(made.assign(prediction=made.prob.argmax("label")), "paper"), TABLE1_CLAIMS).set_index("claim")


def test_the_papers_own_numbers_support_every_claim(table1):
    known = table1[table1.paper.notna()]
    assert len(known) == len(table1) - 5, "only cheating's and best effort's numbers are not printed"
    for row in known.itertuples():
        assert row.paper > (-SLIGHT if row.threshold < 0 else 0), row.Index


def test_every_claim_of_the_paper_is_judged(table1):
    assert table1.index.tolist() == [claim.text for claim in TABLE1_CLAIMS]
    assert table1.index.is_unique
    for prior in PRIOR:
        assert {f"Ours is more complete than {prior}", f"Ours is at least as sound as {prior}"} <= set(table1.index)
    assert {c.reference for c in BEST_EFFORT_CLAIMS} == {"Phang et al.", "Centered Gaussian", "Ours (cheating)"}
    # Ten images are enough for a verdict on every claim: each has a p-value of 2/1024 at best.
    assert len(TABLE1_CLAIMS) * 2 / 2**10 < 0.05
    # Noise shows nothing.
    assert (table1.p_holm > 0.05).all()


def test_claims_of_the_sweep():
    claims = table2_claims(["0", "0.01", "1"])
    assert [(c.metric, c.method, c.reference, c.threshold) for c in claims] == [
        ("soundness", "0.01", "0", 0),
        ("soundness", "1", "0", 0),
        ("completeness", "0.01", "0", -SLIGHT),
        ("completeness", "1", "0", -SLIGHT),
    ]


def test_claims_for_reading():
    base = np.linspace(0.4, 0.6, N)
    scores = {"A": base + 0.012 + WOBBLE, "B": base}
    result = evaluation(scores, {"A": np.full(N, 0.5), "B": base})
    table = claims_table(result, [RAISES, Claim("A is as complete", "completeness", "A", "B", -SLIGHT)], PAPER)
    wide = wide_claims(table)
    assert wide.columns.tolist() == ["compared", "claimed", "paper", "ours", "of the paper's", "n", "p (Holm)", "verdict"]
    assert wide.loc[RAISES.text].tolist() == [
        *("soundness: A - B", "> +0.00", "+0.20", "0.012 [0.0078, 0.016]", "6 %", 12, "0.00098", "right sign, 6 % of the paper's effect")
    ]
    assert wide.loc["A is as complete", ["claimed", "paper", "of the paper's"]].tolist() == ["> -0.05", "-0.02", ""]
    assert claim_sentences(table)[0] == (
        "A is sounder than B: right sign, 6 % of the paper's effect (the paper: +0.20); "
        "ours 0.012 [0.0078, 0.016] over 12 images, p = 0.00098."
    )
    unknown = wide_claims(claims_table(result, [RAISES], PAPER[:0]))
    assert unknown.columns.tolist() == ["compared", "claimed", "ours", "n", "p (Holm)", "verdict"]
    nothing = wide_claims(claims_table(result, [], PAPER))
    assert len(nothing) == 0
