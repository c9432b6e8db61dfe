import json

from evaluation.comparison import group_by_protocol
from evaluation.report import cells, protocol_line, table, write_report


def row(name, ratio, **card):
    protocol = {
        "corpus": "tiny",
        "split": "validation",
        "context": 8,
        "stride": 8,
        "dtype": "float32",
        "words": 10,
        "utf8_bytes": 50,
        "tokenizer_sha256": "a" * 64,
        "data_fingerprint": "b" * 64,
    }
    return {
        "run_name": name,
        "attention": "mla",
        "positions": "RoPE",
        "num_parameters": 2557632,
        "tokens_trained": 1500000,
        "tokens_scored": 99,
        "perplexity": 12.3456,
        "word_perplexity": 123456.7,
        "bits_per_byte": 1.5,
        "kv_cache_bytes_per_token": 1728,
        "kv_cache_bytes_measured": 1728.0,
        "cache_ratio_to_mha": ratio,
        "protocol": protocol | card,
    }


def test_only_numbers_of_one_protocol_share_a_table():
    rows = [row("a", 0.2), row("b", 1.0), row("c", 0.5, context=16)]
    names = [[r["run_name"] for r in group] for group in group_by_protocol(rows)]
    assert names == [["b", "a"], ["c"]]


def test_runs_with_and_without_the_document_mask_do_not_share_a_table():
    without, within = (row("a", 1.0, intra_document_mask=value) for value in (False, True))
    assert len(group_by_protocol([without, within])) == 2
    assert protocol_line(within) == protocol_line(without).replace(
        "float32;", "float32, attention within documents;"
    )
    assert protocol_line(row("a", 1.0)) == protocol_line(without)


def test_cells_are_readable_numbers():
    assert cells(row("a", 0.28125)) == [
        *("a", "mla", "RoPE", "2,557,632", "1,500,000"),
        *("12.346", "123,457", "1.500", "1,728", "1,728", "0.281"),
    ]


def test_report_keeps_rows_and_shows_a_table_per_protocol(tmp_path):
    groups = group_by_protocol([row("a", 0.2), row("c", 0.5, context=16)])
    write_report(tmp_path / "new" / "report", groups, "python eval_model.py", "2026-01-01")
    rows = json.loads((tmp_path / "new" / "report" / "results.json").read_text())
    assert [r["run_name"] for r in rows] == ["a", "c"]
    text = (tmp_path / "new" / "report" / "report.md").read_text()
    assert text.count("| run") == 2
    assert "context 16" in text
    assert "`python eval_model.py`, 2026-01-01" in text


def test_table_in_markdown_and_plain():
    assert table([row("a", 1.0)], "github").startswith("| run")
    assert "a " in table([row("a", 1.0)], "simple")
