import pytest


@pytest.mark.slow
def test_plans_of_telecines_own_model(run_here, tables_in):
    ((header, rows),) = tables_in(run_here("published_models.py", "planned", "--only", "telecine (gpu)"))
    assert header[:4] == ["GiB", "clip", "million weights", "between updates"]
    ((name, clip, *numbers),) = rows
    assert (name, clip) == ("telecine (gpu)", "17 x 256 x 256")
    plain, recomputed, half, both = (float(number) for number in numbers[2:6])
    assert both <= recomputed < half < plain


@pytest.mark.slow
def test_a_plan_is_near_the_measured_peak(run_here, tables_in):
    name = "demo, 2 x 9 x 64 x 64"
    ((header, rows),) = tables_in(run_here("published_models.py", "measured", "--only", name))
    assert header[-1] == "planned / measured"
    ((title, *numbers),) = rows
    assert title == name
    assert float(numbers[-1]) == pytest.approx(1, abs=0.15)
