"""Measure finished runs by one protocol."""

import dataclasses
import fnmatch
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from data.prepared import PreparedData, SplitCounts, TokenStream
from evaluation.errors import EvaluationError
from evaluation.kv_cache import measure_generation_memory, measure_kv_cache
from evaluation.perplexity import Score, score
from evaluation.settings import EvalSettings
from evaluation.through_cache import CachedScorer
from modeling.accounting import mha_cache_bytes_per_token, num_parameters
from modeling.config import GPTConfig
from modeling.gpt import GPT
from modeling.kv_cache import cache_dtype_of
from tracking.checkpoints import CheckpointStore, same_version
from tracking.configuration import PASSES, flat, read_configuration, sequences_per_step
from tracking.metrics import read_metrics
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


@dataclasses.dataclass(frozen=True)
class EvaluatedRun:
    """What was found out about a run.

    Args:
        row: Of results.json; `protocol` is the card that says how its numbers came about.
        model: The configuration of the model.
        windows: What was scored, window by window; None where perplexity was not asked for.
        settings: The recorded configuration with dotted keys; the model as it was trained.
        curve: "tokens" and "perplexity": the validations during the training.
        sample: The text that the run wrote at its end.
    """

    row: dict[str, Any]
    model: GPTConfig
    windows: Score | None
    settings: dict[str, Any]
    curve: dict[str, list[float]]
    sample: str | None

    @property
    def name(self) -> str:
        """The run's name."""
        return str(self.row["run_name"])


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
    runs_dir: Path | str,
    patterns: Sequence[str] | None,
    say: Callable[[str], None],
    study: str | None = None,
) -> list[RunFolder]:
    """Return the finished runs that names choose.

    Args:
        runs_dir: The folder they are in.
        patterns: Names, with * and ? as wildcards; None takes all but those that learned a few
            sequences by heart (debug=overfit), whose perplexity says nothing.
        say: Receives a line for each run that is left out.
        study: Whose runs are looked for, to say how they are trained.

    Raises:
        EvaluationError: If there are none.
    """
    what = "attention=mla" if study is None else f"-m experiment={study}"
    how = f"train one: python train_model.py {what}"
    finished, problems = list_finished_runs(runs_dir) if Path(runs_dir).is_dir() else ([], [])
    for problem in problems:
        say(problem)
    if not finished:
        raise EvaluationError(f"there is no finished run in {runs_dir}; {how}")
    if patterns is None:
        overfit = [run for run in finished if (run.read_summary() or {}).get("overfit_batches")]
        for run in overfit:
            say(f"{run.name} learned a few sequences by heart; run={run.name} takes it")
        patterns = [run.name for run in finished if run not in overfit]
        if not patterns:
            raise EvaluationError(f"there is no finished run in {runs_dir} but those; {how}")
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


def require_baseline(attentions: Iterable[str], baseline: str | None) -> None:
    """Refuse a baseline that is the attention of no run.

    Raises:
        EvaluationError: Naming those that there are.
    """
    names = sorted(set(attentions))
    if baseline is not None and baseline not in names:
        raise EvaluationError(
            f"eval.baseline={baseline} is the attention of none of these runs; there are: "
            f"{', '.join(names)}"
        )


