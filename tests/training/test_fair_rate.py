import math

import pytest

from training.errors import TrainingFailed
from training.recipe.fair_rate import choose, describe, grid, name_in_grid


def bowl(rates, best, curvature=0.3):
    """NLLs that are a parabola over log rate."""
    return {rate: 4.0 + curvature * math.log(rate / best) ** 2 for rate in rates}


@pytest.mark.parametrize("best", [5e-3, 8e-3, 1.1e-2])
@pytest.mark.parametrize("factors", [[0.5, 1.0, 2.0], [0.25, 0.5, 1.0, 2.0, 4.0]])
def test_the_minimum_of_a_parabola_is_found_to_four_digits(best, factors):
    choice = choose(bowl(grid(8e-3, factors), best))
    assert choice.learning_rate == pytest.approx(best, rel=1e-3)
    assert "parabola" in choice.reason


def test_a_rate_far_off_does_not_bend_the_parabola_around_the_best():
    nlls = bowl([1e-3, 2e-3, 4e-3, 8e-3], 2.2e-3) | {1.6e-2: 11.0}
    assert choose(nlls).learning_rate == pytest.approx(2.2e-3, rel=1e-3)


@pytest.mark.parametrize(("best", "edge"), [(1e-4, 4e-3), (3.9e-3, 4e-3), (1e-1, 1.6e-2)])
def test_a_minimum_at_the_edge_is_taken_and_said(best, edge):
    choice = choose(bowl(grid(8e-3, [0.5, 1.0, 2.0]), best))
    assert choice.learning_rate == edge
    assert choice.reason == "the best is at the edge of the grid, widen fair_lr_factors"


def test_a_rate_that_diverged_is_the_worst():
    nlls = {4e-3: 4.1, 8e-3: 4.0, 1.6e-2: math.inf}
    choice = choose(nlls)
    assert choice.learning_rate == 8e-3
    assert choice.reason == "the best of the grid, next to a rate that diverged"
    at_edge = choose({4e-3: 4.0, 8e-3: 4.1, 1.6e-2: math.inf})
    assert (at_edge.learning_rate, "at the edge" in at_edge.reason) == (4e-3, True)
    # Farther off it has no say.
    wider = bowl([2e-3, 4e-3, 8e-3], 4.5e-3) | {1.6e-2: math.inf}
    assert choose(wider).learning_rate == pytest.approx(4.5e-3, rel=1e-3)


def test_rates_that_all_diverged_are_one_line():
    with pytest.raises(TrainingFailed, match=r"0.004 to 0.016; lower optim.learning_rate or"):
        choose(dict.fromkeys((4e-3, 8e-3, 1.6e-2), math.inf))


def test_the_choice_is_within_the_grid_and_needs_no_curvature():
    flat = dict.fromkeys((4e-3, 8e-3, 1.6e-2), 4.0)
    assert choose(flat).learning_rate == 4e-3
    level = {2e-3: 4.5, 4e-3: 4.0, 8e-3: 4.0, 1.6e-2: 4.5}
    assert 4e-3 < choose(level).learning_rate < 8e-3


def test_the_order_of_the_rates_does_not_matter():
    nlls = bowl([4e-3, 8e-3, 1.6e-2], 7e-3)
    assert choose(dict(reversed(nlls.items()))) == choose(nlls)


def test_a_grid_is_ascending_and_as_exact_as_its_names():
    assert grid(8e-3, [2.0, 0.5, 1.0]) == [0.004, 0.008, 0.016]
    assert grid(3e-3, [0.3, 1 / 3, 1.0]) == [0.0009, 0.001, 0.003]


@pytest.mark.parametrize(
    ("name", "seed", "expected"),
    [
        ("mla-nano-python_stdlib-seed0", 0, "mla-nano-python_stdlib-lr0.004"),
        ("mla-seed_35m-wikitext103-seed35", 35, "mla-seed_35m-wikitext103-lr0.004"),
        ("mla-seed1-late", 1, "mla-late-lr0.004"),
        ("mla-seed12", 1, "mla-seed12-lr0.004"),
        ("mla-rank64", 2, "mla-rank64-lr0.004"),
        ("seed0", 0, "lr0.004"),
    ],
)
def test_all_seeds_of_a_variant_share_the_names_in_the_grid(name, seed, expected):
    assert name_in_grid(name, seed, 0.004) == expected


def test_the_table_has_each_rate_and_the_choice():
    nlls = {4e-3: 4.125, 8e-3: 4.0, 1.6e-2: math.inf}
    lines = describe(nlls, choose(nlls)).splitlines()
    assert [line.split() for line in lines[1:4]] == [
        ["0.004", "4.1250"],
        ["0.008", "4.0000"],
        ["0.016", "diverged"],
    ]
    assert lines[4] == (
        "fair_lr: learning rate 0.008, the best of the grid, next to a rate that diverged"
    )
