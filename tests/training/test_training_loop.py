import contextlib
import dataclasses
import math
import os
import signal

import pytest
import torch
from weights import Killed, assert_same_bits, final_tensors

from data import batches
from files.errors import RunError
from measuring.errors import EvaluationError
from measuring.numerics import trained_with
from modeling.gpt import GPT
from modeling.kv_cache import LayerCache
from tracking.checkpoints import CheckpointStore
from tracking.metrics import read_metrics
from training import loop
from training.errors import TrainingError, TrainingInterrupted


@pytest.mark.parametrize("sequences", [2, 60], ids=["within an epoch", "across two"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resumed_run_equals_the_undisturbed_one_bit_for_bit(
    recipe, run_training, die_after, monkeypatch, optimizer, sequences, prepared
):
    optim = dataclasses.replace(recipe.optim, name=optimizer)
    trainer = dataclasses.replace(
        recipe.trainer, micro_batch_size=sequences, max_tokens=12 * 2 * sequences * 32
    )
    recipe = dataclasses.replace(recipe, optim=optim, trainer=trainer)
    # Twelve steps of two passes; the larger ones reach the second epoch in the eighth.
    assert (prepared.splits["train"].tokens < 8 * 2 * sequences * 32) == (sequences == 60)
    whole = run_training(recipe, "whole")
    with monkeypatch.context():
        for step in (4, 4, 2):  # dies after steps 4, 7 (resumed from 3) and 8 (from 6)
            die_after(step)
            with pytest.raises(Killed):
                run_training(recipe, "broken")
            monkeypatch.undo()
    broken = run_training(recipe, "broken")
    assert_same_bits(final_tensors(whole), final_tensors(broken))

    def numbers(folder):
        keys = ("step", "train/loss", "train/grad_norm", "validation/nll_part")
        return [[r.get(key) for key in keys] for r in read_metrics(folder.metrics_path)]

    assert numbers(whole) == numbers(broken)
    assert [row[0] for row in numbers(broken)] == list(range(1, 13))


def test_forgetting_the_random_state_would_be_noticed(recipe, run_training, die_after, monkeypatch):
    whole = run_training(recipe, "whole")
    die_after(4)
    with pytest.raises(Killed):
        run_training(recipe, "broken")
    monkeypatch.undo()
    monkeypatch.setattr(
        "training.endurance.checkpointing.set_rng_tensors", lambda state, device: None
    )
    broken = run_training(recipe, "broken")
    with pytest.raises(AssertionError):
        assert_same_bits(final_tensors(whole), final_tensors(broken))


def test_four_passes_of_one_sequence_equal_one_pass_of_four(recipe, run_training):
    no_dropout = recipe.model.attention | {"attention_dropout": 0.0}
    model = dataclasses.replace(recipe.model, attention=no_dropout)
    recipe = dataclasses.replace(recipe, model=model)
    folders = [
        run_training(recipe, "4x1", micro_batch_size=1, gradient_accumulation_steps=4),
        run_training(recipe, "1x4", micro_batch_size=4, gradient_accumulation_steps=1),
    ]
    losses = [[r["train/loss"] for r in read_metrics(f.metrics_path)] for f in folders]
    # Sums of float32 in another order; twelve steps let the difference grow a little.
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-5)


def test_every_attention_trains_on_the_same_tokens_in_the_same_order(
    recipe, run_training, monkeypatch
):
    latent = recipe.model.attention
    shared = {key: latent[key] for key in ("hidden_size", "num_attention_heads", "v_head_dim")}
    grouped = {"name": "mqa", "num_key_value_heads": 1, "head_dim": 8, "qk_rope_head_dim": 8}
    seen = {"mla": [], "mqa": []}
    for name, fields in (("mla", latent), ("mqa", shared | grouped)):

        def read_ahead(*arguments, into=seen[name]):
            with contextlib.closing(batches.read_ahead(*arguments)) as ahead:
                for batch in ahead:
                    into.append(batch)
                    yield batch

        monkeypatch.setattr(loop, "read_ahead", read_ahead)
        model = dataclasses.replace(recipe.model, attention=fields)
        run_training(dataclasses.replace(recipe, model=model), name)
    assert len(seen["mla"]) == len(seen["mqa"]) == 24
    for one, other in zip(seen["mla"], seen["mqa"], strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_saves_and_resumes_to_the_same_weights(
    recipe, run_training, monkeypatch, number
):
    whole = run_training(recipe, "whole")
    loss, calls = GPT.loss, {"n": 0}

    def signalling(self, tokens, targets, **options):
        calls["n"] += 1
        if calls["n"] == 2 * 4 + 1:  # in the middle of step 5
            os.kill(os.getpid(), number)
        return loss(self, tokens, targets, **options)

    monkeypatch.setattr(GPT, "loss", signalling)
    before = signal.getsignal(number)
    with pytest.raises(TrainingInterrupted, match="step 5 of 12"):
        run_training(recipe, "stopped")
    assert signal.getsignal(number) is before
    monkeypatch.undo()
    assert_same_bits(final_tensors(whole), final_tensors(run_training(recipe, "stopped")))


def test_data_that_changed_under_a_checkpoint_is_refused(
    recipe, run_training, die_after, prepared, monkeypatch
):
    die_after(4)
    with pytest.raises(Killed):
        run_training(recipe, "run")
    monkeypatch.undo()
    monkeypatch.setattr(type(prepared), "fingerprint", "f" * 64)
    with pytest.raises(TrainingError, match="ffffffffffff; give the run another run_name"):
        run_training(recipe, "run")


def test_summary_has_every_documented_key_and_its_perplexity_is_that_of_the_weights(
    recipe, run_training, prepared
):
    folder = run_training(recipe, "run")
    summary = folder.read_summary()
    assert set(summary) >= {
        *("run_name", "attention", "position_embedding", "num_parameters"),
        *("num_attention_parameters", "tokens_trained", "train_loss", "validation_nll"),
        *("validation_perplexity", "validation_bits_per_byte", "kv_cache_bytes_per_token"),
        *("kv_cache_bytes_measured", "tokens_per_second", "mfu", "peak_memory_bytes"),
        *("wall_seconds", "finished", "versions", "git_commit"),
    }
    assert summary["validation_perplexity"] == pytest.approx(math.exp(summary["validation_nll"]))
    assert summary["kv_cache_bytes_measured"] == summary["kv_cache_bytes_per_token"]
    # Windows of 32 tokens and the next one; the stream's first token is no target.
    assert summary["tokens_dropped"] == (prepared.splits["train"].tokens - 1) % 32
    assert folder.samples_path.read_text().startswith("def ")


def test_the_best_checkpoint_survives_with_the_last_ones(recipe, run_training):
    folder = run_training(recipe, "run", eval_every_steps=3, keep_last=1)
    store = CheckpointStore(folder.checkpoints_path, 1, read_only=True)
    assert store.steps()[-1] == 12
    assert store.load_newest(names=[]).state["progress"]["best_step"] in store.steps()


def test_compile_that_fails_falls_back_with_a_warning(recipe, run_training, monkeypatch):
    def broken(function):
        def call(*args):
            raise RuntimeError("no compiler")

        return call

    eager = run_training(recipe, "eager")
    monkeypatch.setattr(torch, "compile", broken)
    compiled = run_training(recipe, "compiled", compile=True)
    assert_same_bits(final_tensors(eager), final_tensors(compiled))


def test_the_best_of_the_saved_checkpoints_stays_whatever_the_intervals(
    recipe, run_training, monkeypatch
):
    nlls = {2: 5.0, 4: 3.0, 6: 4.0, 8: 4.5, 10: 6.0, 12: 6.0}
    step = {"now": 0}

    class Fixed:
        tokens_scored, perplexity, window_nll = 10, 1.0, ()

    def validate(model, prepared, settings, device, max_tokens, watch):
        step["now"] += 2
        Fixed.nll = nlls[step["now"]]
        Fixed.bits_per_byte = lambda self, count: 1.0
        return Fixed()

    monkeypatch.setattr("training.recorder.validate", validate)
    folder = run_training(recipe, "run", eval_every_steps=2, checkpoint_every_steps=3, keep_last=1)
    store = CheckpointStore(folder.checkpoints_path, 1, read_only=True)
    # Step 4 was better, but only steps 3, 6, 9 and 12 were saved.
    assert store.load_newest(names=[]).state["progress"]["best_step"] == 6
    assert store.steps() == [6, 12]


def test_a_checkpoint_of_another_version_is_refused_in_one_line(
    recipe, run_training, die_after, monkeypatch
):
    die_after(4)
    with pytest.raises(Killed):
        run_training(recipe, "run")
    monkeypatch.undo()

    def newer(checkpoint, *_):
        return checkpoint.state["no_such_field"]

    monkeypatch.setattr("training.endurance.resumption._recorded", newer)
    with pytest.raises(RunError, match="another version of kvlab"):
        run_training(recipe, "run")


def test_deterministic_is_switched_on_and_off_again(recipe, run_training):
    run_training(recipe, "on", deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    run_training(recipe, "off")
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.gpu
def test_deterministic_runs_on_a_gpu_are_equal_bit_for_bit(recipe, run_training):
    changes = {"device": "cuda", "precision": "auto", "deterministic": True}
    folders = [run_training(recipe, name, **changes) for name in ("one", "two")]
    assert_same_bits(*(final_tensors(folder) for folder in folders))


def test_a_cache_that_is_not_its_closed_form_ends_without_a_summary(
    recipe, run_training, folder_of, monkeypatch
):
    def half(self):
        return [tensor[:, :, ::2].clone() for tensor in self.tensors.values()]

    monkeypatch.setattr(LayerCache, "live_tensors", half)
    with pytest.raises(EvaluationError, match=r"^narrow: the live KV cache of \d+ tokens"):
        run_training(recipe, "narrow")
    monkeypatch.undo()
    # Its steps are saved: what is corrected finishes.
    summary = run_training(recipe, "narrow").read_summary()
    assert summary["finished"] is True
    numerics = {"dtype": "float32", "device": "cpu", "num_threads": torch.get_num_threads()}
    assert numerics.items() <= trained_with(summary).items()
    assert type(summary["numerics"]["native_bfloat16"]) is bool
