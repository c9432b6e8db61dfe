import pytest

from files.strict_json import load_strict


def test_json_is_read():
    assert load_strict(b'{"a": [1, -2.5e3, null, "\xc3\xa9"]}') == {"a": [1, -2500.0, None, "é"]}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("NaN", "NaN is not JSON"),
        ("[-Infinity]", "-Infinity is not JSON"),
        ("1e999", "1e999 is too large"),
        ("[" * 100_000, "nested too deeply"),
        ("{", "Expecting property name"),
        (b"\xff", "invalid start byte"),
    ],
)
def test_what_is_no_json_is_a_value_error(text, says):
    with pytest.raises(ValueError, match=says):
        load_strict(text)


def test_integers_are_read_as_asked():
    assert load_strict("[7]", parse_int=lambda text: int(text) + 1) == [8]
