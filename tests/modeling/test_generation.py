"""Text through the cache: the same as without it, and only what the settings allow."""

import pytest
import torch
from tiny import CASES, FIVE, B, assert_near, build_gpt, decode_paths, random_tokens, randomise

import modeling.attention.grouped_query
import modeling.attention.latent
import modeling.generate
import modeling.gpt
import modeling.rope
from modeling.attention.kernel import attend
from modeling.config import SamplingSettings
from modeling.errors import ModelConfigError
from modeling.generate import Prompt, generate, generate_text, left_pad, next_token, prefill
from modeling.gpt import GPT
from modeling.kv_cache import LayerCache
from modeling.linear import linear
from modeling.rope import apply_rotary

GREEDY = SamplingSettings(temperature=0.0)
LENGTH = 17
PREFILLS = ((1,), (7,), (LENGTH,), (2, 3, 4), (5, 6))
LOGIT_GAP = 1e-4


@torch.no_grad()
def largest_gap(model, tokens, prefill):
    """Largest difference of logits with and without a cache, in their standard deviations."""
    cache = model.new_cache(*tokens.shape)
    sizes = [*prefill, *[1] * (tokens.shape[1] - sum(prefill))]
    pieces = [model(piece, cache=cache) for piece in tokens.split(sizes, dim=1)]
    full = model(tokens)
    return ((torch.cat(pieces, 1) - full).abs().max() / full.std()).item()


@torch.no_grad()
def greedy_without_cache(model, prompt, count):
    tokens = prompt
    for _ in range(count):
        tokens = torch.cat((tokens, model(tokens)[:, -1:].argmax(-1)), 1)
    return tokens[:, prompt.shape[1] :]


def text(model, prompt, count, settings=GREEDY, **given):
    return torch.stack(list(generate(model, prompt, count, settings, **given)), 1)


# G1: cached equals uncached


@pytest.mark.parametrize("batch", [1, B])
@pytest.mark.parametrize("case", CASES)
def test_logits_through_the_cache_equal_the_full_pass(case, batch):
    tokens = random_tokens(batch, LENGTH)
    for path in decode_paths(CASES[case]):
        model = build_gpt(CASES[case] | {"decode_path": path})
        for sizes in PREFILLS if path == "auto" else PREFILLS[-1:]:
            gap = largest_gap(model, tokens, sizes)
            assert gap <= LOGIT_GAP, (path, sizes)


@pytest.mark.parametrize("name", FIVE)
def test_greedy_text_equals_greedy_text_without_a_cache(name):
    # Large untied weights, or the likeliest next token would be the same one over and over.
    model = randomise(build_gpt(name, tie_word_embeddings=False), std=1.0)
    for batch, length in ((1, 1), (3, 7)):
        prompt = random_tokens(batch, length)
        expected = greedy_without_cache(model, prompt, 25)
        assert torch.equal(text(model, prompt, 25), expected)
        assert len(expected.unique()) > 5


@pytest.mark.parametrize("name", FIVE)
@pytest.mark.parametrize("cache_dtype", [None, torch.float64], ids=str)
def test_greedy_text_is_the_same_on_every_path_and_from_a_wider_cache(name, cache_dtype):
    prompt, written = random_tokens(3, 7), []
    for path in decode_paths(FIVE[name]):
        model = build_gpt(FIVE[name] | {"decode_path": path}, tie_word_embeddings=False)
        written.append(text(randomise(model, std=1.0), prompt, 12, cache_dtype=cache_dtype))
        assert torch.equal(written[-1], written[0])
    assert torch.equal(written[0], greedy_without_cache(model, prompt, 12))


# Largest difference of logits, in their standard deviations; measured: 0.005, 0.02 and 0.07.
NARROW = {torch.float16: 0.02, torch.bfloat16: 0.08, torch.int8: 0.2}


