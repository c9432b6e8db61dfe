"""One body over every attention: what each promises the model, the cache and the counts."""

import pytest
import torch
from tiny import (
    CASES,
    FIVE,
    B,
    LiveBytes,
    M,
    S,
    assert_near,
    build_attention,
    decode_paths,
    normal,
    reference,
    run_through_cache,
)

import modeling.attention.grouped_query
import modeling.attention.kernel
import modeling.attention.latent
from commands.check_attention import example, examples
from modeling.attention import attention_config, attention_config_class, attention_names
from modeling.attention.kernel import attend_in_blocks
from modeling.contract import (
    CHECKS,
    causality,
    chunks,
    decoding,
    examine,
    left_padding,
    oracle,
    padding,
    placements,
    truncation,
)
from modeling.errors import ModelConfigError
from modeling.kv_cache import CACHE_DTYPES, Held, KVCache

DTYPES = (torch.float64, torch.float32, torch.bfloat16)
CHUNKINGS = ((1,) * 7, (3, 3, 1), (4, 1, 2))
GROUPED_KEYS = ["k_proj.weight", "o_proj.weight", "q_proj.weight", "v_proj.weight"]
LATENT_KEYS = [
    "kv_a_layernorm.weight",
    "kv_a_proj_with_mqa.weight",
    "kv_b_proj.weight",
    "o_proj.weight",
]
QUERY_LATENT_KEYS = ["q_a_layernorm.weight", "q_a_proj.weight", "q_b_proj.weight"]
# Spelt as in transformers' LlamaAttention and DeepseekV3Attention.
STATE_DICT_KEYS = {
    "mha": GROUPED_KEYS,
    "mqa": GROUPED_KEYS,
    "gqa": GROUPED_KEYS,
    "mha_no_rope": GROUPED_KEYS,
    "gqa_partial_rope_wide_value": GROUPED_KEYS,
    "gqa_qk_norm": [*GROUPED_KEYS, "k_norm.weight", "q_norm.weight"],
    "gqa_narrow_value_bias": [
        *GROUPED_KEYS,
        "k_proj.bias",
        "o_proj.bias",
        "q_proj.bias",
        "v_proj.bias",
    ],
    "mla": [*LATENT_KEYS, "q_proj.weight"],
    "mla_no_rope": [*LATENT_KEYS, "q_proj.weight"],
    "mla_query_latent": [*LATENT_KEYS, *QUERY_LATENT_KEYS],
    "mla_query_latent_bias": [
        *LATENT_KEYS,
        *QUERY_LATENT_KEYS,
        "kv_a_proj_with_mqa.bias",
        "o_proj.bias",
        "q_a_proj.bias",
    ],
}


@pytest.fixture(params=CASES)
def fields(request):
    return CASES[request.param]


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


@pytest.fixture
def forward_only():
    with torch.no_grad():
        yield


def gradients(output, x, module):
    """Return gradients of a fixed weighting of the output, for x and every weight."""
    weighting = normal(*output.shape, dtype=torch.float64, seed=9).to(output.dtype)
    (output * weighting).sum().backward()
    return {"x": x.grad} | {name: p.grad for name, p in module.named_parameters()}


# What `python check_attention.py` checks


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_attention_keeps_its_promise(fields, check):
    # What a cache takes no part in is the same on every path.
    reads = check in (decoding, chunks, truncation, padding, causality)
    for path in decode_paths(fields) if reads else ("auto",):
        found = examine(check, attention_config(fields | {"decode_path": path}))
        assert found.passed, (path, found)


def of_the_registry():
    """Every registered attention, as it is and where arrangements put it."""
    return [
        pytest.param(name, config, id=said)
        for name in attention_names()
        for said, config in examples(name).items()
    ]


@pytest.mark.parametrize(("name", "config"), of_the_registry())
def test_registered_attention_keeps_its_promises(name, config):
    for check in CHECKS:
        found = examine(check, config)
        assert found.passed, (check.__name__, found)
        # An attention without an oracle is compared with nothing but itself.
        assert found.made or check is not oracle, f"{name} has no oracle"


