"""docs/tutorial.ipynb, executed as it stands, with a training of seconds."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent.parent / "docs" / "tutorial.ipynb"


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def printed(notebook):
    return "".join(o.get("text", "") for o in outputs(notebook))


def tables(notebook):
    shown = [output.get("data", {}) for output in outputs(notebook)]
    return [data["text/plain"] for data in shown if "<table" in data.get("text/html", "")]


@pytest.mark.slow
def test_every_cell_runs_and_shows_what_it_says(tiny_data, tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    settings = notebook.cells[1]
    small = [*tiny_data, "debug=smoke", "trainer.max_tokens=4096"]
    settings.source, replaced = re.subn(
        r"^TRAINING = .*$", lambda _: f"TRAINING = {small!r}", settings.source, flags=re.MULTILINE
    )
    settings.source, placed = re.subn(
        r"ROOT / \"(runs|reports|exports)\"", rf'Path({str(tmp_path)!r}) / "\1"', settings.source
    )
    assert (replaced, placed) == (1, 3)
    client = NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    )
    client.execute()  # an error in a cell is one here
    text = printed(notebook)
    quality, against_mha = tables(notebook)
    for attention in ("mha", "mla"):
        assert re.search(rf"^{attention} +[\d.]+", quality, re.M)
    assert re.search(r"^delta_percent +NaN +-?[\d.]+$", against_mha, re.M)
    assert re.search(r"^kv_bytes_per_token_measured +1024.* +288", against_mha, re.M)
    assert "DeepseekV3ForCausalLM" in text
    # 2 layers x (32 + 4) elements x 4 bytes.
    assert "288 bytes per token in transformers' cache" in text
    assert any("image/png" in output.get("data", {}) for output in outputs(notebook))
    assert outputs(notebook)[-1]["data"]["text/plain"] == "True"


def test_what_is_committed_was_executed():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not any(output.output_type == "error" for output in outputs(notebook))
    assert any("image/png" in output.get("data", {}) for output in outputs(notebook))
    assert outputs(notebook)[-1]["data"]["text/plain"] == "True"
    # The evaluation's result is its numbers, not where they were written; the prose, which does not
    # change with them, calls none of the two better.
    assert len(tables(notebook)) == 2
    assert "report.html" not in printed(notebook)
    prose = " ".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert not re.search(r"\b(winner|wins?|beats?|loses?|the (better|worse) (one|model))\b", prose)
    # Nothing of the machine that it was executed on.
    assert not re.search(r"(/tmp|/home|/root|/work)/", printed(notebook))
