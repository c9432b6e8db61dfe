"""Measure finished runs by one protocol, and lay the numbers side by side."""

import dataclasses
import fnmatch
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from data.prepared import PreparedData, TokenStream
from evaluation.decode import break_even, measure_decode
from evaluation.errors import EvaluationError
from evaluation.kv_cache import measure_generation_memory, measure_kv_cache
from evaluation.perplexity import score
from evaluation.settings import EvalSettings
from evaluation.through_cache import CachedScorer
from modeling.accounting import mha_cache_bytes_per_token, num_parameters
from modeling.config import GPTConfig
from modeling.gpt import GPT
from modeling.kv_cache import cache_dtype_of
from tracking.checkpoints import CheckpointStore, same_version
from tracking.run_folder import RunFolder, list_finished_runs


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    """A run's newest checkpoint, ready to be used.

    Args:
        model: In evaluation mode, float32.
        prepared: The corpus it was trained on.
        state: What the checkpoint says of itself.
    """

    model: GPT
    prepared: PreparedData
    state: dict[str, Any]


def load_run(
    run: RunFolder,
    device: torch.device,
    say: Callable[[str], None],
    decode_path: str | None = None,
) -> LoadedRun:
    """Build the model that a run's newest checkpoint describes and open its corpus.

    Args:
        run: Which.
        device: Where the model goes.
        say: Receives one line where the user should know something.
        decode_path: How the model reads its cache, if not as its configuration says.

    Raises:
        EvaluationError: If there is no checkpoint, or its corpus is gone or another one.
    """
    # Read-only: another process may be training this run and in the middle of a save.
    store = CheckpointStore(run.checkpoints_path, keep_last=1, say=say, read_only=True)
    steps = store.steps()
    if not steps:
        raise EvaluationError(f"{run.path} has no checkpoint; train it first, or name another run")
    # By its step, so that a damaged one is refused: an older one would pass for the finished model.
    checkpoint = store.load(steps[-1], names=["model"])
    state = checkpoint.state
    with same_version(checkpoint.path):
        folder, trained_on = Path(state["data"]["folder"]), state["data"]["fingerprint"]
        config = GPTConfig(**state["model"])
        if decode_path is not None:
            config.attention = config.attention | {"decode_path": decode_path}
        model = GPT(config)
        model.load_state_dict(checkpoint.tensors["model"])
    prepared = PreparedData(folder)
    if prepared.fingerprint != trained_on:
        raise EvaluationError(
            f"{run.path.name} was trained on other data than {folder} now holds (fingerprint "
            f"{trained_on[:12]}, not {prepared.fingerprint[:12]}); train it again"
        )
    return LoadedRun(model.to(device).eval(), prepared, state)


def choose_runs(
    runs_dir: Path | str, patterns: Sequence[str], say: Callable[[str], None]
) -> list[RunFolder]:
    """Return the finished runs that names, with * and ? as wildcards, choose.

    Raises:
        EvaluationError: If there are none.
    """
    finished, problems = list_finished_runs(runs_dir) if Path(runs_dir).is_dir() else ([], [])
    for problem in problems:
        say(problem)
    if not finished:
        raise EvaluationError(
            f"there is no finished run in {runs_dir}; train one: python train_model.py "
            "attention=mla"
        )
    chosen: list[RunFolder] = []
    for pattern in patterns:
        matching = [run for run in finished if fnmatch.fnmatch(run.path.name, pattern)]
        if not matching:
            raise EvaluationError(
                f"no finished run in {runs_dir} is called '{pattern}'; there are: "
                f"{', '.join(r.path.name for r in finished)}"
            )
        chosen += [run for run in matching if run not in chosen]
    return chosen