@pytest.mark.parametrize("name", attention_names())
def test_example_of_a_registered_attention_deserves_its_name(name):
    config = example(name)
    assert config.problems_as(name) == []
    assert max(config.hidden_size, config.num_attention_heads) <= 64
    assert config.DECODE_PATHS == () or config.decode_path in config.DECODE_PATHS


def test_arrangements_make_of_an_attention_what_they_say():
    placed = placements(example("gqa"))
    states = {said: (config.state().window, config.knows_order) for said, config in placed.items()}
    assert states == {
        "in a window of 3 tokens": (3, True),
        "in a window of 3 tokens with sinks": (3, True),
        "without RoPE": (None, False),
        "reading another layer": (None, True),
        "reading another layer's window": (3, True),
    }
    assert placed["in a window of 3 tokens with sinks"].attention_sinks
    assert placed["reading another layer"].reader.state().source == 0
    assert "without RoPE" not in placements(example("mla_no_rope"))


# Shapes, counts and names


def test_attention_output_has_shape_and_dtype_of_its_input(fields, dtype, forward_only):
    x = normal(B, S, M, dtype=dtype)
    module = build_attention(fields, dtype)
    for cache in (None, module.new_cache(B, S)):
        output = module(x, torch.arange(S), cache)
        assert output.shape == (B, S, M)
        assert output.dtype == dtype


@pytest.mark.parametrize("case", CASES)
def test_attention_state_dict_keys_are_the_stored_list(case):
    assert sorted(build_attention(CASES[case]).state_dict()) == sorted(STATE_DICT_KEYS[case])


