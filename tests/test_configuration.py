import dataclasses
import functools
import itertools
import math
import re
import typing
from pathlib import Path

import pytest

import launch.run
from launch import compose, schemas
from launch.errors import ConfigError
from launch.explain import explain
from launch.failures import USER_ERRORS
from launch.recorded import as_yaml, require_same_run
from modeling.accounting import match_to_mha, mha_baseline, num_parameters
from modeling.arrangement import layer_configs
from modeling.attention import attention_config
from modeling.errors import ModelConfigError
from training.errors import TrainingFailed
from training.recipe.schedule import learning_rate

CONF = schemas.ROOT / "conf"
GROUPS = (
    *("block", "data", "tokenizer", "optim", "schedule", "trainer", "eval", "tracking"),
    *("experiment", "debug"),
)


def options(group):
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def composed(*overrides, name="train"):
    return compose.composed(name, list(overrides))


def train_config(*overrides):
    config = compose.checked(composed(*overrides), schemas.TrainConfig)
    layer_configs(config.model)
    return config


def refusal(*overrides):
    """What a user reads for these overrides, from whichever layer refuses."""
    try:
        layer_configs(compose.checked(composed(*overrides), schemas.TrainConfig, overrides).model)
    except USER_ERRORS as error:
        return str(error)
    except Exception as error:
        return explain(error, schemas.TrainConfig, overrides)
    pytest.fail(f"{overrides} were accepted")


@pytest.mark.parametrize(
    ("model", "attention"), list(itertools.product(options("model"), options("attention")))
)
def test_every_attention_composes_with_every_size_at_mha_parameters(model, attention):
    config = train_config(f"model={model}", f"attention={attention}")
    assert config.run_name == f"{attention}-{model}-python_stdlib-seed0"
    vocab = {"vocab_size": 4096}
    matched = num_parameters(match_to_mha(dataclasses.replace(config.model, **vocab))).total
    mha = train_config(f"model={model}", "attention=mha").model
    baseline = num_parameters(dataclasses.replace(mha, **vocab)).total
    assert abs(matched - baseline) / baseline < 0.01


@pytest.mark.parametrize(
    "size", [f"{group}={name}" for group in ("model", "debug") for name in options(group)]
)
def test_the_five_attentions_differ_at_every_size(size):
    five = ("mha", "mqa", "gqa", "mla_no_rope", "mla")
    models = [train_config(size, f"attention={name}").model for name in five]
    caches = [attention_config(model.attention).state() for model in models]
    assert len({str(cache) for cache in caches}) == 5
    sizes = [cache.elements_per_token for cache in caches]
    mha, mqa, gqa, mla_no_rope, mla = sizes
    assert mqa < gqa < mha
    # Of 8 heads, gqa's g = h / 4 have as many elements as a latent.
    assert mqa < mla_no_rope < mla < mha


def test_a_finer_width_is_taken_where_multiples_of_8_miss_mhas_parameters():
    widths = set()
    for attention in options("attention"):
        model = train_config("debug=smoke", f"attention={attention}").model
        model = dataclasses.replace(model, vocab_size=300)
        matched = match_to_mha(model)
        widths.add(matched.intermediate_size)
        wanted = num_parameters(mha_baseline(model)).total
        assert num_parameters(matched).total == pytest.approx(wanted, rel=5e-3)
    assert any(width % 8 for width in widths)


@pytest.mark.parametrize(
    ("group", "option"), [(group, option) for group in GROUPS for option in options(group)]
)
def test_every_option_composes(group, option):
    needed = {
        "data=local": "data.path=x",
        "data=hub": "data.path=a/b",
        "data=mixture": "data.corpora.local.path=x",
        "tokenizer=pretrained": "tokenizer.path=x",
    }
    extra = [needed[f"{group}={option}"]] if f"{group}={option}" in needed else []
    attention = ["attention=mla_no_rope"] if option == "classic" else []
    train_config(f"{group}={option}", *extra, *attention)


@pytest.mark.parametrize("entry", ["eval", "prepare"])
def test_the_other_entry_points_compose(entry):
    compose.checked(composed(name=entry), schemas.SCHEMAS[entry])


@pytest.mark.parametrize("attention", ["gqa", "mqa_tied"])
def test_layers_may_mix_attentions_whose_files_inherit_others(attention):
    given = (f"+attention@layers.attentions.other={attention}", "layers.pattern=[own,other]")
    fields = train_config("attention=mla", *given).layers.attentions["other"]
    assert fields == train_config(f"attention={attention}").model.attention


