"""Documents packed into one window, each attending to itself only."""

import itertools

import pytest
import torch
from tiny import (
    CASES,
    FIVE,
    B,
    M,
    assert_near,
    build_attention,
    build_gpt,
    decode_paths,
    gpt_config,
    normal,
    random_tokens,
    randomise,
    reference,
    run_through_cache,
)

import modeling.gpt
from modeling.attention import ForwardPass
from modeling.config import SamplingSettings
from modeling.documents import document_starts
from modeling.errors import ModelConfigError
from modeling.generate import generate, next_token
from modeling.kv_cache import Held

END = 60
LENGTH = 17
# Where each row has its end tokens: an empty document, one of one token, a whole row, no end.
ENDS = ([3, 8, 9, 14], [0, 11, 13], [16], [])
CHUNKINGS = ((LENGTH,), (1,) * LENGTH, (5, 4, 1, 1, 6), (4, 8, 2, 3))


def packed(ends=ENDS, length=LENGTH, seed=3):
    """Random tokens with end tokens only at the given places, [rows, length]."""
    tokens = random_tokens(len(ends), length, vocab_size=END, seed=seed)
    for row, places in zip(tokens, ends, strict=True):
        row[places] = END
    return tokens


def documents(ends, length=LENGTH):
    """(first, one past the last) of each document of a row, its end token included."""
    borders = [0, *(place + 1 for place in ends), length]
    return [(first, last) for first, last in itertools.pairwise(borders) if first < last]


def naive_mask(tokens):
    """[b, s, s]: key j and query i are in one document if no end token is at j or up to i - 1."""
    b, s = tokens.shape
    mask = torch.zeros(b, s, s, dtype=torch.bool)
    for row in range(b):
        for i in range(s):
            for j in range(i + 1):
                mask[row, i, j] = END not in tokens[row, j:i].tolist()
    return mask


def build(name, masked=True, **changes):
    """A model in float64 that keeps documents apart, or the same weights in one that does not."""
    config = {"intra_document_mask": masked, "end_of_document_id": END} | changes
    return build_gpt(name, **config).double()


def cached(model, tokens, chunks):
    cache = model.new_cache(*tokens.shape)
    return torch.cat([model(piece, cache=cache) for piece in tokens.split(list(chunks), 1)], 1)


# The mask


def mask_of(starts, num_keys, **held):
    """What the layers of a pass are given that hold the last `num_keys` tokens."""
    keys = torch.zeros(1, 1, num_keys, 1)
    return ForwardPass(None, starts).mask(Held(entries={"key": keys}, **held))


@pytest.mark.parametrize("seed", range(5))
def test_document_mask_equals_the_naive_one_whole_and_in_chunks(seed):
    tokens = random_tokens(B, LENGTH, seed=seed)
    tokens[random_tokens(B, LENGTH, vocab_size=4, seed=seed + 100) == 0] = END
    expected = naive_mask(tokens)
    for chunks in CHUNKINGS:
        past, start = 0, None
        for piece in tokens.split(list(chunks), 1):
            starts, start = document_starts(piece, END, past, start)
            last = past + piece.shape[1]
            mask = mask_of(starts, last)
            assert mask.shape == (B, piece.shape[1], last)
            causal = torch.ones(mask.shape[1:], dtype=torch.bool).tril(past)
            assert torch.equal(mask & causal, expected[:, past:last, :last])
            # Of a ring that is full, the last 3 tokens in the order of their slots.
            if last > 3:
                ring = mask_of(starts, 3, first=last - 3, oldest_slot=last % 3)
                slots = [
                    index
                    for slot in range(3)
                    for index in range(last - 3, last)
                    if index % 3 == slot
                ]
                assert torch.equal(ring, mask[..., slots])
            past = last


def test_document_starts_of_a_known_text():
    tokens = torch.tensor([[5, END, 7, END, END, 8], [5, 6, 7, 8, 9, END]])
    starts, start = document_starts(tokens, END)
    assert starts.tolist() == [[0, 0, 2, 2, 4, 5], [0] * 6]
    assert start.tolist() == [5, 6]


def test_document_starts_of_no_tokens_change_nothing():
    start = torch.tensor([1, 3])
    starts, after = document_starts(torch.zeros(2, 0, dtype=torch.long), END, 3, start)
    assert starts.shape == (2, 0)
    assert mask_of(starts, 3).shape == (2, 0, 3)
    assert torch.equal(after, start)


