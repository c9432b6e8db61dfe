"""The training loop, from top to bottom."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from data.batches import TrainingWindows, read_ahead
from data.prepared import PreparedData
from modeling.config import GPTConfig
from modeling.gpt import GPT
from settings.run import Recipe
from tracking.checkpoints import CheckpointStore
from tracking.notices import Say
from tracking.run_folder import RunFolder
from tracking.wandb_mirror import WandbMirror
from training.endurance.checkpointing import RunCheckpoints
from training.endurance.provenance import provenance_of
from training.endurance.rescue import Rescue
from training.endurance.resumption import Identity, resume_newest
from training.endurance.rng import use_stream_of_rank
from training.machine.setup import set_up
from training.ranks.joining import alone
from training.ranks.parallel import Parallel, build_model
from training.ranks.world import World
from training.recipe.budget import make_budget
from training.recipe.optim import build_optimizers, set_learning_rate
from training.recipe.schedule import learning_rate
from training.recorder import Recorder
from training.run_log import RunLog
from training.step import gradients, loss_of, update


def train(
    recipe: Recipe,
    prepared: PreparedData,
    run: RunFolder,
    mirror: WandbMirror,
    say: Say,
    world: World | None = None,
    initial: Callable[[], Mapping[str, Tensor]] | None = None,
) -> dict[str, Any]:
    """Train a model, or resume it from the run's newest checkpoint, and summarise.

    Every rank of a world calls it; rank 0 alone writes.

    Args:
        recipe: Model and settings, checked.
        prepared: The corpus.
        run: Where everything is written; the caller holds its lock.
        mirror: Gets the metrics, too.
        say: Prints a line.
        world: The ranks that train together; this process alone if not given.
        initial: Returns the state dict that a training begins with; random weights if not given.

    Returns:
        What summary.json holds.

    Raises:
        TrainingError: If the settings do not fit together, or the checkpoint belongs to other data.
        TrainingFailed: If loss, gradients or weights are no longer finite, or memory runs out;
            the state after the last step is saved first, unless the failure may have touched it.
        TrainingInterrupted: After a signal or `trainer.max_minutes`; the last step is saved.
    """
    trainer, context = recipe.trainer, recipe.model.max_position_embeddings
    budget = make_budget(trainer, recipe.schedule, context)
    windows = TrainingWindows(prepared.training_streams(), context, recipe.seed)
    world = world or alone(trainer.device)
    # To verify the data takes each rank its time, which is no silence.
    world.meet()
    share = world.share_of(budget.sequences_per_pass)
    sharded = trainer.parallelism == "fsdp" and world.size > 1
    machine = set_up(trainer, world.device, world.size, say)

    torch.manual_seed(recipe.seed)
    model = build_model(lambda: _new_model(recipe.model, initial), world, sharded=sharded)
    model.recompute_activations(trainer.activation_checkpointing)
    optimizers = build_optimizers(model, recipe.optim, machine.autocast_dtype)
    use_stream_of_rank(recipe.seed, world.rank)

    store = CheckpointStore(
        run.checkpoints_path, trainer.keep_last, say, read_only=not world.is_main
    )
    checkpoints = RunCheckpoints(store, world, model, optimizers, sharded=sharded)
    identity = Identity(recipe, prepared, provenance_of(machine, trainer, world.size))
    progress = resume_newest(identity, checkpoints, machine.peak_flops, say)

    loss_fn = loss_of(model, trainer.z_loss_weight, say, is_compiled=trainer.compile)
    parallel = Parallel(model, loss_fn, world, sharded=sharded)
    first_samples = (first + world.rank * share for first in budget.first_sequences(progress.step))
    batches = read_ahead(windows, first_samples, share, machine.device)
    log = RunLog(run, mirror, say, is_main=world.is_main)
    recorder = Recorder(log, identity, machine, budget, windows, progress, checkpoints)
    peak_rate = recipe.optim.learning_rate
    rescue = Rescue(recorder, trainer, peak_rate, parallel.broken_parameter)

    with recorder.recording(), contextlib.closing(batches), rescue:
        recorder.finish_last_step()
        for step in range(progress.step, budget.num_steps):
            recorder.begin_step()
            rate = learning_rate(recipe.schedule, peak_rate, step, budget.num_steps)
            set_learning_rate(optimizers, rate)

            rescue.computing()
            passes, waiting = budget.passes_per_step, recorder.waiting_for_data
            loss = world.mean(gradients(parallel, machine, batches, passes, waiting))
            grad_norm = parallel.clip_gradients(trainer.max_grad_norm)
            rescue.require_finite(loss, grad_norm)

            rescue.updating()
            update(optimizers)
            rescue.require_finite_weights()
            recorder.end_step(loss, grad_norm, rate)

            rescue.watching()
            nll = recorder.log_and_validate()
            recorder.save_or_stop(nll)
        return recorder.finish()


def _new_model(config: GPTConfig, initial: Callable[[], Mapping[str, Tensor]] | None) -> GPT:
    model = GPT(config)
    if initial is not None:
        model.load_state_dict(initial())
    return model
