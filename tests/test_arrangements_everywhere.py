"""What uses a model, with every arrangement of its layers: generation, evaluation, timing."""

import itertools
import re

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import measuring.decode
from harness.model import TokenScorer
from measuring.decode import DecodeStep, check_memory, measure_decode
from measuring.errors import EvaluationError
from measuring.kv_cache import measure_generation_memory, measure_kv_cache
from measuring.perplexity import score
from measuring.through_cache import CachedScorer
from modeling.accounting import kv_cache_bytes, kv_cache_bytes_read, training_flops_per_token
from modeling.arrangement import layer_configs
from modeling.attention.blocks import BLOCK
from modeling.config import SamplingSettings
from modeling.errors import ModelConfigError
from modeling.generate import generate, left_pad, prefill
from modeling.gpt import GPT
from settings.evaluation import DecodeSettings
from tests.arranged import (
    ARRANGEMENTS,
    ATTENTIONS,
    CONTEXT,
    EACH,
    VOCABULARY,
    WINDOW,
    config_of,
    model_of,
)
from tests.modeling.tiny import LiveBytes

GREEDY = SamplingSettings(temperature=0.0)
PROMPTS = [list(range(1, 14)), [5, 6], [9] * 8]  # longer than the window, shorter, longer
NEW = 9


class Stream:
    """Random tokens."""

    def __init__(self, count):
        generator = torch.Generator().manual_seed(2)
        self._tokens = torch.randint(VOCABULARY, (count,), generator=generator).numpy()

    def __len__(self):
        return len(self._tokens)

    def window(self, start, length):
        return self._tokens[start : start + length]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def texts(model, prompt, settings=GREEDY, **options):
    return torch.stack(list(generate(model, prompt, NEW, settings, **options)), dim=1).tolist()


@torch.no_grad()
def without_a_cache(model, prompt):
    tokens = list(prompt)
    for _ in range(NEW):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize(("attention", "arrangement"), EACH)
def test_text_is_that_of_whole_passes(attention, arrangement):
    model = model_of(attention, arrangement).double()
    wanted = [without_a_cache(model, prompt) for prompt in PROMPTS]
    assert len({tuple(text) for text in wanted}) == 3
    assert texts(model, left_pad(PROMPTS)) == wanted  # rows of different lengths
    assert texts(model, torch.tensor(PROMPTS[:1])) == wanted[:1]
    likeliest = SamplingSettings(temperature=0.7, top_k=1)
    assert texts(model, left_pad(PROMPTS), likeliest) == wanted
    stop = next(token for token in wanted[0] if token != wanted[0][0])
    ended = texts(model, torch.tensor(PROMPTS[:1]), stop_token=stop)
    assert ended == [wanted[0][: wanted[0].index(stop)]]


