"""The theory notebook's figures draw the tables they are given."""

import math

import numpy as np

from salkit.report import theory_plots as tp
from salkit.studies import theory
from salkit.studies import theory_study as ts

DELTA, MARGIN, DS, MARGINS = 0.05, 0.4, (200, 1000), (0.4, 0.8)


def assert_draws(axis, label, x, y):
    (line,) = [each for each in axis.get_lines() if each.get_label() == label]
    np.testing.assert_array_equal(line.get_xydata(), np.transpose([x, y]))


def odd(table, **values):
    """The rows of these values with odd lengths."""
    return table[(table[list(values)] == list(values.values())).all(axis=1) & (table.length % 2 == 1)]


def verticals(axis):
    return [each.get_xdata()[0] for each in axis.get_lines() if len(set(each.get_xdata())) == 1 and list(each.get_ydata()) == [0, 1]]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_success_against_length():
    table = ts.sweep(DS, [MARGIN], DELTA, n_trials=20)
    figure = tp.success_against_length(table, DELTA)
    for axis, event in zip(figure.axes, theory.EVENTS, strict=True):
        assert axis.get_xlabel() == "interval length L (coordinates)"
        assert axis.get_xscale() == "log"
        for d in DS:
            rows = odd(table, event=event, d=d)
            assert_draws(axis, f"d = {d:,}", rows.length, rows.probability)
        assert verticals(axis) == list(table.groupby("d")["L2" if event == ts.NONE else "L1"].first())
        assert len(axis.collections) == len(DS)  # the bands
    band = figure.axes[0].collections[0].get_paths()[0].vertices
    rows = odd(table, event=ts.GIVEN, d=DS[0])
    assert {*rows.low, *rows.high} <= set(band[:, 1])
    assert figure.axes[0].get_ylabel() == "probability over shuffles"
    assert {"d = 200", "d = 1,000", "exact law, largest d", r"$1 - \delta$ = 0.95"} <= set(legend(figure))
    assert any("theorem" in text for text in legend(figure))


def test_collapse():
    table = ts.sweep([1000], MARGINS, DELTA, n_trials=20)
    figure = tp.collapse(table, DELTA)
    assert [verticals(axis) for axis in figure.axes] == [[2 * math.log(1 / DELTA)], [2 * math.log(1000 / DELTA)]]
    for axis, event in zip(figure.axes, (ts.GIVEN, ts.NONE), strict=True):
        for margin in MARGINS:
            rows = odd(table, event=event, margin=margin)
            assert_draws(axis, rf"$\gamma$ = {margin:g}", rows.length * margin**2, rows.probability)
        assert r"\gamma^2" in axis.get_xlabel()


def test_shares():
    table = ts.certified_shares(1000, MARGIN, DELTA)
    figure = tp.shares(table)
    for label, name in ((1, "certify y"), (-1, "certify $-$y")):
        rows = odd(table, label=label)
        assert_draws(figure.axes[0], name, rows.length, rows.share)
        assert_draws(figure.axes[1], name, rows.length, rows.share.where(rows.share > 0))
    assert verticals(figure.axes[1]) == [table.L1[0], table.L2[0]]
    assert figure.axes[1].get_yscale() == "log"


def test_wrong_label_support():
    table = ts.best_for_wrong_label(1000, MARGIN, DELTA)
    (axis,) = tp.wrong_label_support(table, MARGIN, DELTA).axes
    assert_draws(axis, "best mask, unconstrained", table.length, table.any_mask)
    assert_draws(axis, "best interval", table.length, table.interval)
    assert verticals(axis) == [table.L2[0]]
    assert "coordinates" in axis.get_xlabel()


def test_counterexample_success():
    table = ts.counterexamples(1000, MARGIN, DELTA, n_trials=20)
    figure = tp.counterexample_success(table, DELTA)
    assert [axis.get_title() for axis in figure.axes] == ["x = $e_1$", "x near $e_1$"]
    for axis in figure.axes:
        for event in theory.EVENTS:
            rows = table[(table.case == axis.get_title()) & (table.event == event)]
            assert_draws(axis, tp.NAMES[event], rows.length / 1000, rows.probability)
            assert any(np.array_equal(each.get_ydata(), rows.exact) for each in axis.get_lines())
        assert verticals(axis) == [table.L1[0] / 1000, table.L2[0] / 1000]


def test_concentration_success():
    table = ts.concentration(1000, MARGIN, DELTA, n_trials=20)
    figure = tp.concentration_success(table, DELTA)
    for axis, event in zip(figure.axes, (ts.GIVEN, ts.NONE), strict=True):
        for assumed in ("B = 1", "B = d/k"):
            rows = table[(table.event == event) & (table.assumed == assumed)]
            assert_draws(axis, f"length for {assumed}", rows.n_active / 1000, rows.probability)
    assert legend(figure).count("exact law") == 1
