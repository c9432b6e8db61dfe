import json
import sys

import numpy as np
import pytest

from benchmarks.coverage import coverage, main


def test_the_share_of_texts_whose_interval_holds_the_truth():
    rng = np.random.default_rng(0)
    tokens = rng.integers(50, 100, 200).astype(float)
    found = coverage(tokens * rng.normal(3.7, 0.4, 200), tokens, documents=12, trials=60)
    assert found.keys() == {"reported", "percentile", "BCa"}
    assert all(0.8 < share <= 1.0 for share in found.values())
    with pytest.raises(SystemExit, match="a text of 9 documents has no interval"):
        coverage(tokens, tokens, documents=9, trials=1)


def test_every_run_and_every_pair_on_the_same_documents_has_a_line(tmp_path, monkeypatch, capsys):
    rng, tokens = np.random.default_rng(0), [60] * 20
    scored = {name: {"nll": rng.normal(200, 20, 20).tolist(), "tokens": tokens} for name in "ab"}
    scored["c"] = {"nll": [1.0, 5.0, 2.0, 4.0, 2.5], "tokens": [1] * 5}  # of another text
    path = tmp_path / "documents.json"
    path.write_text(json.dumps(scored))
    monkeypatch.setattr(sys, "argv", ["x", str(path), "--trials", "2", "--documents", "12"])
    main()
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split("|")[1].strip() for line in lines] == ["a", "b", "c", "a - b"]
