"""The web page of a report: complete in itself, escaped, and without columns of nothing."""

import base64
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from comparing.labels import label as label_of
from files.errors import RunError
from reporting.contents import about, sections
from reporting.page import write_html
from reporting.report import draw_all
from tests.reporting.variants_for_reports import (
    curves_of,
    decode_point,
    group,
    mha,
    mla,
    single_seed,
    unscored,
)

VOID = {"meta", "link", "img", "source", "wbr"}
MINUS = "\N{MINUS SIGN}"


class Page(HTMLParser):
    """Every element with its attributes and the text inside it."""

    def __init__(self, source):
        super().__init__()
        self.source = source
        self.elements = []
        self._open = []
        self.feed(source)
        assert not self._open

    def handle_starttag(self, tag, attributes):
        element = {"tag": tag, "text": "", **dict(attributes)}
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_endtag(self, tag):
        assert self._open.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self._open:
            element["text"] += data

    def all(self, tag, **attributes):
        return [
            element
            for element in self.elements
            if element["tag"] == tag
            and all(element.get(key.strip("_")) == value for key, value in attributes.items())
        ]

    def text(self, tag, **attributes):
        return [" ".join(e["text"].split()) for e in self.all(tag, **attributes)]

    def cells(self, label):
        return self.text("td", **{"data-label": label})


def written(folder, *groups, curves=None, pictures=None, title="five", headline="", facts=None):
    """Write a report of groups and parse it; its pictures are drawn where none are given."""
    found = [*sections(groups, curves or {}, []), about(facts or {"commit": "abc"})]
    if pictures is None:
        pictures, _ = draw_all(folder, found)
    path = folder / "report.html"
    write_html(path, title=title, headline=headline, sections=found, pictures=pictures)
    return Page(path.read_text())


