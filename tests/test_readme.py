"""README.md and docs/: commands compose, examples run, numbers are the studies', names exist."""

import functools
import io
import json
import math
import re
import shlex
import statistics
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from comparing.differences import percent
from comparing.families import Family, how_sure
from comparing.noise import estimate
from comparing.statistics import verdict
from launch import compose, schemas
from launch.typed import for_hydra
from reporting.plots import plot_quality
from reporting.terminal import print_comparison
from settings.evaluation import DEFAULT_MARGIN

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
QUICKSTART = (ROOT / "docs" / "quickstart.md").read_text()
OWN_ATTENTION = (ROOT / "docs" / "own_attention.md").read_text()
RESULTS = ROOT / "docs" / "results"
FIRST, SECOND = "2026-11-23-study-nano", "2026-11-29-study-layers"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
ENTRIES = {
    "train_model.py": ("train", schemas.TrainConfig),
    "eval_model.py": ("eval", schemas.EvalConfig),
    "generate_text.py": ("generate", schemas.GenerateConfig),
}


def commands():
    """Every command that trains, evaluates or generates, wherever these pages have it."""
    script = r"python ((?:train_model|eval_model|generate_text)\.py(?:(?! or python)[^`\n|)&])*)"
    found = re.findall(script, README + QUICKSTART + OWN_ATTENTION)
    return sorted({command.strip() for command in found if "..." not in command})


def test_the_readme_is_short_and_has_the_three_commands_and_both_one_liners():
    lines = README.splitlines()
    assert len(lines) <= 150
    assert max(map(len, lines)) <= 100
    for line in (
        "    sh prepare_for_use.sh\n",
        "    python train_model.py attention=mla\n    python eval_model.py\n",
        "`sh prepare_for_use.sh && python train_model.py attention=mla`",
        "`sh prepare_for_use.sh --dev && python -m pytest`",
    ):
        assert line in README
    assert "sh prepare_for_use.sh --dev && python -m pytest" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("command", commands())
def test_every_command_composes(command):
    script, *arguments = shlex.split(command)
    if {"attention=gated", "--help"} & {*arguments}:
        pytest.skip("own_attention.md adds that attention; test_own_attention.py runs it")
    name, schema = ENTRIES[script]
    if "-m" in arguments:  # the first choice of a sweep: one run is composed at a time
        arguments = [re.sub(r"=([^\[,]*),.*", r"=\1", part) for part in arguments if part != "-m"]
    overrides = for_hydra(name, arguments)
    compose.checked(compose.composed(name, overrides), schema)


EXAMPLES = re.findall(r"```python\n(.*?)```", README + QUICKSTART + OWN_ATTENTION, re.DOTALL)


@pytest.mark.parametrize("code", [code for code in EXAMPLES if "register_" not in code])
def test_every_python_example_runs(code):
    exec(compile(code, "docs", "exec"), {"__name__": "docs"})  # noqa: S102 (our own text)


def showing_commands():
    """The pages, and what --help prints."""
    found = [*PAGES, *(ROOT / "conf").glob("*.yaml")]
    return [path for path in found if path.name != "CHANGELOG.md"]


@pytest.mark.parametrize("page", showing_commands(), ids=lambda path: path.name)
def test_commands_are_quoted_for_zsh(page):
    """An unquoted bracket, * or ? is a pattern there, and an error where no file matches."""
    command = r"(?:^ {4,}|`)((?:python|torchrun|sh|srun) [^`\n]*)"
    for found in re.findall(command, page.read_text(), re.MULTILINE):
        text = re.sub(r"\s[\[|(] ?[a-z]\w*=?.*$|  .*$", "", found)  # optional arguments, remarks
        unquoted = re.sub(r"'[^']*'|\"[^\"]*\"", "", text)
        assert not re.search(r"[][*?]", unquoted), f"{page.name}: {found}"


