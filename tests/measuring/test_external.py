"""External models and runs: the same text, a card of their own tokens, the same tables."""

import dataclasses
import json
import math
import re
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from external_models import gpt2, llama, mamba, saved

import measuring.external
from comparing.decode_speed import add_decode_speed
from comparing.variants import compare
from data.pipeline import prepare
from data.prepared import TOKENIZER_FOLDER
from data.tokenizing.tokenizer import TOKENIZER_FILES, bytes_tokenizer, load_tokenizer
from interop.errors import InteropError
from interop.importing.external_model import find, load, load_into_kvlab
from interop.stock import to_stock
from interop.transformers_model import TransformersModel
from launch import compose, schemas
from launch.errors import ConfigError
from launch.failures import USER_ERRORS
from launch.typed import for_hydra
from measuring.errors import EvaluationError
from measuring.evaluate import evaluate_run
from measuring.external import evaluate_external
from measuring.external_text import Reader, Text, texts_of
from measuring.perplexity import windows
from modeling.config import GPTConfig
from modeling.gpt import GPT
from reporting.contents import note
from reporting.cost_tables import decode_tables
from reporting.headline import headline
from reporting.markdown import table as drawn
from reporting.report import new_report, update_report
from reporting.tables import comparison
from settings.data import DataSettings, TokenizerSettings
from settings.evaluation import DecodeSettings, EvalSettings
from tests.measuring.runs import CONFIG, quiet, write_run

CPU = torch.device("cpu")
UNTIMED = DecodeSettings(batch_sizes=[])
SETTINGS = EvalSettings(decode_speed=UNTIMED)


def reader_of(folder, name="hf:them"):
    found = find(str(folder))
    return Reader(name, found.kind, found.tokenizer, found.tokenizer_sha256, found.end_of_document)


def evaluated_run(tmp_path, prepared, settings=SETTINGS, name="run", **changes):
    run = write_run(tmp_path / "runs", prepared, name, **changes)
    return evaluate_run(run, "validation", settings, CPU, quiet)


def measured(folder, model, text, settings=SETTINGS, name="hf:them"):
    return evaluate_external(reader_of(folder, name), model, text, "validation", settings, CPU)


