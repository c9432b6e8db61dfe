"""The commands as a user types them, each in a process of its own."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from processes import wait_for_step
from weights import assert_same_bits, final_tensors

from tracking.metrics import read_metrics
from tracking.run_folder import RunFolder, list_finished_runs
from training.recipe.fair_rate import choose

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


@pytest.fixture
def kvlab(tmp_path, tiny_data):
    """Run an entry point on the tiny corpus, with runs and reports in tmp_path."""
    smoke = [*tiny_data, "debug=smoke", "tracking=none", f"runs_dir={tmp_path}/runs"]
    arguments = {
        "train_model.py": smoke,
        "eval_model.py": ["tracking=none", f"runs_dir={tmp_path}/runs", f"reports_dir={tmp_path}"],
        "generate_text.py": [f"runs_dir={tmp_path}/runs"],
    }

    def start(script, *extra):
        flags = [argument for argument in extra if argument.startswith("-")]
        overrides = [argument for argument in extra if argument not in flags]
        return subprocess.Popen(
            [sys.executable, str(ROOT / script), *flags, *arguments[script], *overrides],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )

    def run(script, *extra):
        process = start(script, *extra)
        out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    run.start = start
    return run


def weights_of(runs, name):
    return final_tensors(RunFolder(runs, name))


def last_line(result):
    return result.stderr.strip().splitlines()[-1]


def words_of(done):
    """What a process printed, wherever its lines are broken."""
    return " ".join(done.stdout.split())


def test_train_compare_and_generate(kvlab, tmp_path):
    trained = kvlab("train_model.py", "-m", "experiment=five_attentions", "sweep.jobs=1")
    assert trained.returncode == 0, trained.stderr
    runs = tmp_path / "runs"
    names = {path.name for path in runs.iterdir() if not path.name.startswith(".")}
    assert names == {
        f"{attention}-smoke-tiny-seed0" for attention in ("mha", "mqa", "gqa", "mla_no_rope", "mla")
    }

    compared = kvlab("eval_model.py")
    assert compared.returncode == 0, compared.stderr
    rows = {row["attention"]: row for row in json.loads(_results(tmp_path).read_text())}
    assert len(rows) == 5
    for name, row in rows.items():
        summary = json.loads((runs / row["run_name"] / "summary.json").read_text())
        assert row["perplexity"] == pytest.approx(summary["validation_perplexity"], rel=1e-9)
        assert row["kv_cache_bytes_measured"] == row["kv_cache_bytes_per_token"]
        assert row["split"] == "validation"
        assert f"{row['perplexity']:,.2f}" in compared.stdout, name
    # 2 layers x 4 bytes x elements, of 8 heads of 8: 2 h d, 2 d, 2 g d, c, c + r
    bytes_per_token = {name: row["kv_cache_bytes_per_token"] for name, row in rows.items()}
    assert bytes_per_token == {
        "mha": 8 * 128,
        "mqa": 8 * 16,
        "gqa": 8 * 32,
        "mla_no_rope": 8 * 32,
        "mla": 8 * 36,
    }
    assert rows["mla"]["cache_ratio_to_mha"] == pytest.approx(36 / 128)

    strided = kvlab("eval_model.py", "run=[mla-*,mha-*]", "eval.stride=16", "report_name=strided")
    assert strided.returncode == 0, strided.stderr
    strided_rows = json.loads((tmp_path / "strided" / "results.json").read_text())
    assert {row["attention"] for row in strided_rows} == {"mha", "mla"}
    assert {row["protocol"]["stride"] for row in strided_rows} == {16}

    for row in rows.values():
        assert [(p["batch"], p["context"]) for p in row["decode"]] == [
            *((1, 128), (1, 1024)),
            *((8, 128), (8, 1024)),
        ]
        assert all(
            p["cache_bytes"] == p["batch"] * p["context"] * row["kv_cache_bytes_per_token"]
            for p in row["decode"]
        )
    assert "Decoding, batch 8" in compared.stdout
    for name in ("decode.png", "difference.png", "curves.png", "report.html", "report.md"):
        assert (tmp_path / "comparison" / name).stat().st_size > 2_000, name

    timed = kvlab(
        *("eval_model.py", "eval=decode", "report_name=decode", "eval.decode_speed.rounds=1"),
        "eval.decode_speed.contexts=[16,200]",
    )
    assert timed.returncode == 0, timed.stderr
    assert "tokens scored" not in timed.stdout
    assert "200*" in timed.stdout
    timed_rows = json.loads((tmp_path / "decode" / "results.json").read_text())
    assert {row["perplexity"] for row in timed_rows} == {None}

    through = kvlab(
        *("eval_model.py", "eval.decode=true", "eval.cache_dtype=int8", "report_name=int8"),
        *("eval.decode_speed.batch_sizes=[]", "eval.batch_size=64"),
    )
    assert through.returncode == 0, through.stderr
    assert "token by token, int8 cache" in words_of(through)
    assert "Decoding, batch" not in through.stdout
    for row in json.loads((tmp_path / "int8" / "results.json").read_text()):
        whole = rows[row["attention"]]
        assert row["nll"] == pytest.approx(whole["nll"], abs=0.02)
        assert row["nll"] != whole["nll"]
        scales = {"mha": 16, "mqa": 2, "gqa": 4, "mla_no_rope": 1, "mla": 1}[row["attention"]]
        narrow = whole["kv_cache_bytes_per_token"] / 4 + 2 * 2 * scales  # 2 layers, 2 bytes
        assert row["kv_cache_bytes_per_token"] == row["kv_cache_bytes_measured"] == narrow
    forced = kvlab("eval_model.py", "run=mla-*", "eval.decode_path=repeated", "report_name=path")
    assert forced.returncode == 2
    assert "must be auto, absorbed, expanded or blocks" in last_line(forced)

    arguments = ["run=mla-smoke-tiny-seed0", "max_new_tokens=8", "sampling.temperature=0"]
    texts = {
        kvlab("generate_text.py", *arguments, f"sampling.seed={seed}").stdout for seed in (0, 1)
    }
    assert len(texts) == 1
    assert texts.pop().startswith("def ")

    unknown = kvlab("eval_model.py", "run=nope")
    assert unknown.returncode == 2
    assert "no finished run" in last_line(unknown)
    assert "mla-smoke-tiny-seed0" in last_line(unknown)
    default = kvlab("generate_text.py", "run=mla-smoke-tiny-seed0")
    assert default.returncode == 0
    room = re.fullmatch(
        r"kvlab: max_new_tokens=(\d+): as many as fit the context of 64", last_line(default)
    )
    assert room is not None
    assert 50 < int(room[1]) < 64
    full = kvlab("generate_text.py", "run=mla-smoke-tiny-seed0", f"prompt={'x y ' * 60}")
    assert full.returncode == 2
    assert "shorten it" in last_line(full)
    code = "def add(a, b): # 'sum', \"\\' ${x}"
    continued = kvlab("generate_text.py", *arguments, f"prompt={code}")
    assert continued.returncode == 0, continued.stderr
    assert continued.stdout.startswith(code)
    narrow = kvlab("generate_text.py", *arguments, "cache_dtype=int8")
    assert narrow.stdout.startswith("def "), narrow.stderr
    for wrong in ("prompt=", "max_new_tokens=1000", "run=nope", "cache_dtype=int4"):
        refused = kvlab("generate_text.py", *arguments, wrong)
        assert refused.returncode == 2, wrong
        assert last_line(refused).startswith("kvlab: "), wrong
        assert refused.stdout == "", wrong


def _results(folder):
    return folder / "comparison" / "results.json"


def test_runs_of_other_vocabularies_and_sizes_get_tables_of_their_own(kvlab, tmp_path):
    assert kvlab("train_model.py", "tokenizer=bytes", "run_name=bytes").returncode == 0
    assert (
        kvlab("train_model.py", "model.max_position_embeddings=32", "run_name=short").returncode
        == 0
    )
    compared = kvlab("eval_model.py")
    assert compared.returncode == 0, compared.stderr
    assert words_of(compared).count("tokens scored") == 2
    assert "since their protocol cards differ in data_fingerprint (" in words_of(compared)
    assert "tokenizer_sha256 (" in words_of(compared)
    refused = kvlab("eval_model.py", "eval.baseline=gqa")
    assert refused.returncode == 2
    assert "eval.baseline=gqa is the attention of none of these runs" in last_line(refused)


@pytest.mark.slow
def test_a_study_is_compared_seed_by_seed(kvlab, tmp_path):
    sweep = ("-m", "experiment=study_nano", "attention=mha,mla", "seed=0,1")
    trained = kvlab("train_model.py", *sweep)
    assert trained.returncode == 0, trained.stderr
    arguments = ("experiment=study_nano", "eval.decode_speed.batch_sizes=[]")
    unfinished = tmp_path / "runs" / "study_nano" / "mqa-seed0"
    unfinished.mkdir()
    (unfinished / "config.yaml").write_text("seed: 0\n")
    compared = kvlab("eval_model.py", *arguments)
    assert compared.returncode == 0, compared.stderr
    folder = tmp_path / "study_nano"
    mha, mla = json.loads((folder / "variants.json").read_text())
    assert mha["seeds"] == mla["seeds"] == [0, 1]
    assert mla["baseline"] == "mha"
    assert mla["verdict"] == "too few seeds"
    assert f"{mla['delta_percent']:+.2f} %" in compared.stdout
    assert mla["baseline_runs"] == {
        f"mla-smoke-tiny-seed{seed}": f"mha-smoke-tiny-seed{seed}" for seed in (0, 1)
    }
    assert abs(mla["num_parameters"] / mha["num_parameters"] - 1) < 0.005

    left_out = "mqa-seed0 is not finished; run its training command again to resume it"
    assert f"left out: {left_out}\n" in compared.stderr
    assert f"- Left out: `{left_out}`" in (folder / "report.md").read_text()
    assert "- Command: `python eval_model.py " in (folder / "report.md").read_text()
    assert " experiment=study_nano " in (folder / "report.md").read_text()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    again = kvlab("eval_model.py", *arguments, "eval.baseline=mla")
    assert again.returncode == 0, again.stderr
    assert {path: path.read_bytes() for path in before} == before
    mha, mla = json.loads((tmp_path / "study_nano-2" / "variants.json").read_text())
    assert (mha["baseline"], mla["verdict"]) == ("mla", "baseline")

    assert kvlab("eval_model.py").returncode == 2  # a study's runs are not among the others
    other = kvlab("train_model.py", "study=study_nano", "model.max_position_embeddings=32")
    assert other.returncode == 2  # a run of that name is there
    short = ("model.max_position_embeddings=32", "run_name=short")
    assert kvlab("train_model.py", "study=study_nano", *short).returncode == 0
    refused = kvlab("eval_model.py", *arguments)
    assert refused.returncode == 2
    assert "their protocol cards differ in context (64, 32)" in last_line(refused)
    assert not (tmp_path / "study_nano-3").exists()
    missing = kvlab("eval_model.py", "experiment=study_rank")
    assert missing.returncode == 2
    assert "python train_model.py -m experiment=study_rank" in last_line(missing)


def test_document_mask_takes_the_tokenizers_end_and_gets_a_table_of_its_own(
    kvlab, tmp_path, prepared
):
    masked = kvlab("train_model.py", "model.intra_document_mask=true", "run_name=masked")
    assert masked.returncode == 0, masked.stderr
    assert kvlab("train_model.py", "run_name=plain").returncode == 0
    configs = {
        name: (tmp_path / "runs" / name / "config.yaml").read_text() for name in ("masked", "plain")
    }
    assert f"end_of_document_id: {prepared.end_of_document_id}\n" in configs["masked"]
    assert "end_of_document_id: null\n" in configs["plain"]
    compared = kvlab("eval_model.py")
    assert compared.returncode == 0, compared.stderr
    assert words_of(compared).count("tokens scored") == 2
    assert words_of(compared).count("attention within documents") == 1


def test_rerunning_a_finished_run_does_nothing(kvlab, tmp_path):
    assert kvlab("train_model.py").returncode == 0

    def times():
        files = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
        return {path: path.stat().st_mtime_ns for path in files}

    before = times()
    again = kvlab("train_model.py")
    assert again.returncode == 0
    assert "is finished" in again.stdout
    assert before == {
        p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("*") if p.is_file()
    }


def test_a_changed_configuration_under_the_same_name_is_refused(kvlab):
    assert kvlab("train_model.py", "run_name=x").returncode == 0
    changed = kvlab("train_model.py", "run_name=x", "attention=mqa", "seed=3")
    assert changed.returncode == 2
    assert "model.attention.num_key_value_heads: 8 -> 1" in last_line(changed)
    assert "seed: 0 -> 3" in last_line(changed)


LONGER = ["trainer.max_tokens=20480", "trainer.checkpoint_every_steps=7", "attention=mla"]


@pytest.fixture
def reference(kvlab, tmp_path):
    assert kvlab("train_model.py", *LONGER, "run_name=whole").returncode == 0
    return weights_of(tmp_path / "runs", "whole")


def test_kill_and_rerun_gives_the_same_weights_bit_for_bit(kvlab, tmp_path, reference):
    runs = tmp_path / "runs"
    for kill_at in (9, 30, 55):
        process = kvlab.start("train_model.py", *LONGER, "run_name=killed")
        wait_for_step(process, runs / "killed" / "metrics.jsonl", kill_at)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    assert kvlab("train_model.py", *LONGER, "run_name=killed").returncode == 0
    killed = weights_of(runs, "killed")
    assert_same_bits(killed, reference)
    steps = [record["step"] for record in read_metrics(runs / "killed" / "metrics.jsonl")]
    assert steps == list(range(1, 81))


def test_sigterm_saves_exits_75_and_the_lock_keeps_a_second_process_out(kvlab, tmp_path, reference):
    runs = tmp_path / "runs"
    process = kvlab.start("train_model.py", *LONGER, "run_name=stopped")
    wait_for_step(process, runs / "stopped" / "metrics.jsonl", 3)
    process.send_signal(signal.SIGSTOP)  # still holds the lock
    second = kvlab("train_model.py", *LONGER, "run_name=stopped")
    assert second.returncode == 2
    assert str(process.pid) in last_line(second)
    process.send_signal(signal.SIGCONT)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75
    assert re.search(r"SIGTERM: checkpoint saved at step \d+ of 80; rerun", err)
    assert kvlab("train_model.py", *LONGER, "run_name=stopped").returncode == 0
    stopped = weights_of(runs, "stopped")
    assert_same_bits(stopped, reference)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optim.learning_rat=1"], "did you mean 'optim.learning_rate'"),
        (["data.path=/nowhere/at/all"], "/nowhere/at/all"),
        (["schedule.warmup_steps=9999"], "warmup_steps (9999) must be below the run's 8 steps"),
        (["data.text_column=x", "model.vocab_size=100"], "model.vocab_size (100) must be at least"),
        (
            ["model.end_of_document_id=299"],
            "model.end_of_document_id (299) must be the tokenizer's",
        ),
        (["run_name=a/../b"], "run_name 'a/../b' is not allowed"),
        (["match=cache"], "attention=mha is 128; set match_cache_ratio=1"),
        (["model.max_position_embeddings=1000000", "schedule.warmup_steps=0"], "fewer than the"),
    ],
)
def test_bad_input_is_one_line_with_status_2_and_leaves_no_run(kvlab, tmp_path, arguments, message):
    result = kvlab("train_model.py", *arguments)
    assert result.returncode == 2, result.stderr
    assert last_line(result).startswith("kvlab: ")
    assert message in last_line(result)
    assert "Traceback" not in result.stderr
    assert not list((tmp_path / "runs").glob("*/checkpoints/*"))


def test_a_broken_run_does_not_stop_the_others_of_a_multirun(kvlab, tmp_path):
    result = kvlab(
        "train_model.py",
        "-m",
        "model.num_attention_heads=3,4",
        "run_name=h${model.num_attention_heads}",
    )
    assert result.returncode == 2
    assert re.search(r"kvlab: h3: .*64 is not divisible by 3", result.stderr)
    assert last_line(result) == (
        "kvlab: 1 of 2 runs failed: h3; correct that, then the same command tries them again"
    )
    reason = result.stderr.strip().splitlines()[-2]
    assert re.match(r"kvlab: h3 failed: .*64 is not divisible by 3", reason)
    assert "run 2 of 2: model.num_attention_heads=4\n" in result.stdout
    assert _statuses(result) == ["failed", "done"]
    assert (tmp_path / "runs" / "h4" / "summary.json").exists()


def recorded(run):
    return OmegaConf.load(run / "config.yaml")


def test_fair_lr_trains_a_grid_once_and_then_each_seed_at_its_best_rate(kvlab, tmp_path):
    runs = tmp_path / "runs" / "fair"
    fair = ["study=fair", "fair_lr=true", "fair_lr_factors=[0.5,1.0,2.0,1e35]"]
    first = kvlab("train_model.py", *fair)
    assert first.returncode == 0, first.stderr
    rates = (0.004, 0.008, 0.016, 8e32)
    grid = {rate: runs / "lr_grid" / f"mha-smoke-tiny-lr{rate:g}" for rate in rates}
    assert {path.name for path in (runs / "lr_grid").iterdir()} == {p.name for p in grid.values()}
    nlls = {
        rate: RunFolder(path.parent, path.name).read_summary()["validation_nll"]
        for rate, path in grid.items()
        if rate < 1
    }
    choice = choose(nlls | {8e32: math.inf})
    assert "diverged" in first.stdout
    assert f"fair_lr: learning rate {choice.learning_rate:g}, " in first.stdout
    config = recorded(runs / "mha-smoke-tiny-seed0")
    assert config["optim"]["learning_rate"] == choice.learning_rate
    assert config["fair_lr"] is True
    assert recorded(grid[0.004])["optim"]["learning_rate"] == 0.004
    names = [run.name for run in list_finished_runs(runs)[0]]
    assert names == ["mha-smoke-tiny-seed0"]

    # Broken off: the summary and the last checkpoint are not there yet.
    whole = weights_of(runs / "lr_grid", grid[0.016].name)
    (grid[0.016] / "summary.json").unlink()
    shutil.rmtree(max((grid[0.016] / "checkpoints").glob("[0-9]*")))
    second = kvlab("train_model.py", *fair)
    assert second.returncode == 0, second.stderr
    assert "resuming mha-smoke-tiny-lr0.016 after step 4" in second.stdout
    again = weights_of(runs / "lr_grid", grid[0.016].name)
    assert [key for key in whole if not torch.equal(whole[key], again[key])] == []
    assert "mha-smoke-tiny-seed0 is finished" in second.stdout

    summaries = [path / "summary.json" for rate, path in grid.items() if rate < 1]
    before = [path.stat().st_mtime_ns for path in summaries]
    other = kvlab("train_model.py", *fair, "seed=1")
    assert other.returncode == 0, other.stderr
    assert before == [path.stat().st_mtime_ns for path in summaries]
    config = recorded(runs / "mha-smoke-tiny-seed1")
    assert config["optim"]["learning_rate"] == choice.learning_rate
    assert config["seed"] == 1

    with RunFolder(runs / "lr_grid", grid[0.008].name).lock():
        busy = kvlab("train_model.py", *fair, "seed=2")
    assert busy.returncode == 2
    assert f"{grid[0.008]} is in use by process {os.getpid()}" in last_line(busy)
    assert not (runs / "mha-smoke-tiny-seed2").exists()


def _statuses(result):
    """Return the runs' states in the table that a sweep ends with, which fits 80 columns."""
    lines = result.stdout.splitlines()
    header = next(n for n, line in enumerate(lines) if line.startswith("run  "))
    table = lines[header:]
    assert max(map(len, table)) <= 80
    names = table[0].split("  ")
    assert [name.strip() for name in names if name.strip()] == [
        *("run", "attention", "seed", "perplexity", "KV bytes", "time", "status")
    ]
    return [re.split(r" {2,}", line)[-1] for line in table[2:]]