@pytest.mark.parametrize("cache_dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_attention_measured_cache_bytes_equal_closed_form(fields, cache_dtype, forward_only):
    module = build_attention(fields)
    cache = module.new_cache(B, 11, cache_dtype)
    run_through_cache(module, normal(B, S, M), torch.arange(S), (5, 1, 1), cache=cache)
    elements = module.state.elements_per_token
    assert KVCache([cache]).num_bytes() == B * 11 * elements * cache_dtype.itemsize


@pytest.mark.parametrize(
    ("case", "elements"),
    [("mha", 64), ("mqa", 16), ("gqa", 32), ("mla", 18), ("mla_no_rope", 12)],
)
def test_attention_cache_elements_are_those_of_the_papers(case, elements):
    # 2 h d, 2 d, 2 g d, c + r, c with h=4, d=8, g=2, c=12, r=6.
    assert attention_config(CASES[case]).state().elements_per_token == elements


# What may influence what


# Against the oracle


def test_attention_output_and_gradients_equal_the_reference(fields):
    positions = torch.tensor(
        [[0, 1, 2, 3, 4, 5, 6], [9, 3, 3, 40, 0, 7, 2], [500, 4, 77, 6, 1, 9, 12]]
    )
    x = normal(B, S, M, dtype=torch.float64).requires_grad_()
    module = build_attention(fields, torch.float64)
    expected = reference(module.config, dict(module.named_parameters()), x, positions)
    expected_gradients = gradients(expected, x, module)

    for dtype in (torch.float64, torch.float32):
        module = build_attention(fields, dtype)
        x_again = x.detach().to(dtype).requires_grad_()
        output = module(x_again, positions)
        assert_near(output.detach(), expected.detach())
        for name, gradient in gradients(output, x_again, module).items():
            assert_near(gradient, expected_gradients[name])


def test_attention_in_bfloat16_is_near_the_reference(fields, forward_only):
    x = normal(B, S, M, dtype=torch.bfloat16)
    expected = None
    for path in decode_paths(fields):
        module = build_attention(fields, torch.bfloat16, decode_path=path)
        if expected is None:
            expected = reference(module.config, module.state_dict(), x, torch.arange(S))
            assert_near(module(x, torch.arange(S)), expected)
        assert_near(run_through_cache(module, x, torch.arange(S), (3, 1, 1, 2)), expected)


def test_attention_bfloat16_cache_under_float32_weights_costs_only_the_rounding(
    fields, forward_only
):
    module = build_attention(fields)
    x, positions = normal(B, S, M), torch.arange(S)
    cache = module.new_cache(B, S, torch.bfloat16)
    output = run_through_cache(module, x, positions, (3, 1, 1, 2), cache=cache)
    assert output.dtype == torch.float32
    expected = module(x, positions)
    assert 0 < (output - expected).abs().max() < 0.2 * expected.abs().max()


# Through the cache


def test_attention_through_the_cache_equals_the_reference_at_large_positions_of_each_row(
    fields, forward_only
):
    x = normal(B, S, M)
    positions = torch.arange(S) + torch.tensor([[0], [17], [1_000_000]])
    module = build_attention(fields)
    expected = reference(module.config, module.state_dict(), x, positions)
    assert_near(module(x, positions), expected)
    for path in decode_paths(fields):
        module = build_attention(fields, decode_path=path)
        assert_near(run_through_cache(module, x, positions, (3, 1, 1, 2)), expected)


def test_attention_cache_reused_after_reset_or_truncate_equals_a_fresh_one(fields, forward_only):
    module = build_attention(fields, torch.float64)
    x, positions = normal(B, S, M, dtype=torch.float64), torch.arange(S)
    other = normal(B, 4, M, dtype=torch.float64, seed=5)
    expected = module(x, positions)
    cache = module.new_cache(B, S)
    module(other, positions[:4], cache)
    cache.reset()
    again = run_through_cache(module, x, positions, (3, 4), cache=cache)
    assert_near(again, expected)
    cache.truncate(2)
    module(other, positions[2:6], cache)
    cache.truncate(3 - 1)
    assert_near(module(x[:, 2:], positions[2:], cache), expected[:, 2:])


# Padding


def test_attention_with_padding_equals_the_reference(fields, forward_only):
    positions, mask = left_padding([7, 4, 6])
    mask[0, 3] = False  # a hole
    x = normal(B, S, M, dtype=torch.float64)
    module = build_attention(fields, torch.float64)
    expected = reference(module.config, module.state_dict(), x, positions, attention_mask=mask)
    assert_near(module(x, positions, attention_mask=mask), expected)
    assert_near(run_through_cache(module, x, positions, (5, 2), mask), expected)


@pytest.mark.parametrize("path_index", [0, 1, 2, 3])
def test_attention_fully_masked_rows_are_finite(fields, dtype, path_index):
    path = decode_paths(fields)[path_index]
    module = build_attention(fields, dtype, decode_path=path)
    mask = torch.ones(B, S, dtype=torch.bool)
    mask[1] = False
    x = normal(B, S, M, dtype=dtype).requires_grad_()
    bias = module.o_proj.bias if fields.get("attention_bias") else torch.zeros(M, dtype=dtype)
    output = module(x, torch.arange(S), attention_mask=mask)
    assert output.isfinite().all()
    torch.testing.assert_close(output[1], bias.expand(S, M))
    output.square().sum().backward()
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in module.parameters())
    with torch.no_grad():
        cached = run_through_cache(module, x, torch.arange(S), (3, 1, 1, 2), mask)
    assert cached.isfinite().all()
    torch.testing.assert_close(cached[1], bias.detach().expand(S, M))


# One query that reads the cache


@pytest.fixture
def blocks_read(monkeypatch):
    """The lengths of each call of attend_in_blocks, block by block."""
    calls = []

    def spy(query, read, *given, **options):
        calls.append([])

        def noted(start, end, dtype):
            calls[-1].append(end - start)
            return read(start, end, dtype)

        return attend_in_blocks(query, noted, *given, **options)

    monkeypatch.setattr(modeling.attention.kernel, "attend_in_blocks", spy)
    return calls


def let_blocks_hold(tokens, module, monkeypatch, batch=B, converts=False):
    """Let a block hold so many tokens of this module's cache, which is converted or not."""
    (heads, width), *_ = module.state.per_token.values()
    keys = heads * width if converts else 0
    elements = batch * (keys + module.config.num_attention_heads) * tokens
    monkeypatch.setattr(modeling.attention.kernel, "BLOCK_ELEMENTS", elements)


def last_token(module, x, positions, attention_mask=None, cache=None):
    """What the last token of x gets when all before it are in the cache."""
    cache = cache or module.new_cache(x.shape[0], x.shape[1])
    module(x[:, :-1], positions[:-1], cache)
    return module(x[:, -1:], positions[-1:], cache, attention_mask=attention_mask)


