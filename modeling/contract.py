"""What every attention promises, checked on a small one: a measured number for each promise."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.gradcheck import GradcheckError, gradcheck
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from modeling.attention import Attention, AttentionConfig, SoftmaxAttentionConfig
from modeling.kv_cache import KVCache, LayerCache

_BATCH, _LENGTH = 3, 7
_CHUNKS = ((3, 3, 1), (4, 1, 2), (1, 6))
_FLOPS_CONTEXT = 48
# Machine epsilons of the largest value that attentions of such sizes may be off by; measured: 13.
_ROUNDINGS = 64
_FELT = 1e-6
"""What changes an output changes it by more than this."""


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Args:
        passed: Whether the promise is kept.
        measured: What was measured, and what was expected or allowed.
        hint: Where to look if it is not kept.
        share: What was measured, as a share of what is allowed; None where that makes no sense.
    """

    passed: bool
    measured: str
    hint: str
    share: float | None = None


def randomise(module: nn.Module, std: float = 0.5, seed: int = 1) -> nn.Module:
    """Give every parameter large values without any symmetry; norms stay positive."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "norm" in name:
                parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
            else:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(std * noise + std / 10)
    return module


def run_through_cache(
    module: Attention,
    x: Tensor,
    positions: Tensor,
    chunks: Sequence[int],
    attention_mask: Tensor | None = None,
    cache: LayerCache | None = None,
) -> Tensor:
    """Feed x [b, s, m] to an attention in chunks, through one cache."""
    assert sum(chunks) == x.shape[1]
    cache = cache or module.new_cache(x.shape[0], x.shape[1])
    outputs, start = [], 0
    for size in chunks:
        end = start + size
        mask = attention_mask
        if mask is not None:
            mask = mask[:, :end] if mask.dim() == 2 else mask[:, start:end, :end]
        piece, positions_now = x[:, start:end], positions[..., start:end]
        outputs.append(module(piece, positions_now, cache, attention_mask=mask))
        start = end
    return torch.cat(outputs, dim=1)


def left_padding(lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return positions and padding mask, [b, s], of rows that end together."""
    index = torch.arange(max(lengths))
    start = max(lengths) - torch.tensor(lengths)[:, None]
    return (index - start).clamp(min=0), index >= start


def _build(config: AttentionConfig) -> Attention:
    module = config.build()
    randomise(module)
    return module.double().eval()


def _states(config: AttentionConfig, seed: int = 0, batch: int = _BATCH) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, _LENGTH, config.hidden_size)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _near(found: Tensor, expected: Tensor, what: str, hint: str) -> Finding:
    if found.shape != expected.shape:
        return Finding(False, f"shape {[*found.shape]}, expected {[*expected.shape]}", hint)
    gap = float((found - expected).abs().max())
    allowed = _ROUNDINGS * torch.finfo(found.dtype).eps * float(expected.abs().max())
    measured = f"{what}: off by {gap:.1e}, allowed {allowed:.1e}"
    return Finding(gap <= allowed, measured, hint, gap / (allowed or 1))


def _equal(found: float, expected: float, what: str, hint: str) -> Finding:
    measured = f"{what}measured {found:,}, closed form {expected:,}"
    return Finding(found == expected, measured, hint)


@torch.no_grad()
def shape(config: AttentionConfig) -> Iterator[Finding]:
    """Output has the shape and dtype of the input."""
    module, x = _build(config), _states(config)
    for where, cache in (("", None), (" with a cache", module.new_cache(_BATCH, _LENGTH))):
        y = module(x, torch.arange(_LENGTH), cache)
        passed = y.shape == x.shape and y.dtype == x.dtype
        measured = f"[b, s, m] in is {[*x.shape]} {x.dtype}, out{where} {[*y.shape]} {y.dtype}"
        yield Finding(passed, measured.replace("torch.", ""), "what forward returns")


@torch.no_grad()
def causality(config: AttentionConfig) -> Iterator[Finding]:
    """No token sees a later one."""
    hint = "the causal mask in forward, without a cache and for several tokens with one"
    module, x, positions = _build(config), _states(config), torch.arange(_LENGTH)
    changed = x.clone()
    changed[:, 5] = _states(config, seed=5)[:, 5]
    for where, chunks in (("full pass", None), ("chunks of 3 and 4", (3, 4))):
        before, after = (
            module(each, positions)
            if chunks is None
            else run_through_cache(module, each, positions, chunks)
            for each in (x, changed)
        )
        yield _near(after[:, :5], before[:, :5], f"{where}, tokens before the changed one", hint)
        felt = float((after[:, 5:] - before[:, 5:]).abs().amax(-1).min())
        yield Finding(felt > _FELT, f"{where}, tokens from it on: moved by {felt:.1e}", hint)


