"""Numbers that are none, whatever made them; and what watching a run must not change in it."""

import dataclasses
import math

import pytest
import torch
from weights import Killed, assert_same_bits, final_tensors

from modeling.accounting import training_flops_per_token
from modeling.config import SamplingSettings
from modeling.gpt import GPT
from settings.evaluation import EvalSettings
from settings.run import Recipe
from settings.training import OptimSettings, ScheduleSettings, TrainerSettings
from tests.tiny_models import tiny_config
from tracking.checkpoints import CheckpointStore
from tracking.metrics import read_metrics
from tracking.run_folder import RunFolder
from training import recorder
from training.endurance import provenance
from training.errors import TrainingDiverged, TrainingError
from training.machine import setup


@pytest.fixture
def recipe(prepared) -> Recipe:
    """Twelve steps of one layer with dropout, so that the random state matters."""
    dropout = {"attention_dropout": 0.1}
    model = tiny_config("mha", vocab_size=prepared.vocab_size, of_attention=dropout)
    trainer = TrainerSettings(
        max_tokens=12 * 2 * 16,
        micro_batch_size=2,
        precision="float32",
        device="cpu",
        tune_allocator=False,
        eval_every_steps=5,
        eval_tokens=64,
        checkpoint_every_steps=3,
        keep_last=1,
        sample_tokens=0,
    )
    return Recipe(
        model=model,
        optim=OptimSettings(),
        schedule=ScheduleSettings(warmup_steps=2),
        trainer=trainer,
        eval=EvalSettings(),
        sampling=SamplingSettings(),
        seed=1,
    )


def checkpoints(folder):
    return CheckpointStore(folder.checkpoints_path, 1, read_only=True)


def files_of(folder):
    """Every file of a run's checkpoints, with its bytes."""
    found = folder.checkpoints_path.rglob("*")
    return {path: path.read_bytes() for path in found if path.is_file()}


def in_step(step, monkeypatch, act):
    """Call `act(model, loss)` with the loss of a step; its result is the loss."""
    loss, calls = GPT.loss, {"n": 0}

    def acting(self, tokens, targets, **options):
        calls["n"] += 1
        result = loss(self, tokens, targets, **options)
        return act(self, result) if calls["n"] == step else result

    monkeypatch.setattr(GPT, "loss", acting)


def nan_loss(model, loss):
    return loss * math.nan


def nan_gradients_only(model, loss):
    loss.register_hook(lambda gradient: gradient * math.nan)
    return loss


def inf_in_the_embedding(model, loss):
    with torch.no_grad():
        model.embed_tokens.weight[0, 0] = math.inf
    return loss


def inf_in_the_embedding_and_nan_loss(model, loss):
    return inf_in_the_embedding(model, loss) * math.nan


def huge_rate(model, loss):
    # The gradients are finite, what the optimizer makes of them is not.
    huge_rate.armed = True
    return loss


@pytest.fixture
def huge_step(monkeypatch):
    """Let the optimizer make the step of `huge_rate` with a learning rate that no weight bears."""
    step = torch.optim.AdamW.step
    huge_rate.armed = False

    def stepping(self, *args, **kwargs):
        if huge_rate.armed:
            for group in self.param_groups:
                group["lr"] = 1e39
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", stepping)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (nan_loss, "the loss is nan and the gradient norm nan.*the state after step 7 is saved"),
        (nan_gradients_only, r"the loss is [\d.]+ and the gradient norm nan.*step 7 is saved"),
        (inf_in_the_embedding, "made weights infinite or NaN, first those of embed_tokens.weight"),
        # In memory, before the optimizer: the state after the step before is lost, too.
        (inf_in_the_embedding_and_nan_loss, "nothing was saved, as weights of embed_tokens.weight"),
        (
            huge_rate,
            "made weights infinite or NaN, first those of embed_tokens.weight, and nothing was",
        ),
    ],
)
def test_no_checkpoint_ever_holds_weights_that_are_no_numbers(
    recipe, run_training, monkeypatch, tmp_path, huge_step, fault, says
):
    in_step(8, monkeypatch, fault)
    with pytest.raises(TrainingDiverged, match=rf"step 8 \(training sequences 14 to 15,.*{says}"):
        run_training(recipe, "run", checkpoint_every_steps=2)
    folder = RunFolder(tmp_path / "runs", "run")
    newest = checkpoints(folder).load_newest()
    assert newest.step == (7 if "step 7 is saved" in says else 6)
    for group in ("model", "optimizer"):
        assert all(tensor.isfinite().all() for tensor in newest.tensors[group].values())
    assert folder.read_summary() is None
    # Neither is the good one pruned by the same failure again.
    before = files_of(folder)
    huge_rate.armed = False
    in_step(1, monkeypatch, fault)
    with pytest.raises(TrainingDiverged, match=f"there is a checkpoint of step {newest.step}"):
        run_training(recipe, "run", checkpoint_every_steps=2)
    assert files_of(folder) == before


