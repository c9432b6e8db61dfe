import json
import sys

import numpy as np
import pytest

from benchmarks.coverage import STUDIES, Study, coverage, judged, main


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


def test_simultaneous_intervals_hold_together_in_about_95_of_100_studies():
    found = judged(STUDIES["3 seeds"], trials=80)
    # Three standard errors of 80 studies are 0.07.
    assert found["baseline"] > 0.87
    assert found["pairs"] > 0.87
    assert found["at_margin"] <= 0.05
    # Twelve seeds of a tenth of the margin resolve it, with the verdict that belongs to each.
    quiet = Study(seeds=(12,) * 3, deviations=(0.001,) * 3)
    found = judged(quiet, trials=40)
    assert found["equal"] == 1.0
    assert found["at_margin"] <= 0.1
    assert 0.55 < found["seen"] <= 0.97
