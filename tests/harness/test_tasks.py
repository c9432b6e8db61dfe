"""lm-evaluation-harness's tasks on kvlab's models: its own numbers, and no file's code is run."""

import contextlib
import importlib.util
import json
import math
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import harness.tasks
from data.tokenizing.tokenizer import bytes_tokenizer, vocab_size_of
from harness import lm_eval_setup, members
from harness.errors import TaskError
from harness.model import TokenScorer, language_model
from harness.tasks import load_tasks
from modeling.config import SamplingSettings
from modeling.generate import generate
from tests.measuring.runs import write_run
from tests.tiny_models import scored_model as model
from tracking.configuration import flat

ROOT = Path(__file__).parents[2]
TASKS = Path(__file__).parent / "tasks"
END = 0


@pytest.fixture(scope="session")
def tokenizer():
    """Bytes; text that looks like a special token is text, as `load_tokenizer` has it."""
    found = bytes_tokenizer()
    found.encode_special_tokens = True
    assert found.token_to_id("<|endoftext|>") == END
    return found


@pytest.fixture(scope="session")
def gpt(tokenizer):
    return model(
        "mla",
        vocab_size=vocab_size_of(tokenizer),
        max_position_embeddings=40,
        initializer_range=0.5,
    ).double()


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    """Documents are not put into the user's cache."""
    import datasets

    folder = tmp_path_factory.getbasetemp() / "datasets"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)


def requests(*arguments):
    return [SimpleNamespace(args=some) for some in arguments]


@torch.no_grad()
def nats(gpt, tokens, scored):
    """The log-likelihood of the last tokens after the others, from one plain forward pass."""
    log_probabilities = gpt(torch.tensor([tokens[:-1]])).log_softmax(-1)[0]
    ids = torch.tensor(tokens[1:]).unsqueeze(1)
    return float(log_probabilities.gather(1, ids)[-scored:].sum())


def test_log_likelihoods_are_those_of_a_plain_forward_pass(gpt):
    long = [1 + number % 90 for number in range(60)]
    pairs = [([5, 6, 7], [8]), ([5, 6], [7, 9]), (long, [3, 4]), ([END], [4]), ([5, 6, 7], [9])]
    pairs.append(([2], long[:40]))  # as long as the context
    for batch_size in (1, 3, 50):
        found = TokenScorer(gpt, batch_size).log_likelihoods(pairs)
        for (context, continuation), (log_likelihood, _) in zip(pairs, found, strict=True):
            whole = [*context, *continuation][-41:]
            expected = nats(gpt, whole, len(continuation))
            assert log_likelihood == pytest.approx(expected, rel=1e-12)


def test_a_continuation_is_greedy_if_each_of_its_tokens_is_the_likeliest(gpt):
    best = [int(token) for token in generate(gpt, torch.tensor([[5]]), 3, SamplingSettings(0.0))]
    other = [best[0], (best[1] + 1) % 90, best[2]]
    found = TokenScorer(gpt, 2).log_likelihoods([([5], best), ([5], other), ([5], best[:1])])
    assert [is_greedy for _, is_greedy in found] == [True, False, True]


def test_the_model_sees_each_input_once(gpt, monkeypatch):
    seen = []
    hidden_states = gpt.hidden_states
    monkeypatch.setattr(
        gpt, "hidden_states", lambda tokens: seen.append(len(tokens)) or hidden_states(tokens)
    )
    TokenScorer(gpt, 8).log_likelihoods([([5, 6], [7]), ([5, 6], [8]), ([5], [6, 9]), ([5], [6])])
    assert seen == [2]


def test_what_the_context_was_too_short_for_is_counted(gpt):
    scorer = TokenScorer(gpt, 8)
    scorer.log_likelihoods([([1] * 39, [2, 3]), ([1] * 40, [2, 3])])
    assert scorer.num_cut == 1
    scorer.continuations([[1] * 30, [1] * 31], 10, SamplingSettings(0.0), END, lambda _: True)
    assert scorer.num_cut == 2


@pytest.mark.parametrize("length", [0, 41])
def test_a_continuation_of_no_token_or_too_many_is_refused(gpt, length):
    with pytest.raises(TaskError, match=rf"continuation of {length} tokens.*context of 40"):
        TokenScorer(gpt, 8).log_likelihoods([([1], [2] * length)])


