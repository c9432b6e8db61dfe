"""Several ranks: what they agree on, that they equal one, and how they end."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from external_models import deepseek, saved
from hydra.errors import MissingConfigException
from processes import in_threads, wait_for_step
from weights import assert_same_bits, final_tensors

from interop.importing.initial_model import initial_model
from launch import compose
from launch.explain import explain
from launch.schemas import TrainConfig
from modeling.config import GPTConfig
from modeling.gpt import GPT
from settings.training import TrainerSettings
from tests.tiny_models import tiny_config
from tracking.checkpoints import CheckpointStore
from tracking.metrics import read_metrics
from training.errors import AlreadyReported, TrainingError
from training.ranks.joining import joined
from training.ranks.place import Place, place
from training.ranks.world import World

ROOT = Path(__file__).parents[2]
RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def _no_ranks_of_our_own(monkeypatch):
    for name in RANK_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def set_ranks(monkeypatch, **values):
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))


def test_place_is_read_from_torchruns_environment(monkeypatch):
    assert place() == Place(0, 1, 0)
    set_ranks(monkeypatch, RANK=3, WORLD_SIZE=4, LOCAL_RANK=1, MASTER_ADDR="h", MASTER_PORT=1)
    assert place() == Place(rank=3, size=4, local_rank=1)
    assert not place().is_main
    monkeypatch.setenv("WORLD_SIZE", "1")  # torchrun --nproc_per_node=1
    assert place() == Place(0, 1, 0)


@pytest.mark.parametrize(
    "values",
    [
        {"WORLD_SIZE": "two"},
        {"WORLD_SIZE": 2},
        {"WORLD_SIZE": 2, "RANK": 2, "MASTER_ADDR": "h", "MASTER_PORT": 1},
        {"WORLD_SIZE": 2, "RANK": 0},
    ],
)
def test_half_an_environment_is_refused_by_name(monkeypatch, values):
    set_ranks(monkeypatch, **values)
    with pytest.raises(TrainingError, match="WORLD_SIZE"):
        place()


def test_a_process_alone_makes_no_process_group_and_gets_back_what_it_gave():
    with joined("cpu", pytest.fail, 600.0) as world:
        assert not dist.is_initialized()
        assert world.mean(0.1) == 0.1
        assert world.any(True)
        assert not world.any(False)
        assert world.from_main(lambda: [1, "a"]) == [1, "a"]
        assert world.share_of(3) == 3
        with pytest.raises(KeyError), world.reporting_errors():
            raise KeyError


@pytest.fixture
def two_ranks():
    """Run a function of a world in two threads that share a store; returns how each ended."""

    def run(work):
        store, told = dist.HashStore(), []
        ended = [None, None]

        def rank(number):
            world = World(Place(number, 2), torch.device("cpu"), store, told.append)
            try:
                with world.reporting_errors(lambda: "from step 7"):
                    ended[number] = work(world)
            except BaseException as error:
                ended[number] = error

        in_threads(rank, (0, 1))
        return ended, told

    return run


def test_the_others_get_what_rank_0_found_however_long_it_takes(two_ranks):
    def work(world):
        calls = []
        first = world.from_main(lambda: (time.sleep(0.5), calls.append(1), "folder")[2])
        return first, world.from_main(lambda: None), len(calls)

    ended, told = two_ranks(work)
    assert ended == [("folder", None, 1), ("folder", None, 0)]
    assert told == []


@pytest.mark.parametrize("who", ["rank 0", "all"])
def test_an_error_of_rank_0_or_of_all_ends_all_and_is_reported_once(two_ranks, who):
    def fail():
        raise TrainingError("the reason")

    ended, told = two_ranks(lambda world: world.from_main(fail) if who == "rank 0" else fail())
    assert [type(error) for error in ended] == [AlreadyReported] * 2
    assert [error.kind for error in ended] == ["TrainingError"] * 2
    assert [str(error) for error in told] == ["the reason"]


def test_settings_name_what_does_not_go_together():
    assert (
        "trainer.parallelism ('tp') must be ddp or fsdp"
        in TrainerSettings(parallelism="tp").problems()
    )
    assert any(
        "trainer.compile=true does not work with trainer.parallelism=fsdp" in problem
        for problem in TrainerSettings(parallelism="fsdp", compile=True).problems()
    )


def test_a_sharded_run_is_asked_for_in_one_word():
    config = compose.checked(compose.composed("train", ["trainer=fsdp"]), TrainConfig)
    assert config.trainer == TrainerSettings(parallelism="fsdp", sample_prompt="def ")


def test_slurm_launcher_is_composed_and_its_absence_said_in_one_line():
    config = compose.composed("train", ["hydra/launcher=submitit_slurm"], with_hydra=True)
    assert config.hydra.launcher._target_.endswith("SlurmLauncher")
    missing = MissingConfigException("", "hydra/launcher/submitit_slurm", ["basic"])
    said = explain(missing, TrainConfig)
    assert said.endswith("pip install hydra-submitit-launcher")


@pytest.mark.parametrize("position_embedding", ["none", "learned"])
def test_recomputed_blocks_give_the_same_gradients_bit_for_bit(position_embedding):
    def gradients(recompute):
        torch.manual_seed(0)
        rope = {} if position_embedding == "none" else {"qk_rope_head_dim": 0}
        fields = rope | {"attention_dropout": 0.3}
        config = tiny_config(width=32, heads=4, num_hidden_layers=2, of_attention=fields)
        assert config.position_embedding == position_embedding
        model = GPT(config)
        model.recompute_activations(recompute)
        calls = []
        model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
        tokens = torch.randint(50, (2, 17))
        model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
        following = torch.rand(3)  # the random state is left as it would have been
        return list(model.state_dict()), [p.grad for p in model.parameters()], following, len(calls)

    kept_names, kept, kept_random, kept_calls = gradients(False)
    names, again, random, calls = gradients(True)
    assert names == kept_names
    assert (kept_calls, calls) == (1, 2)
    assert torch.equal(random, kept_random)
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))


# Everything below starts processes.

CONTEXT, PASSES, SEQUENCES, STEPS, PEAK_RATE = 64, 2, 12, 24, 3e-3
RECIPE = [
    "attention=mla",
    "trainer.precision=float32",  # else a machine with native bfloat16 rounds to that
    f"trainer.micro_batch_size={SEQUENCES}",
    f"trainer.gradient_accumulation_steps={PASSES}",
    f"trainer.max_tokens={STEPS * PASSES * SEQUENCES * CONTEXT}",
    "trainer.checkpoint_every_steps=5",
    "trainer.eval_every_steps=100",
    f"optim.learning_rate={PEAK_RATE}",
]

# A block reads the latents of another, and a part of them only; what it keeps is computed again.
LAYERS_THAT_DIFFER = (
    *("layers=window_full", "layers.window=16", "layers.full_every=2", "layers.sinks=true"),
    *("layers.share=last", "model.num_hidden_layers=4", "trainer.activation_checkpointing=true"),
)

# Measured: losses 3e-4, gradient norms 2e-3.
ROUNDING_OF_BFLOAT16 = torch.finfo(torch.bfloat16).eps


@pytest.fixture(scope="module")
def train(tiny_data, tmp_path_factory):
    """Start a training of the tiny corpus on some ranks: train(folder of runs, ranks, ...)."""
    data = [*tiny_data, "debug=smoke", "tracking=none"]
    here = tmp_path_factory.mktemp("here")

    def start(runs, ranks, *extra):
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
        flags = [argument for argument in extra if argument.startswith("-")]
        extra = [argument for argument in extra if argument not in flags]
        return subprocess.Popen(
            [
                *(sys.executable, *(launcher if ranks > 1 else [])),
                *(str(ROOT / "train_model.py"), *flags, *data, f"runs_dir={runs}", "run_name=run"),
                *extra,
            ],
            cwd=here,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )

    def run(runs, ranks, *extra):
        process = start(runs, ranks, *extra)
        out, err = process.communicate(timeout=240)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    run.start = start
    return run


@pytest.fixture(scope="module")
def finished(train, tmp_path_factory):
    """The folder of a finished run by ranks and parallelism, trained once."""
    done = {}

    def get(ranks, trainer="default", *more):
        if (ranks, trainer, more) not in done:
            runs = tmp_path_factory.mktemp(f"{trainer}{ranks}")
            result = train(runs, ranks, f"trainer={trainer}", *RECIPE, *more)
            assert result.returncode == 0, result.stderr
            assert "Warning" not in result.stderr
            done[ranks, trainer, more] = runs / "run"
        return done[ranks, trainer, more]

    return get


@pytest.fixture(scope="module")
def deepseek_folder(prepared, tmp_path_factory):
    """A model of transformers for the tiny corpus, with weights as large as 0.3."""
    model = deepseek(vocab_size=prepared.vocab_size)
    return saved(model, tmp_path_factory.mktemp("models") / "deepseek", prepared.tokenizer())


def tensors_of(run, group="model"):
    store = CheckpointStore(run / "checkpoints", 1, read_only=True)
    return store.load(STEPS).tensors[group]


def assert_equal_but_for_rounding(
    one, other, rounding=PASSES * SEQUENCES * CONTEXT * 2**-24, of=torch.max
):
    """Sums over the tokens of a step may be in another order.

    That changes a float32 sum of n terms relatively by up to n x 2^-24 of their absolute values:
    losses and norms by that. A step moves a weight by about the learning rate at most, so the
    weights differ by at most steps x rate x n x 2^-24.
    """
    for key in ("train/loss", "train/grad_norm"):
        mine, theirs = (
            [record[key] for record in read_metrics(run / "metrics.jsonl")] for run in (one, other)
        )
        assert len(mine) == len(theirs) == STEPS
        assert mine == pytest.approx(theirs, rel=rounding, abs=0)
    mine, theirs = tensors_of(one), tensors_of(other)
    assert mine.keys() == theirs.keys()
    for key in mine:
        assert of((mine[key] - theirs[key]).abs()) <= STEPS * PEAK_RATE * rounding, key


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trainer", "changes"),
    [
        *(("default", ()), ("fsdp", ())),  # Muon, the default
        *(("default", ("optim=adamw",)), ("fsdp", ("optim=adamw",))),
        # What trainer.precision=auto takes where it is native.
        ("default", ("trainer.precision=bfloat16",)),
        *(("default", LAYERS_THAT_DIFFER), ("fsdp", LAYERS_THAT_DIFFER)),
    ],
    ids=str,
)
def test_two_ranks_equal_one(finished, trainer, changes):
    one, two = finished(1, "default", *changes), finished(2, trainer, *changes)
    summaries = [json.loads((run / "summary.json").read_text()) for run in (one, two)]
    assert summaries[0]["tokens_trained"] == summaries[1]["tokens_trained"]
    nlls = [summary["validation_nll"] for summary in summaries]
    if "trainer.precision=bfloat16" in changes:
        # A gradient near zero may change its sign, and one weight then goes the other way.
        assert_equal_but_for_rounding(one, two, ROUNDING_OF_BFLOAT16, of=torch.mean)
        assert nlls[0] == pytest.approx(nlls[1], rel=1e-3)
        return
    assert_equal_but_for_rounding(one, two)
    assert nlls[0] == pytest.approx(nlls[1], rel=1e-5)
    assert (one / "samples.txt").read_text() == (two / "samples.txt").read_text()
    # Two ranks have two random streams; the last checkpoint is whole, however it was trained.
    assert set(tensors_of(two, "rng")) == {"cpu", "cpu_1"}
    files = {path.name for path in (two / "checkpoints" / f"{STEPS:08d}").iterdir()}
    assert files == {
        *("model.safetensors", "optimizer.safetensors", "rng.safetensors"),
        *("state.json", "manifest.json"),
    }


@pytest.mark.slow
def test_two_ranks_begin_with_the_weights_of_a_folder_as_one_does(finished, deepseek_folder):
    begun = (f"init_from={deepseek_folder}", "optim=adamw")
    # Sharded: DDP would give all ranks the weights of the first.
    one, two = finished(1, "default", *begun), finished(2, "fsdp", *begun)
    assert_equal_but_for_rounding(one, two)
    start = initial_model(deepseek_folder, GPTConfig(max_position_embeddings=CONTEXT)).weights
    assert tensors_of(two).keys() == start.keys()
    for key, trained in tensors_of(two).items():
        # Others of this size would be a quarter away in the mean.
        assert 0 < (trained - start[key]).abs().mean() < STEPS * PEAK_RATE, key


def ranks_of(torchrun):
    """Return the process ids of torchrun's workers by rank."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if path.read_text().rsplit(")", 1)[1].split()[1] == str(torchrun.pid):
                environment = (path.parent / "environ").read_bytes().split(b"\0")
                rank = next(entry for entry in environment if entry.startswith(b"RANK="))
                found[int(rank[5:])] = int(path.parent.name)
        except (OSError, StopIteration):
            continue
    return found