def decoder_only(name):
    """A decoder of few layers, of a kind whose encoder would have another number."""
    import transformers

    sizes = {"encoder_layers": 1, "decoder_layers": 3, "d_model": 32, "max_position_embeddings": 64}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    widths = {"encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "vocab_size": 257}
    config = getattr(transformers, f"{name}Config")(**sizes, **heads, **widths, pad_token_id=0)
    return getattr(transformers, f"{name}ForCausalLM")(config)


def without_a_cache(name):
    """A model whose class has no cache that can be fed, or none at all."""
    import transformers

    config, model, sizes = {
        "rwkv": ("RwkvConfig", "RwkvForCausalLM", {"attention_hidden_size": 32}),
        "openai-gpt": ("OpenAIGPTConfig", "OpenAIGPTLMHeadModel", {"n_embd": 32, "n_head": 4}),
        "recurrent_gemma": (
            *("RecurrentGemmaConfig", "RecurrentGemmaForCausalLM"),
            {"num_attention_heads": 4, "intermediate_size": 48, "lru_width": 32},
        ),
    }[name]
    some = {"vocab_size": 257, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 0}
    return getattr(transformers, model)(getattr(transformers, config)(**(some | sizes)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Bart", "Blenderbot", "Pegasus"])
def test_a_decoder_taken_alone_has_the_cache_of_its_own_layers(name, tmp_path, prepared):
    folder = saved(decoder_only(name), tmp_path / "them")
    model = load(find(str(folder)), CPU)
    through = dataclasses.replace(SETTINGS, decode=True, context=32)
    for settings in (SETTINGS, through):
        row = measured(folder, model, Text([(prepared, 32)]), settings).row
        assert row["perplexity"] > 1
        assert row["kv_cache_bytes_measured"] == 3 * 2 * 32 * 4
    assert model.decode_step(1, 8)().shape == (1, 257)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rwkv", "openai-gpt", "recurrent_gemma"])
def test_a_model_whose_cache_cannot_be_measured_keeps_its_perplexity(name, tmp_path, prepared):
    torch.manual_seed(0)
    folder = saved(without_a_cache(name), tmp_path / "them")
    model = load(find(str(folder)), CPU)
    settings = EvalSettings(decode_speed=DecodeSettings(batch_sizes=[1], contexts=[4], rounds=1))
    text = Text([(prepared, 32)])
    them = measured(folder, model, text, settings)
    assert them.row["perplexity"] > 1
    assert them.row["kv_cache_bytes_measured"] is None
    assert "its cache and its decoding could not be measured" in them.notes[-1]
    # Together with models with a cache, in every table and plot.
    llamas = saved(llama(), tmp_path / "llama")
    with_cache = measured(llamas, TransformersModel(llama()), text, settings, "hf:llama")
    groups = compare([them, with_cache], None)
    said = []
    add_decode_speed(groups, settings, CPU, said.append)
    assert any("hf:them is not timed" in line for line in said)
    written = new_report(tmp_path, "x", groups, {})
    names = {row["name"] for row in json.loads((written / "variants.json").read_text())}
    assert names == {"hf:them", "hf:llama"}
    lines = (written / "report.md").read_text().splitlines()
    theirs = next(line for line in lines if line.startswith("| hf:them"))
    assert theirs.count(" - ") >= 3, theirs  # its cache, the ratio and what was measured
    alone = dataclasses.replace(settings, perplexity=False)
    with pytest.raises(EvaluationError, match="could not be measured"):
        measured(tmp_path / "them", model, text, alone)


@pytest.fixture
def exported(tmp_path, prepared):
    """The model of `write_run` as a Llama, with the tokenizer of its data."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = GPT(GPTConfig(**CONFIG))
    stock = to_stock(model.config, model.state_dict())
    folder = tmp_path / "exported"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(stock.config))
    save_file(stock.weights, folder / "model.safetensors", {"format": "pt"})
    for name in TOKENIZER_FILES:
        shutil.copy(prepared.folder / TOKENIZER_FOLDER / name, folder / name)
    return folder


def as_transformers(folder):
    from interop.importing.external_model import load

    return load(find(str(folder)), CPU)


@pytest.fixture
def with_bytes(tmp_path):
    """A Llama that reads bytes."""
    return saved(llama(), tmp_path / "with-bytes")


def with_windows():
    import transformers

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 257}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    config = transformers.MistralConfig(
        **sizes, **heads, sliding_window=8, max_position_embeddings=32, tie_word_embeddings=True
    )
    return transformers.MistralForCausalLM(config).eval()


@pytest.mark.parametrize(
    ("build", "curve", "at_48"),
    [
        (llama, (0, 256, 0, 256), 48 * 256),
        (with_windows, (0, 256, 8, 0), 8 * 256),
        (mamba, None, None),  # a state, which no token makes larger
    ],
)
def test_the_curve_of_an_external_model_is_fitted_to_its_own_cache(
    build, curve, at_48, with_bytes, prepared
):
    settings = dataclasses.replace(SETTINGS, perplexity=False, cache_context=48)
    row = measured(with_bytes, TransformersModel(build()), Text([(prepared, 16)]), settings).row
    found = tuple(row["kv_cache_curve"].values())
    assert row["kv_cache_bytes_at_context"] == row["kv_cache_points"][-1][1]
    if curve is None:
        assert found[0] > 0
        assert found[1:] == (0, 0, 0)
    else:
        assert found == curve
        assert row["kv_cache_bytes_at_context"] == at_48
    assert row["kv_cache_bytes_read_per_step"] is None


@pytest.mark.parametrize("decode", [False, True], ids=["windows", "through the cache"])
@pytest.mark.parametrize("modules", ["transformers", "kvlab"])
def test_a_run_that_went_out_is_in_its_runs_table_with_its_nats(
    modules, decode, exported, tmp_path, prepared
):
    settings = EvalSettings(
        decode=decode, context=16, stride=12, batch_size=256, decode_speed=UNTIMED
    )
    run = evaluated_run(tmp_path, prepared, settings)
    find_model = as_transformers if modules == "transformers" else in_kvlab
    (text,) = texts_of([run], "validation")
    them = measured(exported, find_model(exported), text, settings)
    assert them.row["protocol"] == run.row["protocol"]
    assert them.row["nll"] == pytest.approx(
        run.row["nll"], rel=100 * torch.finfo(torch.float32).eps
    )
    for key in ("num_parameters", "kv_cache_bytes_measured", "tokens_scored", "positions"):
        assert them.row[key] == run.row[key], key
    closed = run.row["kv_cache_bytes_per_token"] if modules == "kvlab" else None
    assert them.row["kv_cache_bytes_per_token"] == closed
    assert them.row.keys() == run.row.keys()
    (group,) = compare([run, them], None)
    assert [variant.label for variant in group.variants] == ["hf:them", "mqa"]


def in_kvlab(folder):
    return load_into_kvlab(find(str(folder)), CPU)


def test_another_tokenizer_reads_the_same_documents(with_bytes, tmp_path, prepared, corpus_folder):
    run = evaluated_run(tmp_path, prepared)
    (text,) = texts_of([run], "validation")
    seen = []

    class Model(TransformersModel):
        def token_nll(self, tokens, targets):
            seen.append((tokens, targets))
            return super().token_nll(tokens, targets)

    them = measured(with_bytes, Model(llama()), text)
    card = them.row["protocol"]
    counts = prepared.splits["validation"]
    assert card["tokens"] == counts.utf8_bytes + counts.documents
    assert them.row["tokens_scored"] == card["tokens"] - 1
    assert them.notes == []
    assert (card["words"], card["utf8_bytes"]) == (counts.words, counts.utf8_bytes)
    assert card["tokenizer_sha256"] != run.row["protocol"]["tokenizer_sha256"]
    assert card["data_fingerprint"] != run.row["protocol"]["data_fingerprint"]
    rows = [row for _, targets in seen for row in targets]
    parts = [
        row[window.length - window.scored :]
        for window, row in zip(windows(card["tokens"], 32, 32), rows, strict=True)
    ]
    ids = torch.cat([seen[0][0][0, :1], *parts]).tolist()
    # Id 0 ends a document, and stands for nothing else.
    ends = [place for place, token in enumerate(ids) if token == 0]
    tokenizer = load_tokenizer(with_bytes)
    found = [tokenizer.decode(ids[last + 1 : end]) for last, end in pairwise([-1, *ends])]
    texts = [path.read_text() for path in corpus_folder.glob("validation-*.txt")]
    assert sorted(found) == sorted(texts)
    assert them.row["bits_per_byte"] == pytest.approx(
        them.row["nll"] * them.row["tokens_scored"] / math.log(2) / counts.utf8_bytes
    )


@pytest.fixture
def indented(tmp_path):
    """A corpus of one document that begins with spaces."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name in ("train", "validation"):
        (corpus / f"{name}-0.txt").write_text("    return None\n" * 20)
    data = DataSettings("indented", "local", path=str(corpus), prepared_dir=str(tmp_path / "data"))
    return prepare(data, TokenizerSettings(name="bytes", kind="bytes"), quiet)


@pytest.mark.parametrize(
    ("normalizer", "arguments", "corpus", "is_whole"),
    [
        ("Replace", {"pattern": "function", "content": ""}, "prepared", False),
        ("Prepend", {"prepend": " "}, "prepared", True),  # a space before a text is no loss
        ("Strip", {"left": True, "right": False}, "indented", False),  # all spaces of a text are
    ],
)
def test_a_tokenizer_that_does_not_give_the_text_back_is_reported(
    normalizer, arguments, corpus, is_whole, tmp_path, request
):
    from tokenizers import normalizers

    prepared, tokenizer = request.getfixturevalue(corpus), bytes_tokenizer()
    tokenizer.normalizer = getattr(normalizers, normalizer)(**arguments)
    folder = saved(llama(), tmp_path / "other", tokenizer)
    them = measured(folder, TransformersModel(llama()), Text([(prepared, 32)]))
    assert them.row["reads_whole_text"] is is_whole
    documents = prepared.splits["validation"].documents
    lost = [f"does not give back {documents} of {documents} documents"]
    assert len(them.notes) == (0 if is_whole else 1)
    assert all(line in note for line, note in zip(lost, them.notes, strict=False))


def test_text_that_a_prepared_tokenizer_lost_is_refused(with_bytes, prepared, monkeypatch):
    counts = prepared.splits["validation"]
    short = dataclasses.replace(counts, utf8_bytes=counts.utf8_bytes + 1)
    monkeypatch.setitem(prepared.splits, "validation", short)
    with pytest.raises(EvaluationError, match=r"hf:them cannot be scored on .* loses some"):
        measured(with_bytes, TransformersModel(llama()), Text([(prepared, 32)]))


@pytest.mark.parametrize(
    ("asked", "runs", "build", "expected"),
    [
        ({}, 16, llama, (16, 16, 16)),
        ({}, 64, llama, (32, 32, 32)),  # it was made for 32
        ({}, None, mamba, (40, 40, 40)),
        ({"context": 48, "stride": 24}, 16, llama, (48, 24, 32)),  # RoPE has no end
        ({"cache_context": 48}, 16, llama, (16, 16, 48)),
        ({"stride": 8}, 64, gpt2, (32, 8, 32)),
    ],
)
def test_windows_are_the_runs_where_the_model_sees_that_far(
    asked, runs, build, expected, with_bytes, prepared, monkeypatch
):
    monkeypatch.setattr(measuring.external, "DEFAULT_CONTEXT", 40)
    settings = EvalSettings(perplexity=False, decode_speed=UNTIMED, **asked)
    model = TransformersModel(build())
    row = measured(with_bytes, model, Text([(prepared, runs)]), settings).row
    card = row["protocol"]
    assert (card["context"], card["stride"], card["cache_context"]) == expected
    assert row["kv_cache_tokens_measured"] == row["kv_cache_context"] == expected[2]
    assert row["perplexity"] is None


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"context": 33}, "longer than the 32 positions"),
        ({"stride": 33}, r"eval.stride \(33\) must not exceed the context \(32\)"),
        ({"decode": True, "cache_dtype": "int8"}, "eval.cache_dtype=int8: .*hf_modules=kvlab"),
    ],
)
def test_what_a_model_cannot_be_shown_is_refused(asked, message, with_bytes, prepared):
    settings = EvalSettings(decode_speed=UNTIMED, **asked)
    with pytest.raises(EvaluationError, match=message):
        measured(with_bytes, TransformersModel(gpt2()), Text([(prepared, None)]), settings)


