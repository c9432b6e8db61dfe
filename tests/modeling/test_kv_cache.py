import pytest
import torch
from tiny import FIVE, build_gpt, normal, random_tokens

from modeling.kv_cache import KVCache, LayerCache

ENTRIES = {"key": (2, 3), "value": (2, 5)}


def token_entries(s, seed=0, batch=3):
    return {
        "key": normal(batch, 2, s, 3, seed=seed),
        "value": normal(batch, 2, s, 5, seed=seed + 1),
    }


def test_append_returns_all_that_is_stored_in_the_order_of_the_arguments():
    cache = LayerCache(ENTRIES, 3, 7)
    first, second = token_entries(4), token_entries(2, seed=5)
    cache.append(**first)
    value, key = cache.append(value=second["value"], key=second["key"])
    assert torch.equal(key, torch.cat((first["key"], second["key"]), 2))
    assert torch.equal(value, torch.cat((first["value"], second["value"]), 2))
    assert cache.length == 6


def test_append_returns_views_and_allocates_nothing():
    cache = LayerCache(ENTRIES, 3, 7)
    storages = {name: tensor.data_ptr() for name, tensor in cache.tensors.items()}
    for step in range(7):
        key, value = cache.append(**token_entries(1, seed=step))
        assert key.data_ptr() == storages["key"]
        assert value.data_ptr() == storages["value"]


def test_append_of_nothing_returns_what_is_stored():
    cache = LayerCache(ENTRIES, 3, 7)
    stored = token_entries(4)
    cache.append(**stored)
    key, value = cache.append(**token_entries(0))
    assert torch.equal(key, stored["key"])
    assert torch.equal(value, stored["value"])


def test_append_beyond_the_end_is_refused_and_nothing_is_written():
    cache = LayerCache(ENTRIES, 3, 7)
    stored = token_entries(6)
    cache.append(**stored)
    with pytest.raises(ValueError, match="at most 7 tokens, 8 would be needed; make it longer"):
        cache.append(**token_entries(2, seed=5))
    assert cache.length == 6
    assert torch.equal(cache.tensors["key"][:, :, :6], stored["key"])
    assert not cache.tensors["key"][:, :, 6:].any()


@pytest.mark.parametrize(
    ("new", "complaint"),
    [
        ({"key": torch.zeros(3, 2, 1, 3)}, "holds .'key', 'value'., not .'key'."),
        ({"latent": torch.zeros(3, 1, 1, 8)}, "another kind of attention"),
        (token_entries(1) | {"value": torch.zeros(3, 2, 1, 4)}, "'value' takes .* any, 5"),
        (token_entries(1) | {"key": torch.zeros(3, 1, 1, 3)}, "'key' takes .* .3, 2, any, 3"),
        (token_entries(1, batch=2), "another model or batch"),
    ],
)
def test_append_of_another_models_tokens_is_refused(new, complaint):
    cache = LayerCache(ENTRIES, 3, 7)
    with pytest.raises(ValueError, match=complaint):
        cache.append(**new)
    assert cache.length == 0


@pytest.mark.parametrize(("batch", "length"), [(0, 7), (3, 0), (-1, 7)])
def test_cache_of_no_size_is_refused(batch, length):
    with pytest.raises(ValueError, match="batch_size >= 1 and max_length >= 1"):
        LayerCache(ENTRIES, batch, length)


def test_truncate_forgets_the_last_tokens():
    cache = LayerCache(ENTRIES, 3, 7)
    first, second = token_entries(5), token_entries(2, seed=5)
    cache.append(**first)
    cache.truncate(3)
    key, _ = cache.append(**second)
    assert torch.equal(key, torch.cat((first["key"][:, :, :3], second["key"]), 2))


@pytest.mark.parametrize("length", [-1, 5])
def test_truncate_outside_what_is_stored_is_refused(length):
    cache = LayerCache(ENTRIES, 3, 7)
    cache.append(**token_entries(4))
    with pytest.raises(ValueError, match=f"cannot truncate a cache of 4 tokens to {length}"):
        cache.truncate(length)
    assert cache.length == 4


def test_num_bytes_counts_each_storage_once():
    layers = [LayerCache(ENTRIES, 3, 7, torch.float16) for _ in range(2)]
    assert KVCache(layers).num_bytes() == 2 * 3 * 7 * 2 * (3 + 5) * 2
    layers[1].tensors = layers[0].tensors
    assert KVCache(layers).num_bytes() == 3 * 7 * 2 * (3 + 5) * 2


@torch.no_grad()
@pytest.mark.parametrize("name", FIVE)
def test_model_cache_reused_after_reset_or_truncate_equals_a_fresh_one(name):
    model = build_gpt(name).double()
    tokens = random_tokens(3, 9)
    expected = model(tokens)
    cache = model.new_cache(3, 9)
    assert cache.max_length == 9
    model(random_tokens(3, 8, seed=8), cache=cache)
    assert cache.length == 8
    cache.reset()
    torch.testing.assert_close(model(tokens, cache=cache), expected)
    cache.truncate(4)
    assert [layer.length for layer in cache.layers] == [4, 4]
    torch.testing.assert_close(model(tokens[:, 4:], cache=cache), expected[:, 4:])


@torch.no_grad()
def test_model_refuses_another_models_cache():
    model = build_gpt("mha")
    for other in ("gqa", "mqa", "mla"):
        with pytest.raises(ValueError, match="made for another"):
            model(random_tokens(3, 4), cache=build_gpt(other).new_cache(3, 9))
