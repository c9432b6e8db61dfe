"""kvlab's models answer lm-evaluation-harness as its own Hugging Face model does."""

import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from data.tokenizing.tokenizer import bytes_tokenizer, load_tokenizer, save_tokenizer, vocab_size_of
from harness.model import language_model
from harness.tasks import Tasks, load_tasks
from interop.stock import to_stock
from tests.tiny_models import scored_model as model
from tracking.configuration import flat

pytestmark = pytest.mark.slow

TASKS = Path(__file__).parent / "tasks"
NAMES = ["tiny_group", "tiny_rolling", "tiny_writing"]
CONTEXT = 40
LONG = "def f(x):\n    return x + 1  # the first function, of several, that do much the same\n"
PAIRS = [
    *((LONG, "def"), (LONG, " return x"), (LONG + " ", "x"), ("def f(x):\n    ", "return x + 1")),
    *(("x +", " 1"), ("x +", " 2"), ("x + ", "1"), ("x", " + 22"), ("x", "\n\n")),
    *(("", "def"), ("", " x + 1"), ("Ünï", "cöde 😀")),
]
TEXTS = ["x", LONG, LONG * 3, "Ünïcöde 😀 " * 5, LONG[: CONTEXT - 1], LONG[:CONTEXT]]
PROMPTS = ["def f(x):", "x", LONG, "a\n\n", "Ünïcöde 😀", "return", LONG * 2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer of bytes, as transformers opens it."""
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(bytes_tokenizer(), "<|endoftext|>", folder)
    return folder


def build(folder, name, dtype):
    size = vocab_size_of(load_tokenizer(folder))
    changes = {"max_position_embeddings": CONTEXT, "end_of_document_id": 0}
    gpt = model(name, vocab_size=size, initializer_range=0.5, **changes)
    return gpt.to(dtype)


def stock_of(gpt, tokenizer_folder, folder):
    """The same model as transformers loads it from a folder."""
    from transformers import AutoModelForCausalLM

    stock = to_stock(gpt.config, gpt.state_dict())
    shutil.copytree(tokenizer_folder, folder)
    (folder / "config.json").write_text(json.dumps(stock.config))
    weights = {name: tensor.contiguous() for name, tensor in stock.weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return AutoModelForCausalLM.from_pretrained(
        str(folder), trust_remote_code=False, use_safetensors=True
    ).eval()


def ours(gpt, folder, batch_size):
    return language_model(gpt, load_tokenizer(folder), 0, batch_size)


def theirs(pretrained, folder, batch_size=3):
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    return HFLM(
        pretrained=pretrained,
        backend="causal",
        tokenizer=tokenizer,
        max_length=CONTEXT,
        batch_size=batch_size,
    )


def requests(arguments):
    return [SimpleNamespace(args=some, task_name="t") for some in arguments]


def assert_same_likelihoods(one, other, tolerance):
    found, expected = (
        some.loglikelihood(requests(PAIRS), disable_tqdm=True) for some in (one, other)
    )
    assert [score for score, _ in found] == pytest.approx([s for s, _ in expected], rel=tolerance)
    assert [is_greedy for _, is_greedy in found] == [is_greedy for _, is_greedy in expected]
    texts = requests([(text,) for text in TEXTS])
    found, expected = (
        some.loglikelihood_rolling(texts, disable_tqdm=True) for some in (one, other)
    )
    assert found == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("name", ["gqa", "mla", "mla_no_rope"])
def test_likelihoods_are_those_of_the_harness_in_float64(folder, name):
    from tests.harness.hflm import Pretrained

    gpt = build(folder, name, torch.float64)
    for batch_size in (1, 5):
        assert_same_likelihoods(
            ours(gpt, folder, batch_size), theirs(Pretrained(gpt), folder), 1e-12
        )


@pytest.mark.parametrize("name", ["gqa", "mla"])
def test_a_model_of_transformers_answers_the_same(folder, tmp_path, name):
    gpt = build(folder, name, torch.float32)
    stock = stock_of(gpt, folder, tmp_path / "stock")
    # Some tens of roundings of 2**-24, of sums whose terms are larger than they.
    assert_same_likelihoods(ours(gpt, folder, 4), theirs(stock, folder), 1e-5)
    for options in (
        {"until": ["\n", "zz"], "max_gen_toks": 12, "do_sample": False, "temperature": 0.7},
        {"until": ["e"], "max_gen_toks": 20},
        {"max_gen_toks": 39},
    ):
        asked = requests([(prompt, options) for prompt in PROMPTS])
        expected = theirs(stock, folder).generate_until(asked, disable_tqdm=True)
        assert ours(gpt, folder, 2).generate_until(asked) == expected
        assert len(set(expected)) > 3


def test_what_is_drawn_is_as_likely_as_in_the_harness(folder, tmp_path, monkeypatch):
    exported = shutil.copytree(folder, tmp_path / "exported")
    # As export_model.py writes it.
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
    (exported / "generation_config.json").write_text(json.dumps(ends | {"do_sample": False}))
    gpt = build(folder, "gqa", torch.float32)
    stock = stock_of(gpt, exported, tmp_path / "stock")
    drawn = []
    multinomial = torch.multinomial

    def spy(probabilities, *arguments, **settings):
        drawn.append(probabilities.double())
        return multinomial(probabilities, *arguments, **settings)

    monkeypatch.setattr(torch, "multinomial", spy)

    def kept(options):
        """How likely each token is that may come first; none where nothing is drawn."""
        asked = requests([("def f", {"until": [], "max_gen_toks": 1} | options)])
        both = []
        for some in (theirs(stock, folder), ours(gpt, folder, 2)):
            drawn.clear()
            some.generate_until(asked, disable_tqdm=True)
            both.append(drawn[0] if drawn else torch.zeros(1, 1))
        # As of the likelihoods; a temperature below 1 enlarges them.
        torch.testing.assert_close(*both, rtol=1e-4, atol=1e-9, check_dtype=False)
        return int((both[0] > 0).sum())

    size = gpt.config.vocab_size
    assert kept({"do_sample": True, "temperature": 0.7}) == 50 < size
    assert kept({"temperature": 2.0, "top_k": 0}) == size
    assert kept({"temperature": 2.0, "top_k": None, "top_p": None}) == size
    assert kept({"temperature": 2.0, "top_k": 20, "top_p": 1.0}) == 20
    assert 1 < kept({"temperature": 2.0, "top_p": 0.5}) < 50
    assert kept({"do_sample": 0, "temperature": 0.7}) == 0
    assert kept({}) == 0


def test_tasks_have_the_same_results(folder, tmp_path, monkeypatch):
    import datasets
    from transformers import AutoTokenizer

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    gpt = build(folder, "gqa", torch.float32)
    stock = stock_of(gpt, folder, tmp_path / "stock")
    tasks = load_tasks(NAMES, TASKS)
    found, _ = tasks.score(gpt, load_tokenizer(folder), 0, 4)
    tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    expected, notes = tasks.score_pretrained(stock, tokenizer, 4)
    assert notes == []
    assert flat(found).keys() == flat(expected).keys()
    for key, value in flat(expected).items():
        is_number = isinstance(value, float)
        assert flat(found)[key] == (pytest.approx(value, rel=1e-3) if is_number else value), key


@pytest.mark.parametrize(("limit", "batch_size"), [(None, 8), (3.5, 3), (0.5, 1)])
def test_few_texts_are_computed_together_where_their_logits_are_many_and_quietly(
    folder, tmp_path, monkeypatch, limit, batch_size
):
    from transformers import AutoTokenizer
    from transformers.utils.logging import get_logger

    gpt = build(folder, "gqa", torch.float32)
    stock = stock_of(gpt, folder, tmp_path / "stock")
    if limit is not None:
        logits_of_a_text = CONTEXT * gpt.config.vocab_size
        monkeypatch.setattr("harness.tasks.LOGITS_AT_ONCE", int(limit * logits_of_a_text))
    warned = []
    handler = logging.Handler()
    handler.emit = warned.append
    get_logger("transformers").addHandler(handler)

    def run(tasks, asked):
        get_logger("transformers.generation.utils").warning("right-padding was detected!")
        return {"batch_size": asked.batch_size}

    monkeypatch.setattr(Tasks, "run", run)
    tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    try:
        found, _ = Tasks({}, None, "").score_pretrained(stock, tokenizer, 8)
    finally:
        get_logger("transformers").removeHandler(handler)
    assert found == {"batch_size": batch_size}
    assert warned == []
