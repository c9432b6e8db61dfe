"""The same numbers from another road: other attentions, other paths, other people's code."""

import pytest
import torch
from tiny import (
    CASES,
    FIVE,
    B,
    M,
    S,
    assert_near,
    build_attention,
    build_gpt,
    decode_paths,
    normal,
    random_tokens,
    randomise,
    run_through_cache,
)

FLOAT64 = torch.float64


def with_repeated_heads(few, num_heads):
    """MHA whose key and value heads are those of `few`, each repeated for its query heads."""
    config = few.config
    fields = FIVE["mha"] | {"qk_rope_head_dim": config.qk_rope_head_dim}
    many = build_attention(fields, FLOAT64)
    state = few.state_dict()
    for name in ("k_proj.weight", "v_proj.weight"):
        heads = state[name].view(config.num_key_value_heads, -1, M)
        repeats = num_heads // config.num_key_value_heads
        state[name] = heads.repeat_interleave(repeats, dim=0).flatten(0, 1)
    many.load_state_dict(state)
    return many


@torch.no_grad()
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_shared_heads_equal_mha_with_each_head_repeated(groups):
    fields = FIVE["gqa"] | {"num_key_value_heads": groups}
    few = build_attention(fields, FLOAT64)
    x = normal(B, S, M, dtype=FLOAT64)
    expected = with_repeated_heads(few, 4)(x, torch.arange(S))
    assert_near(few(x, torch.arange(S)), expected)
    assert_near(run_through_cache(few, x, torch.arange(S), (3, 1, 3)), expected)


@torch.no_grad()
@pytest.mark.parametrize(("name", "groups"), [("mha", 4), ("mqa", 1)])
def test_gqa_with_all_or_one_group_is_mha_or_mqa_with_the_same_weights(name, groups):
    grouped = build_attention(FIVE["gqa"] | {"num_key_value_heads": groups}, FLOAT64)
    other = build_attention(FIVE[name], FLOAT64)
    other.load_state_dict(grouped.state_dict())
    x = normal(B, S, M, dtype=FLOAT64)
    assert torch.equal(other(x, torch.arange(S)), grouped(x, torch.arange(S)))


@torch.no_grad()
def test_mha_without_rope_equals_torch_multihead_attention():
    fields = FIVE["mha"] | {"head_dim": 5, "v_head_dim": 5, "qk_rope_head_dim": 0}
    ours = build_attention(fields, FLOAT64, attention_bias=True)
    theirs = torch.nn.MultiheadAttention(M, 4, batch_first=True, dtype=FLOAT64).eval()
    theirs.in_proj_weight.copy_(
        torch.cat([ours.q_proj.weight, ours.k_proj.weight, ours.v_proj.weight])
    )
    theirs.in_proj_bias.copy_(torch.cat([ours.q_proj.bias, ours.k_proj.bias, ours.v_proj.bias]))
    theirs.out_proj.load_state_dict(ours.o_proj.state_dict())
    x, states = normal(B, S, M, dtype=FLOAT64), normal(B, 5, M, dtype=FLOAT64, seed=6)
    hidden = torch.ones(S, S, dtype=torch.bool).triu(1)
    expected, _ = theirs(x, x, x, attn_mask=hidden, need_weights=False)
    assert_near(ours(x, torch.arange(S)), expected)
    expected, _ = theirs(x, states, states, need_weights=False)
    assert_near(ours(x, torch.arange(S), key_value_states=states), expected)


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("chunks", [(3, 1, 3), (7,), (6, 1)], ids=str)
def test_decode_paths_are_equal(case, chunks):
    x = normal(B, S, M, dtype=FLOAT64)
    first, *others = (
        run_through_cache(
            build_attention(CASES[case], FLOAT64, decode_path=path), x, torch.arange(S), chunks
        )
        for path in decode_paths(CASES[case])
    )
    for other in others:
        assert_near(first, other)


@torch.no_grad()
@pytest.mark.parametrize(
    ("s", "t", "absorbs"),
    [(1, 1, False), (1, 2, True), (1, 50, True), (50, 50, False), (3, 50, True)],
)
def test_latent_attention_takes_the_path_with_fewer_multiplications(s, t, absorbs, monkeypatch):
    # Widths of the paper's proportions: c = 4 d, r = d / 2.
    fields = FIVE["mla"] | {"kv_lora_rank": 32, "qk_rope_head_dim": 4, "v_head_dim": 8}
    module = build_attention(fields)
    taken = []
    for path in ("_absorbed", "_expanded"):
        run = getattr(module, path)
        monkeypatch.setattr(
            module, path, lambda *given, run=run, path=path: taken.append(path) or run(*given)
        )
    cache = module.new_cache(B, 50)
    if t > s:
        module(normal(B, t - s, M), torch.arange(t - s), cache)
    taken.clear()
    module(normal(B, s, M), torch.arange(t - s, t), cache)
    assert taken == ["_absorbed" if absorbs else "_expanded"]


