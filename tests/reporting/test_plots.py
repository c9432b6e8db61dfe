"""Plots of a report: what is drawn, in which theme, and whatever the numbers and settings are."""

import io
import math
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from matplotlib import rcParams
from matplotlib.figure import Figure
from matplotlib.text import Text

from comparing.for_reports import pareto_front, seed_lines
from reporting.looks import style_of
from reporting.plots import draw, plot_cache, plot_curves, plot_decode, plot_quality
from tests.reporting.variants_for_reports import (
    cache_of,
    curves_of,
    decode_point,
    mha,
    mla,
    single_seed,
)


def svg(plot, data, theme="light"):
    stream = io.BytesIO()
    plot(data, [stream], theme)
    return stream.getvalue().decode()


def words_of(text):
    """What a figure says, from the comments that matplotlib writes next to the letters."""
    return re.findall("<!-- (.*) -->", text)


def test_an_attention_has_its_colour_in_both_themes_and_black_is_light_in_the_dark():
    for name in ("mla", "my_attention"):
        assert style_of(name) == style_of(name, "dark")
    light, dark = style_of("mha"), style_of("mha", "dark")
    assert light == ("#000000", "o")
    assert dark[1] == "o"
    assert int(dark[0][1:3], 16) > 200


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_two_variants_of_a_study_of_arrangements_look_alike(theme):
    kinds = [("gqa_tied", "uniform"), ("shared_kv", "uniform"), ("mha", "uniform")]
    kinds += [(a, b) for a in ("gqa", "mla") for b in ("uniform", "window_full", "shared_pairs")]
    looks = [style_of(attention, theme, layers) for attention, layers in kinds]
    assert len(set(looks)) == len({colour for colour, _ in looks}) == len(kinds)
    assert len({marker for _, marker in looks[3:6]}) == 3  # of gqa
    assert style_of("mla", theme, "mine") not in looks


@pytest.mark.parametrize(
    ("plot", "data"),
    [
        (plot_quality, [mha(), mla()]),
        (plot_quality, [mha(is_baseline=False), mla()]),
        (plot_cache, [mha(), mla()]),
        (plot_curves, curves_of(mha(), mla())),
        (plot_decode, [mha(decode=[decode_point(8), decode_point(16)])]),
    ],
)
def test_the_same_numbers_give_the_same_svg_whatever_the_users_settings(monkeypatch, plot, data):
    light = svg(plot, data)
    monkeypatch.setitem(rcParams, "axes.linewidth", 7.0)
    assert svg(plot, data) == light
    assert "dc:date" not in light
    dark = svg(plot, data, "dark")
    assert "#000000" in light
    assert "#000000" not in dark
    assert style_of("mha", "dark")[0] in dark


@pytest.mark.slow
@pytest.mark.parametrize(
    "broken",
    [
        {"MPLBACKEND": "module://matplotlib_inline.backend_inline"},
        {"MPLBACKEND": "nonsense", "MATPLOTLIBRC": "{tmp}/matplotlibrc"},
        {"MPLCONFIGDIR": "/proc/nowhere", "HOME": "/proc/nowhere"},
    ],
    ids=str,
)
def test_plots_are_drawn_whatever_matplotlibs_environment_is(broken, tmp_path):
    (tmp_path / "matplotlibrc").write_bytes(b"\xff\xfe no settings")
    script = (
        "import sys; from pathlib import Path; sys.path[:0] = sys.argv[1:3]\n"
        "from variants_for_reports import mha, mla\n"
        "from reporting.plots import plot_quality\n"
        "plot_quality([mha(), mla()], [Path(sys.argv[3], 'a.png')])\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    environment = os.environ | {k: v.format(tmp=tmp_path) for k, v in broken.items()}
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", script, str(root), str(Path(__file__).parent), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_figure_is_drawn_as_png_as_vectors_for_papers_and_as_svg_in_both_themes(tmp_path):
    paths = tmp_path / "a.png", tmp_path / "figures" / "a.pdf"
    found = draw(partial(plot_quality, [mha(), mla()]), *paths)
    assert found.keys() == {"light", "dark"}
    assert all(b"<svg" in text for text in found.values())
    png, pdf = (path.read_bytes() for path in paths)
    assert png.startswith(b"\x89PNG")
    assert pdf.startswith(b"%PDF")
    assert b"/FontFile2" in pdf  # TrueType, embedded
    assert b"/Type3" not in pdf
    assert b"/Subtype /Image" not in pdf  # vectors
    draw(partial(plot_quality, [mha(), mla()]), *paths)
    assert paths[1].read_bytes() == pdf


def figure_of(monkeypatch, variants):
    """The figure that is drawn of variants."""
    kept = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: kept.append(figure))
    plot_quality(variants, [io.BytesIO()])
    return kept[0]