def test_texts_become_the_tokens_that_the_harness_asks_for(gpt, tokenizer):
    asked = language_model(gpt, tokenizer, END, 4)
    asked_for = requests(("a ", "b"), ("", "b"), ("a", " b"), (" ", "b"))
    found = asked.loglikelihood(asked_for, disable_tqdm=True)
    a, space, b = (tokenizer.encode(letter).ids[0] for letter in "a b")
    expected = [nats(gpt, [a, space, b], 2), nats(gpt, [END, b], 1), nats(gpt, [a, space, b], 2)]
    expected.append(nats(gpt, [END, space, b], 2))
    assert [score for score, _ in found] == pytest.approx(expected, rel=1e-12)
    special = asked.tok_encode("<|endoftext|>")
    assert len(special) == len("<|endoftext|>")
    assert END not in special


def test_a_long_text_is_scored_in_disjoint_windows(gpt, tokenizer):
    text = "".join(chr(97 + number * 7 % 26) for number in range(90))
    ids = [END, *tokenizer.encode(text).ids]
    pieces = [(ids[:41], 40), (ids[40:81], 40), (ids[50:], 10)]  # the last with all its context
    expected = sum(nats(gpt, tokens, scored) for tokens, scored in pieces)
    short = nats(gpt, [END, *tokenizer.encode("b").ids], 1)
    asked = language_model(gpt, tokenizer, END, 2)
    assert asked.loglikelihood_rolling(requests(("b",), (text,))) == pytest.approx(
        [short, expected], rel=1e-12
    )


def greedy(gpt, tokenizer, prompt, count):
    tokens = torch.tensor([tokenizer.encode(prompt).ids])
    return [int(t) for t in generate(gpt, tokens, count, SamplingSettings(0.0), END)]


def test_texts_are_continued_until_a_stop(gpt, tokenizer):
    prompts = ["def f", "a", "a long beginning", "x + "]
    whole = [tokenizer.decode(greedy(gpt, tokenizer, prompt, 12)) for prompt in prompts]
    stop = whole[0][4:6]
    assert len(stop) == 2
    options = {"until": [stop], "max_gen_toks": 12}
    for batch_size in (1, 3):
        asked = language_model(gpt, tokenizer, END, batch_size)
        found = asked.generate_until(requests(*((prompt, options) for prompt in prompts)))
        assert found == [text.split(stop)[0] for text in whole]
        assert len(found[0]) <= 4
    cut = asked.generate_until(requests(("y" * 70 + "a long beginning", options)))
    assert cut == [tokenizer.decode(greedy(gpt, tokenizer, "y" * 12 + "a long beginning", 12))]


def test_repeated_samples_differ_and_come_again(gpt, tokenizer):
    options = {"do_sample": True, "temperature": 1.5, "max_gen_toks": 8, "until": []}
    several = requests(*[("def f", options)] * 5, ("a longer beginning", options))
    found = language_model(gpt, tokenizer, END, 1).generate_until(several)
    assert len(set(found)) == 6
    for batch_size in (1, 2, 4):
        assert language_model(gpt, tokenizer, END, batch_size).generate_until(several) == found


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"do_sample": True, "temperature": 0.7}, SamplingSettings(0.7, 50, 1.0)),
        ({"temperature": 0.7, "top_k": 0}, SamplingSettings(0.7, None, 1.0)),
        ({"temperature": 0.7, "top_k": None, "top_p": None}, SamplingSettings(0.7, None, 1.0)),
        ({"temperature": 0.7, "top_k": 3, "top_p": 0.5}, SamplingSettings(0.7, 3, 0.5)),
        ({"do_sample": False, "temperature": 0.7}, SamplingSettings(0.0, 50, 1.0)),
        ({"do_sample": 0, "temperature": 0.7}, SamplingSettings(0.0, 50, 1.0)),
        ({"do_sample": True}, SamplingSettings(0.0, 50, 1.0)),
        ({}, SamplingSettings(0.0, 50, 1.0)),
    ],
)
def test_tokens_are_chosen_as_transformers_would(gpt, tokenizer, monkeypatch, options, expected):
    asked, seen = language_model(gpt, tokenizer, END, 2), []

    def continuations(prompts, max_new_tokens, settings, *rest):
        seen.append(settings)
        return [[] for _ in prompts]

    monkeypatch.setattr(asked.scorer, "continuations", continuations)
    asked.generate_until(requests(("a", options | {"max_gen_toks": 4, "until": []})))
    assert seen == [expected]