@torch.no_grad()
@pytest.mark.parametrize("cache_dtype", NARROW, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_logits_through_a_narrow_cache_are_close(case, cache_dtype):
    model, tokens = build_gpt(case), random_tokens(B, LENGTH)
    cache = model.new_cache(B, LENGTH, cache_dtype)
    pieces = [model(piece, cache=cache) for piece in tokens.split((5, 6, *[1] * 6), dim=1)]
    full = model(tokens)
    gap = ((torch.cat(pieces, 1) - full).abs().max() / full.std()).item()
    assert 0 < gap < NARROW[cache_dtype]


def test_generated_text_is_what_the_cache_of_that_dtype_gives(monkeypatch):
    made, new_cache = [], GPT.new_cache
    monkeypatch.setattr(GPT, "new_cache", lambda *given: made.append(new_cache(*given)) or made[-1])
    model = randomise(build_gpt("gqa", tie_word_embeddings=False), std=1.0)
    for dtype in (torch.int8, torch.bfloat16, None):
        written = text(model, random_tokens(2, 5), 9, cache_dtype=dtype)
        cache = made[-1]
        assert {layer.dtype for layer in cache.layers} == {dtype or torch.float32}
        assert (cache.max_length, cache.seen) == (14, 13)
        cache.reset()
        logits = model(random_tokens(2, 5), cache=cache)[:, -1]
        for token in written.unbind(1):
            assert torch.equal(logits.argmax(-1), token)
            if cache.seen < 14:
                logits = model(token[:, None], cache=cache)[:, -1]


# Prompts of different lengths

END = 5  # of a document
RAGGED = {name: {"attention": name} for name in FIVE} | {
    "learned_positions": {"attention": "gqa", "position_embedding": "learned"},
    "documents": {"attention": "gqa", "intra_document_mask": True, "end_of_document_id": END},
    "documents_latent": {"attention": "mla", "intra_document_mask": True, "end_of_document_id": 0},
}


@pytest.mark.parametrize("lengths", [(4, 9, 1), (6, 6)], ids=str)
@pytest.mark.parametrize("kind", RAGGED)
def test_prompts_of_different_lengths_give_the_text_of_each_alone(kind, lengths, monkeypatch):
    monkeypatch.setattr(modeling.generate, "PREFILL_CHUNK", 5)
    model = randomise(build_gpt(**RAGGED[kind], tie_word_embeddings=False), std=1.0)
    prompts = [random_tokens(n, seed=n).tolist() for n in lengths]
    prompts[0][1:2] = [model.config.end_of_document_id or 0]
    padded = left_pad(prompts)
    together = text(model, padded, 10)
    garbage = torch.where(padded.is_real, padded.tokens, random_tokens(*padded.tokens.shape))
    assert torch.equal(text(model, Prompt(garbage, padded.is_real), 10), together)
    for row, prompt in enumerate(prompts):
        assert torch.equal(together[row], text(model, torch.tensor([prompt]), 10)[0])
    assert len(together.unique()) > 5


def test_left_padded_prompts_end_in_the_last_column():
    tokens, is_real = left_pad([[7, 8, 9], [], [4]])
    assert tokens.dtype == torch.long
    assert is_real.tolist() == [[True] * 3, [False] * 3, [False, False, True]]
    assert tokens[is_real].tolist() == [7, 8, 9, 4]
    assert left_pad([]).tokens.shape == (0, 0)


@pytest.mark.parametrize("prompts", [[[7, 8], []], [[]], []], ids=str)
def test_a_padded_prompt_without_a_token_is_refused(prompts):
    with pytest.raises(ModelConfigError, match="the prompt is empty; give at least one token"):
        list(generate(build_gpt("mha"), left_pad(prompts), 3, GREEDY))


def test_padding_may_be_any_token():
    tokens, is_real = left_pad([[7, 8, 9], [4]])
    expected = text(build_gpt("mha"), Prompt(tokens, is_real), 3)
    anything = tokens.masked_fill(~is_real, -100)
    assert torch.equal(text(build_gpt("mha"), Prompt(anything, is_real), 3), expected)


def test_sampled_text_of_a_batch_is_reproducible_by_its_seed():
    model = build_gpt("mla")
    prompt = left_pad([[3, 1, 4, 1, 5], [9, 2], [6]])
    first, again, other = (
        text(model, prompt, 20, SamplingSettings(temperature=1.0, seed=seed), cache_dtype=dtype)
        for seed, dtype in ((5, None), (5, torch.float64), (6, None))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len({tuple(row) for row in first.tolist()}) == 3


# A prompt in chunks


@pytest.mark.parametrize("lengths", [(11, 11), (11, 3)], ids=["whole", "padded"])
@pytest.mark.parametrize("case", CASES)
def test_a_prompt_in_chunks_equals_one_pass(case, lengths):
    model = build_gpt(case).double()
    tokens, mask = left_pad([random_tokens(n, seed=n).tolist() for n in lengths])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    given = {"positions": positions, "attention_mask": mask} if min(lengths) < 11 else {}
    with torch.no_grad():
        expected = model(tokens, **given)[:, -1]
    for chunk in (1, 2, 3, 5, 100):
        cache = model.new_cache(2, 11)
        assert_near(prefill(model, tokens, cache, chunk=chunk, **given), expected)
        assert cache.seen == 11
        # Behind what is there.
        cache.truncate(4)
        rest = {"positions": positions[:, 4:], "attention_mask": mask} if given else {}
        assert_near(prefill(model, tokens[:, 4:], cache, chunk=chunk, **rest), expected)


def test_a_prompt_is_fed_in_chunks_and_only_its_last_token_gets_logits(monkeypatch):
    fed, rows, hidden_states = [], [], GPT.hidden_states

    def spy(self, tokens, *given):
        fed.append(tokens.shape[1])
        return hidden_states(self, tokens, *given)

    monkeypatch.setattr(GPT, "hidden_states", spy)
    monkeypatch.setattr(modeling.gpt, "linear", lambda x, w: rows.append(x.shape) or linear(x, w))
    monkeypatch.setattr(modeling.generate, "PREFILL_CHUNK", 4)
    model = build_gpt("gqa")
    model.next_logits(random_tokens(3, 7))
    assert rows == [(3, 20)]
    fed.clear(), rows.clear()
    prefill(model, random_tokens(3, 11), model.new_cache(3, 11), chunk=4)
    assert (fed, rows) == ([4, 4, 3], [(3, 20)])
    fed.clear(), rows.clear()
    text(model, random_tokens(3, 11), 6)
    # The last of the six is not fed.
    assert fed[-5:] == [1] * 5
    assert sum(fed) == 16
    assert rows == [(3, 20)] * 6


def shift_decoding_positions(monkeypatch):
    whole = GPT.hidden_states

    def shifted(self, tokens, positions=None, cache=None, attention_mask=None):
        if cache is not None and cache.seen:
            positions = torch.arange(tokens.shape[1]) + cache.seen + 1
        return whole(self, tokens, positions, cache, attention_mask)

    monkeypatch.setattr(GPT, "hidden_states", shifted)


def hold_decoding_positions(monkeypatch):
    whole = GPT.hidden_states

    def held(self, tokens, positions=None, cache=None, attention_mask=None):
        return whole(self, tokens, torch.arange(tokens.shape[1]), cache, attention_mask)

    monkeypatch.setattr(GPT, "hidden_states", held)


def skip_causal_mask_behind_a_cache(monkeypatch):
    def blind(query, key, value, *, causal, **given):
        return attend(query, key, value, causal=causal and query.shape[2] == key.shape[2], **given)

    monkeypatch.setattr(modeling.attention.kernel, "attend", blind)


def rotate_cached_keys_again(monkeypatch):
    update = LayerCache.update

    def rotate_and_update(self, positions=None, **new):
        name = next(iter(new))
        rotary = self.tensors[name][:, :, : self.seen, -{"key": 8, "latent": 6}[name] :]
        rotary.copy_(apply_rotary(rotary, torch.arange(rotary.shape[2]), 10000.0))
        return update(self, positions, **new)

    monkeypatch.setattr(LayerCache, "update", rotate_and_update)


def rotate_what_is_cached_twice(monkeypatch):
    def twice(x, positions, theta, **back):
        once = apply_rotary(x, positions, theta)
        # Keys have fewer heads than queries here.
        decoding = int(positions.index.min()) > 0
        return apply_rotary(once, positions, theta) if decoding and x.shape[1] < 4 else once

    monkeypatch.setattr(modeling.rope, "apply_rotary", twice)


def align_causal_mask_top_left(monkeypatch):
    def visible(s, t, causal, attention_mask, device):
        return torch.ones(s, t, dtype=torch.bool).tril()[None, None]

    monkeypatch.setattr(modeling.attention.kernel, "_visible", visible)


FAULTS = (
    shift_decoding_positions,
    hold_decoding_positions,
    skip_causal_mask_behind_a_cache,
    rotate_cached_keys_again,
    rotate_what_is_cached_twice,
    align_causal_mask_top_left,
)
WITH_FEW_ROTATED_KEY_HEADS = ("mqa", "gqa", "mla")


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        (name, fault)
        for fault in FAULTS
        for name in FIVE
        if not (fault is rotate_cached_keys_again and name == "mla_no_rope")
        and not (fault is rotate_what_is_cached_twice and name not in WITH_FEW_ROTATED_KEY_HEADS)
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_comparison_of_logits_notices_a_planted_fault(name, fault, monkeypatch):
    model, tokens = build_gpt(name), random_tokens(B, LENGTH)
    assert largest_gap(model, tokens, (5, 6)) <= LOGIT_GAP
    fault(monkeypatch)
    assert largest_gap(model, tokens, (5, 6)) > 100 * LOGIT_GAP


def test_second_call_is_not_affected_by_the_first():
    model, prompt = build_gpt("mla"), random_tokens(2, 5)
    settings = SamplingSettings(temperature=1.0, seed=3)
    first = text(model, prompt, 9, settings)
    text(model, random_tokens(3, 8, seed=9), 4)
    assert torch.equal(text(model, prompt, 9, settings), first)


def test_two_interleaved_calls_do_not_meet():
    model, prompts = build_gpt("gqa"), [random_tokens(1, 5), random_tokens(1, 5, seed=8)]
    alone = [text(model, prompt, 9) for prompt in prompts]
    both = zip(*(generate(model, prompt, 9, GREEDY) for prompt in prompts), strict=True)
    for i, column in enumerate(zip(*both, strict=True)):
        assert torch.equal(torch.stack(column, 1), alone[i])


# Randomness


def test_temperature_zero_is_the_likeliest_token_for_any_seed():
    model, prompt = build_gpt("gqa"), random_tokens(2, 5)
    expected = greedy_without_cache(model, prompt, 9)
    for seed in (0, 1, 77):
        assert torch.equal(
            text(model, prompt, 9, SamplingSettings(temperature=0, seed=seed)), expected
        )


def test_same_seed_gives_the_same_text_and_another_seed_another():
    model, prompt = build_gpt("gqa"), random_tokens(2, 5)
    first, again, other = (
        text(model, prompt, 20, SamplingSettings(temperature=1.0, seed=seed)) for seed in (5, 5, 6)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_global_random_state_is_untouched():
    model, prompt = build_gpt("mla"), random_tokens(2, 5)
    before = torch.get_rng_state()
    text(model, prompt, 9, SamplingSettings(temperature=1.0, top_k=7, top_p=0.9))
    assert torch.equal(torch.get_rng_state(), before)


def test_gradients_stay_enabled_for_who_consumes_the_tokens():
    model = build_gpt("mha")
    for token in generate(model, random_tokens(1, 3), 2, GREEDY):
        assert torch.is_grad_enabled()
        assert not token.requires_grad


PROBABILITIES = torch.tensor([0.15, 0.5, 0.05, 0.3])
DRAWS = 20_000


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.15, 0.5, 0.05, 0.3]),
        ({"top_k": 2}, [0, 0.5, 0, 0.3]),
        ({"top_k": 1}, [0, 1, 0, 0]),
        ({"top_k": 4}, [0.15, 0.5, 0.05, 0.3]),
        ({"top_k": 99}, [0.15, 0.5, 0.05, 0.3]),
        ({"top_p": 0.7}, [0, 0.5, 0, 0.3]),
        ({"top_p": 0.4}, [0, 1, 0, 0]),
        ({"top_p": 1e-9}, [0, 1, 0, 0]),
        ({"top_p": 0.9}, [0.15, 0.5, 0, 0.3]),
        ({"top_k": 3, "top_p": 0.8}, [0, 0.5, 0, 0.3]),
        ({"temperature": 2.0}, [0.15**0.5, 0.5**0.5, 0.05**0.5, 0.3**0.5]),
        ({"temperature": 0.5, "top_k": 2}, [0, 0.25, 0, 0.09]),
    ],
    ids=str,
)
def test_tokens_are_drawn_with_the_probabilities_that_the_settings_leave(settings, expected):
    logits = (PROBABILITIES.log() + 3.0).expand(DRAWS, 4)
    generator = torch.Generator().manual_seed(0)
    drawn = next_token(
        logits, SamplingSettings(**{"temperature": 1.0, "top_p": 1.0} | settings), generator
    )
    assert drawn.shape == (DRAWS,)
    expected = torch.tensor(expected, dtype=torch.float64)
    expected = expected / expected.sum()
    frequency = drawn.bincount(minlength=4) / DRAWS
    assert not frequency[expected == 0].any()
    five_errors = 5 * (expected * (1 - expected) / DRAWS).sqrt()
    assert ((frequency - expected).abs() <= five_errors).all()