@torch.no_grad()
def decoding(config: AttentionConfig) -> Iterator[Finding]:
    """Decoding token by token is the full pass."""
    hint = "positions and order of what forward appends to the cache, and what it reads from there"
    module, x = _build(config), _states(config)
    for positions in (torch.arange(_LENGTH), torch.tensor([3, 5, 6, 7, 20, 21, 22])):
        found = run_through_cache(module, x, positions, (1,) * _LENGTH)
        where = f"{_LENGTH} tokens at positions {positions[0]} to {positions[-1]}"
        yield _near(found, module(x, positions), where, hint)


@torch.no_grad()
def chunks(config: AttentionConfig) -> Iterator[Finding]:
    """Chunks through the cache are the full pass."""
    hint = "the causal mask of a chunk: query i sees what was cached before and i + 1 of its keys"
    module, x, positions = _build(config), _states(config), torch.arange(_LENGTH)
    expected = module(x, positions)
    for sizes in _CHUNKS:
        found = run_through_cache(module, x, positions, sizes)
        yield _near(found, expected, f"chunks of {', '.join(map(str, sizes))}", hint)


@torch.no_grad()
def truncation(config: AttentionConfig) -> Iterator[Finding]:
    """A cache cut back and continued is the full pass."""
    hint = "state that forward keeps outside of the cache"
    module, x, positions = _build(config), _states(config), torch.arange(_LENGTH)
    cache = module.new_cache(_BATCH, _LENGTH)
    run_through_cache(module, x, positions, (4, 3), cache=cache)
    cache.truncate(2)
    found = module(x[:, 2:], positions[2:], cache)
    yield _near(found, module(x, positions)[:, 2:], "cut back from 7 tokens to 2", hint)


@torch.no_grad()
def padding(config: AttentionConfig) -> Iterator[Finding]:
    """Left padding changes nothing, whatever stands there."""
    hint = "attention_mask in forward: False keys must get no weight, without and with a cache"
    lengths = [7, 5, 2]
    positions, mask = left_padding(lengths)
    module, x = _build(config), _states(config)
    garbage = torch.where(mask[..., None], x, 100 * _states(config, seed=8))
    outputs = {
        "full pass": module(garbage, positions, attention_mask=mask),
        "chunks of 4, 1, 2": run_through_cache(module, garbage, positions, (4, 1, 2), mask),
    }
    for where, output in outputs.items():
        for row, length in enumerate(lengths):
            alone = module(x[row : row + 1, -length:], torch.arange(length))
            what = f"{where}, a row of {length} with {_LENGTH - length} of padding"
            yield _near(output[row : row + 1, -length:], alone, what, hint)
    mask[1] = False
    finite = bool(module(x, positions, attention_mask=mask).isfinite().all())
    yield Finding(finite, f"a row of padding alone is {'' if finite else 'not '}finite", hint)


@torch.no_grad()
def rows(config: AttentionConfig) -> Iterator[Finding]:
    """Rows of a batch are independent."""
    module, x, positions = _build(config), _states(config), torch.arange(_LENGTH)
    alone = torch.cat([module(row, positions) for row in x.split(1)])
    hint = "sums, means or norms over the batch dimension in forward"
    yield _near(module(x, positions), alone, f"{_BATCH} rows together and alone", hint)


@torch.no_grad()
def determinism(config: AttentionConfig) -> Iterator[Finding]:
    """The same input gives the same output, bit for bit."""
    module, x, positions = _build(config), _states(config), torch.arange(_LENGTH)
    gap = float((module(x, positions) - module(x, positions)).abs().max())
    hint = "dropout in evaluation mode, other random numbers, or state kept between calls"
    yield Finding(gap == 0, f"two calls differ by {gap:.1e}, expected 0", hint)


@torch.no_grad()
def positions(config: AttentionConfig) -> Iterator[Finding]:
    """Positions matter exactly where the attention rotates by them."""
    module, x = _build(config), _states(config)
    near, far = torch.arange(_LENGTH), torch.tensor([0, 1, 4, 5, 9, 11, 30])
    gap = float((module(x, near) - module(x, far)).abs().max())
    has_rope = config.knows_order
    wanted = "expected more than 0" if has_rope else "expected 0"
    measured = f"knows_order is {has_rope}: other distances move by {gap:.1e}"
    hint = "whether forward rotates queries and keys by `positions`"
    yield Finding((gap > _FELT) if has_rope else gap == 0, f"{measured}, {wanted}", hint)


@torch.no_grad()
def cache_bytes(config: AttentionConfig) -> Iterator[Finding]:
    """Cache bytes are the closed form, at two contexts."""
    hint = "state"
    for context in (11, 29):
        module = config.build().eval()
        cache = module.new_cache(_BATCH, context)
        x = torch.randn(_BATCH, context, config.hidden_size)
        module(x[:, :-1], torch.arange(context - 1), cache)
        module(x[:, -1:], torch.tensor([context - 1]), cache)
        closed = _BATCH * config.state().bytes(context, torch.float32)
        what = f"bytes of {_BATCH} x {context} tokens in float32: "
        yield _equal(KVCache([cache]).num_bytes(), closed, what, hint)
        if cache.seen != context:
            held = f"{cache.seen} tokens are cached after {context}"
            yield Finding(False, held, "what forward appends to the cache")