def test_broken_weights_are_named(with_bytes, prepared):
    model = llama()
    with torch.no_grad():
        model.lm_head.weight.fill_(math.nan)
    with pytest.raises(EvaluationError, match="hf:them gives likelihoods that are no numbers"):
        measured(with_bytes, TransformersModel(model), Text([(prepared, 32)]))


def test_a_text_is_scored_once_and_read_as_its_reader_reads(tmp_path, prepared, exported):
    runs = [evaluated_run(tmp_path, prepared, name=name) for name in ("a", "b")]
    other = dataclasses.replace(runs[0], prepared=_another(prepared, "c" * 64))
    longer = dataclasses.replace(
        other, row=other.row | {"protocol": other.row["protocol"] | {"context": 7}}
    )
    (text,) = texts_of([longer, *runs], "validation")
    reading, context = text.as_read_by(reader_of(exported))
    assert (reading.tokenizer_sha256, context) == (prepared.tokenizer_sha256, 32)
    stranger = dataclasses.replace(reader_of(exported), tokenizer_sha256="d" * 64)
    assert text.as_read_by(stranger)[1] == 7
    longer.prepared.splits = {
        "validation": dataclasses.replace(prepared.splits["validation"], words=1)
    }
    assert len(texts_of([longer, *runs], "validation")) == 2


