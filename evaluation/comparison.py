"""Measure finished runs by one protocol."""

import dataclasses
import fnmatch
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import torch
from torch import Tensor

from data.manifest import share_of
from data.prepared import PreparedData, SplitCounts, TokenStream
from evaluation.corpus import find_prepared
from evaluation.decode import Decodable
from evaluation.errors import EvaluationError
from evaluation.kv_cache import measure_generation_memory, measure_kv_cache, require_closed_form
from evaluation.numerics import device_class, trained_with
from evaluation.perplexity import Score, score
from evaluation.settings import EvalSettings
from evaluation.tasks import TaskScorer, answers_of
from evaluation.through_cache import CachedScorer
from modeling.accounting import mha_cache_bytes_per_token, num_parameters
from modeling.config import GPTConfig
from modeling.gpt import GPT
from modeling.kv_cache import cache_dtype_of
from tracking.checkpoints import CheckpointStore, same_version
from tracking.configuration import PASSES, flat, read_configuration, sequences_per_step
from tracking.metrics import read_metrics
from tracking.progress import Bar
from tracking.run_folder import RunFolder, list_finished_runs, without_seed


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
        model: The configuration of the model; None if it is of another library's modules.
        windows: What was scored, window by window; None where perplexity was not asked for.
        settings: The recorded configuration with dotted keys; the model as it was trained.
        curve: "tokens" and "perplexity": the validations during the training.
        sample: The text that the run wrote at its end.
        notes: What a reader of its numbers should know, a line each.
        prepared: The corpus whose text was scored; None where it is not at hand.
        decodable: The model, where another library's modules are still to be timed.
    """

    row: dict[str, Any]
    model: GPTConfig | None
    windows: Score | None
    settings: dict[str, Any]
    curve: dict[str, list[float]]
    sample: str | None
    notes: list[str] = dataclasses.field(default_factory=list)
    prepared: PreparedData | None = None
    decodable: Decodable | None = None

    @property
    def name(self) -> str:
        """The run's name."""
        return str(self.row["run_name"])

    @property
    def is_outside(self) -> bool:
        """Whether it is a model that kvlab did not train, of which no seed is known."""
        return self.row["seed"] is None


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
        EvaluationError: If there is no checkpoint, if a finished run's is not that of its last
            step, or if its corpus is gone or another one.
        RunError: If a file of it is damaged.
    """
    # Read-only: another process may be training this run and in the middle of a save.
    store = CheckpointStore(run.checkpoints_path, keep_last=1, say=say, read_only=True)
    steps = store.steps()
    if not steps:
        raise EvaluationError(f"{run.path} has no checkpoint; train it first, or name another run")
    # By its step, so that a damaged one is refused: an older one would pass for the finished model.
    checkpoint = store.load(steps[-1], names=["model"])
    state, tensors = checkpoint.state, checkpoint.tensors["model"]
    with same_version(checkpoint.path):
        trained_on = {key: _of_type(str, state["data"], key) for key in _DATA_KEYS}
        _of_type(int, state, "seed")
        config = _model_config(state["model"])
        if decode_path is not None:
            config.attention = config.attention | {"decode_path": decode_path}
        _require_shapes(config, tensors)
        model = GPT(config)
        model.load_state_dict(tensors)
    _require_last_step(run, checkpoint.step, config)
    prepared = find_prepared(run, trained_on)
    return LoadedRun(model.to(device).eval(), prepared, state)


_DATA_KEYS = ("folder", "fingerprint", "tokenizer_sha256")


def _of_type(kind: type, values: dict[str, Any], key: str) -> Any:
    if type(values[key]) is not kind:
        raise TypeError(f"its {key} is no {kind.__name__}: {str(values[key])[:60]}")
    return values[key]


def _model_config(fields: dict[str, Any]) -> GPTConfig:
    """Return a checkpoint's model; a dataclass alone looks at no type."""
    config = GPTConfig(**fields)
    for key, annotation in get_type_hints(GPTConfig).items():
        accepted = dict if get_origin(annotation) is dict else annotation
        value = getattr(config, key)
        is_wrong_bool = isinstance(value, bool) and annotation is not bool
        if is_wrong_bool or not isinstance(value, float | int if accepted is float else accepted):
            raise TypeError(f"its model.{key} is {str(value)[:60]}")
    return config


def _require_shapes(config: GPTConfig, tensors: dict[str, Tensor]) -> None:
    """Refuse a model that is not as large as its weights, before there is memory for it.

    Raises:
        RuntimeError: Naming what differs.
    """
    layers = {name.split(".")[1] for name in tensors if name.startswith("layers.")}
    if len(layers) != config.num_hidden_layers:
        raise RuntimeError(
            f"its model has {config.num_hidden_layers} layers and weights of {len(layers)}"
        )
    with torch.device("meta"):
        expected = GPT(config).state_dict()
    for name in sorted({*expected, *tensors}):
        ours, theirs = (
            tuple(some[name].shape) if name in some else None for some in (expected, tensors)
        )
        if ours != theirs:
            raise RuntimeError(f"its weights {name} are {theirs}, not {ours} as its model says")


