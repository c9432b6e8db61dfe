import pytest
import torch
from tiny import ENTRIES, FIVE, as_read, build_gpt, normal, random_tokens, token_entries

from measuring.decode import fill_with_noise
from modeling.kv_cache import CACHE_DTYPES, KVCache, LayerCache, StateSpec, bytes_per_token

SPEC = StateSpec(per_token=ENTRIES)
FLOATS = tuple(dtype for dtype in CACHE_DTYPES if dtype.is_floating_point)


@pytest.fixture(params=CACHE_DTYPES, ids=str)
def dtype(request):
    return request.param


def state(cache):
    """A copy of all that a layer's cache holds."""
    return {
        (kind, name): tensor.clone()
        for kind, tensors in (("elements", cache.tensors), ("scales", cache.scales))
        for name, tensor in tensors.items()
    }


# Reading and writing


def test_what_is_written_in_pieces_is_read_as_if_written_at_once(dtype):
    whole, pieces = (LayerCache(SPEC, 3, 7, dtype) for _ in range(2))
    new = token_entries(6)
    whole.update(**new)
    for start, end in ((0, 3), (3, 4), (4, 4), (4, 6)):
        pieces.update(**{name: tensor[:, :, start:end] for name, tensor in new.items()})
        assert pieces.seen == pieces.held == end
    for name in ENTRIES:
        found, expected = (cache.view().read(name, torch.float32) for cache in (pieces, whole))
        assert torch.equal(found, expected)


def test_a_range_is_read_as_that_part_of_the_whole(dtype):
    cache = LayerCache(SPEC, 3, 7, dtype)
    held = cache.update(**token_entries(6))
    whole = held.read("value", torch.float32)
    assert whole.shape == (3, 2, 6, 5)
    for start, end in ((0, 6), (1, 4), (5, 6), (2, 2), (0, 1)):
        part = held.read("value", torch.float32, start, end)
        assert torch.equal(part, whole[:, :, start:end])
    assert torch.equal(held.read("value", torch.float32, 4), whole[:, :, 4:])


@pytest.mark.parametrize("compute_dtype", FLOATS, ids=str)
def test_reading_gives_a_view_of_the_dtype_that_is_stored_and_a_copy_otherwise(
    dtype, compute_dtype
):
    cache = LayerCache(SPEC, 3, 7, dtype)
    new = {name: tensor.to(compute_dtype) for name, tensor in token_entries(4).items()}
    held = cache.update(**new)
    assert (held.is_cached, held.dtype, held.num_tokens) == (True, dtype, 4)
    for name in ENTRIES:
        tensor = held.read(name, compute_dtype)
        assert tensor.dtype == compute_dtype
        same = tensor.untyped_storage()._cdata == cache.tensors[name].untyped_storage()._cdata
        assert same == (dtype == compute_dtype)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_stored_floats_are_rounded_once(dtype):
    x = normal(3, 2, 6, 5, dtype=torch.float64)
    assert torch.equal(as_read(x, torch.float64, dtype), x.to(dtype).double())


def test_what_is_stored_has_no_autograd_graph(dtype):
    cache = LayerCache(SPEC, 3, 7, dtype)
    new = {name: tensor.requires_grad_() for name, tensor in token_entries(4).items()}
    held = cache.update(**new)
    assert not any(held.read(name, torch.float64).requires_grad for name in ENTRIES)
    assert not any(tensor.requires_grad for tensor in cache.live_tensors())


@pytest.mark.parametrize(
    "dtype", [torch.int16, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn], ids=str
)
def test_other_dtypes_are_refused_with_those_there_are(dtype):
    listed = f"cannot hold {dtype}; it takes float32, float64, bfloat16, float16, int8"
    with pytest.raises(ValueError, match=listed):
        LayerCache(SPEC, 3, 7, dtype)
    with pytest.raises(ValueError, match=listed):
        build_gpt("mha").new_cache(3, 7, dtype)