def _another(prepared, tokenizer_sha256):
    import copy

    other = copy.copy(prepared)
    other.tokenizer_sha256 = tokenizer_sha256
    return other


# In tables


@pytest.fixture
def several(tmp_path, prepared, exported, with_bytes):
    """A run of two seeds, the same model as an external one, and one that reads bytes."""
    settings = EvalSettings(
        decode_speed=DecodeSettings([1], [4, 40], rounds=1, steps=1), batch_size=128
    )
    first = evaluated_run(tmp_path, prepared, settings)
    second = evaluated_run(tmp_path, prepared, settings, "again", seed=4)
    (text,) = texts_of([first, second], "validation")
    exported_one = measured(exported, as_transformers(exported), text, settings)
    bytes_one = measured(with_bytes, TransformersModel(llama()), text, settings, "hf:with-bytes")
    return settings, [first, second, exported_one, bytes_one]


def test_an_external_model_is_a_variant_of_its_own(several):
    _, runs = several
    ours, theirs = compare(runs, "mqa", is_one_study=True)  # another card of theirs is no matter
    variants = {variant.label: variant.result for variant in ours.variants}
    assert variants["mqa"]["seeds"] == [3, 4]
    assert variants["hf:them"]["seeds"] == []
    assert variants["hf:them"]["attention"] == "hf:llama"
    assert variants["hf:them"]["verdict"] == "too few seeds"  # of the run's
    assert variants["hf:them"]["verdict_note"] == "one model"
    assert variants["hf:them"]["delta_percent"] == pytest.approx(0, abs=1e-3)
    assert variants["hf:them"]["cache_ratio_to_baseline"] == 1.0
    assert variants["hf:them"]["budget"]["total"] == variants["mqa"]["num_parameters"]
    assert variants["hf:them"]["budget"]["training_flops_per_token"] is None
    assert "the training, which kvlab does not know: hf:them" in ours.differs
    assert [variant.label for variant in theirs.variants] == ["hf:with-bytes"]
    assert theirs.variants[0].result["baseline"] is None
    said = headline(ours.results)
    assert "1 variant trained on 64 tokens with two seeds and 1 external model" in said
    assert "hf:with-bytes: perplexity" in headline(theirs.results)
    shown = " ".join(drawn(comparison(ours.results)).split())
    assert "| too few seeds | one model |" in shown
    assert "One model:" in note(ours.results)
    # Runs themselves still have to agree.
    other = dataclasses.replace(
        runs[1], row=runs[1].row | {"protocol": runs[1].row["protocol"] | {"stride": 3}}
    )
    with pytest.raises(EvaluationError, match="run and again cannot share a table"):
        compare([runs[0], other, *runs[2:]], None, is_one_study=True)


