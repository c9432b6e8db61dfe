"""What a report has for papers: a LaTeX table, and rows for spreadsheets and pandas."""

import csv
import io
import json
import math
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from reporting.paper import CSV_COLUMNS, latex_tables, results_csv
from tests.reporting.variants_for_reports import mha, mla, single_seed, unscored

ROOT = Path(__file__).parent.parent.parent
STUDY = ROOT / "docs" / "results" / "2026-11-23-study-nano"
ROWS = json.loads((STUDY / "results.json").read_text())
CARD = ROWS[0]["protocol"]
HOSTILE = (
    "[a]_b & 50% $x$",
    "*é #1 {x} ^~\\",
    'q" <b> -3',
    "\u540d\u524d | \x1b \\input{/etc/passwd}",
)


def group(variants, rows=(), card=CARD):
    runs = [SimpleNamespace(row=row) for row in rows]
    return SimpleNamespace(results=list(variants), runs=runs, protocol=card)


def tex_of(*variants):
    """The rows of a table, without what LaTeX parts cells with."""
    [body] = re.findall(r"\\midrule\n(.*)\\bottomrule", latex_tables([group(variants)]), re.S)
    rows = body.replace("&", " ").replace("\\\\", " ").splitlines()
    return [" ".join(row.split()) for row in rows]


def test_csv_has_a_row_a_run_that_is_results_json():
    read = list(csv.DictReader(io.StringIO(results_csv([group([], ROWS), group([], ROWS[:1])]))))
    assert [row["table"] for row in read] == ["1"] * len(ROWS) + ["2"]
    assert list(read[0])[: len(CSV_COLUMNS)] == list(CSV_COLUMNS)
    for row, run in zip(read, ROWS, strict=False):
        assert row["run"] == run["run_name"]
        assert (float(row["perplexity"]), int(row["seed"])) == (run["perplexity"], run["seed"])
        assert float(row["perplexity_low"]) == run["perplexity_ci95"][0]
        for point in run["decode"]:
            name = f"decode_ms_b{point['batch']}_c{point['context']}"
            assert float(row[name]) == point["ms_per_token"]
    of_baseline, other = (next(r for r in read if r["attention"] == a) for a in ("mha", "mla"))
    assert of_baseline["delta_percent"] == of_baseline["baseline_run"] == ""
    base = next(row for row in read if row["run"] == other["baseline_run"])
    ratio = float(other["perplexity"]) / float(base["perplexity"])
    assert float(other["delta_percent"]) == pytest.approx(100 * (ratio - 1))
    low, high = (float(other[f"delta_percent_{end}"]) for end in ("low", "high"))
    assert low < float(other["delta_percent"]) < high


def test_csv_is_numbers_to_pandas_and_no_formula_to_a_spreadsheet():
    pandas = pytest.importorskip("pandas")
    tasks = {"hellaswag": {"acc": 0.5, "acc_stderr": None, "n": 9, "version": 1, "num_fewshot": 0}}
    wild = ROWS[0] | {"run_name": '=1+1,"x"\n', "variant": "@cmd", "tasks": tasks}
    wild |= dict.fromkeys(("perplexity", "perplexity_ci95", "nll", "seed"))
    frame = pandas.read_csv(io.StringIO(results_csv([group([], [wild, ROWS[1]])])))
    assert frame["run"][0] == '\'=1+1,"x"\n'
    assert frame["variant"][0] == "'@cmd"
    assert frame["perplexity"].dtype == frame["kv_bytes_per_token_measured"].dtype == float
    assert math.isnan(frame["perplexity"][0])
    assert frame["hellaswag.acc"][0] == 0.5


def test_every_column_of_the_csv_is_explained_in_the_docs():
    text = (ROOT / "docs" / "comparison.md").read_text()
    for name, meaning in CSV_COLUMNS.items():
        assert f"| `{name}` | {meaning} |" in text


def test_table_has_both_intervals_true_minus_signs_and_no_columns_of_nothing():
    assert tex_of(mha(), mla()) == [
        "mha 2 2,548,800 41.99 [40.60, 43.40] text -- -- baseline 1,572,864 1.000",
        "[39.20, 44.80] seeds",
        "mla 2 2,548,800 43.43 [42.01, 44.92] text +3.40 [+2.00, +4.90] unresolved 442,368 0.281",
        "[40.52, 46.34] seeds [$-$0.30, +7.20]",
    ]
    assert len(tex_of(single_seed(mha()), single_seed(mla()))) == 2
    [row] = tex_of(unscored(mla(baseline=None, cache_ratio_to_baseline=None)))
    assert row == "mla 2 2,548,800 442,368"
    [row] = tex_of(mla(perplexity=12345.6, perplexity_ci95_seeds=None))
    assert " 12,346 " in row


def test_table_is_latex_whatever_names_it_holds(tmp_path):
    study = json.loads((STUDY / "variants.json").read_text())
    wild = [variant | {"name": name} for variant, name in zip(study, HOSTILE, strict=False)]
    text = latex_tables([group(study), group(wild, card=CARD | {"corpus": "a_50%&"})])
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 2
    assert r"{}[a]\_b \& 50\% \$x\$" in text
    assert r"\input{/etc" not in text
    assert "text, over the documents of the scored text" in text
    assert "a\\_50\\%?, validation split" in text
    assert r"\label{tab:kvlab-2}" in text
    assert not re.findall("[^\n -~\xa0-\u017f]", text)
    if shutil.which("pdflatex") is None:
        pytest.skip("its structure is as it should be; pdflatex, to compile it, is not here")
    (tmp_path / "table.tex").write_text(text)
    (tmp_path / "main.tex").write_text(
        "\\documentclass{article}\\usepackage[margin=1in]{geometry}\\usepackage{booktabs}"
        "\\begin{document}\\input{table.tex}\\end{document}"
    )
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