def test_each_row_is_truncated_by_its_own_distribution():
    logits = torch.stack([PROBABILITIES, PROBABILITIES.flip(0)]).log()
    drawn = torch.stack(
        [
            next_token(
                logits,
                SamplingSettings(temperature=1.0, top_p=0.4),
                torch.Generator().manual_seed(seed),
            )
            for seed in range(9)
        ]
    )
    assert (drawn == torch.tensor([1, 2])).all()


# Where it ends


@pytest.mark.parametrize("name", ["mha", "mla_no_rope"])
def test_prompt_and_new_tokens_may_fill_the_context(name):
    model = build_gpt(name, max_position_embeddings=12)
    assert text(model, random_tokens(2, 5), 7).shape == (2, 7)
    assert text(model, random_tokens(2, 11), 1).shape == (2, 1)


def test_stop_token_ends_the_text_and_is_not_part_of_it():
    model, prompt = build_gpt("gqa"), random_tokens(1, 5)
    settings = SamplingSettings(temperature=2.0)
    whole = text(model, prompt, 20, settings)[0].tolist()
    stop = next(token for token in whole[3:] if token not in whole[:3])
    stopped = text(model, prompt, 20, settings, stop_token=stop)[0].tolist()
    assert stopped == whole[: whole.index(stop)]
    assert len(stopped) >= 3