def test_a_text_ends_where_it_spells_the_token_that_ends_a_document(gpt, tokenizer, monkeypatch):
    asked = language_model(gpt, tokenizer, END, 2)
    spelled = asked.tok_encode("ab<|endoftext|>cd")
    assert END not in spelled
    ends = []

    def continuations(prompts, max_new_tokens, settings, stop_token, is_done):
        ends.extend(is_done(spelled[:count]) for count in range(len(spelled)))
        return [spelled]

    monkeypatch.setattr(asked.scorer, "continuations", continuations)
    assert asked.generate_until(requests(("a", {"max_gen_toks": 4, "until": []}))) == ["ab"]
    assert ends.index(True) == len("ab<|endoftext|>")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_gen_toks": 40}, "max_gen_toks is 40.*context of 40"),
        ({}, "max_gen_toks is 256"),
        ({"max_gen_toks": 4, "num_beams": 3}, "generation_kwargs.num_beams"),
        ({"max_gen_toks": 4, "do_sample": True, "temperature": 1, "top_p": 2}, "top_p"),
    ],
)
def test_what_the_sampler_cannot_do_is_refused(gpt, tokenizer, options, said):
    asked = language_model(gpt, tokenizer, END, 2)
    with pytest.raises(TaskError, match=said):
        asked.generate_until(requests(("a", options)))


@pytest.fixture(scope="module")
def tasks():
    return load_tasks(["tiny_group", "tiny_rolling", "tiny_writing"], TASKS)


def numbers(found):
    return {key: value for key, value in flat(found).items() if isinstance(value, float)}


def test_tasks_have_results_by_metric(tasks, gpt, tokenizer):
    found, notes = tasks.score(gpt, tokenizer, END, 4)
    assert set(found) == {
        *("tiny_choice", "tiny_last_word", "tiny_group", "tiny_rolling", "tiny_writing")
    }
    json.dumps(found, allow_nan=False)
    choice = found["tiny_choice"]
    assert choice.keys() == {
        *("acc", "acc_stderr", "acc_norm", "acc_norm_stderr", "brier_score"),
        *("brier_score_stderr", "n", "version", "num_fewshot"),
    }
    assert (choice["n"], choice["version"], choice["num_fewshot"]) == (8, "2.0", 1)
    spread = choice["acc_norm"] * (1 - choice["acc_norm"]) / 7
    assert 0 < choice["acc_norm_stderr"] == pytest.approx(math.sqrt(spread))
    assert found["tiny_last_word"]["perplexity_stderr"] > 0  # by bootstrap
    assert found["tiny_rolling"]["bits_per_byte_stderr"] is None
    assert "exact_match,first-word" in found["tiny_writing"]
    assert found["tiny_group"]["n"] == 16
    assert found["tiny_rolling"]["version"] is None
    [note] = notes
    assert "did not fit the context of 40 tokens" in note
    assert "tiny_choice version 2.0 1-shot" in tasks.protocol
    assert tasks.protocol in tasks.protocol_of_transformers
    assert "HFLM" in tasks.protocol_of_transformers.removeprefix(tasks.protocol)
    # The second model is asked what the first was: the same examples before each question.
    again = tasks.score(gpt, tokenizer, END, 3)[0]
    assert numbers(again) == pytest.approx(numbers(found), rel=1e-9)
    wide = model("mla", vocab_size=vocab_size_of(tokenizer), max_position_embeddings=400)
    assert tasks.score(wide, tokenizer, END, 4)[1] == []


def test_a_limit_and_few_shot_examples_are_taken_and_reported(gpt, tokenizer):
    tasks = load_tasks(["tiny_tag"], TASKS, num_fewshot=2, limit=2)
    assert "limited to the first 2 documents" in tasks.protocol
    found, _ = tasks.score(gpt, tokenizer, END, 4)
    assert {(name, task["n"]) for name, task in found.items()} == {
        ("tiny_choice", 2),
        ("tiny_rolling", 2),
    }
    assert found["tiny_choice"]["num_fewshot"] == 2


