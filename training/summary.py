"""A finished run in words."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tracking.progress import in_words


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
        f"KV cache {summary['kv_cache_bytes_per_token']:,} bytes per token, "
        f"{summary['cache_ratio_to_mha']:.3f} of MHA's",
        f"files: {folder}",
        f"next: {_next_commands(name, arguments)}",
    ]
    return "\n".join(lines)


def describe_in_short(summary: Mapping[str, Any]) -> str:
    """Say in a line how good a run of several is, and what it costs."""
    return (
        f"{summary['run_name']}: validation perplexity {summary['validation_perplexity']:.2f}, KV "
        f"cache {summary['kv_cache_bytes_per_token']:,} bytes per token, trained in "
        f"{in_words(summary['wall_seconds'])}"
    )


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
