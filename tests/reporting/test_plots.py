"""Plots of a report: what is drawn, in which theme, and that labels do not cover each other."""

import io
import math
import os
import re
import subprocess
import sys
from itertools import combinations, pairwise
from pathlib import Path

import pytest
from matplotlib import rcParams
from matplotlib.figure import Figure
from matplotlib.text import Text

from reporting.plot_labels import Anchor, LineEnd, label_ends, label_points, spread
from reporting.plots import (
    pareto_front,
    plot_all,
    plot_cache,
    plot_curves,
    plot_decode,
    plot_pareto,
    seed_lines,
    style_of,
)
from tests.reporting.variants_for_reports import (
    cache_of,
    curves_of,
    decode_point,
    mha,
    mla,
    single_seed,
    unscored,
)


def svg(plot, *arguments, **options):
    stream = io.BytesIO()
    assert plot(*arguments, stream, **options)
    return stream.getvalue().decode()


def test_an_attention_has_its_colour_in_both_themes_and_black_is_light_in_the_dark():
    assert style_of("mla") == style_of("mla", "dark")
    assert style_of("my_attention") == style_of("my_attention", "dark")
    light, dark = style_of("mha"), style_of("mha", "dark")
    assert light == ("#000000", "o")
    assert dark[1] == "o"
    assert int(dark[0][1:3], 16) > 200


