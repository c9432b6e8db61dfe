import dataclasses
import math

import pytest
import torch
from tiny import CASES, FIVE, M, build_gpt, gpt_config, normal, random_tokens
from torch import nn

from modeling.attention import attention_config_class, attention_names
from modeling.errors import ModelConfigError
from modeling.gpt import GPT

# GPT-2's block, and the first Transformer's activation.
CLASSIC = {
    "norm": "layer_norm",
    "norm_eps": 1e-5,
    "mlp": "gelu",
    "mlp_bias": True,
    "position_embedding": "learned",
}
RELU = CLASSIC | {"mlp": "relu", "mlp_bias": False}


# Initial weights


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("case", CASES)
def test_initial_weights_have_the_stated_deviation_and_residual_projections_a_smaller_one(
    case, tied
):
    layers, std = 3, 0.02
    torch.manual_seed(0)
    fields = CASES[case] | {"hidden_size": 96}
    if "head_dim" in fields:
        fields |= {"head_dim": 32, "v_head_dim": 32}
    else:
        fields |= {"kv_lora_rank": 48, "qk_nope_head_dim": 24, "v_head_dim": 24}
    model = GPT(
        gpt_config(
            fields,
            hidden_size=96,
            intermediate_size=150,
            num_hidden_layers=layers,
            initializer_range=std,
            tie_word_embeddings=tied,
            mlp_bias=True,
        )
    )
    residual = {id(p.weight) for block in model.layers for p in block.residual_projections()}
    assert len(residual) == 2 * layers
    checked = 0
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            is_residual = id(module.weight) in residual
            assert is_residual == name.endswith(("o_proj", "down_proj"))
            expected = std / math.sqrt(2 * layers) if is_residual else std
            # Six standard errors of a standard deviation of so many draws.
            tolerance = 6 * expected / math.sqrt(2 * module.weight.numel())
            assert module.weight.std().item() == pytest.approx(expected, abs=tolerance), name
            mean_tolerance = 6 * expected / math.sqrt(module.weight.numel())
            assert module.weight.mean().item() == pytest.approx(0, abs=mean_tolerance), name
            if getattr(module, "bias", None) is not None:
                assert not module.bias.any(), name
            checked += 1
        elif "norm" in name:
            assert (module.weight == 1).all(), name
    assert checked > 7 * layers