def anchors(page):
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_a_page_is_narrow_and_its_links_and_files_exist(page):
    text = page.read_text()
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    wide = [line for line in prose.splitlines() if len(line) > 100]
    assert page.name == "CHANGELOG.md" or all(line.startswith(("    ", "|")) for line in wide)
    for target, anchor in re.findall(r"\]\(([^):#]*)(?:#([^)]+))?\)", prose):
        linked = page.parent / target if target else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), f"{target}#{anchor}"
    if page.name == "CHANGELOG.md":
        return  # it says what was
    known = {path.name for path in ROOT.glob("*/**/*.py")}
    for name in re.findall(r"`(?:python )?([\w/]+\.py)\b", prose):
        assert (ROOT / name).exists() or name in known, name


def test_the_readme_links_every_page():
    for path in [*PAGES, ROOT / "docs" / "tutorial.ipynb"]:
        relative = path.relative_to(ROOT).as_posix()
        assert f"]({relative})" in README or relative == "README.md", relative


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_every_file_and_folder_of_the_map_exists(page):
    named = set(re.findall(r"`(\.?[\w./]+(?:/|\.py|\.yml|\.sh))`", (ROOT / page).read_text()))
    missing = {name for name in named if not (ROOT / name).exists()}
    assert len(named) > 9
    assert not missing


def variants_of(study):
    return json.loads((RESULTS / study / "variants.json").read_text())


@functools.cache
def against_mha(study):
    """Difference to MHA in percent, with scipy's Dunnett interval over seeds, by variant."""
    seeds = {v["name"]: np.log(v["perplexity_by_seed"]) for v in variants_of(study)}
    baseline = seeds.pop("mha")
    found = stats.dunnett(*seeds.values(), control=baseline, rng=0).confidence_interval()
    means = [values.mean() - baseline.mean() for values in seeds.values()]
    columns = (100 * np.expm1(column) for column in (means, found.low, found.high))
    return dict(zip(seeds, zip(*columns, strict=True), strict=True))


def test_the_readmes_table_is_that_of_the_committed_study():
    folder, variants = first_study()
    assert f"({folder.relative_to(ROOT).as_posix()}/report.md)" in README
    assert f"({(folder / 'difference.png').relative_to(ROOT).as_posix()})" in README
    differences = against_mha(folder.name)
    whole = max(v["kv_cache_bytes_per_token"] for v in variants) * 256
    for variant in variants:
        name = variant["name"].replace("mla_no_rope", "MLA without RoPE")
        size = variant["kv_cache_bytes_per_token"] * 256
        cells = [name if " " in name else name.upper(), f"{size:,.0f} bytes"]
        cells.append(f"{variant['perplexity']:.2f}")
        if variant["name"] == "mha":
            cells += ["", "baseline"]
        else:
            delta, low, high = differences[variant["name"]]
            cells[1] += f", {whole / size:.1f} x smaller"
            cells.append(f"{delta:+.1f} % ({low:+.1f} to {high:+.1f})")
            cells.append(variant["verdict"])
        assert "| " + " | ".join(cells).replace("|  |", "| |") + " |" in README


def test_the_readmes_second_study_is_the_committed_one():
    differences = against_mha(SECOND)
    delta, low, high = differences["mla window_full"]
    sizes = {v["name"]: v["kv_cache_bytes_at_context"] for v in variants_of(SECOND)}
    text = " ".join(README.split())
    assert f"{delta:+.1f} % ({low:+.1f} to {high:+.1f})" in text
    assert f"{sizes['mha'] / sizes['mla window_full']:.1f} x smaller" in text
    # "Cost nothing measurable": no interval of a window variant lies above 0.
    windows = {name: d for name, d in differences.items() if "window_full" in name}
    assert len(windows) == 2
    assert all(low < 0 for _, low, _ in windows.values())


@pytest.mark.parametrize("study", [FIRST, SECOND])
def test_the_simultaneous_intervals_of_experiments_md_are_those_of_the_studies(study):
    text = (ROOT / "EXPERIMENTS.md").read_text()
    rows = re.findall(r"\| ([+-][\d.]+) % \(([+-][\d.]+) to ([+-][\d.]+)\) \|\n", text)
    written = np.array(rows, dtype=float)
    for numbers in against_mha(study).values():
        # scipy integrates with random numbers.
        assert np.abs(written - numbers).max(axis=1).min() < 0.02