MASKS = {
    "none": None,
    "rows": torch.tensor([[1, 1, 1, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1, 1], [1, 0, 0, 0, 0, 0, 0]]) > 0,
    "one_row_sees_nothing": torch.arange(B)[:, None].expand(B, S) != 1,
}
MASKS["of_each_query"] = MASKS["rows"][:, None]


@pytest.mark.parametrize("mask", MASKS)
def test_attention_of_the_last_token_on_every_path_equals_the_reference(
    fields, mask, forward_only, monkeypatch, blocks_read
):
    x, positions = normal(B, S, M, dtype=torch.float64), torch.tensor([3, 5, 6, 7, 20, 21, 22])
    expected = None
    for path in decode_paths(fields):
        module = build_attention(fields, torch.float64, decode_path=path)
        if expected is None:
            # One query that sees all states is the last one of a causal attention.
            expected = reference(
                module.config,
                module.state_dict(),
                x[:, -1:],
                positions[-1:],
                attention_mask=MASKS[mask],
                key_value_states=x,
                key_value_positions=positions.expand(B, S),
            )
        for tokens in (1, 2, 3, 6, 7, 100) if path == "blocks" else (100,):
            let_blocks_hold(tokens, module, monkeypatch)
            blocks_read.clear()
            assert_near(last_token(module, x, positions, MASKS[mask]), expected)
            whole, rest = divmod(S, tokens)
            in_blocks = [[tokens] * whole + [rest] * (rest > 0)]
            assert blocks_read == (in_blocks if path == "blocks" else [])


@pytest.mark.parametrize("cache_dtype", CACHE_DTYPES, ids=str)
def test_attention_reads_a_cache_of_another_dtype_in_blocks_by_itself(
    fields, cache_dtype, forward_only, blocks_read
):
    module = build_attention(fields)
    last_token(module, normal(B, S, M), torch.arange(S), cache=module.new_cache(B, S, cache_dtype))
    assert blocks_read == ([] if cache_dtype == torch.float32 else [[S]])


@pytest.mark.parametrize("name", FIVE)
def test_only_heads_of_their_own_are_read_in_blocks_where_there_are_many_tokens(
    name, forward_only, monkeypatch, blocks_read
):
    module = build_attention(FIVE[name])
    for many in (B * S + 1, B * S):
        monkeypatch.setattr(modeling.attention.kernel, "_MANY_TOKENS", many)
        last_token(module, normal(B, S, M), torch.arange(S))
        assert len(blocks_read) == (name == "mha" and many == B * S)


@pytest.mark.parametrize("order", [1, -1], ids=["rising", "falling"])
@pytest.mark.parametrize("sign", [1, -1], ids=["above", "below"])
@pytest.mark.parametrize("tokens", [1, 2, 100])
def test_large_scores_in_blocks_neither_overflow_nor_vanish(order, sign, tokens, monkeypatch):
    # Whole numbers, so that scores of 10,000 are exact in float32; the highest two are 1 apart.
    scores = sign * 10_000.0 + torch.tensor([-20_000, -9, -3, -1, 0][::order])
    key, value = scores.view(1, 1, 5, 1), normal(1, 1, 5, 3)
    expected = scores.double().softmax(0) @ value[0, 0].double()
    monkeypatch.setattr(modeling.attention.kernel, "BLOCK_ELEMENTS", 2 * tokens)
    output = attend_in_blocks(
        torch.ones(1, 1, 1, 1),
        lambda start, end, dtype: (key[:, :, start:end], value[:, :, start:end]),
        5,
        1,
        scale=1.0,
        stored_dtype=torch.int8,
    )
    assert_near(output[0, 0, 0], expected)


def test_attention_in_float32_with_large_scores_is_finite_on_every_path(fields, forward_only):
    for path in decode_paths(fields):
        module = build_attention(fields, decode_path=path)
        for name, weight in module.named_parameters():
            # The last factor of the queries.
            if name in ("q_norm.weight", "q_proj.weight", "q_b_proj.weight"):
                weight.mul_(1e4)
        for cache_dtype in (torch.float32, torch.int8):
            cache = module.new_cache(B, S, cache_dtype)
            output = last_token(module, normal(B, S, M), torch.arange(S), cache=cache)
            assert output.isfinite().all()
            assert output.abs().max() > 0