def test_export_says_which_value_is_missing():
    with pytest.raises(ConfigError, match="out must be given: out="):
        compose.checked(composed(name="export"), schemas.ExportConfig)


def test_grouped_query_attentions_run_without_rope():
    config = train_config(
        "attention=gqa",
        "model.attention.qk_rope_head_dim=0",
        "model.position_embedding=learned",
    )
    assert config.model.attention["qk_rope_head_dim"] == 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.max_tokenz=1", "no key 'trainer.max_tokenz'; did you mean 'trainer.max_tokens'"),
        ("+trainer.max_tokenz=1", "no key 'trainer.max_tokenz'; did you mean 'trainer.max_tok"),
        ("++trainer.max_tokenz=1", "no key 'trainer.max_tokenz'; did you mean 'trainer.max_tok"),
        ("trainer.learning_rate=1", "no key 'trainer.learning_rate'; did you mean 'optim.learn"),
        ("trainer.lrr=1", "no key 'trainer.lrr'; trainer has max_tokens, max_minutes, mi"),
        ("+foo=1", "no key 'foo'"),
        ("attentoin=mla", "no key 'attentoin'; did you mean 'attention'"),
        ("model.attention.kv_rank=1", "no key 'model.attention.kv_rank'"),
        ("+model.attention.head_dimm=1", "model.attention.head_dimm; did you mean 'head_dim'"),
        ("attention=mqaa", "no attention 'mqaa'; did you mean attention=mqa? There are g"),
        ("data=nope", "there is no data 'nope'; there are fineweb_edu, hub"),
        ("trainer.max_tokens=abc", "trainer.max_tokens (abc) must be a whole number, such as 15"),
        ("trainer.max_tokens=1e3", "(1000.0) must be a whole number, such as 1500000, 1_500_000"),
        ("trainer.compile=maybe", "trainer.compile (maybe) must be true or false"),
        ("trainer.device=mps", "must be auto, cpu or cuda; kvlab does not run on mps: trainer.dev"),
        ("trainer.device=gpu", "a GPU is trainer.device=cuda"),
        (
            "trainer.precision=bf16",
            "auto, float32 or bfloat16; did you mean trainer.precision=bf",
        ),
        ("trainer.precision=fp16", "kvlab does not train in float16: trainer.precision=bfl"),
        ("trainer.device=cuda:1", "CUDA_VISIBLE_DEVICES=1 python ... trainer.device=cuda"),
        ("optim.learning_rate=null", "optim.learning_rate: null is not allowed"),
        ("model.attention.head_dim=abc", "head_dim ('abc') must be a whole number"),
        ("model.attention.head_dim=true", "head_dim (True) must be a whole number"),
        ("run_name=???", "run_name must be given"),
        ("match=cash", "match ('cash') must be params, cache or none"),
        ("match_cache_ratio=0", "match_cache_ratio (0.0) must be above 0 and at most 1"),
        ("match_cache_ratio=1.1", "match_cache_ratio (1.1) must be above 0 and at most 1"),
        ("fair_lr_factors=[0.5,1]", "fair_lr_factors ([0.5, 1.0]) must be at least 3 different"),
        ("fair_lr_factors=[1,1.0,2]", "must be at least 3 different positive numbers"),
        ("fair_lr_factors=[1,2,1,4]", "must be at least 3 different positive numbers"),
        ("fair_lr_factors=[0,1,2]", "must be at least 3 different positive numbers"),
        ("fair_lr_factors=[1,2,inf]", "must be at least 3 different positive numbers"),
        ("fair_lr_factors=[1,2,nan]", "must be at least 3 different positive numbers"),
        ("match_cache_ratio=nan", "match_cache_ratio (nan) must be above 0 and at most 1"),
    ],
)
def test_wrong_keys_and_types_are_refused_by_name(override, message):
    assert message in refusal(override)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model.num_attention_heads=7"],
            "model.num_attention_heads (7): 192 is not divisible by 7, the width "
            "model.hidden_size by the number of heads; set model.num_attention_heads=6 or 8",
        ),
        (["model.attention.num_attention_heads=7"], "model.attention.num_attention_heads (7): 192"),
        (["attention=mla", "model.num_attention_heads=7"], "set model.num_attention_heads=6 or 8"),
        (
            ["model.hidden_size=100"],
            "model.hidden_size (100): 100 is not divisible by 8, model.num_attention_heads; set "
            "model.hidden_size=96 or 104; with RoPE, which rotates pairs, 96 or 112",
        ),
        (
            ["model.hidden_size=104"],
            "(13) must be even, since RoPE rotates pairs; set model.hidden_size=96 or 112, or "
            "model.num_attention_heads=4",
        ),
        (
            ["attention=mla", "model.hidden_size=112"],
            "(7) must be even, since RoPE rotates pairs; "
            "set model.hidden_size=96 or 128, or model.num_attention_heads=7",
        ),
        (
            ["attention=mla", "model.hidden_size=104"],
            "heads of 13 dimensions, of which RoPE rotates "
            "half, in pairs; set model.hidden_size=96 or 128, or model.num_attention_heads=2 or 13",
        ),
        (
            ["attention=mla", "model.num_attention_heads=64"],
            "heads of 3 dimensions, of which RoPE "
            "rotates half, in pairs; set model.hidden_size=256, or model.num_attention_heads=48",
        ),
        (
            ["attention=mla", "model.attention.qk_nope_head_dim=13"],
            "(13) is odd, and RoPE rotates "
            "half as many dimensions; set model.attention.qk_rope_head_dim=6, say",
        ),
        (["model.num_attention_heads=0"], "model.num_attention_heads (0) must be at least 1"),
        (
            ["attention=gqa", "model.num_attention_heads=6"],
            "6 is not divisible by 4, which attention=gqa needs; set model.num_attention_heads=4 "
            "or 8, or model.attention.num_key_value_heads to one of 1, 2, 3, 6",
        ),
        (
            ["model.attention.kv_lora_rank=64"],
            "with this attention; attention=mla and mla_no_rope have kv_lora_rank",
        ),
        (
            ["attention=gqa", "model.attention.num_key_value_heads=3"],
            "(8) must be a multiple of num_key_value_heads (3); set "
            "model.attention.num_key_value_heads to one of 1, 2, 4, 8",
        ),
        (["attention=gqa", "model.attention.num_key_value_heads=16"], "one of 1, 2, 4, 8"),
        (["attention=mha", "model.attention.num_key_value_heads=2"], "use attention=gqa"),
        (["attention=mqa", "model.attention.num_key_value_heads=2"], "use attention=gqa"),
        (["attention=mla", "model.attention.qk_rope_head_dim=7"], "(7) must be even"),
        (["attention=mla", "model.attention.qk_rope_head_dim=0"], "use attention=mla_no_rope"),
        (["model.attention.qk_rope_head_dim=0"], "no position information"),
        (
            ["attention=mla", "model.attention.qk_rope_head_dim=0", "model.allow_nope=true"],
            "use attention=mla_no_rope",
        ),
        (["attention=mla_no_rope", "model.attention.qk_rope_head_dim=8"], "use attention=mla for"),
        (["attention=mha_no_rope", "model.attention.qk_rope_head_dim=8"], "use attention=mha for"),
        (["attention=mqa_no_rope", "model.attention.num_key_value_heads=2"], "use attention=gqa"),
        (["attention=mla", "model.attention.kv_lora_rank=0"], "kv_lora_rank (0) must be at least"),
        (["attention=mla", "model.attention.kv_lora_rank=385"], "= 384, beyond which it compr"),
        (["attention=mla", "model.attention.q_lora_rank=193"], "from 1 to hidden_size (192)"),
        (["model.attention.qk_rope_head_dim=26"], "must not exceed head_dim (24)"),
        (["model.attention.attention_dropout=1.5"], "attention_dropout (1.5) must be in [0, 1)"),
        (["model.attention.qk_rope_head_dim=0"], "set model.position_embedding=learned"),
        (["model.attention.num_attention_heads=4"], "must equal model.num_attention_heads (8)"),
        (["block=classic", "attention=mla"], "use attention=mla_no_rope"),
        (["data=local"], "data.path is not set"),
        (["seed=-1"], "seed (-1) must be from 0"),
        (["trainer.sample_prompt=''"], "trainer.sample_prompt is empty"),
        (["eval.context=8", "eval.stride=9"], "eval.stride (9) must not exceed eval.context (8)"),
        (["sampling.top_p=2"], "sampling.top_p (2.0) must be in (0, 1]"),
        (["model.attention.decode_path=fast"], "must be auto, folded, repeated or blocks"),
    ],
)
def test_impossible_combinations_say_what_to_set_instead(overrides, message):
    assert message in refusal(*overrides)


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        ([], 70),
        (["trainer.max_tokens=122880"], 6),  # of 60
        (["trainer.max_tokens=122880", "schedule.warmup_steps=59"], 59),
        (["trainer.max_tokens=122880", "schedule=constant"], 6),
        (["schedule=constant"], 50),
        (["schedule=wsd", "trainer.max_tokens=2048"], 0),
        (["experiment=study_seed_35m"], 300),
    ],
)
def test_a_warmup_that_nobody_set_is_at_most_a_tenth_of_the_run(overrides, steps):
    from training.recipe.budget import make_budget

    config = train_config(*overrides)
    budget = make_budget(config.trainer, config.schedule, config.model.max_position_embeddings)
    assert config.schedule.warmup(budget.num_steps) == steps
    resolved = dataclasses.replace(config.schedule, warmup_steps=steps)
    for step in (0, steps, budget.num_steps - 1):
        rates = [learning_rate(s, 1.0, step, budget.num_steps) for s in (config.schedule, resolved)]
        assert rates[0] == rates[1]


