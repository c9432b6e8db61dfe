"""An evaluation reports what was measured of the model that was trained, or nothing."""

import dataclasses
import errno
import functools
import json
import math
import shutil

import numpy as np
import pytest
import torch

from comparing.variants import compare
from data.pipeline import prepare
from data.prepared import PreparedData
from files.errors import RunError
from measuring import perplexity
from measuring.errors import EvaluationError
from measuring.evaluate import evaluate_run
from measuring.perplexity import Score, Window, score
from measuring.runs import choose_runs, load_run
from modeling.config import GPTConfig
from modeling.errors import ModelConfigError
from modeling.gpt import GPT
from reporting import report
from reporting.report import new_report, update_report
from settings.data import DataSettings, TokenizerSettings
from settings.evaluation import EvalSettings
from tests.comparing.test_variants import CARD, run
from tests.measuring.runs import CONFIG, SUMMARY, quiet, write_run
from tests.tiny_models import scored_model as model
from tracking.checkpoints import CheckpointStore
from training.validation import validate

CPU = torch.device("cpu")
CONTEXT = 8


@pytest.fixture
def make_run(tmp_path, prepared):
    return functools.partial(write_run, tmp_path / "runs", prepared)


# Perplexity: experiments E1, E2 and E5


class Stream:
    """37 tokens, of which 0 is one like any other; what lies beyond the end is 0, as padding is."""

    tokens = np.random.default_rng(0).integers(0, 50, 37)

    def __len__(self):
        return len(self.tokens)

    def window(self, start, length):
        found = self.tokens[start : start + length]
        return np.pad(found, (0, length - len(found)))


def token_by_token(gpt, tokens, context, stride):
    """The mean NLL, every token by a pass of its own that ends before it."""
    nats = []
    for target in range(1, len(tokens)):
        if target <= context:
            first = 0
        else:  # of the window whose targets include this one
            last = min(context + stride * math.ceil((target - context) / stride), len(tokens) - 1)
            first = max(0, last - context)
        inputs = torch.tensor(tokens[first:target])[None]
        with torch.no_grad():
            logits = gpt(inputs)[0, -1].double()
        nats.append(-float(logits.log_softmax(-1)[tokens[target]]))
    return math.fsum(nats) / len(nats)


def gap(gpt, stride, batch_size):
    stream = Stream()
    expected = token_by_token(gpt, stream.tokens, CONTEXT, stride)
    return abs(score(gpt, stream, CONTEXT, stride, batch_size).nll / expected - 1)


@pytest.fixture(scope="module")
def gpt():
    return model("mla", max_position_embeddings=CONTEXT)


@pytest.mark.parametrize("stride", [CONTEXT, 3])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_perplexity_is_that_of_every_token_by_itself(gpt, stride, batch_size):
    assert gap(gpt, stride, batch_size) < 1e-6


def _means_of_windows(monkeypatch):
    each = property(lambda s: np.mean(np.divide(s.window_nll, s.window_tokens)))
    monkeypatch.setattr(Score, "nll", each)


def _means_of_batches(monkeypatch):
    def mean(s):
        sums = [sum(s.window_nll[i : i + 3]) for i in range(0, len(s.window_nll), 3)]
        counts = [sum(s.window_tokens[i : i + 3]) for i in range(0, len(s.window_nll), 3)]
        return np.mean(np.divide(sums, counts))

    monkeypatch.setattr(Score, "nll", property(mean))


def _changed_windows(change):
    def plant(monkeypatch):
        right = perplexity.windows
        monkeypatch.setattr(perplexity, "windows", lambda *args: change(list(right(*args))))

    return plant


def _without_tail(found):
    return iter(found[:-1])


def _padding_counted(found):
    return iter([*found[:-1], Window(found[-2].start + 3, CONTEXT, CONTEXT)])


def _counted_again(found):
    return (dataclasses.replace(window, scored=window.length) for window in found)


def _less_context(found):
    shorter = [Window(w.start + 1, w.length - 1, min(w.scored, w.length - 1)) for w in found[1:]]
    return iter([found[0], *shorter])


