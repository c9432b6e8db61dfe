"""Layers that differ: which see a window alone, which read another's keys and values."""

import dataclasses

import pytest
import torch
from tiny import (
    FIVE,
    assert_near,
    build_gpt,
    fields_of,
    gpt_config,
    random_tokens,
    randomise,
)

from modeling.accounting import (
    cache_curve,
    kv_cache_bytes,
    kv_cache_bytes_per_token,
    kv_cache_bytes_read,
    num_parameters,
    training_flops_per_token,
)
from modeling.arrangement import layer_configs
from modeling.attention import (
    GroupedQueryAttentionConfig,
    attention_config,
    attention_names,
)
from modeling.config import SamplingSettings
from modeling.errors import ModelConfigError
from modeling.generate import generate, left_pad
from modeling.gpt import GPT
from modeling.kv_cache import CACHE_DTYPES
from modeling.reference import Producer, oracle_of

LENGTH, LAYERS = 13, 4
WINDOW_FULL = {"window": 3, "full_every": 4, "full_rope": False}
ARRANGEMENTS = {
    "uniform": {},
    "window_full": WINDOW_FULL,
    "window": {"window": 3},
    "window_of_one": {"window": 1, "full_every": 2},
    "window_beyond_the_context": {"window": 1000},
    "sinks": {"window": 3, "full_every": 2, "sinks": True, "full_rope_theta": 500.0},
    "shared_pairs": {"share": "pairs"},
    "shared_upper": {"share": "upper"},
    "shared_last": {"share": "last", "window": 3, "full_every": 2},
    "map": {"source": [0, 0, 0, 3]},
    "pairs_of_windows": {"share": "pairs", "window": 3, "sinks": True},
    "pattern": {"window": 3, "pattern": ["own", "other"], "attentions": {"other": FIVE["mqa"]}},
}
CHUNKS = ((1,) * LENGTH, (5, 8), (2, 4, 1, 6), (3, 3, 3, 3, 1))
EVERY = pytest.mark.parametrize("name", ["gqa", "mla"])
ARRANGED = pytest.mark.parametrize("layers", ARRANGEMENTS)


def build(name, layers, **changes):
    """A model of four layers in float64, whose weights no two heads share."""
    changes = {"num_hidden_layers": LAYERS, "layers": ARRANGEMENTS[layers]} | changes
    return randomise(build_gpt(name, **changes), std=0.2).double()


def through_cache(model, tokens, chunks, positions=None, mask=None, dtype=None):
    """Logits in chunks through one cache, and that cache."""
    cache, start, pieces = model.new_cache(*tokens.shape, dtype), 0, []
    for size in chunks:
        end = start + size
        where = None if positions is None else positions[:, start:end]
        seen = None if mask is None else mask[:, :end]
        pieces.append(model(tokens[:, start:end], where, cache, seen))
        start = end
    return torch.cat(pieces, 1), cache


def oracle_logits(model, tokens):
    """What the float64 oracles of the layers say, one query and one key at a time."""
    positions = torch.arange(tokens.shape[1]).expand(tokens.shape)
    x, inputs = model.embed_tokens(tokens), []
    for block, layer in zip(model.layers, model.attention_configs, strict=True):
        inputs.append(block.input_layernorm(x))
        source = layer.state().source
        producer = None
        if source is not None:
            its = dict(model.layers[source].self_attn.named_parameters())
            producer = Producer(its, inputs[source])
        weights = dict(block.self_attn.named_parameters())
        x = x + oracle_of(layer)(layer, weights, inputs[-1], positions, producer=producer)
        x = x + block.mlp(block.post_attention_layernorm(x))
    return model.norm(x) @ model.output_weight.T


# What a model of such layers computes


@torch.no_grad()
@ARRANGED
@EVERY
def test_full_pass_is_the_oracles_and_every_way_through_the_cache_is_it(name, layers):
    model, tokens = build(name, layers), random_tokens(2, LENGTH)
    full = model(tokens)
    assert_near(full[:, :8], oracle_logits(model, tokens[:, :8]))
    for chunks in CHUNKS:
        assert_near(through_cache(model, tokens, chunks)[0], full)


