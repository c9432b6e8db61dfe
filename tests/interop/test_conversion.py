"""One attention made of another's weights: exact where it can be, otherwise the best there is."""

import dataclasses
import math

import pytest
import torch
from exportable import config_of, random_gpt, random_tokens
from torch import nn

import interop.conversion.convert
from interop.conversion.convert import Conversion, convert
from interop.conversion.latent import Projections, factorise
from interop.errors import InteropError
from modeling.attention import GroupedQueryAttentionConfig, LatentAttentionConfig, registry
from modeling.config import GPTConfig, LayersConfig
from modeling.gpt import GPT

M, H, D = 24, 4, 6
# Float64, sums of some dozens of products of numbers around 1.
EXACT = {"rtol": 1e-9, "atol": 1e-9}


def grouped(g, **changes):
    fields = {
        "hidden_size": M,
        "num_attention_heads": H,
        "num_key_value_heads": g,
        "head_dim": D,
        "v_head_dim": D,
        "qk_rope_head_dim": D,
        "rope_theta": 50.0,
    }
    return GroupedQueryAttentionConfig(**(fields | changes))


def latent(c, r, **changes):
    fields = {
        "hidden_size": M,
        "num_attention_heads": H,
        "kv_lora_rank": c,
        "qk_nope_head_dim": D,
        "v_head_dim": D,
        "qk_rope_head_dim": r,
        "rope_theta": 50.0,
    }
    return LatentAttentionConfig(**(fields | changes))


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def inputs(seed=5):
    """Inputs that are larger in some directions than in others."""
    return normal(3, 11, M, seed=seed) * torch.linspace(0.2, 3, M).double()


def moment(x):
    return x.flatten(0, 1).T @ x.flatten(0, 1) / x.flatten(0, 1).shape[0]


def module_of(config, seed=1):
    module = config.build().double()
    for number, parameter in enumerate(module.parameters()):
        parameter.data = 0.3 * normal(*parameter.shape, seed=100 * seed + number)
    return module


def projections_of(module):
    config = module.config
    return Projections(
        module.q_proj.weight.data.view(H, D, M),
        module.k_proj.weight.data.view(config.num_key_value_heads, D, M),
        module.v_proj.weight.data.view(config.num_key_value_heads, -1, M),
        module.o_proj.weight.data.view(M, H, -1),
    )


def without_norm(factors, target, source):
    """The latent attention of the factors, its latents as they are."""
    module = target.build().double()
    heads = (H, source.config.num_key_value_heads, D)
    weights = factors.weights(factors.up, *heads) | {"o_proj.weight": source.o_proj.weight.data}
    module.load_state_dict(weights)
    module.kv_a_layernorm = nn.Identity()
    return module


def assert_same(source, target_config, x, context=8):
    positions = torch.arange(x.shape[1])
    factors = factorise(projections_of(source), source.config, target_config, moment(x), context)
    module = without_norm(factors, target_config, source)
    torch.testing.assert_close(module(x, positions), source(x, positions), **EXACT)


def test_one_key_head_keeps_its_rope_and_its_values_exactly():
    assert_same(module_of(grouped(1)), latent(c=D, r=D), inputs())