def parameters(config: AttentionConfig) -> Iterator[Finding]:
    """Parameters are the closed form."""
    real = sum(parameter.numel() for parameter in config.build().parameters())
    yield _equal(real, config.num_parameters(), "", "num_parameters")


@torch.no_grad()
def flops(config: AttentionConfig) -> Iterator[Finding]:
    """FLOPs are the closed form, within 2 %."""
    if isinstance(config, SoftmaxAttentionConfig):
        # Values that are narrower than keys are padded to their width for the fused kernels, which
        # is no work of the model: it is counted with values as wide.
        key = getattr(config, "head_dim", 0) or (
            getattr(config, "qk_nope_head_dim", 0) + config.qk_rope_head_dim
        )
        config = dataclasses.replace(config, v_head_dim=max(key, config.v_head_dim))
    module, context = config.build().eval(), _FLOPS_CONTEXT
    x = torch.randn(1, context, config.hidden_size)
    counter = FlopCounterMode(display=False)
    # Every product of the unfused kernel is counted, those of hidden keys too.
    with sdpa_kernel(SDPBackend.MATH), counter:
        module(x, torch.arange(context))
    counted = counter.get_total_flops() / context
    # Causal attention sees (t + 1) / 2 of t keys: all are seen at context 2 t - 1.
    closed = config.flops_per_token(2 * context - 1)
    measured = f"per token: counted {counted:,.0f}, closed form {closed:,.0f}"
    passed = abs(closed - counted) <= 0.02 * counted
    yield Finding(passed, measured, "flops_per_token: a multiply-add is two")


def gradient(config: AttentionConfig) -> Iterator[Finding]:
    """The gradient reaches every parameter and the input."""
    module = _build(config).train()
    x = _states(config).requires_grad_()
    module(x, torch.arange(_LENGTH)).square().sum().backward()
    tensors = {"x": x, **dict(module.named_parameters())}
    sizes = {name: 0.0 if t.grad is None else float(t.grad.norm()) for name, t in tensors.items()}
    name = min(sizes, key=lambda key: sizes[key])
    measured = f"smallest of {len(sizes)} norms: {sizes[name]:.1e} of {name}"
    hint = f"whether forward uses {name}, and no detach or no_grad lies between"
    yield Finding(sizes[name] > _FELT, measured, hint)


def gradient_check(config: AttentionConfig) -> Iterator[Finding]:
    """The gradient is that of finite differences, in float64."""
    module, x = _build(config), _states(config, batch=2)[:, :4].requires_grad_()
    names = [name for name, _ in module.named_parameters()]

    def forward(x: Tensor, *weights: Tensor) -> Tensor:
        state = dict(zip(names, weights, strict=True))
        return torch.func.functional_call(module, state, (x, torch.arange(4)))

    hint = "a custom backward, or an operation in forward that autograd does not see"
    try:
        gradcheck(forward, (x, *module.parameters()), fast_mode=True, atol=1e-4)
    except GradcheckError as error:
        yield Finding(False, f"gradcheck: {str(error).splitlines()[0]}", hint)
    else:
        count = len(names)
        yield Finding(True, f"gradcheck agrees for x and {count} parameters, within 1e-4", hint)


def initialisation(config: AttentionConfig) -> Iterator[Finding]:
    """The projections into the residual stream are named, for depth-scaled initialisation."""
    module = config.build()
    named = {id(child): name for name, child in module.named_modules()}
    found = module.residual_projections()
    names = [named.get(id(child), "one that is no part of the module") for child in found]
    widths = [getattr(child, "out_features", 0) for child in found]
    passed = bool(found) and all(id(child) in named for child in found)
    passed = passed and all(width == config.hidden_size for width in widths)
    measured = f"{', '.join(names) or 'none'}, of width {', '.join(map(str, widths)) or '-'}"
    yield Finding(passed, f"{measured}, expected {config.hidden_size}", "residual_projections")


Check = Callable[[AttentionConfig], Iterator[Finding]]

CHECKS: tuple[Check, ...] = (
    *(shape, decoding, chunks, truncation, padding, causality, rows, positions, determinism),
    *(cache_bytes, parameters, flops, gradient, gradient_check, initialisation),
)


def examine(check: Check, config: AttentionConfig) -> Finding:
    """Make one check: what it found, of several the worst, or that the attention raised an error.

    Args:
        check: Of `CHECKS`; the first line of its docstring says what is promised.
        config: Of a small attention: a few heads, a width of some dozens.
    """
    try:
        findings = list(check(config))
    except Exception as error:
        reason = " ".join(str(error).split())
        return Finding(False, f"raised {type(error).__name__}: {reason}", "forward and build")
    failed = [finding for finding in findings if not finding.passed]
    if failed:
        return failed[0]
    # Of what may be off by something, what is off most.
    compared = sorted((f for f in findings if f.share is not None), key=lambda f: -(f.share or 0))
    told = [*compared[:1], *(finding for finding in findings if finding.share is None)]
    return Finding(True, "; ".join(finding.measured for finding in told), "")