@torch.no_grad()
@ARRANGED
@EVERY
def test_rows_of_different_lengths_have_the_logits_of_each_alone(name, layers):
    model, tokens = build(name, layers), random_tokens(3, LENGTH)
    lengths = torch.tensor([LENGTH, 9, 4])
    index = torch.arange(LENGTH)
    begin = LENGTH - lengths[:, None]
    mask, positions = index >= begin, (index - begin).clamp(min=0)
    chunked, _ = through_cache(model, tokens, (5, 4, 1, 1, 2), positions, mask)
    whole = model(tokens, positions, attention_mask=mask)
    for row, length in enumerate(lengths.tolist()):
        alone = model(tokens[row : row + 1, -length:])
        for output in (whole, chunked):
            assert_near(output[row : row + 1, -length:], alone)


@torch.no_grad()
@ARRANGED
@EVERY
def test_documents_have_the_logits_of_each_alone(name, layers):
    model = build(name, layers, intra_document_mask=True, end_of_document_id=60)
    tokens = random_tokens(2, LENGTH, vocab_size=60)
    tokens[0, [4, 5]] = tokens[1, 8] = 60
    full = model(tokens)
    for row, first, last in ((0, 0, 5), (0, 5, 6), (0, 6, 13), (1, 0, 9), (1, 9, 13)):
        alone = model(tokens[row : row + 1, first:last], torch.arange(first, last))
        assert_near(full[row : row + 1, first:last], alone)
    for chunks in ((4, 4, 1, 1, 3), (1,) * LENGTH):
        assert_near(through_cache(model, tokens, chunks)[0], full)


@ARRANGED
@EVERY
def test_recomputed_activations_give_the_same_gradients_to_every_weight(name, layers):
    model, tokens = build(name, layers).train(), random_tokens(2, LENGTH)
    found = []
    for recompute in (False, True):
        model.recompute_activations(recompute)
        model.zero_grad()
        model.loss(tokens, tokens.roll(-1, 1)).backward()
        found.append({key: weight.grad for key, weight in model.named_parameters()})
    for key, gradient in found[0].items():
        # The softmax over one key is 1, whatever the query.
        if layers != "window_of_one":
            assert gradient.abs().max() > 1e-9, key
        assert_near(found[1][key], gradient)


@pytest.mark.parametrize("layers", ["shared_pairs", "shared_upper", "pairs_of_windows", "sinks"])
@EVERY
def test_gradients_are_the_oracles_of_every_use_of_a_weight(name, layers):
    model, tokens = build(name, layers), random_tokens(2, 6)
    found = []
    for output in (model(tokens), oracle_logits(model, tokens)):
        model.zero_grad()
        output.square().sum().backward()
        found.append({key: weight.grad for key, weight in model.named_parameters()})
    for key, gradient in found[0].items():
        assert_near(gradient, found[1][key], roundings=256)


# Largest difference of logits, in their standard deviations; measured: 0.23, 0.07 and 0.004.
NARROW = {torch.int8: 0.3, torch.bfloat16: 0.1, torch.float16: 0.02}


@torch.no_grad()
@pytest.mark.parametrize("dtype", NARROW, ids=str)
@ARRANGED
@EVERY
def test_a_narrow_cache_gives_the_same_logits_in_chunks_and_token_by_token(name, layers, dtype):
    model, tokens = build(name, layers), random_tokens(2, LENGTH)
    full = model(tokens)
    one, many = (through_cache(model, tokens, chunks, dtype=dtype)[0] for chunks in CHUNKS[:2])
    gap = ((one - full).abs().max() / full.std()).item()
    assert 0 < gap < NARROW[dtype]
    # What is stored is the same, but for elements that lie between two of the dtype's.
    assert (many - one).abs().max() <= 0.3 * (one - full).abs().max()


@torch.no_grad()
@ARRANGED
@EVERY
def test_a_restored_model_cache_continues_as_if_undisturbed(name, layers):
    model, tokens = build(name, layers), random_tokens(2, LENGTH)
    full, cache = model(tokens), model.new_cache(2, LENGTH)
    for start in (2, 6):  # before and after the windows are full
        if cache.seen < start:
            model(tokens[:, cache.seen : start], cache=cache)
        moment = cache.snapshot()
        model(random_tokens(2, 5, seed=9), cache=cache)
        cache.restore(moment)
        assert_near(model(tokens[:, start : start + 2], cache=cache), full[:, start : start + 2])
    has_ring = any(layer.capacity < LENGTH for layer in cache.stored)
    if has_ring:
        with pytest.raises(ValueError, match="take a snapshot there and restore it"):
            cache.truncate(5)
        assert {layer.seen for layer in cache.stored} == {8}  # all or none
    else:
        cache.truncate(5)
    start = cache.seen
    assert_near(model(tokens[:, start:], cache=cache), full[:, start:])


