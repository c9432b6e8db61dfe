"""A training that begins with a folder of transformers."""

import dataclasses
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from exportable import GQA, NO_ROPE_THERE, gpt_config, layers, random_gpt
from safetensors.torch import load_file, save_file

from commands.initial_model import require_its_tokenizer, with_initial_model
from data.errors import DataError
from data.prepared import PreparedData
from data.tokenizing.pretrained import build_tokenizer
from data.tokenizing.tokenizer import save_tokenizer
from interop.errors import InteropError
from interop.importing.initial_model import (
    initial_model,
    recorded_model,
    require_same_tokenizer,
    sha256_of_model,
)
from interop.stock import to_stock
from launch.compose import composed
from launch.errors import ConfigError
from launch.recorded import as_yaml
from launch.schemas import TrainConfig
from measuring.perplexity import score
from modeling.arrangement import layer_configs
from modeling.config import GPTConfig
from modeling.gpt import GPT
from settings.data import TokenizerSettings
from tracking.configuration import read_configuration
from tracking.metrics import read_metrics

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def llama(prepared, tmp_path_factory):
    """A folder as transformers saves it, with the tokenizer of the tiny corpus."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=prepared.vocab_size,
        hidden_size=32,
        intermediate_size=44,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        tie_word_embeddings=False,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(prepared.folder / "tokenizer" / name, folder)
    return folder


ASKED = GPTConfig(max_position_embeddings=48, attention={"name": "mha", "attention_dropout": 0.1})


def test_the_folder_decides_the_model_and_the_training_its_context(llama):
    start = initial_model(llama, dataclasses.replace(ASKED, intra_document_mask=True))
    config = start.config
    assert (config.name, config.max_position_embeddings) == ("tiny-llama", 48)
    assert (config.attention["name"], config.attention["num_key_value_heads"]) == ("gqa", 2)
    assert (config.attention["rope_theta"], config.intermediate_size) == (500.0, 44)
    assert config.attention["attention_dropout"] == 0.1
    assert config.intra_document_mask
    assert not config.tie_word_embeddings


def test_its_logits_are_those_of_transformers(llama):
    start = initial_model(llama, ASKED)
    model = GPT(start.config).eval()
    model.load_state_dict(start.weights)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(llama).eval()
    tokens = torch.arange(3 * 20).view(3, 20) * 7 % 300
    with torch.no_grad():
        expected = theirs.double()(tokens).logits
        torch.testing.assert_close(model.double()(tokens), expected, rtol=0, atol=1e-5)


def test_the_folder_decides_how_its_layers_differ(tmp_path):
    pattern = {"pattern": ["own", "no_rope"], "attentions": NO_ROPE_THERE}
    asked = gpt_config(GQA, **layers("window", window=5, **pattern))
    stock = to_stock(asked, random_gpt(asked, torch.float32).state_dict())
    (tmp_path / "config.json").write_text(json.dumps(stock.config))
    save_file(stock.weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    given = TrainConfig(run_name="a", runs_dir=str(tmp_path), init_from=str(tmp_path), model=ASKED)
    config, weights = with_initial_model(tmp_path, given)
    assert config.layers == config.model.layers
    assert (config.layers.window, config.layers.pattern) == (5, ["own", "no_rope"])
    assert config.problems() == []
    attentions = layer_configs(config.model)
    assert [each.qk_rope_head_dim for each in attentions] == [8, 0, 8, 0]
    assert {each.attention_dropout for each in attentions} == {0.1}
    GPT(config.model).load_state_dict(weights())
    # A run that has begun finds the same in what it recorded.
    (tmp_path / "config.yaml").write_text(as_yaml(config))
    assert recorded_model(read_configuration(tmp_path / "config.yaml")) == config.model


def test_learned_positions_are_as_many_as_there_are(tmp_path):
    config = transformers.GPT2Config(
        vocab_size=50, n_positions=16, n_embd=16, n_layer=1, n_head=2, activation_function="gelu"
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    assert initial_model(tmp_path, dataclasses.replace(ASKED, max_position_embeddings=16))
    with pytest.raises(InteropError, match=r"set model\.max_position_embeddings=16, not 48"):
        initial_model(tmp_path, ASKED)


def test_data_of_another_tokenizer_is_refused(llama, prepared, tmp_path):
    model = initial_model(llama, ASKED).config
    require_same_tokenizer(llama, model, prepared, "init_from", "set something")
    other = tmp_path / "other"
    shutil.copytree(llama, other)
    built = build_tokenizer(TokenizerSettings(name="bytes", kind="bytes"), [])
    save_tokenizer(built.tokenizer, built.end_of_document, other)
    with pytest.raises(InteropError, match=r"are not those of the model in .*; set something"):
        require_same_tokenizer(other, model, prepared, "init_from", "set something")
    fewer = dataclasses.replace(model, vocab_size=299)
    with pytest.raises(InteropError, match=r"tokenizer has 300 tokens, and its model only 299"):
        require_same_tokenizer(llama, fewer, prepared, "init_from", "set something")
    (other / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"^init_from \('.*/other'\): "):
        require_same_tokenizer(other, model, prepared, "init_from", "set something")


@pytest.fixture
def train(tiny_data, tmp_path):
    def run(*settings):
        command = [sys.executable, str(ROOT / "train_model.py"), *tiny_data, "debug=smoke"]
        command += ["tracking=none", f"runs_dir={tmp_path}/runs", *settings]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)

    return run


@pytest.mark.slow
def test_a_training_starts_from_the_folder(train, llama, tmp_path):
    folder = tmp_path / "models" / "tiny-llama"
    shutil.copytree(llama, folder)
    hardly = ("init_from=models/tiny-llama", "optim.learning_rate=1e-9", "optim.name=adamw")
    done = train(*hardly)
    assert done.returncode == 0, done.stderr
    assert (
        "begins with the weights in models/tiny-llama, which decides the model: gqa, 2 layers"
        in (done.stdout)
    )
    run = tmp_path / "runs" / "tiny-llama-tiny-seed0"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["attention"] == "gqa"
    # Nothing was learned at this rate: what is validated is what the folder holds.
    model = GPT(dataclasses.replace(initial_model(llama, ASKED).config, max_position_embeddings=64))
    model.load_state_dict(initial_model(llama, ASKED).weights)
    state = json.loads(next(run.glob("checkpoints/*/state.json")).read_text())
    expected = score(
        model.eval(), PreparedData(Path(state["data"]["folder"])).stream("validation"), 64, 64
    )
    assert summary["validation_nll"] == pytest.approx(expected.nll, rel=1e-4)

    # What is no checkpoint leaves the folder what it begins with.
    for checkpoint in (run / "checkpoints").iterdir():
        checkpoint.rename(checkpoint.with_name(f"{checkpoint.name}.damaged"))
    (run / "summary.json").unlink()
    trained = train(*hardly)
    assert trained.returncode == 0, trained.stderr
    assert "begins with the weights in models/tiny-llama" in trained.stdout
    again = json.loads((run / "summary.json").read_text())
    assert again["validation_nll"] == summary["validation_nll"]

    # In another place it is the same model; changed it is not; without it the run stays finished.
    hardly = (f"init_from={folder}", *hardly[1:])
    again = train(*hardly)
    assert again.returncode == 0, again.stderr
    assert "is finished" in again.stdout
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] *= 2
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    changed = train(*hardly)
    assert changed.returncode == 2
    assert "exists with another configuration (init_sha256: " in changed.stderr
    shutil.rmtree(folder)
    gone = train(*hardly)
    assert gone.returncode == 0, gone.stderr
    assert "is finished" in gone.stdout
    # A resumed one has its weights from its checkpoint.
    (run / "summary.json").unlink()
    resumed = train(*hardly)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming tiny-llama-tiny-seed0 after step 8" in resumed.stdout
    assert "begins with" not in resumed.stdout
    assert json.loads((run / "summary.json").read_text())["finished"]


@pytest.mark.slow
def test_every_rate_of_fair_lr_begins_with_the_folder(train, llama, tmp_path):
    done = train(f"init_from={llama}", "fair_lr=true", "trainer.log_every_steps=1")
    assert done.returncode == 0, done.stderr
    runs = [*(tmp_path / "runs" / "lr_grid").iterdir(), tmp_path / "runs" / "tiny-llama-tiny-seed0"]
    assert len(runs) == 4
    first = [read_metrics(run / "metrics.jsonl")[0]["train/loss"] for run in runs]
    assert len(set(first)) == 1
    recorded = [read_configuration(run / "config.yaml") for run in runs]
    assert {config["init_sha256"] for config in recorded} == {sha256_of_model(llama)}
    assert len({config["optim.learning_rate"] for config in recorded}) >= 3
    # Not the first loss of random weights, which is that of guessing.
    assert abs(first[0] - math.log(300)) > 0.5


def test_widths_are_not_changed_of_a_model_that_is_there():
    config = TrainConfig(run_name="a", runs_dir="b", init_from="c", match="cache")
    (problem,) = config.problems()
    assert "match=cache changes widths, which init_from decides" in problem


def begun_with(llama, tmp_path, **changes):
    config = TrainConfig(run_name="a", runs_dir=str(tmp_path), init_from=str(llama), model=ASKED)
    return with_initial_model(llama, dataclasses.replace(config, **changes))


def test_another_model_than_the_recorded_one_is_refused(llama, tmp_path):
    config, _ = begun_with(llama, tmp_path)
    assert config.init_sha256 == sha256_of_model(llama)
    assert begun_with(llama, tmp_path, init_sha256=config.init_sha256)[0] == config
    with pytest.raises(ConfigError, match=r"holds another model than init_sha256 \(0+\) says"):
        begun_with(llama, tmp_path, init_sha256="0" * 64)


def test_weights_that_change_before_they_are_read_are_refused(llama, tmp_path):
    folder = tmp_path / "models" / "tiny-llama"
    shutil.copytree(llama, folder)
    _, weights = begun_with(folder, tmp_path)
    assert weights().keys() == initial_model(llama, ASKED).weights.keys()
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    with pytest.raises(ConfigError, match="has changed since this command began"):
        weights()


def test_a_missing_folder_or_data_that_it_does_not_know_is_not_trained_on(
    llama, tmp_path, prepared
):
    with pytest.raises(InteropError, match=r"^there is no folder nowhere$"):
        begun_with(Path("nowhere"), tmp_path)
    other = tmp_path / "other"
    shutil.copytree(llama, other)
    built = build_tokenizer(TokenizerSettings(name="bytes", kind="bytes"), [])
    save_tokenizer(built.tokenizer, built.end_of_document, other)
    way_out = rf"not those of the model in .*; set tokenizer=pretrained tokenizer.path={other}"
    with pytest.raises(InteropError, match=way_out):
        require_its_tokenizer(str(other), ASKED, prepared)


@pytest.mark.parametrize(
    ("folder", "name"),
    [("exports/mla", "mla"), ("a b (c)", "a-b-c"), (".hidden", "hidden"), ("/", "mha-nano")],
)
def test_a_run_is_called_after_the_folder(folder, name):
    config = composed("train", [f"init_from='{folder}'", "data=local"])
    assert config.run_name == f"{name}-local-seed0"
