"""From a run to a folder of transformers, through the entry point."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from exportable import EXPORTABLE, GQA, config_of, gpt_config, randomised

import commands.export
import interop.exporting.agreement
import interop.exporting.export
import interop.families.deepseek
import interop.families.llama
from data.pipeline import prepare
from files.errors import RunError
from interop.conversion.convert import Conversion, convert
from interop.errors import ExportMismatch, InteropError
from interop.exporting.agreement import Agreement
from interop.exporting.model_card import LICENCES, Licence, Origin, model_card
from interop.importing.folder import read_stock, tokenizer_sha256
from interop.stock import to_stock
from launch import schemas
from launch.failures import status_of
from modeling.gpt import GPT
from settings.data import DataSettings, TokenizerSettings
from tracking.checkpoints import CheckpointStore
from tracking.run_folder import RunFolder

ROOT = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.slow  # imports transformers
SUMMARY = {
    "finished": True,
    "tokens_trained": 2 * 48,
    "validation_perplexity": 298.9,
    "validation_nll": 5.7,
    "validation_bits_per_byte": 3.25,
    "kv_cache_bytes_measured": 512.0,
}


@pytest.fixture
def write_run(prepared, tmp_path):
    """Write a run whose weights are random."""

    def write(config, name="run", finished=True):
        config = dataclasses.replace(
            config,
            vocab_size=prepared.vocab_size,
            end_of_document_id=prepared.end_of_document_id if config.intra_document_mask else None,
        )
        model = randomised(GPT(config))
        run = RunFolder(tmp_path / "runs", name)
        run.create()
        state = {
            "seed": 3,
            "model": dataclasses.asdict(config),
            "data": {
                "folder": str(prepared.folder),
                "fingerprint": prepared.fingerprint,
                "tokenizer_sha256": prepared.tokenizer_sha256,
            },
        }
        store = CheckpointStore(run.checkpoints_path, 1, lambda _: None)
        store.save(1, {"model": model.state_dict()}, state)
        run.write_config("trainer:\n  micro_batch_size: 2\n  gradient_accumulation_steps: 1\n")
        if finished:
            run.write_summary(SUMMARY)
        return model

    return write


@pytest.fixture
def export(tmp_path):
    """Call the entry point as with key=value."""

    def call(**keys):
        given = {"runs_dir": str(tmp_path / "runs"), "run": "run", "out": str(tmp_path / "out")}
        config = schemas.ExportConfig(**(given | keys))
        assert config.problems() == []
        commands.export.main(config)
        return Path(config.out)

    return call


ONE_OF_EACH = (
    *("mqa", "gqa_biases", "gqa_documents", "gqa_qk_norm", "mha_nope", "mla", "mla_query_latent"),
    *("mla_mlp_biases", "mla_nope", "classic_mha", "classic_mqa"),
    *("gqa_window_full", "gqa_qk_norm_windows", "gqa_sinks", "shared_kv_windows"),
)


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_an_exported_run_is_the_model_of_transformers_that_computes_the_same(
    name, write_run, export, prepared, tmp_path, capsys
):
    model = write_run(config_of(name))
    out = export()
    assert left_in(tmp_path) == ["out", "runs"]
    assert left_in(out) == [
        *("README.md", "config.json", "generation_config.json", "model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json"),
    ]
    said = capsys.readouterr().out
    assert f"as {EXPORTABLE[name][2]}, float32" in said
    assert re.search(r"logits .* at 192 positions of 4 validation texts", said)

    from transformers import AutoModelForCausalLM, AutoTokenizer

    stock = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=False, use_safetensors=True)
    tokenizer = AutoTokenizer.from_pretrained(out, trust_remote_code=False)
    text = "def f7(x):<|endoftext|>\n"
    assert tokenizer(text)["input_ids"] == prepared.tokenizer().encode(text).ids
    assert tokenizer.model_max_length == 48
    assert stock.config.eos_token_id == stock.generation_config.eos_token_id == 0
    tokens = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.no_grad():
        expected = model(tokens)
        torch.testing.assert_close(stock(tokens).logits, expected, rtol=1e-4, atol=1e-3)
    assert tokenizer_sha256(out, "out") == prepared.tokenizer_sha256
    # What engines without transformers' ties and names of old need.
    written, weights = json.loads((out / "config.json").read_text()), read_stock(out).weights
    is_deepseek, is_gpt2 = name.startswith("mla"), name.startswith("classic")
    is_tied = model.config.tie_word_embeddings
    assert written["tie_word_embeddings"] is stock.config.tie_word_embeddings is is_tied
    assert ("lm_head.weight" in weights) is (is_deepseek or not is_tied)
    if is_deepseek and is_tied:
        assert torch.equal(weights["lm_head.weight"], weights["model.embed_tokens.weight"])
        assert stock.lm_head.weight is stock.model.embed_tokens.weight
    assert written.get("n_ctx") == (48 if is_gpt2 else None)
    assert tokenizer.unk_token == ("<|endoftext|>" if is_gpt2 else None)
    assert len(tokenizer) == prepared.vocab_size


@pytest.mark.parametrize(
    ("model", "unknown"),
    [
        ({"type": "BPE", "vocab": {"a": 0}, "unk_token": None}, None),
        ({"type": "BPE", "vocab": {"a": 0, "<unk>": 1}, "unk_token": "<unk>"}, "<unk>"),
        ({"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "<unk>"}, None),  # not in it
        ({"type": "Unigram", "vocab": [["<unk>", 0.0], ["a", -1.0]], "unk_id": 0}, "<unk>"),
        ({"type": "Unigram", "vocab": [["a", -1.0]], "unk_id": None}, None),
    ],
)
def test_the_unknown_token_is_that_of_the_tokenizers_model(model, unknown):
    assert interop.exporting.export._unknown_token(model) == unknown


def test_written_weights_are_rounded_and_compared_as_such(write_run, export, tmp_path):
    model = write_run(config_of("mla"))
    for name, dtype in (("bfloat16", torch.bfloat16), ("float16", torch.float16)):
        out = export(dtype=name, out=str(tmp_path / name))
        stock = read_stock(out)
        assert stock.config["dtype"] == name
        assert {tensor.dtype for tensor in stock.weights.values()} == {dtype}
        embedding = model.embed_tokens.weight.detach().to(dtype)
        assert torch.equal(stock.weights["model.embed_tokens.weight"], embedding)


def test_weights_that_a_dtype_cannot_hold_are_refused():
    source = {"layers.0.mlp.up_proj.weight": torch.full((2,), 1e5)}
    with pytest.raises(InteropError, match=r"up_proj.weight are not finite in float16; set dtype="):
        interop.exporting.export._rounded(source, "float16")


def test_where_something_is_nothing_is_written(write_run, export, tmp_path):
    write_run(config_of("mha"))
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    for name in ("file", "full"):
        with pytest.raises(InteropError, match=f"{name}.* is there already"):
            export(out=str(tmp_path / name))
    assert (tmp_path / "file").read_text() == (tmp_path / "full" / "mine").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    export(out=str(tmp_path / "empty"))
    export(out=str(tmp_path / "new" / "folders"))
    assert left_in(tmp_path) == ["empty", "file", "full", "new", "runs"]
    assert "model.safetensors" in left_in(tmp_path / "empty")


def saved_weights(change):
    """Write other weights than those that were asked for."""

    def spoil(monkeypatch):
        save = interop.exporting.export.save_file

        def changed(weights, path, metadata):
            save(change(weights), path, metadata=metadata)

        monkeypatch.setattr(interop.exporting.export, "save_file", changed)

    return spoil


def one_weight_off(weights):
    name = "model.layers.1.self_attn.o_proj.weight"
    changed = weights[name].clone()
    changed[3, 2] += 0.01
    return weights | {name: changed}


def one_weight_missing(weights):
    return {name: tensor for name, tensor in weights.items() if "1.mlp.up_proj" not in name}


def replaced(module, name, value):
    return lambda monkeypatch: monkeypatch.setattr(module, name, value)


def another_tokenizer(monkeypatch):
    write = interop.exporting.export._write_tokenizer

    def spoilt(folder, prepared, context):
        write(folder, prepared, context)
        path = folder / "tokenizer_config.json"
        path.write_text(path.read_text().replace("true", "false"))

    monkeypatch.setattr(interop.exporting.export, "_write_tokenizer", spoilt)


def another_text(monkeypatch):
    generate = interop.exporting.agreement.generate

    def other(*arguments, **named):
        for number, token in enumerate(generate(*arguments, **named)):
            yield token + 1 if number == 3 else token

    monkeypatch.setattr(interop.exporting.agreement, "generate", other)


def other_keys(**changes):
    def spoil(monkeypatch):
        def changed(config, weights):
            stock = to_stock(config, weights)
            return dataclasses.replace(stock, config=stock.config | changes)

        monkeypatch.setattr(interop.exporting.export, "to_stock", changed)

    return spoil


DIFFER = r"the logits .* differ by \d.*, more than rounding can"
KINDS = ["full_attention", "sliding_attention"]


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("mla", saved_weights(one_weight_off), DIFFER),
        (
            "mla",
            saved_weights(one_weight_missing),
            r"did not find the weights .*missing_keys.*up_proj",
        ),
        ("mla", replaced(interop.families.deepseek, "interleaved", torch.arange), DIFFER),
        ("mla", another_tokenizer, "tokenizer encodes .* otherwise than kvlab's"),
        ("mla", another_text, "generate continues a prompt of .* from its new token 4 on"),
        ("gqa_sinks", replaced(interop.families.llama, "NO_SINK", 0.0), DIFFER),
        ("gqa_sinks", other_keys(sliding_window=6), DIFFER),
        ("gqa_window_full", other_keys(layer_types=KINDS * 2), DIFFER),
        ("gqa_window_full", other_keys(no_rope_layers=[0, 1] * 2), DIFFER),
    ],
)
def test_what_does_not_compute_the_same_is_not_left_there(
    name, spoil, message, write_run, export, tmp_path, monkeypatch
):
    write_run(config_of(name))
    spoil(monkeypatch)
    with pytest.raises(ExportMismatch, match=message):
        export(out=str(tmp_path / "new" / "out"))
    assert left_in(tmp_path) == ["runs"]
    assert status_of(ExportMismatch("")) == 1
    assert status_of(InteropError("")) == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_or_failed_write_leaves_nothing(
    error, write_run, export, tmp_path, monkeypatch
):
    write_run(config_of("mha"))

    def fail(*arguments, **named):
        raise error

    monkeypatch.setattr(interop.exporting.export, "save_file", fail)
    with pytest.raises((KeyboardInterrupt, RunError)) as caught:
        export()
    assert isinstance(caught.value, KeyboardInterrupt) or "No space left" in str(caught.value)
    assert left_in(tmp_path) == ["runs"]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_to_end_leaves_nothing(name, write_run, export, tmp_path, monkeypatch):
    write_run(config_of("mha"))
    number = getattr(signal, name)
    seen = []

    def end(*arguments, **named):
        seen.extend(left_in(tmp_path / "new"))
        # Were it not taken, it would end the tests.
        assert signal.getsignal(number) is not signal.SIG_DFL
        signal.raise_signal(number)

    monkeypatch.setattr(interop.exporting.export, "save_file", end)
    with pytest.raises(SystemExit) as caught:
        export(out=str(tmp_path / "new" / "out"))
    assert caught.value.code == 128 + number
    assert seen == [f".out.tmp-{os.getpid()}"]
    assert left_in(tmp_path) == ["runs"]
    assert signal.getsignal(number) is signal.SIG_DFL


def test_a_signal_that_is_ignored_stays_so():
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interop.exporting.export._ended_by_signals():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path):
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    stale = {f".out.tmp-{done.pid}", f".out.tmp-{os.getpid()}", ".out.tmp-9" + "9" * 30}
    kept = {f".out.tmp-{os.getppid()}", ".out.tmp-x", f".other.tmp-{done.pid}"}
    for name in stale | kept:
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text("")
    with interop.exporting.export._staged(tmp_path / "out") as folder:
        assert left_in(folder) == []
    assert left_in(tmp_path) == sorted({"out"} | kept)


def test_a_place_that_cannot_be_read_is_one_line(tmp_path, monkeypatch):
    def refuse(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(RunError, match=r"cannot write .*: Permission denied"):
        interop.exporting.export.require_free_place(tmp_path)


def test_texts_are_starts_of_different_documents(prepared, monkeypatch):
    monkeypatch.setattr(interop.exporting.agreement, "_COMPARED_TOKENS", 3)
    stream = prepared.stream("validation")
    tokens = stream.window(0, len(stream)).tolist()
    whole, end = [[]], prepared.end_of_document_id
    for token in tokens:
        whole = [*whole, []] if token == end else [*whole[:-1], [*whole[-1], token]]
    expected = [document[:6] for document in whole if document][:4]
    assert max(len(document) for document in whole[:3]) > 6
    assert interop.exporting.agreement._documents(prepared) == expected


def test_a_tie_may_be_broken_either_way():
    model = randomised(GPT(config_of("mha")))
    with torch.no_grad():
        text = torch.tensor([[9, 10, 11]])
        logits = model.next_logits(text)[0]
        best, worst = int(logits.argmax()), int(logits.argmin())
        twin = next(n for n in range(20, 30) if n not in (best, worst))
        model.embed_tokens.weight[twin] = model.embed_tokens.weight[best]

    class Other:
        """Takes the twin, or something else."""

        def __init__(self, token):
            self.token = token

        def generate(self, prompt, **named):
            return torch.cat((prompt, torch.tensor([[self.token] * 4])), dim=1)

    compare = interop.exporting.agreement._compare_greedy
    assert compare(model, Other(max(best, twin)), text, 4, 1e-5) == 0
    with pytest.raises(ExportMismatch, match="from its new token 1 on"):
        compare(model, Other(worst), text, 4, 1e-5)


def test_the_card_says_where_the_model_comes_from(write_run, export, prepared):
    write_run(gpt_config(GQA, intra_document_mask=True))
    card = (export() / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": "unknown",
        "tags": ["kvlab", "gqa"],
    }
    assert "perplexity 298.900, 3.2500 bits per byte" in card
    counts = prepared.splits["validation"]
    assert f"{counts.tokens - 1:,} tokens" in card
    assert "windows of 48 tokens with stride 48" in card
    for fact in (
        *("corpus: `tiny`", f"fingerprint: `{prepared.fingerprint}`", "tokens trained: `96`"),
        *("num_key_value_heads: `2`", "positions: `RoPE, theta 10000`"),
        *(
            "measured in kvlab's cache: `512 per token in float32, ",
            "A sequence must be one document",
        ),
        # 2 layers x 2 heads x (8 + 8) x 4 bytes
        "a sequence of 48 tokens by kvlab's formula: `12,288 in float32, 6,144 in bfloat16",
        "bytes per token by that formula: `256 in float32`",
        *("own cache: `12,288 for 48 tokens in float32", "says 12,288`"),
    ):
        assert fact in card, fact
    assert "interleaved" not in card


def test_the_card_of_a_training_that_began_with_other_weights_says_so(prepared, monkeypatch):
    monkeypatch.setitem(LICENCES, prepared.source["source"], Licence(["other"], "PSF License"))
    config = dataclasses.replace(config_of("mha"), vocab_size=prepared.vocab_size)
    stock = to_stock(config, GPT(config).state_dict())
    agreement = Agreement(4, 192, 64, 1e-6, 1e-4, 512, 2)

    def card(**recorded):
        origin = Origin("run", True, SUMMARY, recorded)
        return model_card(stock, config, prepared, origin, "float32", agreement)

    scratch, further = card(init_from=None), card(init_from="/home/ann/models/tiny-llama")
    assert yaml.safe_load(scratch.split("---")[1])["license_name"] == "psf-license"
    assert yaml.safe_load(further.split("---")[1])["license"] == "unknown"
    assert "PSF" not in further
    assert "attention, trained by kvlab, as" in scratch
    assert "trained further by kvlab from the weights in `tiny-llama`, as" in further
    assert "ann" not in further.replace("cannot", "")
    assert "- tokens trained: `96`" in scratch
    assert "- tokens trained (after that start): `96`" in further


CARDS = {
    "mla_nope": [
        "that formula: `96 in float32",  # 2 layers x 12 x 4 bytes
        "own cache: `5,376 for 48 tokens in float32, for which kvlab's formula says 4,608`",
        *("caches 2 elements more", "the training had not finished", "Not measured"),
    ],
    # 2 layers x 2 heads x 8 x 4 bytes, and twice as much.
    "gqa_tied": ["that formula: `128 in", "own cache: `12,288 for", "says 6,144`", "is a copy of"],
    # 2 layers x 12 x 4 bytes, and twice as much.
    "shared_kv": ["that formula: `96 in", "`9,216 for", "says 4,608`"],
    "gqa_sinks": [
        *("arrangement of the layers: `window_full`", "sinks: `one per head of the layers"),
        "windows: `the newest 5 tokens, the query's own included; layers 1, 3 (from 0) see all",
        *("positions in layers 0, 2 (from 0): `RoPE", "positions in layers 1, 3 (from 0): `none`"),
        # 2 layers of 48 tokens, and 2 of 5
        "48 tokens by kvlab's formula: `13,568 in float32",
        "bytes per token by that formula: `512 up to 5 tokens, then 256 in float32`",
        *("own cache: `13,568 for 48 tokens", "where the model has none they are -10000"),
    ],
}


@pytest.mark.parametrize("name", CARDS)
def test_the_card_says_what_is_special(name, write_run, export):
    model = write_run(config_of(name), finished=name != "mla_nope")
    out = export()
    card = (out / "README.md").read_text()
    for fact in CARDS[name]:
        assert fact in card, fact
    if name == "shared_kv":
        stored = sum(tensor.numel() for tensor in read_stock(out).weights.values())
        dead = stored - sum(parameter.numel() for parameter in model.parameters())
        assert f"{dead:,} of the stored" in card


def test_a_model_that_no_class_expresses_leaves_nothing(write_run, export, tmp_path):
    write_run(gpt_config(GQA | {"v_head_dim": 6}))
    with pytest.raises(InteropError, match=r"v_head_dim=6: .*train with"):
        export(out=str(tmp_path / "new" / "out"))
    assert left_in(tmp_path) == ["runs"]


def test_the_card_shows_python_that_runs(write_run, export, capsys):
    write_run(config_of("mla"))
    out = export()
    code = re.search(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)[1]
    exec(code.replace("path/to/this/folder", str(out)), {})  # noqa: S102 the code of the card
    assert "def " in capsys.readouterr().out


def test_licences_are_those_of_the_documentation():
    table = (ROOT / "docs" / "data.md").read_text()
    for name, licence in LICENCES.items():
        row = next(line for line in table.splitlines() if f"`{name}`" in line)
        assert licence.words in row


def test_a_folder_of_transformers_is_written_again_and_converted(
    write_run, export, prepared, tmp_path
):
    model = write_run(config_of("mha"))
    first = export()
    other = {"run": None, "hf": str(first), "data_folder": str(prepared.folder)}
    again = export(**other, out=str(tmp_path / "again"))
    one, two = read_stock(first), read_stock(again)
    assert one.config == two.config
    assert all(torch.equal(one.weights[name], two.weights[name]) for name in one.weights)
    assert "from a folder of transformers" in (again / "README.md").read_text()
    fewer = export(**other, out=str(tmp_path / "fewer"), convert="gqa", num_key_value_heads=2)
    assert read_stock(fewer).config["num_key_value_heads"] == 2
    latent = export(
        out=str(tmp_path / "latent"), convert="mla", kv_lora_rank=16, calibration_tokens=96
    )
    assert read_stock(latent).config["kv_lora_rank"] == 16
    # Two windows of 48 tokens from all over the training split.
    stream = prepared.stream("train")
    second = len(stream) // 48 // 2 * 48
    windows = [torch.from_numpy(stream.window(start, 48)) for start in (0, second)]
    asked = Conversion("mla", kv_lora_rank=16)
    expected = convert(model.config, model.state_dict(), asked, torch.stack(windows))
    written = read_stock(latent).weights
    assert torch.equal(written.pop("lm_head.weight"), written["model.embed_tokens.weight"])
    assert all(torch.equal(to_stock(*expected).weights[name], written[name]) for name in written)
    card = (latent / "README.md").read_text()
    assert "`converted to mla` after the training" in card
    assert "298.9" not in card


def test_a_folder_is_not_written_with_data_that_it_does_not_know(
    write_run, export, corpus_folder, tmp_path
):
    write_run(config_of("mha"))
    data = DataSettings(
        "tiny", "local", path=str(corpus_folder), prepared_dir=str(tmp_path / "prepared")
    )
    other = prepare(data, TokenizerSettings(name="bytes", kind="bytes"), lambda _: None)
    given = {"run": None, "hf": str(export()), "data_folder": str(other.folder)}
    with pytest.raises(InteropError, match=r"are not those of the model in .*name data in"):
        export(**given, out=str(tmp_path / "again"))
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "one of run=NAME and hf=FOLDER"),
        ({"run": "a", "hf": "b", "data_folder": "c"}, "one of run=NAME and hf=FOLDER"),
        ({"hf": "b"}, "data_folder, a prepared folder"),
        ({"run": "a", "data_folder": "c"}, "data_folder, a prepared folder"),
        ({"run": "a", "dtype": "int8"}, r"dtype \('int8'\) must be float32, bfloat16 or f"),
        ({"run": "a", "convert": "mha"}, "convert .'mha'. must be null, gqa, mqa or mla"),
        ({"run": "a", "kv_lora_rank": 4}, "kv_lora_rank .4. goes with convert=mla"),
        ({"run": "a", "convert": "mla", "num_key_value_heads": 2}, "goes with convert=gqa"),
        ({"run": "a", "convert": "mqa", "calibration_tokens": 9}, "calibration_tokens .9. goes"),
        ({"run": "a", "convert": "mla", "kv_lora_rank": 0}, "kv_lora_rank .0. must be at least 1"),
        ({"run": "a", "study": "../b"}, "study"),
    ],
)
def test_impossible_keys_are_refused(keys, message):
    problems = schemas.ExportConfig(runs_dir="runs", out="out", **keys).problems()
    assert len(problems) == 1
    assert re.search(message, problems[0])


def test_the_command_needs_no_network_and_complains_of_nothing(write_run, tmp_path):
    write_run(config_of("mqa"))

    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    done = subprocess.run(
        [
            sys.executable,
            ROOT / "export_model.py",
            f"runs_dir={tmp_path}/runs",
            "run=run",
            "out=out",
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "writing the folder and comparing it with transformers' model\n"
    assert "written to" in done.stdout
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "llama"
    assert left_in(tmp_path) == ["out", "runs"]
