"""Tasks in the rows, the variants and the report; the scorer itself is interop's."""

import copy

import pytest
import torch

from comparing.tasks import TASK_COLUMNS, over_seeds, task_rows
from comparing.variants import compare
from measuring.evaluate import evaluate_run
from reporting.contents import sections
from reporting.markdown import table
from reporting.tables import task_tables
from settings.evaluation import EvalSettings
from tests.measuring.runs import quiet, write_run
from tests.reporting.variants_for_reports import group, mha, mla

ANSWERS = {
    "one": {
        **{"acc": 0.25, "acc_stderr": 0.03, "bits_per_byte": 1.5, "bits_per_byte_stderr": None},
        **{"n": 1200, "version": 2, "num_fewshot": 5},
    },
    "two": {
        **{"exact_match,strict": 0.5, "exact_match_stderr,strict": 0.1},
        **{"n": 8, "version": "a|b", "num_fewshot": None},
    },
}


class Scorer:
    """Answers as if tasks had been run, a little better for each model."""

    protocol = "lm_eval 1.2.3: one, two"

    def __init__(self):
        self.asked = []

    def score(self, model, tokenizer, end_of_document_id, batch_size):
        self.asked.append((model, tokenizer, end_of_document_id, batch_size))
        found = copy.deepcopy(ANSWERS)
        found["one"]["acc"] += 0.1 * (len(self.asked) - 1)
        found["one"]["acc_stderr"] += 0.02 * (len(self.asked) - 1)
        return found, ["2 texts did not fit"]


@pytest.fixture
def evaluated(tmp_path, prepared):
    scorer = Scorer()
    settings = EvalSettings(perplexity=False, batch_size=7)
    runs = [write_run(tmp_path, prepared, f"run{seed}", seed=seed) for seed in (3, 4)]
    cpu = torch.device("cpu")
    return scorer, [evaluate_run(r, "validation", settings, cpu, quiet, scorer) for r in runs]


def test_a_row_has_what_its_model_scored(evaluated, prepared):
    scorer, (run, _) = evaluated
    assert run.row["tasks"] == ANSWERS
    assert run.row["protocol"]["tasks"] == scorer.protocol
    assert run.notes == ["2 texts did not fit"]
    model, tokenizer, end, batch_size = scorer.asked[0]
    assert not model.training
    assert (end, batch_size) == (prepared.end_of_document_id, 7)
    assert tokenizer.encode("def f").ids == prepared.tokenizer().encode("def f").ids


def test_a_variant_has_the_mean_and_each_seeds_value(evaluated):
    _, runs = evaluated
    [group] = compare(runs, None)
    one = group.results[0]["tasks"]["one"]
    assert one["metrics"]["acc"]["by_seed"] == [0.25, 0.35]
    assert one["metrics"]["acc"]["mean"] == pytest.approx(0.3)
    assert one["metrics"]["acc"]["stderr"] == pytest.approx(0.04)
    assert one["metrics"]["bits_per_byte"] == {"mean": 1.5, "stderr": None, "by_seed": [1.5, 1.5]}
    assert (one["n"], one["version"], one["num_fewshot"]) == (1200, 2, 5)
    two = group.results[0]["tasks"]["two"]["metrics"]
    assert two == {"exact_match,strict": {"mean": 0.5, "stderr": 0.1, "by_seed": [0.5, 0.5]}}


def test_a_seed_without_a_value_leaves_no_mean():
    rows = [{"tasks": {"t": {"acc": value, "acc_stderr": None, "n": 3}}} for value in (0.5, None)]
    rows = [{"tasks": {"t": row["tasks"]["t"] | {"version": 1, "num_fewshot": 0}}} for row in rows]
    assert over_seeds(rows)["t"]["metrics"]["acc"] == {
        **{"mean": None, "stderr": None, "by_seed": [0.5, None]}
    }


def test_tasks_that_fail_do_not_cost_a_run_its_perplexity(tmp_path, prepared):
    class Failing(Scorer):
        def score(self, *asked):
            raise ValueError("eval.tasks: one asks for more\nthan the context")

    run, cpu = write_run(tmp_path, prepared), torch.device("cpu")
    found = evaluate_run(run, "validation", EvalSettings(), cpu, quiet, Failing())
    assert found.row["perplexity"] > 1
    assert "tasks" not in found.row
    said = "run has no results of tasks: eval.tasks: one asks for more than the context"
    assert said in found.notes
    with pytest.raises(ValueError, match="more\nthan the context"):
        evaluate_run(run, "validation", EvalSettings(perplexity=False), cpu, quiet, Failing())


def test_a_seed_without_tasks_leaves_no_mean():
    asked = {"tasks": ANSWERS}
    for rows, by_seed in (([asked, {}], [0.25, None]), ([{}, asked], [None, 0.25])):
        acc = over_seeds(rows)["one"]["metrics"]["acc"]
        assert (acc["mean"], acc["stderr"]) == (None, None)
        assert acc["by_seed"] == by_seed
    assert over_seeds([{}, {}]) == {}


def variants():
    found = []
    for number, variant in enumerate((mha(), mla())):
        rows = [{"tasks": copy.deepcopy(ANSWERS)}]
        rows[0]["tasks"]["one"]["acc"] += number / 8
        found.append(variant | {"tasks": over_seeds(rows)})
    return found


def test_a_report_has_a_table_for_each_task():
    one, two = task_tables([*variants(), mha(name="untested")])
    assert one.caption == "Task one: 1,200 documents, 5-shot, version 2"
    header, _, first, last, empty = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in table(one).splitlines()
    )
    assert header == ["variant", "accuracy", "±", "bits/byte"]
    assert first == ["mha", "0.2500", "0.0300", "1.5000"]
    assert last == ["mla", "0.3750", "0.0300", "1.5000"]
    assert empty == ["untested", "-", "-", "-"]
    assert two.caption == "Task two: 8 documents, version a?b"
    assert "exact match, strict" in table(two)
    assert task_tables([mha()]) == []
    found = {section.key: section for section in sections([group(*variants())], {}, [])}
    assert found["tasks"].parts[1].caption == one.caption
    assert found["tasks"].parts[-1].endswith("lm_eval ?b?.")
    assert "tasks" not in {section.key for section in sections([group(mha())], {}, [])}


def test_wandb_gets_a_row_for_each_metric():
    rows = [dict(zip(TASK_COLUMNS, row, strict=True)) for row in task_rows(variants())]
    assert len(rows) == 6
    assert rows[3] == {
        **{"variant": "mla", "task": "one", "metric": "acc", "value": 0.375, "stderr": 0.03},
        **{"n": 1200, "version": 2, "num_fewshot": 5},
    }


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tasks": ["a", "a"]}, "must be different names"),
        ({"tasks": [""]}, "must be different names"),
        ({"tasks": ["a"], "task_limit": 0}, "eval.task_limit (0) must be at least 1"),
        ({"tasks": ["a"], "num_fewshot": -1}, "eval.num_fewshot (-1) must be at least 0"),
        ({"task_folder": "x"}, "eval.task_folder says how tasks are run; name some"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, said):
    [problem] = EvalSettings(**changes).problems()
    assert said in problem
    assert EvalSettings(tasks=["a"], task_folder="x", task_limit=1, num_fewshot=0).problems() == []