def test_a_warmup_longer_than_the_run_is_refused():
    from training.errors import TrainingError
    from training.recipe.budget import make_budget

    config = train_config("schedule.warmup_steps=5000")
    with pytest.raises(TrainingError, match="warmup_steps"):
        make_budget(config.trainer, config.schedule, config.model.max_position_embeddings)


def test_all_problems_are_reported_at_once():
    text = refusal("optim.learning_rate=-1", "trainer.keep_last=0", "sampling.temperature=-1")
    assert {"optim.learning_rate", "trainer.keep_last", "sampling.temperature"} <= set(
        re.findall(r"[a-z_]+\.[a-z_]+", text)
    )


@functools.cache
def default_config():
    return train_config()


def numeric_fields():
    """Every number in every section that a user can set."""
    config = default_config()
    for section in dataclasses.fields(config):
        value = getattr(config, section.name)
        if dataclasses.is_dataclass(value):
            hints = typing.get_type_hints(type(value))
            for field in dataclasses.fields(value):
                if hints[field.name] in (int, float, int | None, float | None):
                    yield (
                        section.name,
                        field.name,
                        float in typing.get_args(hints[field.name]) or (hints[field.name] is float),
                    )


@pytest.mark.parametrize(("section", "name", "is_float"), list(numeric_fields()))
def test_every_number_has_a_rule(section, name, is_float):
    values = [-7.5, math.nan, math.inf] if is_float else [-7]
    for value in values:
        settings = dataclasses.replace(getattr(default_config(), section), **{name: value})
        assert any(name in problem for problem in settings.problems()), (section, name, value)


