"""A layer's cache where it overwrites: rings, state of fixed size, and going back."""

import pytest
import torch
from tiny import ENTRIES, as_read, normal, token_entries

from modeling.kv_cache import CACHE_DTYPES, KVCache, LayerCache, StateSpec, bytes_per_token


@pytest.fixture(params=CACHE_DTYPES, ids=str)
def dtype(request):
    return request.param


def fed(spec, sizes, dtype=torch.float32, length=24, **new):
    """A cache after chunks of these sizes, and what each update returned, read at once."""
    cache, start, held = LayerCache(spec, 3, length, dtype), 0, []
    for size in sizes:
        piece = {name: tensor[:, :, start : start + size] for name, tensor in new.items()}
        found = cache.update(**piece)
        read = {name: found.read(name, torch.float32).clone() for name in new}
        held.append((found, read))
        start += size
    return cache, held


RING_CHUNKS = (
    (1,) * 13,
    (2, 4, 1, 6),
    (3, 3, 3, 3, 1),  # exact multiples of 3
    (13,),  # many windows at once
    (1, 12),
    (4, 0, 4, 5),
)


@pytest.mark.parametrize("sizes", RING_CHUNKS, ids=str)
@pytest.mark.parametrize("window", [1, 2, 3, 4, 12, 13, 50])
def test_a_ring_gives_each_chunk_the_tokens_that_its_queries_see_in_any_dtype(window, sizes, dtype):
    spec, new = StateSpec(per_token=ENTRIES, window=window), token_entries(13)
    expected = {name: as_read(tensor, stored_dtype=dtype) for name, tensor in new.items()}
    cache, held = fed(spec, sizes, dtype, **new)
    end = 0
    for size, (found, read) in zip(sizes, held, strict=True):
        start, end = end, end + size
        index = found.indices()
        # From the oldest key of the first query to the newest token, each once.
        assert sorted(index.tolist()) == list(range(found.first, end))
        assert found.first <= max(0, start - window + 1) or size == 0
        assert found.num_tokens <= window + max(0, size - 1)
        by_token = torch.arange(end)
        assert torch.equal(found.columns(by_token), index)
        assert torch.equal(found.columns(by_token[None, None].expand(3, 2, end))[1, 1], index)
        for name in ENTRIES:
            # What a chunk of several tokens brings beyond the ring is not rounded again.
            assert torch.equal(read[name], expected[name][:, :, index]), (name, index)
        if size == 1:
            assert found.num_tokens == min(end, window)
    view = cache.view()
    assert (cache.seen, cache.held) == (13, min(13, window))
    assert sorted(view.indices().tolist()) == list(range(13 - cache.held, 13))
    for name in ENTRIES:
        read = view.read(name, torch.float32)
        assert torch.equal(read, expected[name][:, :, view.indices()])
    assert cache.num_bytes() == 3 * spec.bytes(24, dtype)


def test_bytes_of_a_ring_stop_growing_at_its_window(dtype):
    spec = StateSpec(per_token=ENTRIES, window=5, fixed={"state": (2, 3)})
    for context in (1, 4, 5, 6, 20):
        measured = LayerCache(spec, 1, context, dtype).num_bytes()
        assert measured == spec.bytes(context, dtype) == spec.bytes_read(context, dtype)
        assert measured == min(context, 5) * bytes_per_token(ENTRIES, dtype) + 6 * 4
    reader = StateSpec(per_token=ENTRIES, window=5, source=0)
    assert (reader.bytes(20, dtype), reader.elements_per_token) == (0, 16)
    assert reader.bytes_read(20, dtype) == 5 * bytes_per_token(ENTRIES, dtype)


@pytest.mark.parametrize("per_row", [False, True], ids=["shared", "ragged"])
def test_positions_are_held_with_the_tokens_that_need_them(per_row):
    spec = StateSpec(per_token=ENTRIES, window=3, needs_positions=True)
    cache, new, end = LayerCache(spec, 3, 13), token_entries(13), 0
    given = 100 + torch.arange(13) * (torch.tensor([[1], [2], [3]]) if per_row else 1)
    for size in (1, 1, 4, 3, 1, 3):
        start, end = end, end + size
        piece = {name: tensor[:, :, start:end] for name, tensor in new.items()}
        # Rows may come to differ: the first tokens had the positions of all.
        positions = given[..., start:end] if start else given.new_tensor([100])
        expected = torch.cat(
            (given.new_tensor([100]).expand(*given.shape[:-1], 1), given[..., 1:]), -1
        )
        held = cache.update(positions, **piece)
        for found in (held, cache.view()):
            assert found.positions.shape[1] == found.num_tokens
            rows = found.positions.expand(3, -1).long()
            assert torch.equal(rows, expected.expand(3, 13)[:, found.indices()])
    assert cache.num_bytes() == 3 * spec.bytes(13, torch.float32)
    cache.reset()
    assert cache.view().positions is None
    # Before the first token there are none to come back to.
    empty = cache.snapshot()
    cache.update(given[..., :2], **{name: tensor[:, :, :2] for name, tensor in new.items()})
    cache.restore(empty)
    held = cache.update(given[..., 5:6], **{name: t[:, :, :1] for name, t in new.items()})
    assert torch.equal(held.positions.expand(3, -1), given[..., 5:6].expand(3, 1))


SPECS = {
    "full": StateSpec(per_token=ENTRIES),
    "ring": StateSpec(per_token=ENTRIES, window=3),
    "positions": StateSpec(per_token=ENTRIES, window=3, needs_positions=True),
    "state": StateSpec(fixed={"state": (2, 3)}),
    "both": StateSpec(per_token=ENTRIES, window=3, fixed={"state": (2, 3)}),
}


