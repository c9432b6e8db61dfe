"""Arrangements as a user types them, and what is said of those that cannot be."""

import re

import pytest
import yaml

import commands.check_attention
from launch import schemas
from launch.compose import checked, composed
from launch.errors import ConfigError
from launch.explain import explain
from launch.failures import USER_ERRORS
from launch.recorded import as_yaml, require_same_run
from launch.typed import for_hydra
from modeling.accounting import kv_cache_bytes, match_cache, match_to_mha, num_parameters
from modeling.arrangement import layer_configs, remarks
from modeling.errors import ModelConfigError


def train_config(*typed):
    found = for_hydra("train", list(typed))
    return checked(composed("train", found), schemas.TrainConfig, typed)


def refusal(*typed):
    try:
        layer_configs(train_config(*typed).model)
    except USER_ERRORS as error:
        return str(error)
    except Exception as error:
        return explain(error, schemas.TrainConfig, typed)
    pytest.fail(f"{typed} were accepted")


@pytest.mark.parametrize(
    ("typed", "key", "value"),
    [
        ("layers.source=[0,0,2,2]", "source", [0, 0, 2, 2]),
        ("layers.source=0,0,2,2", "source", [0, 0, 2, 2]),
        ("layers.window=1k", "window", 1000),
        ("layers.pattern=own", "pattern", ["own"]),
        ("layers.pattern=own,mqa", "pattern", ["own", "mqa"]),
        ("layers.share=upper", "share", "upper"),
        ("layers.sinks=true", "sinks", True),
    ],
)
def test_keys_take_what_is_typed(typed, key, value):
    config = train_config("layers=window", typed)
    assert getattr(config.layers, key) == getattr(config.model.layers, key) == value


def test_a_list_of_numbers_is_one_value_of_a_sweep_too():
    typed = ["-m", "layers.source=0,0,2,2", "fair_lr_factors=[1,2,3],[1,2,4]"]
    assert for_hydra("train", typed)[1:] == ["layers.source=[0,0,2,2]", typed[2]]


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        (["attention=mla", "layers=window_full"], "mla-window_full"),
        (["layers=shared_pairs", "layers.window=16"], "mha-shared_pairs"),
        (["layers.window=16"], "mha-arranged"),
        (["layers=uniform"], "mha"),
    ],
)
def test_a_run_is_named_after_its_arrangement(typed, name):
    assert train_config(*typed).run_name == f"{name}-nano-python_stdlib-seed0"


@pytest.mark.parametrize(
    ("typed", "heads"),
    [
        (["layers.pattern=[mqa,mqa,mqa,own]"], [1, 1, 1, 8]),
        (["attention=gqa", "layers.pattern=mha_no_rope,own"], [8, 2, 8, 2]),
        (["layers.pattern=[wide,own]", "layers.attentions.wide.name=gqa"], [2, 8, 2, 8]),
        (
            ["layers.pattern=[gqa,own]", "layers.attentions.gqa.num_key_value_heads=4"],
            [4, 8, 4, 8],
        ),
    ],
)
def test_a_pattern_brings_the_attentions_that_it_names(typed, heads):
    config = train_config(*typed)
    layers = layer_configs(config.model)
    assert [layer.num_key_value_heads for layer in layers] == heads
    rotated = 0 if "no_rope" in typed[-1] else 24
    assert layers[0].qk_rope_head_dim == rotated
    assert config.layers.attentions == config.model.layers.attentions  # as recorded
    assert "${" not in str(config.layers.attentions)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("layers=windw", "there is no layers 'windw'; did you mean layers=window?"),
        ("layers=yoco", "did you mean layers=shared_upper?"),
        ("layers=12", "the number of layers is model.num_hidden_layers=12"),
        ("layers.windw=3", "there is no key 'layers.windw'; did you mean 'layers.window'?"),
        ("window=64", "there is no key 'window'; did you mean 'layers.window'? layers.window=64"),
        ("model.layers.window=3", "did you mean 'layers.window'? layers.window=3"),
        ("model.attention.sliding_window=3", "set layer by layer, by layers=window or window_full"),
        ("layers.window=0", "layers.window (0) must be at least 1, or null"),
        ("layers.window=-4", "layers.window (-4) must be at least 1, or null"),
        ("layers.window=x", "layers.window (x) must be a whole number"),
        ("layers.sinks=true", "layers.sinks needs layers.window"),
        ("layers.share=pair", "layers.share ('pair') must be null, pairs, upper or last"),
        ("layers.source=[0,0,x,2]", "layers.source[2] (x) must be a whole number, such"),
        ("layers.source=0,0,2", "layers.source has 3 entries, and the model 4 layers"),
        ("layers.source=[0,2,2,2]", "layer 1 cannot read layer 2; it must be from 0 to 1, itself"),
        ("layers.source=[0,0,1,1]", "layer 2 reads layer 1, which has no keys of its own; let it"),
        ("layers.source=[0,-1,2,3]", "layer 1 cannot read layer -1; it must be from 0 to 1"),
        ("layers=shared_pairs layers.source=[0,0,2,2]", "say the same thing; set one of them"),
        (
            "layers=window_full layers.share=pairs",
            "layers.share=pairs: layer 3 (from 0) cannot read layer 2: it needs 8 x 24 of key and "
            "8 x 24 of value for all tokens, and that one keeps 8 x 24 of key and 8 x 24 of value "
            "for the newest 64 tokens; with layers.source=[...], one number a layer, it can read "
            "itself (3)",
        ),
        ("layers=window_full layers.share=last", "set layers.full_every to less"),
        ("layers=shared_last layers.share_last=4", "must be less than the 4 layers"),
        ("layers.pattern=mqa,own layers.share=pairs", "layer 1 (from 0) cannot read layer 0: it"),
        (
            "layers.pattern=mqaa,own",
            "there is no attention 'mqaa'; did you mean mqa? There are own",
        ),
        ("layers.pattern=wide layers.attentions.wide.name=mqaa", "layers.attentions.wide: there i"),
        (
            "layers.pattern=mqa layers.attentions.mqa.hed_dim=3",
            "attention 'mqa' has no key layers.attentions.mqa.hed_dim; did you mean 'head_dim'?",
        ),
        ("layers.attentions.mqa.head_dim=32", "is in no layer; layers.pattern must name it"),
        ("+attention@layers.attentions.mqa=mqa", "leave it out; layers.pattern=[mqa,own] brings"),
        ("layers=window_full layers.full_every=1", "layers.full_rope=false leaves RoPE to layers"),
        ("layers.pattern=mla_no_rope", "no attention of layers.pattern has RoPE; set model.posit"),
        (
            "attention=mla_no_rope layers=window_full model.position_embedding=none",
            "model.attention.qk_rope_head_dim is 0",
        ),
    ],
)
def test_arrangements_that_cannot_be_say_what_to_set(typed, message):
    text = refusal(*typed.split())
    assert message in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("layers=window_full", ""),
        ("layers=window layers.window=255", ""),
        (
            "layers=window layers.window=512",
            "layers.window (512) covers the whole context of 256 tokens: layers with a window see "
            "and keep as much as full ones",
        ),
        ("layers=window_full layers.full_every=5", "layers.full_every (5) makes none of the 4 lay"),
        ("layers.pattern=own,own,own,own,mqa", "layers.pattern names 5 attentions for 4 layers"),
    ],
)
def test_what_an_arrangement_does_not_do_is_said(typed, said):
    found = remarks(train_config(*typed.split()).model)
    assert [re.match(re.escape(said), one) is not None for one in found] == [True] * bool(said)


