"""The keys that comparisons vary or hold equal are keys that runs have."""

import pytest

from comparing import recipes
from launch.compose import checked, composed
from launch.recorded import as_values
from launch.schemas import TrainConfig
from tracking.configuration import flat


@pytest.fixture(scope="module")
def keys():
    """Every key of the settings of a run, and the two that its evaluation works out."""
    found = {"begins_with", "trainer.sequences_per_step"}
    for name in ("gqa", "mla"):
        config = checked(composed("train", [f"attention={name}"]), TrainConfig)
        found |= set(flat(as_values(config)))
    return found


# One that is renamed in settings/ alone would no longer be held equal, or be taken for a fault.
@pytest.mark.parametrize(
    ("pattern", "whole_group", "named"),
    [
        (
            recipes._BOOKKEEPING,
            "",
            "run_name seed match match_cache_ratio match_cache_context fair_lr fair_lr_factors "
            "model.name model.attention.decode_path",
        ),
        (
            recipes.COMPARED,
            "layers.",
            "model.intermediate_size model.position_embedding model.attention.name "
            "model.attention.num_key_value_heads model.attention.head_dim "
            "model.attention.qk_nope_head_dim model.attention.qk_rope_head_dim "
            "model.attention.v_head_dim model.attention.q_lora_rank model.attention.kv_lora_rank",
        ),
        (
            recipes._BUDGET,
            "data.",
            "trainer.max_tokens trainer.sequences_per_step trainer.overfit_batches begins_with "
            "model.max_position_embeddings model.num_hidden_layers model.hidden_size",
        ),
        (recipes._PLACES, "tokenizer.", "data.name data.path"),
    ],
    ids=["bookkeeping", "compared", "budget", "places"],
)
def test_a_key_that_a_comparison_names_is_one_of_a_run(keys, pattern, whole_group, named):
    found = {key for key in keys if pattern.fullmatch(key)}
    group = {key for key in keys if whole_group and key.startswith(whole_group)}
    assert group or not whole_group
    assert found == group | set(named.split())
