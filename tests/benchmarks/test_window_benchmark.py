import json

from benchmarks import window
from training.machine import allocator


def test_page_times_each_window_and_the_whole_context(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(allocator, "tune", lambda: "left as it is")  # it is this process' own
    options = "--tokens 8 32 --windows 2 16 --dtypes float32 --tokens-per-pass 64 --rounds 1"
    window.main([*options.split(), "--output", str(tmp_path / "page")])
    page = (tmp_path / "page.md").read_text()
    assert capsys.readouterr().out.strip() == page.strip()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines()]
    rows = [row for row in cells if row[:1] == ["float32"]]
    assert [row[1:3] for row in rows] == [
        ["8", "2"],
        ["8", "8"],
        ["32", "2"],
        ["32", "16"],
        ["32", "32"],
    ]
    assert all(float(row[4]) > 0 for row in rows)
    assert [bool(row[6]) for row in rows] == [False, False, True, False, False]
    result = json.loads((tmp_path / "page.json").read_text())
    assert [row["batch"] for row in result["rows"]] == [8, 8, 2, 2, 2]
    assert len(result["ratios"]) == len(rows)