def write_task(folder, **changes):
    """A task file next to a module that would leave a mark."""
    folder.mkdir()
    (folder / "evil.py").write_text(f"open({str(folder / 'MARK')!r}, 'w')\nf = print\n")
    (folder / "documents.json").write_text('{"question": "q", "answer": 0, "n": 1}\n' * 2)
    config = {
        "task": "mine",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "documents.json"}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": ["a", "b"],
        "doc_to_target": "answer",
    }
    (folder / "mine.yaml").write_text(json.dumps(config | changes))
    return folder


ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ question['__class__'].__mro__ }}",
    "{{ (question | attr('__cl' ~ 'ass__')).__mro__ }}",
    "{{ '{0.__class__.__mro__}'.format(question) }}",
    "{{ cycler.__init__.__globals__.os.system('touch MARK') }}",
    "{{ self.__init__.__globals__ }}",
    "{% set x = namespace().__class__ %}{{ x.mro() }}",
]


@pytest.mark.parametrize("key", ["doc_to_text", "description"])
@pytest.mark.parametrize("template", ESCAPES)
def test_a_template_cannot_leave_its_sandbox(tmp_path, monkeypatch, gpt, tokenizer, template, key):
    monkeypatch.chdir(tmp_path)
    folder = write_task(tmp_path / "tasks", **{key: template})
    with pytest.raises(TaskError, match=r"is unsafe|undefined"):  # loaded, or asked
        load_tasks(["mine"], folder).score(gpt, tokenizer, END, 4)
    assert not list(tmp_path.rglob("MARK"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"metric_list": [{"metric": "./evil"}]}, "metric ./evil from the Hub"),
        ({"metric_list": [{"metric": "evil"}]}, "metric evil from the Hub"),
        ({"doc_to_text": "{{ nothing }}"}, "'nothing' is undefined"),
        ({"doc_to_text": "{{ nothing"}, "unexpected end of template"),
        ({"doc_to_text": "{% include '/etc/hosts' %}"}, "no loader|load"),
        ({"test_split": "other"}, "other"),
        ({"output_type": "singing"}, "singing"),
        ({"filter_list": [{"name": "a", "filter": [{"function": "evil.f"}]}]}, "evil"),
        ({"num_fewshot": "many"}, "many|str"),
        ({"doc_to_target": ["0"]}, "mine|tasks"),
    ],
)
def test_what_a_task_file_got_wrong_is_one_line(tmp_path, gpt, tokenizer, changes, said):
    folder = write_task(tmp_path / "tasks", **changes)
    with pytest.raises(TaskError, match=said) as error:
        load_tasks(["mine"], folder).score(gpt, tokenizer, END, 4)
    assert "\n" not in str(error.value)
    assert not (folder / "MARK").exists()


def test_what_was_set_for_the_harness_is_set_back(monkeypatch, tasks, gpt, tokenizer):
    before = dict(lm_eval_setup.os.environ)
    stand_in = importlib.util.module_from_spec(importlib.machinery.ModuleSpec("evaluate", None))
    monkeypatch.setitem(sys.modules, "evaluate", stand_in)
    tasks.score(gpt, tokenizer, END, 4)
    assert sys.modules["evaluate"] is stand_in
    monkeypatch.delitem(sys.modules, "evaluate")
    tasks.score(gpt, tokenizer, END, 4)
    assert "evaluate" not in sys.modules
    assert dict(lm_eval_setup.os.environ) == before


def test_a_task_twice_is_refused():
    with pytest.raises(TaskError, match="'tiny_choice' is asked for twice, by tiny_tag too"):
        load_tasks(["tiny_choice", "tiny_tag"], TASKS)


@pytest.mark.parametrize("version", [None, "0.4.9"])
def test_a_missing_or_other_lm_eval_is_refused(monkeypatch, version):
    def installed(name):
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(lm_eval_setup.metadata, "version", installed)
    with pytest.raises(TaskError, match=r'pip install "lm_eval==0\.4\.13"') as error:
        load_tasks(["tiny_choice"], TASKS)
    assert (version or "none") in str(error.value)


def test_a_missing_accelerate_is_refused_before_anything_is_run(monkeypatch, tasks):
    def installed(name):
        if name == "accelerate":
            raise metadata.PackageNotFoundError(name)
        return lm_eval_setup.VERSION

    lm_eval_setup.require_accelerate()
    monkeypatch.setattr(lm_eval_setup.metadata, "version", installed)
    with pytest.raises(TaskError, match=r'pip install "lm_eval==0\.4\.13" accelerate') as error:
        tasks.score_pretrained(None, None, 4)
    assert "\n" not in str(error.value)