def test_saved_parameters_of_shared_layers_go_to_the_mlp():
    models = {
        name: match_to_mha(
            train_config("attention=gqa", f"layers={name}", "model.vocab_size=4096").model
        )
        for name in ("uniform", "shared_pairs")
    }
    totals = {name: num_parameters(model).total for name, model in models.items()}
    assert totals["shared_pairs"] == pytest.approx(totals["uniform"], rel=5e-3)
    # Two layers without key and value projections of 2 x 24 each, for 4 MLPs of 3 m a unit.
    assert models["shared_pairs"].intermediate_size - models["uniform"].intermediate_size == (
        2 * 2 * 48 * 192 // (4 * 3 * 192)
    )


@pytest.mark.parametrize(("context", "heads"), [(None, 2), (64, 1), (1024, 4)])
def test_caches_are_matched_at_the_context_that_is_asked_for(context, heads):
    model = train_config("attention=gqa", "layers=window_full", "layers.window=64").model
    # Of 4 layers one keeps all T tokens and three the newest 64.
    tokens = context or 256
    ratio = heads / 8 * (tokens + 3 * min(tokens, 64)) / (4 * tokens)
    matched = match_cache(model, ratio, context)
    assert matched.attention["num_key_value_heads"] == heads
    assert kv_cache_bytes(matched, tokens) == ratio * tokens * 4 * 2 * 192 * 4
    with pytest.raises(ModelConfigError, match=r"match_cache_ratio=.* at 7 tokens, and the near"):
        match_cache(model, 0.07, 7)


def test_a_changed_arrangement_is_refused_field_by_field_and_an_old_run_was_uniform(tmp_path):
    saved = tmp_path / "config.yaml"
    uniform = train_config()
    old = yaml.safe_load(as_yaml(uniform))
    del old["layers"], old["match_cache_context"]
    saved.write_text(yaml.safe_dump(old))
    require_same_run(saved, uniform)
    arranged = train_config("layers=window_full", "layers.window=16", "layers.pattern=mqa,own")
    with pytest.raises(ConfigError, match=r"mqa\.name: None -> mqa; .*layers\.name: uniform"):
        require_same_run(saved, arranged)
    saved.write_text(as_yaml(arranged))
    require_same_run(saved, arranged)
    changed = train_config("layers=window_full", "layers.window=32", "layers.pattern=mqa,own")
    with pytest.raises(ConfigError, match=re.escape("(layers.window: 16 -> 32); choose another")):
        require_same_run(saved, changed)


def test_a_file_of_ones_own_brings_a_pattern(tmp_path):
    (tmp_path / "layers").mkdir()
    (tmp_path / "layers/mine.yaml").write_text(
        "defaults:\n  - uniform\nname: mine\npattern: [mqa, own]\n"
        "attentions:\n  mqa:\n    rope_theta: 500.0\n"
    )
    folder = f"hydra.searchpath=[file://{tmp_path}]"
    config = train_config(folder, "layers=mine")
    assert config.run_name.startswith("mha-mine-nano")
    assert [layer.rope_theta for layer in layer_configs(config.model)] == [500.0, 1e4, 500.0, 1e4]
    with pytest.raises(ConfigError, match=r"layers\.attentions\.mqa is in no layer"):
        train_config(folder, "layers=mine", "layers.pattern=null")


def test_a_check_takes_lists_as_a_training_does():
    """Without brackets, too."""
    bare, bracketed = (
        commands.check_attention.examples("gqa", [f"layers.source={given}"])
        for given in ("0,0,2,2", "[0,0,2,2]")
    )
    assert bare == bracketed
    assert len(bare) == 3  # its own keys, those of layer 0 and those of layer 2
