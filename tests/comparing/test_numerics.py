"""What a run was trained with is recorded, and reported where it differs between variants."""

import pytest

from comparing.held_equal import numerics_compared, threads
from comparing.variants import compare
from measuring.numerics import trained_with
from tests.comparing.test_variants import run

FLOAT32 = {"dtype": "float32", "device": "cpu", "native_bfloat16": False, "num_threads": 1}
BFLOAT16 = FLOAT32 | {"dtype": "bfloat16", "native_bfloat16": True}


def trained(attention, numerics, seed=0):
    one = run(attention, seed=seed)
    one.row["trained_with"] = numerics
    return one


def test_a_summary_is_read_back_with_what_changed_when_it_was_resumed():
    assert trained_with({}) is None
    assert trained_with({"numerics": FLOAT32}) == FLOAT32
    changed = ["precision: float32 -> bfloat16 after step 3", "num_threads: 1 -> 2 after step 3"]
    found = trained_with({"numerics": BFLOAT16, "numerics_changed": changed})
    assert found == BFLOAT16 | {"dtype": "float32 -> bfloat16 after step 3"}


def test_what_a_summary_brings_is_no_markup_and_no_error():
    hostile = {"dtype": ["`x` [a](javascript:b)\n<b>"], "device": None}
    found = trained_with({"numerics": hostile, "numerics_changed": 3})
    _, differs = numerics_compared(
        {"mha": [{"trained_with": found}], "mla": [{"trained_with": FLOAT32}]}
    )
    held, _ = numerics_compared(
        {"mha": [{"trained_with": found}], "mla": [{"trained_with": found}]}
    )
    differs += held
    assert not any(mark in line for line in differs for mark in ("`", "[", "<", "\n"))


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (BFLOAT16, "training dtype: float32 (mha), bfloat16 (mla)"),
        (FLOAT32 | {"device": "NVIDIA H200"}, "training device: cpu (mha), NVIDIA H200 (mla)"),
        (None, "training dtype: float32 (mha), not recorded (mla)"),
    ],
)
def test_runs_of_other_numerics_are_not_held_equal(other, said):
    [group] = compare([trained("mha", FLOAT32), trained("mla", other)], None)
    assert said in group.differs
    assert not any("every other setting" in line for line in group.held_equal)


def test_no_attention_is_ranked_by_another_dtype_whatever_the_setting_says():
    two = [trained("mha", FLOAT32), trained("mla", BFLOAT16)]
    [group] = compare(two, None)
    assert group.unranked == ["training dtype (float32 and bfloat16)"]
    assert group.variants[1].result["verdict"] == "not comparable"
    two[1].row["trained_with"] = FLOAT32
    two[0].settings["trainer.precision"], two[1].settings["trainer.precision"] = "auto", "float32"
    [group] = compare(two, None)
    assert group.unranked == []
    assert group.variants[1].result["verdict"] != "not comparable"


def test_seeds_of_one_variant_are_kept_apart():
    runs = [trained("mha", FLOAT32, 0), trained("mha", BFLOAT16, 1), trained("mla", FLOAT32)]
    [group] = compare(runs, None)
    assert "training dtype: bfloat16 and float32 (mha), float32 (mla)" in group.differs


def test_equal_numerics_are_held_equal_and_threads_forbid_nothing():
    two = trained("mla", FLOAT32 | {"num_threads": 2})
    [group] = compare([trained("mha", FLOAT32), two], None)
    assert {"training dtype float32", "training device cpu"} <= set(group.held_equal)
    assert group.differs == []
    assert threads([trained("mha", FLOAT32).row, two.row]) == "1 (mha-seed0); 2 (mla-seed0)"
    assert threads([two.row]) == "2"


def test_runs_of_before_it_was_recorded_claim_neither():
    assert numerics_compared({"mha": [run("mha").row], "mla": [run("mla").row]}) == ([], [])
    assert threads([run("mha").row]) == "not recorded"


def test_a_change_that_all_runs_have_is_held_equal_with_its_arrow():
    changed = FLOAT32 | {"dtype": "float32 -> bfloat16 after step 3"}
    [group] = compare([trained("mha", changed), trained("mla", changed)], None)
    assert "training dtype float32 -> bfloat16 after step 3" in group.held_equal