def test_an_external_model_can_be_the_baseline(several):
    _, runs = several
    (group,) = compare(runs[:3], "hf:llama")
    run = next(variant for variant in group.variants if variant.label == "mqa")
    assert run.result["baseline"] == "hf:them"
    assert run.result["verdict_note"] == "one model"


@pytest.mark.slow
def test_decoding_is_timed_in_the_same_turns_and_reported(several, tmp_path):
    settings, runs = several
    groups = compare(runs, None)
    folder = new_report(tmp_path, "first", groups, {})
    add_decode_speed(groups, settings, CPU, _refuse)
    variants = {v["name"]: v for group in groups for v in group.results}
    for name in ("mqa", "hf:them"):
        points = variants[name]["decode"]
        assert [(p["batch"], p["context"]) for p in points] == [(1, 4), (1, 40)]
        assert [p["cache_bytes"] for p in points] == [64 * 4, 64 * 40]
        assert [p["beyond_trained"] for p in points] == [False, True]
    update_report(folder, groups, {"External models": "x"})
    page = (folder / "report.html").read_text()
    text = (folder / "report.md").read_text()
    for words in ("hf:them", "hf:with-bytes", "Across tokenizers: bits per byte only"):
        assert words in page
        assert words in text
    assert re.search(r"\bexternal\b", page)
    rows = json.loads((folder / "results.json").read_text())
    assert [row["seed"] for row in rows if row["run_name"].startswith("hf:")] == [None, None]
    (across,) = json.loads((folder / "across_tokenizers.json").read_text())
    assert {row["name"] for row in across["variants"]} == {"mqa", "hf:them", "hf:with-bytes"}
    first, *others = across["variants"]
    assert first["delta_bits_per_byte"] is None
    for row in others:  # paired by document, whatever the tokens
        expected = row["bits_per_byte"] - first["bits_per_byte"]
        assert row["delta_bits_per_byte"] == pytest.approx(expected)
    for name in ("windows", "documents"):
        scored = json.loads((folder / f"{name}.json").read_text())
        assert set(scored) == {row["run_name"] for row in rows}
    assert {len(found["nll"]) for found in scored.values()} == {4}  # the same in any tokens


def _refuse(line):
    raise AssertionError(line)