@pytest.mark.parametrize(
    "fault",
    [
        _means_of_windows,
        _means_of_batches,
        _changed_windows(_without_tail),
        _changed_windows(_padding_counted),
        _changed_windows(_counted_again),
        _changed_windows(_less_context),
    ],
)
def test_the_comparison_notices_a_planted_mistake(gpt, fault, monkeypatch):
    fault(monkeypatch)
    assert gap(gpt, 3, 3) > 1e-4


@pytest.fixture(scope="module")
def odd_data(tmp_path_factory):
    """Documents of one character, of a NUL, and of more than any context."""
    folder, parent = tmp_path_factory.mktemp("odd"), tmp_path_factory.mktemp("odd_prepared")
    for split in ("train", "validation"):
        rows = [{"text": text} for text in ("a", "\0b\0", "é" * 50)]
        if split == "train":
            rows = [{"text": row["text"] + "!"} for row in rows]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(lines)
    data = DataSettings(name="odd", source="local", path=str(folder), prepared_dir=str(parent))
    return prepare(data, TokenizerSettings(name="bytes", kind="bytes"), quiet)


def test_every_token_of_odd_documents_counts_once_and_bytes_are_raw(odd_data):
    counts = odd_data.splits["validation"]
    num_bytes = 1 + 3 + 2 * 50
    assert counts.utf8_bytes == num_bytes
    assert counts.tokens == num_bytes + 3  # an end for each document, no beginning
    stream = odd_data.stream("validation")
    tokens = stream.window(0, len(stream))
    assert (tokens == odd_data.tokenizer().encode("\0").ids).sum() == 2
    torch.manual_seed(0)
    config = CONFIG | {"vocab_size": odd_data.vocab_size, "max_position_embeddings": CONTEXT}
    odd = GPT(GPTConfig(**config, initializer_range=0.2)).eval()
    found = score(odd, stream, CONTEXT, CONTEXT, 3)
    assert found.tokens_scored == counts.tokens - 1
    assert found.nll == pytest.approx(token_by_token(odd, tokens, CONTEXT, CONTEXT), rel=1e-6)
    expected = found.nll_sum / math.log(2) / num_bytes
    assert found.bits_per_byte(num_bytes) == pytest.approx(expected, rel=1e-12)


def test_an_evaluation_repeats_itself_bit_for_bit(make_run):
    folder = make_run()
    first, again = (
        evaluate_run(folder, "validation", EvalSettings(), CPU, quiet) for _ in range(2)
    )
    assert first.windows == again.windows
    assert first.row["nll"] == again.row["nll"]


def test_validating_leaves_the_model_in_training_and_its_likelihoods_alone(make_run, prepared):
    attention = CONFIG["attention"] | {"attention_dropout": 0.5}
    config = GPTConfig(**(CONFIG | {"attention": attention}))
    torch.manual_seed(0)
    trained = GPT(config).train()
    first = validate(trained, prepared, EvalSettings(), CPU, None, lambda done, total: None)
    assert trained.training
    assert all(module.training for module in trained.modules())
    assert validate(trained, prepared, EvalSettings(), CPU, None, lambda done, total: None) == first
    alone = score(trained.eval(), prepared.stream("validation"), 32, 32)
    assert alone.window_nll == first.window_nll
    assert not trained.training


# Which run it is


def refused(call):
    with pytest.raises((RunError, EvaluationError, ModelConfigError)) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_an_older_checkpoint_does_not_pass_for_the_finished_model(make_run):
    older = make_run("older")
    older.write_summary(SUMMARY | {"tokens_trained": 3 * 2 * 32})
    said = refused(lambda: load_run(older, CPU, quiet))
    assert "is of step 1, but it was trained for 3; put its last checkpoint back" in said
    newer = make_run("newer", step=4)
    assert "is of step 4, but it was trained for 1" in refused(lambda: load_run(newer, CPU, quiet))
    # Text from a run in the middle of its training is what it is.
    assert load_run(make_run("unfinished", finished=False, step=4), CPU, quiet).state["seed"] == 3


@pytest.mark.parametrize(
    "text", [None, "", "trainer: {}\n", "trainer: {micro_batch_size: 0}\n", "- 1\n", "\0"]
)
def test_a_finished_run_without_its_configuration_is_refused(make_run, text):
    folder = make_run()
    folder.config_path.unlink()
    if text is not None:
        folder.config_path.write_text(text)
    said = refused(lambda: evaluate_run(folder, "validation", EvalSettings(), CPU, quiet))
    assert "config.yaml" in said


