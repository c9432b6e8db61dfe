"""A finished run: its numbers, as summary.json holds them, and in words."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from measuring.kv_cache import CacheMeasurement
from measuring.perplexity import Score
from modeling.accounting import num_parameters, training_flops_per_token
from tracking.progress import in_words
from training.endurance.resumption import Identity, Progress
from training.recipe.budget import TokenBudget

_NUMERICS = ("device", "num_threads", "native_bfloat16")
"""What a summary says of `provenance.numerics`, in addition to the dtype."""


def summarise(
    identity: Identity,
    budget: TokenBudget,
    progress: Progress,
    score: Score,
    cache: CacheMeasurement,
) -> dict[str, Any]:
    """Return what summary.json holds, but for the run's name.

    Args:
        identity: What was trained, on which data and by which software.
        budget: What it spent.
        progress: Its times and its peak memory.
        score: On the whole validation split.
        cache: The live KV cache, measured.
    """
    recipe, prepared, provenance = identity.recipe, identity.prepared, identity.provenance
    count = num_parameters(recipe.model)
    flops_per_token = training_flops_per_token(recipe.model, budget.tokens_per_sequence)
    return {
        "attention": recipe.model.attention["name"],
        "position_embedding": recipe.model.position_embedding,
        "num_parameters": count.total,
        "num_attention_parameters": count.attention,
        "tokens_trained": budget.num_tokens,
        "overfit_batches": budget.distinct_steps,
        "train_loss": progress.last_loss,
        "validation_nll": score.nll,
        "validation_perplexity": score.perplexity,
        "validation_bits_per_byte": score.bits_per_byte(prepared.splits["validation"].utf8_bytes),
        **cache.as_row(),
        "tokens_per_second": budget.num_tokens / progress.train_seconds,
        "data_wait_share": progress.data_seconds / progress.train_seconds,
        "mfu": budget.num_tokens * flops_per_token / progress.possible_flops,
        "wall_seconds": progress.wall_seconds,
        "resumes": progress.resumes,
        "numerics_changed": progress.numerics_changed,
        "versions_changed": progress.versions_changed,
        "peak_memory_bytes": progress.peak_memory_bytes,
        "versions": provenance.versions,
        "git_commit": provenance.git_commit,
        "numerics": {
            "dtype": provenance.numerics["precision"],
            **{key: provenance.numerics[key] for key in _NUMERICS},
        },
    }


def describe_run(
    summary: Mapping[str, Any],
    corpus: str,
    baselines: Mapping[str, float],
    folder: Path,
    arguments: Sequence[str] = (),
) -> str:
    """Say what was trained, how fast, how good it is, what it caches and what to run next.

    Args:
        summary: What summary.json holds.
        corpus: The label of the data.
        baselines: unigram_perplexity and bigram_perplexity of the validation split.
        folder: The run's.
        arguments: What the next commands need to find the run, where that is not the default.

    Returns:
        Several lines.
    """
    name = summary["run_name"]
    perplexity = summary["validation_perplexity"]
    unigram, bigram = baselines["unigram_perplexity"], baselines["bigram_perplexity"]
    lines = [
        f"{name}: {summary['attention']} with {summary['num_parameters']:,} parameters, trained on "
        f"{summary['tokens_trained']:,} tokens of {corpus} in {in_words(summary['wall_seconds'])} "
        f"({summary['tokens_per_second']:,.0f} tokens/s, MFU {summary['mfu']:.2f}, peak memory "
        f"{summary['peak_memory_bytes'] / 2**20:,.0f} MiB)"
    ]
    if steps := summary["overfit_batches"]:
        lines.append(
            f"overfit run: {steps} step(s)' sequences again and again (trainer.overfit_batches), "
            f"training loss {summary['train_loss']:.3f} nats per token; the validation perplexity "
            "says nothing about this attention"
        )
    lines += [
        f"validation perplexity {perplexity:.2f} (unigram model {unigram:.2f}, bigram model "
        f"{bigram:.2f}), {summary['validation_bits_per_byte']:.3f} bits per byte"
        + ("" if summary["overfit_batches"] else _standing(perplexity, unigram, bigram)),
        f"KV cache {_cache(summary)}, {summary['cache_ratio_to_mha']:.3f} of MHA's"
        f"{_growth(summary)}",
        f"files: {folder}",
        f"next: {_next_commands(name, arguments)}",
    ]
    return "\n".join(lines)


def describe_in_short(summary: Mapping[str, Any]) -> str:
    """Say in a line how good a run of several is, and what it costs."""
    return (
        f"{summary['run_name']}: validation perplexity {summary['validation_perplexity']:.2f}, KV "
        f"cache {_cache(summary)}, trained in "
        f"{in_words(summary['wall_seconds'])}"
    )


def _cache(summary: Mapping[str, Any]) -> str:
    return (
        f"{summary['kv_cache_bytes_at_context']:,} bytes at {summary['kv_cache_context']:,} tokens"
    )


def _growth(summary: Mapping[str, Any]) -> str:
    """Say how the cache grows with the tokens; empty if what was measured fits no curve."""
    curve = summary["kv_cache_curve"]
    if curve is None:
        return ""
    fixed = f"{curve['fixed']:,} bytes and " if curve["fixed"] else ""
    first = f" ({fixed}{curve['slope']:,} a token"
    if curve["slope"] == curve["slope_beyond"]:
        return f"{first})"
    return f"{first} up to {curve['plateau']:,} tokens, then {curve['slope_beyond']:,})"


def _standing(perplexity: float, unigram: float, bigram: float) -> str:
    """Compare a perplexity with those of models that only count."""
    if perplexity < min(unigram, bigram):
        return ": better than counting pairs of tokens"
    if perplexity < unigram:
        return ": better than counting tokens, not yet than counting pairs; train it longer"
    return ": not yet better than counting tokens; train it longer"


def _next_commands(name: str, arguments: Sequence[str]) -> str:
    """Name the commands that look at this run."""
    commands = (["eval_model.py"], ["generate_text.py", f"run={name}"])
    return " or ".join(shlex.join(["python", *command, *arguments]) for command in commands)