# int8


# In steps, of which the largest element is 127: 1/2 by rounding to an integer, and by rounding the
# product to bfloat16's 8 bits up to 127 / 256 more; the scale's own rounding adds 1/256 of these.
@pytest.mark.parametrize(
    ("compute_dtype", "bound"),
    [(torch.float32, 0.51), (torch.float16, 0.6), (torch.bfloat16, 1.01)],
)
@pytest.mark.parametrize("given_dtype", FLOATS, ids=str)
@pytest.mark.parametrize("size", [1.0, 1e-3, 300.0])
def test_int8_is_off_by_at_most_a_fraction_of_the_largest_of_its_token_and_head(
    compute_dtype, bound, given_dtype, size
):
    x = (size * normal(4, 3, 50, 24, dtype=torch.float64)).to(given_dtype)
    step = x.double().abs().amax(-1, keepdim=True) / 127
    gap = (as_read(x, compute_dtype).double() - x.double()).abs() / step
    assert gap.max() <= bound
    assert gap.max() > 0.4  # it is not more than int8


def test_int8_keeps_zeros_and_what_is_next_to_nothing():
    x = normal(3, 2, 6, 5)
    x[1, 0, 2] = 0.0
    x[0, 1, 3, ::2] = 0.0
    x[2, 1, 4] *= 1e-41
    read = as_read(x)
    assert not read[x == 0].any()
    assert read.isfinite().all()
    assert read[2, 1, 4].abs().max() < 1e-38


def test_int8_keeps_what_is_no_number_and_its_neighbours():
    x = normal(3, 2, 6, 5)
    expected = as_read(x)
    for broken in (torch.nan, torch.inf, -torch.inf):
        hurt = x.clone()
        hurt[1, 0, 2, 3] = broken
        read = as_read(hurt)
        assert not read[1, 0, 2, 3].isfinite()
        read[1, 0, 2] = expected[1, 0, 2]
        assert torch.equal(read, expected)


def test_int8_of_one_token_and_head_is_not_spoilt_by_large_values_of_another():
    x = normal(3, 2, 6, 5)
    expected, large = as_read(x), x.clone()
    large[1, 0, 2] *= 1e6
    read = as_read(large)
    assert read[1, 0, 2].abs().max() > 1e5
    read[1, 0, 2] = expected[1, 0, 2]
    assert torch.equal(read, expected)


def test_int8_has_one_scale_for_a_token_and_head():
    cache = LayerCache(SPEC, 3, 7, torch.int8)
    cache.update(**token_entries(6))
    assert cache.scales["key"].shape == cache.scales["value"].shape == (3, 2, 7, 1)
    for name in ENTRIES:
        used = cache.tensors[name][:, :, :6].int().abs().amax(-1)
        assert used.min() >= 126  # the rounded scale may be a little too large
        assert used.max() == 127


# Adding tokens


def test_update_returns_all_that_is_stored_in_order():
    cache = LayerCache(SPEC, 3, 7)
    first, second = token_entries(4), token_entries(2, seed=5)
    cache.update(**first)
    held = cache.update(value=second["value"], key=second["key"])
    for name in ENTRIES:
        expected = torch.cat((first[name], second[name]), 2)
        assert torch.equal(held.read(name, torch.float32), expected)
    assert (cache.seen, cache.held, cache.capacity) == (6, 6, 7)


@pytest.mark.parametrize("window", [None, 3], ids=["full", "ring"])
def test_update_by_a_token_returns_views_and_allocates_nothing(window):
    cache = LayerCache(StateSpec(per_token=ENTRIES, window=window), 3, 7)
    storages = {name: tensor.data_ptr() for name, tensor in cache.tensors.items()}
    for step in range(7):
        held = cache.update(**token_entries(1, seed=step))
        for name in ENTRIES:
            assert held.read(name, torch.float32).data_ptr() == storages[name]


