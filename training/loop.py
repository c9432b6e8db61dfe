"""The training loop, from top to bottom."""

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from data.batches import TrainingWindows, read_ahead
from data.prepared import PreparedData
from evaluation.kv_cache import measure_kv_cache
from evaluation.perplexity import Score, score
from evaluation.settings import EvalSettings
from modeling.accounting import (
    mha_cache_bytes_per_token,
    num_parameters,
    training_flops_per_token,
)
from modeling.config import GPTConfig, SamplingSettings
from modeling.generate import generate_text
from modeling.gpt import GPT
from tracking.atomic import write_text
from tracking.checkpoints import Checkpoint, CheckpointStore, same_version
from tracking.errors import RunError
from tracking.failures import is_out_of_memory
from tracking.metrics import MetricsLog, NoMetrics
from tracking.run_folder import RunFolder
from tracking.wandb_mirror import WandbMirror
from training.allocator import tune
from training.budget import Budget, make_budget
from training.checkpointing import RunCheckpoints
from training.distributed import World, alone
from training.errors import TrainingError, TrainingInterrupted
from training.hardware import (
    choose_determinism,
    measure_matmul_flops,
    peak_memory_bytes,
    pick_autocast_dtype,
    reset_peak_memory,
)
from training.interrupt import InterruptRequest
from training.optim import build_optimizers, set_learning_rate
from training.pace import Pace, in_words
from training.parallel import Parallel, build_model
from training.profile import profiled_steps
from training.record import git_commit, numerics, versions
from training.rescue import Rescue
from training.rng import rng_tensors, use_stream_of_rank
from training.schedule import learning_rate
from training.settings import OptimSettings, ScheduleSettings, TrainerSettings
from training.time_limit import TimeLimit


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run's numbers, besides the data."""

    model: GPTConfig
    optim: OptimSettings
    schedule: ScheduleSettings
    trainer: TrainerSettings
    eval: EvalSettings
    sampling: SamplingSettings
    seed: int


@dataclass
class Progress:
    """What a checkpoint remembers besides tensors; steps are whole optimizer steps done."""

    step: int = 0
    train_seconds: float = 0.0
    data_seconds: float = 0.0
    wall_seconds: float = 0.0
    last_loss: float = math.nan
    best_nll: float = math.inf