# Attention with a mask for each query


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_attention_within_documents_equals_the_reference(case):
    tokens = packed()[:, :9]
    mask = naive_mask(tokens)
    mask[1, 4] = False  # a query that sees nothing
    x = normal(*tokens.shape, M, dtype=torch.float64)
    positions = torch.arange(9)
    expected = None
    for path in decode_paths(CASES[case]):
        module = build_attention(CASES[case], torch.float64, decode_path=path)
        if expected is None:
            weights = module.state_dict()
            expected = reference(module.config, weights, x, positions, attention_mask=mask)
            assert_near(module(x, positions, attention_mask=mask), expected)
        # What the mask allows after the query, causality hides.
        later = mask | ~torch.ones(9, 9, dtype=torch.bool).tril()
        for chunks in ((1,) * 9, (5, 4), (2, 3, 1, 3)):
            assert_near(run_through_cache(module, x, positions, chunks, later), expected)


@torch.no_grad()
@pytest.mark.parametrize("name", FIVE)
def test_attention_to_other_states_with_a_mask_for_each_query_equals_the_reference(name):
    module = build_attention(FIVE[name], torch.float64)
    x, states = (normal(B, s, M, dtype=torch.float64, seed=s) for s in (7, 5))
    given = {
        "attention_mask": random_tokens(B, 7, 5, vocab_size=2).bool(),
        "key_value_states": states,
    }
    expected = reference(module.config, module.state_dict(), x, torch.arange(7), **given)
    assert_near(module(x, torch.arange(7), **given), expected)


# The model


@torch.no_grad()
@pytest.mark.parametrize("name", FIVE)
def test_document_in_a_window_has_the_logits_it_has_alone(name):
    model, tokens = build(name), packed()
    window = model(tokens)
    for row, ends in enumerate(ENDS):
        for first, last in documents(ends):
            # RoPE sees distances only; a learned position is that of the window.
            learned = model.config.position_embedding == "learned"
            positions = torch.arange(first, last) if learned else None
            alone = model(tokens[row : row + 1, first:last], positions)
            assert_near(window[row : row + 1, first:last], alone)


@torch.no_grad()
@pytest.mark.parametrize("name", FIVE)
def test_a_token_of_an_earlier_document_changes_later_ones_only_without_the_mask(name):
    tokens = packed(ENDS[:2])
    changed = tokens.clone()
    changed[0, 5] = (tokens[0, 5] + 1) % END
    masked, plain = build(name), build(name, masked=False)
    difference = (masked(changed) - masked(tokens)).abs().amax(-1)  # [b, s]
    assert (difference[0, 5:9] > 1e-4).all()  # its own document's, which ends at 8
    assert not difference[0, :5].any()
    assert not difference[0, 9:].any()
    assert not difference[1].any()
    difference = (plain(changed) - plain(tokens)).abs().amax(-1)
    assert (difference[0, 5:] > 1e-4).all()


@torch.no_grad()
@pytest.mark.parametrize("name", FIVE)
def test_documents_through_the_cache_equal_the_full_pass(name):
    tokens = packed()
    for path in decode_paths(FIVE[name]):
        model = build(FIVE[name] | {"decode_path": path})
        full = model(tokens)
        for chunks in CHUNKINGS:
            assert_near(cached(model, tokens, chunks), full)


@torch.no_grad()
@pytest.mark.parametrize("name", FIVE)
def test_left_padded_documents_equal_each_row_alone(name):
    model = build(name)
    tokens = packed()
    lengths = torch.tensor([17, 9, 12, 3])
    index = torch.arange(LENGTH)
    begin = LENGTH - lengths[:, None]
    mask, positions = index >= begin, (index - begin).clamp(min=0)
    for padding in (END, 7):  # some pad with the end token
        tokens[~mask] = padding
        pieces, cache = [], model.new_cache(*tokens.shape)
        for first, last in ((0, 9), (9, 10), (10, 17)):
            given = tokens[:, first:last], positions[:, first:last], cache, mask[:, :last]
            pieces.append(model(*given))
        each_query = mask[:, None].expand(-1, LENGTH, -1)
        outputs = (
            model(tokens, positions, attention_mask=mask),
            model(tokens, positions, attention_mask=each_query),
            torch.cat(pieces, 1),
        )
        for row, length in enumerate(lengths.tolist()):
            alone = model(tokens[row : row + 1, -length:])
            for output in outputs:
                assert_near(output[row : row + 1, -length:], alone)


@pytest.mark.parametrize("name", FIVE)
def test_documents_give_the_gradients_of_each_alone(name):
    model, tokens = build(name).train(), packed()
    positions = torch.arange(LENGTH)
    weighting = normal(*tokens.shape, 61, dtype=torch.float64, seed=9)

    def gradients(total):
        model.zero_grad()
        total.backward()
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    together = gradients((model(tokens, positions) * weighting).sum())
    alone = gradients(
        sum(
            (
                model(tokens[row : row + 1, first:last], positions[first:last])
                * weighting[row, first:last]
            ).sum()
            for row, ends in enumerate(ENDS)
            for first, last in documents(ends)
        )
    )
    for key, gradient in together.items():
        assert gradient.any(), key
        assert_near(gradient, alone[key])


