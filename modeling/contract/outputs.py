"""Promises about what attention returns, with a cache and without."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from modeling.attention import AttentionConfig, ForwardPass
from modeling.contract.common import (
    BATCH,
    FELT,
    LENGTH,
    Finding,
    build,
    left_padding,
    near,
    run_through_cache,
    states,
)
from modeling.contract.placements import ReadingConfig, changed, oracle_output

_CHUNKS = ((3, 3, 1), (4, 1, 2), (1, 6))


@torch.no_grad()
def shape(config: AttentionConfig) -> Iterator[Finding]:
    """Output has the shape and dtype of the input."""
    module, x = build(config), states(config)
    for where, cache in (("", None), (" with a cache", module.new_cache(BATCH, LENGTH))):
        y = module(x, torch.arange(LENGTH), cache)
        passed = y.shape == x.shape and y.dtype == x.dtype
        measured = f"[b, s, m] in is {[*x.shape]} {x.dtype}, out{where} {[*y.shape]} {y.dtype}"
        yield Finding(passed, measured.replace("torch.", ""), "what forward returns")


@torch.no_grad()
def causality(config: AttentionConfig) -> Iterator[Finding]:
    """No token sees a later one."""
    hint = "the causal mask in forward, without a cache and for several tokens with one"
    module, x, positions = build(config), states(config), torch.arange(LENGTH)
    changed = x.clone()
    changed[:, 5] = states(config, seed=5)[:, 5]
    for where, chunks in (("full pass", None), ("chunks of 3 and 4", (3, 4))):
        before, after = (
            module(each, positions)
            if chunks is None
            else run_through_cache(module, each, positions, chunks)
            for each in (x, changed)
        )
        yield near(after[:, :5], before[:, :5], f"{where}, tokens before the changed one", hint)
        felt = float((after[:, 5:] - before[:, 5:]).abs().amax(-1).min())
        yield Finding(felt > FELT, f"{where}, tokens from it on: moved by {felt:.1e}", hint)


@torch.no_grad()
def decoding(config: AttentionConfig) -> Iterator[Finding]:
    """Decoding token by token is the full pass."""
    hint = "positions and order of what forward appends to the cache, and what it reads from there"
    module, x = build(config), states(config)
    for positions in (torch.arange(LENGTH), torch.tensor([3, 5, 6, 7, 20, 21, 22])):
        found = run_through_cache(module, x, positions, (1,) * LENGTH)
        where = f"{LENGTH} tokens at positions {positions[0]} to {positions[-1]}"
        yield near(found, module(x, positions), where, hint)


@torch.no_grad()
def chunks(config: AttentionConfig) -> Iterator[Finding]:
    """Chunks through the cache are the full pass."""
    hint = "the causal mask of a chunk: query i sees what was cached before and i + 1 of its keys"
    module, x, positions = build(config), states(config), torch.arange(LENGTH)
    expected = module(x, positions)
    for sizes in _CHUNKS:
        found = run_through_cache(module, x, positions, sizes)
        yield near(found, expected, f"chunks of {', '.join(map(str, sizes))}", hint)


@torch.no_grad()
def truncation(config: AttentionConfig) -> Iterator[Finding]:
    """A cache cut back and continued is the full pass."""
    hint = "state that forward keeps apart from the cache"
    module, x, positions = build(config), states(config), torch.arange(LENGTH)
    cache = module.new_cache(BATCH, LENGTH)
    run_through_cache(module, x, positions, (4, 3), cache=cache)
    state, length = config.state(), 2
    if state.fixed or state.held(LENGTH) < LENGTH:
        try:
            cache.truncate(length)
        except ValueError:
            yield Finding(True, "what was overwritten is needed: refused", hint)
        else:
            yield Finding(False, "what was overwritten is needed, and no error raised", "state")
        cache.reset()
        length = 0
    cache.truncate(length)
    found = module(x[:, length:], positions[length:], cache)
    what = f"cut back from {LENGTH} tokens to {length}"
    yield near(found, module(x, positions)[:, length:], what, hint)


@torch.no_grad()
def snapshot(config: AttentionConfig) -> Iterator[Finding]:
    """A cache restored from a snapshot is as if nothing had come after."""
    hint = "state that forward keeps apart from the cache"
    module, x, positions = build(config), states(config), torch.arange(LENGTH)
    expected, other = module(x, positions), states(config, seed=6)
    for then, count in ((2, 1), (2, 5), (4, 3)):
        cache = module.new_cache(BATCH, LENGTH)
        run_through_cache(module, x[:, :then], positions[:then], (1, then - 1), cache=cache)
        moment, end = cache.snapshot(), then + count
        module(other[:, then:end], positions[then:end], cache)
        cache.restore(moment)
        found = module(x[:, then:], positions[then:], cache)
        what = f"after {then} tokens, restored {count} later"
        yield near(found, expected[:, then:], what, hint)


@torch.no_grad()
def padding(config: AttentionConfig) -> Iterator[Finding]:
    """Left padding changes nothing, whatever stands there."""
    hint = "attention_mask in forward: False keys must get no weight, without and with a cache"
    lengths = [7, 5, 2]
    positions, mask = left_padding(lengths)
    module, x = build(config), states(config)
    garbage = torch.where(mask[..., None], x, 100 * states(config, seed=8))
    outputs = {
        "full pass": module(garbage, positions, attention_mask=mask),
        "chunks of 4, 1, 2": run_through_cache(module, garbage, positions, (4, 1, 2), mask),
    }
    for where, output in outputs.items():
        for row, length in enumerate(lengths):
            alone = module(x[row : row + 1, -length:], torch.arange(length))
            what = f"{where}, a row of {length} with {LENGTH - length} of padding"
            yield near(output[row : row + 1, -length:], alone, what, hint)
    mask[1] = False
    finite = bool(module(x, positions, attention_mask=mask).isfinite().all())
    yield Finding(finite, f"a row of padding alone is {'' if finite else 'not '}finite", hint)


@torch.no_grad()
def documents(config: AttentionConfig) -> Iterator[Finding]:
    """Documents in one row are kept apart."""
    hint = "forward_pass in forward: a query sees nothing before its document's first token"
    module, x, positions = build(config), states(config), torch.arange(LENGTH)
    starts = torch.tensor([[0, 0, 0, 3, 3, 3, 3], [0] * LENGTH, [0, 1, 1, 1, 4, 4, 4]])
    outputs = {"full pass": module(x, positions, forward_pass=ForwardPass(None, starts))}
    for sizes in _CHUNKS:
        output = run_through_cache(module, x, positions, sizes, document_start=starts)
        outputs[f"chunks of {', '.join(map(str, sizes))}"] = output
    for where, output in outputs.items():
        for row, begins in enumerate(starts.tolist()):
            for begin in sorted(set(begins)):
                end = begin + begins.count(begin)
                alone = module(x[row : row + 1, begin:end], positions[begin:end])
                what = f"{where}, a document of {end - begin}"
                yield near(output[row : row + 1, begin:end], alone, what, hint)


@torch.no_grad()
def paths(config: AttentionConfig) -> Iterator[Finding]:
    """Every decode path is the full pass."""
    hint = "what attend does on that path: scale, mask, order of the heads"
    layer = config.reader if isinstance(config, ReadingConfig) else config
    x, positions = states(config), torch.arange(LENGTH)
    expected = build(config)(x, positions)
    for path in layer.DECODE_PATHS:
        module = build(changed(config, decode_path=path))
        for sizes in _CHUNKS:
            found = run_through_cache(module, x, positions, sizes)
            where = f"decode_path={path}, chunks of {', '.join(map(str, sizes))}"
            yield near(found, expected, where, hint)


@torch.no_grad()
def oracle(config: AttentionConfig) -> Iterator[Finding]:
    """Output is that of its float64 oracle, which computes one query and one key at a time."""
    module, x = build(config), states(config)
    positions = torch.tensor(
        [[0, 1, 2, 3, 4, 5, 6], [9, 3, 3, 40, 0, 7, 2], [500, 4, 77, 6, 1, 9, 12]]
    )
    _, mask = left_padding([7, 4, 6])
    mask[0, 3] = False  # a hole
    for where, given in (("full pass", None), ("padded, with a hole", mask)):
        expected = oracle_output(config, module, x, positions, given)
        if expected is None:
            return
        found = module(x, positions, attention_mask=given)
        yield near(found, expected, where, "both, and the equations that they come from")


@torch.no_grad()
def rows(config: AttentionConfig) -> Iterator[Finding]:
    """Rows of a batch are independent."""
    module, x, positions = build(config), states(config), torch.arange(LENGTH)
    alone = torch.cat([module(row, positions) for row in x.split(1)])
    hint = "sums, means or norms over the batch dimension in forward"
    yield near(module(x, positions), alone, f"{BATCH} rows together and alone", hint)


@torch.no_grad()
def determinism(config: AttentionConfig) -> Iterator[Finding]:
    """The same input gives the same output, bit for bit."""
    module, x, positions = build(config), states(config), torch.arange(LENGTH)
    gap = float((module(x, positions) - module(x, positions)).abs().max())
    hint = "dropout in evaluation mode, other random numbers, or state kept between calls"
    yield Finding(gap == 0, f"two calls differ by {gap:.1e}, expected 0", hint)


@torch.no_grad()
def positions(config: AttentionConfig) -> Iterator[Finding]:
    """Positions matter exactly where the attention rotates by them."""
    module, x = build(config), states(config)
    near, far = torch.arange(LENGTH), torch.tensor([0, 1, 4, 5, 9, 11, 30])
    gap = float((module(x, near) - module(x, far)).abs().max())
    has_rope = config.knows_order
    wanted = "expected more than 0" if has_rope else "expected 0"
    measured = f"knows_order is {has_rope}: other distances move by {gap:.1e}"
    hint = "whether forward rotates queries and keys by `positions`"
    yield Finding((gap > FELT) if has_rope else gap == 0, f"{measured}, {wanted}", hint)