def test_without_that_look_broken_weights_would_be_saved(
    recipe, run_training, monkeypatch, tmp_path, huge_step
):
    in_step(8, monkeypatch, huge_rate)
    monkeypatch.setattr("training.ranks.parallel.Parallel.broken_parameter", lambda self: None)
    with pytest.raises(TrainingDiverged, match="step 9"):
        run_training(recipe, "run", checkpoint_every_steps=2)
    weights = checkpoints(RunFolder(tmp_path / "runs", "run")).load_newest().tensors["model"]
    assert not all(tensor.isfinite().all() for tensor in weights.values())


def training_numbers(folder):
    keys = ("train/loss", "train/grad_norm", "train/learning_rate")
    records = [r for r in read_metrics(folder.metrics_path) if "train/loss" in r]
    return {record["step"]: [record[key] for key in keys] for record in records}


NEVER = 10**6
WATCHED = [
    {"eval_every_steps": 5, "log_every_steps": 1, "checkpoint_every_steps": 7},
    {"eval_every_steps": 7, "log_every_steps": 1, "checkpoint_every_steps": NEVER},
    {"eval_every_steps": 1, "log_every_steps": 5, "checkpoint_every_steps": 5},
    {"eval_every_steps": NEVER, "log_every_steps": 7, "sample_tokens": 5},
    {"eval_every_steps": NEVER, "log_every_steps": 1, "wandb": True},
]


@pytest.fixture(scope="module")
def unwatched():
    """What a run without any validation ended with, made once."""
    return {}


@pytest.mark.parametrize("watched", WATCHED, ids=str)
def test_watching_a_run_changes_no_bit_of_it(
    recipe, run_training, unwatched, monkeypatch, watched
):  # T10
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if not unwatched:
        folder = run_training(recipe, "unwatched", eval_every_steps=NEVER)
        unwatched |= {"tensors": final_tensors(folder), "numbers": training_numbers(folder)}
    folder = run_training(recipe, "watched", **watched)
    assert_same_bits(final_tensors(folder), unwatched["tensors"])
    numbers = training_numbers(folder)
    assert numbers.keys() == {
        s for s in range(1, 13) if s % watched["log_every_steps"] == 0 or s == 12
    }
    for step, values in numbers.items():
        assert values == unwatched["numbers"][step]
    assert bool(list(folder.path.glob("wandb/offline-run-*"))) == watched.get("wandb", False)


def test_a_validation_that_draws_random_numbers_would_be_noticed(recipe, run_training, monkeypatch):
    quiet = run_training(recipe, "quiet", eval_every_steps=NEVER)
    validate = recorder.validate

    def drawing(*args):
        torch.rand(1)
        return validate(*args)

    monkeypatch.setattr(recorder, "validate", drawing)
    with pytest.raises(AssertionError):
        assert_same_bits(
            final_tensors(quiet), final_tensors(run_training(recipe, "loud", eval_every_steps=5))
        )


def die(model, loss):
    raise Killed


def broken_off(recipe, run_training, monkeypatch, name, **changes):
    """Train to step 7 or so, and die; the checkpoint of step 6 is there."""
    with monkeypatch.context() as patch:
        in_step(8, patch, die)
        with pytest.raises(Killed):
            run_training(recipe, name, **changes)


def test_other_threads_resume_and_say_so_here_and_in_the_summary(
    recipe, run_training, monkeypatch
):  # T11
    whole = run_training(recipe, "whole", num_threads=2)
    broken_off(recipe, run_training, monkeypatch, "moved", num_threads=2)
    lines = []
    moved = run_training(recipe, "moved", lines.append, num_threads=1)
    torch.set_num_threads(1)
    assert "resuming, but not bit for bit: num_threads was 2, is 1" in lines
    assert "resuming with other settings: trainer.num_threads: 2 -> 1" in lines
    assert "resuming moved after step 6" in lines
    one, other = training_numbers(whole), training_numbers(moved)
    assert max(abs(one[step][0] - other[step][0]) for step in one) <= 1e-5
    summary = moved.read_summary()
    assert summary["resumes"] == 1
    assert summary["numerics_changed"] == ["num_threads: 2 -> 1 after step 6"]
    assert whole.read_summary()["numerics_changed"] == []
    assert whole.read_summary()["resumes"] == 0