# How far a cache that stores less may take the last token's output, of the largest there is; the
# weights are large, so that scores of several units meet. Measured: 0.0009, 0.005 and 0.023.
NARROW = {torch.float16: 0.004, torch.bfloat16: 0.02, torch.int8: 0.08}


@pytest.mark.parametrize("mask", ["none", "rows"])
@pytest.mark.parametrize("cache_dtype", NARROW, ids=str)
def test_attention_computes_exactly_with_what_a_narrow_cache_holds(
    fields, cache_dtype, mask, forward_only, monkeypatch
):
    x, positions, mask = normal(B, S, M), torch.arange(S), MASKS[mask]
    exact = build_attention(fields, torch.float64)
    held = None
    for path in decode_paths(fields):
        module = build_attention(fields, decode_path=path)
        let_blocks_hold(2, module, monkeypatch, converts=True)
        cache = module.new_cache(B, S, cache_dtype)
        output = last_token(module, x, positions, mask, cache)
        if held is None:
            held = exact.new_cache(B, S)
            stored = cache.view()
            held.update(**{name: stored.read(name, torch.float64) for name in cache.tensors})
            expected = exact(
                x[:, -1:].double(),
                positions[-1:],
                held,
                attention_mask=mask,
                key_value_states=x[:, :0].double(),
            )
            unrounded = last_token(exact, x.double(), positions, mask)
        assert_near(output, expected)
        gap = (output - unrounded).abs().max() / unrounded.abs().max()
        assert 0 < gap < NARROW[cache_dtype]


@pytest.mark.parametrize("cache_dtype", [torch.int8, torch.bfloat16], ids=str)
def test_attention_never_converts_the_whole_cache_in_a_step(
    fields, cache_dtype, forward_only, monkeypatch
):
    module, length = build_attention(fields), 65
    let_blocks_hold(8, module, monkeypatch, converts=True)
    cache = module.new_cache(B, length, cache_dtype)
    x, positions, ranges = normal(B, length, M), torch.arange(length), []
    module(x[:, :-1], positions[:-1], cache)
    read = Held.read

    def spy(self, name, dtype, start=0, end=None):
        result = read(self, name, dtype, start, end)
        ranges.append((name, start, start + result.shape[2]))
        return result

    monkeypatch.setattr(Held, "read", spy)
    with LiveBytes() as live:
        module(x[:, -1:], positions[-1:], cache)
    blocks = [(start, min(start + 8, length)) for start in range(0, length, 8)]
    assert ranges == [(name, *block) for block in blocks for name in cache.tensors]
    smallest = min(t.numel() for t in cache.tensors.values()) * 4
    assert live.largest < smallest / 4


@pytest.mark.parametrize("name", FIVE)
def test_attention_in_blocks_to_an_empty_cache_gives_zeros(name, forward_only):
    module = build_attention(FIVE[name], decode_path="blocks")
    output = module(
        normal(B, 1, M),
        torch.arange(1),
        module.new_cache(B, S),
        key_value_states=torch.zeros(B, 0, M),
    )
    assert not output.any()


@pytest.mark.parametrize("name", FIVE)
def test_attention_of_no_tokens_through_a_cache_is_empty(name, forward_only):
    module = build_attention(FIVE[name])
    cache = module.new_cache(B, S)
    module(normal(B, 3, M), torch.arange(3), cache)
    assert module(normal(B, 0, M), torch.arange(0), cache).shape == (B, 0, M)


@pytest.mark.parametrize("name", FIVE)
def test_gradient_of_one_query_in_blocks_equals_that_of_the_other_paths(name):
    found = []
    for path in decode_paths(FIVE[name])[1:]:
        module = build_attention(FIVE[name], torch.float64, decode_path=path)
        x = normal(B, 4, M, dtype=torch.float64).requires_grad_()
        last_token(module, x, torch.arange(4)).square().sum().backward()
        found.append(x.grad)
    for other in found[1:]:
        assert_near(other, found[0])


# Cross attention