@pytest.fixture
def kernel_calls_of_a_step(monkeypatch):
    """Decode the token after S - 1 others; returns the cache and what the kernel was given."""
    seen = []
    run = torch.nn.functional.scaled_dot_product_attention

    def spy(query, key, value, **given):
        seen.append({"query": query, "key": key, "value": value} | given)
        return run(query, key, value, **given)

    def step(name):
        module = build_attention(FIVE[name])
        cache = module.new_cache(B, S)
        module(normal(B, S - 1, M), torch.arange(S - 1), cache)
        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
        module(normal(B, 1, M), torch.arange(S - 1, S), cache)
        return cache, seen

    return step


@torch.no_grad()
@pytest.mark.parametrize("name", ["mqa", "gqa"])
def test_folded_decoding_never_repeats_a_key_head(name, kernel_calls_of_a_step):
    _, seen = kernel_calls_of_a_step(name)
    groups = FIVE[name]["num_key_value_heads"]
    heads = [(call["query"].shape[1], call["key"].shape[1], call["enable_gqa"]) for call in seen]
    assert heads == [(groups, groups, False)]


@torch.no_grad()
@pytest.mark.parametrize("name", FIVE)
def test_a_step_builds_no_mask_and_reads_the_cache_where_it_lies(name, kernel_calls_of_a_step):
    cache, [given] = kernel_calls_of_a_step(name)
    assert given["attn_mask"] is None
    assert not given["is_causal"]
    stored = {tensor.data_ptr() for tensor in cache.live_tensors()}
    assert {given["key"].data_ptr(), given["value"].data_ptr()} == stored


# Other people's code, with our weights

SHARED = {
    "vocab_size": 61,
    "hidden_size": M,
    "intermediate_size": 33,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
    "rms_norm_eps": 1e-6,
    "bos_token_id": None,
    "eos_token_id": None,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}


def as_transformers_state(model):
    """Our state dict under transformers' names."""
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    state["lm_head.weight"] = state.pop("model.lm_head.weight", model.output_weight)
    return state


@torch.no_grad()
def assert_same_logits(model, theirs):
    theirs.load_state_dict(as_transformers_state(model), strict=True)
    theirs.eval()
    tokens = random_tokens(2, 23)
    ours, expected = model(tokens), theirs(tokens).logits
    assert expected.std() > 1
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    # Their cache and ours, a few tokens at a time.
    cache, past, outputs = model.new_cache(2, 23), None, []
    for start, end in ((0, 20), (20, 21), (21, 22), (22, 23)):
        outputs.append(model(tokens[:, start:end], cache=cache))
        result = theirs(tokens[:, start:end], past_key_values=past, use_cache=True)
        past = result.past_key_values
        torch.testing.assert_close(
            outputs[-1], result.logits, rtol=0, atol=1e-5 * expected.abs().max().item()
        )


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("bias", [False, True], ids=["no_bias", "bias"])
@pytest.mark.parametrize("name", ["mha", "gqa", "mqa"])
def test_logits_equal_transformers_llama_with_the_same_weights(name, bias, tied):
    transformers = pytest.importorskip("transformers")
    fields = FIVE[name] | {"attention_bias": bias}
    model = randomise(build_gpt(fields, tie_word_embeddings=tied, mlp_bias=bias), std=0.3)
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            **SHARED,
            num_key_value_heads=fields["num_key_value_heads"],
            head_dim=8,
            attention_bias=bias,
            mlp_bias=bias,
            tie_word_embeddings=tied,
        )
    )
    assert_same_logits(model, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mha", "gqa"])
def test_logits_with_query_and_key_norms_equal_transformers_qwen3(name):
    transformers = pytest.importorskip("transformers")
    fields = FIVE[name] | {"use_qk_norm": True}
    model = randomise(build_gpt(fields, tie_word_embeddings=False), std=0.3)
    theirs = transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(
            **SHARED,
            num_key_value_heads=fields["num_key_value_heads"],
            head_dim=8,
            tie_word_embeddings=False,
        )
    )
    assert_same_logits(model, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("bias", [False, True], ids=["no_bias", "bias"])
@pytest.mark.parametrize("q_lora_rank", [None, 14], ids=["full_rank_query", "query_latent"])
def test_logits_equal_transformers_deepseek_v3_with_the_same_weights(q_lora_rank, bias):
    transformers = pytest.importorskip("transformers")
    fields = FIVE["mla"] | {"q_lora_rank": q_lora_rank, "attention_bias": bias}
    model = randomise(build_gpt(fields, tie_word_embeddings=False), std=0.3)
    theirs = transformers.DeepseekV3ForCausalLM(
        transformers.DeepseekV3Config(
            **SHARED,
            num_key_value_heads=4,
            kv_lora_rank=fields["kv_lora_rank"],
            q_lora_rank=q_lora_rank,
            qk_nope_head_dim=fields["qk_nope_head_dim"],
            qk_rope_head_dim=fields["qk_rope_head_dim"],
            v_head_dim=fields["v_head_dim"],
            attention_bias=bias,
            rope_interleave=False,
            first_k_dense_replace=2,
            num_mtp_layers=0,
            tie_word_embeddings=False,
        )
    )
    attention = theirs.model.layers[0].self_attn
    assert attention.scaling == pytest.approx((8 + 6) ** -0.5)
    assert_same_logits(model, theirs)
