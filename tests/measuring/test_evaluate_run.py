import contextlib
import functools
import math
import shutil
from pathlib import Path

import pytest
import torch

from data.prepared import PreparedData
from files.errors import RunError
from measuring.errors import EvaluationError
from measuring.evaluate import evaluate_run
from measuring.kv_cache import CACHE_KEYS
from measuring.perplexity import windows
from measuring.runs import choose_runs, load_run
from modeling.errors import ModelConfigError
from modeling.kv_cache import LayerCache
from settings.evaluation import EvalSettings
from tests.measuring.runs import CONFIG, SUMMARY, quiet, write_run
from tracking.checkpoints import CheckpointStore
from tracking.metrics import MetricsLog

CPU = torch.device("cpu")


@pytest.fixture
def make_run(tmp_path, prepared):
    return functools.partial(write_run, tmp_path / "runs", prepared)


def test_a_row_has_every_documented_key(make_run, prepared):
    found = evaluate_run(make_run(), "validation", EvalSettings(), CPU, quiet)
    row = found.row
    notation = Path("docs/notation.md").read_text()
    assert all(f"`{key}`" in notation for key in row)
    assert row.keys() >= {*CACHE_KEYS}
    assert row["seed"] == 3
    assert row["tokens_scored"] == prepared.splits["validation"].tokens - 1
    assert row["kv_cache_bytes_per_token"] == 4 * 2 * 8
    assert row["cache_ratio_to_mha"] == 0.5
    assert row["positions"] == "RoPE"
    card = row["protocol"]
    assert card["words"] == prepared.splits["validation"].words
    assert (card["context"], card["stride"], card["dtype"]) == (32, 32, "float32")
    assert card["device"] == "cpu"
    assert row["trained_with"] is None  # an older version's summary
    assert card["intra_document_mask"] is False
    assert found.windows.window_tokens == [w.scored for w in windows(len_of(prepared), 32, 32)]
    assert math.fsum(found.windows.window_nll) == pytest.approx(row["nll"] * row["tokens_scored"])
    assert math.fsum(found.windows.document_nll) == pytest.approx(found.windows.nll_sum)
    assert len(found.windows.document_nll) == prepared.splits["validation"].documents
    assert found.settings["model.attention.name"] == "mqa"
    assert found.curve == {"tokens": [], "perplexity": []}
    assert found.sample is None


def len_of(prepared):
    return prepared.splits["validation"].tokens


def test_what_a_run_recorded_is_read_back(make_run):
    run = make_run()
    trainer = "trainer:\n  micro_batch_size: 1\n  gradient_accumulation_steps: 2\n"
    run.write_config(
        f"seed: 3\noptim:\n  learning_rate: 3e-4\nmodel:\n  hidden_size: 99\n{trainer}"
    )
    run.samples_path.write_text("def f")
    with contextlib.closing(MetricsLog(run.metrics_path)) as log:
        log.append({"step": 0, "validation/perplexity_part": 5.0})  # of no known place
        log.append({"step": 1, "progress/tokens": 7, "train/loss": 3.0})
        log.append({"step": 2, "progress/tokens": 14, "validation/perplexity_part": 5.0})
        log.append({"step": 3, "progress/tokens": 21, "validation/perplexity_part": math.inf})
    found = evaluate_run(run, "validation", EvalSettings(perplexity=False), CPU, quiet)
    assert found.settings["optim.learning_rate"] == 3e-4
    assert found.settings["model.hidden_size"] == 16  # of the model that was trained
    assert found.settings["model.attention.attention_dropout"] == 0.0  # which it did not record
    assert found.settings["trainer.sequences_per_step"] == 2
    assert "trainer.micro_batch_size" not in found.settings
    assert found.curve == {"tokens": [14], "perplexity": [5.0]}
    assert found.sample == "def f"
    assert found.windows is None
    assert found.row["perplexity"] is None


def test_weights_that_are_no_numbers_are_refused(make_run):
    run = make_run()
    store = CheckpointStore(run.checkpoints_path, 1, quiet)
    checkpoint = store.load(1)
    for tensor in checkpoint.tensors["model"].values():
        tensor.fill_(math.nan)
    store.save(1, checkpoint.tensors, checkpoint.state)
    with pytest.raises(EvaluationError, match="not finite numbers; its weights are broken"):
        evaluate_run(run, "validation", EvalSettings(), CPU, quiet)


def test_words_and_bytes_are_those_of_the_texts_that_were_read(make_run, corpus_folder):
    texts = [path.read_text(encoding="utf-8") for path in corpus_folder.glob("validation-*")]
    row = evaluate_run(make_run(), "validation", EvalSettings(), CPU, quiet).row
    nats = row["nll"] * row["tokens_scored"]
    words = sum(len(text.split()) for text in texts)
    assert math.log(row["word_perplexity"]) == pytest.approx(nats / words)
    num_bytes = sum(len(text.encode()) for text in texts)
    assert row["bits_per_byte"] == pytest.approx(nats / math.log(2) / num_bytes)


def test_the_card_says_whether_attention_keeps_to_documents(make_run, prepared):
    masked = {"intra_document_mask": True, "end_of_document_id": prepared.end_of_document_id}
    plain = evaluate_run(make_run(), "validation", EvalSettings(), CPU, quiet).row
    row = evaluate_run(
        make_run("masked", model=CONFIG | masked), "validation", EvalSettings(), CPU, quiet
    ).row
    assert row["protocol"] == plain["protocol"] | {"intra_document_mask": True}
    assert row["nll"] != plain["nll"]
    assert row["kv_cache_bytes_measured"] == plain["kv_cache_bytes_measured"]