def test_stop_token_ends_a_batch_when_every_row_has_produced_it(monkeypatch):
    script = iter([[7, 1], [2, 9], [3, 4], [9, 5], [6, 6]])
    monkeypatch.setattr(modeling.generate, "next_token", lambda *_: torch.tensor(next(script)))
    stopped = text(build_gpt("mha"), random_tokens(2, 3), 20, stop_token=9)
    assert stopped.tolist() == [[7, 2, 3], [1, 9, 9]]


def test_a_row_that_stopped_yields_the_stop_token_until_the_others_stop():
    model = randomise(build_gpt("gqa", tie_word_embeddings=False), std=1.0)
    prompt, settings = random_tokens(3, 5), SamplingSettings(temperature=1.0, top_p=1.0)
    whole = text(model, prompt, 30, settings)
    stop = whole[0, 4].item()
    stopped = text(model, prompt, 30, settings, stop_token=stop)
    ended = (stopped == stop).cumsum(1) > 0
    assert ended.any()
    assert not ended.all(0).any()
    assert (stopped[ended] == stop).all()
    first = ended.int().argmax(1)[ended.any(1)].min()
    # Until the first row stops, nothing has changed for anyone.
    assert torch.equal(stopped[:, : first + 1], whole[:, : first + 1])


def test_no_new_tokens_are_no_text():
    assert list(generate(build_gpt("mha"), random_tokens(1, 5), 0, GREEDY)) == []