def test_a_run_of_several_parts_is_summed_up_as_one(recipe, run_training, monkeypatch, tmp_path):
    machine = {"memory": 900, "flops": 4e9, "commit": "abc"}
    monkeypatch.setattr(setup, "peak_memory_bytes", lambda device: machine["memory"])
    monkeypatch.setattr(setup, "measure_matmul_flops", lambda *args: machine["flops"])
    monkeypatch.setattr(provenance, "git_commit", lambda folder: machine["commit"])
    broken_off(recipe, run_training, monkeypatch, "run")
    folder = RunFolder(tmp_path / "runs", "run")
    first = checkpoints(folder).load_newest().state["progress"]
    assert first["possible_flops"] == pytest.approx(first["train_seconds"] * 4e9)
    machine |= {"memory": 100, "flops": 1e9, "commit": "def"}
    summary = run_training(recipe, "run").read_summary()
    assert summary["peak_memory_bytes"] == 900
    assert summary["versions_changed"] == ["git_commit: abc -> def after step 6"]
    assert summary["git_commit"] == "def"
    assert (summary["resumes"], summary["numerics_changed"]) == (1, [])
    last = checkpoints(folder).load_newest().state["progress"]
    seconds = [first["train_seconds"], last["train_seconds"] - first["train_seconds"]]
    flops = 12 * 32 * training_flops_per_token(recipe.model, 16)
    expected = flops / (seconds[0] * 4e9 + seconds[1] * 1e9)
    assert summary["mfu"] == pytest.approx(expected, rel=1e-6)


def changed_state(folder, change):
    """Write the newest checkpoint again with another state."""
    store = CheckpointStore(folder.checkpoints_path, 1)
    newest = store.load_newest()
    state = newest.state
    change(state)
    store.save(newest.step, newest.tensors, state)


def test_other_settings_than_the_weights_were_trained_with_are_refused(
    recipe, run_training, monkeypatch, tmp_path
):
    broken_off(recipe, run_training, monkeypatch, "run")
    folder = RunFolder(tmp_path / "runs", "run")
    before = files_of(folder)
    faster = dataclasses.replace(recipe.optim, learning_rate=0.5)
    other = dataclasses.replace(recipe, optim=faster, seed=2)
    with pytest.raises(
        TrainingError,
        match=r"\(optim.learning_rate: 0.008 -> 0.5; trainer.max_grad_norm: 1.0 -> 2.0; seed: 1 -> "
        r"2\); give the run another run_name",
    ):
        run_training(other, "run", max_grad_norm=2.0)
    assert files_of(folder) == before
    lines = []
    finished = run_training(recipe, "run", lines.append, keep_last=2)
    assert "resuming with other settings: trainer.keep_last: 1 -> 2" in lines
    assert finished.read_summary()["finished"]


def test_a_checkpoint_from_before_all_that_was_recorded_resumes(
    recipe, run_training, monkeypatch, tmp_path
):
    monkeypatch.setattr(setup, "measure_matmul_flops", lambda *args: 4e9)
    whole = run_training(recipe, "whole")
    broken_off(recipe, run_training, monkeypatch, "old")

    def forget(state):
        for key in ("settings", "versions", "git_commit"):
            del state[key]
        for key in (
            *("possible_flops", "peak_memory_bytes", "resumes", "unfinished"),
            *("numerics_changed", "versions_changed"),
        ):
            del state["progress"][key]

    changed_state(RunFolder(tmp_path / "runs", "old"), forget)
    old = run_training(recipe, "old")
    assert_same_bits(final_tensors(whole), final_tensors(old))
    summary = old.read_summary()
    assert summary["resumes"] == 1
    seconds = checkpoints(old).load_newest().state["progress"]["train_seconds"]
    flops = 12 * 32 * training_flops_per_token(recipe.model, 16)
    assert summary["mfu"] == pytest.approx(flops / (seconds * 4e9), rel=1e-6)