def test_the_training_split_is_scored_when_it_is_named(make_run, prepared):
    row = evaluate_run(make_run(), "train", EvalSettings(), CPU, quiet).row
    assert row["tokens_scored"] == prepared.splits["train"].tokens - 1


def test_a_split_that_is_not_there_lists_those_that_are(make_run):
    with pytest.raises(ValueError, match="no split 'test'; it has train, validation"):
        evaluate_run(make_run(), "test", EvalSettings(), CPU, quiet)


def test_data_that_is_gone_or_another_is_refused(make_run, prepared, tmp_path):
    gone = str(tmp_path / "gone")
    data = {"folder": gone, "fingerprint": "x" * 64, "tokenizer_sha256": "y" * 64}
    with pytest.raises(EvaluationError, match=r"the data in .*gone, which is not there; bring it"):
        load_run(make_run("gone", data=data), CPU, quiet)
    shutil.copytree(prepared.folder, gone)
    assert PreparedData(tmp_path / "gone").fingerprint == prepared.fingerprint
    with pytest.raises(EvaluationError, match=r"with another tokenizer.*fingerprint yyyyyyyyyyyy"):
        load_run(make_run("gone", data=data), CPU, quiet)
    data["tokenizer_sha256"] = prepared.tokenizer_sha256
    with pytest.raises(EvaluationError, match=r"trained on other data.*fingerprint xxxxxxxxxxxx"):
        load_run(make_run("gone", data=data), CPU, quiet)


@pytest.mark.parametrize(
    "changes",
    [{"model": {"colour": "red"}}, {"model": CONFIG | {"hidden_size": 32}}, {"data": {}}],
)
def test_a_checkpoint_of_another_version_is_refused_in_one_line(make_run, changes):
    with pytest.raises((RunError, ModelConfigError), match=r"another version|must equal") as error:
        load_run(make_run(**changes), CPU, quiet)
    assert "\n" not in str(error.value)


def test_runs_are_chosen_by_name_and_unfinished_ones_left_out(make_run, tmp_path):
    for name in ("mha-1", "mha-2", "mla-1"):
        make_run(name)
    make_run("broken", finished=False)
    runs = tmp_path / "runs"

    def names(*patterns):
        return [run.path.name for run in choose_runs(runs, patterns, quiet)]

    assert names("*") == ["mha-1", "mha-2", "mla-1"]
    assert names("mla-1", "mha-*", "mha-1") == ["mla-1", "mha-1", "mha-2"]
    with pytest.raises(EvaluationError, match="called 'x'; there are: mha-1, mha-2, mla-1"):
        names("x")


def test_no_finished_run_says_how_to_get_one(tmp_path, make_run):
    make_run("broken", finished=False)
    with pytest.raises(EvaluationError, match=r"python train_model\.py"):
        choose_runs(tmp_path / "runs", ["*"], quiet)
    with pytest.raises(
        EvaluationError, match=r"train one: python train_model\.py -m experiment=x$"
    ):
        choose_runs(tmp_path / "runs", None, quiet, "x")


def test_runs_that_memorised_are_taken_only_by_name(make_run, tmp_path):
    make_run("mha")
    overfit = make_run("overfit")
    overfit.write_summary(SUMMARY | {"overfit_batches": 1})
    runs, lines = tmp_path / "runs", []
    assert [run.name for run in choose_runs(runs, None, lines.append)] == ["mha"]
    assert "overfit memorised a few sequences" in lines[0]
    assert [run.name for run in choose_runs(runs, ["over*"], quiet)] == ["overfit"]
    shutil.rmtree(runs / "mha")
    with pytest.raises(EvaluationError, match=r"no finished run in .* but those"):
        choose_runs(runs, None, quiet)


def test_a_run_reads_its_cache_in_the_way_that_is_asked_for(make_run):
    run = make_run()
    assert load_run(run, CPU, quiet).model.attention_configs[0].decode_path == "auto"
    for path in ("folded", "blocks"):
        assert load_run(run, CPU, quiet, path).model.attention_configs[0].decode_path == path
    with pytest.raises(ModelConfigError, match="must be auto, folded, repeated or blocks"):
        load_run(run, CPU, quiet, "absorbed")


def test_seeds_may_begin_with_folders_of_their_own_but_of_one_kind():
    from measuring.evaluate import _settings
    from tests.tiny_models import scored_model as model

    older, drawn, one, other, another = (
        _settings(recorded, model())
        for recorded in (
            {},
            {"init_from": None, "init_sha256": None},
            {"init_from": "exports/mla-from-mha-seed0", "init_sha256": "1"},
            {"init_from": "/elsewhere/mla-from-mha-seed1", "init_sha256": "2"},
            {"init_from": "exports/uncalibrated-seed0", "init_sha256": "3"},
        )
    )
    assert older == drawn != one == other != another
    assert one["begins_with"] == "mla-from-mha"


def test_a_cache_that_is_not_its_closed_form_is_refused_by_name(make_run, monkeypatch):
    def of_a_window(self):
        return [tensor[:, :, :8].clone() for tensor in self.tensors.values()]

    monkeypatch.setattr(LayerCache, "live_tensors", of_a_window)
    monkeypatch.setattr("measuring.evaluate._score", None)  # nothing is scored before
    said = (
        r"^narrow: the live KV cache of 16 tokens takes 512 bytes, but the closed form of "
        r"attention 'mqa' says 1,024; correct the state"
    )
    with pytest.raises(EvaluationError, match=said):
        evaluate_run(make_run("narrow"), "validation", EvalSettings(), CPU, quiet)