def evaluate_run(
    run: RunFolder,
    split: str,
    settings: EvalSettings,
    device: torch.device,
    say: Callable[[str], None],
) -> EvaluatedRun:
    """Score one run and weigh its cache.

    Raises:
        EvaluationError: If it cannot be loaded or scored.
        RunError: If one of its files cannot be read.
    """
    loaded = load_run(run, device, say, settings.decode_path)
    model, config = loaded.model, loaded.model.config
    stream = loaded.prepared.stream(split)  # refuses a split that is not there
    summary = run.read_summary() or {}
    cache_dtype = cache_dtype_of(settings.cache_dtype)
    cache = measure_kv_cache(
        model, settings.cache_batch_size, config.max_position_embeddings, cache_dtype
    )
    recorded, curve, sample = _settings(run, model), _curve(run), run.read_sample()
    windows = _score(loaded, stream, settings, device) if settings.perplexity else None
    row = {
        "run_name": run.path.name,
        "attention": config.attention["name"],
        "positions": _positions(config),
        "seed": loaded.state["seed"],
        "num_parameters": num_parameters(config).total,
        "tokens_trained": summary.get("tokens_trained"),
        "split": split,
        **_quality(windows, loaded.prepared.splits[split]),
        "kv_cache_bytes_per_token": cache.bytes_per_token,
        "kv_cache_bytes_measured": cache.measured_bytes_per_token,
        "cache_ratio_to_mha": cache.bytes_per_token
        / mha_cache_bytes_per_token(config, model.embed_tokens.weight.dtype),
        "generation_peak_extra_bytes": measure_generation_memory(
            model, settings.cache_batch_size, config.max_position_embeddings, cache_dtype
        ),
        "train_tokens_per_second": summary.get("tokens_per_second"),
        "train_peak_memory_bytes": summary.get("peak_memory_bytes"),
        "train_wall_seconds": summary.get("wall_seconds"),
        "versions": summary.get("versions"),
        "git_commit": summary.get("git_commit"),
        "protocol": _protocol(loaded, split, settings),
    }
    return EvaluatedRun(row, config, windows, recorded, curve, sample)


def _score(
    loaded: LoadedRun, stream: TokenStream, settings: EvalSettings, device: torch.device
) -> Score:
    model = loaded.model
    scorer = CachedScorer(model, cache_dtype_of(settings.cache_dtype)) if settings.decode else model
    context, stride = settings.windows(model.config)
    return score(scorer, stream, context, stride, settings.batch_size, device)


def _quality(windows: Score | None, counts: SplitCounts) -> dict[str, Any]:
    """Return what the scores say; nothing but empty numbers where nothing was scored."""
    if windows is None:
        keys = ("tokens_scored", "nll", "perplexity", "word_perplexity", "bits_per_byte")
        return dict.fromkeys(keys)
    return {
        "tokens_scored": windows.tokens_scored,
        "nll": windows.nll,
        "perplexity": windows.perplexity,
        "word_perplexity": windows.word_perplexity(counts.words),
        "bits_per_byte": windows.bits_per_byte(counts.utf8_bytes),
    }


def _settings(run: RunFolder, model: GPT) -> dict[str, Any]:
    """Return the recorded configuration, with the model that was trained, complete."""
    recorded = read_configuration(run.config_path) if run.config_path.exists() else {}
    recipe = {
        key: value
        for key, value in recorded.items()
        if not key.startswith("model.") and key not in PASSES
    }
    if (sequences := sequences_per_step(recorded)) is not None:
        recipe["trainer.sequences_per_step"] = sequences
    # By the classes, since a run from before a key does not have it.
    config = model.config
    attention = dataclasses.asdict(model.attention_config) | {"name": config.attention["name"]}
    return recipe | flat({"model": dataclasses.asdict(config) | {"attention": attention}})


def _curve(run: RunFolder) -> dict[str, list[float]]:
    """Return the validations during the training: tokens so far, and perplexity."""
    records = read_metrics(run.metrics_path) if run.metrics_path.exists() else []
    keys = ("progress/tokens", "validation/perplexity_part")
    points: list[list[Any]] = [[record.get(key) for key in keys] for record in records]
    whole = [point for point in points if all(isinstance(v, int | float) and v > 0 for v in point)]
    return {"tokens": [x for x, _ in whole], "perplexity": [y for _, y in whole]}


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


def _positions(config: GPTConfig) -> str:
    rope = config.attention["qk_rope_head_dim"] > 0
    learned = config.position_embedding == "learned"
    return " + ".join(name for name, has in (("RoPE", rope), ("learned", learned)) if has) or "none"
