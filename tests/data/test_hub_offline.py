"""HF_HUB_OFFLINE=1: what the cache has, at a known commit; anything else is refused at once."""

import pytest
from hub_child import NAME, parquet, read
from hub_stand_in import COMMITS, Fault, stand_in
from texts import sentences

pytestmark = pytest.mark.slow

NOWHERE = "http://127.0.0.1:9"
NEW, OLD = sentences(50), sentences(40)


def files(texts):
    return {"README.md": b"# stories\n", "data/train-00000-of-00001.parquet": parquet(texts)}


def texts_of(result):
    assert "documents" in result, result
    return sorted(text for split in result["documents"].values() for text in split)


def test_the_cached_commit_is_recorded_and_another_is_refused(tmp_path):
    streamed = "kvlab-tests/streamed"
    with stand_in({NAME: files(NEW), streamed: files(NEW)}, old=files(OLD)) as hub:
        first, *_ = online = read(
            hub.endpoint, tmp_path, {"revision": "old"}, {}, {"path": streamed, "streaming": True}
        )
    assert texts_of(first) == sorted(OLD)
    commits = [result["description"]["commit"] for result in online]
    assert commits == [COMMITS["old"], COMMITS["main"], COMMITS["main"]]

    steps = [
        ({}, "main", NEW),
        ({"revision": "main"}, "main", NEW),
        ({"revision": COMMITS["main"]}, "main", NEW),
        ({"revision": COMMITS["main"][:8]}, "main", NEW),
        ({"streaming": True}, "main", NEW),
        # Not the newest copy, which is what datasets takes offline whatever the revision is.
        ({"revision": "old"}, "old", OLD),
        ({"revision": COMMITS["old"]}, "old", OLD),
        ({"commit": COMMITS["old"]}, "old", OLD),
        ({"revision": COMMITS["old"], "streaming": True}, "old", OLD),
    ]
    refused = [
        ({"revision": COMMITS["v1"]}, f"is commit {COMMITS['v1']}, and the cache has commit aaa"),
        ({"commit": COMMITS["v1"]}, f"is commit {COMMITS['v1']}, and the cache has commit aaa"),
        ({"revision": "v1"}, "data.revision ('v1') of kvlab-tests/stories may be any commit"),
        ({"path": streamed}, "in the local cache (HF_HUB_OFFLINE=1)"),
        ({"path": streamed, "streaming": True}, "in the local cache (HF_HUB_OFFLINE=1)"),
        ({"path": "a/b"}, "in the local cache (HF_HUB_OFFLINE=1)"),
    ]
    changes = [dict(step[0]) for step in (*steps, *refused)]
    results = read(NOWHERE, tmp_path, *changes, HF_HUB_OFFLINE="1")
    for result, (_, commit, texts) in zip(results, steps, strict=False):
        assert texts_of(result) == sorted(texts)
        assert result["description"]["commit"] == COMMITS[commit]
    for result, (_, message) in zip(results[len(steps) :], refused, strict=True):
        assert message in result["error"]
        assert result["seconds"] < 3


def test_a_hub_that_fails_does_not_pass_another_cached_commit_off_as_the_newest(tmp_path):
    # datasets would fall back to the newest copy in its cache without a word.
    fault = Fault(f"{NAME}/(tree|paths-info)/a", 400)
    with stand_in({NAME: files(NEW)}, old=files(OLD), faults=[fault]) as hub:
        _, result = read(hub.endpoint, tmp_path, {"revision": "old"}, {})
    assert f"commit {COMMITS['main']} could not be read" in result["error"]
    assert f"set data.revision={COMMITS['old']}" in result["error"]
