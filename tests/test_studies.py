"""The experiments named study_*: each run composes, under a name and in a folder of its own."""

import functools
import re

import pytest
from test_fairness import trained as composed_and_matched

from data.pipeline import prepared_folder
from launch import compose, schemas
from launch.plan import planned
from launch.typed import for_hydra
from modeling.accounting import budget_of, match_to_mha, num_parameters
from training.recipe.budget import make_budget

trained = functools.cache(composed_and_matched)
STUDIES = sorted(path.stem for path in (schemas.ROOT / "conf/experiment").glob("study_*.yaml"))


@functools.cache
def combinations(study):
    """The overrides of each run of `-m experiment=<study>`."""
    return planned("train", [f"experiment={study}"]).runs


@pytest.mark.slow  # composes dozens of configurations
@pytest.mark.parametrize("study", STUDIES)
def test_every_run_of_a_study_composes_is_matched_and_has_a_name_of_its_own(study):
    # The seed is no part of what is matched, and composing takes long.
    one_seed = [chosen for chosen in combinations(study) if "seed=0" in chosen]
    assert len(combinations(study)) == 3 * len(one_seed)
    configs = [trained(*chosen) for chosen in one_seed]
    for config in configs:
        assert config.study == config.tracking.group == study
        assert config.run_name.endswith("-seed0")
    assert len({config.run_name for config in configs}) == len(configs)
    mha = trained(f"experiment={study}", "attention=mha", "match=params").model
    for config in configs:
        assert num_parameters(config.model).total == pytest.approx(
            num_parameters(mha).total, rel=5e-3
        )


def test_each_point_of_study_rank_has_its_share_of_mhas_cache():
    points = [chosen for chosen in combinations("study_rank") if "seed=0" in chosen]
    found = {}
    for chosen in points:
        config = trained(*chosen)
        key = (config.model.attention["name"], config.match_cache_ratio)
        found[key] = budget_of(config.model).cache_ratio_to_mha
    assert found == {
        (name, ratio): ratio for name in ("gqa", "mla") for ratio in (0.125, 0.25, 0.5, 1.0)
    }


def test_gpt2_124m_on_fineweb_is_three_attentions_of_one_recipe_and_needs_no_network_to_compose():
    runs = combinations("gpt2_124m_fineweb")
    composed = [compose.composed("train", chosen) for chosen in runs]
    configs = [compose.checked(one, schemas.TrainConfig) for one in composed]
    assert [config.model.attention["name"] for config in configs] == ["mha", "gqa", "mla"]
    assert len({config.run_name for config in configs}) == 3
    for config in configs:
        assert config.study == config.tracking.group == "gpt2_124m_fineweb"
        budget = make_budget(config.trainer, config.schedule, config.model.max_position_embeddings)
        assert (budget.num_steps, budget.tokens_per_step) == (4769, 2**19)
        assert config.data.max_train_tokens > budget.num_tokens > 2.5e9 - 1
        assert (config.data.path, config.data.config_name, config.data.streaming) == (
            *("HuggingFaceFW/fineweb-edu", "sample-10BT"),
            True,
        )
        assert (config.tokenizer.kind, config.tokenizer.path) == ("pretrained", "gpt2")
        assert config.model.vocab_size >= 50_257
        assert config.trainer.compile
        count = num_parameters(match_to_mha(config.model)).total
        assert count == pytest.approx(123.6e6, rel=1e-3)


def test_the_commands_of_docs_gpu_are_those_of_the_experiment():
    page = (schemas.ROOT / "docs" / "gpu.md").read_text()
    config = trained(*combinations("gpt2_124m_fineweb")[0])
    [arguments] = re.findall(r"^    sh prepare_for_use\.sh (.+)$", page, re.MULTILINE)
    overrides = for_hydra("prepare", arguments.split())
    beforehand = compose.checked(compose.composed("prepare", overrides), schemas.PrepareConfig)
    asked = prepared_folder(config.data, config.tokenizer).name
    assert prepared_folder(beforehand.data, beforehand.tokenizer).name == asked
    [several] = re.findall(r"^    torchrun --nproc_per_node=8 train_model\.py (.+)$", page, re.M)
    trainer = trained(*several.split()).trainer
    assert trainer.micro_batch_size % 8 == 0
    one = config.trainer
    assert (
        trainer.micro_batch_size * trainer.gradient_accumulation_steps
        == one.micro_batch_size * one.gradient_accumulation_steps
    )


@pytest.mark.slow  # composes dozens of configurations
def test_study_seed_35m_has_each_attention_with_rope_and_without():
    chosen = {tuple(one[1:2]) for one in combinations("study_seed_35m")}
    rows = {
        (config.attention["name"], config.attention["qk_rope_head_dim"] > 0)
        for config in (trained("experiment=study_seed_35m", *one).model for one in chosen)
    }
    assert rows == {
        *(("mha", True), ("mha_no_rope", False), ("mqa", True), ("mqa_no_rope", False)),
        *(("gqa", True), ("mla", True), ("mla_no_rope", False)),
    }
