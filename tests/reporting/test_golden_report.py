"""The numbers and sentences of a whole report, which a change of structure must leave as they are.

The runs are made up, so nothing is trained or timed. This file wrote `golden_report.json` beside
it: every file of the report as lines, and what a terminal shows. Words are compared everywhere;
numbers exactly with the libraries and the processor of the record, and to nine digits elsewhere. A
change that is meant to move them writes the record again and says so in the changelog:

    KVLAB_WRITE_GOLDEN=1 python -m pytest -n 0 tests/reporting/test_golden_report.py
"""

import copy
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import scipy
from matplotlib.figure import Figure

import comparing.across_tokenizers
from comparing.decode_speed import break_even
from comparing.variants import compare
from measuring.perplexity import Score
from measuring.rows import EvaluatedRun
from reporting.report import new_report
from reporting.terminal import print_comparison, print_decoding
from tests.comparing.test_variants import CARD, TEXT, TOKENS, WINDOWS, run
from tests.reporting.test_task_results import ANSWERS
from tests.reporting.variants_for_reports import decode_point
from tests.training.test_golden import machine as processor

RECORD = Path(__file__).with_name("golden_report.json")
FACTS = {"Command": "python eval_model.py", "Trained at commit": "c" * 40}
NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?")
IMAGE = re.compile(r"data:image/svg\+xml;base64,[\w+/=]*")
STYLE = re.compile(r"<style>.*?</style>", re.S)


def machine():
    """What decides the last bits."""
    return f"{processor()}, numpy {np.__version__}, scipy {scipy.__version__}"


def external_model():
    """A model of another library, which has another tokenizer and no seed."""
    rates = 1.5 * TEXT
    each = (TOKENS * rates).tolist(), [TOKENS] * WINDOWS
    windows = Score(float(TOKENS * rates.sum()), WINDOWS * TOKENS, *each, *each)
    card = CARD | {"tokenizer_sha256": "d" * 64, "data_fingerprint": "e" * 64}
    row = copy.deepcopy(run("mha", card=card).row) | {
        **{"run_name": "hf:llama", "attention": "hf:llama", "seed": None, "num_parameters": 1234},
        **{"nll": windows.nll, "perplexity": windows.perplexity},
        **{"bits_per_byte": windows.bits_per_byte(5000), "cache_ratio_to_mha": None},
        **{"word_perplexity": windows.word_perplexity(1000), "kv_cache_bytes_per_token": None},
        **dict.fromkeys(("tokens_trained", "train_tokens_per_second", "train_wall_seconds")),
        **dict.fromkeys(("train_peak_memory_bytes", "versions", "git_commit")),
    }
    curve = {"tokens": [], "perplexity": []}
    return EvaluatedRun(row, None, windows, {}, curve, None, prepared=[25] * WINDOWS)


def groups():
    """Three seeds of four variants, one seed of a fifth, and an external model: two protocols."""
    card = CARD | {"revision": "r1", "tokens": WINDOWS * TOKENS + 1, "tasks": "lm_eval 1.2.3"}
    numerics = {"dtype": "float32", "device": "cpu", "native_bfloat16": True, "num_threads": 2}
    worse = {"mha": 0.0, "gqa": 0.0005, "mqa": 0.05, "mla": -0.04}
    runs = [run(name, seed, nats, card=card) for name, nats in worse.items() for seed in (0, 1, 2)]
    runs += [run("mla_no_rope", 0, 0.02, card=card, optim__learning_rate=0.01)]
    runs += [run("gqa", 0, 0.3, card=card, trainer__max_tokens=2048)]
    for number, one in enumerate(runs):
        one.row["tasks"] = copy.deepcopy(ANSWERS)
        one.row["tasks"]["one"]["acc"] += 0.01 * number
        one.row["trained_with"] = numerics | {"num_threads": 1 + (number == 3)}
    runs[6].windows.document_nll[7] += 9.0
    other = external_model()
    other.row["protocol"] = other.row["protocol"] | {"revision": "r1", "tokens": 1601}
    found = compare([*runs, other], None)
    for one in runs:  # from now on their text is asked for the bytes of its documents alone
        object.__setattr__(one, "prepared", [25] * WINDOWS)
    variants = [variant for group in found for variant in group.variants]
    for number, variant in enumerate(variants):
        points = [
            decode_point(context, batch, 4.0 + number - 0.002 * number * context, context > TOKENS)
            for batch in (1, 4)
            for context in (8, 512)
        ]
        rounds = [point | {"ms_by_round": [point["ms_per_token"]] * 3} for point in points]
        variant.result["decode"] = rounds
        for one in variant.runs:
            one.row["decode"] = rounds
    for variant in variants:
        base = variant.baseline.result["decode"] if variant.baseline else []
        variant.result["break_even"] = {
            str(batch): break_even(variant.result["decode"], base, batch) for batch in (1, 4)
        }
    return found


def as_numbers(text):
    """A text without its numbers, and these."""
    return NUMBER.sub("#", text), [float(n.replace(",", "")) for n in NUMBER.findall(text)]


def test_words_and_numbers_of_a_report_are_those_of_the_record(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(comparing.across_tokenizers, "_bytes_of", lambda text, split: text)
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: None)  # test_plots.py looks at them
    found = groups()
    folder = new_report(tmp_path, "golden", found, FACTS)
    print_comparison(found, Path("reports/golden"))
    print_decoding(found)
    texts = {"terminal": capsys.readouterr().out}
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        texts[path.name] = STYLE.sub("", IMAGE.sub("image", path.read_text()))
    del texts["windows.json"], texts["documents.json"]  # as they were given
    if os.environ.get("KVLAB_WRITE_GOLDEN"):
        lines = {name: text.splitlines() for name, text in texts.items()}
        RECORD.write_text(json.dumps({"machine": machine(), "files": lines}, indent=1) + "\n")
        return
    record = json.loads(RECORD.read_text())
    assert texts.keys() == record["files"].keys()
    for name, lines in record["files"].items():
        got, wanted = texts[name].splitlines(), lines
        if record["machine"] == machine():
            assert got == wanted, name
        else:
            assert [as_numbers(line)[0] for line in got] == [as_numbers(w)[0] for w in wanted], name
            numbers = as_numbers("\n".join(got))[1]
            assert numbers == pytest.approx(as_numbers("\n".join(wanted))[1], rel=1e-9), name