def test_same_seed_gives_the_same_weights_and_another_seed_others():
    first, again, other = (build_gpt("mla", seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embed_tokens.weight"], other["embed_tokens.weight"])


def test_same_seed_gives_the_same_embedding_to_every_attention():
    expected = build_gpt("mha").embed_tokens.weight
    for name in FIVE:
        assert torch.equal(build_gpt(name).embed_tokens.weight, expected), name


# Embeddings and output


@pytest.mark.parametrize("name", FIVE)
def test_tied_output_is_the_embedding_and_untied_is_not(name):
    tied, untied = build_gpt(name), build_gpt(name, tie_word_embeddings=False)
    assert tied.output_weight is tied.embed_tokens.weight
    assert "lm_head.weight" not in tied.state_dict()
    assert untied.output_weight is untied.lm_head.weight
    assert not torch.equal(untied.output_weight, untied.embed_tokens.weight)
    tokens = random_tokens(2, 7)
    for model in (tied, untied):
        logits = model(tokens)
        assert logits.shape == (2, 7, 61)
        expected = model.hidden_states(tokens) @ model.output_weight.t()
        torch.testing.assert_close(logits, expected)
        logits.square().sum().backward()
        assert all(p.grad is not None and p.grad.any() for p in model.parameters())


@torch.no_grad()
def test_modern_block_equals_its_formula():
    model = build_gpt("mla").double()
    block, positions = model.layers[0], torch.arange(7)
    x = normal(3, 7, M, dtype=torch.float64)

    def rms(x, weight):
        return weight * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    middle = x + block.self_attn(rms(x, block.input_layernorm.weight), positions)
    h = rms(middle, block.post_attention_layernorm.weight)
    gate, up, down = (getattr(block.mlp, f"{name}_proj").weight for name in ("gate", "up", "down"))
    gated = h @ gate.t()
    expected = middle + (gated * torch.sigmoid(gated) * (h @ up.t())) @ down.t()
    torch.testing.assert_close(block(x, positions), expected)


@torch.no_grad()
@pytest.mark.parametrize("changes", [CLASSIC, RELU], ids=["gelu", "relu"])
@pytest.mark.parametrize("case", ["mha_no_rope", "mla_no_rope"])
def test_classic_model_equals_its_formula(case, changes):
    model = build_gpt(case, num_hidden_layers=1, **changes).double()
    for parameter in model.parameters():
        parameter.add_(0.1 * normal(*parameter.shape, dtype=torch.float64))
    tokens = random_tokens(3, 7)
    block = model.layers[0]

    def norm(x, module):
        centred = x - x.mean(-1, keepdim=True)
        deviation = (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        return module.weight * centred / deviation + module.bias

    def activation(x):
        return x * (1 + torch.erf(x / 2**0.5)) / 2 if changes["mlp"] == "gelu" else x.clamp(min=0)

    positions = torch.arange(7)
    x = model.embed_tokens.weight[tokens] + model.embed_positions.weight[:7]
    x = x + block.self_attn(norm(x, block.input_layernorm), positions)
    h = norm(x, block.post_attention_layernorm) @ block.mlp.up_proj.weight.t()
    if changes["mlp_bias"]:
        h = h + block.mlp.up_proj.bias
    h = activation(h) @ block.mlp.down_proj.weight.t()
    if changes["mlp_bias"]:
        h = h + block.mlp.down_proj.bias
    expected = norm(x + h, model.norm) @ model.embed_tokens.weight.t()
    torch.testing.assert_close(model(tokens), expected)


@torch.no_grad()
def test_norm_of_half_precision_is_computed_in_float32():
    norm = build_gpt("mha").norm
    x = 300 * normal(3, 7, M, dtype=torch.float16)  # the squares overflow float16
    assert torch.equal(norm(x), norm(x.float()).half())
    assert norm(x).isfinite().all()


# Positions


@torch.no_grad()
def test_positions_are_counted_from_zero_and_go_on_behind_the_cache():
    for name in FIVE:
        model = build_gpt(name)
        tokens = random_tokens(2, 7)
        expected = model(tokens, positions=torch.arange(7))
        assert torch.equal(model(tokens), expected)
        cache = model.new_cache(2, 7)
        model(tokens[:, :4], cache=cache)
        torch.testing.assert_close(model(tokens[:, 4:], cache=cache), expected[:, 4:])


@torch.no_grad()
def test_learned_positions_out_of_range_are_refused():
    model = build_gpt("mla_no_rope", max_position_embeddings=7)
    assert model(random_tokens(1, 7)).isfinite().all()
    with pytest.raises(ModelConfigError, match="are not within the 7 that this model learned"):
        model(random_tokens(1, 8))
    cache = model.new_cache(1, 9)
    model(random_tokens(1, 7), cache=cache)
    with pytest.raises(ModelConfigError, match="not within the 7"):
        model(random_tokens(1, 1), cache=cache)
    with pytest.raises(ModelConfigError, match="not within"):
        model(random_tokens(1, 2), positions=torch.tensor([3, 12]))


@torch.no_grad()
def test_rope_reaches_beyond_the_trained_context():
    model = build_gpt("mla", max_position_embeddings=7)
    assert model(random_tokens(1, 9)).isfinite().all()


@pytest.mark.parametrize("case", ["mha_no_rope", "mla_no_rope"])
def test_model_without_position_information_is_refused_unless_wanted(case):
    nope = gpt_config(case, position_embedding="none")
    with pytest.raises(ModelConfigError, match=r"no position information.*model.allow_nope=true"):
        GPT(nope)
    GPT(gpt_config(case, position_embedding="none", allow_nope=True))


@torch.no_grad()
@pytest.mark.parametrize("name", FIVE)
def test_order_of_the_tokens_matters(name):
    model = build_gpt(name).double()
    tokens = random_tokens(1, 7)
    swapped = tokens[:, [1, 0, *range(2, 7)]]
    assert (model(tokens)[:, -1] - model(swapped)[:, -1]).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("name", FIVE)
def test_left_padded_batch_gives_each_row_the_logits_it_has_alone(name):
    model = build_gpt(name)
    lengths = torch.tensor([9, 6, 2])
    index = torch.arange(9)
    start = 9 - lengths[:, None]
    mask, positions = index >= start, (index - start).clamp(min=0)
    tokens = random_tokens(3, 9)
    whole = model(tokens, positions, attention_mask=mask)
    cache, pieces = model.new_cache(3, 9), []
    for begin, end in ((0, 7), (7, 8), (8, 9)):
        pieces.append(
            model(
                tokens[:, begin:end], positions[:, begin:end], cache, attention_mask=mask[:, :end]
            )
        )
    through_cache = torch.cat(pieces, 1)
    for row, length in enumerate(lengths.tolist()):
        alone = model(tokens[row : row + 1, -length:])
        tolerance = 1e-4 * alone.std().item()
        for output in (whole, through_cache):
            padded = output[row : row + 1, -length:]
            torch.testing.assert_close(padded, alone, rtol=0, atol=tolerance)


# Refusals


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"vocab_size": None}, "model.vocab_size is not set"),
        ({"vocab_size": 1}, "model.vocab_size .1. must be at least 2"),
        ({"max_position_embeddings": 0}, "model.max_position_embeddings .0."),
        ({"hidden_size": 24}, "model.attention.hidden_size .20. must equal model.hidden_size .24."),
        ({"num_attention_heads": 5}, "num_attention_heads .4. must equal model.*heads .5."),
        ({"num_hidden_layers": 0}, "model.num_hidden_layers .0. must be at least 1"),
        ({"intermediate_size": 0}, "model.intermediate_size .0. must be at least 1"),
        ({"mlp": "geglu"}, "model.mlp .'geglu'. must be swiglu, gelu or relu"),
        ({"norm": "batch"}, "model.norm .'batch'. must be rms_norm or layer_norm"),
        ({"position_embedding": "alibi"}, "must be none or learned"),
        ({"norm_eps": 0.0}, "model.norm_eps .0.0. must be in"),
        ({"initializer_range": float("nan")}, "model.initializer_range .nan. must be in"),
        ({"attention": FIVE["mha"] | {"name": "mhaa"}}, "did you mean 'mha'"),
    ],
)
def test_model_refuses_what_cannot_be_built_and_names_it(changes, named):
    config = dataclasses.replace(gpt_config("mha"), **changes)
    with pytest.raises(ModelConfigError, match=named):
        GPT(config)


def test_model_reports_all_problems_at_once():
    with pytest.raises(ModelConfigError) as refused:
        GPT(gpt_config("mha", vocab_size=0, mlp="x", norm_eps=2.0))
    assert len(refused.value.problems) == 3


def test_model_of_an_unknown_attention_lists_those_there_are():
    names = attention_names()
    with pytest.raises(ModelConfigError, match=", ".join(names)):
        build_gpt(FIVE["mha"] | {"name": "linear"})
    assert all(attention_config_class(name) for name in names)


@pytest.mark.slow  # two seconds of tracing
@pytest.mark.parametrize("name", FIVE)
def test_the_loss_compiles_into_one_graph(name):
    tokens = random_tokens(2, 9)
    explained = torch._dynamo.explain(build_gpt(name).loss)(tokens, tokens)
    torch._dynamo.reset()
    assert (explained.graph_count, explained.graph_break_count) == (1, 0), explained.break_reasons