def test_the_version_that_is_asked_for_is_the_pinned_one():
    pinned = (ROOT / "requirements-dev.txt").read_text()
    assert f"lm_eval=={lm_eval_setup.VERSION}\n" in pinned
    assert f'"lm_eval=={lm_eval_setup.VERSION}"' in (ROOT / "pyproject.toml").read_text()
    assert f"lm_eval=={lm_eval_setup.VERSION}" in (ROOT / "settings/evaluation.py").read_text()


@pytest.fixture(scope="module")
def installed():
    """Some tasks of the installed lm_eval; all of them are thousands of files."""
    import lm_eval.tasks

    folder = Path(lm_eval.tasks.__file__).parent
    some = [str(folder / name) for name in ("humaneval", "polemo2", "arc", "hellaswag")]
    return lm_eval.tasks.TaskManager(include_path=some, include_defaults=False)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("humaneval", "'humaneval' runs what the model writes"),
        ("polemo2_in", "from the Hub, where metrics are code"),
        ("arc_easy", "'arc_easy': .*(offline|reach|find)"),
    ],
)
def test_tasks_of_lm_eval_run_no_code_of_others_and_need_their_data(installed, name, said):
    with pytest.raises(TaskError, match=said) as error:
        harness.tasks._load(name, installed)
    assert "\n" not in str(error.value)


def manager_of(path, *files):
    """Some tasks of the installed lm_eval, and a user's files."""
    import lm_eval.tasks

    folder = Path(lm_eval.tasks.__file__).parent
    for number, config in enumerate(files):
        (path / f"{number}.yaml").write_text(json.dumps(config))
    some = [*(str(folder / name) for name in ("ruler", "arc")), str(path)]
    return lm_eval.tasks.TaskManager(include_path=some, include_defaults=False)


OTHER_DATA = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "x.json"}}}
EVIL, PLAIN = ({"metric_list": [{"metric": name}]} for name in ("./evil", "acc"))
OF_FUNCTION = r"made by a function.*run code of the Hub"
OF_OTHERS = r"dataset_.* of 'arc_.*', a task of lm_eval's, is chan"
OF_THE_HUB = r"metric \./evil from the Hub"


@pytest.mark.parametrize(
    ("said", "group"),
    [
        *((OF_FUNCTION, {"task": [name]}) for name in ("ruler_fwe", "niah_single_2", "ruler")),
        (OF_FUNCTION, {"task": [{"task": "ruler_fwe", **OTHER_DATA}]}),
        (OF_FUNCTION, {"task": [{"task": "ruler_fwe", "custom_dataset": None, **OTHER_DATA}]}),
        (OF_FUNCTION, {"task": [{"task": "ruler", "metadata": {"version": 1}}]}),  # a group
        (OF_FUNCTION, {"task": [{"group": "inner", "task": ["ruler_fwe"]}]}),
        (OF_OTHERS, {"task": [{"task": "arc_easy", **OTHER_DATA}]}),
        (OF_OTHERS, {"task": [{"task": "arc_easy", "dataset_name": "other"}]}),
        (OF_OTHERS, {"task": ["arc_easy"], **OTHER_DATA}),
        (OF_OTHERS, {"task": [{"group": "inner", "task": ["arc_easy"], **OTHER_DATA}]}),
        (OF_OTHERS, {"task": [{"group": "inner", "task": ["arc_easy"]}], **OTHER_DATA}),
        (OF_OTHERS, {"task": [{"task": "ai2_arc", **OTHER_DATA}]}),  # a tag
        (OF_OTHERS, {"task": [{"task": "other", **OTHER_DATA}]}),
        (OF_THE_HUB, {"task": [{"task": "plain", **EVIL}]}),
        (OF_THE_HUB, {"task": ["plain"], **EVIL}),
        (OF_THE_HUB, {"task": [{"group": "inner", "task": ["plain"], **PLAIN}], **EVIL}),
    ],
)
def test_a_group_brings_in_no_code_and_no_other_data(tmp_path, said, group):
    others = {"group": "other", "task": ["arc_challenge"]}, {"task": "plain", **PLAIN}
    with pytest.raises(TaskError, match=said):
        harness.tasks._load("mine", manager_of(tmp_path, {"group": "mine"} | group, *others))