@pytest.fixture
def own_experiment(tmp_path: Path):
    def write(text):
        folder = tmp_path / "experiment"
        folder.mkdir()
        (folder / "mine.yaml").write_text("# @package _global_\n" + text)
        return f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine"

    return write


def test_an_experiment_wins_over_the_groups(own_experiment):
    config = train_config(*own_experiment("optim:\n  learning_rate: 0.123\nseed: 5\n"))
    assert config.optim.learning_rate == 0.123
    assert config.seed == 5


def test_the_command_line_wins_over_an_experiment(own_experiment):
    config = train_config(*own_experiment("seed: 5\n"), "seed=6")
    assert config.seed == 6


def test_a_misspelt_key_in_an_experiment_is_refused(own_experiment):
    message = refusal(*own_experiment("optim:\n  learning_rat: 0.123\n"))
    assert "no key 'optim.learning_rat'; did you mean 'optim.learning_rate'" in message


def test_a_configuration_cannot_name_code_to_run(own_experiment, tmp_path):
    marker = tmp_path / "ran"
    text = f"optim:\n  _target_: pathlib.Path.touch\n  _args_: ['{marker}']\n"
    assert "_target_" in refusal(*own_experiment(text))
    assert not marker.exists()


def test_saved_configuration_is_compared_field_by_field(tmp_path):
    saved = tmp_path / "config.yaml"
    saved.write_text(as_yaml(train_config()))
    require_same_run(saved, train_config("trainer.keep_last=5", "tracking=none"))
    with pytest.raises(ConfigError) as error:
        require_same_run(
            saved, train_config("optim.learning_rate=0.5", "attention=mqa", "run_name=x")
        )
    assert "optim.learning_rate: 0.008 -> 0.5" in str(error.value)
    assert "model.attention.num_key_value_heads: 8 -> 1" in str(error.value)


