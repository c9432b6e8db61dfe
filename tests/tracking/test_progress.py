import pytest

from tracking.progress import in_words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (250.0, "4 min 10 s"),
        (7500.0, "2 h 5 min"),
        (90061.0, "1 d 1 h"),
    ],
)
def test_durations_in_words(seconds, words):
    assert in_words(seconds) == words
