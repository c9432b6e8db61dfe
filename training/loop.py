"""The training loop, from top to bottom."""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.batches import TrainingWindows, read_ahead
from data.opening import opening
from data.prepared import PreparedData
from files.atomic import write_text
from measuring.kv_cache import measure_kv_cache, require_closed_form
from measuring.perplexity import Score, score
from modeling.accounting import (
    mha_cache_bytes_per_token,
    num_parameters,
    training_flops_per_token,
)
from modeling.config import GPTConfig
from modeling.generate import generate_text
from modeling.gpt import GPT
from tracking.checkpoints import CheckpointStore, same_version
from tracking.failures import is_out_of_memory
from tracking.metrics import MetricsLog, NoMetrics
from tracking.progress import Bar, in_words
from tracking.run_folder import RunFolder
from tracking.wandb_mirror import WandbMirror
from training.endurance.checkpointing import RunCheckpoints
from training.endurance.interrupt import InterruptRequest, StopAsked
from training.endurance.provenance import Origin, git_commit, numerics, versions
from training.endurance.rescue import Rescue
from training.endurance.resumption import Progress, resume, state_of
from training.endurance.rng import rng_tensors, use_stream_of_rank
from training.endurance.time_limit import TimeLimit
from training.errors import TrainingInterrupted
from training.machine.allocator import tune
from training.machine.hardware import (
    busy_machine_advice,
    choose_determinism,
    measure_matmul_flops,
    peak_memory_bytes,
    pick_autocast_dtype,
    reset_peak_memory,
)
from training.machine.pace import Pace
from training.machine.profile import profiled_steps
from training.ranks.joining import alone
from training.ranks.parallel import Parallel, build_model
from training.ranks.world import World
from training.recipe.budget import Budget, make_budget
from training.recipe.optim import build_optimizers, set_learning_rate
from training.recipe.schedule import learning_rate
from training.settings import Recipe

_NUMERICS = ("device", "num_threads", "native_bfloat16")
"""Of a run's `record.numerics`, what its summary says beside the dtype."""