@pytest.mark.parametrize(
    ("plot", "data"),
    [
        (plot_pareto, [mha(), mla()]),
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
    dark = svg(plot, data, theme="dark")
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
        "from reporting.plots import plot_pareto\n"
        "assert plot_pareto([mha(), mla()], Path(sys.argv[3], 'a.png'))\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    environment = os.environ | {k: v.format(tmp=tmp_path) for k, v in broken.items()}
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", script, str(root), str(Path(__file__).parent), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_png_by_name_and_nothing_where_there_is_nothing_to_draw(tmp_path):
    rows = [{"attention": "mha", "decode": [decode_point(8)]}]  # of a run, not of a variant
    assert plot_decode(rows, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert not plot_decode([mha(), {"attention": "mla"}], tmp_path / "b.png")
    assert not plot_decode(rows, tmp_path / "b.png", batch=2)
    assert not plot_pareto([mha(), unscored(mla())], tmp_path / "b.png")
    assert not plot_curves({}, tmp_path / "b.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_plot_all_names_what_it_wrote_and_has_the_same_as_vectors(tmp_path):
    variants = [mha(), mla(decode=[decode_point(8)])]
    names = ["cache", "decode", "pareto"]
    assert plot_all(tmp_path, variants, {}) == ["pareto.png", "cache.png", "decode.png"]
    assert {path.name for path in tmp_path.iterdir()} == {*(f"{n}.png" for n in names), "figures"}
    figures = sorted((tmp_path / "figures").iterdir())
    assert [path.name for path in figures] == [f"{name}.pdf" for name in names]
    before = [path.read_bytes() for path in figures]
    for figure in before:
        assert figure.startswith(b"%PDF")
        assert b"/FontFile2" in figure  # TrueType, embedded
        assert b"/Type3" not in figure
        assert b"/Subtype /Image" not in figure  # vectors
    plot_all(tmp_path, variants, {})
    assert [path.read_bytes() for path in figures] == before


def test_decode_of_one_batch_is_one_panel():
    rows = [mha(decode=[decode_point(8, batch) for batch in (1, 4)])]
    assert svg(plot_decode, rows).count('id="axes_') == 2
    assert svg(plot_decode, rows, batch=4).count('id="axes_') == 1


def test_thick_intervals_are_drawn_for_seeds_only():
    thick = "stroke-width: 5"
    assert svg(plot_pareto, [mha(), mla()]).count(thick) == 3  # with the key
    assert thick not in svg(plot_pareto, [single_seed(mha()), single_seed(mla())])


def test_a_single_seed_has_no_band():
    several, one = mha(), single_seed(mla())
    assert svg(plot_curves, curves_of(several, one)).count('id="FillBetween') == 1


def test_names_with_dollars_are_names_and_long_ones_are_cut():
    wild = mla(name=r"$\frac{$", decode=[decode_point(8)])
    assert svg(plot_pareto, [mha(), wild])
    assert svg(plot_curves, curves_of(wild))
    assert svg(plot_decode, [wild])
    figures = [svg(plot_pareto, [mha(name="n" * 25 + end), mla()]) for end in ("xyz", "abc")]
    assert figures[0] == figures[1]


def test_caches_that_stop_growing_are_drawn_without_a_warning(recwarn):
    windowed = mla(name="mla window", layers="window", **cache_of(288, plateau=8, beyond=0))
    text = svg(plot_cache, [mha(), windowed, mla(kv_cache_curve=None)])
    assert text.count("<!-- trained context -->") == 1
    assert "<!-- stated context -->" not in text
    assert {"<!-- mha -->", "<!-- mla window -->"} <= {*re.findall("<!-- .* -->", text)}
    stated = svg(plot_cache, [mha(**cache_of(6144, context=1024))])
    assert "<!-- stated context -->" in stated
    assert "<!-- KV cache of a sequence of 256 tokens, bytes" in svg(plot_pareto, [mha(), windowed])
    assert not recwarn.list
    assert not plot_cache([mla(kv_cache_curve=None)], io.BytesIO())


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_two_variants_of_a_study_of_arrangements_look_alike(theme):
    kinds = [("gqa_tied", "uniform"), ("shared_kv", "uniform"), ("mha", "uniform")]
    kinds += [(a, b) for a in ("gqa", "mla") for b in ("uniform", "window_full", "shared_pairs")]
    looks = [style_of(attention, theme, layers) for attention, layers in kinds]
    assert len(set(looks)) == len({colour for colour, _ in looks}) == len(kinds)
    assert len({marker for _, marker in looks[3:6]}) == 3  # of gqa
    assert style_of("mla", theme, "mine") not in looks


def test_pareto_front_has_the_lowest_at_each_size_or_less():
    points = [
        {
            "kv_cache_bytes_per_token": size,
            "kv_cache_bytes_measured": size,
            "perplexity": perplexity,
        }
        for size, perplexity in (
            (6144, 42.0),
            (768, 45.0),
            (1536, 50.0),
            (1536, 44.0),
            (8192, 42.0),
        )
    ]
    front = [(p["kv_cache_bytes_per_token"], p["perplexity"]) for p in pareto_front(points)]
    assert front == [(768, 45.0), (1536, 44.0), (6144, 42.0)]


def test_lines_are_means_over_seeds_where_all_were_validated():
    curves = curves_of(mla())
    curves["mla-seed0"]["tokens"].append(3000)  # the second was stopped
    curves["mla-seed0"]["perplexity"].append(40.0)
    [line] = seed_lines(curves)
    assert (line.variant, line.seeds, line.tokens) == ("mla", 2, [1000, 2000])
    assert line.low == [200.0, 50.0]
    assert line.high == pytest.approx([220.0, 55.0])
    assert line.mean == pytest.approx([math.sqrt(200 * 220), math.sqrt(50 * 55)])


def test_spread_moves_no_more_than_it_must():
    assert spread([0.2, 0.5, 0.9], 0.1) == pytest.approx([0.2, 0.5, 0.9])
    assert spread([0.5, 0.5, 0.9], 0.1) == pytest.approx([0.45, 0.55, 0.9])
    assert spread([0.0, 0.01, 0.5], 0.1) == pytest.approx([0.0, 0.1, 0.5])
    assert spread([0.98, 1.0], 0.1) == pytest.approx([0.9, 1.0])
    assert spread([], 0.1) == []


def axes_with_points(points):
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.set_xlim(0, 10)
    axes.set_ylim(0, 10)
    anchors = [
        Anchor(x, y, y - 0.5, y + 0.5, axes.transData, f"variant {index}")
        for index, (x, y) in enumerate(points)
    ]
    figure.draw_without_rendering()
    return figure, axes, anchors


def extents(axes):
    """Of the labels alone: an annotation's own extent would have its leader in it."""
    axes.figure.draw_without_rendering()
    return [Text.get_window_extent(text).frozen() for text in axes.texts]


def test_labels_of_crowded_points_cover_neither_each_other_nor_a_point_nor_leave_the_axes():
    points = [(5, 5), (5.3, 5.1), (5.1, 5.6), (0.1, 0.5), (9.9, 9.5), (2, 8), (2, 7.9)]
    figure, axes, anchors = axes_with_points(points)
    label_points(figure, axes, anchors, [], "#000000")
    boxes = extents(axes)
    assert len(boxes) == len(points)
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    inside = axes.get_window_extent()
    for box in boxes:
        assert inside.containsx(box.x0)
        assert inside.containsx(box.x1)
        assert not any(box.contains(*axes.transData.transform(point)) for point in points)


def test_labels_avoid_lines():
    figure, axes, anchors = axes_with_points([(5, 5)])
    [(_, middle)] = axes.transData.transform([(5, 5)])
    line = (0, middle - 2, 1000, middle + 2)
    label_points(figure, axes, anchors, [line], "#000000")
    [box] = extents(axes)
    assert box.y0 > line[3] or box.y1 < line[1]


def test_labels_of_line_ends_keep_the_order_of_the_ends_and_their_distance():
    figure, axes, _ = axes_with_points([])
    ends = [LineEnd(9, y, "#000000", f"line {y}") for y in (5.0, 5.1, 4.9, 5.05, 0.1)]
    label_ends(figure, axes, ends, "#000000")
    labels = sorted(zip(extents(axes), axes.texts, strict=True), key=lambda label: label[0].y0)
    assert [text.get_text() for _, text in labels] == [
        *("line 0.1", "line 4.9", "line 5.0", "line 5.05", "line 5.1")
    ]
    boxes = [box for box, _ in labels]
    assert all(low.y1 <= high.y0 for low, high in pairwise(boxes))
    assert all(box.x0 > axes.get_window_extent().x1 for box in boxes)
