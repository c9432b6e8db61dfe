import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import common, decode, decode_memory, decode_parts, decode_report
from benchmarks.decode_memory import Need, that_fit
from benchmarks.decode_report import ATTENTION, BOUND, LINEAR, LINEAR_ALONE, STEP
from benchmarks.decode_systems import (
    SYSTEMS,
    KvlabDecoder,
    decoding_config,
    kvlab_model,
    logit_difference,
)

ROOT = Path(__file__).resolve().parents[2]


def row(system, seconds, point=(1, 4096), size="seed_35m", parts=None):
    facts = {"size": size, "dtype": "float32", "batch": point[0], "context": point[1]}
    facts["system"] = system
    rounds = {STEP: list(seconds)} | (parts or {})
    if parts:
        facts |= {"cache_bytes": 100, "weight_bytes": 300, "attention_flops": 900.0}
    peaks = {"bandwidth": [50.0, 100.0, 200.0], "matmul": [1000.0, 300.0, 300.0]}
    return decode_report.make_row(facts, rounds, peaks)


def ratios(rows):
    return {(one.ours, one.theirs): one for one in decode_report.compare(rows)}


def test_systems_are_compared_within_rounds():
    rows = [
        row("kvlab-mla", (1.0, 2.0, 4.0)),
        row("transformers-mla", (7.0, 10.0, 40.0)),
        row("transformers-mha", (1.0, 1.0, 1.0)),
    ]
    found = ratios(rows)
    assert list(found) == [("kvlab-mla", "transformers-mla")]
    one = found["kvlab-mla", "transformers-mla"]
    assert (one.value, one.low, one.high) == (7.0, 5.0, 10.0)


def test_bound_is_the_slower_of_reading_and_multiplying_in_the_same_round():
    parts = {LINEAR: [1.0, 1.0, 1.0], ATTENTION: [4.0, 6.0, 9.0]}
    one = row("kvlab-mha", (1.1, 1.2, 1.3), parts=parts, point=(1, 128))
    # Bytes: 100 / (50, 100, 200); operations: 900 / (1000, 300, 300).
    assert one["bound_seconds_by_round"] == [2.0, 3.0, 3.0]
    assert one["roofline_seconds"] == 400 / 100
    found = ratios([one])
    assert found["kvlab-mha", LINEAR_ALONE].value == pytest.approx(1.2)
    assert found["kvlab-mha", BOUND].value == 2.0


def test_page_has_times_ratios_and_what_is_left_out():
    parts = {LINEAR: [1.0, 1.0, 1.0], ATTENTION: [4.0, 6.0, 9.0]}
    rows = [row("kvlab-mha", (1.0, 1.0, 1.0), parts=parts), row("litgpt-mha", (2.0, 2.0, 2.0))]
    where = {"size": "seed_35m", "dtype": "float32"}
    point = where | {"batch": 1, "context": 4096, "bandwidth": 1e10, "matmul": 1e11}
    options = vars(decode.parse([])) | {"output": None}
    result = {
        "benchmark": "decode",
        "date": "today",
        "options": options,
        "machine": common.machine(),
        "versions": common.versions(),
        "git_commit": "abc",
        "threads": 1,
        "outputs": [{"size": "seed_35m", "system": "litgpt-mha", "difference": 2e-5}],
        "points": [point],
        "rows": rows,
        "ratios": decode_report.compare(rows),
        "left_out": [
            where | {"system": "litgpt-gqa", "reason": "not installed"},
            where | {"system": "litgpt-mla", "reason": "large", "batch": 1, "context": 4096},
        ],
    }
    page = decode_report.as_markdown(result)
    lines = [" ".join(line.replace("|", " ").split()) for line in page.splitlines()]
    assert "litgpt-mha 2,000.00 2.0e-05" in lines
    assert "litgpt-mha kvlab-mha 2.00 (2.00 to 2.00)" in lines
    assert "- left out: seed_35m, litgpt-gqa: not installed" in lines
    assert "- left out: litgpt-mla, b1 c4096: large" in lines
    assert json.loads(json.dumps(result, default=vars))["ratios"][0]["value"] == 2.0


NEEDS = {
    "kvlab-mha": Need(10),
    "kvlab-mla": Need(2),
    "transformers-mha": Need(10, 5),
    "transformers-mla": Need(2, 20),
    "litgpt-mha": Need(11),
    "litgpt-mla": Need(40),
}


@pytest.mark.parametrize(
    ("available", "missing"),
    [
        (None, []),
        (95, []),  # 75 of caches, and the largest step's 20
        (44, ["litgpt-mha", "litgpt-mla"]),
        (9, ["kvlab-mha", "transformers-mha", "transformers-mla", "litgpt-mha", "litgpt-mla"]),
    ],
)
def test_systems_that_do_not_fit_with_those_before_them_are_left_out(available, missing):
    chosen, left_out = that_fit(NEEDS, available)
    assert [*left_out] == missing
    assert chosen == [name for name in NEEDS if name not in missing]
    assert all("are free; measure fewer --systems" in reason for reason in left_out.values())


