"""The web page of a report: complete in itself, escaped, and without columns of nothing."""

import base64
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from comparing.labels import label as label_of
from files.errors import RunError
from reporting.html_report import write_html
from tests.reporting.variants_for_reports import (
    curves_of,
    decode_point,
    mha,
    mla,
    single_seed,
    unscored,
)

VOID = {"meta", "link", "img", "source", "wbr"}


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


def group(*variants, **changes):
    return {
        "protocol_line": "tiny, validation split: 99 tokens scored",
        "protocol": {
            "corpus": "tiny",
            "context": 8,
            "revision": None,
            "intra_document_mask": False,
        },
        "variants": list(variants),
        "held_equal": ["optim: muon"],
        "differs": ["attention"],
        "pairs": [],
    } | changes


@pytest.fixture
def page(tmp_path):
    """Write a report of the groups and parse it."""

    def write(*groups, curves=None, **changes):
        texts = {"title": "five", "headline": "MLA is small.", "facts": {"commit": "abc"}} | changes
        path = tmp_path / "report.html"
        write_html(path, groups=groups, curves=curves or {}, **texts)
        return Page(path.read_text())

    return write


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A report in which nothing is missing."""
    points = [decode_point(8, batch, beyond=context > 8) for batch in (1, 4) for context in (8, 16)]
    points = [
        point | {"context": context} for point, context in zip(points, (8, 16) * 2, strict=True)
    ]
    variants = [mha(decode=points), mla(decode=points, break_even={"1": 16, "4": None})]
    path = tmp_path_factory.mktemp("full") / "report.html"
    write_html(
        path,
        title="five",
        headline="MLA is small.",
        groups=[group(*variants)],
        curves=curves_of(*variants),
        facts={"command": "python eval_model.py", "commit": "abc"},
    )
    return Page(path.read_text())


def test_parts_come_in_order_and_links_lead_somewhere(full):
    assert full.text("h2") == [
        *("Results", "Quality against cache", "Cache against context", "Training", "Decoding"),
        *("Budget", "Protocol", "Samples", "Versions and command"),
    ]
    ids = [element["id"] for element in full.elements if "id" in element]
    assert len(ids) == len(set(ids))
    assert {link["href"] for link in full.all("a")} == {f"#{name}" for name in ids}
    assert full.text("p", class_="lede") == ["MLA is small."]


def test_nothing_comes_from_elsewhere(full):
    sources = [e[key] for e in full.elements for key in ("src", "srcset") if key in e]
    assert sources
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert [link["href"] for link in full.all("link")] == ["data:,"]
    for outside in ("http://", "https://", "url(", "@import", "<script"):
        assert outside not in full.source
    [policy] = full.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy["content"].startswith("default-src 'none'; img-src data:;")


def test_every_plot_has_a_dark_version_and_says_what_it_shows(full):
    images, dark = full.all("img"), full.all("source")
    assert len(images) == len(dark) == 5  # Pareto, cache, curves, two batches
    for image, source in zip(images, dark, strict=True):
        assert source["media"] == "screen and (prefers-color-scheme: dark)"
        light = base64.b64decode(image["src"].split(",")[1]).decode()
        assert "<svg" in light
        assert light != base64.b64decode(source["srcset"].split(",")[1]).decode()
    pareto, cache, curves, *decode = [image["alt"] for image in images]
    assert "mha 41.99 at 1,572,864 bytes; mla 43.43 at 442,368 bytes" in pareto
    assert "Lowest at their size or less: mla, mha." in pareto
    assert "mha 1,572,864 bytes at 256 tokens; mla 442,368 bytes at 256 tokens" in cache
    assert "mla 52.44 after 2,000 tokens" in curves
    assert ["batch 1" in decode[0], "batch 4" in decode[1]] == [True, True]
    assert "mha 4.00 at 8 and 4.00 at 16" in decode[0]


def test_main_table_has_both_intervals_the_verdict_and_the_costs(full):
    names = full.text("th", scope="row")[:2]
    assert names == ["mha RoPE seeds 0, 1", "mla RoPE seeds 0, 1"]
    assert full.cells("perplexity")[1] == "43.43 text 42.01 to 44.92 seeds 40.52 to 46.34"
    minus = "\N{MINUS SIGN}"
    assert full.cells("against mha") == [
        "\N{EN DASH}",
        f"+3.40 % text +2.00 to +4.90 seeds {minus}0.30 to +7.20",
    ]
    assert full.cells("verdict") == ["baseline", "unresolved"]
    assert full.cells("parameters") == ["2,548,800", "2,548,800"]
    assert full.cells("KV bytes at 256")[1] == "442,368 0.281 of mha"
    assert full.cells("training tokens/s")[0] == "2,169 in 12.1 min peak 688 MiB"
    assert full.cells("ms/token, batch 4, at 16") == ["4.00", "4.00"]
    assert full.cells("faster than the baseline from") == ["\N{EN DASH}", "16"]  # none at batch 4


def test_further_tables_and_lists(full):
    assert full.cells("seed 1") == ["43.66", "43.66"]
    assert full.cells("ms at 16*")[0] == "4.00 roofline 0.40"
    assert full.cells("MLP") == ["1,161,216"] * 2
    assert full.cells("MFLOPs/token") == ["15.0"] * 2
    assert full.text("dt")[:4] == [
        *("corpus", "context", "revision", "attention within documents only")
    ]
    assert full.text("dd") == ["tiny", "8", "\N{EN DASH}", "no", "python eval_model.py", "abc"]
    assert [item for item in full.text("li") if item in ("optim: muon", "attention")] == [
        *("optim: muon", "attention")
    ]
    assert full.all("pre")[0]["text"] == "def first():\n    return 1"


def test_cells_say_on_a_phone_and_to_a_screen_reader_what_they_are(full):
    assert all(cell["data-label"] for cell in full.all("td", role="cell") if "data-label" in cell)
    for cell in full.all("td"):
        assert cell.get("data-label") or not cell["text"]
    assert all(heading.get("scope") for heading in full.all("th"))
    assert len(full.all("caption")) == len(full.all("table")) == 6


def levels_and_landmarks(page):
    """Check that no level is skipped, and that no two landmarks of a kind have one name."""
    levels = [int(e["tag"][1]) for e in page.elements if re.fullmatch("h[1-6]", e["tag"])]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(below <= above + 1 for above, below in pairwise(levels))
    kinds = ("nav", "main", "header", "footer", "aside", "form")
    landmarks = [
        (e.get("role", e["tag"]), e.get("aria-label"), e.get("aria-labelledby"))
        for e in page.elements
        if e["tag"] in kinds
        or e.get("role") == "region"
        or (e["tag"] == "section" and {"aria-label", "aria-labelledby"} & set(e))
    ]
    assert len(landmarks) == len(set(landmarks))
    focusable = [e for e in page.elements if "tabindex" in e and e["tag"] != "pre"]
    assert all(e["role"] == "group" and e["aria-label"] for e in focusable)


def test_headings_skip_no_level_and_landmarks_have_names_of_their_own(full, page):
    levels_and_landmarks(full)
    other = mla(name="mla-strided", runs=["strided"], seeds=[0], decode=[decode_point(8)])
    tasks = {"a": {"n": 9, "version": 1, "num_fewshot": 0, "metrics": {}}}
    groups = group(mha(), mla()), group(single_seed(mha()), other | {"tasks": tasks})
    levels_and_landmarks(page(*groups, curves=curves_of(mha(), other)))


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
    text = {}
    for selector, body in rules:
        size = re.search(r"font(?:-size)?: ([\d.]+)(px|pt)", body)
        if size and selector == "body":
            text[size[2]] = float(size[1])
    assert set(text) == {"px", "pt"}  # on the screen and on paper
    seen = set()
    for selector, body in rules:
        size = re.search(r"font-size: ([\d.]+)(px|pt)", body)
        if size and re.search(r"\.interval(?! i)", selector):
            assert float(size[1]) >= text[size[2]], selector
            seen.add(size[2])
    assert seen == set(text)
    assert len(full.all("span", class_="interval")) == 6


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
    found = page(
        group(
            mha(decode=speeds),
            variant,
            protocol={"words": 1234567, "utf8_bytes": 1e6, "decode_path": None},
            differs=["learning rate (optim.learning_rate): 8e-05 (mha-1e-3), -0.5 (mla-2)"],
        ),
        headline="mla -1.5 % (-2.00 to +3.00) at 5 MiB",
        facts={"Command": "python eval_model.py x=-1 y=8e-05"},
    )
    minus, times, space = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}", "\N{NO-BREAK SPACE}"
    cell = found.all("td", **{"data-label": "against mha"})[1]["text"]
    assert f"{minus}2,345.68{space}%" in cell
    assert f"{minus}3,000.50 to {minus}1.25" in cell
    assert found.cells("perplexity")[1].startswith("12,346 text 1,000 to 20,000")
    assert found.cells("ms/token, batch 1, at 8") == ["1,234.50"] * 2
    assert "2,000.0 h" in found.cells("training tokens/s")[1]
    assert found.text("dt")[:3] == ["words", "bytes (UTF-8)", "scored through"]
    assert found.text("dd")[:3] == ["1,234,567", "1,000,000.0", "\N{EN DASH}"]
    [lede] = found.all("p", class_="lede")
    assert lede["text"] == f"mla {minus}1.5{space}% ({minus}2.00 to +3.00) at 5{space}MiB"
    power = f"8{space}{times}{space}10⁻⁵"
    assert found.all("li")[-1]["text"] == (
        f"learning rate (optim.learning_rate): {power} (mha-1e-3), {minus}0.5 (mla-2)"
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


def test_the_same_numbers_give_the_same_page(page):
    groups = [group(mha(), mla())]
    assert page(*groups).source == page(*groups).source


def test_what_a_run_brings_is_text_and_no_markup(page):
    wild = '<script>alert(1)</script>"onload="x'
    variant = mla(name=wild, runs=[wild], seeds=[0], positions=wild, sample=wild, verdict_note=wild)
    found = page(
        group(
            mha(),
            variant,
            protocol={wild: wild},
            protocol_line=wild,
            held_equal=[wild],
            differs=[wild],
        ),
        curves={wild: {"variant": wild, "attention": wild, "tokens": [1], "perplexity": [2.0]}},
        title=wild,
        headline=wild,
        facts={wild: wild},
    )
    assert not found.all("script")
    assert not any("onload" in element for element in found.elements)
    for tag in ("title", "h1", "pre", "dt", "dd", "summary"):
        assert wild in found.text(tag)
    assert any(wild in image["alt"] for image in found.all("img"))


def test_without_perplexity_there_are_no_columns_of_nothing_and_no_pareto_plot(page):
    found = page(group(unscored(mha(baseline=None)), unscored(mla(baseline=None))))
    assert found.text("h2") == [
        *("Results", "Cache against context", "Budget", "Protocol", "Samples"),
        "Versions and command",
    ]
    for label in ("perplexity", "against baseline", "verdict", "seed 0", "bits/byte"):
        assert not found.cells(label)
    assert found.cells("parameters")
    assert len(found.all("img")) == 1  # of the caches
    assert "None" not in found.source
    assert "over the documents of" not in found.source


def test_one_variant_without_anything_optional(page):
    variant = single_seed(
        mla(
            baseline=None,
            verdict=None,
            verdict_note="",
            delta_percent=None,
            cache_ratio_to_baseline=None,
            train_tokens_per_second=None,
            train_peak_memory_bytes=None,
            train_wall_seconds=None,
            sample=None,
        )
    )
    del variant["decode"], variant["break_even"], variant["kv_cache_curve"]
    found = page(group(variant))
    assert found.text("h2") == ["Results", "Budget", "Protocol", "Versions and command"]
    assert found.text("th", scope="row")[0] == "mla RoPE seed 0"
    assert found.cells("KV bytes at 256")[0] == "442,368"
    for label in ("against baseline", "verdict", "training tokens/s"):
        assert not found.cells(label)
    assert "None" not in found.source


def test_too_few_seeds_are_said_beside_the_verdict_and_explained(page):
    few = single_seed(mla(verdict="too few seeds"))
    found = page(group(mha(), few))
    assert found.cells("verdict") == ["baseline", "too few seeds single seed"]
    assert any("another seed might turn the" in text for text in found.text("p"))
    assert not any(
        "another seed might turn the" in text for text in page(group(mha(), mla())).text("p")
    )


def test_every_pair_and_the_influential_documents_have_tables(page):
    row = {"document": 7, "name": "html/entities.py", "tokens": 20005, "delta_percent_without": 1.2}
    variant = mla(
        influential_documents=[row, row | {"name": "<b>", "tokens": 5}],
        delta_percent_without_influential=-0.5,
    )
    pair = variant | {"variant": "mla", "against": "mha"}
    found = page(group(mha(), variant, pairs=[pair, pair | {"against": "gqa"}]))
    minus = "\N{MINUS SIGN}"
    assert found.cells("against") == ["mha", "gqa"]
    assert found.cells("difference")[1] == (
        f"+3.40 % text +2.00 to +4.90 seeds {minus}0.30 to +7.20"
    )
    assert found.cells("document") == ["html/entities.py", "<b>", "these 2 together"]
    assert found.cells("tokens") == ["20,005", "5", "20,010"]
    assert found.cells("without it") == ["+1.20 %", "+1.20 %", f"{minus}0.50 %"]
    # One pair is the main table's.
    alone = page(group(mha(), mla(), pairs=[pair]))
    assert not alone.cells("difference")
    assert not alone.cells("document")


def test_a_text_of_few_documents_says_why_it_has_no_interval(page):
    few = [variant | {"documents_scored": 4} for variant in (mha(), mla())]
    found = page(group(*few))
    assert any("the split has 4 documents" in text for text in found.text("p"))
    assert "over the documents of the scored text" not in found.source


def test_a_cache_that_measures_other_than_its_formula_shows_both(page):
    found = page(group(mha(), mla(kv_cache_bytes_measured=1800.5)))
    assert found.cells("KV bytes at 256")[1] == "442,368 0.281 of mha measured 460,928"


def test_protocols_have_sections_of_their_own(page):
    other = mla(name="mla-strided", runs=["strided"], seeds=[0])
    found = page(
        group(single_seed(mla())),
        group(other, protocol_line="stride 64"),
        curves=curves_of(other),
    )
    assert found.text("h2") == ["Protocol 1 of 2", "Protocol 2 of 2", "Versions and command"]
    assert found.text("p", class_="quiet wide") == [
        *("tiny, validation split: 99 tokens scored", "stride 64")
    ]
    assert found.text("h3").count("Results") == 2
    assert found.text("h3").count("Training") == 1  # the first has no curves
    ids = [element["id"] for element in found.elements if "id" in element]
    assert len(ids) == len(set(ids))
    assert {link["href"] for link in found.all("a")} <= {f"#{name}" for name in ids}


def test_a_page_that_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path):
    with pytest.raises(RunError, match=r"report\.html"):
        write_html(
            tmp_path / "absent" / "report.html",
            title="a",
            headline="b",
            groups=[group(single_seed(mla()))],
            curves={},
            facts={},
        )
    assert not list(tmp_path.iterdir())