def test_another_tokenizer_is_refused_with_both_hashes(make_run, prepared, tmp_path):  # E4
    copied = tmp_path / "copied"
    shutil.copytree(prepared.folder, copied)
    data = {
        "folder": str(copied),
        "fingerprint": prepared.fingerprint,
        "tokenizer_sha256": "f" * 64,
    }
    said = refused(lambda: load_run(make_run(data=data), CPU, quiet))
    assert "with another tokenizer" in said
    assert f"ffffffffffff, not {prepared.tokenizer_sha256[:12]}" in said


HUGE = 2**45


@pytest.mark.parametrize(
    "changes",
    [
        {"model": []},
        {"model": CONFIG | {"hidden_size": "16"}},
        {"model": CONFIG | {"hidden_size": 16.0}},
        {"model": CONFIG | {"num_hidden_layers": True}},
        {"model": CONFIG | {"num_hidden_layers": HUGE}},
        {"model": CONFIG | {"hidden_size": HUGE, "attention": {"name": "mha"}}},
        {"model": CONFIG | {"vocab_size": HUGE}},
        {"model": CONFIG | {"vocab_size": 2**70}},
        {"model": CONFIG | {"vocab_size": None}},
        {"model": CONFIG | {"intermediate_size": HUGE}},
        {"model": CONFIG | {"tie_word_embeddings": False}},
        {"model": CONFIG | {"tie_word_embeddings": "no"}},
        {"model": CONFIG | {"attention": "mqa"}},
        {"model": CONFIG | {"attention": []}},
        {"model": CONFIG | {"attention": {"name": ["mqa"]}}},
        {"model": CONFIG | {"attention": CONFIG["attention"] | {"head_dim": HUGE}}},
        {"model": CONFIG | {"norm_eps": None}},
        {"model": CONFIG | {"position_embedding": "learned", "max_position_embeddings": HUGE}},
        {"data": "text"},
        {"data": {"folder": ".", "fingerprint": 7, "tokenizer_sha256": "x"}},
        {"data": {"folder": 7, "fingerprint": "x", "tokenizer_sha256": "x"}},
        {"data": {"folder": "a\0b", "fingerprint": "x", "tokenizer_sha256": "x"}},
        {"data": {"folder": "/no/such", "fingerprint": "x", "tokenizer_sha256": "x"}},
        {"seed": "3"},
        {"seed": None},
        {"seed": True},
    ],
)
def test_a_state_of_wrong_values_is_refused_before_anything_of_that_size_is_built(
    make_run, changes
):
    refused(lambda: load_run(make_run(**changes), CPU, quiet))


def test_one_broken_run_is_left_out_by_name_and_the_others_are_measured(make_run, tmp_path):
    make_run("good")
    make_run("bad-json").summary_path.write_text("{")
    make_run("bad-finished").summary_path.write_text('{"finished": "yes"}')
    lines = []
    chosen = choose_runs(tmp_path / "runs", None, lines.append)
    assert [found.name for found in chosen] == ["good"]
    assert len(lines) == 2
    assert all("bad-" in line for line in lines)


def test_weights_that_are_not_those_of_the_end_are_said_to_be_so(make_run):
    folder = make_run()
    honest = evaluate_run(folder, "validation", EvalSettings(), CPU, quiet)
    folder.write_summary(SUMMARY | {"validation_nll": honest.row["nll"]})

    def notes(**settings):
        return evaluate_run(folder, "validation", EvalSettings(**settings), CPU, quiet).notes

    assert notes() == []
    assert notes(batch_size=3) == []
    store = CheckpointStore(folder.checkpoints_path, 1, quiet)
    checkpoint = store.load(1)
    checkpoint.tensors["model"]["embed_tokens.weight"][:150] *= 1.5
    store.save(1, checkpoint.tensors, checkpoint.state)
    (line,) = notes()
    assert f"but scored {honest.row['nll']:.5f} at the end of its training" in line
    assert notes(stride=5) == []  # another protocol, another number


# Reports


