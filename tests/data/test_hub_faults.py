"""A Hub that refuses, fails for a while, breaks off or falls silent."""

import pytest
from hub_child import parquet, read
from hub_stand_in import COMMITS, Fault, stand_in
from texts import sentences

pytestmark = pytest.mark.slow

# What data/hub/watch.py has as 60 s, and what importing the libraries and the steps before may add.
SILENCE_S, SLACK_S = 3.0, 25.0
SETUP = f"""
import data.hub.watch
data.hub.watch.SILENCE_S = {SILENCE_S}
# Downloads are written, and resumed, by pieces of this size; the library has 10 MB.
import huggingface_hub.constants
huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 1024
"""

TRAIN, HELD_OUT = sentences(3000), sentences(20, start=3000)
EXPECTED = {"train": TRAIN, "validation": HELD_OUT}


def shards(train=TRAIN, held_out=HELD_OUT):
    third = len(train) // 3
    names = [f"data/train-{i:05d}-of-00003.parquet" for i in range(3)]
    pieces = [train[:third], train[third : 2 * third], train[2 * third :]]
    files = dict(zip(names, map(parquet, pieces), strict=True))
    return files | {"data/validation-00000-of-00001.parquet": parquet(held_out)}


def whole(name):
    return {"path": f"t/{name}"}


def streamed(name):
    return {"path": f"t/{name}", "streaming": True}


def steps_and_hub(tmp_path, *steps, files=None, setup=SETUP, faults=(), cdn=False, **environment):
    """Read the datasets of `steps`, which all have the same files but those of `files`."""
    datasets = {step["path"]: shards() for step in steps} | (files or {})
    with stand_in(datasets, faults=faults, cdn=cdn) as hub:
        return read(hub.endpoint, tmp_path, *steps, setup=setup, **environment), hub


def test_streamed_files_are_parts_in_order_and_a_redirect_is_followed(tmp_path):
    joined = streamed("joined") | {"document_start": "alpha"}
    steps = (whole("plain"), streamed("plain"), joined, streamed("plain") | {"commit": "b" * 40})
    results, hub = steps_and_hub(tmp_path, *steps, cdn=True)
    for result in (results[0], results[1], results[3]):
        assert result.get("documents") == EXPECTED, result
    assert results[0]["parts"] == [["train", 3000], ["validation", 20]]
    assert results[1]["parts"] == [["train", 1000]] * 3 + [["validation", 20]]
    # A document may continue in the next file.
    assert [split for split, _ in results[2]["parts"]] == ["train", "validation"]
    assert results[3]["description"]["commit"] == "b" * 40
    assert results[3]["description"]["revision"] is None
    assert hub.count("GET /cdn/datasets/t/plain/resolve/a{40}/data/train")


def test_a_hub_that_is_busy_for_a_while_is_asked_again(tmp_path):
    routes = ("/api/datasets/t/{}$", "/t/{}/(tree|paths-info)", "HEAD .*/t/{}/.*parquet")
    routes += ("GET .*/t/{}/.*train-00001",)
    faults = [
        Fault(route.format(name), 503, times=2)
        for route in routes
        for name in ("whole", "streamed")
        # Streaming asks for no metadata of files.
        if not (name == "streamed" and "HEAD" in route)
    ]
    steps = (whole("whole"), streamed("streamed"))
    results, hub = steps_and_hub(tmp_path, *steps, faults=faults)
    for result in results:
        assert result.get("documents") == EXPECTED, result
        assert result["description"]["commit"] == COMMITS["main"]
    assert not any(fault.times for fault in faults)
    assert hub.count(" 503 ") == 2 * len(faults)


