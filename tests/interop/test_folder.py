"""Reading a folder of transformers: what is in it, and what is refused."""

import json

import pytest
import torch
from safetensors.torch import save_file

from data.tokenizing.pretrained import build_tokenizer
from data.tokenizing.tokenizer import save_tokenizer
from interop.errors import InteropError
from interop.importing.folder import read_stock, tokenizer_sha256
from interop.importing.initial_model import sha256_of_model
from settings.data import TokenizerSettings

CONFIG = {"model_type": "llama", "hidden_size": 8}
WEIGHTS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text(json.dumps(CONFIG))
    save_file(WEIGHTS, made / "model.safetensors")
    return made


def sharded(folder, weight_map=None):
    (folder / "model.safetensors").unlink()
    for number, name in enumerate(WEIGHTS, start=1):
        save_file({name: WEIGHTS[name]}, folder / f"model-{number}.safetensors")
    weight_map = weight_map or {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))


def assert_read(folder):
    stock = read_stock(folder)
    assert stock.config == CONFIG
    assert stock.weights.keys() == WEIGHTS.keys()
    for name, tensor in WEIGHTS.items():
        assert stock.weights[name].dtype == tensor.dtype
        assert torch.equal(stock.weights[name], tensor)


def test_one_file_or_several_are_read(folder):
    assert_read(folder)
    sharded(folder)
    assert_read(folder)


def test_links_are_followed_as_in_the_cache_of_the_hub(folder, tmp_path):
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in folder.iterdir():
        (snapshot / path.name).symlink_to(path)
    assert_read(snapshot)
    assert sha256_of_model(snapshot) == sha256_of_model(folder)


def without_config(folder):
    (folder / "config.json").unlink()


def broken_config(folder):
    (folder / "config.json").write_text("{")


def list_as_config(folder):
    (folder / "config.json").write_text("[]")


def pickled(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def cut_off(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def pointer(folder, name="model.safetensors"):
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    (folder / name).write_text(text)


def config_as_pointer(folder):
    pointer(folder, "config.json")


def empty(folder):
    (folder / "model.safetensors").write_bytes(b"")


def no_file(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()


def out_of_the_folder(folder):
    sharded(folder, {"a": "../model-1.safetensors"})


def other_kind(folder):
    sharded(folder, {"a": "pytorch_model.bin"})


def no_map(folder):
    sharded(folder)
    (folder / "model.safetensors.index.json").write_text("{}")


def empty_map(folder):
    sharded(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}')


def number_in_map(folder):
    sharded(folder, {"a": 3})


def unprintable(folder):
    sharded(folder, {"a": "\ud800.safetensors"})


def loop(folder):
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("config.json")


def missing_shard(folder):
    sharded(folder)
    (folder / "model-2.safetensors").unlink()


def twice(folder):
    sharded(folder)
    save_file(WEIGHTS, folder / "model-2.safetensors")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_config, "cannot read .*config.json: No such file"),
        (broken_config, "config.json is not valid JSON"),
        (list_as_config, r"config.json is damaged: expected object, got array at \$"),
        (pickled, "no model.safetensors.*pickled .* are not read"),
        (cut_off, "model.safetensors is not a safetensors file, or is cut off"),
        (pointer, "model.safetensors is a Git LFS pointer.*git lfs pull"),
        (config_as_pointer, "config.json is a Git LFS pointer.*git lfs pull"),
        (empty, "model.safetensors is not a safetensors file, or is cut off"),
        (no_file, "cannot read .*model.safetensors: it is not a regular file"),
        (out_of_the_folder, "'../model-1.safetensors' is no safetensors file in that folder"),
        (other_kind, "'pytorch_model.bin' is no safetensors file in that folder"),
        (no_map, "index.json is damaged: .*weight_map"),
        (empty_map, r"index.json is damaged: .*\$.weight_map"),
        (number_in_map, r"index.json is damaged: expected str, got int at \$.weight_map.a"),
        (unprintable, r"'\\ud800.safetensors' is no safetensors file in that folder"),
        (loop, "cannot read .*config.json: it is a symbolic link"),
        (missing_shard, "cannot read .*model-2.safetensors: No such file"),
        (twice, "model-2.safetensors holds a once more"),
    ],
)
def test_what_is_damaged_or_missing_is_named_in_one_line(folder, spoil, message):
    spoil(folder)
    with pytest.raises(InteropError, match=message) as caught:
        read_stock(folder)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InteropError, match=r"there is no folder .*nowhere"):
        read_stock(tmp_path / "nowhere")


@pytest.mark.slow  # imports transformers
def test_the_hash_of_a_tokenizer_is_that_of_the_data_it_made(prepared, tmp_path):
    assert tokenizer_sha256(prepared.folder / "tokenizer", "hf") == prepared.tokenizer_sha256
    other = build_tokenizer(TokenizerSettings(name="bytes", kind="bytes"), [])
    save_tokenizer(other.tokenizer, other.end_of_document, tmp_path)
    assert tokenizer_sha256(tmp_path, "hf") != prepared.tokenizer_sha256
