"""Tokenizers from a stand-in for the Hub, or from a folder that brings code."""

import json

import pytest
from hub_child import read
from hub_stand_in import COMMITS, Fault, stand_in

from data.tokenizing.tokenizer import (
    END_OF_TEXT,
    TOKENIZER_FILES,
    bytes_tokenizer,
    save_tokenizer,
)

pytestmark = pytest.mark.slow

NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def files(tmp_path):
    save_tokenizer(bytes_tokenizer(), END_OF_TEXT, tmp_path / "made")
    return {name: (tmp_path / "made" / name).read_bytes() for name in TOKENIZER_FILES}


def load(endpoint, tmp_path, *names, **options):
    steps = [{"tokenizer": name} for name in names]
    return read(endpoint, tmp_path / "home", *steps, **options)


def test_hub_tokenizers_are_pinned_and_failures_are_explained(tmp_path, files):
    names = ("plain", "busy", "dropped", "private", "gated", "nothing", "silent")
    faults = [
        Fault("/api/models/t/busy$", 503, times=2),
        Fault("/t/busy/resolve/.*tokenizer.json", 503, times=2),
        Fault("GET /t/dropped/resolve/.*tokenizer.json", "drop", times=1),
        Fault("/t/private", "private"),
        Fault("/t/gated/resolve", "gated"),
        Fault("GET /t/silent/resolve/.*tokenizer.json", "stall"),
    ]
    models = {f"t/{name}": dict(files) for name in names if name != "nothing"}
    setup = "import data.hub.watch\ndata.hub.watch.SILENCE_S = 4.0\n"
    with stand_in(models=models, faults=faults) as hub:
        results = load(hub.endpoint, tmp_path, *(f"t/{name}" for name in names), setup=setup)
    expected = bytes_tokenizer().encode("Ab").ids
    for result in results[:3]:
        assert result.get("ids") == expected, result
        assert result["end"] == END_OF_TEXT
        assert result["commit"] == COMMITS["main"]
    causes = ("or it is private", "gated", "or it is private", "nothing came from the Hub at")
    for name, result, cause in zip(names[3:], results[3:], causes, strict=True):
        assert f"'t/{name}'" in result["error"]
        assert cause in result["error"]
        assert result["seconds"] < 10
    assert hub.count(f"GET /t/plain/resolve/{COMMITS['main']}/tokenizer.json")
    assert not hub.count("/t/plain/resolve/main/(?!README)")

    warm, cold = load(NOWHERE, tmp_path, "t/plain", "t/cold", HF_HUB_OFFLINE="1")
    assert warm.get("ids") == expected, warm
    assert warm["commit"] == COMMITS["main"]
    assert (
        "tokenizer.path ('t/cold'): cannot load a tokenizer from the local cache" in cold["error"]
    )
    assert cold["seconds"] < 10


@pytest.mark.parametrize("place", ["folder", "hub"])
def test_code_next_to_a_tokenizer_is_not_run(tmp_path, files, place):
    mark = tmp_path / "MARK"
    config = json.loads(files["tokenizer_config.json"])
    config["auto_map"] = {"AutoTokenizer": ["own.Own", "own.Own"]}
    config["tokenizer_class"] = "Own"
    files |= {
        "tokenizer_config.json": json.dumps(config).encode(),
        "own.py": f"open({str(mark)!r}, 'w').close()\nclass Own: pass\n".encode(),
    }
    if place == "hub":
        with stand_in(models={"t/own": files}) as hub:
            (result,) = load(hub.endpoint, tmp_path, "t/own")
    else:
        for name, content in files.items():
            (tmp_path / "made" / name).write_bytes(content)
        (result,) = load(NOWHERE, tmp_path, str(tmp_path / "made"))
    assert not mark.exists()
    assert "code of its own, which is never run" in result["error"]