def test_refusals_of_the_hub_name_the_cause_and_take_seconds(tmp_path):
    faults = [
        Fault("/private", "private"),
        Fault("/gated/resolve", "gated"),
        Fault("GET /api.*/busy", 503),
        Fault("/token/resolve", 401),
    ]
    broken = shards() | {"data/train-00001-of-00003.parquet": b"PAR1, and then not enough PAR1"}
    cases = (
        (whole("private"), "or it is private"),
        (whole("busy"), "HTTP 503"),
        (whole("gated"), "it is gated"),
        (streamed("gated"), "it is gated"),
        (whole("token"), "HTTP 401"),
        (streamed("token"), "HTTP 401"),
        (whole("broken"), "a data file is damaged"),
        (streamed("broken"), "a data file is damaged"),
    )
    steps = [dict(step) for step, _ in cases]
    results, _ = steps_and_hub(tmp_path, *steps, files={"t/broken": broken}, faults=faults)
    for result, (step, cause) in zip(results, cases, strict=True):
        assert cause in result["error"]
        assert step["path"] in result["error"]
        assert "data=local" in result["error"] or "take another revision" in result["error"]
        assert result["seconds"] < 10


def test_a_loading_script_is_never_run(tmp_path):
    mark = tmp_path / "MARK"
    script = f"open({str(mark)!r}, 'w').close()\n".encode()
    steps = (whole("scripted"), streamed("scripted"))
    files = {"t/scripted": shards() | {"scripted.py": script}}
    results, _ = steps_and_hub(tmp_path, *steps, files=files)
    for result in results:
        assert "scripted.py" in result["error"]
        assert "never run" in result["error"]
    assert not mark.exists()


def test_a_full_disk_is_named(tmp_path):
    setup = (
        SETUP
        + """
import errno, huggingface_hub.file_download
def full(*arguments, **options):
    raise OSError(errno.ENOSPC, "No space left on device")
huggingface_hub.file_download.http_get = full
"""
    )
    (result,), _ = steps_and_hub(tmp_path, whole("plain"), setup=setup)
    assert "the disk of the cache is full" in result["error"]
    assert str(tmp_path) in result["error"]


def test_a_dropped_download_is_resumed_and_one_that_always_drops_is_refused(tmp_path):
    file = "data/train-00001"
    faults = [
        Fault(f"GET .*/once/resolve/.*{file}", "drop", times=1),
        Fault(f"GET .*/twice/resolve/.*{file}", "drop", times=2),
        Fault(f"GET .*/always/resolve/.*{file}", "drop"),
    ]
    steps = (whole("once"), streamed("twice"), whole("always"))
    results, hub = steps_and_hub(tmp_path, *steps, faults=faults)
    assert results[0].get("documents") == results[1].get("documents") == EXPECTED, results
    assert hub.count(f"GET .*/once/resolve/.*{file}.* 206 bytes=[1-9]")
    assert "connection failed (RemoteProtocolError" in results[2]["error"]
    assert results[2]["seconds"] < 20


def test_a_slow_hub_is_waited_for(tmp_path):
    steps = (whole("slow"), streamed("slow"))
    setup = SETUP.replace(f"{SILENCE_S}", "1.0")
    faults = [Fault("GET .*/slow/resolve.*train-00001", "slow")]
    results, _ = steps_and_hub(tmp_path, *steps, faults=faults, setup=setup)
    for result in results:
        assert result.get("documents") == EXPECTED, result
        assert result["seconds"] > 2


def test_silence_is_given_up_in_a_bounded_time(tmp_path):
    file = "GET .*resolve.*train-00001"
    faults = [
        Fault(f"(?=.*/stalls/){file}", "stall"),
        Fault(f"(?=.*/busy/){file}", 503),
        Fault("/listing/(tree|paths-info)", "silence"),
        Fault("GET /api/.*/mute$", "silence"),
    ]
    names = ("busy", "stalls", "listing")
    steps = [kind(name) for name in names for kind in (whole, streamed)] + [whole("mute")]
    results, hub = steps_and_hub(
        tmp_path, *steps, faults=faults, HF_HUB_DOWNLOAD_TIMEOUT=str(int(SILENCE_S) + 1)
    )
    for step, result in zip(steps, results, strict=True):
        assert f"dataset {step['path']!r}: nothing came from the Hub at " in result["error"]
        assert hub.endpoint in result["error"]
        assert "data=local data.path=" in result["error"]
        assert ("HTTP 503" in result["error"]) == (step["path"] == "t/busy")
        assert result["seconds"] < SILENCE_S + SLACK_S