def _require_last_step(run: RunFolder, step: int, config: GPTConfig) -> None:
    """Refuse an older checkpoint of a finished run: it would pass for the finished model.

    Raises:
        EvaluationError: Naming both steps.
    """
    summary = run.read_summary() or {}
    if summary.get("finished") is not True:
        return
    sequences = sequences_per_step(_recorded(run))
    tokens = summary.get("tokens_trained")
    if not sequences or type(tokens) is not int:
        raise EvaluationError(
            f"{run.path} does not say for how many steps it was trained ({PASSES[0]} and "
            f"{PASSES[1]} in {run.config_path.name}, tokens_trained in {run.summary_path.name}); "
            "put them back, or train it again"
        )
    steps = tokens / (sequences * config.max_position_embeddings)
    if step != steps:
        raise EvaluationError(
            f"the newest checkpoint of {run.path} is of step {step}, but it was trained for "
            f"{steps:g}; put its last checkpoint back, or remove {run.summary_path.name} and run "
            "its training command again"
        )


def _recorded(run: RunFolder) -> dict[str, Any]:
    """Return a run's configuration.

    Raises:
        EvaluationError: If it is empty.
        RunError: If it cannot be read.
    """
    recorded = read_configuration(run.config_path)
    if not recorded:
        raise EvaluationError(f"{run.config_path} is empty; put it back, or train the run again")
    return recorded


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
            names = [run.path.name for run in finished]
            begun = [name for name in names if name.startswith(pattern)]
            hint = f"run='{pattern}*' takes {len(begun)} of them; " if begun else ""
            raise EvaluationError(
                f"no finished run in {runs_dir} is called '{pattern}'; {hint}there are: "
                f"{', '.join(names)}"
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
    tasks: TaskScorer | None = None,
) -> EvaluatedRun:
    """Score one run, measure its cache, and run `tasks` on it.

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
    require_closed_form(
        run.name,
        config.attention["name"],
        cache.bytes_per_token,
        cache.measured_bytes_per_token,
    )
    recorded, curve, sample = _recorded(run), _curve(run), run.read_sample()
    windows = _score(run.name, loaded, stream, settings, device) if settings.perplexity else None
    answers, notes = _run_tasks(tasks, run.name, loaded, settings)
    if windows is not None and split == "validation" and not settings.decode:
        told = summary.get("validation_nll")
        notes += _unlike_its_summary(run.name, told, recorded, settings, model, windows.nll)
    notes += _lost(run.path.name, split, loaded.prepared.splits[split])
    row = {
        "run_name": run.path.name,
        "attention": config.attention["name"],
        "positions": positions_of(config),
        "seed": loaded.state["seed"],
        "num_parameters": num_parameters(config).total,
        "tokens_trained": summary.get("tokens_trained"),
        "split": split,
        **quality_of(windows, loaded.prepared.splits[split]),
        "kv_cache_bytes_per_token": cache.bytes_per_token,
        "kv_cache_bytes_measured": cache.measured_bytes_per_token,
        "kv_cache_tokens_measured": cache.batch_size * cache.context_length,
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
        "reads_whole_text": not loaded.prepared.splits[split].lost_bytes,
        "trained_with": trained_with(summary),
        "protocol": protocol_card(
            loaded.prepared,
            split,
            settings.windows(config),
            settings,
            dtype=_name(model.embed_tokens.weight.dtype),
            device=device_class(device),
            intra_document_mask=config.intra_document_mask,
        )
        | ({} if tasks is None else {"tasks": tasks.protocol}),
        **answers,
    }
    return EvaluatedRun(
        row,
        config,
        windows,
        _settings(recorded, model),
        curve,
        sample,
        notes,
        prepared=loaded.prepared,
    )


def _run_tasks(
    tasks: TaskScorer | None, name: str, loaded: LoadedRun, settings: EvalSettings
) -> tuple[dict[str, Any], list[str]]:
    """Return a row's `tasks`, if there are any, and notes."""
    if tasks is None:
        return {}, []
    prepared = loaded.prepared
    tokenizer, end = prepared.tokenizer(), prepared.end_of_document_id
    return answers_of(
        lambda: tasks.score(loaded.model, tokenizer, end, settings.batch_size), name, settings
    )


