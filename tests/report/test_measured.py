from salkit.report import measured


def test_the_shipped_schedules_are_complete():
    for rows in measured.schedules().values():
        ends = rows.groupby("schedule").composites.max()
        assert (ends["paper"], ends["fast"]) == (20_000, 2_000)
        assert set(rows[rows.schedule == "fast"].image) == set(rows[rows.schedule == "paper"].image)
        assert not rows.isna().any().any()
        assert rows[["f", "g"]].stack().between(0, 1).all()
