"""kill -9 at random moments: what is resumed ends as if nothing had happened, to the last bit.

`effort` says how many kills of each kind there are, and at which moments.
"""

import contextlib
import json
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
import warm
from effort import SEED, share_of
from weights import assert_same_bits, final_tensors

from tracking.checkpoints import CheckpointStore
from tracking.metrics import read_metrics
from tracking.run_folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

KILLS = share_of(25)
# Dropout, accumulation, and several passes over the corpus: what a resume may get wrong.
STEPS = 60
RECIPE = [
    *("attention=mla", "model.attention.attention_dropout=0.1", "seed=3"),
    *("trainer.micro_batch_size=4", "trainer.gradient_accumulation_steps=2"),
    *(f"trainer.max_tokens={STEPS * 2 * 4 * 64}", "trainer.checkpoint_every_steps=3"),
    *("trainer.eval_every_steps=5", "trainer.eval_tokens=256", "trainer.log_every_steps=1"),
]
# Of the machine and the moment, not of the training.
TIMINGS = {"perf/tokens_per_second", "perf/mfu", "progress/seconds_left"}
MEASURED = {
    *("tokens_per_second", "mfu", "peak_memory_bytes", "wall_seconds", "data_wait_share"),
    *("run_name", "resumes"),
}


@pytest.fixture(scope="module")
def command(tmp_path_factory, tiny_data):
    """The arguments of a training of the tiny corpus, by the name of its run."""
    runs = tmp_path_factory.mktemp("runs")

    def of(name, *extra):
        return [
            *(*tiny_data, "debug=smoke", "tracking=none", f"runs_dir={runs}", f"run_name={name}"),
            *(*RECIPE, *extra),
        ]

    of.runs = runs
    return of


@pytest.fixture(scope="module")
def undisturbed(command, tmp_path_factory):
    """The folder of a run that nothing disturbed, with the seconds it took, by ranks."""
    done = {}

    def get(ranks=1, *extra):
        if (ranks, *extra) not in done:
            name = f"undisturbed-{len(done)}"
            here = tmp_path_factory.mktemp("here")
            run(here, command(name, *extra), ranks)  # the first ever also pays for the imports
            began = time.monotonic()
            run(here, command(f"{name}-again", *extra), ranks)
            done[ranks, *extra] = command.runs / name, time.monotonic() - began
            assert_same_run(command.runs / f"{name}-again", command.runs / name)
        return done[ranks, *extra]

    return get


@contextlib.contextmanager
def started(here, arguments, ranks):
    if ranks == 1:
        yield [warm.start(here, *arguments)]
    else:
        with warm.ranks_of_one_training(here, ranks, *arguments) as processes:
            yield processes


def run(here, arguments, ranks=1):
    with started(here, arguments, ranks) as processes:
        require_success(here, processes)


def require_success(here, processes):
    for process in processes:
        process.join(120)
        assert process.exitcode == 0, (here / "output").read_text()[-2000:]


def content(folder):
    """What has to be equal: tensors by group and name, metrics, summary, state, and files."""
    store = CheckpointStore(folder / "checkpoints", 1, read_only=True)
    progress = store.load_newest(names=[]).state["progress"]
    records = read_metrics(folder / "metrics.jsonl")
    summary = json.loads((folder / "summary.json").read_text())
    values = {
        "saved steps": store.steps(),
        "progress": {key: progress[key] for key in ("step", "last_loss", "best_nll", "best_step")},
        "metrics": [{k: v for k, v in r.items() if k not in TIMINGS} for r in records],
        "summary": {key: value for key, value in summary.items() if key not in MEASURED},
        "samples": (folder / "samples.txt").read_text(),
        "files": sorted(str(path.relative_to(folder)) for path in folder.rglob("*")),
    }
    return final_tensors(RunFolder(folder.parent, folder.name)), values


def assert_same_run(one, other):
    (tensors, values), (expected_tensors, expected_values) = content(one), content(other)
    assert values == expected_values
    assert {"model", "optimizer", "rng"} == {name.split("/")[0] for name in tensors}
    assert_same_bits(tensors, expected_tensors)
    assert [record["step"] for record in values["metrics"]] == list(range(1, STEPS + 1))


def where_killed(folder):
    """Name the moment by what a killed training left."""
    checkpoints = folder / "checkpoints"
    if any(checkpoints.glob(".tmp-*")) or any(checkpoints.glob(".old-*")):
        return "while a checkpoint was written or removed"
    steps = CheckpointStore(checkpoints, 1, read_only=True).steps()
    if not steps:
        return "before the first checkpoint"
    return "after the last step" if steps[-1] == STEPS else "between checkpoints"


def wait_for_a_save(checkpoints, process, moments):
    """Wait until a checkpoint is being written, then for some of the milliseconds that it takes."""
    deadline = time.monotonic() + 5
    while process.is_alive() and time.monotonic() < deadline:
        if any(checkpoints.glob(".tmp-*")):
            time.sleep(moments.uniform(0, 0.005))
            return


