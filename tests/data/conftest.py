import json

import pytest

from data.settings import DataSettings, TokenizerSettings

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]


def sentences(count, start=0):
    """Distinct little documents."""
    return [
        f"{WORDS[i % 10]} {WORDS[i * 7 % 10]}\n{i} é {WORDS[i * 3 % 10]}."
        for i in range(start, start + count)
    ]


@pytest.fixture
def write_jsonl(tmp_path):
    def write(name, texts, column="text"):
        path = tmp_path / "corpus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps({column: text}) + "\n" for text in texts))
        return path

    return write


@pytest.fixture
def local(tmp_path):
    """Settings for the files in tmp_path/corpus."""

    def settings(**changes):
        values = {
            "name": "test",
            "source": "local",
            "path": str(tmp_path / "corpus"),
            "prepared_dir": str(tmp_path / "prepared"),
            "validation_fraction": 0.25,
        }
        return DataSettings(**(values | changes))

    return settings


@pytest.fixture
def byte_level():
    return TokenizerSettings(name="bytes", kind="bytes")