def stop_at(train, runs, step, ranks, number, rank, *extra):
    """Send a signal to a rank after a step; returns the exit status and stderr of torchrun."""
    process = train.start(runs, ranks, *extra, *RECIPE)
    wait_for_step(process, runs / "run" / "metrics.jsonl", step)
    chosen = ranks_of(process)[rank]
    if number == signal.SIGKILL:
        # The others are to wait for it when it dies: that breaks their connection before torchrun
        # asks them to end, which must not keep them from reporting.
        os.kill(chosen, signal.SIGSTOP)
        time.sleep(1)
    sent = time.monotonic()
    os.kill(chosen, number)
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - sent < 40
    return process.returncode, err


def lines_of_ours(text):
    return [line for line in text.splitlines() if line.startswith("kvlab:")]


@pytest.mark.slow
def test_one_rank_killed_ends_all_and_the_rerun_gives_the_same_bits(train, finished, tmp_path):
    dropout = "model.attention.attention_dropout=0.1"  # each rank's random state matters
    # Rank 0, which alone says how it goes; the sharded run below loses the other.
    status, err = stop_at(train, tmp_path, 7, 2, signal.SIGKILL, 0, dropout)
    assert status != 0
    (line,) = lines_of_ours(err)
    assert re.match(r"kvlab: rank 0 died or lost its connection in step \d+; rerun", line)
    step = int(re.search(r"train from the checkpoint of step (\d+)", line).group(1))
    assert step in CheckpointStore(tmp_path / "run" / "checkpoints", 1, read_only=True).steps()
    rerun = train(tmp_path, 2, dropout, *RECIPE)
    assert rerun.returncode == 0, rerun.stderr
    assert f"resuming run after step {step}\n" in rerun.stdout
    assert "not bit for bit" not in rerun.stdout
    assert_same_bits(*map(final_tensors, (tmp_path / "run", finished(2, "default", dropout))))


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all_at_the_same_step_with_status_75(train, finished, tmp_path):
    status, err = stop_at(train, tmp_path, 7, 2, signal.SIGTERM, 0)
    assert status != 0
    (line,) = lines_of_ours(err)
    assert re.search(r"checkpoint saved at step \d+ of 24; rerun", line)
    assert re.search(r"exitcode *: 75 ", err)
    # One rank resumes what two began, and says that it is not the same to the bit.
    rerun = train(tmp_path, 1, *RECIPE)
    assert rerun.returncode == 0, rerun.stderr
    assert "resuming, but not bit for bit: ranks was 2, is 1" in rerun.stdout
    assert_equal_but_for_rounding(tmp_path / "run", finished(1))


