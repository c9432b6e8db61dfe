import pytest

from benchmarks import decode_kernels


def test_page_times_every_way_and_names_the_one_that_is_taken(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(decode_kernels, "WEIGHTS", ((16, 24),))
    monkeypatch.setattr(decode_kernels, "MANY_BYTES", 2**16)
    page = tmp_path / "page.md"
    options = "--dtypes float32 bfloat16 --batches 2 --contexts 8 --rounds 1"
    decode_kernels.main([*options.split(), "--output", str(page)])
    text = page.read_text()
    assert capsys.readouterr().out.strip() == text.strip()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    kernels = {(row[0], row[1]): row for row in cells if len(row) == 8 and row[2] == "2"}
    assert {name for _, name in kernels} == {"mha", "gqa", "mqa", "mla"}
    for (dtype, name), row in kernels.items():
        assert row[-1] == ("blocks" if (dtype, name) == ("bfloat16", "mha") else "fused")
        assert float(row[6]) > 0
    products = [row for row in cells if row[:1] == ["16 x 24"]]
    assert [int(row[1]) for row in products] == list(decode_kernels.ROWS)


def test_a_benchmark_says_which_kernels_there_are(capsys):
    with pytest.raises(SystemExit):
        decode_kernels.main(["--help"])
    assert "--contexts" in capsys.readouterr().out
