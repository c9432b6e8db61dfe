"""A Hub dataset from its files to token shards, broken off and continued."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hub_child import parquet
from hub_stand_in import COMMITS, Fault, stand_in
from texts import sentences

from data.prepared import PreparedData

ROOT = Path(__file__).parents[2]
NAME = "t/stories"

pytestmark = pytest.mark.slow

PREPARE = """
import json, sys
from data.preparing import packing
from data.errors import DataError
from data.pipeline import prepare
from settings.data import DataSettings, TokenizerSettings

packing._BATCH_CHARACTERS = 500
try:
    settings = DataSettings(**json.loads(sys.argv[1]))
    print(prepare(settings, TokenizerSettings(name="bytes", kind="bytes"), print).folder)
except DataError as error:
    print("refused:", error)
"""


def prepare(endpoint, home, **changes):
    data = {
        "name": "stories",
        "source": "hub",
        "path": NAME,
        "streaming": True,
        "shard_tokens": 2000,
        "num_workers": 1,
        "prepared_dir": str(home / "prepared"),
        **changes,
    }
    done = subprocess.run(
        [sys.executable, "-c", PREPARE, json.dumps(data)],
        cwd=ROOT,
        env=os.environ
        | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def test_a_streamed_preparation_resumes_after_the_files_it_has_finished(tmp_path):
    texts = sentences(600)
    files = {
        f"data/train-{i:05d}-of-00003.parquet": parquet(texts[200 * i : 200 * (i + 1)])
        for i in range(3)
    }
    files["data/validation-00000-of-00001.parquet"] = parquet(sentences(20, start=600))
    broken = [Fault("GET .*train-00002", 404)]
    with stand_in({NAME: files}, faults=broken) as hub:
        lines = prepare(hub.endpoint, tmp_path)
        assert lines[-1].startswith(f"refused: {NAME}: reading split train file 3 of 3 failed")
        assert any("the same command resumes it" in line for line in lines)
        broken.clear()
        hub.faults.clear()
        before = len(hub.requests)
        lines = prepare(hub.endpoint, tmp_path)
        assert lines[0].startswith("resuming the preparation of")
        asked = [request for request in hub.requests[before:] if request.startswith("GET")]
        assert any("train-00002" in request for request in asked)
        # For the names of its columns, which datasets takes from the first file.
        assert sum("train-00000" in request for request in asked) <= 1
        whole = prepare(hub.endpoint, tmp_path, streaming=False, num_workers=2)
    resumed, downloaded = PreparedData(Path(lines[-1])), PreparedData(Path(whole[-1]))
    assert resumed.fingerprint == downloaded.fingerprint
    stream = resumed.stream("train")
    documents = resumed.tokenizer().decode(
        stream.window(0, len(stream)).tolist(), skip_special_tokens=False
    )
    assert documents.split("<|endoftext|>")[:-1] == texts
    assert resumed.revision == COMMITS["main"]
    assert np.load(resumed.folder / "train-00000.npy").dtype == np.uint16
