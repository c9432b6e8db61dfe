import json

import pytest
import torch
from weights import assert_same_bits, final_tensors

from training.machine.profile import TABLE_NAME, TRACE_NAME, profiled_steps

CPU = torch.device("cpu")


@pytest.mark.slow
def test_profiling_writes_a_trace_and_changes_no_bit(recipe, run_training):
    lines = []
    plain = run_training(recipe, "plain")
    profiled = run_training(recipe, "profiled", lines.append, profile=True)
    assert not (plain.path / "profile").exists()
    assert_same_bits(final_tensors(plain), final_tensors(profiled))
    trace = json.loads((profiled.path / "profile" / TRACE_NAME).read_text())
    names = {event.get("name") for event in trace["traceEvents"]}
    assert {"aten::mm", "ProfilerStep#2", "ProfilerStep#4"} <= names
    assert not {"ProfilerStep#1", "ProfilerStep#5"} & names
    assert "aten::mm" in (profiled.path / "profile" / TABLE_NAME).read_text()
    assert len([line for line in lines if line.startswith("profile: ")]) == 1


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 5])
def test_a_run_of_few_steps_leaves_what_there_was(tmp_path, num_steps):
    with profiled_steps(True, tmp_path, num_steps, CPU, lambda _: None) as profiled:
        for _ in range(num_steps):
            torch.ones(2, 2) @ torch.ones(2, 2)
            profiled()
    assert "aten::mm" in (tmp_path / TRACE_NAME).read_text()


def test_a_run_that_ends_early_leaves_what_there_was(tmp_path):
    def steps():
        with profiled_steps(True, tmp_path, 100, CPU, lambda _: None) as profiled:
            for _ in range(4):
                torch.ones(2, 2) @ torch.ones(2, 2)
                profiled()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        steps()
    assert "aten::mm" in (tmp_path / TRACE_NAME).read_text()


def test_a_trace_that_cannot_be_written_stops_nothing(tmp_path):
    lines = []
    (tmp_path / "profile").write_text("a file is in the way")
    with profiled_steps(True, tmp_path / "profile", 1, CPU, lines.append) as profiled:
        profiled()
    assert len(lines) == 1
    assert "could not be written" in lines[0]