def evaluate_run(
    run: RunFolder,
    split: str,
    settings: EvalSettings,
    device: torch.device,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Score one run and weigh its cache.

    Returns:
        A row of results.json; `protocol` is the card that says how its numbers came about.
    """
    loaded = load_run(run, device, say, settings.decode_path)
    model, config = loaded.model, loaded.model.config
    stream = loaded.prepared.stream(split)  # refuses a split that is not there
    summary = run.read_summary() or {}
    cache_dtype = cache_dtype_of(settings.cache_dtype)
    cache = measure_kv_cache(
        model, settings.cache_batch_size, config.max_position_embeddings, cache_dtype
    )
    return {
        "run_name": run.path.name,
        "attention": config.attention["name"],
        "positions": _positions(config),
        "seed": loaded.state["seed"],
        "num_parameters": num_parameters(config).total,
        "tokens_trained": summary.get("tokens_trained"),
        "split": split,
        **_quality(loaded, stream, split, settings, device),
        "kv_cache_bytes_per_token": cache.bytes_per_token,
        "kv_cache_bytes_measured": cache.measured_bytes_per_token,
        "cache_ratio_to_mha": cache.bytes_per_token
        / mha_cache_bytes_per_token(config, model.embed_tokens.weight.dtype),
        "generation_peak_extra_bytes": measure_generation_memory(
            model, settings.cache_batch_size, config.max_position_embeddings, cache_dtype
        ),
        "train_tokens_per_second": summary.get("tokens_per_second"),
        "protocol": _protocol(loaded, split, settings),
    }


def _quality(
    loaded: LoadedRun,
    stream: TokenStream,
    split: str,
    settings: EvalSettings,
    device: torch.device,
) -> dict[str, Any]:
    """Score the split; nothing but empty numbers where the settings leave that out."""
    keys = ("tokens_scored", "nll", "perplexity", "word_perplexity", "bits_per_byte")
    if not settings.perplexity:
        return dict.fromkeys(keys)
    model, counts = loaded.model, loaded.prepared.splits[split]
    scorer = CachedScorer(model, cache_dtype_of(settings.cache_dtype)) if settings.decode else model
    context, stride = settings.windows(model.config)
    result = score(scorer, stream, context, stride, settings.batch_size, device)
    values = (
        result.tokens_scored,
        result.nll,
        result.perplexity,
        result.word_perplexity(counts.words),
        result.bits_per_byte(counts.utf8_bytes),
    )
    return dict(zip(keys, values, strict=True))


def _protocol(loaded: LoadedRun, split: str, settings: EvalSettings) -> dict[str, Any]:
    model, prepared = loaded.model, loaded.prepared
    counts = prepared.splits[split]
    context, stride = settings.windows(model.config)
    dtype = _name(model.embed_tokens.weight.dtype)
    cached = f"token by token, {settings.cache_dtype or dtype} cache"
    return {
        "corpus": prepared.name,
        "revision": prepared.revision,
        "split": split,
        "data_fingerprint": prepared.fingerprint,
        "tokenizer_sha256": prepared.tokenizer_sha256,
        "context": context,
        "stride": stride,
        "dtype": dtype,
        "decode_path": cached if settings.decode else "full windows, no cache",
        "intra_document_mask": model.config.intra_document_mask,
        "tokens": counts.tokens,
        "words": counts.words,
        "utf8_bytes": counts.utf8_bytes,
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def add_decode_speed(
    rows: Sequence[dict[str, Any]],
    runs: Mapping[str, RunFolder],
    settings: EvalSettings,
    device: torch.device,
    say: Callable[[str], None],
) -> None:
    """Time the decoding of all rows' runs in turns.

    Runs that differ in their weights alone (seeds, data) are timed once: weights change no time.

    Args:
        rows: Of `evaluate_run`; each gets `decode`, a list of `DecodePoint` rows, and `break_even`:
            by batch, the context from which on it decodes faster than the first row of MHA.
        runs: By run name.
        settings: Batches and contexts.
        device: Where.
        say: Receives one line where the user should know something.
    """
    models: dict[str, GPT] = {}
    timed_as: dict[str, str] = {}
    for row in rows:
        name = row["run_name"]
        model = load_run(runs[name], device, say, settings.decode_path).model
        alike = (other for other in models if models[other].config == model.config)
        timed_as[name] = next(alike, name)
        models.setdefault(timed_as[name], model)
    found = measure_decode(models, settings.decode_speed, cache_dtype_of(settings.cache_dtype), say)
    for row in rows:
        row["decode"] = [point.as_row() for point in found[timed_as[row["run_name"]]]]
    baseline: list[dict[str, Any]] = next(
        (row["decode"] for row in rows if row["attention"] == "mha"), []
    )
    for row in rows:
        row["break_even"] = {
            str(batch): None
            if row["attention"] == "mha"
            else break_even(row["decode"], baseline, batch)
            for batch in settings.decode_speed.batch_sizes
        }


def _positions(config: GPTConfig) -> str:
    rope = config.attention["qk_rope_head_dim"] > 0
    learned = config.position_embedding == "learned"
    return " + ".join(name for name, has in (("RoPE", rope), ("learned", learned)) if has) or "none"


def group_by_protocol(rows: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Group rows whose protocol cards are equal: only their numbers may share a table."""
    groups: list[list[dict[str, Any]]] = []
    for row in rows:
        for group in groups:
            if group[0]["protocol"] == row["protocol"]:
                group.append(row)
                break
        else:
            groups.append([row])
    return [sorted(group, key=lambda row: -row["cache_ratio_to_mha"]) for group in groups]
