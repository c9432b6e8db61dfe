"""dry_run=true: what a training would take, and nothing left behind."""

import subprocess
import sys
from pathlib import Path

import pytest

from data.errors import DataError
from launch import schemas
from launch.compose import checked, composed
from launch.errors import ConfigError
from launch.typed import for_hydra
from settings.data import DataSettings, TokenizerSettings
from training.cost_sheet import Cost, _downloads, _size_of_data, cost_of, total
from training.dry_run import Unprepared, measure, stand_in
from training.errors import TrainingFailed, TrainingInterrupted
from training.ranks.joining import alone
from training.recipe.budget import make_budget

ROOT = Path(__file__).parents[2]


def everything_in(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*"))


@pytest.mark.slow
def test_a_step_is_timed_and_a_checkpoint_measured_as_a_training_has_them(
    recipe, prepared, run_training
):
    for corpus in (prepared, Unprepared("other", prepared.vocab_size)):
        found = measure(recipe, corpus, alone("cpu"))
        assert 0 < found.seconds_per_step < 60
        assert found.peak_memory_bytes > 2**20
    budget = make_budget(recipe.trainer, recipe.schedule, 32)
    whole = cost_of(recipe, budget, 0, found)
    assert (whole.num_steps, whole.num_tokens) == (12, 12 * 4 * 32)
    assert whole.seconds == pytest.approx(12 * found.seconds_per_step)
    rest = cost_of(recipe, budget, 9, found)
    assert (rest.num_steps, rest.disk_bytes) == (3, found.checkpoint_bytes)
    assert total([whole, rest]).num_tokens == 15 * 4 * 32

    folder = run_training(recipe, "real")
    saved = [p for p in folder.checkpoints_path.iterdir() if p.is_dir()]
    # Two last ones; validation and checkpoints meet at no step of this run, so no best one.
    assert whole.disk_bytes == len(saved) * found.checkpoint_bytes
    sizes = [sum(f.stat().st_size for f in one.rglob("*.safetensors")) for one in saved]
    assert max(sizes) == pytest.approx(found.checkpoint_bytes, rel=0.35)


def test_no_memory_for_a_step_is_one_line(recipe, prepared, monkeypatch):
    def fail(*_, **options):
        raise MemoryError("no room")

    monkeypatch.setattr("modeling.gpt.GPT.loss", fail)
    with pytest.raises(TrainingFailed, match=r"out of memory .*trainer\.micro_batch_size \(2"):
        measure(recipe, prepared, alone("cpu"))


def hub(**changes):
    return DataSettings(
        name="web", source="hub", path="a/web", config_name="part", prepared_dir="p", **changes
    )


@pytest.mark.parametrize(
    ("tokenizer", "asked", "size", "is_assumed"),
    [
        (TokenizerSettings(name="bytes", kind="bytes"), None, 257, False),
        (TokenizerSettings(name="bpe", kind="bpe", vocab_size=300), None, 300, False),
        (TokenizerSettings(name="gpt2", kind="pretrained", path="gpt2"), None, 50_257, True),
        (TokenizerSettings(name="gpt2", kind="pretrained", path="gpt2"), 50_304, 50_304, False),
    ],
)
def test_what_stands_in_for_data_that_is_not_prepared(tokenizer, asked, size, is_assumed):
    found = stand_in(hub(), tokenizer, asked)
    assert (found.vocab_size, found.is_assumed) == (size, is_assumed)


def test_a_tokenizer_in_a_folder_says_its_vocabulary(prepared):
    path = str(prepared.folder / "tokenizer")
    found = stand_in(hub(), TokenizerSettings(name="mine", kind="pretrained", path=path), None)
    assert (found.vocab_size, found.is_assumed) == (prepared.vocab_size, False)


def test_a_tokenizer_that_is_nowhere_is_refused():
    gone = TokenizerSettings(name="gone", kind="pretrained", path="/nowhere/at/all")
    with pytest.raises(DataError, match=r"tokenizer\.path: no such folder: /nowhere"):
        stand_in(hub(), gone, None)


def test_what_would_be_fetched_is_named_and_what_is_unknown_said(prepared):
    bpe = TokenizerSettings(name="bpe", kind="bpe")
    gpt2 = TokenizerSettings(name="gpt2", kind="pretrained", path="gpt2")
    small = Unprepared("web", 50_304)
    newest, pinned = hub(streaming=True), hub(revision="abc", max_train_tokens=10**9)
    assert _downloads(prepared, pinned, gpt2) == []
    assert _downloads(small, newest, bpe) == [
        "a/web part, the newest revision, streamed; size unknown"
    ]
    [data, tokenizer] = _downloads(small, pinned, gpt2)
    assert "revision abc, whole unless it is cached" in data
    assert tokenizer.startswith("tokenizer gpt2")
    assert "unknown" in _size_of_data(small, newest)
    assert "at most 2.00 GB" in _size_of_data(small, pinned)
    assert "at most 4.00 GB" in _size_of_data(Unprepared("web", 2**17), pinned)
    mixed = DataSettings(name="m", source="mixture", corpora={"a": newest, "b": pinned})
    assert len(_downloads(small, mixed, gpt2)) == 3
    assert "unknown" in _size_of_data(small, mixed)
    assert "already there" in _size_of_data(prepared, pinned)


@pytest.fixture
def command(tmp_path, tiny_data, capsys):
    """Call train_model.py in this process; returns what it printed."""
    from commands import train

    def call(*arguments):
        typed = [*tiny_data, "debug=smoke", "tracking=none", f"runs_dir={tmp_path}/runs"]
        overrides = for_hydra("train", [*typed, *arguments])
        train.main(checked(composed("train", overrides), schemas.TrainConfig))
        return capsys.readouterr().out

    return call


def test_a_dry_run_says_all_and_leaves_nothing(tmp_path, command):
    dry = ("dry_run=true", f"data.prepared_dir={tmp_path}/data", "attention=mla")
    assert "layers.window (64) covers the whole context" in command(*dry, "layers=window")
    printed = command(*dry)
    for line in (
        "MHA, the baseline",
        "mla-smoke-tiny-seed0, a dry run: nothing is written",
        "tiny is not prepared: timed on random tokens of a vocabulary of 300",
        "8 steps x 1 x 4 sequences x 64 tokens = 2,048 tokens",
        *("\ntime ", "\nmemory ", "\ndisk ", "prepared data of unknown size"),
        "\ndownload  nothing",
    ):
        assert line in printed
    assert not everything_in(tmp_path)


@pytest.mark.slow
def test_a_sweep_of_dry_runs_ends_in_the_total_and_leaves_nothing(tmp_path, tiny_data):
    script, runs = str(ROOT / "train_model.py"), f"runs_dir={tmp_path}/runs"
    swept = ["-m", "attention=mha,mla", "fair_lr=true", "dry_run=true", "debug=smoke"]
    swept.append("hydra/launcher=basic")
    told = subprocess.run(
        [sys.executable, script, *swept, *tiny_data, runs],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (told.returncode, told.stderr) == (0, "")
    assert "epochs of tiny's" in told.stdout
    assert "fair_lr=true trains 3 runs first: 24 steps" in told.stdout
    # Two runs and the grid of each.
    assert "in total, 8 runs in turn: 64 steps, 16,384 tokens" in told.stdout
    assert not everything_in(tmp_path)


@pytest.mark.slow
def test_a_run_that_has_begun_or_ended_takes_only_the_rest(tmp_path, command):
    with pytest.raises(TrainingInterrupted):
        command("trainer.max_minutes=0.0001")
    [checkpoint] = (tmp_path / "runs").glob("*/checkpoints/0*")
    step = int(checkpoint.name)
    before = everything_in(tmp_path)
    printed = command("dry_run=true")
    assert f"a checkpoint of step {step} is there: {8 - step} steps remain" in printed
    with pytest.raises(ConfigError, match=r"another configuration \(optim\.learning_rate"):
        command("dry_run=true", "optim.learning_rate=1e-4")
    assert everything_in(tmp_path) == before
    command()
    assert "is finished: it would take nothing" in command("dry_run=true")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(7200.0, "2 h (2 hours)"), (9.0, "9 s (0.0025 hours)"), (5.4e6, "62 d 12 h (1,500 hours)")],
)
def test_a_cost_is_said_in_a_line(seconds, words):
    assert Cost(10, 5000, seconds, 3_000_000_000).describe() == (
        f"10 steps, 5,000 tokens, about {words} here, 3.00 GB of checkpoints"
    )
