import dataclasses
import math
import types
import weakref

import pytest
import torch
from weights import assert_same_bits, final_tensors

from modeling.gpt import GPT
from tracking.checkpoints import CheckpointStore
from tracking.failures import is_out_of_memory
from tracking.metrics import read_metrics
from training.endurance.checkpointing import RunCheckpoints
from training.endurance.rescue import Rescue
from training.endurance.resumption import Progress
from training.errors import TrainingFailed
from training.ranks.place import Place
from training.ranks.world import World
from training.recipe.budget import make_budget


def store_of(folder):
    return CheckpointStore(folder.checkpoints_path, 9, read_only=True)


@pytest.fixture
def fail_in(monkeypatch):
    """Make the second of a step's two passes end in an error, or in a loss that is no number."""

    def arm(step, *, error=None, factor=1.0):
        loss, calls = GPT.loss, {"n": 0}

        def failing(self, tokens, targets, **options):
            calls["n"] += 1
            result = loss(self, tokens, targets, **options)  # draws the random numbers of dropout
            if calls["n"] != 2 * step:
                return result
            if error is not None:
                raise error
            return result * factor

        monkeypatch.setattr(GPT, "loss", failing)

    return arm


OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_what_pytorch_says_when_memory_is_used_up_is_understood():
    with pytest.raises(RuntimeError) as on_a_cpu:
        torch.empty(2**50)
    for error in (on_a_cpu.value, OUT_OF_MEMORY, MemoryError()):
        assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("shapes cannot be multiplied"))


def test_out_of_memory_in_a_pass_loses_no_step(
    recipe, run_training, folder_of, fail_in, monkeypatch
):
    whole = run_training(recipe, "whole")
    fail_in(8, error=OUT_OF_MEMORY)
    with pytest.raises(
        TrainingFailed,
        match=r"out of memory in step 8 while computing gradients \(CUDA out of memory.*the state "
        r"after step 7 is saved.*trainer.micro_batch_size=1 trainer.gradient_accumulation_steps=4",
    ):
        run_training(recipe, "failed")
    assert store_of(folder_of("failed")).steps()[-1] == 7
    monkeypatch.undo()
    assert_same_bits(final_tensors(whole), final_tensors(run_training(recipe, "failed")))


def test_the_advice_of_more_and_smaller_passes_works(recipe, run_training, fail_in, monkeypatch):
    attention = recipe.model.attention | {"attention_dropout": 0.0}
    recipe = dataclasses.replace(
        recipe, model=dataclasses.replace(recipe.model, attention=attention)
    )
    whole = run_training(recipe, "whole")
    fail_in(8, error=OUT_OF_MEMORY)
    with pytest.raises(TrainingFailed):
        run_training(recipe, "failed")
    monkeypatch.undo()
    lines = []
    smaller = {"micro_batch_size": 1, "gradient_accumulation_steps": 4}
    failed = run_training(recipe, "failed", lines.append, **smaller)
    assert "resuming, but not bit for bit: micro_batch_size was 2, is 1" in lines
    losses = [[r["train/loss"] for r in read_metrics(f.metrics_path)] for f in (whole, failed)]
    # The same sequences; sums of float32 in another order.
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_loses_no_step(
    recipe, run_training, folder_of, fail_in, monkeypatch, bad
):
    fail_in(8, factor=bad)
    with pytest.raises(
        TrainingFailed,
        match=r"step 8 \(training sequences 28 to 31, after 896 tokens\): the loss is (nan|inf).*"
        r"the state after step 7 is saved; the same command would fail at the same step: "
        r"lower optim.learning_rate \(0.008\) or trainer.max_grad_norm \(1\), and give the run "
        r"another run_name",
    ):
        run_training(recipe, "failed")
    monkeypatch.undo()
    assert folder_of("failed").read_summary() is None
    assert_same_bits(
        final_tensors(run_training(recipe, "whole")), final_tensors(run_training(recipe, "failed"))
    )


def test_a_failure_while_the_weights_change_saves_nothing(
    recipe, run_training, folder_of, monkeypatch
):
    step, calls = torch.optim.AdamW.step, {"n": 0}

    def failing(self, *args, **kwargs):
        calls["n"] += 1
        step(self, *args, **kwargs)
        if calls["n"] == 8:
            raise OUT_OF_MEMORY

    monkeypatch.setattr(torch.optim.AdamW, "step", failing)
    with pytest.raises(
        TrainingFailed,
        match=r"step 8 while updating the weights.*nothing was saved; there is a checkpoint of "
        r"step 6; lower trainer.micro_batch_size",
    ):
        run_training(recipe, "failed")
    assert store_of(folder_of("failed")).steps() == [3, 6]