def kill_and_resume(tmp_path, command, name, reference, ranks, *extra, wanted=KILLS):
    """Kill trainings and run them again until enough are killed; compare each that ends."""
    whole, seconds = reference
    moments = random.Random(f"{SEED} {name}")
    kills, finished, outlived = Counter(), 0, 0
    while kills.total() < wanted:
        folder = command.runs / f"{name}-{finished}"
        arguments = command(folder.name, *extra)
        began = time.monotonic()
        with started(tmp_path, arguments, ranks) as processes:
            victim = processes[moments.randrange(ranks)]
            victim.join(moments.uniform(0, 1.05 * seconds))
            if kills.total() % 2:
                wait_for_a_save(folder / "checkpoints", victim, moments)
            victim.kill()
            victim.join()
            if victim.exitcode == -signal.SIGKILL:
                kills[where_killed(folder)] += 1
                outlived += end_the_others(processes)
                continue
            require_success(tmp_path, processes)
        # The machine may be less busy than when the undisturbed run was timed.
        seconds = min(seconds, time.monotonic() - began)
        assert_same_run(folder, whole)
        finished += 1
    run(tmp_path, command(f"{name}-{finished}", *extra), ranks)
    assert_same_run(command.runs / f"{name}-{finished}", whole)
    print(f"{name}: {kills.total()} kills in {finished + 1} runs: {dict(kills)}")
    # One may be slow on a busy machine; not each that waits for a rank that died in a save.
    assert outlived <= max(1, wanted // 10)
    return kills


def end_the_others(processes):
    """Ask them to end when one has died, and make them 30 seconds later, as torchrun does.

    Returns:
        How many had to be made to.
    """
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + 30
    made = 0
    for process in processes:
        process.join(max(0, deadline - time.monotonic()))
        made += process.is_alive()
        process.kill()
        process.join()
    return made


def test_a_training_killed_at_any_moment_ends_as_if_nothing_had_happened(
    tmp_path, command, undisturbed
):
    kills = kill_and_resume(tmp_path, command, "killed", undisturbed(), 1)
    assert kills["while a checkpoint was written or removed"] >= KILLS // 5


@pytest.mark.parametrize(("trainer", "wanted"), [("default", KILLS), ("fsdp", (KILLS + 3) // 4)])
def test_two_ranks_of_which_either_is_killed_end_as_if_nothing_had_happened(
    tmp_path, command, undisturbed, trainer, wanted
):
    extra = [f"trainer={trainer}"]
    whole = undisturbed(2, *extra)
    kill_and_resume(tmp_path, command, f"ranks-{trainer}", whole, 2, *extra, wanted=wanted)


@pytest.mark.parametrize(
    "breaking",
    ["forget_random_state", "forget_optimizer", "forget_position", "keep_later_metrics"],
)
def test_a_resume_that_forgets_something_is_noticed(tmp_path, command, undisturbed, breaking):
    whole, _ = undisturbed()
    arguments = command(f"broken-{breaking}")
    folder = command.runs / f"broken-{breaking}"
    victim = warm.start(tmp_path, *arguments)
    deadline = time.monotonic() + 60
    # Behind a checkpoint, so that there is a record to drop.
    while not ((metrics := folder / "metrics.jsonl").exists() and lines_of(metrics) >= 8):
        assert victim.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    victim.kill()
    victim.join()
    require_success(tmp_path, [warm.start(tmp_path, *arguments, breaking=breaking)])
    with pytest.raises(AssertionError):
        assert_same_run(folder, whole)


def lines_of(path):
    return path.read_bytes().count(b"\n")


@pytest.fixture(scope="module")
def longer_corpus(tmp_path_factory):
    """Documents enough for a preparation that takes a while."""
    folder = tmp_path_factory.mktemp("longer")
    words = random.Random(1)
    for split, number in (("train", 12_000), ("validation", 400)):
        with (folder / f"{split}.jsonl").open("w") as file:
            for index in range(number):
                text = " ".join(str(words.randrange(10**6)) for _ in range(words.randrange(3, 60)))
                file.write(json.dumps({"text": f"{index} {text}"}) + "\n")
    return folder


@pytest.mark.parametrize("workers", [1, 2])
def test_a_preparation_killed_at_any_moment_ends_with_the_same_bytes(
    tmp_path, longer_corpus, workers
):
    def prepare(folder):
        return warm.start(
            tmp_path,
            *("data=local", f"data.path={longer_corpus}", "data.name=longer"),
            *("tokenizer.vocab_size=400", "data.shard_tokens=20000"),
            *(f"data.num_workers={workers}", f"data.prepared_dir={folder}"),
            module="prepare_data",
        )

    def prepared_in_peace(folder):
        require_success(tmp_path, [prepare(folder)])
        return files_of(folder)

    prepared_in_peace(tmp_path / "first")  # pays for imports
    began = time.monotonic()
    expected = prepared_in_peace(tmp_path / "whole")
    seconds = time.monotonic() - began
    assert len(expected) > 10
    moments = random.Random(f"{SEED} preparation {workers}")
    kills, finished = Counter(), 0
    wanted = (KILLS + workers - 1) // 2  # of each half
    while kills.total() < wanted:
        folder = tmp_path / f"killed-{finished}"
        began = time.monotonic()
        process = prepare(folder)
        process.join(moments.uniform(0, 1.05 * seconds))
        process.kill()
        process.join()
        if process.exitcode == -signal.SIGKILL:
            kills["shards written" if any(folder.rglob("*.npy")) else "no shard yet"] += 1
            continue
        require_success(tmp_path, [process])
        seconds = min(seconds, time.monotonic() - began)
        assert files_of(folder) == expected
        finished += 1
    assert prepared_in_peace(tmp_path / f"killed-{finished}") == expected
    print(f"{workers} workers: {kills.total()} kills in {finished + 1} preparations: {dict(kills)}")


def files_of(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in Path(folder).rglob("*")
        if path.is_file() and path.suffix != ".lock"  # it names its last holder
    }