STATES = 5
STATE_POSITIONS = torch.tensor([[4, 0, 9, 1, 2], [0, 1, 2, 3, 4], [30, 20, 10, 50, 40]])


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_attention_to_other_states_equals_the_reference(fields, padded, forward_only):
    x = normal(B, S, M, dtype=torch.float64)
    states = normal(B, STATES, M, dtype=torch.float64, seed=6)
    mask = torch.ones(B, STATES, dtype=torch.bool)
    if padded:
        mask[0, 3:] = mask[2, 0] = False
    module = build_attention(fields, torch.float64)
    expected = reference(
        module.config,
        module.state_dict(),
        x,
        torch.arange(S),
        attention_mask=mask,
        key_value_states=states,
        key_value_positions=STATE_POSITIONS,
    )
    given = {"attention_mask": mask} if padded else {}
    output = module(
        x,
        torch.arange(S),
        key_value_states=states,
        key_value_positions=STATE_POSITIONS,
        **given,
    )
    assert_near(output, expected)

    for path in decode_paths(fields):
        module = build_attention(fields, torch.float64, decode_path=path)
        cache = module.new_cache(B, STATES)
        outputs = [
            module(
                x[:, :3],
                torch.arange(3),
                cache,
                key_value_states=states,
                key_value_positions=STATE_POSITIONS,
                **given,
            )
        ]
        for start, end in ((3, 4), (4, 7)):
            outputs.append(
                module(
                    x[:, start:end],
                    torch.arange(start, end),
                    cache,
                    key_value_states=states[:, :0],
                    **given,
                )
            )
        assert cache.seen == STATES
        assert_near(torch.cat(outputs, 1), expected)


def test_attention_to_other_states_counts_their_positions_from_zero(fields, forward_only):
    module = build_attention(fields)
    x, states = normal(B, S, M), normal(B, STATES, M, seed=6)
    counted = module(x, torch.arange(S), key_value_states=states)
    given = module(
        x, torch.arange(S), key_value_states=states, key_value_positions=torch.arange(STATES)
    )
    torch.testing.assert_close(counted, given, rtol=0, atol=0)


# Dropout


def test_attention_dropout_is_active_in_training_only(fields, forward_only):
    x, positions = normal(B, S, M), torch.arange(S)
    plain = build_attention(fields)
    module = build_attention(fields, attention_dropout=0.5)
    expected = plain(x, positions)
    torch.testing.assert_close(module(x, positions), expected, rtol=0, atol=0)
    torch.testing.assert_close(plain.train()(x, positions), expected, rtol=0, atol=0)
    module.train()
    torch.manual_seed(0)
    first, second = module(x, positions), module(x, positions)
    torch.manual_seed(0)
    torch.testing.assert_close(module(x, positions), first, rtol=0, atol=0)
    assert (first - second).abs().max() > 0.1
    assert (first - expected).abs().max() > 0.1
    cached = run_through_cache(module, x, positions, (4, 1, 2))
    assert (cached - expected).abs().max() > 0.1
    cached = run_through_cache(module.eval(), x, positions, (4, 1, 2))
    assert_near(cached, expected)


# Refusals


def test_attention_cache_overflow_is_refused_and_changes_nothing(fields, forward_only):
    module = build_attention(fields)
    x, positions = normal(B, S, M), torch.arange(S)
    cache = module.new_cache(B, S - 1)
    module(x[:, :5], positions[:5], cache)
    with pytest.raises(ValueError, match="at most 6 tokens, 7 would be needed"):
        module(x[:, 5:], positions[5:], cache)
    assert cache.seen == 5
    assert_near(module(x[:, 5:6], positions[5:6], cache), module(x, positions)[:, 5:6])


def test_attention_refuses_a_cache_of_another_batch(fields):
    module = build_attention(fields)
    with pytest.raises(ValueError, match="another model or batch"):
        module(normal(B, S, M), torch.arange(S), module.new_cache(B - 1, S))


def test_attention_refuses_a_cache_of_another_kind(fields):
    module = build_attention(fields)
    other = build_attention(FIVE["mha" if fields["name"].startswith("mla") else "mla"])
    with pytest.raises(ValueError, match="another kind of attention"):
        module(normal(B, S, M), torch.arange(S), other.new_cache(B, S))


def test_attention_refuses_a_cache_of_another_width(fields):
    module = build_attention(fields)
    key = "kv_lora_rank" if fields["name"].startswith("mla") else "v_head_dim"
    other = build_attention(fields, **{key: fields[key] + 2})
    with pytest.raises(ValueError, match="another model or batch"):
        module(normal(B, S, M), torch.arange(S), other.new_cache(B, S))