@pytest.mark.parametrize("dtype", [None, torch.int8], ids=str)
@pytest.mark.parametrize(("attention", "arrangement"), EACH)
def test_a_prompt_in_chunks_is_one_prompt(attention, arrangement, dtype):
    model = model_of(attention, arrangement).double()
    prompt = left_pad(PROMPTS)
    positions = (prompt.is_real.cumsum(dim=1) - 1).clamp_(min=0)
    found = []
    for chunk in (100, 5, 1):
        cache = model.new_cache(3, 13, dtype)
        found.append(prefill(model, prompt.tokens, cache, positions, prompt.is_real, chunk))
        stored = dtype or torch.float64
        assert cache.num_bytes() == 3 * kv_cache_bytes(model.config, 13, stored)
    for logits in found[1:]:
        torch.testing.assert_close(logits, found[0], atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(("attention", "arrangement"), EACH)
def test_through_the_cache_scores_are_those_of_whole_windows(attention, arrangement):
    model, stream = model_of(attention, arrangement).double(), Stream(45)
    # Also longer than trained, which learned positions do not reach.
    contexts = [8] if attention == "mla_no_rope" else [8, 2 * CONTEXT]
    for context in contexts:
        whole, cached = (
            score(scorer, stream, context=context, stride=5, batch_size=4)
            for scorer in (model, CachedScorer(model))
        )
        assert cached.tokens_scored == whole.tokens_scored == 44
        assert cached.window_nll == pytest.approx(whole.window_nll, rel=1e-9)
    narrow = score(CachedScorer(model, torch.int8), stream, context=context, stride=5, batch_size=4)
    assert 0 < abs(narrow.nll - whole.nll) < 0.5


@pytest.mark.parametrize(("attention", "arrangement"), [("gqa", "window"), ("mla", "sinks")])
@torch.no_grad()
def test_a_token_that_overflowed_is_told_although_the_ring_has_overwritten_it(
    attention, arrangement
):
    model = model_of(attention, arrangement)
    # A direction that token 7 alone has, and of which the first layer makes large numbers.
    model.embed_tokens.weight[:, 3] = 0.0
    model.embed_tokens.weight[7] = 100 * torch.eye(model.config.hidden_size)[3]
    first = model.layers[0].self_attn
    (first.v_proj if attention == "gqa" else first.kv_a_proj_with_mqa).weight[-1, 3] = 1e6
    prompt = torch.tensor([[1, 7, *([2] * 3 * WINDOW)]])
    said = r"larger than a float16 cache holds \(65,504\)"
    for chunk in (1, 100):
        cache = model.new_cache(1, 24, torch.float16)
        prefill(model, prompt, cache, chunk=chunk)
        assert re.search(said, cache.overflow())
        assert not any(tensor.isinf().any() for tensor in cache.layers[0].tensors.values())
        cache.reset()
        assert cache.overflow() is None
    with pytest.raises(ModelConfigError, match=said):
        list(generate(model, prompt, 3, GREEDY, cache_dtype=torch.float16))
    with pytest.raises(EvaluationError, match=said):
        CachedScorer(model, torch.float16).token_nll(prompt, prompt)


@pytest.mark.parametrize("dtype", [None, torch.int8], ids=str)
@pytest.mark.parametrize(("attention", "arrangement"), EACH)
def test_a_timed_step_reads_what_is_held_and_can_be_repeated(attention, arrangement, dtype):
    model, context = model_of(attention, arrangement), 4 * WINDOW
    stored = dtype or torch.float32
    step = DecodeStep(model, batch=2, context=context, cache_dtype=dtype)
    first = step()
    assert torch.equal(step(), first)
    assert step.cache.seen == context
    assert step.cache.num_bytes() == 2 * kv_cache_bytes(model.config, context + 1, stored)
    assert step.cache_bytes == 2 * kv_cache_bytes(model.config, context, stored)
    assert step.cache_bytes_read == 2 * kv_cache_bytes_read(model.config, context, stored)
    shares = model.config.layers.share or model.config.layers.source
    assert (step.cache_bytes_read > step.cache_bytes) == bool(shares)
    measured = measure_kv_cache(model, 2, CONTEXT, dtype)
    assert measured.measured_bytes_at_context == kv_cache_bytes(model.config, CONTEXT, stored)


def test_the_roofline_counts_what_is_read(monkeypatch):
    models = {name: model_of("gqa", name) for name in ("uniform", "shared_pairs", "window")}
    settings = DecodeSettings(batch_sizes=[2], contexts=[12], rounds=1, steps=1)
    found = {
        name: points[0] for name, points in measure_decode(models, settings, None, print).items()
    }
    uniform = 2 * 12 * 4 * 4 * 2 * 16
    sizes = {name: (p.cache_bytes, p.cache_bytes_read) for name, p in found.items()}
    assert sizes["uniform"] == (uniform, uniform)
    assert sizes["shared_pairs"] == (uniform // 2, uniform)
    assert sizes["window"] == (uniform * WINDOW // 12,) * 2
    for name, point in found.items():
        read = measuring.decode.weight_bytes(models[name]) + sizes[name][1]
        assert point.roofline_ms == pytest.approx(1e3 * read / point.memory_bandwidth)
    # At 0.8 of the memory there is room for the bytes at the context, and for no more.
    for name in models:
        needed = 2 * kv_cache_bytes(models[name].config, 101)
        monkeypatch.setattr(measuring.decode, "available_bytes", lambda _, n=needed: n / 0.79)
        check_memory([models[name]], 2, 100, None, torch.device("cpu"))
        with pytest.raises(EvaluationError, match="left out"):
            check_memory([models[name]] * 2, 2, 100, None, torch.device("cpu"))


@pytest.mark.parametrize("arrangement", ["sinks", "shared_last"])
@pytest.mark.parametrize("attention", ["gqa", "mla"])
def test_memory_of_a_generation_is_measured(attention, arrangement):
    assert measure_generation_memory(model_of(attention, arrangement), 2, CONTEXT) > 0


@pytest.mark.parametrize(("attention", "arrangement"), EACH)
@torch.no_grad()
def test_documents_keep_to_themselves(attention, arrangement):
    model = model_of(
        attention, arrangement, intra_document_mask=True, end_of_document_id=0
    ).double()
    apart = model_of(attention, arrangement).double()
    tokens = torch.randint(1, VOCABULARY, (2, 20), generator=torch.Generator().manual_seed(5))
    ends = [[4, 11], [6, 7]]
    for row, places in enumerate(ends):
        tokens[row, places] = 0
    whole = model(tokens)
    for row, places in enumerate(ends):
        starts = [0, *(place + 1 for place in places), 20]
        for start, end in itertools.pairwise(starts):
            alone = apart(tokens[row : row + 1, start:end], torch.arange(start, end))
            torch.testing.assert_close(whole[row, start:end], alone[0], atol=1e-9, rtol=1e-9)
    for chunk in (1, 6):
        cache = model.new_cache(2, 20)
        pieces = [
            model(tokens[:, start : start + chunk], cache=cache) for start in range(0, 20, chunk)
        ]
        torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("attention", ["gqa", "mla"])
def test_documents_cost_a_window_layer_no_mask_of_all_pairs(attention):
    peaks = {}
    for documents in (False, True):
        model = model_of(
            attention,
            "window",
            max_position_embeddings=2048,
            intra_document_mask=documents,
            end_of_document_id=0,
        )
        with LiveBytes() as live:
            model.loss(*torch.ones(2, 1, 2048, dtype=torch.long))
        peaks[documents] = live.peak
    assert peaks[True] - peaks[False] < 2048**2 / 20


@pytest.mark.parametrize("window", [16, 100])
@pytest.mark.parametrize(
    ("attention", "arrangement"),
    [("gqa", "window"), ("mla", "window_full"), ("mla", "sinks"), ("gqa", "shared_pairs")],
)
def test_training_flops_equal_those_counted(attention, arrangement, window):
    context = 160
    layers = ARRANGEMENTS[arrangement]
    if "window" in layers:
        layers = layers | {"window": window}
    # The fused path pads narrower values to the width of the keys; that is no work of the model.
    fields = ATTENTIONS[attention] | ({"v_head_dim": 12} if attention == "mla" else {})
    changes = {"attention": fields, "layers": layers, "max_position_embeddings": context}
    config = config_of(attention, arrangement, **changes)
    model, tokens = GPT(config), torch.ones(2, context, dtype=torch.long)
    # PyTorch's counter does not know the product that is added in place, of the loss.
    added_in_place = {torch.ops.aten.addmm_: lambda _, a, b, **__: 2 * a[0] * a[1] * b[1]}
    counter = FlopCounterMode(display=False, custom_mapping=added_in_place)
    with sdpa_kernel(SDPBackend.MATH), counter:
        model.loss(tokens, tokens).backward()
    counted = counter.get_total_flops() / tokens.numel()
    hidden = 0.0
    for layer in layer_configs(config):
        per_key = layer.flops_per_token(3) - layer.flops_per_token(1)  # 2 keys in the mean, and 1
        multiplied, w = context, layer.sliding_window
        if w is not None:
            # A block of queries is multiplied with every key that any of them sees, and the sink.
            blocks = range(0, context, BLOCK)
            sizes = [min(BLOCK, context - start) for start in blocks]
            seen = [
                start + size - max(0, start - w + 1) + layer.attention_sinks
                for start, size in zip(blocks, sizes, strict=True)
            ]
            multiplied = sum(n * size for n, size in zip(seen, sizes, strict=True)) / context
        hidden += 3 * per_key * (multiplied - layer.visible_keys(context))
    assert hidden > 0
    assert training_flops_per_token(config, context) + hidden == pytest.approx(counted, rel=0.01)


@pytest.mark.parametrize(("attention", "arrangement"), EACH)
@torch.no_grad()
def test_tasks_are_scored_as_by_plain_passes(attention, arrangement):
    model = model_of(attention, arrangement).double()
    scorer = TokenScorer(model, batch_size=4)
    long = [1 + number % 40 for number in range(2 * CONTEXT)]
    pairs = [([5, 6, 7], [8]), ([5], [7, 9]), (long, [3, 4]), (long[:12], [2])]
    for (context, ending), (found, _) in zip(pairs, scorer.log_likelihoods(pairs), strict=True):
        whole = [*context, *ending][-CONTEXT - 1 :]
        likely = model(torch.tensor([whole[:-1]])).log_softmax(-1)[0]
        ids = torch.tensor(whole[1:])[:, None]
        expected = float(likely.gather(1, ids)[-len(ending) :].sum())
        assert found == pytest.approx(expected, rel=1e-9)
    texts = scorer.continuations(PROMPTS, NEW, GREEDY, stop_token=-1, is_done=lambda _: False)
    assert texts == [without_a_cache(model, prompt) for prompt in PROMPTS]
