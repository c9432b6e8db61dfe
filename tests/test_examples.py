"""examples/: each script runs, is short, and says what the README says of it."""

import re
import runpy
from pathlib import Path

import pytest

from modeling.attention import registry

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))


@pytest.fixture
def run(monkeypatch, capsys):
    """Run an example as `python -m examples.NAME` would; returns what it printed."""
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))

    def call(name, *arguments):
        monkeypatch.setattr("sys.argv", [name, *map(str, arguments)])
        runpy.run_module(f"examples.{name}", run_name="__main__")
        return capsys.readouterr().out

    return call


def test_the_examples_are_short_and_the_readme_names_them():
    assert EXAMPLES == ["attention_alone", "own_attention", "own_corpus"]
    readme = (ROOT / "README.md").read_text()
    for name in EXAMPLES:
        text = (ROOT / "examples" / f"{name}.py").read_text()
        assert len(text.splitlines()) < 60
        assert f"From the checkout: python -m examples.{name}" in text
        assert f"examples.{name}" in readme


def test_an_attention_alone_decodes_and_counts_its_cache(run):
    # (c + r) and 2 h d numbers of 4 bytes.
    assert "MLA 576 bytes, MHA 2,048, 3.6 x as many" in run("attention_alone")


def test_an_own_corpus_goes_from_text_to_perplexity(run, corpus_folder):
    printed = run("own_corpus", corpus_folder)
    found = re.search(r"perplexity ([\d.]+), of counted tokens alone ([\d.]+)", printed)
    perplexity, counted = map(float, found.groups())
    assert 1 < perplexity < counted


@pytest.mark.parametrize(
    ("arguments", "line"), [([], "usage: .* FOLDER"), (["nowhere"], "nowhere")]
)
def test_a_corpus_that_is_not_there_is_one_line(run, arguments, line):
    with pytest.raises(SystemExit, match=line):
        run("own_corpus", *arguments)


def test_an_own_attention_keeps_every_promise_and_learns(run):
    printed = run("own_attention")
    kept, promises = re.search(r"(\d+) of (\d+) promises kept", printed).groups()
    assert kept == promises
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", printed)]
    assert len(losses) == 20
    assert losses[-1] < losses[0] / 3