@pytest.fixture
def page(tmp_path):
    """Write a report without pictures and parse it."""
    return lambda *groups, **changes: written(tmp_path, *groups, pictures={}, **changes)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A report in which nothing is missing."""
    points = [
        decode_point(context, batch, beyond=context > 8) for batch in (1, 4) for context in (8, 16)
    ]
    variants = [mha(decode=points), mla(decode=points, break_even={"1": 16, "4": None})]
    return written(
        tmp_path_factory.mktemp("full"),
        group(*variants),
        curves=curves_of(*variants),
        headline="MLA is small.",
        facts={"command": "python eval_model.py", "commit": "abc"},
    )


def test_parts_come_in_order_and_links_lead_somewhere(full):
    assert full.text("h2") == [
        *("Results", "Quality against cache", "Cache against context", "Training", "Decoding"),
        *("Budget", "Protocol", "Samples", "Versions and command"),
    ]
    ids = [element["id"] for element in full.elements if "id" in element]
    assert len(ids) == len(set(ids))
    assert {link["href"] for link in full.all("a")} == {f"#{name}" for name in ids}
    assert full.text("p", class_="lede") == ["MLA is small."]


def test_the_page_is_one_file_and_needs_no_network(full):
    sources = [e[key] for e in full.elements for key in ("src", "srcset") if key in e]
    assert sources
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert [link["href"] for link in full.all("link")] == ["data:,"]
    for external in ("http://", "https://", "url(", "@import", "<script"):
        assert external not in full.source
    [policy] = full.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy["content"].startswith("default-src 'none'; img-src data:;")


def test_every_plot_has_a_dark_version_and_says_what_it_shows(full):
    images, dark = full.all("img"), full.all("source")
    assert len(images) == len(dark) == 4
    for image, source in zip(images, dark, strict=True):
        assert source["media"] == "screen and (prefers-color-scheme: dark)"
        light = base64.b64decode(image["src"].split(",")[1]).decode()
        assert "<svg" in light
        assert light != base64.b64decode(source["srcset"].split(",")[1]).decode()
    quality, cache, curves, decode = [image["alt"] for image in images]
    assert "mha 41.99 at 1,572,864 bytes; mla 43.43 (+3.40 %) at 442,368 bytes" in quality
    assert "Lowest at their size or less: mla, mha." in quality
    assert "mha 1,572,864 bytes at 256 tokens; mla 442,368 bytes at 256 tokens" in cache
    assert "mla 52.44 after 2,000 tokens" in curves
    assert "batch 1: mha 4.00 at 8 and 4.00 at 16; mla" in decode
    assert "batch 4: mha" in decode


def test_tables_have_intervals_the_verdict_and_the_costs(full):
    names = full.text("th", scope="row")[:2]
    assert names == ["mha RoPE seeds 2", "mla RoPE seeds 2"]
    assert full.cells("perplexity")[1] == "43.43 text 42.01 to 44.92 seeds 40.52 to 46.34"
    assert full.cells("against mha") == [
        "\N{EN DASH}",
        f"+3.40 % text +2.00 to +4.90 seeds {MINUS}0.30 to +7.20",
    ]
    assert full.cells("verdict") == ["baseline", mla()["verdict"]]
    assert full.cells("parameters") == ["2,548,800", "2,548,800"]
    assert full.cells("KV bytes at 256")[1] == "442,368 of baseline 0.281 measured 442,368"
    assert full.cells("tokens/s")[0] == "2,169 in 12.1 min peak 722 MB"
    assert full.cells("ms/token, batch 1, at 16") == ["4.00", "4.00"]
    never = ["", "\N{EN DASH}"]  # at batch 4
    assert full.cells("faster than baseline from") == ["", "16", *never]
    assert full.cells("ms at 16*")[0] == "4.00 roofline 0.40"
    assert full.cells("MLP") == ["1,161,216"] * 2
    assert full.cells("training FLOPs/token")[0].startswith("1.500")
    assert full.cells("bits/byte")[:2] == ["1.5360"] * 2
    assert full.text("dt")[:2] == ["corpus", "split"]
    assert full.text("dd")[-2:] == ["python eval_model.py", "abc"]
    assert full.text("li")[-2:] == ["optim: muon", "attention"]
    assert full.all("pre")[0]["text"] == "def first():\n    return 1"


def test_cells_say_on_a_phone_and_to_a_screen_reader_what_they_are(full):
    for cell in full.all("td"):
        assert cell.get("data-label") or not cell["text"]
    assert all(heading.get("scope") for heading in full.all("th"))
    assert len(full.all("caption")) == len(full.all("table")) == 7


def test_headings_skip_no_level_and_landmarks_have_names_of_their_own(full, page):
    other = mla(name="mla-strided", runs=["strided"], seeds=[0], decode=[decode_point(8)])
    tasks = {"a": {"n": 9, "version": 1, "num_fewshot": 0, "metrics": {}}}
    groups = group(mha(), mla()), group(single_seed(mha()), other | {"tasks": tasks})
    for found in (full, page(*groups, curves=curves_of(mha(), other))):
        levels = [int(e["tag"][1]) for e in found.elements if re.fullmatch("h[1-6]", e["tag"])]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(below <= above + 1 for above, below in pairwise(levels))
        kinds = ("nav", "main", "header", "footer", "aside", "form")
        landmarks = [
            (e.get("role", e["tag"]), e.get("aria-label"), e.get("aria-labelledby"))
            for e in found.elements
            if e["tag"] in kinds
            or e.get("role") == "region"
            or (e["tag"] == "section" and {"aria-label", "aria-labelledby"} & set(e))
        ]
        assert len(landmarks) == len(set(landmarks))
        focusable = [e for e in found.elements if "tabindex" in e and e["tag"] != "pre"]
        assert all(e["role"] == "group" and e["aria-label"] for e in focusable)


def luminance(colour):
    """Relative luminance of an sRGB colour, as WCAG 2.2 defines it."""
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_every_text_stands_out_from_its_ground_in_both_schemes(full):
    [style] = [element["text"] for element in full.all("style")]
    assert "opacity" not in style  # a contrast that cannot be read off the colours
    schemes = [
        dict(re.findall(r"--([\w-]+): (#\w{6});", block))
        for block in re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    ]
    rules = [
        re.findall(r"(?:^|; ?)([\w-]+): *var\(--([\w-]+)\)", body.strip())
        for body in re.findall(r"\{([^{}]*)\}", style)
    ]
    pairs = set()
    for found in map(dict, rules):
        if "color" in found:
            grounds = [found["background"]] if "background" in found else ["ground", "face"]
            pairs |= {(found["color"], ground) for ground in grounds}
    assert {("quiet", "face"), ("quiet", "wash"), ("bad", "bad-wash"), ("ink", "ground")} <= pairs
    assert len(schemes) == 2
    for colours in (schemes[0], schemes[0] | schemes[1]):
        for text, ground in pairs:
            bright, dark = sorted(map(luminance, (colours[text], colours[ground])), reverse=True)
            assert (bright + 0.05) / (dark + 0.05) >= 4.5, (text, ground)


def test_intervals_are_no_smaller_than_the_text(full):
    [style] = [element["text"] for element in full.all("style")]
    rules = re.findall(r"^ *([^{}\n]+) \{([^{}]*)\}", style, re.MULTILINE)
    sizes = [(s, re.search(r"font(?:-size)?: ([\d.]+)(px|pt)", body)) for s, body in rules]
    text = {size[2]: float(size[1]) for selector, size in sizes if size and selector == "body"}
    assert set(text) == {"px", "pt"}  # on the screen and on paper
    shown = [size for s, size in sizes if size and re.search(r"\.interval(?! i)", s)]
    assert {size[2] for size in shown} == set(text)
    assert all(float(size[1]) >= text[size[2]] for size in shown)
    assert len(full.all("span", class_="interval")) >= 6


def test_numbers_are_grouped_signed_and_kept_with_their_units(page):
    speeds = [decode_point(8, ms=1234.5)]
    variant = mla(
        perplexity=12345.6,
        perplexity_ci95_text=[1000.0, 20000.0],
        delta_percent=-2345.678,
        delta_percent_ci95_text=[-3000.5, -1.25],
        train_wall_seconds=36e5 * 2,
        decode=speeds,
    )
    differs = ["learning rate (optim.learning_rate): 8e-05 (mha-1e-3), -0.5 (mla-2)"]
    one = group(mha(decode=speeds), variant, differs=differs)
    one.protocol |= {"words": 1234567, "utf8_bytes": 1e6, "decode_path": "token by token"}
    found = page(
        one,
        headline="mla -1.5 % (-2.00 to +3.00) at 5 MiB",
        facts={"Command": "python eval_model.py x=-1 y=8e-05"},
    )
    times, space = "\N{MULTIPLICATION SIGN}", "\N{NO-BREAK SPACE}"
    cell = found.all("td", **{"data-label": "against mha"})[1]["text"]
    assert f"{MINUS}2,345.68{space}%" in cell
    assert f"{MINUS}3,000.50 to {MINUS}1.25" in cell
    assert found.cells("perplexity")[1].startswith("12,346 text 1,000 to 20,000")
    assert found.cells("ms/token, batch 1, at 8") == ["1,234.50"] * 2
    assert "2,000.0 h" in found.cells("tokens/s")[1]
    card = dict(zip(found.text("dt"), found.text("dd"), strict=True))
    assert (card["words"], card["bytes (UTF-8)"]) == ("1,234,567", "1,000,000.0")
    [lede] = found.all("p", class_="lede")
    assert lede["text"] == f"mla {MINUS}1.5{space}% ({MINUS}2.00 to +3.00) at 5{space}MiB"
    power = f"8{space}{times}{space}10⁻⁵"
    assert found.all("li")[-1]["text"] == (
        f"learning rate (optim.learning_rate): {power} (mha-1e-3), {MINUS}0.5 (mla-2)"
    )
    assert found.text("dd")[-1] == "python eval_model.py x=-1 y=8e-05"  # to be pasted
    # Wherever kvlab itself writes something: no bare digits, no sign or unit that breaks away.
    own = " ".join(
        e["text"] for e in found.elements if e["tag"] in ("td", "p", "li", "figcaption", "caption")
    )
    assert not re.search(r"(?<![\d.,])\d{4,}(?![\d.])", own)
    assert not re.search(r"(?<![\w-])-\d", own)
    assert not re.search(r"\d (%|[KMG]i?B|min|h|ms)\b", own)
    labels = found.text("th", scope="col") + found.text("dt") + found.text("caption")
    assert not [text for text in labels if re.search(r"[a-z]_[a-z]", text)]


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("utf8_bytes", "bytes (UTF-8)"),
        ("begins_with", "begins with"),
        ("optim.learning_rate", "learning rate (optim.learning_rate)"),
        ("exact_match,strict-match", "exact match, strict-match"),
    ],
)
def test_keys_have_labels(key, words):
    assert label_of(key) == words


def test_what_a_run_brings_is_text_and_no_markup(page):
    wild = '<script>alert(1)</script>"onload="x'
    variant = mla(name=wild, runs=[wild], seeds=[0], positions=wild, sample=wild, verdict_note=wild)
    one = group(mha(), variant, held_equal=[wild], differs=[wild])
    one.protocol |= {wild: wild, "corpus": wild}
    curves = {wild: {"variant": wild, "attention": wild, "tokens": [1], "perplexity": [2.0]}}
    found = page(one, curves=curves, title=wild, headline=wild, facts={wild: wild})
    assert not found.all("script")
    assert not any("onload" in element for element in found.elements)
    for tag in ("title", "h1", "pre", "dt", "dd", "summary"):
        assert wild in found.text(tag)


def test_without_perplexity_there_are_no_columns_of_nothing(page):
    found = page(group(unscored(mha(baseline=None)), unscored(mla(baseline=None))))
    assert found.text("h2") == [
        *("Results", "Cache against context", "Budget", "Protocol", "Samples"),
        "Versions and command",
    ]
    for label in ("perplexity", "against its baseline", "verdict", "seed", "bits/byte"):
        assert not found.cells(label)
    assert found.cells("parameters")
    assert "None" not in found.source
    assert "over the documents of" not in found.source


def test_one_variant_without_anything_optional(page):
    nothing = ("baseline", "verdict", "delta_percent", "cache_ratio_to_baseline", "sample")
    costs = ("train_tokens_per_second", "train_peak_memory_bytes", "train_wall_seconds")
    variant = single_seed(mla()) | dict.fromkeys((*nothing, *costs)) | {"verdict_note": ""}
    del variant["decode"], variant["break_even"], variant["kv_cache_curve"]
    found = page(group(variant))
    assert found.text("h2") == ["Results", "Budget", "Protocol", "Versions and command"]
    assert found.text("th", scope="row")[0] == "mla RoPE seeds 1"
    assert found.cells("KV bytes at 256")[0] == "442,368 of MHA's 0.281 measured 442,368"
    for label in ("against its baseline", "verdict", "tokens/s"):
        assert not found.cells(label)
    assert "None" not in found.source


def test_too_few_seeds_and_documents_are_explained(page):
    few = single_seed(mla(verdict="too few seeds"))
    found = page(group(mha(), few))
    assert found.cells("verdict") == ["baseline", "too few seeds single seed"]
    usual = page(group(mha(), mla()))
    short = page(group(*(variant | {"documents_scored": 4} for variant in (mha(), mla()))))
    for said, where in (("seed might turn the", found), ("the split has 4 documents", short)):
        assert any(said in text for text in where.text("p"))
        assert not any(said in text for text in usual.text("p"))


def test_every_pair_and_the_influential_documents_have_tables(page):
    row = {"document": 7, "name": "html/entities.py", "tokens": 20005, "delta_percent_without": 1.2}
    variant = mla(
        influential_documents=[row, row | {"name": "<b>", "tokens": 5}],
        delta_percent_without_influential=-0.5,
    )
    pair = variant | {"variant": "mla", "against": "mha"}
    found = page(group(mha(), variant, pairs=[pair, pair | {"against": "gqa"}]))
    assert found.cells("against") == ["mha", "gqa"]
    interval = f"+3.40 % text +2.00 to +4.90 seeds {MINUS}0.30 to +7.20"
    assert found.cells("difference")[1] == interval
    assert found.cells("document") == ["html/entities.py", "?b?", "these 2 together"]
    assert found.cells("tokens") == ["20,005", "5", "20,010"]
    assert found.cells("without it") == ["+1.20 %", "+1.20 %", f"{MINUS}0.50 %"]
    alone = page(group(mha(), mla(), pairs=[pair]))  # one pair is the main table's
    assert not alone.cells("difference")
    assert not alone.cells("document")


def test_protocols_have_sections_of_their_own(page):
    other = mla(name="mla-strided", runs=["strided"], seeds=[0])
    second = group(other)
    second.protocol["stride"] = 64
    found = page(group(single_seed(mla())), second, curves=curves_of(other))
    assert found.text("h2") == ["Protocol 1 of 2", "Protocol 2 of 2", "Versions and command"]
    lines = [text for text in found.text("p", class_="quiet") if "tokens scored" in text]
    assert ["stride 64" in line for line in lines] == [False, True]
    assert found.text("h3").count("Results") == 2
    assert found.text("h3").count("Training") == 1  # the first has no curves
    ids = [element["id"] for element in found.elements if "id" in element]
    assert len(ids) == len(set(ids))
    assert {link["href"] for link in found.all("a")} <= {f"#{name}" for name in ids}


def test_a_page_that_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path):
    path = tmp_path / "absent" / "report.html"
    with pytest.raises(RunError, match=r"report\.html"):
        write_html(path, title="a", headline="b", sections=[], pictures={})
    assert not list(tmp_path.iterdir())