def files(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_killed_report_leaves_none_that_is_half_written(tmp_path, monkeypatch):
    def page(path, title, sections, **others):
        report.write_text(path, f"{title} {sections}")

    monkeypatch.setattr(report, "write_html", page)  # drawing takes seconds
    monkeypatch.setattr(report, "draw_all", lambda *args: ({}, ""))
    groups, reports = compare([run("mha")], None), tmp_path / "reports"
    whole = new_report(reports, "first", groups, {"Date": "then"})
    before = files(whole)
    right = report.write_text
    left = 0

    def until_killed(*args):
        nonlocal left
        if (left := left - 1) < 0:
            raise KeyboardInterrupt
        right(*args)

    monkeypatch.setattr(report, "write_text", until_killed)
    with monkeypatch.context() as patch:
        # As a kill would leave it.
        patch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)
        for count in range(len(before)):
            for write in (
                lambda: new_report(reports, "second", groups, {}),
                lambda: update_report(whole, groups, {"Date": "now"}),
            ):
                left = count
                with pytest.raises(KeyboardInterrupt):
                    write()
                assert [p.name for p in reports.iterdir() if p.name[0] != "."] == ["first"]
                assert files(whole) == before
    monkeypatch.setattr(report, "write_text", right)
    assert new_report(reports, "second", groups, {}).name == "second"
    update_report(whole, groups, {"Date": "now"})
    changed = {name for name, data in files(whole).items() if data != before[name]}
    assert changed == {"report.md", "report.html"}


@pytest.mark.parametrize("where", ["write_text", "draw_all", "write_html"])
def test_a_full_disk_is_one_line_and_leaves_no_report(where, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(report, where, full)
    said = refused(lambda: new_report(tmp_path / "reports", "x", compare([run("mha")], None), {}))
    assert "cannot write" in said
    assert "B free" in said
    assert files(tmp_path / "reports") == {}


def test_a_report_that_cannot_draw_has_its_numbers_and_says_so(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise ValueError("no such\nbackend")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", broken)
    two = run("mla"), run("mha")
    lines = []
    folder = new_report(tmp_path, "x", compare(two, None), {"Date": "now"}, lines.append)
    why = "matplotlib cannot draw: ValueError: no such backend"
    assert lines == [f"plots left out: {why}"]
    assert len(json.loads((folder / "results.json").read_text())) == 2
    assert not list(folder.glob("*.png"))
    for name in ("report.md", "report.html"):
        assert why in (folder / name).read_text()
    update_report(folder, compare(two, None), {})


def test_a_report_is_written_whatever_names_it_holds(tmp_path):
    hostile = "\ud800\x1b]0;x\x07 <script>alert(1)</script> | `x` [a](javascript:alert(1))"
    one = run("mha", card=CARD | {"corpus": hostile, "revision": hostile})
    one = dataclasses.replace(one, sample=f"{hostile}\n<svg onload=alert(1)>")
    two = dataclasses.replace(one, row=one.row | {"run_name": "mha-other", "seed": 9})
    folder = new_report(tmp_path, "x", compare([one, two], None), {"Command": hostile})
    for name in ("report.md", "report.html"):
        text = (folder / name).read_bytes().decode()
        assert not {"\x1b", "\x07"} & set(text)
    page = (folder / "report.html").read_text()
    assert "<script" not in page
    assert "<svg onload" not in page
    assert 'href="javascript:' not in page
    outside = []
    fenced = False
    for line in (folder / "report.md").read_text().splitlines():
        fenced ^= line.startswith("```")
        outside += [] if fenced else [line]
    for line in outside:  # what a run brought is code there, or has no markup left
        assert "<script" not in line or line.count("`") == 2, line
        assert "](javascript" not in line or line.count("`") == 2, line


def test_prepared_data_that_a_run_never_saw_is_refused(make_run, odd_data, prepared):
    data = {
        "folder": str(odd_data.folder),
        "fingerprint": prepared.fingerprint,
        "tokenizer_sha256": odd_data.tokenizer_sha256,
    }
    assert PreparedData(odd_data.folder).fingerprint != prepared.fingerprint
    assert "on other data" in refused(lambda: load_run(make_run(data=data), CPU, quiet))