def test_the_difference_to_the_baseline_is_drawn_with_its_interval(monkeypatch):
    figure = figure_of(monkeypatch, [mha(), mla()])
    [axes] = figure.axes
    lines = {tuple(line.get_ydata()) for line in axes.lines}
    assert {(0, 0), (0.0,), (3.4,), (-0.3, 7.2)} <= lines  # baseline, points, interval over seeds
    assert [text.get_text() for text in axes.texts] == [
        *("mha (baseline)", "mla  +3.4\N{NO-BREAK SPACE}%")
    ]
    assert "over seeds" in axes.get_title(loc="left")
    assert axes.get_xscale() == "log"
    low, high = axes.get_ylim()
    assert low < -0.3 < 7.2 < high
    single = figure_of(monkeypatch, [single_seed(mha()), single_seed(mla())]).axes[0]
    assert (2.0, 4.9) in {tuple(line.get_ydata()) for line in single.lines}
    assert "over the text" in single.get_title(loc="left")


@pytest.mark.parametrize("number", [5, 9])
def test_names_cover_neither_each_other_nor_a_point(monkeypatch, number):
    """Where they have room next to their points; else a legend has them."""
    crowd = [mla(name=f"variant {i}", delta_percent=3.4 + 0.01 * i) for i in range(number)]
    nothing = {"delta_percent_ci95_seeds": None, "delta_percent_ci95_text": None}
    spread = [mla(name=f"v{i}", delta_percent=2.0 * i, **nothing) for i in range(number)]
    figure = figure_of(monkeypatch, [mha(), *crowd])
    assert not figure.axes[0].texts
    [legend] = figure.legends
    assert len(legend.get_texts()) == number + 1
    figure = figure_of(monkeypatch, [mha(), *spread])
    boxes = [Text.get_window_extent(text) for text in figure.axes[0].texts]
    assert len(boxes) == number + 1
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_caches_of_which_one_is_not_comparable_or_has_no_difference(monkeypatch):
    axes = figure_of(monkeypatch, [mha(), mla(verdict="not comparable")]).axes[0]
    assert [line.get_markerfacecolor() for line in axes.lines if len(line.get_xdata()) == 1] == [
        *("#000000", "#ffffff")
    ]
    nothing = mla(delta_percent=None, delta_percent_ci95_text=None, delta_percent_ci95_seeds=None)
    axes = figure_of(monkeypatch, [mha(), nothing]).axes[0]
    assert [text.get_text() for text in axes.texts] == ["mha (baseline)"]


def test_decoding_has_a_panel_for_each_batch_and_curves_a_band_over_seeds():
    rows = [mha(decode=[decode_point(8, batch) for batch in (1, 4)])]
    assert svg(plot_decode, rows).count('id="axes_') == 2
    several, one = mha(), single_seed(mla())
    assert svg(plot_curves, curves_of(several, one)).count('id="FillBetween') == 1


def test_names_with_dollars_are_names_and_long_ones_are_cut():
    wild = mla(name=r"$\frac{$", decode=[decode_point(8)])
    assert svg(plot_quality, [mha(), wild])
    assert svg(plot_curves, curves_of(wild))
    assert svg(plot_decode, [wild])
    figures = [svg(plot_quality, [mha(name="n" * 40 + end), mla()]) for end in ("xyz", "abc")]
    assert figures[0] == figures[1]


def test_caches_that_stop_growing_are_drawn_without_a_warning(recwarn):
    windowed = mla(name="mla window", layers="window", **cache_of(288, plateau=8, beyond=0))
    words = words_of(svg(plot_cache, [mha(), windowed]))
    assert {"mha", "mla window", "trained context"} <= {*words}
    assert "stated context" not in words
    assert "stated context" in words_of(svg(plot_cache, [mha(**cache_of(6144, context=1024))]))
    assert "KV cache of a sequence of 256 tokens" in words_of(svg(plot_quality, [mha(), windowed]))
    assert not recwarn.list


def test_pareto_front_has_the_lowest_at_each_size_or_less():
    sizes = ((6144, 42.0), (768, 45.0), (1536, 50.0), (1536, 44.0), (8192, 42.0))
    points = [mla(perplexity=perplexity, **cache_of(size)) for size, perplexity in sizes]
    front = [(p["kv_cache_bytes_per_token"], p["perplexity"]) for p in pareto_front(points)]
    assert front == [(768, 45.0), (1536, 44.0), (6144, 42.0)]


def test_lines_are_means_over_seeds_where_all_were_validated():
    curves = curves_of(mla())
    curves["mla-seed0"]["tokens"].append(3000)  # the second was stopped
    curves["mla-seed0"]["perplexity"].append(40.0)
    [line] = seed_lines(curves | {"empty": curves["mla-seed1"] | {"tokens": []}})
    assert (line.variant, line.seeds, line.tokens) == ("mla", 2, [1000, 2000])
    assert line.low == [200.0, 50.0]
    assert line.high == pytest.approx([220.0, 55.0])
    assert line.mean == pytest.approx([math.sqrt(200 * 220), math.sqrt(50 * 55)])