def advance(cache, start, size, seed=0):
    """Feed tokens [start, start + size) of a text, of what the cache keeps."""
    if cache.spec.per_token:
        new = token_entries(13, seed=seed)
        piece = {name: tensor[:, :, start : start + size] for name, tensor in new.items()}
        cache.update(torch.arange(start, start + size) + seed, **piece)
    if cache.spec.fixed:
        state = normal(3, 2, 3, seed=start + size + 50 * seed)
        cache.advance(0 if cache.spec.per_token else size, state=state)


def content(cache):
    """All that can be read of a cache."""
    held = cache.view() if cache.spec.per_token else None
    read = [held.read(name, torch.float32).clone() for name in ENTRIES] if held else []
    positions = [] if held is None or held.positions is None else [held.positions.clone()]
    return [*read, *positions, *(tensor.clone() for tensor in cache.fixed.values())]


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("then", [0, 2, 3, 7])
@pytest.mark.parametrize("later", [1, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8], ids=str)
def test_a_restored_cache_is_as_it_was_and_continues_undisturbed(kind, then, later, dtype):
    cache, undisturbed = (LayerCache(SPECS[kind], 3, 13, dtype) for _ in range(2))
    for each in (cache, undisturbed):
        if then:
            advance(each, 0, then)
    before, moment = content(cache), cache.snapshot()
    for seed in (8, 9):  # more than once
        advance(cache, then, later, seed=seed)
        assert cache.seen == then + later
        cache.restore(moment)
        assert cache.seen == then
        if then:
            for found, expected in zip(content(cache), before, strict=True):
                assert torch.equal(found, expected)
    for each in (cache, undisturbed):
        advance(each, then, 4)
    for found, expected in zip(content(cache), content(undisturbed), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("back", ["truncate", "reset", "restore"])
def test_a_snapshot_of_tokens_that_are_forgotten_is_refused(kind, back):
    cache = LayerCache(SPECS[kind], 3, 13)
    empty = cache.snapshot()
    advance(cache, 0, 2)
    moment, other = cache.snapshot(), LayerCache(SPECS[kind], 3, 13)
    if back == "truncate" and not SPECS[kind].fixed:
        cache.truncate(1)
    elif back == "restore":
        cache.restore(empty)
    else:
        cache.reset()
    advance(cache, cache.seen, 3, seed=4)
    advance(other, 0, 3)
    for refusing in (cache, other):
        before = content(refusing)
        with pytest.raises(
            ValueError, match="snapshot of 2 tokens cannot be restored: it is of an"
        ):
            refusing.restore(moment)
        assert all(torch.equal(a, b) for a, b in zip(content(refusing), before, strict=True))


def test_truncation_beyond_what_is_remembered_is_refused_with_what_to_do():
    ring = LayerCache(SPECS["ring"], 3, 13)
    advance(ring, 0, 3)
    ring.truncate(2)  # nothing is overwritten yet
    advance(ring, 2, 2)
    before = content(ring)
    ring.truncate(4)  # where it is
    line = (
        "cannot truncate to 3 tokens: a ring of the newest 3 of 4 tokens has overwritten what "
        "token 3 needs; take a snapshot there and restore it"
    )
    with pytest.raises(ValueError, match=f"^{line}$"):
        ring.truncate(3)
    assert ring.seen == 4
    assert all(torch.equal(a, b) for a, b in zip(content(ring), before, strict=True))
    ring.truncate(0)  # needs nothing
    assert ring.seen == 0
    for kind in ("state", "both"):
        cache = LayerCache(SPECS[kind], 3, 13)
        advance(cache, 0, 2)
        for length in (0, 1):
            line = (
                f"cannot truncate to {length} tokens: a state of fixed size does not remember "
                "earlier moments; take a snapshot there and restore it"
            )
            with pytest.raises(ValueError, match=f"^{line}$"):
                cache.truncate(length)
        cache.truncate(2)
        cache.reset()
        assert cache.seen == 0
        assert not cache.fixed["state"].any()


@pytest.mark.parametrize("kind", SPECS)
def test_more_tokens_than_a_cache_was_made_for_are_refused_whatever_it_holds(kind):
    cache = LayerCache(SPECS[kind], 3, 5)
    advance(cache, 0, 4)
    before = content(cache)
    with pytest.raises(ValueError, match="at most 5 tokens, 6 would be needed; make it longer"):
        advance(cache, 4, 2)
    assert cache.seen == 4
    assert all(torch.equal(a, b) for a, b in zip(content(cache), before, strict=True))
    advance(cache, 4, 1)
    assert cache.seen == 5


def test_state_of_fixed_size_is_float32_and_copied():
    cache = LayerCache(SPECS["state"], 3, 9, torch.int8)
    state = normal(3, 2, 3).requires_grad_()
    cache.advance(4, state=state)
    assert cache.fixed["state"].dtype == torch.float32
    assert not cache.fixed["state"].requires_grad
    assert cache.fixed["state"].data_ptr() != state.data_ptr()
    assert torch.equal(cache.fixed["state"], state)
    assert (cache.seen, cache.num_bytes()) == (4, 3 * 6 * 4)


@torch.no_grad()
def test_a_float16_ring_says_that_a_key_was_too_large_when_it_is_overwritten_too():
    cache = LayerCache(SPECS["ring"], 3, 13, torch.float16)
    new = token_entries(13)
    new["key"][0, 0, 4] = 1e6
    whole = KVCache([None, cache, None])
    for start in range(9):
        cache.update(**{name: tensor[:, :, start : start + 1] for name, tensor in new.items()})
        assert (whole.overflow() is not None) == (start >= 4)
    assert whole.stored == [cache]
    assert (whole.seen, whole.max_length, whole.batch_size) == (9, 13, 3)