@pytest.mark.parametrize("name", FIVE)
@pytest.mark.parametrize(("length", "new"), [(12, 1), (13, 1), (5, 8), (1, 12)])
def test_text_longer_than_the_context_is_refused(name, length, new):
    model = build_gpt(name, max_position_embeddings=12)
    fits = f"set max_new_tokens to {12 - length} or less"
    way_out = fits if length < 12 else "shorten it"
    with pytest.raises(ModelConfigError, match=f"do not fit the model's context of 12; {way_out}"):
        list(generate(model, random_tokens(1, length), new, GREEDY))


@pytest.mark.parametrize("new", [0, 3])
@pytest.mark.parametrize("token", [61, 1000, -1])
def test_token_outside_the_vocabulary_is_refused(token, new):
    prompt = random_tokens(2, 5)
    prompt[1, 3] = token
    with pytest.raises(ModelConfigError, match="outside the vocabulary of 61"):
        list(generate(build_gpt("mha"), prompt, new, GREEDY))


def test_empty_prompt_is_refused():
    with pytest.raises(ModelConfigError, match="the prompt is empty"):
        list(generate(build_gpt("mha"), random_tokens(1, 0), 3, GREEDY))


@pytest.mark.parametrize(
    ("settings", "valid"),
    [
        ({"temperature": -1.0}, "must be 0 or more"),
        ({"temperature": float("nan")}, "must be 0 or more"),
        ({"temperature": float("inf")}, "finite"),
        ({"top_k": 0}, "at least 1, or null"),
        ({"top_k": -3}, "at least 1, or null"),
        ({"top_p": 0.0}, "must be in (0, 1]"),
        ({"top_p": 1.5}, "must be in (0, 1]"),
        ({"top_p": float("nan")}, "must be in (0, 1]"),
        ({"seed": -1}, "from 0 to 2^63 - 1"),
        ({"seed": 2**63}, "from 0 to 2^63 - 1"),
    ],
    ids=str,
)
def test_sampling_settings_name_each_value_out_of_range(settings, valid):
    (problem,) = SamplingSettings(**settings).problems()
    ((key, value),) = settings.items()
    assert problem.startswith(f"sampling.{key} ({value})")
    assert valid in problem
    assert SamplingSettings().problems() == []
    assert GREEDY.problems() == []


