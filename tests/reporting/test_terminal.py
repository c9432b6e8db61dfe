"""What is printed of a comparison: as wide as the terminal, and plain where that is asked for."""

import io
import re
from pathlib import Path

import pytest

from reporting.cost_tables import decode_tables
from reporting.markdown import table as markdown
from reporting.tables import comparison, pair_table
from reporting.terminal import Screen, draw, print_comparison, print_decoding, screen_of
from tests.reporting.variants_for_reports import (
    cache_of,
    decode_point,
    group,
    mha,
    mla,
    single_seed,
)

WIDTHS = [80, 100, 120]
ESCAPE = "\x1b["
LONG = "gqa positions=learned, num_key_value_heads=2, max_tokens=40960, learning_rate=0.0125"


class Stream(io.StringIO):
    """A stream with an encoding, which may be a terminal."""

    def __init__(self, encoding="utf-8", is_terminal=False):
        super().__init__()
        self._encoding, self._is_terminal = encoding, is_terminal

    encoding = property(lambda self: self._encoding)

    def isatty(self):
        return self._is_terminal


@pytest.fixture(autouse=True)
def usual_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)


def printed(groups, width=None, **stream):
    out = Stream(**stream)
    print_comparison(groups, Path("reports/study"), out, width)
    return out.getvalue()


def wild():
    """Variants with numbers of many digits and names of many letters."""
    large = cache_of(50331648, context=1024)
    points = [decode_point(16384, ms=12345.678)]
    return [
        mha(**large, decode=points),
        mla(name=LONG, **large, delta_percent=810118.25, perplexity=123456.7, decode=points),
        mla(name=LONG.replace("0125", "025"), delta_percent_ci95_seeds=[-1234.5, 2345.25]),
        single_seed(mla(name="名前" * 9, verdict="not comparable")),
    ]


@pytest.mark.parametrize("width", WIDTHS)
def test_a_comparison_fits_one_screen_with_its_six_facts(width):
    points = [decode_point(8), decode_point(16, ms=5.25)]
    variants = [
        mha(decode=points),
        *(mla(name=f"mla window={n}", decode=points) for n in (128, 256, 512)),
        mla(name="mla_no_rope", verdict="not comparable", verdict_note="single seed"),
    ]
    text = printed([group(*variants)], width)
    assert max(map(len, text.splitlines())) <= width
    table = draw(comparison(variants), Screen(width))
    assert table in text
    assert table.count("variant") == 1  # one block
    assert len(table.splitlines()) <= 20
    facts = ["442,368", "3.6x smaller", "43.43", "+3.40 %", "-0.30 to +7.20", "5.25"]
    for fact in [*facts, *mla()["verdict"].split(), "not", "comparable", "single seed"]:
        assert fact in table
    for window in ("128", "256", "512"):
        assert f"window={window}" in re.sub(r"\s*\n\s*", "", table) or window in table
    assert "The rest is in the report: reports/study/report.html" in text
    assert text.count("exp of the mean") == 1


@pytest.mark.parametrize("width", [60, *WIDTHS])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_no_line_is_too_wide_and_no_digit_or_verdict_is_lost(width, encoding):
    variants = wild()
    pairs = [variants[1] | {"variant": LONG, "against": "mha"}] * 2
    text = printed([group(*variants, pairs=pairs)], width, encoding=encoding)
    table = draw(comparison(variants), Screen(width, is_ascii=encoding != "utf-8"))
    assert table in text
    if encoding == "utf-8":
        lines = [line for line in text.splitlines() if "report.html" not in line]
        assert max(len(line) + len(re.findall("[名前]", line)) for line in lines) <= width
    else:
        assert text.isascii()
        assert max(map(len, text.splitlines())) <= width
    for fact in ("51,539,607,552", "123,457", "+810,118.25 %", "-1,234.50 to +2,345.25"):
        assert fact in table
    assert "12,345.68" in table
    assert {"not", "comparable"} <= {*table.split()}
    assert all(digits in table for digits in ("40960", "0.0125", "0.025"))


def test_what_has_no_room_follows_under_the_same_names():
    contexts = [2**power for power in range(3, 15)]
    points = [decode_point(context, ms=context / 8) for context in contexts]
    variants = [mha(decode=points), mla(decode=points, break_even={"1": 64})]
    [table] = decode_tables(variants)
    text = draw(table, Screen(80))
    blocks = text.split("\n\n")
    assert len(blocks) > 1
    assert max(map(len, text.splitlines())) <= 80
    for block in blocks:
        assert block.split()[0] == "variant" or "variant" in block
        assert {"mha", "mla"} <= {*block.split()}
    for point in points:
        assert f"{point['ms_per_token']:,.2f}" in text
    out = Stream()
    print_decoding([group(*variants)], out, 80)
    assert text in out.getvalue()


def test_terminal_and_report_show_the_same_cells():
    variants = [mha(), mla()]
    pairs = [mla() | {"variant": "mla", "against": name} for name in ("mha", "gqa")]
    for table in (comparison(variants), pair_table(pairs)):
        cells = {column.key: column.cell(table.rows[-1]) for column in table.columns("terminal")}
        report = markdown(table)
        for column in table.columns():
            if column.on is None:
                assert cells[column.key] == column.cell(table.rows[-1])
                assert column.cell(table.rows[-1]) in report


@pytest.mark.parametrize(
    ("is_terminal", "environment", "has_colour"),
    [
        (True, {}, True),
        (False, {}, False),
        (False, {"FORCE_COLOR": "1"}, False),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"NO_COLOR": ""}, True),
        (True, {"TERM": "dumb"}, False),
    ],
)
def test_colour_is_for_terminals_that_want_it(monkeypatch, is_terminal, environment, has_colour):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    groups = [group(mha(), mla(verdict="worse"))]
    text = printed(groups, is_terminal=is_terminal)
    assert (ESCAPE in text) == has_colour
    plain = printed(groups)
    assert re.sub(r"\x1b\[[\d;]*m", "", text).split() == plain.split()
    assert (f"{ESCAPE}31mworse" in text) == has_colour


def test_what_is_no_terminal_has_100_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    assert screen_of(Stream()) == Screen(100)
    assert screen_of(Stream("ISO-8859-1")).is_ascii
    assert screen_of(Stream(), 80).width == 80
    assert screen_of(Stream(), 3).width == 100  # of a terminal that says so, nothing is known