def test_update_by_nothing_returns_what_is_stored():
    cache = LayerCache(SPEC, 3, 7)
    stored = token_entries(4)
    cache.update(**stored)
    held = cache.update(**token_entries(0))
    for name in ENTRIES:
        assert torch.equal(held.read(name, torch.float32), stored[name])


def test_update_beyond_the_end_is_refused_and_nothing_is_written(dtype):
    cache = LayerCache(SPEC, 3, 7, dtype)
    cache.update(**token_entries(6))
    before = state(cache)
    with pytest.raises(ValueError, match="at most 7 tokens, 8 would be needed; make it longer"):
        cache.update(**token_entries(2, seed=5))
    assert cache.seen == 6
    assert not cache.tensors["key"][:, :, 6:].any()
    assert all(torch.equal(tensor, before[key]) for key, tensor in state(cache).items())


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
def test_update_of_another_models_tokens_is_refused(new, complaint, dtype):
    cache = LayerCache(SPEC, 3, 7, dtype)
    with pytest.raises(ValueError, match=complaint):
        cache.update(**new)
    assert cache.seen == 0
    assert not any(tensor.any() for tensor in state(cache).values())


@pytest.mark.parametrize("tokens", [0, 1, 3])
def test_update_of_entries_of_different_lengths_is_refused_and_nothing_is_written(tokens):
    cache = LayerCache(SPEC, 3, 7)
    with pytest.raises(ValueError, match="tokens"):
        cache.update(key=token_entries(2)["key"], value=token_entries(tokens)["value"])
    assert cache.seen == 0
    assert not any(tensor.any() for tensor in state(cache).values())


@pytest.mark.parametrize(("batch", "length"), [(0, 7), (3, 0), (-1, 7)])
def test_cache_of_no_size_is_refused(batch, length):
    with pytest.raises(ValueError, match="batch_size >= 1 and max_length >= 1"):
        LayerCache(SPEC, batch, length)


def test_truncate_forgets_the_last_tokens(dtype):
    cache = LayerCache(SPEC, 3, 7, dtype)
    first, second = token_entries(5), token_entries(2, seed=5)
    cache.update(**first)
    cache.truncate(3)
    held = cache.update(**second)
    written = torch.cat((first["key"][:, :, :3], second["key"]), 2)
    assert torch.equal(held.read("key", torch.float32), as_read(written, stored_dtype=dtype))


@pytest.mark.parametrize("length", [-1, 5])
def test_truncate_outside_what_is_stored_is_refused(length):
    cache = LayerCache(SPEC, 3, 7)
    cache.update(**token_entries(4))
    with pytest.raises(ValueError, match=f"cannot truncate a cache of 4 tokens to {length}"):
        cache.truncate(length)
    assert cache.seen == 4


def test_num_bytes_counts_each_storage_once():
    layers = [LayerCache(SPEC, 3, 7, torch.float16) for _ in range(2)]
    assert KVCache(layers).num_bytes() == 2 * 3 * 7 * 2 * (3 + 5) * 2
    layers[1].tensors = layers[0].tensors
    assert KVCache(layers).num_bytes() == 3 * 7 * 2 * (3 + 5) * 2


def test_num_bytes_equal_the_closed_form(dtype):
    expected = 3 * 7 * bytes_per_token(ENTRIES, dtype)
    layers = [LayerCache(SPEC, 3, 7, dtype) for _ in range(2)]
    layers[0].update(**token_entries(4))
    assert [layer.num_bytes() for layer in layers] == [expected, expected]
    assert KVCache(layers).num_bytes() == 2 * expected


def test_int8_takes_a_byte_for_an_element_and_two_for_a_token_and_head():
    assert bytes_per_token(ENTRIES, torch.int8) == 2 * (3 + 2) + 2 * (5 + 2)
    assert bytes_per_token(ENTRIES, torch.float64) == 8 * (2 * 3 + 2 * 5)