@torch.no_grad()
@pytest.mark.parametrize("temperature", [0.0, 1e-40, 0.8])
def test_logits_that_are_no_number_do_not_become_text(temperature):
    model = build_gpt("mha")
    model.norm.weight[3] = torch.nan
    with pytest.raises(ModelConfigError, match="logits are not numbers"):
        list(generate(model, random_tokens(1, 3), 2, SamplingSettings(temperature=temperature)))


@torch.no_grad()
def test_a_tiny_temperature_is_greedy():
    model, prompt = build_gpt("mha"), random_tokens(2, 3)
    cold = SamplingSettings(temperature=1e-40)
    assert text(model, prompt, 5, cold).tolist() == text(model, prompt, 5).tolist()


def test_top_k_keeps_exactly_k_of_equal_logits():
    generator = torch.Generator().manual_seed(0)
    settings = SamplingSettings(temperature=1.0, top_k=2)
    chosen = next_token(torch.zeros(500, 7), settings, generator)
    assert len(set(chosen.tolist())) == 2


# Text


class Utf8:
    """Every byte a token."""

    def encode(self, text):
        return type("Encoding", (), {"ids": list(text.encode())})()

    def decode(self, ids):
        return bytes(ids).decode(errors="replace")


def streamed(monkeypatch, tokens):
    """What generate_text yields when the model produces these tokens."""
    monkeypatch.setattr(
        modeling.generate, "generate", lambda *_: (torch.tensor([token]) for token in tokens)
    )
    model = build_gpt("mha", vocab_size=256)
    return list(generate_text(model, Utf8(), "é", len(tokens), GREEDY))


@pytest.mark.parametrize("written", ["aé漢🎉 b", "🎉", "", "plain", "e\u0301x", "日本語テキスト"])
def test_streamed_characters_come_whole_and_nothing_is_lost(written, monkeypatch):
    pieces = streamed(monkeypatch, list(written.encode()))
    assert "".join(pieces) == written
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    # Not all at the end: a piece per character.
    assert [piece for piece in pieces if piece] == list(written)


@pytest.mark.parametrize(
    "tokens",
    [[*b"ab", 0xF0, 0x9F], [0xFF, *b"ab"], [0xE6, *b"a", 0xBC], [0xC3, 0xC3, 0xA9]],
    ids=["cut_off", "never_valid", "broken", "broken_then_whole"],
)
def test_streamed_bytes_that_are_no_character_are_replaced_once(tokens, monkeypatch):
    assert "".join(streamed(monkeypatch, tokens)) == bytes(tokens).decode(errors="replace")


def test_text_is_that_of_the_generated_tokens():
    model = build_gpt("gqa", vocab_size=256)
    prompt = "déf"
    pieces = generate_text(model, Utf8(), prompt, 20, GREEDY)
    ids = torch.tensor([list(prompt.encode())])
    expected = text(model, ids, 20)[0].tolist()
    assert "".join(pieces) == bytes(expected).decode(errors="replace")


def test_text_of_an_empty_prompt_is_refused():
    with pytest.raises(ModelConfigError, match="the prompt is empty"):
        list(generate_text(build_gpt("mha", vocab_size=256), Utf8(), "", 3, GREEDY))