def test_a_run_from_before_a_key_had_its_default(tmp_path):
    saved = tmp_path / "config.yaml"
    new = ("match_cache_ratio", "fair_lr")
    lines = as_yaml(default_config()).splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith((*new, "- "))]
    saved.write_text("".join(kept))
    assert len(kept) == len(lines) - 6
    require_same_run(saved, default_config())
    with pytest.raises(ConfigError, match="fair_lr: False -> True"):
        require_same_run(saved, train_config("fair_lr=true"))
    mixed = ("data=mixture", "data.corpora.local.path=x")
    text = as_yaml(train_config(*mixed))
    assert text.count("encoding: utf-8\n") == 3
    saved.write_text(re.sub(" *encoding: utf-8\n", "", text))
    require_same_run(saved, train_config(*mixed))
    with pytest.raises(ConfigError, match=r"corpora\.local\.encoding: utf-8 -> latin-1"):
        require_same_run(saved, train_config(*mixed, "data.corpora.local.encoding=latin-1"))


@pytest.mark.parametrize(
    ("overrides", "refused"),
    [
        (["trainer.profile=true", "trainer.max_minutes=5"], None),
        (["trainer.micro_batch_size=2", "trainer.gradient_accumulation_steps=4"], None),
        (["trainer.micro_batch_size=4"], "trainer.micro_batch_size: 8 -> 4"),
        (
            ["trainer.micro_batch_size=2", "trainer.gradient_accumulation_steps=3"],
            "trainer.gradient_accumulation_steps: 1 -> 3",
        ),
        (["trainer.overfit_batches=1"], "trainer.overfit_batches: None -> 1"),
    ],
)
def test_what_may_change_when_a_run_is_resumed(tmp_path, overrides, refused):
    saved = tmp_path / "config.yaml"
    saved.write_text(as_yaml(default_config()))
    if refused is None:
        require_same_run(saved, train_config(*overrides))
        return
    with pytest.raises(ConfigError) as error:
        require_same_run(saved, train_config(*overrides))
    assert refused in str(error.value)


def test_a_training_that_fails_is_one_line_with_status_1_and_the_others_go_on(monkeypatch, capsys):
    seeds = []

    def job(config):
        seeds.append(config.seed)
        if config.seed == 1:
            raise TrainingFailed("out of memory;\nlower something")

    monkeypatch.setattr("sys.argv", ["train_model.py", "-m", "seed=0,1,2"])
    with pytest.raises(SystemExit) as end:
        launch.run.run("train", schemas.TrainConfig, job)
    assert end.value.code == 1
    assert seeds == [0, 1, 2]
    name = "mha-nano-python_stdlib-seed1"
    assert capsys.readouterr().err == (
        f"kvlab: {name}: out of memory; lower something\n"
        f"kvlab: {name} failed: out of memory; lower something\n"
        f"kvlab: 1 of 3 runs failed: {name}; the same command tries them again\n"
    )


@pytest.mark.parametrize("is_multirun", [False, True])
def test_a_bug_shows_its_traceback_and_in_a_multirun_the_name_of_the_run(
    is_multirun, monkeypatch, capsys
):
    def job(config):
        raise AssertionError("a bug")

    flags = ["-m"] if is_multirun else []
    monkeypatch.setattr("sys.argv", ["train_model.py", *flags, "run_name=x"])
    with pytest.raises(SystemExit) as end:
        launch.run.run("train", schemas.TrainConfig, job)
    assert end.value.code == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert ("kvlab: x: AssertionError, see above\n" in err) == is_multirun
    assert ("1 of 1 runs failed: x" in err) == is_multirun


def test_unknown_attention_lists_the_names():
    config = dataclasses.replace(train_config().model, attention={"name": "mlaa"})
    with pytest.raises(
        ModelConfigError,
        match=f"did you mean 'mla'.*available: {', '.join(options('attention'))}",
    ):
        layer_configs(config)


def test_an_attention_is_registered_under_the_name_of_its_file():
    for name in options("attention"):
        assert train_config(f"attention={name}").model.attention["name"] == name