def _score(
    name: str,
    loaded: LoadedRun,
    stream: TokenStream,
    settings: EvalSettings,
    device: torch.device,
) -> Score:
    model = loaded.model
    scorer = CachedScorer(model, cache_dtype_of(settings.cache_dtype)) if settings.decode else model
    context, stride = settings.windows(model.config)
    end = loaded.prepared.end_of_document_id
    with Bar(name) as bar:
        watch = bar.count("scoring", "tokens")
        return score(scorer, stream, context, stride, settings.batch_size, device, None, watch, end)


def _unlike_its_summary(
    name: str,
    told: Any,
    recorded: dict[str, Any],
    settings: EvalSettings,
    model: GPT,
    nll: float,
) -> list[str]:
    """Say so where a run no longer scores what it scored at its end, in the same windows."""
    context, stride = (recorded.get(f"eval.{key}") for key in ("context", "stride"))
    if type(told) is not float or not all(type(n) in (int, type(None)) for n in (context, stride)):
        return []
    then = dataclasses.replace(settings, context=context, stride=stride)
    if then.windows(model.config) != settings.windows(model.config):
        return []
    # Another device, batch or version of PyTorch changes the last bits of each token's likelihood.
    if abs(nll - told) <= 1000 * torch.finfo(model.embed_tokens.weight.dtype).eps * told:
        return []
    return [
        f"{name} scores {nll:.5f} nats per token, but scored {told:.5f} at the end of its "
        "training: its weights, its data or the code are not those of then"
    ]


def _lost(name: str, split: str, counts: SplitCounts) -> list[str]:
    """Say why a run is in no table across tokenizers, where its tokenizer loses text."""
    if not counts.lost_bytes:
        return []
    lost = share_of(counts.lost_bytes, counts.utf8_bytes)
    return [
        f"{name}: its tokenizer does not give back {lost} of the bytes of {split}, which "
        "cost it nothing: it is left out of Across tokenizers"
    ]


def quality_of(windows: Score | None, counts: SplitCounts) -> dict[str, Any]:
    """Return the keys of a row that say what was scored; all None where nothing was."""
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


def _settings(recorded: dict[str, Any], model: GPT) -> dict[str, Any]:
    """Return the recorded configuration, with the model that was trained, complete."""
    recipe = {
        key: value
        for key, value in recorded.items()
        if not key.startswith("model.") and key not in PASSES
    }
    recipe["begins_with"] = _beginning(recipe.pop("init_from", None))
    recipe.pop("init_sha256", None)
    if (sequences := sequences_per_step(recorded)) is not None:
        recipe["trainer.sequences_per_step"] = sequences
    # By the classes, since a run from before a key does not have it.
    config = model.config
    attention = dataclasses.asdict(model.attention_config) | {"name": config.attention["name"]}
    return recipe | flat({"model": dataclasses.asdict(config) | {"attention": attention}})


def _beginning(folder: Any) -> str:
    """Say which weights a run began with: each seed may have a folder of its own, by its name.

    A run from before `init_from` was began with random ones.
    """
    if folder is None:
        return "random weights"
    return without_seed(Path(str(folder)).name) or "a folder"


def _curve(run: RunFolder) -> dict[str, list[float]]:
    """Return the validations during the training: tokens so far, and perplexity."""
    records = read_metrics(run.metrics_path) if run.metrics_path.exists() else []
    keys = ("progress/tokens", "validation/perplexity_part")
    points: list[list[Any]] = [[record.get(key) for key in keys] for record in records]
    whole = [point for point in points if all(isinstance(v, int | float) and v > 0 for v in point)]
    return {"tokens": [x for x, _ in whole], "perplexity": [y for _, y in whole]}


def protocol_card(
    prepared: PreparedData,
    split: str,
    windows: tuple[int, int],
    settings: EvalSettings,
    *,
    dtype: str,
    device: str,
    intra_document_mask: bool,
) -> dict[str, Any]:
    """Return the card that says how a row's numbers came about.

    Args:
        prepared: The corpus; a model with another tokenizer has its own hashes and tokens.
        split: Which.
        windows: Context and stride.
        settings: How it was scored.
        dtype: Of the weights, in which it was computed.
        device: What computed it: "cpu", or a GPU's name.
        intra_document_mask: Whether attention kept to documents.
    """
    counts = prepared.splits[split]
    context, stride = windows
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
        "device": device,
        "decode_path": cached if settings.decode else "full windows, no cache",
        "intra_document_mask": intra_document_mask,
        "tokens": counts.tokens,
        "words": counts.words,
        "utf8_bytes": counts.utf8_bytes,
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def positions_of(config: GPTConfig) -> str:
    """Name how a model is told positions."""
    rope = config.attention["qk_rope_head_dim"] > 0
    learned = config.position_embedding == "learned"
    return " + ".join(name for name, has in (("RoPE", rope), ("learned", learned)) if has) or "none"