@ARRANGED
@EVERY
def test_text_of_a_ragged_batch_is_each_rows_own_without_a_cache(name, layers):
    model = build(name, layers, tie_word_embeddings=False)
    randomise(model, std=1.0)
    prompts = [random_tokens(n, seed=n).tolist() for n in (2, 7)]
    settings = SamplingSettings(temperature=0.0)
    together = torch.stack(list(generate(model, left_pad(prompts), 6, settings)), 1)
    for row, prompt in enumerate(prompts):
        tokens = torch.tensor([prompt])
        with torch.no_grad():
            for _ in range(6):
                tokens = torch.cat((tokens, model(tokens)[:, -1:].argmax(-1)), 1)
        assert torch.equal(together[row], tokens[0, len(prompt) :])


# What it costs


def arranged(name, layers):
    """The configuration of an arrangement, or None where the attention refuses it by name."""
    config = gpt_config(
        fields_of(name), num_hidden_layers=LAYERS, layers=ARRANGEMENTS[layers], allow_nope=True
    )
    try:
        layer_configs(config)
    except ModelConfigError as error:
        if "set layers=uniform" not in str(error):
            raise
        return None
    return config


@torch.no_grad()
@ARRANGED
@pytest.mark.parametrize("name", attention_names())
def test_bytes_are_the_closed_form_at_every_context_in_every_dtype(name, layers):
    config = arranged(name, layers)
    if config is None:
        return
    model = GPT(config).eval()
    assert sum(weight.numel() for weight in model.parameters()) == num_parameters(config).total
    windows = [layer.state().window for layer in model.attention_configs]
    window = min((w for w in windows if w is not None and w < 100), default=3)
    contexts = {1, window - 1, window, window + 1, 4 * window, config.max_position_embeddings}
    for dtype in CACHE_DTYPES:
        curve = cache_curve(config, dtype)
        for context in sorted(contexts - {0}):
            cache = model.new_cache(2, context, dtype)
            if dtype in (torch.float32, torch.int8):
                model(random_tokens(2, context), cache=cache)
                assert cache.seen == context
            closed = kv_cache_bytes(config, context, dtype)
            assert cache.num_bytes() == 2 * closed
            if context <= window:
                assert closed == curve.fixed + curve.slope * context
            if context >= curve.plateau:
                full = kv_cache_bytes(config, curve.plateau, dtype)
                assert closed == full + curve.slope_beyond * (context - curve.plateau)
            # A layer that reads another's cache reads it too.
            read = sum(
                model.attention_configs[
                    idx if layer.state().source is None else layer.state().source
                ]
                .state()
                .bytes(context, dtype)
                for idx, layer in enumerate(model.attention_configs)
            )
            assert kv_cache_bytes_read(config, context, dtype) == read >= closed
        assert kv_cache_bytes_per_token(config, dtype) == curve.slope_beyond


def test_the_curve_of_windows_and_full_layers_in_numbers():
    # Of 4 layers one is full; 2 heads of 8 + 8 in float32 are 128 bytes a token.
    config = gpt_config("gqa", num_hidden_layers=4, layers=WINDOW_FULL)
    assert dataclasses.asdict(cache_curve(config)) == {
        "fixed": 0,
        "slope": 4 * 128,
        "plateau": 3,
        "slope_beyond": 128,
    }
    assert [kv_cache_bytes(config, t) for t in (0, 1, 3, 4, 100)] == [
        *(0, 512, 1536, 1664, 3 * 384 + 12800)
    ]
    shared = gpt_config("gqa", num_hidden_layers=4, layers={"share": "pairs"})
    assert kv_cache_bytes(shared, 100) == 100 * 2 * 128
    assert kv_cache_bytes_read(shared, 100) == 100 * 4 * 128


def test_training_flops_fall_with_the_window_by_the_keys_that_are_not_seen():
    config = gpt_config("gqa", num_hidden_layers=4)
    windowed = dataclasses.replace(config, layers=gpt_config("gqa", layers=WINDOW_FULL).layers)
    seen = sum(min(query + 1, 3) for query in range(40)) / 40
    saved = training_flops_per_token(config, 40) - training_flops_per_token(windowed, 40)
    # Three layers of four heads: scores and sums of values 8 wide, forward and twice backward.
    assert saved == pytest.approx(3 * 3 * 2 * 4 * (8 + 8) * (20.5 - seen))
    # Layers that read another's keys have no projections for them.
    shared = dataclasses.replace(config, layers=gpt_config("gqa", layers={"share": "pairs"}).layers)
    saved = training_flops_per_token(config, 40) - training_flops_per_token(shared, 40)
    assert saved == pytest.approx(3 * 2 * 2 * 20 * 2 * (8 + 8))