@pytest.mark.slow
def test_a_sharded_run_resumes_on_as_many_ranks_and_on_other_numbers(train, finished, tmp_path):
    runs = tmp_path / "first"
    status, err = stop_at(train, runs, 12, 2, signal.SIGKILL, 1, "trainer=fsdp")
    assert status != 0
    assert "rank 1 died or lost its connection in step 1" in err
    folders = sorted((runs / "run" / "checkpoints").glob("0*"))
    assert any("-shard-00002" in path.name for path in folders[-1].iterdir())
    for path in folders[-1].iterdir():
        assert path.suffix in (".safetensors", ".json")
    subprocess.run(["cp", "-r", runs, tmp_path / "three"], check=True)
    subprocess.run(["cp", "-r", runs, tmp_path / "one"], check=True)
    # A flipped bit in a shard is found, and the checkpoint before it used.
    shard = next(folders[-1].glob("optimizer-shard-00001*"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)

    for name, ranks, trainer in (("first", 2, "fsdp"), ("three", 3, "fsdp"), ("one", 1, "default")):
        rerun = train(tmp_path / name, ranks, f"trainer={trainer}", *RECIPE)
        assert rerun.returncode == 0, rerun.stderr
        assert ("ranks was 2" in rerun.stdout) == (ranks != 2)
        assert ("is damaged" in rerun.stdout) == (name == "first")
        assert_equal_but_for_rounding(tmp_path / name / "run", finished(1))
    assert_same_bits(*map(final_tensors, (runs / "run", finished(2, "fsdp"))))

    evaluated = subprocess.run(
        [
            *(sys.executable, str(ROOT / "eval_model.py"), "tracking=none"),
            *(f"runs_dir={runs}", f"reports_dir={tmp_path}/reports"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert evaluated.returncode == 0, evaluated.stderr
    (row,) = json.loads((tmp_path / "reports" / "comparison" / "results.json").read_text())
    summary = json.loads((runs / "run" / "summary.json").read_text())
    assert row["perplexity"] == pytest.approx(summary["validation_perplexity"], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("optim.learning_rat=1", "did you mean 'optim.learning_rate'"),
        ("data.path=/nowhere/at/all", "/nowhere/at/all"),
        ("fair_lr=true", "fair_lr=true trains its grid in one process, not in 2 ranks"),
    ],
)
def test_bad_input_is_one_line_of_one_rank_with_status_2(train, tmp_path, argument, message):
    result = train(tmp_path, 2, argument)
    assert result.returncode != 0
    (line,) = lines_of_ours(result.stderr)
    assert message in line
    assert re.search(r"exitcode *: 2 ", result.stderr)
    assert 'train_model.py", line' not in result.stderr
    assert not list(tmp_path.glob("*/checkpoints/*"))


@pytest.mark.slow
def test_a_sweep_of_submitits_local_launcher_trains_each_and_reports_the_failed(train, tmp_path):
    sweep = train(
        tmp_path,
        1,
        "-m",
        "hydra/launcher=submitit_local",
        "attention=mha,mla",
        "run_name=${model.attention.name}",
    )
    assert sweep.returncode == 0, sweep.stderr
    for name in ("mha", "mla"):
        assert json.loads((tmp_path / name / "summary.json").read_text())["finished"]
    failed = train(
        tmp_path,
        1,
        "-m",
        "hydra/launcher=submitit_local",
        "model.num_attention_heads=3,4",
        "run_name=heads${model.num_attention_heads}",
    )
    assert failed.returncode == 2
    reason, number, where = lines_of_ours(failed.stderr)
    assert re.search("heads3 failed: .*64 is not divisible by 3", reason)
    assert "1 of 2 runs failed: heads3; correct that" in number
    assert "what each job printed is in" in where
    assert re.search("^heads4 .* done$", failed.stdout, re.MULTILINE)
    assert "Traceback" not in failed.stderr
    assert (tmp_path / "heads4" / "summary.json").exists()
