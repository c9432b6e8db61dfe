import itertools
import math

import pytest

from settings.training import ScheduleSettings, TrainerSettings
from training.errors import TrainingError
from training.recipe.budget import make_budget
from training.recipe.schedule import learning_rate


def test_budget_rounds_tokens_up_to_whole_steps():
    trainer = TrainerSettings(max_tokens=1000, micro_batch_size=3, gradient_accumulation_steps=2)
    budget = make_budget(trainer, ScheduleSettings(warmup_steps=0), context_length=10)
    assert budget.tokens_per_step == 60
    assert budget.num_steps == 17
    assert budget.num_tokens == 1020
    assert "17 steps x 2 x 3 sequences x 10 tokens = 1,020 tokens" in budget.describe()


def test_every_sequence_has_its_own_index():
    trainer = TrainerSettings(max_tokens=600, micro_batch_size=3, gradient_accumulation_steps=2)
    budget = make_budget(trainer, ScheduleSettings(warmup_steps=0), context_length=10)
    firsts = [budget.first_sequence(step, i) for step in range(3) for i in range(2)]
    assert firsts == [0, 3, 6, 9, 12, 15]


def test_overfitting_repeats_the_sequences_of_the_first_steps():
    trainer = TrainerSettings(
        max_tokens=300, micro_batch_size=3, gradient_accumulation_steps=2, overfit_batches=2
    )
    budget = make_budget(trainer, ScheduleSettings(warmup_steps=0), context_length=10)
    firsts = [budget.first_sequence(step, i) for step in range(5) for i in range(2)]
    assert firsts == [0, 3, 6, 9, 0, 3, 6, 9, 0, 3]
    assert budget.num_distinct_tokens == 120
    assert budget.describe().endswith("= 300 tokens, the first 120 again and again")


@pytest.mark.parametrize("warmup", [10, 11, 1000])
def test_warmup_not_shorter_than_the_run_is_refused(warmup):
    trainer = TrainerSettings(max_tokens=100, micro_batch_size=1)
    with pytest.raises(TrainingError, match=r"warmup_steps .* below the run's 10 steps.*=1, leave"):
        make_budget(trainer, ScheduleSettings(warmup_steps=warmup), context_length=10)


def test_cosine_at_its_corners():
    settings = ScheduleSettings(warmup_steps=10, final_fraction=0.1)
    rates = [learning_rate(settings, 1.0, step, 101) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0.1)
    assert rates[55] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 2)))
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


def test_constant_stays_at_the_peak_and_no_warmup_starts_there():
    settings = ScheduleSettings(name="constant", warmup_steps=0)
    assert {learning_rate(settings, 0.5, step, 7) for step in range(7)} == {0.5}


def test_wsd_warms_up_stays_and_decays_over_its_last_part():
    settings = ScheduleSettings(
        name="wsd", warmup_steps=10, final_fraction=0.05, decay_fraction=0.25
    )
    rates = [learning_rate(settings, 2.0, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert set(rates[9:75]) == {2.0}
    assert all(a > b for a, b in itertools.pairwise(rates[74:]))
    quarter = 74 + 25 / 4  # 1 - sqrt(1/4) = 1/2 of the way down
    assert rates[80] > 2.0 * (0.05 + 0.95 / 2) > rates[81]
    assert quarter == 80.25
    assert rates[99] == pytest.approx(0.1)


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_wsd_may_decay_over_nothing_or_over_all_after_the_warmup(fraction):
    settings = ScheduleSettings(
        name="wsd", warmup_steps=3, final_fraction=0.0, decay_fraction=fraction
    )
    rates = [learning_rate(settings, 1.0, step, 10) for step in range(10)]
    assert rates[:3] == pytest.approx([1 / 3, 2 / 3, 1])
    assert all(a >= b for a, b in itertools.pairwise(rates[2:]))
    assert rates[9] == (0.0 if fraction else 1.0)
