"""Hub datasets against a server on this machine, in processes of their own.

HF_ENDPOINT is read when huggingface_hub is imported.
"""

import socket
import time

import pytest
from hub_child import NAME, parquet, read
from hub_stand_in import COMMITS, Fault, stand_in
from texts import sentences

pytestmark = pytest.mark.slow


@pytest.fixture
def files():
    card = """---
configs:
- config_name: small
  data_files:
  - split: train
    path: small-train-*
  - split: validation
    path: small-validation-*
- config_name: bare
  data_files:
  - split: train
    path: small-train-*
---
"""
    return {
        "README.md": card.encode(),
        "small-train-00000-of-00001.parquet": parquet(sentences(60)),
        "small-validation-00000-of-00001.parquet": parquet(sentences(10, start=60)),
    }


def test_dataset_is_read_whole_streamed_pinned_and_bad_names_are_explained(tmp_path, files):
    small = {"config_name": "small"}
    gated = Fault("kvlab-tests/gated", "gated")
    with stand_in({NAME: files}, faults=[gated]) as hub:
        whole, pinned, streamed, carved, *errors = read(
            hub.endpoint,
            tmp_path,
            small,
            {**small, "revision": "old"},
            {**small, "streaming": True},
            {"config_name": "bare", "validation_fraction": 0.25},
            {**small, "path": "kvlab-tests/nothing"},
            {**small, "path": "kvlab-tests/gated"},
            {**small, "revision": "nobranch"},
            {"config_name": "nope"},
            {**small, "train_split": "learn"},
            {**small, "validation_split": "dev"},
            {**small, "text_column": "body"},
        )
    expected = {"train": sentences(60), "validation": sentences(10, start=60)}
    assert whole["documents"] == streamed["documents"] == pinned["documents"] == expected
    assert whole["description"]["commit"] == COMMITS["main"]
    assert pinned["description"]["commit"] == COMMITS["old"]
    assert pinned["description"]["revision"] == "old"
    both = carved["documents"]["train"] + carved["documents"]["validation"]
    assert sorted(both) == sorted(sentences(60))
    assert carved["documents"]["validation"]
    for error, parts in zip(
        errors,
        (
            ("data.path ('kvlab-tests/nothing')", "no such repository"),
            ("data.path ('kvlab-tests/gated')", "gated"),
            ("data.revision ('nobranch')",),
            ("data.config_name ('nope')", "small", "bare"),
            ("data.train_split ('learn')", "train, validation"),
            ("data.validation_split ('dev')", "train, validation"),
            ("no column 'body'", "its columns are text: set data.text_column"),
        ),
        strict=True,
    ):
        for part in parts:
            assert part in error["error"]
        assert "\n" not in error["error"]

    # Offline, the copy in the cache serves; what is not in it is refused at once.
    cached, missing = read(
        "http://127.0.0.1:9", tmp_path, small, {"path": "a/b"}, HF_HUB_OFFLINE="1"
    )
    assert cached["documents"] == expected
    assert "in the local cache (HF_HUB_OFFLINE=1)" in missing["error"]


def assert_refused_in_time(endpoint, tmp_path):
    start = time.monotonic()
    (result,) = read(endpoint, tmp_path, {})
    assert time.monotonic() - start < 15
    assert f"dataset '{NAME}': cannot reach the Hub at {endpoint}" in result["error"]
    assert "data=local data.path=" in result["error"]
    assert "\n" not in result["error"]


def test_refused_connection_is_reported_in_seconds(tmp_path):
    assert_refused_in_time("http://127.0.0.1:9", tmp_path)


def test_unknown_host_is_reported_in_seconds(tmp_path):
    assert_refused_in_time("http://no-such-host.invalid", tmp_path)


def test_silent_connection_is_reported_in_seconds(tmp_path):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(16)
        assert_refused_in_time(f"http://127.0.0.1:{server.getsockname()[1]}", tmp_path)