def train(
    recipe: Recipe,
    prepared: PreparedData,
    run: RunFolder,
    mirror: WandbMirror,
    say: Callable[[str], None],
    world: World | None = None,
    initial: Callable[[], Mapping[str, Tensor]] | None = None,
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
        initial: Returns the weights that a training begins with, a state dict; random ones if not
            given.

    Returns:
        What summary.json holds.

    Raises:
        TrainingError: If the settings do not fit together, or the checkpoint belongs to other data.
        TrainingFailed: If loss, gradients or weights are no longer finite numbers, or memory runs
            out; the weights after the last step are saved first, unless the failure may have
            touched them.
        TrainingInterrupted: After a signal or `trainer.max_minutes`, with a checkpoint of the last
            step saved.
    """
    trainer = recipe.trainer
    context = recipe.model.max_position_embeddings
    budget = make_budget(trainer, recipe.schedule, context)
    windows = TrainingWindows(prepared.training_streams(), context, recipe.seed)
    world = world or alone(trainer.device)
    # To verify the data takes each rank its time, which is no silence.
    world.meet()
    device = world.device
    share = world.share_of(budget.sequences_per_pass)
    sharded = trainer.parallelism == "fsdp" and world.size > 1
    choose_determinism(trainer.deterministic)
    if trainer.num_threads is not None:
        torch.set_num_threads(trainer.num_threads)
    if device.type == "cpu" and (advice := busy_machine_advice(torch.get_num_threads())):
        say(advice)
    if trainer.tune_allocator and device.type == "cpu":
        say(tune())
    autocast_dtype = pick_autocast_dtype(trainer.precision, device)
    autocast = torch.autocast(device.type, autocast_dtype, enabled=autocast_dtype is not None)

    origin = Origin(
        numerics=numerics(device, autocast_dtype, trainer, world.size),
        versions=versions(),
        git_commit=git_commit(Path(__file__).parents[1]),
    )
    # Before the memory is watched, which its matrices are no part of.
    peak_flops = measure_matmul_flops(device, autocast_dtype or torch.float32) * world.size
    flops_per_token = training_flops_per_token(recipe.model, context)
    mfu_per_speed = flops_per_token / peak_flops
    reset_peak_memory(device)

    torch.manual_seed(recipe.seed)
    model = build_model(lambda: _new_model(recipe.model, initial), world, sharded=sharded)
    model.recompute_activations(trainer.activation_checkpointing)
    optimizers = build_optimizers(model, recipe.optim, autocast_dtype)
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
            progress = resume(checkpoint, checkpoints, recipe, prepared, origin, peak_flops, say)
        del checkpoint  # its tensors
    every = trainer.checkpoint_every_steps
    checkpoints.require_room(
        budget.saves_after(progress.step, every),
        with_best=math.lcm(every, trainer.eval_every_steps) < budget.num_steps,
    )
    peak_memory_before = progress.peak_memory_bytes
    parallel = Parallel(model, loss_of, world, sharded=sharded)
    # A step whose validation is still to come is yet to be recorded.
    metrics.drop_after(progress.step - (progress.unfinished is not None))
    say(f"{run.path.name}: {num_parameters(recipe.model).total:,} parameters; {budget.describe()}")
    epochs = windows.describe(budget.num_distinct_tokens)
    say(f"{epochs}; {device}, {autocast_dtype or torch.float32}")

    # Weights and two moments of each.
    time_limit = TimeLimit(trainer.max_minutes, 12 * num_parameters(recipe.model).total)

    def save(random_state: dict[str, Tensor], *, is_best: bool = False) -> None:
        metrics.sync()
        with time_limit.timing_a_save():
            progress.peak_memory_bytes = max(peak_memory_before, peak_memory_bytes(device))
            state = state_of(recipe, progress, prepared, origin)
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
        *(progress, trainer, recipe.optim.learning_rate, budget, store, save, model),
        *(parallel.broken_parameter, device),
        ranks=world.size,
    )

    def give_way() -> None:
        """End what can be done again, once a signal asks for it."""
        if reason := world.first_reason(interrupt.name):
            raise StopAsked(reason)

    def watched(what: str, unit: str) -> Callable[[int, int], None]:
        """Return what shows how far such work is, and ends it once a signal asks for it."""
        show = bar.count(what, unit)

        def watch(done: int, total: int) -> None:
            give_way()
            show(done, total)

        return watch

    def show_step(measured: dict[str, float]) -> None:
        """Show what the last step measured."""
        bar.show(
            *(progress.step, budget.num_steps),
            f"step {progress.step:,} of {budget.num_steps:,}",
            f"loss {measured['train/loss']:.3f}",
            f"{measured['perf/tokens_per_second']:,.0f} tokens/s",
            f"{in_words(measured['progress/seconds_left'])} left",
        )

    def finishing(what: str) -> None:
        """Show what is done once all steps are."""
        bar.show(1, 1, what)

    def conclude(measured: dict[str, float]) -> float:
        """Validate a step where that is due and record it; returns the nats, or infinity."""
        is_last = progress.step == budget.num_steps
        record = measured if progress.step % trainer.log_every_steps == 0 or is_last else {}
        nll = math.inf
        progress.unfinished = measured
        if progress.step % trainer.eval_every_steps == 0 and not is_last:
            result = _validate(
                *(model, prepared, recipe, device, trainer.eval_tokens),
                watched("validating", "tokens"),
            )
            show_step(measured)
            nll = result.nll
            record = record | {
                "validation/nll_part": nll,
                "validation/perplexity_part": result.perplexity,
            }
            say(
                f"step {progress.step}: loss {measured['train/loss']:.3f}, validation perplexity "
                f"{result.perplexity:.2f} on its first {result.tokens_scored:,} tokens, "
                f"{measured['perf/tokens_per_second']:,.0f} tokens/s, "
                f"MFU {measured['perf/mfu']:.2f}, gradient norm {measured['train/grad_norm']:.2f}, "
                f"learning rate {measured['train/learning_rate']:.1e}, "
                f"{in_words(measured['progress/seconds_left'])} left"
            )
        if record:
            tokens_seen = progress.step * budget.tokens_per_step
            metrics.append({"step": progress.step, "progress/tokens": tokens_seen} | record)
            mirror.log(record, tokens_seen)
        progress.unfinished = None
        return nll

    with (
        InterruptRequest(is_one_of_many=world.size > 1) as interrupt,
        contextlib.closing(metrics),
        contextlib.closing(batches),
        Bar(is_shown=world.is_main) as bar,
        profiled_steps(
            trainer.profile and world.is_main,
            *(run.path / "profile", budget.num_steps - progress.step, device, say),
        ) as profiled,
        rescue,
    ):
        model.train()
        if progress.unfinished is not None:
            try:
                nll = conclude(progress.unfinished)
            except StopAsked as asked:
                raise _interrupted(asked, progress, budget) from None
            if world.any(nll < progress.best_nll):
                progress.best_nll = nll
                save(rng_tensors(device), is_best=True)
        for step in range(progress.step, budget.num_steps):
            world.step = step + 1
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
            rescue.require_finite_weights()

            progress.step = step + 1
            rescue.watching()
            progress.last_loss = loss
            seconds = time.perf_counter() - step_started
            progress.train_seconds += seconds
            progress.possible_flops += seconds * peak_flops
            progress.wall_seconds = time.perf_counter() - started
            pace.step_done(time.perf_counter(), seconds)
            speed = budget.tokens_per_step / pace.computing_seconds
            is_last = progress.step == budget.num_steps

            measured = {
                "train/loss": loss,
                "train/perplexity": math.exp(min(loss, 700)),
                "train/learning_rate": rate,
                "train/grad_norm": norm,
                "perf/tokens_per_second": speed,
                "perf/mfu": speed * mfu_per_speed,
                "progress/seconds_left": pace.seconds_left,
            }
            show_step(measured)
            nll = math.inf
            # Made again by the run that goes on from this step.
            with contextlib.suppress(StopAsked):
                nll = conclude(measured)
            profiled()
            # The evaluation at the end is made whatever the time.
            too_late = None if is_last else time_limit.reason_to_stop(pace.longest_step_seconds)
            stopping = world.first_reason(interrupt.name or too_late)
            if progress.step % trainer.checkpoint_every_steps == 0 or is_last or stopping:
                is_best = nll < progress.best_nll
                progress.best_nll = min(nll, progress.best_nll)
                if is_last:
                    finishing("saving the last checkpoint")
                save(rng_tensors(device), is_best=is_best)
                # It takes long enough for a signal to come.
                stopping = stopping or world.first_reason(interrupt.name)
            if stopping:
                raise _interrupted(stopping, progress, budget)

        try:
            results = _summarise(
                *(recipe, budget, progress, model, prepared, device, flops_per_token),
                watched("validating", "tokens"),
                finishing,
            )
            require_closed_form(
                run.path.name,
                results["attention"],
                results["kv_cache_bytes_per_token"],
                results["kv_cache_bytes_measured"],
            )
            summary = {
                "run_name": run.path.name,
                **results,
                "peak_memory_bytes": max(peak_memory_before, peak_memory_bytes(device)),
                "versions": origin.versions,
                "git_commit": origin.git_commit,
                "numerics": {
                    "dtype": origin.numerics["precision"],
                    **{key: origin.numerics[key] for key in _NUMERICS},
                },
                "tokens_dropped": windows.tokens_dropped,
                "finished": True,
            }
            _report(summary, mirror)
            if trainer.sample_tokens > 0:
                finishing("writing a sample")
                text = _sample(recipe, model, prepared)
                if world.is_main:
                    write_text(run.samples_path, text + "\n")
            give_way()
        except StopAsked as asked:
            raise _interrupted(asked, progress, budget) from None
        checkpoints.make_whole()
        # Last: a run with a summary is a finished one.
        if world.is_main:
            run.write_summary(summary)
    return summary


def _interrupted(reason: object, progress: Progress, budget: Budget) -> TrainingInterrupted:
    """Say that a run was stopped after its last checkpoint, and that a rerun goes on."""
    if progress.step == budget.num_steps:
        return TrainingInterrupted(
            f"{reason}: all {progress.step} steps are saved; rerun the same command to finish"
        )
    return TrainingInterrupted(
        f"{reason}: checkpoint saved at step {progress.step} of {budget.num_steps}; rerun the "
        "same command to go on"
    )


def _new_model(config: GPTConfig, initial: Callable[[], Mapping[str, Tensor]] | None) -> GPT:
    model = GPT(config)
    if initial is not None:
        model.load_state_dict(initial())
    return model


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
    max_tokens: int | None,
    watch: Callable[[int, int], None],
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
        watch,
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
    flops_per_token: float,
    watch: Callable[[int, int], None],
    say_now: Callable[[str], None],
) -> dict[str, Any]:
    """Measure the finished model on the whole validation split; what summary.json holds."""
    result = _validate(model, prepared, recipe, device, None, watch)
    model.eval()
    say_now("measuring the KV cache")
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
        "mfu": budget.num_tokens * flops_per_token / progress.possible_flops,
        "wall_seconds": progress.wall_seconds,
        "resumes": progress.resumes,
        "numerics_changed": progress.numerics_changed,
        "versions_changed": progress.versions_changed,
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
    told = {key: value for key, value in summary.items() if key not in ("versions", "numerics")}
    mirror.summary(told)


def _sample(recipe: Recipe, model: GPT, prepared: PreparedData) -> str:
    """Continue the sample prompt, as far as the context reaches."""
    tokenizer = prepared.tokenizer()
    asked = recipe.trainer.sample_prompt
    prompt = opening(prepared) if asked is None else asked
    room = recipe.model.max_position_embeddings - len(tokenizer.encode(prompt).ids)
    if room < 1:
        return f"{prompt} [fills the context: no room for a sample]"
    length = min(recipe.trainer.sample_tokens, room)
    return prompt + "".join(generate_text(model, tokenizer, prompt, length, recipe.sampling))