@pytest.mark.slow
def test_a_point_that_a_model_cannot_be_timed_at_is_missing_for_it_alone(several, tmp_path):
    settings, runs = several

    class Short:
        device = CPU

        def decode_step(self, batch, context):
            if context > 32:
                raise ValueError("it has positions for 32 tokens only")
            return TransformersModel(llama()).decode_step(batch, context)

    groups = compare([*runs[:2], dataclasses.replace(runs[2], decodable=Short())], None)
    lines = []
    add_decode_speed(groups, settings, CPU, lines.append)
    assert lines == [
        "hf:them is not timed at batch 1 and context 40: it has positions for 32 tokens only"
    ]
    [shown] = map(drawn, decode_tables(groups[0].results))
    cells = next(line for line in shown.splitlines() if "hf:them" in line).split("|")
    assert [cell.strip() for cell in cells[4:8]] == ["-", "-", "-", "-"]
    assert new_report(tmp_path, "missing", groups, {}).is_dir()


# The command


@pytest.fixture
def evaluate(tmp_path):
    """Run the command's job on the runs in tmp_path; returns the report's folder."""
    from commands.evaluate import main

    def run(*overrides):
        where = [f"runs_dir={tmp_path}/runs", f"reports_dir={tmp_path}/reports", "tracking=none"]
        fast = ["eval.decode_speed.batch_sizes=[]", "eval.batch_size=128"]
        arguments = for_hydra("eval", [*where, *fast, *overrides])
        composed = compose.composed("eval", arguments)
        main(compose.checked(composed, schemas.EvalConfig))
        return max((tmp_path / "reports").iterdir(), key=lambda path: path.stat().st_mtime_ns)

    return run


def rows_of(report):
    return {row["run_name"]: row for row in json.loads((report / "results.json").read_text())}


@pytest.mark.slow
def test_the_command_measures_models_with_runs(
    evaluate, exported, with_bytes, tmp_path, prepared, capsys
):
    write_run(tmp_path / "runs", prepared)
    rows = rows_of(report := evaluate(f"hf=[{exported},{with_bytes}]"))
    assert list(rows) == ["hf:exported", "run", "hf:with-bytes"]
    assert rows["hf:exported"]["baseline_run"] is None
    assert rows["hf:exported"]["protocol"] == rows["run"]["protocol"]
    out = capsys.readouterr().out
    assert "Across tokenizers: bits per byte only; tiny, validation split" in out
    text = (report / "report.md").read_text()
    assert f"hf:exported: {exported}, LlamaForCausalLM; hf:with-bytes" in text
    assert "Trained at commit" in text

    rows = rows_of(report := evaluate(f"hf={exported}", "hf_modules=kvlab", "run=run"))
    assert rows["hf:exported"]["kv_cache_bytes_per_token"] == 64
    assert "LlamaForCausalLM in kvlab's modules" in (report / "report.md").read_text()


@pytest.mark.slow
def test_without_runs_a_prepared_folder_gives_the_text(
    evaluate, with_bytes, tmp_path, prepared, capsys
):
    with pytest.raises(ConfigError, match=r"no finished run .*data_folder=FOLDER"):
        evaluate(f"hf={with_bytes}")
    same_name = saved(llama(), tmp_path / "other" / "with-bytes")
    rows = rows_of(evaluate(f"hf=[{with_bytes},{same_name}]", f"data_folder={prepared.folder}"))
    assert set(rows) == {f"hf:{with_bytes}", f"hf:{same_name}"}
    assert {row["seed"] for row in rows.values()} == {None}
    assert "2 external models" in capsys.readouterr().out


@pytest.mark.slow
def test_tasks_are_run_on_external_models(evaluate, with_bytes, prepared):
    folder = Path(__file__).parent.parent / "harness" / "tasks"
    where = [f"data_folder={prepared.folder}", f"eval.task_folder={folder}"]
    rows = {}
    for modules in ("transformers", "kvlab"):
        asked = ["eval.tasks=[tiny_choice]", f"hf={with_bytes}", f"hf_modules={modules}"]
        (rows[modules],) = rows_of(evaluate("eval.perplexity=false", *where, *asked)).values()
    theirs, ours = (rows[modules]["tasks"]["tiny_choice"] for modules in ("transformers", "kvlab"))
    numbers = {key: value for key, value in ours.items() if isinstance(value, float)}
    assert {key: theirs[key] for key in numbers} == pytest.approx(numbers, rel=1e-5)
    assert 0 <= ours["acc"] <= 1
    by = [rows[modules]["protocol"]["tasks"] for modules in ("transformers", "kvlab")]
    assert "HFLM" in by[0]
    assert "HFLM" not in by[1]


