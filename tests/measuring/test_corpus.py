"""A run's data are found by what they hold, wherever run and data lie now."""

import shlex
import shutil

import pytest
import torch
from omegaconf import OmegaConf

import measuring.corpus
from data.pipeline import prepared_folder
from launch import compose, schemas
from launch.recorded import as_yaml
from launch.typed import for_hydra
from measuring.corpus import prepare_command
from measuring.errors import EvaluationError
from measuring.runs import load_run
from tests.measuring.runs import quiet, write_run
from tracking.configuration import flat
from tracking.run_folder import RunFolder

CPU = torch.device("cpu")


@pytest.fixture
def trained(tmp_path, prepared, tiny_data):
    """A run in a checkout of its own, trained on data in it: the checkout, and its arguments."""
    checkout = tmp_path / "checkout"
    data = checkout / "data" / "prepared" / prepared.folder.name
    shutil.copytree(prepared.folder, data)
    arguments = [*tiny_data[:-1], "debug=smoke", f"runs_dir={checkout}/runs"]
    write_run(
        checkout / "runs",
        prepared,
        data={
            "folder": str(data),
            "fingerprint": prepared.fingerprint,
            "tokenizer_sha256": prepared.tokenizer_sha256,
        },
    )
    config = compose.checked(compose.composed("train", arguments), schemas.TrainConfig)
    text = as_yaml(config).replace("micro_batch_size: 4", "micro_batch_size: 2")
    RunFolder(checkout / "runs", "run").write_config(text)
    return checkout


def opened(runs):
    return load_run(RunFolder(runs, "run"), CPU, quiet).prepared.folder


def test_data_that_moved_are_found_by_what_they_hold(trained, tmp_path, prepared):
    data = trained / "data" / "prepared"
    assert opened(trained / "runs") == data / prepared.folder.name
    # As after they were prepared again from texts in another place.
    (data / prepared.folder.name).rename(data / "tiny-bpe-000000000000")
    (data / "a.partial").mkdir()
    (data / "broken").mkdir()
    (data / "broken" / "manifest.json").write_text("{")
    assert opened(trained / "runs").name == "tiny-bpe-000000000000"
    moved = tmp_path / "elsewhere" / "deep"
    moved.parent.mkdir()
    trained.rename(moved)
    assert opened(moved / "runs") == moved / "data" / "prepared" / "tiny-bpe-000000000000"
    (moved / "data" / "prepared").rename(moved / "texts")
    with pytest.raises(EvaluationError, match="which is not there; bring it back, or prepare it"):
        opened(moved / "runs")


def test_data_moved_with_their_runs_are_found_where_neither_has_its_usual_place(
    trained, tmp_path, prepared
):
    moved = tmp_path / "disk"
    trained.rename(moved)
    (moved / "corpora").mkdir()
    (moved / "data" / "prepared").rename(moved / "corpora" / "x")
    run = RunFolder(moved / "runs", "run")
    data = {
        "folder": str(trained / "corpora" / "x" / prepared.folder.name),
        "fingerprint": prepared.fingerprint,
        "tokenizer_sha256": prepared.tokenizer_sha256,
    }
    new = write_run(moved / "runs", prepared, "other", data=data)
    shutil.copy(run.config_path, new.config_path)
    folder = load_run(new, CPU, quiet).prepared.folder
    assert folder == moved / "corpora" / "x" / prepared.folder.name


def test_data_of_this_repository_are_looked_at(trained, tmp_path, monkeypatch, prepared):
    shutil.rmtree(trained / "data")
    repository = tmp_path / "repository" / "data" / "prepared"
    shutil.copytree(prepared.folder, repository / "other-name")
    with pytest.raises(EvaluationError) as refused:
        opened(trained / "runs")
    command = shlex.split(str(refused.value).partition("prepare it again: ")[2])
    assert command[:3] == ["python", "prepare_data.py", "data=local"]
    config = compose.composed("prepare", for_hydra("prepare", command[2:]))
    asked = compose.checked(config, schemas.PrepareConfig)
    assert prepared_folder(asked.data, asked.tokenizer).name == prepared.folder.name
    monkeypatch.setattr(measuring.corpus, "_ROOT", tmp_path / "repository")
    assert opened(trained / "runs").name == "other-name"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["data=local", "data.path=my texts", "data.document_start=^ = [^=]"],
        ["data=mixture", "data.corpora.local.path=x", "data.weights.local=3"],
        ["data=hub", "data.path=a/b", "tokenizer=pretrained", "tokenizer.path=gpt2"],
        ["data=fineweb_edu", "tokenizer=bytes", "data.max_train_tokens=null"],
    ],
)
def test_the_command_that_is_named_prepares_the_same_data(arguments):
    def composed(name, some):
        config = compose.composed(name, for_hydra(name, some))
        return compose.checked(config, schemas.SCHEMAS[name])

    trained = composed("train", arguments)
    recorded = flat(OmegaConf.to_container(OmegaConf.structured(trained)))
    again = composed("prepare", shlex.split(prepare_command(recorded))[2:])
    assert (again.data, again.tokenizer) == (trained.data, trained.tokenizer)