def train(
    recipe: Recipe,
    prepared: PreparedData,
    run: RunFolder,
    mirror: WandbMirror,
    say: Callable[[str], None],
    world: World | None = None,
) -> dict[str, Any]:
    """Train a model, or go on where the run's newest checkpoint left it, and summarise.

    Every rank of a world calls it; rank 0 alone writes.

    Args:
        recipe: Model and settings, checked.
        prepared: The corpus.
        run: Where everything is written; the caller holds its lock.
        mirror: Gets the metrics besides metrics.jsonl.
        say: Prints a line.
        world: The ranks that train together; this process alone if not given.

    Returns:
        What summary.json holds.

    Raises:
        TrainingError: If the settings do not fit together, or the checkpoint belongs to other data.
        TrainingFailed: If the loss is no longer a finite number, or memory runs out; the weights
            after the last step are saved first, unless the failure may have touched them.
        TrainingInterrupted: After a signal or `trainer.max_minutes`, with a checkpoint of the last
            step saved.
    """
    trainer = recipe.trainer
    context = recipe.model.max_position_embeddings
    budget = make_budget(trainer, recipe.schedule, context)
    windows = TrainingWindows(prepared.training_streams(), context, recipe.seed)
    world = world or alone(trainer.device)
    device = world.device
    share = world.share_of(budget.sequences_per_pass)
    sharded = trainer.parallelism == "fsdp" and world.size > 1
    choose_determinism(trainer.deterministic)
    if trainer.num_threads is not None:
        torch.set_num_threads(trainer.num_threads)
    if trainer.tune_allocator and device.type == "cpu":
        say(tune())
    autocast_dtype = pick_autocast_dtype(trainer.precision, device)
    autocast = torch.autocast(device.type, autocast_dtype, enabled=autocast_dtype is not None)

    record_numerics = numerics(device, autocast_dtype, trainer, world.size)
    # Before the memory is watched, which its matrices are no part of.
    peak_flops = measure_matmul_flops(device, autocast_dtype or torch.float32)
    mfu_per_speed = training_flops_per_token(recipe.model, context) / (peak_flops * world.size)
    reset_peak_memory(device)

    torch.manual_seed(recipe.seed)
    model = build_model(lambda: GPT(recipe.model), world, sharded=sharded)
    model.recompute_activations(trainer.activation_checkpointing)
    optimizers = build_optimizers(model, recipe.optim)
    loss_of: Callable[[Tensor, Tensor], Tensor] = functools.partial(
        model.loss, z_loss_weight=trainer.z_loss_weight
    )
    if trainer.compile:
        loss_of = _compiled(loss_of, say)

    use_stream_of_rank(recipe.seed, world.rank)

    store = CheckpointStore(
        run.checkpoints_path, trainer.keep_last, say, read_only=not world.is_main
    )
    checkpoints = RunCheckpoints(store, world, model, optimizers, sharded=sharded)
    metrics = MetricsLog(run.metrics_path) if world.is_main else NoMetrics()
    progress = Progress()
    checkpoint = checkpoints.newest()
    if checkpoint is not None:
        with same_version(checkpoint.path):
            progress = _resume(checkpoint, checkpoints, prepared, record_numerics, say)
        del checkpoint  # its tensors
    parallel = Parallel(model, loss_of, world, sharded=sharded)
    metrics.drop_after(progress.step)
    say(f"{run.path.name}: {num_parameters(recipe.model).total:,} parameters; {budget.describe()}")
    epochs = windows.describe(budget.num_distinct_tokens)
    say(f"{epochs}; {device}, {autocast_dtype or torch.float32}")

    # Weights and two moments of each.
    time_limit = TimeLimit(trainer.max_minutes, 12 * num_parameters(recipe.model).total)

    def save(random_state: dict[str, Tensor], *, is_best: bool = False) -> None:
        metrics.sync()
        with time_limit.timing_a_save():
            state = _state(recipe, progress, prepared, record_numerics)
            checkpoints.save(progress.step, state, random_state, is_best=is_best)

    first_samples = (
        budget.first_sequence(step, index) + world.rank * share
        for step in range(progress.step, budget.num_steps)
        for index in range(budget.passes_per_step)
    )
    batches = read_ahead(windows, first_samples, share, device)
    started = time.perf_counter() - progress.wall_seconds
    pace = Pace(progress.step, budget.num_steps, time.perf_counter())
    rescue = Rescue(
        *(progress, trainer, recipe.optim.learning_rate, store, save, model, device),
        ranks=world.size,
    )
    with (
        contextlib.closing(metrics),
        contextlib.closing(batches),
        InterruptRequest(is_one_of_many=world.size > 1) as interrupt,
        tqdm(
            total=budget.num_steps,
            initial=progress.step,
            unit="step",
            disable=None if world.is_main else True,
            leave=False,
        ) as bar,
        profiled_steps(
            trainer.profile and world.is_main,
            *(run.path / "profile", budget.num_steps - progress.step, device, say),
        ) as profiled,
        rescue,
    ):
        model.train()
        for step in range(progress.step, budget.num_steps):
            step_started = time.perf_counter()
            rate = learning_rate(
                recipe.schedule, recipe.optim.learning_rate, step, budget.num_steps
            )
            set_learning_rate(optimizers, rate)
            rescue.computing()

            loss = 0.0
            for index in range(budget.passes_per_step):
                waiting_since = time.perf_counter()
                tokens, targets = next(batches)
                progress.data_seconds += time.perf_counter() - waiting_since
                with parallel.one_pass(is_last=index == budget.passes_per_step - 1):
                    with autocast:
                        # Passes are equally long, so the mean of their means is that of the step.
                        pass_loss = parallel.loss_of(tokens, targets) / budget.passes_per_step
                    pass_loss.backward()
                loss += pass_loss.item()
            loss = world.mean(loss)
            norm = parallel.clip_gradients(trainer.max_grad_norm)
            rescue.require_finite(loss, norm)
            rescue.updating()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

            progress.step = step + 1
            rescue.watching()
            progress.last_loss = loss
            seconds = time.perf_counter() - step_started
            progress.train_seconds += seconds
            progress.wall_seconds = time.perf_counter() - started
            pace.step_done(time.perf_counter())
            speed = budget.tokens_per_step / seconds
            is_last = progress.step == budget.num_steps
            bar.update()
            bar.set_postfix_str(
                f"loss {loss:.3f}, {speed:,.0f} tokens/s, MFU {speed * mfu_per_speed:.2f}, "
                f"gradient norm {norm:.2f}, learning rate {rate:.1e}"
            )

            record: dict[str, float] = {}
            if progress.step % trainer.log_every_steps == 0 or is_last:
                record = {
                    "train/loss": loss,
                    "train/perplexity": math.exp(min(loss, 700)),
                    "train/learning_rate": rate,
                    "train/grad_norm": norm,
                    "perf/tokens_per_second": speed,
                    "perf/mfu": speed * mfu_per_speed,
                    "progress/seconds_left": pace.seconds_left,
                }
            if progress.step % trainer.eval_every_steps == 0 and not is_last:
                result = _validate(model, prepared, recipe, device, trainer.eval_tokens)
                record["validation/nll_part"] = result.nll
                record["validation/perplexity_part"] = result.perplexity
                mean_speed = progress.step * budget.tokens_per_step / progress.train_seconds
                say(
                    f"step {progress.step}: loss {loss:.3f}, validation perplexity "
                    f"{result.perplexity:.2f} on its first {result.tokens_scored:,} tokens, "
                    f"{mean_speed:,.0f} tokens/s, MFU {mean_speed * mfu_per_speed:.2f}, gradient "
                    f"norm {norm:.2f}, learning rate {rate:.1e}, {in_words(pace.seconds_left)} left"
                )
            if record:
                tokens_seen = progress.step * budget.tokens_per_step
                metrics.append({"step": progress.step, "progress/tokens": tokens_seen} | record)
                mirror.log(record, tokens_seen)
            profiled()
            stopping = world.first_reason(
                interrupt.name or time_limit.reason_to_stop(pace.longest_step_seconds)
            )
            if progress.step % trainer.checkpoint_every_steps == 0 or is_last or stopping:
                nll = record.get("validation/nll_part", math.inf)
                is_best = nll < progress.best_nll
                progress.best_nll = min(nll, progress.best_nll)
                save(rng_tensors(device), is_best=is_best)
            if stopping and not is_last:
                raise TrainingInterrupted(
                    f"{stopping}: checkpoint saved at step {progress.step} of "
                    f"{budget.num_steps}; rerun the same command to go on"
                )

    with rescue:
        measured = _summarise(recipe, budget, progress, model, prepared, device, mfu_per_speed)
    summary = {"run_name": run.path.name} | measured
    _report(summary, mirror)
    if trainer.sample_tokens > 0:
        text = _sample(recipe, model, prepared)
        if world.is_main:
            write_text(run.samples_path, text + "\n")
        say(f"sample:\n{text}\n")
    checkpoints.make_whole()
    # Last: a run with a summary is a finished one.
    if world.is_main:
        run.write_summary(summary)
    return summary