def test_out_of_memory_in_a_validation_keeps_the_step(recipe, run_training, folder_of, monkeypatch):
    def failing(*args, **kwargs):
        raise OUT_OF_MEMORY

    with monkeypatch.context() as patch:
        patch.setattr("training.validation.score", failing)
        with pytest.raises(
            TrainingFailed,
            match=r"step 5 while evaluating.*state after step 5 is saved; lower eval.batch_size",
        ):
            run_training(recipe, "failed")
        # The validation that is missing comes first.
        with pytest.raises(TrainingFailed, match=r"step 5 .*there is a checkpoint of step 5"):
            run_training(recipe, "failed")
        with pytest.raises(TrainingFailed, match=r"step 10 while evaluating.*step 10 is saved"):
            run_training(recipe, "failed", eval_every_steps=10)
        with pytest.raises(TrainingFailed, match=r"step 12 .*there is a checkpoint of step 12"):
            run_training(recipe, "failed", eval_every_steps=100)
    assert_same_bits(
        final_tensors(run_training(recipe, "whole")), final_tensors(run_training(recipe, "failed"))
    )


def test_the_first_step_has_nothing_to_save(recipe, run_training, folder_of, fail_in):
    fail_in(1, error=MemoryError())
    with pytest.raises(TrainingFailed, match=r"\(MemoryError\); there is no checkpoint yet; lower"):
        run_training(recipe, "failed", precision="float32")
    assert store_of(folder_of("failed")).steps() == []


def test_other_errors_stay_what_they_are(recipe, run_training, folder_of, fail_in):
    fail_in(5, error=RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match=r"^a bug$"):
        run_training(recipe, "failed")
    assert store_of(folder_of("failed")).steps() == [3]


@pytest.fixture
def rescue(recipe, tmp_path):
    """A Rescue after step 7, with a function in place of saving."""

    def make(save, ranks=1, **trainer_changes):
        world = World(Place(size=ranks), torch.device("cpu"))
        store, model = CheckpointStore(tmp_path, 1), torch.nn.Linear(1, 1)
        recording = types.SimpleNamespace(
            progress=Progress(step=7),
            budget=make_budget(recipe.trainer, recipe.schedule, 32),
            checkpoints=RunCheckpoints(store, world, model, [], sharded=False),
            save=save,
        )
        trainer = dataclasses.replace(recipe.trainer, **trainer_changes)
        return Rescue(recording, trainer, 0.01, lambda: None)

    return make


def fail_in_a_pass(guard, forward):
    with guard:
        guard.computing()
        forward()


def out_of_memory():
    raise OUT_OF_MEMORY


def test_activations_are_freed_before_saving(rescue):
    held = []

    def forward():
        activations = torch.zeros(3)
        held.append(weakref.ref(activations))
        out_of_memory()

    def save(random_state):
        assert held[0]() is None

    with pytest.raises(TrainingFailed, match="step 7 is saved"):
        fail_in_a_pass(rescue(save), forward)


def test_a_state_that_cannot_be_saved_is_said(rescue):
    def save(random_state):
        raise MemoryError

    guard = rescue(save, micro_batch_size=1)
    with pytest.raises(TrainingFailed, match=r"could not be saved \(MemoryError\).*is 1 already"):
        fail_in_a_pass(guard, out_of_memory)


def test_a_narrow_precision_is_named(rescue):
    guard = rescue(lambda random_state: None, precision="bfloat16")
    with pytest.raises(TrainingFailed, match=r", or set trainer\.precision=float32, and give"):
        guard.require_finite(1.0, math.nan)


@pytest.mark.parametrize(("size", "passes", "advice"), [(8, 1, "=4 .*=2"), (9, 2, "=3 .*=6")])
def test_the_advice_keeps_the_sequences_per_step(rescue, size, passes, advice):
    guard = rescue(
        lambda random_state: None, micro_batch_size=size, gradient_accumulation_steps=passes
    )
    with pytest.raises(TrainingFailed, match=f"micro_batch_size{advice} this run resumes"):
        fail_in_a_pass(guard, out_of_memory)


@pytest.mark.parametrize(
    ("size", "advice"),
    [(6, "micro_batch_size=2 .*=6 this"), (2, "is 2, one sequence a rank for 2")],
)
def test_the_advice_leaves_every_rank_an_equal_share(rescue, size, advice):
    guard = rescue(
        lambda random_state: None, 2, micro_batch_size=size, gradient_accumulation_steps=2
    )
    with pytest.raises(TrainingFailed, match=f"nothing was saved.*{advice}"):
        fail_in_a_pass(guard, out_of_memory)


@pytest.mark.parametrize("place", ["summarise", "write_sample", "RunCheckpoints.make_whole"])
def test_out_of_memory_after_the_last_step_is_one_line_too(
    recipe, run_training, folder_of, monkeypatch, place
):
    def failing(*args):
        raise OUT_OF_MEMORY

    with monkeypatch.context() as patch:
        patch.setattr(f"training.recorder.{place}", failing)
        with pytest.raises(
            TrainingFailed, match=r"step 12 .*there is a checkpoint of step 12; low"
        ):
            run_training(recipe, "failed")
    assert folder_of("failed").read_summary() is None
    assert run_training(recipe, "failed").read_summary()["finished"]
