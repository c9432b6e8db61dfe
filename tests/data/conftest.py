import json

import pytest

from settings.data import DataSettings, TokenizerSettings


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