def _state(
    recipe: Recipe,
    progress: Progress,
    prepared: PreparedData,
    record_numerics: dict[str, Any],
) -> dict[str, Any]:
    """Return what a checkpoint says of itself: enough to rebuild the model and find its data."""
    values = dataclasses.asdict(progress)
    # JSON has no infinity or NaN.
    finite = {key: value if math.isfinite(value) else None for key, value in values.items()}
    return {
        "progress": finite,
        "seed": recipe.seed,
        "model": dataclasses.asdict(recipe.model),
        "data": {
            "folder": str(prepared.folder.resolve()),
            "fingerprint": prepared.fingerprint,
            "tokenizer_sha256": prepared.tokenizer_sha256,
        },
        "numerics": record_numerics,
    }


def _resume(
    checkpoint: Checkpoint,
    checkpoints: RunCheckpoints,
    prepared: PreparedData,
    record_numerics: dict[str, Any],
    say: Callable[[str], None],
) -> Progress:
    """Put a checkpoint back and return the progress it recorded."""
    fingerprint = checkpoint.value("data.fingerprint", str)
    if fingerprint != prepared.fingerprint:
        raise TrainingError(
            f"{checkpoint.path} was trained on data with fingerprint {fingerprint[:12]}, but "
            f"{prepared.folder} now has {prepared.fingerprint[:12]}; give the run another run_name"
        )
    recorded = checkpoint.value("progress", dict)
    types = {field: type(value) for field, value in vars(Progress()).items()}
    progress = Progress(
        **{
            key: checkpoint.value(f"progress.{key}", types[key])
            for key, value in recorded.items()
            if value is not None
        }
    )
    if progress.step != checkpoint.step:
        raise RunError(
            f"{checkpoint.path} is damaged: its state is that of step {progress.step}; remove that "
            "folder to go on from an older checkpoint"
        )
    numerics_then = checkpoint.value("numerics", dict)
    for key, now in record_numerics.items():
        if numerics_then.get(key) != now:
            say(f"resuming, but not bit for bit: {key} was {numerics_then.get(key)}, is {now}")
    checkpoints.put_back(checkpoint)
    say(f"resuming {checkpoint.path.parent.parent.name} after step {progress.step}")
    return progress