@pytest.mark.parametrize("modules", ["transformers", "kvlab"])
def test_tasks_that_fail_do_not_cost_a_model_its_perplexity(
    modules, evaluate, with_bytes, prepared, monkeypatch
):
    class Failing:
        protocol = protocol_of_transformers = "how"

        def score(self, *asked):
            raise InteropError("eval.tasks: too long")

        score_pretrained = score

    monkeypatch.setattr("commands.evaluate.load_tasks_of", lambda config: Failing())
    asked = [f"hf={with_bytes}", f"hf_modules={modules}", f"data_folder={prepared.folder}"]
    report = evaluate(*asked)
    (row,) = rows_of(report).values()
    assert row["perplexity"] > 1
    assert "tasks" not in row
    reported = "hf:with-bytes has no results of tasks: eval.tasks: too long"
    assert reported in (report / "report.md").read_text()
    with pytest.raises(ConfigError, match="too long"):
        evaluate(*asked, "eval.perplexity=false")


@pytest.mark.parametrize(
    ("asked", "message"),
    [("split=test", "test"), ("eval.baseline=mha", "eval.baseline=mha is the attention of none")],
)
def test_a_text_or_a_baseline_that_is_not_there_is_refused_before_anything_is_scored(
    asked, message, evaluate, with_bytes, prepared, monkeypatch
):
    monkeypatch.setattr("commands.evaluate.evaluate_external_models", None)
    with pytest.raises(USER_ERRORS, match=message):
        evaluate(f"hf={with_bytes}", f"data_folder={prepared.folder}", asked)


@pytest.mark.slow
def test_a_model_that_fails_costs_no_other_its_numbers(
    evaluate, with_bytes, tmp_path, prepared, monkeypatch
):
    bad = saved(llama(), tmp_path / "bad")
    score = TransformersModel.token_nll

    def fail(self, tokens, targets):
        if self.model.name_or_path == str(bad):
            raise IndexError("index out of range in self")
        return score(self, tokens, targets)

    monkeypatch.setattr(TransformersModel, "token_nll", fail)
    report = evaluate(f"hf=[{bad},{with_bytes}]", f"data_folder={prepared.folder}")
    assert list(rows_of(report)) == ["hf:with-bytes"]
    assert "Left out: `hf:bad: index out of range in self`" in (report / "report.md").read_text()
    with pytest.raises(ConfigError, match="hf:bad: index out of range"):
        evaluate(f"hf={bad}", f"data_folder={prepared.folder}")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["hf=a", "eval.decode_path=absorbed"], "set hf_modules=kvlab, or leave it out"),
        (["hf=a", "eval.decode=true", "eval.cache_dtype=int8"], "eval.cache_dtype=int8 is kvlab's"),
        (["hf={a: 1}"], "hf: no such folder: {a: 1}"),
        (["hf=[a,'']"], "hf .* must be a folder or a name of the Hub"),
        (["hf_modules=own"], "hf_modules .* must be transformers or kvlab"),
        (["data_folder=a"], "data_folder needs hf="),
        (["data_folder=a", "hf=b", "run=c"], "leave it out with run="),
        (["data_folder=a", "hf=b", "experiment=c"], "leave it out with run="),
        (["hf=no/such/folder"], "hf: no such folder: no/such/folder"),
    ],
)
def test_settings_that_make_no_sense_are_refused(overrides, message, evaluate):
    with pytest.raises(USER_ERRORS, match=message):
        evaluate(*overrides)


def test_a_model_scored_on_several_texts_is_shown_with_each(prepared):
    from commands import external

    texts = [Text([(prepared, 32)]), Text([(prepared, 32)])]
    assert external.name_on("hf:a", texts[0], texts[:1]) == "hf:a"
    assert external.name_on("hf:a", texts[0], texts) == f"hf:a on {prepared.folder.name}"