@pytest.mark.parametrize(
    ("case", "changes", "named"),
    [
        ("gqa", {"num_key_value_heads": 3}, "num_attention_heads .4.* one of 1, 2, 4"),
        ("gqa", {"num_key_value_heads": 0}, "num_key_value_heads .0. must be at least 1"),
        ("gqa", {"head_dim": 0}, "head_dim .0. must be at least 1"),
        ("gqa", {"qk_rope_head_dim": 7}, "qk_rope_head_dim .7. must be even"),
        ("gqa", {"qk_rope_head_dim": 10}, "must not exceed head_dim .8."),
        ("gqa", {"decode_path": "absorbed"}, "must be auto, folded, repeated or blocks"),
        ("mha", {"num_key_value_heads": 2}, "mha has num_key_value_heads = 4, not 2"),
        ("mqa", {"num_key_value_heads": 2}, "mqa has num_key_value_heads = 1, not 2"),
        ("mla", {"kv_lora_rank": 0}, "kv_lora_rank .0. must be at least 1"),
        ("mla", {"kv_lora_rank": 73}, "kv_lora_rank .73. must not exceed .* = 72"),
        ("mla", {"q_lora_rank": 0}, "q_lora_rank .0. must be from 1 to hidden_size .20."),
        ("mla", {"q_lora_rank": 21}, "q_lora_rank .21. must be from 1 to hidden_size .20."),
        ("mla", {"qk_rope_head_dim": 0}, "use attention=mla_no_rope"),
        ("mla_no_rope", {"qk_rope_head_dim": 6}, "use attention=mla "),
        ("mla", {"decode_path": "folded"}, "must be auto, absorbed, expanded or blocks"),
        ("mla", {"latent_norm_eps": float("nan")}, "latent_norm_eps .nan. must be in"),
        ("mla", {"head_dim": 8}, "mla. has no key model.attention.head_dim"),
        ("mha", {"hidden_size": 0}, "hidden_size .0. must be at least 1"),
        ("mha", {"num_attention_heads": 0}, "num_attention_heads .0. must be at least 1"),
        ("mha", {"v_head_dim": -1}, "v_head_dim .-1. must be at least 1"),
        ("mha", {"rope_theta": 1.0}, "rope_theta .1.0. must be a finite number above 1"),
        ("mha", {"rope_theta": float("inf")}, "rope_theta .inf."),
        ("mha", {"attention_dropout": 1.0}, "attention_dropout .1.0. must be in"),
        ("mha", {"attention_dropout": float("nan")}, "attention_dropout .nan. must be in"),
        ("mha", {"head_dim": "8"}, "head_dim .'8'. must be a whole number"),
        ("mha", {"head_dim": True}, "head_dim .True. must be a whole number"),
        ("mha", {"attention_bias": 1}, "attention_bias .1. must be true or false"),
        ("mha", {"kv_lora_rnk": 1}, "mha. has no key model.attention.kv_lora_rnk"),
    ],
)
def test_attention_config_refuses_what_cannot_be_built_and_names_it(case, changes, named):
    with pytest.raises(ModelConfigError, match=named):
        attention_config(FIVE[case] | changes)


def test_attention_config_reports_all_problems_at_once():
    with pytest.raises(ModelConfigError) as refused:
        attention_config(
            FIVE["gqa"] | {"num_key_value_heads": 3, "v_head_dim": 0, "rope_theta": 0.5}
        )
    assert len(refused.value.problems) == 3


def test_attention_config_names_every_missing_field():
    with pytest.raises(ModelConfigError) as refused:
        attention_config({"name": "mla", "hidden_size": M})
    missing = ("num_attention_heads", "qk_rope_head_dim", "v_head_dim", "kv_lora_rank")
    assert all(f"needs model.attention.{key}" in str(refused.value) for key in missing)
    with pytest.raises(ModelConfigError, match="attention=mha"):
        attention_config({"hidden_size": M})


def test_unknown_attention_name_lists_those_there_are():
    with pytest.raises(ModelConfigError, match=", ".join(attention_names())) as refused:
        attention_config_class("mqaa")
    assert "did you mean 'mqa'?" in str(refused.value)