def _compiled(
    loss_of: Callable[[Tensor, Tensor], Tensor], say: Callable[[str], None]
) -> Callable[[Tensor, Tensor], Tensor]:
    """Compile, and go on without where the first call fails (no compiler, say)."""
    compiled = torch.compile(loss_of)
    works: bool | None = None

    def call(tokens: Tensor, targets: Tensor) -> Tensor:
        nonlocal works
        if works is None:
            try:
                loss = compiled(tokens, targets)
                works = True
                return loss
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                works = False
                say(f"torch.compile failed ({type(error).__name__}); training goes on without it")
        return compiled(tokens, targets) if works else loss_of(tokens, targets)

    return call


def _validate(
    model: GPT,
    prepared: PreparedData,
    recipe: Recipe,
    device: torch.device,
    max_tokens: int | None = None,
) -> Score:
    """Score the validation split in float32, leaving model mode and random state as they were."""
    context, stride = recipe.eval.windows(recipe.model)
    model.eval()
    result = score(
        model,
        prepared.stream("validation"),
        context,
        stride,
        recipe.eval.batch_size,
        device,
        max_tokens,
    )
    model.train()
    return result


def _summarise(
    recipe: Recipe,
    budget: Budget,
    progress: Progress,
    model: GPT,
    prepared: PreparedData,
    device: torch.device,
    mfu_per_speed: float,
) -> dict[str, Any]:
    """Measure the finished model on the whole validation split; what summary.json holds."""
    result = _validate(model, prepared, recipe, device)
    model.eval()
    context = recipe.model.max_position_embeddings
    cache = measure_kv_cache(model, recipe.eval.cache_batch_size, context)
    count = num_parameters(recipe.model)
    speed = budget.num_tokens / progress.train_seconds
    utf8_bytes = prepared.splits["validation"].utf8_bytes
    return {
        "attention": recipe.model.attention["name"],
        "position_embedding": recipe.model.position_embedding,
        "num_parameters": count.total,
        "num_attention_parameters": count.attention,
        "tokens_trained": budget.num_tokens,
        "overfit_batches": budget.distinct_steps,
        "train_loss": progress.last_loss,
        "validation_nll": result.nll,
        "validation_perplexity": result.perplexity,
        "validation_bits_per_byte": result.bits_per_byte(utf8_bytes),
        "kv_cache_bytes_per_token": cache.bytes_per_token,
        "kv_cache_bytes_measured": cache.measured_bytes_per_token,
        "cache_ratio_to_mha": cache.bytes_per_token
        / mha_cache_bytes_per_token(recipe.model, model.embed_tokens.weight.dtype),
        "tokens_per_second": speed,
        "data_wait_share": progress.data_seconds / progress.train_seconds,
        "mfu": speed * mfu_per_speed,
        "peak_memory_bytes": peak_memory_bytes(device),
        "wall_seconds": progress.wall_seconds,
        "finished": True,
        "versions": versions(),
        "git_commit": git_commit(Path(__file__).parent),
    }


def _report(summary: dict[str, Any], mirror: WandbMirror) -> None:
    """Send the final numbers to wandb."""
    keys = {
        "validation/nll": "validation_nll",
        "validation/perplexity": "validation_perplexity",
        "validation/bits_per_byte": "validation_bits_per_byte",
        "kv_cache/bytes_per_token": "kv_cache_bytes_per_token",
        "kv_cache/measured_bytes": "kv_cache_bytes_measured",
        "perf/mfu": "mfu",
    }
    mirror.log({name: summary[key] for name, key in keys.items()}, summary["tokens_trained"])
    mirror.summary({key: value for key, value in summary.items() if key != "versions"})


def _sample(recipe: Recipe, model: GPT, prepared: PreparedData) -> str:
    """Continue the sample prompt, as far as the context reaches."""
    prompt, tokenizer = recipe.trainer.sample_prompt, prepared.tokenizer()
    room = recipe.model.max_position_embeddings - len(tokenizer.encode(prompt).ids)
    if room < 1:
        return f"{prompt} [fills the context: no room for a sample]"
    length = min(recipe.trainer.sample_tokens, room)
    return prompt + "".join(generate_text(model, tokenizer, prompt, length, recipe.sampling))