def test_a_study_of_two_attentions_finishes_and_a_second_call_says_so(kvlab, tmp_path):
    study = ["-m", "experiment=study_nano", "attention=mha,mla", "seed=0,1", "sweep.jobs=1"]
    names = [f"{name}-smoke-tiny-seed{seed}" for name in ("mha", "mla") for seed in (0, 1)]
    first = kvlab("train_model.py", *study)
    assert first.returncode == 0, first.stderr
    runs = tmp_path / "runs" / "study_nano"
    assert [run.name for run in list_finished_runs(runs)[0]] == names
    assert first.stdout.count("MHA, the baseline") == 2
    headings = re.findall(r"^run (\d of \d: .*?)( \(about .* left\))?$", first.stdout, re.MULTILINE)
    swept = [f"attention={name} seed={seed}" for name in ("mha", "mla") for seed in (0, 1)]
    assert [told for told, _ in headings] == [f"{n} of 4: {s}" for n, s in enumerate(swept, 1)]
    assert [bool(left) for _, left in headings] == [False, True, True, True]
    assert _statuses(first) == ["done"] * 4
    second = kvlab("train_model.py", *study)
    assert second.returncode == 0, second.stderr
    assert re.findall(r"^(\S+) is finished", second.stdout, re.MULTILINE) == names
    assert "the baseline" not in second.stdout
    assert _statuses(second) == ["done before"] * 4