@functools.cache
def noise_of_first():
    """What the seeds of the first study say of its variants."""
    variants = variants_of(FIRST)
    return estimate({v["name"]: dict(enumerate(np.log(v["perplexity_by_seed"]))) for v in variants})


@functools.cache
def first_study():
    """The committed study that README and quickstart show: its folder, and its variants with the
    keys of today's reports, which the dated one has not."""
    folder = RESULTS / FIRST
    rows = json.loads((folder / "results.json").read_text())
    variants = []
    for variant in variants_of(FIRST):
        variant |= {"kv_cache_context": rows[0]["protocol"]["context"], "layers": None}
        measures = ("minimum_detectable_nll", "minimum_detectable_percent", "seeds_to_resolve")
        variant |= dict.fromkeys(measures)
        if not variant["is_baseline"]:
            found = noise_of_first().to_baseline(variant["name"], "mha")
            variant["delta_nll_ci95_seeds"] = found.interval
            variant["delta_percent_ci95_seeds"] = [percent(end) for end in found.interval]
            variant["minimum_detectable_nll"] = found.minimum_detectable
            variant["minimum_detectable_percent"] = percent(found.minimum_detectable)
            variant["seeds_to_resolve"] = found.further_seeds(math.log1p(DEFAULT_MARGIN))
            intervals = [variant["delta_nll_ci95_text"], found.interval]
            variant["verdict"] = verdict(intervals, len(variant["seeds"]), DEFAULT_MARGIN)
        variants.append(variant)
    return folder, variants


def printed_comparison():
    """What `eval_model.py` prints of it on 100 columns, indented as the quickstart has it."""
    folder, variants = first_study()
    row = json.loads((folder / "results.json").read_text())[0]
    of_family = [
        SimpleNamespace(
            label=variant["name"],
            result=variant,
            by_seed=lambda seeds=variant["perplexity_by_seed"]: dict(enumerate(seeds)),
        )
        for variant in variants
    ]
    [baseline] = [one for one in of_family if one.result["is_baseline"]]
    family = Family(baseline, of_family, noise_of_first())
    group = SimpleNamespace(
        results=variants,
        runs=[SimpleNamespace(row=row, windows=True)],
        protocol=row["protocol"],
        how_sure=how_sure([family], [], DEFAULT_MARGIN),
        **{key: [] for key in ("variants", "pairs", "differs", "unranked")},
    )
    printed = io.StringIO()
    print_comparison([group], Path("reports/study_nano"), printed, width=100)
    return textwrap.indent(printed.getvalue().strip("\n"), "    ", str.strip)


def test_the_comparison_in_the_quickstart_is_that_of_the_committed_study():
    assert printed_comparison() in QUICKSTART, printed_comparison()


def test_the_committed_study_is_what_its_rows_and_windows_say():
    folder, variants = first_study()
    rows = {r["run_name"]: r for r in json.loads((folder / "results.json").read_text())}
    windows = json.loads((folder / "windows.json").read_text())
    for variant in variants:
        nlls = [rows[name]["nll"] for name in variant["runs"]]
        assert variant["nll"] == pytest.approx(statistics.fmean(nlls))
        assert variant["perplexity"] == pytest.approx(math.exp(variant["nll"]))
        for name in variant["runs"]:
            found = windows[name]
            assert sum(found["nll"]) / sum(found["tokens"]) == pytest.approx(rows[name]["nll"])


def test_the_plot_is_drawn_from_the_committed_study(tmp_path):
    folder, variants = first_study()
    plot_quality(variants, [tmp_path / "difference.png"])
    drawn, committed = (
        np.asarray(Image.open(path).convert("L"), dtype=np.float64)
        for path in (tmp_path / "difference.png", folder / "difference.png")
    )
    assert drawn.shape == committed.shape
    # Fonts are matplotlib's own; what is left is anti-aliasing.
    assert np.abs(drawn - committed).mean() < 0.5