def test_a_users_group_may_hold_tasks_of_lm_eval_and_its_own(tmp_path):
    own = {"task": "own", "metric_list": [{"metric": "acc"}], **OTHER_DATA}
    several = [{"task": "arc_easy", "num_fewshot": 2}, "own", {"task": "new", **OTHER_DATA}]
    manager = manager_of(tmp_path, {"group": "mine", "task": several}, own)
    leaves = [*members.leaves_of("mine", manager)]
    for leaf in leaves:
        members.require_own_data(leaf)
    assert [leaf.name for leaf in leaves] == ["arc_easy", "own", "new"]
    assert leaves[0].config["num_fewshot"] == 2
    assert leaves[0].config["dataset_path"] == "allenai/ai2_arc"


@pytest.mark.parametrize(
    ("metric", "is_fetched"),
    [
        ({"metric": "exact_match", "hf_evaluate": True}, True),
        ({"metric": "exact_match"}, False),
        ({"metric": "meteor"}, True),
    ],
)
def test_a_metric_is_fetched_unless_lm_eval_or_the_task_has_it(metric, is_fetched):
    with pytest.raises(TaskError) if is_fetched else contextlib.nullcontext():
        members.require_no_code("one", {"metric_list": [metric]})
    members.require_no_code("one", {"metric_list": [metric], "process_results": "a.function"})


def test_an_unknown_name_is_refused_with_near_ones(installed):
    with pytest.raises(TaskError, match=r"no task, group or tag 'helaswag'.*hellaswag"):
        harness.tasks._require_known("helaswag", installed)


@pytest.mark.slow
def test_eval_model_runs_tasks_alone(tmp_path, prepared):
    for name, seed in (("one", 3), ("two", 4)):
        write_run(tmp_path / "runs", prepared, name, seed=seed)
    arguments = [
        *("eval.perplexity=false", "eval.decode_speed.batch_sizes=[]", "tracking.mode=offline"),
        *(f"runs_dir={tmp_path}/runs", f"reports_dir={tmp_path}", "device=cpu"),
        *("eval.tasks=[tiny_choice]", "eval.task_limit=5", f"eval.task_folder={TASKS}"),
    ]
    result = subprocess.run(
        [sys.executable, str(ROOT / "eval_model.py"), *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "comparison" / "results.json").read_text())
    [variant] = json.loads((tmp_path / "comparison" / "variants.json").read_text())
    values = [row["tasks"]["tiny_choice"]["acc_norm"] for row in rows]
    metric = variant["tasks"]["tiny_choice"]["metrics"]["acc_norm"]
    assert metric["by_seed"] == values
    assert metric["mean"] == pytest.approx(sum(values) / 2)
    protocol = rows[0]["protocol"]["tasks"]
    assert protocol.startswith("lm_eval 0.4.13: tiny_choice version 2.0 1-shot; limited to")
    markdown = (tmp_path / "comparison" / "report.md").read_text()
    numbers = [f"{metric['mean']:.4f}", f"{metric['stderr']:.4f}"]
    for text in (markdown, result.stdout):
        assert "ask tiny_choice: 5 documents, 1-shot, version 2.0" in text
        assert all(number in text for number in numbers)
        assert "limited to the first 5 documents" in text
    page = (tmp_path / "comparison" / "report.html").read_text()
    assert 'id="tasks"' in page
    assert f"{metric['stderr']:.4f}" in page
    assert "±" in page
    # As wandb keeps them, but for the figures' digits.
    tables = {}
    for path in (tmp_path / "comparison").glob("wandb/offline-run-*/files/media/table/*.json"):
        table = json.loads(path.read_text())
        items = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
        tables[path.name.split("_")[0]] = items
    assert set(tables) == {"cache", "comparison", "runs", "tasks"}
    answers = {(item["task"], item["metric"]): item for item in tables["tasks"]}
    shown = answers["tiny_choice", "acc_norm"]
    assert shown["variant"] == variant["name"]
    assert (shown["value"], shown["n"]) == pytest.approx((metric["mean"], 5))
    assert [item["run_name"] for item in tables["runs"]] == [row["run_name"] for row in rows]