def test_help_is_readable_and_needs_no_torch(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('this test runs without torch')")
    result = subprocess.run(
        [sys.executable, "train_model.py", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert "attention: gqa, gqa_tied, mha, mha_no_rope, mla, mla_no_rope, mqa, mqa" in result.stdout
    assert "python train_model.py attention=mla" in result.stdout


@pytest.fixture
def prepare(tmp_path, corpus_folder):
    """Run `python prepare_data.py` on the tiny corpus."""

    def run(*words):
        data = [f"data.path={corpus_folder}", f"data.prepared_dir={tmp_path}/prepared"]
        command, overrides = words[:1], words[1:]
        if not command or "=" in command[0]:
            command, overrides = (), words
        return subprocess.run(
            [
                *(sys.executable, "prepare_data.py", *command, "data=local", *data),
                *("tokenizer.vocab_size=300", *overrides),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_prepare_inspect_and_verify(prepare, tmp_path):
    missing = prepare("verify")
    assert missing.returncode == 2
    assert "is not prepared yet" in last_line(missing)
    assert not (tmp_path / "prepared").exists()
    done = prepare()
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.splitlines()[-1])
    assert "train: 24 documents" in done.stdout
    seen = prepare("inspect")
    assert seen.returncode == 0, seen.stderr
    for part in ("tokens per document, validation", "exact duplicates", "floors to compare with"):
        assert part in seen.stdout
    verified = prepare("verify")
    assert "2 shards and the tokenizer are what was written" in verified.stdout, verified.stderr
    shard = folder / "train-00000.npy"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    for words in (["verify"], ["verify", f"folder={folder}"]):
        broken = prepare(*words)
        assert broken.returncode == 2
        assert f"{shard} is not what was written" in last_line(broken)
    wrong = prepare("verify", f"folder={tmp_path}")
    assert wrong.returncode == 2
    assert "is no prepared corpus" in last_line(wrong)
    assert "folder applies to verify and inspect only" in last_line(prepare("folder=x"))


def test_a_run_goes_on_with_texts_that_moved_and_not_with_others(kvlab, tmp_path, corpus_folder):
    places = [shutil.copytree(corpus_folder, tmp_path / name) for name in ("here", "there")]
    arguments = ["run_name=x", f"data.prepared_dir={tmp_path}/prepared"]
    assert kvlab("train_model.py", *arguments, f"data.path={places[0]}").returncode == 0
    shutil.rmtree(places[0])
    gone = kvlab("train_model.py", *arguments, f"data.path={places[0]}")
    assert gone.returncode == 0, gone.stderr
    assert "x: its texts are gone; it uses the data prepared in" in gone.stdout
    assert "x is finished" in gone.stdout
    moved = kvlab("train_model.py", *arguments, f"data.path={places[1]}")
    assert moved.returncode == 0, moved.stderr
    assert "x is finished" in moved.stdout
    summary = tmp_path / "runs" / "x" / "summary.json"
    summary.rename(tmp_path / "summary.json")
    resumed = kvlab("train_model.py", *arguments, f"data.path={places[1]}")
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming x after step 8" in resumed.stdout
    (places[1] / "train-00.txt").write_text("another text\n")
    for _ in range(2):
        other = kvlab("train_model.py", *arguments, f"data.path={places[1]}")
        assert other.returncode == 2
        assert "trained on data with fingerprint" in last_line(other)
        summary.unlink(missing_ok=True)


def test_template_on_the_command_line_needs_no_quotes_of_hydras(prepare, tmp_path):
    (tmp_path / "rows").mkdir()
    for split in ("train", "validation"):
        rows = "".join(f'{{"a b": "t{i}", "c": {i}}}\n' for i in range(9))
        (tmp_path / "rows" / f"{split}.jsonl").write_text(rows)
    done = prepare(
        f"data.path={tmp_path}/rows", "data.text_template={a b}: {c},\n$x", "tokenizer=bytes"
    )
    assert done.returncode == 0, done.stderr
    assert "train: 9 documents, 90 tokens, 81 bytes" in done.stdout