@torch.no_grad()
@pytest.mark.parametrize("name", FIVE)
def test_text_generated_over_the_end_of_a_document_equals_text_without_a_cache(name):
    # With a vocabulary this small every few tokens end a document.
    changes = {"vocab_size": 7, "end_of_document_id": 3, "tie_word_embeddings": False}
    model = randomise(build(name, **changes), std=1.0)
    prompt = random_tokens(4, 5, vocab_size=7)
    settings = SamplingSettings(temperature=5.0, top_p=1.0)
    tokens, generator = prompt, torch.Generator().manual_seed(settings.seed)
    for _ in range(30):
        chosen = next_token(model(tokens)[:, -1], settings, generator)
        tokens = torch.cat((tokens, chosen[:, None]), 1)
    assert (tokens[:, 5:-1] == 3).sum() > 4
    produced = torch.stack(list(generate(model, prompt, 30, settings)), 1)
    assert torch.equal(produced, tokens[:, 5:])


@torch.no_grad()
def test_model_without_the_option_builds_no_mask(monkeypatch):
    def fail(*arguments):
        raise AssertionError("a mask was built")

    seen = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def spy(*arguments, attn_mask, is_causal, **given):
        seen.append((attn_mask, is_causal))
        return attend(*arguments, attn_mask=attn_mask, is_causal=is_causal, **given)

    monkeypatch.setattr(modeling.gpt, "document_starts", fail)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    model, tokens = build("mha", masked=False), packed()
    cache = model.new_cache(*tokens.shape)
    model(tokens)
    model(tokens, cache=cache)
    assert seen == [(None, True)] * 4
    assert cache.document_start is None
    with pytest.raises(AssertionError, match="a mask was built"):
        build("mha")(tokens)


def test_mask_is_built_once_for_all_layers(monkeypatch):
    masks, mask = [], ForwardPass.mask
    monkeypatch.setattr(ForwardPass, "mask", lambda *given: masks.append(mask(*given)) or masks[-1])
    build("mla", num_hidden_layers=3)(packed())
    assert len(masks) == 3
    assert masks[0] is masks[1] is masks[2]


# The cache


@torch.no_grad()
def test_cache_knows_where_each_rows_document_starts_and_weighs_the_same():
    model, tokens = build("gqa"), packed()
    cache = model.new_cache(*tokens.shape)
    num_bytes = cache.num_bytes()
    model(tokens[:, :12], cache=cache)
    assert cache.document_start.tolist() == [10, 12, 0, 0]
    assert cache.num_bytes() == num_bytes
    cache.reset()
    assert cache.document_start is None
    assert_near(model(tokens, cache=cache), model(tokens))


@torch.no_grad()
def test_truncate_to_before_a_rows_document_is_refused():
    model, tokens = build("gqa"), packed()
    cache = model.new_cache(*tokens.shape)
    expected = model(tokens, cache=cache)
    message = r"truncate to 14 tokens: a row's document starts at token 17.* is not remembered"
    with pytest.raises(ValueError, match=message):
        cache.truncate(14)
    assert cache.seen == LENGTH

    cache.reset()
    model(tokens[:, :16], cache=cache)
    cache.truncate(15)
    assert_near(model(tokens[:, 15:], cache=cache), expected[:, 15:])
    for length in (-1, 18):
        with pytest.raises(ValueError, match="cannot truncate a cache of 17 tokens"):
            cache.truncate(length)


@torch.no_grad()
def test_tokens_that_do_not_fit_leave_the_cache_as_it_was():
    model, tokens = build("mla"), packed()
    cache = model.new_cache(4, LENGTH - 1)
    model(tokens[:, :8], cache=cache)
    start = cache.document_start
    with pytest.raises(ValueError, match="make it longer"):
        model(tokens[:, 8:], cache=cache)
    assert cache.document_start is start
    assert_near(model(tokens[:, 8:16], cache=cache), model(tokens)[:, 8:16])


# Refusals


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"end_of_document_id": None}, "model.end_of_document_id is not set, and model.intra_doc"),
        ({"end_of_document_id": -1}, "model.end_of_document_id .-1. must be at least 0"),
        ({"end_of_document_id": 61}, "end_of_document_id .61. must be .* below vocab_size .61."),
    ],
)
def test_model_refuses_an_end_of_document_that_is_no_token(changes, named):
    with pytest.raises(ModelConfigError, match=named):
        build("mha", **changes)


def test_end_of_document_is_checked_before_the_vocabulary_is_known():
    config = gpt_config("mha", vocab_size=None, end_of_document_id=-1)
    assert any("end_of_document_id" in problem for problem in config.problems())
    assert gpt_config("mha", vocab_size=None, end_of_document_id=99).problems() == []