# Of a whole model


@torch.no_grad()
@pytest.mark.parametrize("name", FIVE)
def test_model_cache_of_int8_reused_after_reset_or_truncate_equals_a_fresh_one(name):
    model, tokens = build_gpt(name), random_tokens(3, 9)
    fresh, cache = (model.new_cache(3, 9, torch.int8) for _ in range(2))
    expected = torch.cat([model(part, cache=fresh) for part in tokens.split((5, 4), dim=1)], 1)
    model(random_tokens(3, 8, seed=8), cache=cache)
    cache.reset()
    assert torch.equal(model(tokens[:, :5], cache=cache), expected[:, :5])
    model(random_tokens(3, 4, seed=9), cache=cache)
    cache.truncate(5)
    assert torch.equal(model(tokens[:, 5:], cache=cache), expected[:, 5:])


@torch.no_grad()
@pytest.mark.parametrize("name", FIVE)
def test_model_cache_reused_after_reset_or_truncate_equals_a_fresh_one(name):
    model = build_gpt(name).double()
    tokens = random_tokens(3, 9)
    expected = model(tokens)
    cache = model.new_cache(3, 9)
    assert cache.max_length == 9
    model(random_tokens(3, 8, seed=8), cache=cache)
    assert cache.seen == 8
    cache.reset()
    torch.testing.assert_close(model(tokens, cache=cache), expected)
    cache.truncate(4)
    assert [layer.seen for layer in cache.layers] == [4, 4]
    torch.testing.assert_close(model(tokens[:, 4:], cache=cache), expected[:, 4:])


@torch.no_grad()
def test_model_refuses_another_models_cache():
    model = build_gpt("mha")
    for other in ("gqa", "mqa", "mla"):
        with pytest.raises(ValueError, match="made for another"):
            model(random_tokens(3, 4), cache=build_gpt(other).new_cache(3, 9))


@torch.no_grad()
@pytest.mark.parametrize("name", FIVE)
def test_model_refuses_the_cache_of_a_model_like_it_and_writes_nothing(name):
    model, like_it, deeper = build_gpt(name), build_gpt(name), build_gpt(name, num_hidden_layers=3)
    for other, complaint in (
        (like_it, "made for another model, whose keys mean nothing to this one"),
        (deeper, "this cache has 3 layers, the model 2"),
    ):
        cache = other.new_cache(3, 9)
        with pytest.raises(ValueError, match=complaint):
            model(random_tokens(3, 4), cache=cache)
        assert cache.seen == 0
        assert not any(t.any() for layer in cache.layers for t in state(layer).values())
        assert other(random_tokens(3, 4), cache=cache).isfinite().all()


@torch.no_grad()
def test_model_refuses_the_cache_of_a_model_that_is_gone():
    cache = build_gpt("mha").new_cache(3, 9)
    with pytest.raises(ValueError, match="made for another model"):
        build_gpt("mha")(random_tokens(3, 4), cache=cache)


@torch.no_grad()
def test_model_takes_a_cache_that_was_made_by_hand():
    model, tokens = build_gpt("gqa"), random_tokens(3, 4)
    layers = [block.self_attn.new_cache(3, 9) for block in model.layers]
    expected = model(tokens, cache=model.new_cache(3, 9))
    assert torch.equal(model(tokens, cache=KVCache(layers)), expected)
    with pytest.raises(ValueError, match="this cache has 1 layers, the model 2"):
        model(tokens, cache=KVCache(layers[:1]))


def test_noise_lies_at_the_positions_of_the_tokens_that_it_stands_for():
    spec = StateSpec(per_token={"key_value": (1, 2)}, window=4, needs_positions=True)
    cache = LayerCache(spec, 1, 10)
    fill_with_noise(KVCache([cache]), 6)
    assert cache.view().positions.tolist() == [[4, 5, 2, 3]]
