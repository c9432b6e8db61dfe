"""What a training would cost: a few of its steps timed, and nothing written."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from data.batches import TrainingWindows
from data.errors import DataError
from data.prepared import PreparedData
from data.tokenizing.pretrained import load_pretrained
from data.tokenizing.tokenizer import vocab_size_of
from files.disk import one_line
from modeling.gpt import GPT
from settings.data import DataSettings, TokenizerSettings, is_hub_name
from settings.run import Recipe
from tracking.failures import is_out_of_memory
from training.errors import TrainingFailed
from training.machine.setup import Machine, set_up
from training.ranks.parallel import Parallel, build_model
from training.ranks.world import World
from training.recipe.budget import TokenBudget, make_budget
from training.recipe.optim import build_optimizers, optimizer_tensors
from training.step import Batches, gradients, loss_of, update

TIMED_STEPS = 3
# GPT-2's, where a tokenizer that was not fetched yet has the last word.
_ASSUMED_VOCABULARY = 50_257


@dataclass(frozen=True)
class Unprepared:
    """What stands in for a corpus that is not prepared.

    Attributes:
        name: The corpus' label.
        vocab_size: Number of token ids.
        end_of_document_id: Token after each document; which one makes no difference here.
        is_assumed: Whether the vocabulary is a guess, since the tokenizer was not fetched.
    """

    name: str
    vocab_size: int
    end_of_document_id: int = 0
    is_assumed: bool = False


@dataclass(frozen=True)
class Measured:
    """What a few steps of a training showed.

    Attributes:
        machine: Where they were made.
        seconds_per_step: Mean of a whole optimizer step.
        peak_memory_bytes: The most held by this process, optimizer state included.
        checkpoint_bytes: Weights and optimizer state.
    """

    machine: Machine
    seconds_per_step: float
    peak_memory_bytes: int
    checkpoint_bytes: int


def stand_in(
    data: DataSettings, tokenizer: TokenizerSettings, vocab_size: int | None
) -> Unprepared:
    """Return what is known of a corpus before it is prepared.

    Args:
        data: Its settings.
        tokenizer: Of these a vocabulary follows, unless it is the Hub's.
        vocab_size: The model's, if it is set; taken where the tokenizer is not known.

    Raises:
        DataError: If the tokenizer is in a folder that is not there or cannot be loaded.
    """
    if tokenizer.kind == "bytes":
        return Unprepared(data.name, 257)
    if tokenizer.kind == "bpe":
        return Unprepared(data.name, tokenizer.vocab_size)
    path = str(tokenizer.path)
    if Path(path).expanduser().is_dir():
        built = load_pretrained(path).tokenizer
        return Unprepared(data.name, vocab_size_of(built))
    if not is_hub_name(path):
        raise DataError(f"tokenizer.path: no such folder: {path}")
    return Unprepared(data.name, vocab_size or _ASSUMED_VOCABULARY, is_assumed=vocab_size is None)


def measure(recipe: Recipe, corpus: PreparedData | Unprepared, world: World) -> Measured:
    """Make a step to warm up and time three more, with the real model, batch and optimizer.

    Of a step of many passes two are made, and the time of a pass counts as often as there are
    passes. Every rank of a world calls it.

    Args:
        recipe: Model and settings, checked.
        corpus: Where the tokens come from; random ones if it is not prepared.
        world: The ranks that train together.

    Raises:
        TrainingFailed: If memory runs out.
    """
    trainer = recipe.trainer
    budget = make_budget(trainer, recipe.schedule, recipe.model.max_position_embeddings)
    sharded = trainer.parallelism == "fsdp" and world.size > 1
    machine = set_up(trainer, world.device, world.size, lambda _: None)
    torch.manual_seed(recipe.seed)
    try:
        model = build_model(lambda: GPT(recipe.model), world, sharded=sharded)
        model.recompute_activations(trainer.activation_checkpointing)
        optimizers = build_optimizers(model, recipe.optim, machine.autocast_dtype)
        quiet, is_compiled = lambda _: None, trainer.compile
        loss_fn = loss_of(model, trainer.z_loss_weight, quiet, is_compiled=is_compiled)
        parallel = Parallel(model, loss_fn, world, sharded=sharded)
        vocab_size = recipe.model.vocab_size or corpus.vocab_size
        batches = _batches(corpus, budget, world, recipe.seed, vocab_size)
        num_passes = min(2, budget.passes_per_step)
        in_passes, in_updates = [], []
        for _ in range(1 + TIMED_STEPS):
            began = _now(machine)
            gradients(parallel, machine, batches, num_passes)
            passed = _now(machine)
            parallel.clip_gradients(trainer.max_grad_norm)
            update(optimizers)
            in_passes.append((passed - began) / num_passes)
            in_updates.append(_now(machine) - passed)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingFailed(
            f"out of memory in the steps of a dry run ({one_line(error)}): lower "
            f"trainer.micro_batch_size ({trainer.micro_batch_size}) and raise "
            f"trainer.gradient_accumulation_steps ({trainer.gradient_accumulation_steps}) by the "
            "same factor, or set trainer.activation_checkpointing=true"
        ) from error
    saved = {**model.state_dict(), **optimizer_tensors(model, optimizers)}
    return Measured(
        machine=machine,
        seconds_per_step=(budget.passes_per_step * sum(in_passes[1:]) + sum(in_updates[1:]))
        / TIMED_STEPS,
        peak_memory_bytes=machine.peak_memory_bytes(),
        checkpoint_bytes=sum(t.numel() * t.element_size() for t in saved.values()),
    )


def _batches(
    corpus: PreparedData | Unprepared,
    budget: TokenBudget,
    world: World,
    seed: int,
    vocab_size: int,
) -> Batches:
    """Yield this rank's sequences of each pass; of a short training again and again."""
    share, device = world.share_of(budget.sequences_per_pass), world.device
    context = budget.tokens_per_sequence
    if isinstance(corpus, PreparedData):
        windows = TrainingWindows(corpus.training_streams(), context, seed)
        while True:
            for first in budget.first_sequences(0):
                yield windows.batch(first + world.rank * share, share, device)
    while True:
        both = torch.randint(vocab_size, (share, context + 1), device=device)
        yield both[:, :-1].contiguous(), both[:, 1:].contiguous()


def _now(machine: Machine) -> float:
    """Return the time once the device has done what it was given."""
    if machine.device.type == "cuda":
        torch.cuda.synchronize(machine.device)
    return time.perf_counter()
