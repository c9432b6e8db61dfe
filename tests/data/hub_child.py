"""Reads from a stand-in for the Hub in a process of its own.

HF_ENDPOINT is read when huggingface_hub is imported.
"""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[2]
NAME = "kvlab-tests/stories"

READ = f"""
import json, sys, time
import data.hub.watch
from data.errors import DataError
from data.sources.hub_dataset import open_hub
from settings.data import DataSettings
from data.tokenizing.pretrained import load_pretrained

def corpus(changes, commit=None):
    values = {{"name": "x", "source": "hub", "path": "{NAME}", **changes}}
    found = open_hub(DataSettings(**values), commit)
    texts, parts = {{split: [] for split in found.splits}}, []
    for part in found.parts:
        documents = list(part.read())
        for document in documents:
            texts[found.split_of(part, document)].append(document.text)
        parts.append([part.split, len(documents)])
    return {{"documents": texts, "parts": parts, "description": found.description}}

def tokenizer(path):
    found, end, commit = load_pretrained(path)
    return {{"ids": found.encode("Ab").ids, "end": end, "commit": commit}}

for step in json.loads(sys.argv[1]):
    start = time.monotonic()
    try:
        if "tokenizer" in step:
            result = tokenizer(step["tokenizer"])
        else:
            result = corpus(step, step.pop("commit", None))
    except DataError as error:
        result = {{"error": str(error)}}
    print(json.dumps(result | {{"seconds": time.monotonic() - start}}), flush=True)
"""


def read(endpoint, home, *steps, setup="", **environment):
    """Run each step: changes of the data settings, or {"tokenizer": path}; "commit" is apart.

    Args:
        setup: Python source that runs first.
    """
    # The suite may run with HF_HUB_OFFLINE=1; here the Hub is this machine.
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", setup + READ, json.dumps(steps)],
        cwd=ROOT,
        env=os.environ | settings | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert all("\n" not in result.get("error", "") for result in results)
    return results


def parquet(texts):
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), buffer)
    return buffer.getvalue()