# Which layer is what


def described(config):
    """Return for each layer: its window, the layer it reads, RoPE's width, its base, sinks."""
    return [
        (
            layer.state().window,
            layer.state().source,
            layer.qk_rope_head_dim,
            layer.rope_theta,
            layer.attention_sinks,
        )
        for layer in layer_configs(config)
    ]


def of(layers, count=8, name="gqa", **changes):
    return gpt_config(name, num_hidden_layers=count, layers=layers, **changes)


def test_windows_and_full_layers_alternate_with_the_last_of_each_group_full():
    local, full = (3, None, 8, 1e4, False), (None, None, 0, 1e4, False)
    assert described(of(WINDOW_FULL)) == [local, local, local, full] * 2
    full = (None, None, 8, 5e5, False)
    given = {"window": 3, "full_every": 2, "full_rope_theta": 5e5, "sinks": True}
    assert described(of(given)) == [(3, None, 8, 1e4, True), full] * 4
    assert described(of({"window": 3, "full_every": 9})) == [local] * 8


@pytest.mark.parametrize(
    ("layers", "sources"),
    [
        ({"share": "pairs"}, [0, 0, 2, 2, 4, 4, 6, 6]),
        ({"share": "upper"}, [0, 1, 2, 3, 4, 4, 4, 4]),
        ({"share": "last"}, [0, 1, 2, 3, 3, 3, 3, 3]),
        ({"share": "last", "share_last": 2}, [0, 1, 2, 3, 4, 5, 5, 5]),
        # Of the same kind: windows read a window, full layers a full one.
        ({"share": "last", "window": 3, "full_every": 4}, [0, 1, 2, 3, 2, 2, 2, 3]),
        ({"source": [0, 0, 0, 3, 3, 5, 5, 7]}, [0, 0, 0, 3, 3, 5, 5, 7]),
    ],
)
def test_a_layer_reads_the_keys_that_its_arrangement_says(layers, sources):
    found = [layer.state().source for layer in layer_configs(of(layers))]
    assert found == [None if idx == read else read for idx, read in enumerate(sources)]
    producers = set(sources)
    share = kv_cache_bytes(of(layers), 2) / kv_cache_bytes(of({}), 2)
    assert share == len(producers) / 8


def test_a_pattern_gives_layers_another_attention_that_is_placed_like_them():
    layers = {"window": 3, "full_every": 4, "pattern": ["other", "own", "other"]}
    found = layer_configs(of(layers | {"attentions": {"other": FIVE["mla"]}}, count=6))
    kinds = ["kv_lora_rank" if hasattr(each, "kv_lora_rank") else "heads" for each in found]
    latent, own = "kv_lora_rank", "heads"
    assert kinds == [latent, own, latent, latent, own, latent]
    assert [layer.state().window for layer in found] == [3, 3, 3, None, 3, 3]


def test_a_window_as_long_as_the_context_changes_nothing_but_its_declaration():
    tokens = random_tokens(2, LENGTH)
    plain, windowed = (build("mla", layers) for layers in ("uniform", "window_beyond_the_context"))
    windowed.load_state_dict(plain.state_dict())
    assert torch.equal(windowed(tokens), plain(tokens))
    assert windowed.new_cache(2, 9).num_bytes() == plain.new_cache(2, 9).num_bytes()