def test_heads_that_share_a_key_up_to_a_complex_factor_are_expressed_exactly():
    source = module_of(grouped(4))
    first = source.k_proj.weight.data[:D]
    key = torch.complex(first[: D // 2], first[D // 2 :])
    for head in range(1, 4):
        turned = torch.polar(
            torch.tensor([0.5 + head]).double(), torch.tensor([1.3 * head]).double()
        )
        rows = torch.cat(((turned * key).real, (turned * key).imag))
        source.k_proj.weight.data[head * D : (head + 1) * D] = rows
    assert_same(source, latent(c=M, r=D), inputs())


@pytest.mark.parametrize("g", [4, 2])
def test_without_rope_a_full_rank_is_exact(g):
    source = module_of(grouped(g, qk_rope_head_dim=0))
    assert_same(source, latent(c=M, r=0), inputs())


def test_dimensions_that_are_not_rotated_stay_so():
    source = module_of(grouped(1, qk_rope_head_dim=4))
    assert_same(source, latent(c=D + 2, r=4), inputs())


def test_the_fastest_pairs_are_rotated_at_their_own_frequency():
    """Keys that have nothing but the first pair lose nothing where that alone is rotated."""
    source = module_of(grouped(1))
    rows = torch.zeros(D, dtype=torch.bool)
    rows[[0, D // 2]] = True
    source.k_proj.weight.data[~rows] = 0
    target = latent(c=D, r=2, rope_theta=50.0 ** (2 / D))
    assert_same(source, target, inputs())
    # With two pairs the second frequency is right only if theta is.
    rows[[1, D // 2 + 1]] = True
    source = module_of(grouped(1))
    source.k_proj.weight.data[~rows] = 0
    assert_same(source, latent(c=D, r=4, rope_theta=50.0 ** (4 / D)), inputs())


@pytest.mark.parametrize("c", [3, 10])
def test_the_latent_is_the_best_of_its_rank_for_these_inputs(c):
    source, x = module_of(grouped(4)), inputs()
    factors = factorise(projections_of(source), source.config, latent(c, 2), moment(x), 8)
    rows = x.flatten(0, 1)
    targets = rows @ factors.targets.T
    lost = (targets - rows @ factors.down.T @ factors.up.T).square().sum()
    # Eckart and Young: the rest of the singular values of what is to be expressed.
    assert lost == pytest.approx(float(torch.linalg.svdvals(targets)[c:].square().sum()), rel=1e-9)
    mean_square = (rows @ factors.down.T).square().mean()
    assert mean_square == pytest.approx(1.0, rel=1e-9)


def test_keys_and_values_count_alike_and_each_dimension_by_what_it_does():
    source, x = module_of(grouped(4, qk_rope_head_dim=0)), inputs()
    source.q_proj.weight.data.view(H, D, M)[:, 2] *= 100  # one dimension decides the scores
    factors = factorise(projections_of(source), source.config, latent(8, 0), moment(x), 8)
    targets = (x.flatten(0, 1) @ factors.targets.T).square().mean(0)
    keys, values = targets.view(2, -1)
    assert keys.sum() == pytest.approx(float(values.sum()), rel=1e-9)
    assert keys.view(4, D)[:, 2].sum() > 0.99 * keys.sum()


def loud_queries_and_outputs(g, **changes):
    """Query heads and outputs of very different size, and in other dimensions each."""
    source = module_of(grouped(g, **changes))
    source.q_proj.weight.data *= torch.linspace(0.1, 5, H * D).double()[:, None].roll(7, 0)
    source.o_proj.weight.data *= torch.linspace(0.1, 5, H * D).double().roll(11)
    return source


def energies(source, x):
    """E[(q x)^2] of each dimension of each query head, one by one: [h][d]."""
    rows = x.flatten(0, 1)
    found = [float((rows @ row).square().mean()) for row in source.q_proj.weight.data]
    return [found[head * D : (head + 1) * D] for head in range(H)]


def test_a_dimension_of_a_group_counts_by_the_queries_and_outputs_of_that_group():
    g, x = 2, inputs()
    source = loud_queries_and_outputs(g)
    factors = factorise(projections_of(source), source.config, latent(8, 2), moment(x), 8)
    keys, values = factors.scales.square().view(2, g, D)
    by_head, outputs = energies(source, x), source.o_proj.weight.data.square().sum(0).view(H, D)
    for found, counts in ((keys, by_head), (values, outputs.tolist())):
        expected = torch.tensor(
            [[(counts[2 * n][d] + counts[2 * n + 1][d]) / 2 for d in range(D)] for n in range(g)],
            dtype=torch.float64,
        )
        torch.testing.assert_close(found / found.sum(), expected / expected.sum(), **EXACT)


@pytest.mark.parametrize("rotated", [D, 4])
def test_the_shared_key_is_the_best_for_the_groups_by_how_much_their_queries_count(rotated):
    g, x, context = 2, inputs(), 8
    source = loud_queries_and_outputs(g, qk_rope_head_dim=rotated)
    factors = factorise(projections_of(source), source.config, latent(8, 4), moment(x), context)
    left = (factors.targets / factors.scales[:, None])[: g * D].view(g, D, M)
    rows, by_head = x.flatten(0, 1), energies(source, x)
    for pair in (0, 1):
        one = D - rotated + pair
        other = one + rotated // 2
        counts = [
            sum(by_head[2 * n + head][d] for head in (0, 1) for d in (one, other)) / 2
            for n in range(g)
        ]
        key = source.k_proj.weight.data.view(g, D, M)
        keys = torch.stack(
            [
                count**0.5 * torch.complex(rows @ some[one], rows @ some[other])
                for count, some in zip(counts, key, strict=True)
            ]
        )
        cosines = [math.cos(50.0 ** (-2 * pair / rotated) * n) / (1 + n) for n in range(context)]
        cosine = sum(cosines) / sum(1 / (1 + n) for n in range(context))
        lost = sum(
            count * ((rows @ some[one]).square() + (rows @ some[other]).square()).sum()
            for count, some in zip(counts, left, strict=True)
        )
        # Eckart and Young: one complex key loses the other singular value.
        least = float(torch.linalg.svdvals(keys)[1] ** 2)
        assert float(lost) / cosine**2 == pytest.approx(least, rel=1e-9)


def test_a_mean_over_distances_is_over_the_context_of_the_model(monkeypatch):
    contexts = []

    def spy(projections, now, target, second_moment, context):
        contexts.append(context)
        return factorise(projections, now, target, second_moment, context)

    monkeypatch.setattr(interop.conversion.convert, "factorise", spy)
    converted(gpt(), "mla")
    assert contexts == [16, 16]


def test_what_a_rotation_does_on_average_takes_its_place():
    source, x = module_of(grouped(1)), inputs()
    context = 5
    wide = factorise(projections_of(source), source.config, latent(D, 2), moment(x), context)
    share = torch.tensor([1 / (1 + n) for n in range(context)], dtype=torch.float64)
    scales = wide.scales[:D].view(D)
    for pair in (1, 2):
        frequency = 50.0 ** (-2 * pair / D)
        cosine = torch.tensor(
            [math.cos(frequency * n) for n in range(context)], dtype=torch.float64
        )
        expected = (share * cosine).sum() / share.sum() * source.k_proj.weight.data[pair]
        torch.testing.assert_close(wide.targets[pair] / scales[pair], expected, **EXACT)


@torch.no_grad()
def gpt(name="mha", g=4, **changes):
    attention = grouped(g).settings(name) | changes
    config = GPTConfig(
        name="tiny",
        vocab_size=40,
        max_position_embeddings=16,
        hidden_size=M,
        num_hidden_layers=2,
        num_attention_heads=H,
        intermediate_size=20,
        initializer_range=0.3,
        position_embedding="none" if attention["qk_rope_head_dim"] else "learned",
        attention=attention,
    )
    torch.manual_seed(0)
    return GPT(config).double().eval().requires_grad_(False)


def tokens(n=6, seed=2):
    return torch.randint(40, (n, 16), generator=torch.Generator().manual_seed(seed))


def converted(model, *arguments, calibration=None, **settings):
    config, weights = convert(
        model.config, model.state_dict(), Conversion(*arguments, **settings), calibration
    )
    found = GPT(config).double().eval().requires_grad_(False)
    found.load_state_dict(weights)
    return found


@pytest.mark.parametrize(("asked", "g"), [("mqa", 1), ("gqa", 2)])
def test_heads_are_averaged_within_their_group(asked, g):
    source = gpt(attention_bias=True)
    for parameter in source.parameters():
        parameter.data += 0.1  # biases, too
    settings = {"num_key_value_heads": g} if asked == "gqa" else {}
    found = converted(source, asked, **settings)
    assert found.config.attention["name"] == asked
    for part in ("k", "v"):
        for key in (f"{part}_proj.weight", f"{part}_proj.bias"):
            ours, theirs = (m.layers[1].self_attn.state_dict()[key] for m in (found, source))
            for group in range(g):
                first = group * (H // g) * D
                heads = [theirs[first + n * D : first + (n + 1) * D] for n in range(H // g)]
                expected = sum(heads) / len(heads)
                torch.testing.assert_close(ours[group * D : (group + 1) * D], expected, **EXACT)


def test_heads_that_are_alike_lose_nothing():
    source = gpt()
    for block in source.layers:
        for part in (block.self_attn.k_proj, block.self_attn.v_proj):
            part.weight.data[D:] = part.weight.data[:D].repeat(3, 1)
    found = converted(source, "mqa")
    torch.testing.assert_close(found(tokens()), source(tokens()), **EXACT)
    half = converted(source, "gqa", num_key_value_heads=2)
    again = converted(half, "mqa")  # GQA becomes MQA as MHA does
    torch.testing.assert_close(again(tokens()), source(tokens()), **EXACT)


@pytest.mark.parametrize("name", ["gqa_sinks", "gqa_pattern_and_windows"])
@torch.no_grad()
def test_layers_keep_their_windows_sinks_and_rope(name):
    source = random_gpt(config_of(name))
    for block in source.layers:
        for part in (block.self_attn.k_proj, block.self_attn.v_proj):
            part.weight[8:] = part.weight[:8]
    found = converted(source, "mqa")
    assert {layer.num_key_value_heads for layer in found.attention_configs} == {1}
    text = random_tokens(2, 20)
    torch.testing.assert_close(found(text), source(text), **EXACT)


def test_gqa_has_a_fourth_of_the_heads_where_nothing_else_is_asked_for():
    found = converted(gpt(), "gqa", num_key_value_heads=None)
    assert found.attention_configs[0].num_key_value_heads == 1


@pytest.mark.parametrize("kind", ["mha", "gqa", "mha_no_rope"])
def test_a_model_becomes_latent_and_text_helps(kind):
    changes = {"qk_rope_head_dim": 0} if kind == "mha_no_rope" else {}
    source = gpt(kind, g=2 if kind == "gqa" else 4, **changes)
    # Inputs of attention that are far from being alike in all directions.
    source.embed_tokens.weight.data *= torch.linspace(0.05, 3, M).double()
    expected = source(tokens())

    def error(calibration, **settings):
        found = converted(source, "mla", calibration=calibration, **settings)
        assert found.config.attention["name"] == ("mla" if source_has_rope else "mla_no_rope")
        return float((found(tokens()) - expected).square().mean())

    source_has_rope = kind != "mha_no_rope"
    r = {"qk_rope_head_dim": 4} if source_has_rope else {}
    drawn, with_text = (error(text, kv_lora_rank=10, **r) for text in (None, tokens(64, seed=9)))
    more = error(tokens(64, seed=9), kv_lora_rank=20, **r)
    assert more < with_text < drawn < float(expected.square().mean())


def test_a_wide_latent_without_rope_loses_only_what_its_norm_does():
    source = gpt("mha_no_rope", qk_rope_head_dim=0)
    found = converted(source, "mla", kv_lora_rank=M, calibration=tokens(64, seed=9))
    expected = source(tokens())
    assert (found(tokens()) - expected).square().mean() < 0.1 * expected.var()


def test_what_expands_the_latents_is_fitted_to_those_behind_their_norm():
    source, text = gpt(), tokens(64, seed=9)
    found = converted(source, "mla", kv_lora_rank=10, calibration=text)
    x = source.layers[0].input_layernorm(source.embed_tokens(text)).flatten(0, 1)
    attention, before = found.layers[0].self_attn, source.layers[0].self_attn
    normalised = attention.kv_a_layernorm(attention.kv_a_proj_with_mqa(x)[:, :10])
    values = attention.kv_b_proj(normalised).view(-1, H, 2 * D)[..., D:].flatten(1)
    missed = before.v_proj(x) - values
    # The normal equations: what is missed has nothing to do with the latents.
    scale = float((values.T @ normalised).abs().max())
    assert float((missed.T @ normalised).abs().max()) < 1e-6 * scale


def test_defaults_are_those_of_the_latent_attention_of_the_same_heads():
    attention = converted(gpt(), "mla").attention_configs[0]
    assert (attention.kv_lora_rank, attention.qk_rope_head_dim) == (4 * D, 2)
    assert attention.qk_nope_head_dim == attention.v_head_dim == D
    assert attention.rope_theta == pytest.approx(50.0 ** (2 / D))


def test_the_same_weights_come_out_each_time():
    first, second = (converted(gpt(), "mla").state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    source = gpt()
    untouched = {key: tensor.clone() for key, tensor in source.state_dict().items()}
    converted(source, "mla")
    assert all(torch.equal(untouched[k], t) for k, t in source.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "asked", "message"),
    [
        ({}, {"attention": "gqa", "num_key_value_heads": 3}, "cannot make 3 key-value heads of 4"),
        ({}, {"attention": "gqa", "num_key_value_heads": 4}, "cannot make 4 key-value heads of 4"),
        ({"attention_bias": True}, {"attention": "mla"}, "attention_bias"),
        ({"use_qk_norm": True}, {"attention": "mla"}, "use_qk_norm"),
        ({}, {"attention": "mla", "qk_rope_head_dim": 8}, "from 2 to 6"),
        ({}, {"attention": "mla", "qk_rope_head_dim": 0}, "from 2 to 6"),
        ({}, {"attention": "mla", "qk_rope_head_dim": 3}, "must be even"),
        ({}, {"attention": "mla", "kv_lora_rank": 25}, "must not exceed 24"),
        ({"qk_rope_head_dim": 0}, {"attention": "mla", "qk_rope_head_dim": 2}, "from 0 to 0"),
        (
            {"layers": {"name": "window", "window": 3}},
            {"attention": "mla"},
            "layers=window: .*with layers=uniform, or convert=gqa",
        ),
        ({"layers": {"share": "pairs"}}, {"attention": "gqa"}, "layers.share=pairs: .*only Gemma"),
    ],
)
def test_what_cannot_be_converted_is_refused(changes, asked, message):
    layers = changes.get("layers", {})
    changes = {key: value for key, value in changes.items() if key != "layers"}
    source = gpt("mha_no_rope" if changes.get("qk_rope_head_dim") == 0 else "mha", **changes)
    source.config.layers = LayersConfig(**layers)
    with pytest.raises(InteropError, match=message) as caught:
        convert(source.config, source.state_dict(), Conversion(**asked))
    assert "\n" not in str(caught.value)


def test_a_latent_attention_is_not_converted_again():
    found = converted(gpt(), "mla")
    with pytest.raises(InteropError, match="not attention=mla"):
        converted(found, "gqa")


def test_an_attention_of_ones_own_is_not_taken_for_another(monkeypatch):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Gated(GroupedQueryAttentionConfig):
        pass

    monkeypatch.setitem(registry._REGISTRY, "gated", Gated)
    config = dataclasses.replace(gpt().config, attention=gpt().config.attention | {"name": "gated"})
    for asked in ("mla", "mqa"):
        with pytest.raises(InteropError, match="not attention=gated"):
            convert(config, gpt().state_dict(), Conversion(asked))


@pytest.mark.parametrize("part", ["q", "k", "v", "o"])
def test_projections_of_zeros_make_no_number_that_is_none(part):
    source = gpt()
    getattr(source.layers[1].self_attn, f"{part}_proj").weight.data.zero_()
    found = converted(source, "mla", calibration=tokens(16))
    assert bool(found(tokens()).isfinite().all())


def test_the_default_rank_of_one_key_head_is_all_that_it_has():
    assert converted(gpt("mqa", g=1), "mla").attention_configs[0].kv_lora_rank == 2 * D


@pytest.mark.parametrize("asked", ["mqa", "mla"])
def test_what_is_computed_from_narrow_weights_is_not_rounded_to_them(asked):
    source = gpt().bfloat16()
    _, weights = convert(source.config, source.state_dict(), Conversion(asked))
    name = "layers.0.self_attn." + ("k_proj.weight" if asked == "mqa" else "kv_b_proj.weight")
    assert weights[name].dtype == torch.float32
    assert not torch.equal(weights[name], weights[name].bfloat16().float())
