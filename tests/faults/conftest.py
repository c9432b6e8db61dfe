"""A corpus, and prepared data that nothing is wrong with."""

import pytest

from data.pipeline import prepare
from tests.data.texts import BYTES, quiet, settings_for, write_corpus


@pytest.fixture(scope="module")
def genuine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("genuine")
    write_corpus(folder / "corpus", "some words", 40)
    return prepare(settings_for(folder), BYTES, quiet)


@pytest.fixture
def corpus(tmp_path):
    write_corpus(tmp_path / "corpus", "some words", 40)
    return tmp_path
