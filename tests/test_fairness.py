"""What a comparison rests on: runs differ in what is compared, and in nothing else.

Not equal, and said in docs/notation.md: the initial weights behind the embeddings. They come from
one stream of random numbers, of which each attention and MLP takes as many as it has weights.
"""

import dataclasses
import re

import pytest
import torch

from launch import compose, schemas
from modeling.accounting import (
    kv_cache_bytes_per_token,
    match_cache,
    match_to_mha,
    num_parameters,
)
from modeling.gpt import GPT
from tracking.configuration import flat

FIVE = ("mha", "mqa", "gqa", "mla_no_rope", "mla")


def trained(*overrides):
    """What a run with this command line trains and records, but for what the data adds."""
    config = compose.checked(compose.composed("train", list(overrides)), schemas.TrainConfig)
    model = dataclasses.replace(config.model, vocab_size=config.tokenizer.vocab_size)
    if config.match == "cache":
        model = match_cache(model, config.match_cache_ratio)
    return dataclasses.replace(config, model=match_to_mha(model))


@pytest.fixture(scope="module")
def five():
    return {name: trained(f"attention={name}") for name in FIVE}


def different(one, other):
    """Every key with another value, dotted."""
    first, second = (flat(dataclasses.asdict(config)) for config in (one, other))
    return {key for key in first | second if first.get(key) != second.get(key)}


@pytest.mark.parametrize("name", FIVE[1:])
def test_runs_differ_in_attention_matched_width_and_name_only(name, five):
    allowed = r"run_name|model\.intermediate_size|model\.attention\..+"
    if name == "mla_no_rope":
        allowed += r"|model\.position_embedding"
    keys = different(five["mha"], five[name])
    assert {key for key in keys if not re.fullmatch(allowed, key)} == set()
    assert {"run_name", "model.intermediate_size", "model.attention.name"} <= keys


def test_runs_with_equal_caches_have_equal_parameters_too_and_differ_in_nothing_else(five):
    pair = [trained(f"attention={name}", "match=cache") for name in ("gqa", "mla")]
    allowed = r"run_name|model\.intermediate_size|model\.attention\..+"
    assert {key for key in different(*pair) if not re.fullmatch(allowed, key)} == set()
    caches = {kv_cache_bytes_per_token(config.model) for config in pair}
    assert caches == {kv_cache_bytes_per_token(five["mha"].model) / 4}
    wanted = num_parameters(five["mha"].model).total
    for config in pair:
        assert num_parameters(config.model).total == pytest.approx(wanted, rel=5e-3)


def test_every_attention_starts_from_the_same_embeddings_and_norms(five):
    start = {}
    for name, config in five.items():
        torch.manual_seed(config.seed)  # as training does
        weights = GPT(config.model).state_dict()
        part = re.compile(r"embed_tokens|input_layernorm|post_attention_layernorm|norm\.weight")
        start[name] = {key: value for key, value in weights.items() if part.match(_role(key))}
    assert "embed_tokens.weight" in start["mha"]
    for name in FIVE[1:]:
        assert start[name].keys() == start["mha"].keys()
        assert all(torch.equal(start[name][key], start["mha"][key]) for key in start["mha"])


def _role(key):
    return re.sub(r"layers\.\d+\.", "", key)