# Refusals, one line each


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ({"window": 0}, "layers.window (0) must be at least 1, or null"),
        ({"window": -3}, "layers.window (-3) must be at least 1"),
        ({"window": 3, "full_every": 0}, "layers.full_every (0) must be at least 1, or null"),
        ({"full_every": 4}, "layers.full_every needs layers.window"),
        ({"sinks": True}, "layers.sinks needs layers.window"),
        ({"full_rope_theta": 1e6}, "layers.full_rope_theta needs layers.window"),
        (WINDOW_FULL | {"full_rope_theta": 1e6}, "needs layers.full_rope=true"),
        ({"window": 3, "full_every": 4, "full_rope_theta": 1.0}, "(1.0) must be a finite number"),
        ({"share": "all"}, "layers.share ('all') must be null, pairs, upper or last"),
        ({"share": "pairs", "source": [0, 0, 2, 2]}, "say the same thing; set one of them"),
        ({"share": "pairs", "share_last": 2}, "layers.share_last needs layers.share=last"),
        ({"share": "last", "share_last": 4}, "(4) must be less than the 4 layers"),
        ({"share": "last", "share_last": 0}, "layers.share_last (0) must be at least 1"),
        ({"source": [0, 0, 2]}, "layers.source has 3 entries, and the model 4 layers"),
        ({"source": []}, "layers.source has 0 entries, and the model 4 layers"),
        ({"source": [0, 2, 2, 3]}, "layer 1 cannot read layer 2; it must be from 0 to 1, itself"),
        ({"source": [0, -1, 2, 3]}, "layer 1 cannot read layer -1"),
        ({"source": [0, 9, 2, 3]}, "layer 1 cannot read layer 9"),
        (
            {"source": [0, 0, 1, 3]},
            "layer 2 reads layer 1, which has no keys of its own; let it read layer 0",
        ),
        (
            {"source": [0, 0, 2, 2], "pattern": ["own", "other"]},
            "layer 1 (from 0) cannot read layer 0: it needs 1 x 8 of key and 1 x 8 of value for "
            "all tokens, and that one keeps 2 x 8 of key and 2 x 8 of value for all tokens; with "
            "layers.source=[...], one number a layer, it can read itself (1)",
        ),
        (
            {"source": [0, 1, 2, 0], "window": 3, "full_every": 4},
            "layer 3 (from 0) cannot read layer 0: it needs 2 x 8 of key and 2 x 8 of value for "
            "all tokens, and that one keeps 2 x 8 of key and 2 x 8 of value for the newest 3 "
            "tokens",
        ),
        (
            {"share": "last", "share_last": 3, "window": 3, "full_every": 4},
            "none of the first 1 layers, which keep keys, is of the same kind as layer 3 (from 0)",
        ),
        ({"pattern": ["own", "mqaa"]}, "names 'mqaa', which is neither own nor in layers.atten"),
        ({"pattern": []}, "layers.pattern must name an attention at least; set it to null"),
        (
            {"window": 3, "full_every": 1, "full_rope": False},
            "the model has no position information: model.position_embedding is none and "
            "layers.full_rope=false leaves RoPE to layers with a window, and there are none",
        ),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else None,
)
def test_an_arrangement_that_cannot_be_is_refused_in_one_line(layers, said):
    others = {"attentions": {"other": FIVE["mqa"]}}
    with pytest.raises(ModelConfigError) as refused:
        layer_configs(of(layers | others, count=4))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(refused.value.problems) <= 2


@pytest.mark.parametrize("key", ["sliding_window", "attention_sinks", "kv_source_layer"])
def test_what_an_arrangement_sets_is_no_key_of_the_attention(key):
    with pytest.raises(ModelConfigError, match=f"attention.{key} is set layer by layer.*layers=w"):
        attention_config(FIVE["gqa"] | {key: 1})


def test_a_layer_that_reads_another_works_within_a_model_alone():
    model = build("gqa", "shared_pairs")
    with pytest.raises(ValueError, match="keys and values of layer 0 are read, and it has compute"):
        model.layers[1].self_attn(torch.zeros(1, 2, 20).double(), torch.arange(2))
    states = torch.zeros(1, 2, 20).double()
    with pytest.raises(ValueError, match="this layer reads the keys of layer 0, and has no proje"):
        model.layers[1].self_attn(states, torch.arange(2), key_value_states=states)
    windowed = build("gqa", "window").layers[0].self_attn
    with pytest.raises(ValueError, match="cross attention sees all keys, and this layer has a wi"):
        windowed(states, torch.arange(2), key_value_states=states)
    fields = {"num_key_value_heads": 2, "head_dim": 4, "v_head_dim": 4, "qk_rope_head_dim": 4}
    config = GroupedQueryAttentionConfig(
        hidden_size=20, num_attention_heads=4, attention_sinks=True, **fields
    )
    with pytest.raises(ValueError, match="cross attention has no sinks"):
        config.build().double()(states, torch.arange(2), key_value_states=states)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("gqa", {"rope_theta": 500.0}, "with theta 500, and that one keeps"),
        ("gqa", {"qk_rope_head_dim": 0}, "for all tokens, without RoPE, and that one keeps"),
        ("mla", {"kv_lora_rank": 14, "qk_rope_head_dim": 4}, "RoPE on 4 dimensions"),
    ],
)
def test_a_layer_does_not_read_keys_that_are_rotated_otherwise(name, change, said):
    own = FIVE[name]
    layers = {"source": [0, 0], "pattern": ["own", "other"], "attentions": {"other": own | change}}
    with pytest.raises(ModelConfigError, match=said):
        layer_configs(of(layers, count=2, name=name))