@pytest.mark.parametrize("attention", ["mha", "mqa", "gqa", "mla_no_rope", "mla"])
def test_cache_is_what_the_closed_form_says_and_parts_alone_run(attention):
    config = decoding_config("smoke", attention, longest=20)
    model = kvlab_model(config, "cpu", torch.float32)
    decoder = KvlabDecoder(model)
    decoder.start(batch=2, context=16, room=4)
    assert decoder.cache.seen == 16
    name = f"kvlab-{attention}"
    expected = decode_memory.need(name, config, 2, 20, torch.float32)
    assert decoder.cache.num_bytes() == expected.cache
    used = decode_parts.cache_bytes(config, 2, 16, torch.float32)
    assert used == expected.cache * 16 / 20
    assert decoder.step(torch.zeros(2, 1, dtype=torch.long)).isfinite().all()
    decoder.rewind()
    assert decoder.cache.seen == 16
    decode_parts.linear_alone(model, 2)()
    decode_parts.attention_alone(model, decoder.cache)()
    assert decode_parts.attention_flops(config, 2, 16) > 0
    weights = sum(weight.numel() for weight in decode_parts.linear_weights(model))
    learned = [p.numel() for n, p in model.named_parameters() if "embed_positions" in n]
    norms = [p.numel() for n, p in model.named_parameters() if p.dim() == 1]
    assert weights == sum(p.numel() for p in model.parameters()) - sum(learned) - sum(norms)


def test_model_does_not_depend_on_the_longest_context():
    short, long = (decoding_config("smoke", "mla_no_rope", longest) for longest in (40, 400))
    assert short.intermediate_size == long.intermediate_size
    assert long.max_position_embeddings == 400


@pytest.mark.slow
@pytest.mark.parametrize("system", [name for name in SYSTEMS if SYSTEMS[name].is_peer])
def test_peer_decodes_from_a_filled_cache_and_is_put_back(system):
    pytest.importorskip(system.partition("-")[0])
    kind = SYSTEMS[system]
    model = kvlab_model(decoding_config("smoke", kind.attention, 20), "cpu", torch.float32)
    decoder = kind.build(model)
    tokens = torch.arange(2)[:, None]
    with torch.inference_mode():
        decoder.start(batch=2, context=16, room=3)
        first = [decoder.step(tokens).clone() for _ in range(3)]
        decoder.rewind()
        again = [decoder.step(tokens).clone() for _ in range(3)]
        decoder.stop()
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first[0], first[1])


@pytest.mark.slow
@pytest.mark.parametrize("system", ["transformers-mha", "transformers-mla", "litgpt-gqa"])
def test_comparison_of_outputs_sees_a_weight_that_was_not_copied(system):
    pytest.importorskip(system.partition("-")[0])
    kind = SYSTEMS[system]
    config = decoding_config("smoke", kind.attention, 40)
    model, other = (kvlab_model(config, "cpu", torch.float32, seed) for seed in (0, 1))
    right = logit_difference(KvlabDecoder(model), kind.build(model), config.vocab_size, "cpu")
    assert right < 1e-4
    # Only a norm of one layer is another's.
    other.load_state_dict(
        model.state_dict()
        | {key: value for key, value in other.state_dict().items() if "layers.1.input" in key}
    )
    wrong = logit_difference(KvlabDecoder(model), kind.build(other), config.vocab_size, "cpu")
    assert wrong > decode_report.OUTPUT_TOLERANCE


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    systems = ["kvlab-mha", "kvlab-gqa", "kvlab-mla", "transformers-mha", "transformers-mla"]
    options = "--sizes smoke --dtypes float32 --contexts 16 32 --batches 1 2 --rounds 2"
    options += " --threads 1 --systems litgpt-mha " + " ".join(systems)
    finished = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.decode",
            *options.split(),
            "--output",
            folder / "result",
        ],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.strip() == (folder / "result.md").read_text().strip()
    return json.loads((folder / "result.json").read_text())


@pytest.mark.slow
def test_run_has_rows_parts_and_ratios(result):
    assert result["machine"]
    assert result["versions"]["torch"]
    assert [(p["batch"], p["context"]) for p in result["points"]] == [
        (1, 16),
        (1, 32),
        (2, 16),
        (2, 32),
    ]
    for point in result["points"]:
        assert point["bandwidth"] > 0
        assert point["matmul"] > 0
    ours = [one for one in result["rows"] if one["system"].startswith("kvlab")]
    assert len(ours) == 3 * 4
    for one in result["rows"]:
        assert len(one["step_seconds_by_round"]) == 2
        assert 0 < one["step_seconds"] < math.inf
    for one in ours:
        for key in ("linear_seconds", "attention_seconds", "bound_seconds", "roofline_seconds"):
            assert 0 < one[key] < math.inf, key
    pairs = {(one["ours"], one["theirs"]) for one in result["ratios"]}
    assert {("kvlab-mla", "transformers-mla"), ("kvlab-mla", "kvlab-mha")} <= pairs
    assert {("kvlab-gqa", LINEAR_ALONE), ("kvlab-gqa", BOUND)} <= pairs


@pytest.mark.slow
def test_outputs_are_kvlabs(result):
    compared = {one["system"]: one["difference"] for one in result["outputs"]}
    assert {"transformers-mha", "transformers-mla"} <= set(compared)
    assert max(compared.values()) < 1e-3
    if importlib.util.find_spec("litgpt") is None:
        assert [one["system"] for one in result["left_out"]] == ["litgpt-mha"]
