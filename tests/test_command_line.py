"""What a user types: what is taken as it stands, and what a mistake is answered with."""

import os
import random
import re
import shlex

import pytest
from omegaconf import OmegaConf

import launch.run
from launch import compose, schemas
from launch.errors import ConfigError
from launch.keys import SCRIPTS, keys_of, with_home
from launch.launcher import is_here, settings_of_launcher
from launch.runs import find_run, located, require_study
from launch.typed import for_hydra

NAMES = [
    *("~/texts", "/tmp/tëxte", "/tmp/文本", "/tmp/a,b=c", "a=b", "a(b", "[x]", "{x}", "{", "'x"),
    *('"x', "a&b", "#x", "a;b", "hi!", "a b", " x", "1e3", "true", "1_000", "50%", "$x", "${x}"),
    *("C:\\x\\", "a:b", "x\\'", "\\", "@x", "a|b", "*?", "-x", "a\nb", "${a:b}"),
]
# Needed beside a key, for the configuration to be a whole one.
BESIDE = {
    "data.path": ["data=local"],
    "tokenizer.path": ["tokenizer=pretrained"],
    "eval.task_folder": ["eval.tasks=x"],
    "data_folder": ["hf=x"],
    "hf": ["data_folder=x"],
}
TEXTS = [
    ("train", "data.path"),
    ("train", "tokenizer.path"),
    ("train", "init_from"),
    ("train", "runs_dir"),
    ("train", "trainer.sample_prompt"),
    ("train", "data.text_column"),
    ("eval", "reports_dir"),
    ("eval", "eval.task_folder"),
    ("eval", "data_folder"),
    ("eval", "tracking.group"),
    ("generate", "prompt"),
    ("generate", "run"),
    ("prepare", "data.path"),
    ("prepare", "folder"),
]


def composed(entry, *typed):
    overrides = for_hydra(entry, typed)
    return compose.composed(entry, overrides)


def value_of(config, key):

    return OmegaConf.select(config, key)


@pytest.mark.parametrize(("entry", "key"), TEXTS)
def test_free_text_is_taken_as_it_stands(entry, key):
    """Each key once with all names one after another: composing takes most of the time."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser = OverridesParser.create()
    names = [*NAMES, *([] if key == "runs_dir" else ["${HOME}"])]
    for name in names:
        typed = [f"{key}={name}", *BESIDE.get(key, [])]
        override = parser.parse_override(for_hydra(entry, typed)[0])
        wanted = with_home(name) if key in ("runs_dir", "reports_dir") else name
        assert OmegaConf.create({"value": override.value()}).value == wanted
    config = composed(entry, f"{key}=/tmp/tëxte, (a)=1 'b'", *BESIDE.get(key, []))
    assert value_of(config, key) == "/tmp/tëxte, (a)=1 'b'"


def test_every_free_text_takes_any_characters():
    """Random ones, for every key of every entry point that the schemas say is text."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser, source = OverridesParser.create(), random.Random(0)
    characters = "ab\\\\'\"${}[](),=:;#&!~ %$*?é文\n\t.-_/1e+"
    found = [(e, k) for e in SCRIPTS for k, key in keys_of(e).items() if key.is_text]
    assert len(found) > 40
    for entry, key in found:
        if keys_of(entry)[key].is_list:
            continue
        for _ in range(8):
            text = "".join(source.choice(characters) for _ in range(source.randint(1, 9)))
            if re.fullmatch(r"'.*'|\".*\"", text, re.DOTALL):
                continue
            (argument,) = for_hydra(entry, [f"{key}={text}"])
            value = parser.parse_override(argument).value()
            wanted = with_home(text) if key in ("runs_dir", "reports_dir") else text
            assert OmegaConf.create({"value": value}).value == wanted, (key, text)


@pytest.mark.parametrize(
    ("entry", "typed", "key", "value"),
    [
        ("train", ["data=local", "data.path=null"], "data.path", "null"),
        ("train", ["init_from=null"], "init_from", None),
        ("generate", ["prompt=null"], "prompt", "null"),
        ("train", ["trainer.sample_prompt=null"], "trainer.sample_prompt", None),
        ("train", ['run_name="a b"'], "run_name", "a b"),
        ("train", ["run_name=x-${seed}", "seed=3"], "run_name", "x-3"),
        ("train", ["tracking.tags=a b,c"], "tracking.tags", ["a b", "c"]),
        ("train", ["tracking.tags=[a b,'c,d']"], "tracking.tags", ["a b", "c,d"]),
        ("eval", ["eval.tasks=hellaswag"], "eval.tasks", ["hellaswag"]),
        ("eval", ["eval.tasks=a,b"], "eval.tasks", ["a", "b"]),
        ("eval", ["eval.tasks=[]"], "eval.tasks", []),
        ("eval", ["run=[mla-*,mha-*]"], "run", ["mla-*", "mha-*"]),
        ("eval", ["hf=/tmp/a,b=c"], "hf", "/tmp/a,b=c"),
        ("eval", ["eval.decode_speed.contexts=1k,8k"], "eval.decode_speed.contexts", [1000, 8000]),
        ("eval", ["eval.decode_speed.contexts=64"], "eval.decode_speed.contexts", [64]),
        ("train", ["fair_lr_factors=0.5,1,2"], "fair_lr_factors", [0.5, 1.0, 2.0]),
        ("train", ["trainer.max_tokens=1e9"], "trainer.max_tokens", 10**9),
        ("train", ["trainer.max_tokens=10M"], "trainer.max_tokens", 10**7),
        ("train", ["trainer.max_tokens=1_000_000"], "trainer.max_tokens", 10**6),
        ("train", ["trainer.max_tokens=1.5e6"], "trainer.max_tokens", 1_500_000),
        ("train", ["trainer.max_tokens=2B"], "trainer.max_tokens", 2 * 10**9),
        ("train", ["tokenizer.vocab_size=10k"], "tokenizer.vocab_size", 10_000),
        ("train", ["model.hidden_size=0.256k"], "model.hidden_size", 256),
        ("train", ["experiment=null"], "run_name", "mha-nano-python_stdlib-seed0"),
    ],
)
def test_lists_numbers_and_null(entry, typed, key, value):
    assert value_of(composed(entry, *typed), key) == value


def test_a_sweep_is_split_at_commas_and_a_quoted_text_is_not(tmp_path):
    there = tmp_path / "a,b"
    there.mkdir()
    for typed, expected in (
        (["-m", "seed=0,1"], ["-m", "seed=0,1"]),
        (["seed=0,1", "-m"], ["-m", "seed=0,1"]),
        (["-m", "run_name=a,b"], ["-m", "run_name='a','b'"]),
        (["-m", "run_name='a,b'"], ["-m", "run_name='a,b'"]),
        (["-m", "trainer.max_tokens=1M,2M"], ["-m", "trainer.max_tokens=1000000,2000000"]),
        (["-m", "trainer.sample_prompt=a, b"], ["-m", "trainer.sample_prompt='a, b'"]),
        (["-m", f"data.path={there}"], ["-m", f"data.path='{there}'"]),
        (["-m", "run_name=choice(a,b)"], ["-m", "run_name=choice(a,b)"]),
    ):
        assert for_hydra("train", typed) == expected


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("data=local data.path=~/my_texts", "mha-nano-local-my_texts-seed0"),
        ("data=local data.path=/x/tëxte/", "mha-nano-local-texte-seed0"),
        ("data=local data.path=/x/文本", "mha-nano-local-dd818618-seed0"),
        ("data=local data.path=/x/y data.name=tiny", "mha-nano-tiny-seed0"),
        ("data=hub data.path=a/b data.config_name=c", "mha-nano-hub-a-b-c-seed0"),
        ("data=mixture data.corpora.local.path=x/y", "mha-nano-mixture-y-seed0"),
        ("data=wikitext2", "mha-nano-wikitext2-seed0"),
        ("init_from=exports/mla data=local data.path=y", "mla-local-y-seed0"),
        ("experiment=adamw_or_muon data=local data.path=y", "muon-mha-nano-local-y-seed0"),
    ],
)
def test_a_run_is_named_after_its_text(typed, name):
    config = composed("train", *shlex.split(typed))
    assert config.run_name == name


@pytest.fixture
def start(monkeypatch, capsys):
    """Start an entry point in this process, with a job that must not be reached."""

    def run(entry, *arguments):
        monkeypatch.setattr("sys.argv", [f"{entry}_model.py", *arguments])
        started = []
        with pytest.raises(SystemExit) as end:
            launch.run.run(entry, schemas.SCHEMAS[entry], started.append)
        assert started == []
        out, err = capsys.readouterr()
        return end.value.code, out, err

    return run


MISTAKES = [
    ("train", "experiment=study_nano", "a sweep of 15 runs: add -m: python train_model.py -m ex"),
    ("train", "experiment=study_nano attention=mla", "a sweep of 3 runs: add -m"),
    *(
        ("train", typed, "attention=mla")
        for typed in (
            *("attention = mla", "attention= mla", "attention =mla", "mla", "attention:mla"),
            *("attention: mla", "attention mla", "--attention mla", "--attention=mla", "-a=mla"),
            *("-attention mla", "-a mla", "attention==mla", "Attention=mla", "ATTENTION=MLA"),
            *("attention=MLA", "attention=deepseek", "model.attention=mla", "attn=mla", "MLA"),
        )
    ),
    ("train", "--resume", "rerunning the same command resumes its run"),
    ("train", "--lr 1e-3", "optim.learning_rate=1e-3"),
    ("train", "--batch-size 8", "trainer.micro_batch_size=8"),
    ("train", "\u2013\u2013attention=mla", "attention=mla"),
    ("train", "\u2014-attention=mla", "attention=mla"),
    ("train", "\u2013m attention=mla,x", "there is no attention 'x'"),
    ("train", "--gpus 2", "trainer.device=cuda"),
    ("train", "gpu=true", "trainer.device=cuda"),
    ("train", "attention", "attention=NAME with one of gqa, gqa_tied, mha"),
    ("export", "out=x run=y dtype=bf16", "did you mean dtype=bfloat16?"),
    ("eval", "eval.cache_dtype=fp16", "did you mean eval.cache_dtype=float16?"),
    ("train", "data.path=~nobody-here/x", "data.path='./~nobody-here/x'"),
    ("train", "\u201cattention=mla\u201d", "type plain ones: 'attention=mla'"),
    ("train", "attention=mla,", "has a comma too many: attention=mla"),
    ("train", "conf/attention/mla.yaml", "attention=mla"),
    ("train", "attention.kv_lora_rank=8", "model.attention.kv_lora_rank=8"),
    ("train", "data.validation_fraction=20%", "that is 0.2"),
    ("train", "--data my_texts/", "data=local data.path=my_texts/"),
    ("train", "data=local my_texts", "data.path=my_texts"),
    ("train", "data.corpora.x.path=y", "goes with data=mixture"),
    ("train", "--epochs 3", "trainer.max_tokens=N"),
    ("train", "steps=100", "trainer.max_tokens=N"),
    ("generate", "prompt=def foo", "prompt='def foo'"),
    ("generate", "hello world run=x", "prompt='hello world'"),
    ("train", "data.path=/my texts", "data.path='/my texts'"),
    ("train", "seed=0, 1", "seed=0,1"),
    ("train", "attention=mla,mha", "python train_model.py -m attention=mla,mha"),
    ("train", "attention=[mla,mha]", "python train_model.py -m attention=mla,mha"),
    ("train", "seed=range(3)", "add -m"),
    ("eval", "run=mla-*,gqa-*", "run='[mla-*,gqa-*]'"),
    ("eval", "hf=exports/a,exports/b", "hf='[exports/a,exports/b]'"),
    ("train", "optim.learning_rate=1,5e-3", "optim.learning_rate=1.5e-3"),
    ("train", "trainer.max_tokens=1,000,000", "trainer.max_tokens=1000000"),
    ("train", 'attention="mla', 'a quote is not closed in "mla'),
    ("eval", "eval.tasks=[a,b", "a bracket is not closed"),
    ("eval", "attention=mla", "run='mla-*'"),
    ("eval", "attention=mla,mha", "run='[mla-*,mha-*]'"),
    ("eval", "data=wikitext2", "run='*-wikitext2-*'"),
    ("eval", "seed=0", "run='*-seed0'"),
    ("eval", "mla", "run='mla-*'"),
    ("eval", "study_nano", "experiment=study_nano"),
    ("eval", "optim.learning_rate=1", "python train_model.py has it"),
    ("generate", "attention=mla", "run=mla-..."),
    ("generate", "seed=1", "sampling.seed=1"),
    ("export", "experiment=study_nano", "run=runs/study_nano/NAME"),
    ("train", "lr=1e-3", "optim.learning_rate=1e-3"),
    ("train", "temperature=1", "sampling.temperature=1"),
    ("train", "kv_lora_rank=8", "model.attention.kv_lora_rank=8"),
    ("train", "model.attention.kv_rank=8", "did you mean 'model.attention.kv_lora_rank'"),
    ("train", "model.attention.kv_lora_rank=8", "attention=mla and mla_no_rope have kv_lora_rank"),
    ("train", "tokenizer=gpt2", "tokenizer=pretrained tokenizer.path=gpt2"),
    ("train", "model=gpt2", "did you mean model=gpt2_124m? There are gpt2_124m, gpt2_350m"),
    ("train", "data=my_texts/", "data=local data.path=my_texts/"),
    ("train", "sampling=5", "sampling is a section of keys: sampling.KEY=VALUE"),
    ("train", "hydra/launcher=joblib", "hydra/launcher takes basic"),
    ("train", "hydra/launcher=submitit_local", "is for the runs of a sweep: add -m"),
    ("train", "tracking=off", "take tracking=none (every run writes metrics"),
    ("train", "prompt=x", "trainer.sample_prompt=x"),
    ("generate", "tracking=none", "python train_model.py and python eval_model.py have it"),
    ("train", "tracking=tensorboard", "take tracking=none or tracking=wandb (every run"),
    ("train", "+attention=mla", "leave out the +: attention=mla"),
    ("train", "~attention", "no key can be left out"),
    ("train", "hydra.launcher.x=\u00e9", "hydra.launcher.x cannot be read"),
    ("train", "hydra.run.dir=/tmp/x", "hydra.run.dir cannot be set; folders are set by runs_dir"),
    ("train", "-m hydra.launcher.x=a,b(", "cannot be read"),
    ("train", "match={a}b", "match ('{a}b') must be params, cache or none"),
    ("train", "optim.learning_rate=f(x)", "optim.learning_rate (f(x)) must be a number"),
    ("train", "-m seed=range(a)", "cannot be read"),
    ("train", "data.corpora=x", "data.corpora is a section of keys"),
    ("train", "hydra.searchpath=[file:///nope]", "there is no folder /nope"),
    ("train", "--cfg foo", "are the flags"),
    ("prepare", "verif", "python prepare_data.py verify"),
    ("export", "out=x device=cuda:0 run=y", "CUDA_VISIBLE_DEVICES=0"),
]
# Of libraries, or of their insides.
NEVER = re.compile(
    r"Lexer|Parser|token recognition|mismatched input|usage:|Traceback|omegaconf|Optional|NoneType"
    r"|DictConfig|of type '|hydra\.cc|HYDRA_FULL_ERROR|TrainConfig|GPTConfig|OverrideParse",
    re.IGNORECASE,
)


@pytest.mark.parametrize(("entry", "typed", "answer"), MISTAKES)
def test_a_mistake_is_answered_with_the_next_command(entry, typed, answer, start):
    words = shlex.split(typed) if typed.count('"') % 2 == 0 else typed.split()
    status, out, err = start(entry, *words)
    assert (status, out, err.count("\n")) == (2, "", 1), err
    assert answer in err
    assert not NEVER.search(err), err


@pytest.mark.parametrize("entry", SCRIPTS)
def test_help_says_how_values_are_written(entry, start):
    status, out, _ = start(entry, "--help")
    assert status == 0
    assert "Paths and text are taken as they stand" in out
    assert "$" not in re.sub(r"\$\{", "", out)


def test_help_explains_every_key_of_what_is_chosen(start):
    status, out, _ = start("train", "--help")
    assert status == 0
    assert "trainer.max_tokens=1500000\n    Training tokens, rounded up" in out
    assert "model.attention.num_key_value_heads=" in out
    assert "\nmodel.layers." not in out  # they follow layers
    _, out, _ = start("train", "attention=mla", "foo", "--help")
    assert "model.attention.kv_lora_rank=${multiply" in out
    assert "decode_path=auto\n    How a step with a cache reads it: absorbed, expanded" in out
    assert "num_key_value_heads=" not in out


def test_a_study_that_is_not_there_lists_those_there_are(runs):
    require_study(runs, "study")
    require_study(runs, "study_nano")
    with pytest.raises(ConfigError, match=r"'study_nan'; did you mean experiment=study_nano\?"):
        require_study(runs, "study_nan")


def test_a_configuration_is_printed_as_it_is_composed(start):
    status, out, err = start("train", "--cfg", "job", "attention=mla", "seed=3")
    assert (status, err) == (0, "")
    printed = OmegaConf.create(out)
    assert printed.seed == 3
    assert printed == composed("train", "attention=mla", "seed=3")
    assert not {"hydra", "arms", "sweep"} & printed.keys()


def test_version_is_kvlabs(start):
    assert start("train", "--version")[:2] == (0, "kvlab 0.1.0\n")


@pytest.fixture
def conf(tmp_path, monkeypatch):
    """Write files of a user's own into a copy of conf/."""
    import shutil

    shutil.copytree(schemas.ROOT / "conf", tmp_path / "conf")
    shutil.copy(schemas.ROOT / "pyproject.toml", tmp_path)
    monkeypatch.setattr(schemas, "ROOT", tmp_path)

    def write(name, text):
        path = tmp_path / "conf" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    return write


def test_local_settings_are_taken_where_an_entry_point_has_them(conf):
    conf(
        "local/default.yaml",
        "runs_dir: ~/elsewhere\ntrainer: {num_threads: 3}\n"
        "defaults: [{override /tracking: none}, {override /optim: adamw}]\n",
    )
    train = composed("train")
    assert (train.trainer.num_threads, train.optim.name) == (3, "adamw")
    for entry in ("train", "eval", "generate", "export", "prepare"):
        config = composed(entry)
        assert config.runs_dir == with_home("~/elsewhere")
        assert entry not in ("train", "eval") or config.tracking.wandb is False
    assert composed("train", "trainer.num_threads=1").trainer.num_threads == 1


def test_a_machines_launcher_is_one_of_its_settings(conf):
    conf(
        "local/default.yaml",
        "defaults: [{override /hydra/launcher: submitit_slurm}]\n"
        "hydra: {launcher: {partition: gpu}}\n",
    )
    settings = settings_of_launcher("train", ["hydra.launcher.timeout_min=7"])
    assert (settings.partition, settings.timeout_min) == ("gpu", 7)
    assert not is_here(settings)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainer: {num_thread: 3}\n", "no key 'trainer.num_thread'; did you mean 'trainer.num_th"),
        ("trainr: {num_threads: 3}\n", "no key 'trainr'"),
        ("- a\n", "must hold keys"),
        ("a: [\n", "cannot be read"),
        ("defaults: [tracking: none]\n", "write - override /tracking: none"),
        ("optim: adamw\n", "optim is chosen under defaults: - override /optim: adamw"),
    ],
)
def test_a_wrong_local_setting_is_refused_by_every_entry_point(text, message, conf, start):
    conf("local/default.yaml", text)
    for entry in ("train", "eval"):
        status, _, err = start(entry)
        assert status == 2
        assert "conf/local/default.yaml" in err
        assert message in err


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "experiment/mine",
            "seed: 5\n",
            "experiment/mine.yaml lacks its first line, # @package _g",
        ),
        ("attention/mine", "defaults: [mha]\n", "lacks its first line, # @package model.attention"),
        (
            "experiment/mine",
            "defaults: [override /attention: mla]\n",
            "conf/experiment/mine.yaml lacks its first line, # @package _global_",
        ),
        *(
            (
                "experiment/mine",
                f"# @package _global_\ndefaults: [{chosen}attention: mla]\n",
                "write - override /attention: ",
            )
            for chosen in ("", "/", "override ")
        ),
        (
            "experiment/mine",
            "# @package _global_\ntrainer: {max_tokens: 1e6}\n",
            "such as 1500000 or 1_500_000 (in conf/experiment/mine.yaml",
        ),
    ],
)
def test_a_wrong_file_of_ones_own_says_what_it_lacks(name, text, message, conf, start):
    conf(f"{name}.yaml", text)
    status, _, err = start("train", name.replace("/", "="))
    assert status == 2
    assert message in err


@pytest.fixture
def runs(tmp_path):
    """A folder of runs, the last of them the newest, and one of a study."""
    for age, name in enumerate(["study/mqa-seed0", "mha-seed0", "mla-seed0", "mla-seed1"]):
        folder = tmp_path / "runs" / name / "checkpoints"
        (folder / "1").mkdir(parents=True)
        os.utime(folder, (age, age))
    return tmp_path / "runs"


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("mha-seed0", "mha-seed0"),
        ("runs/mha-seed0", "mha-seed0"),
        ("runs/mha-seed0/", "mha-seed0"),
        ("./runs/mha-seed0/", "mha-seed0"),
        ("runs/mha-seed0/checkpoints/", "mha-seed0"),
        ("runs/study/mqa-seed0", "study/mqa-seed0"),
        ("study/mqa-seed0/", "study/mqa-seed0"),
        ("mha-*", "mha-seed0"),
        (None, "mla-seed1"),
    ],
)
def test_a_run_is_found_by_name_folder_or_age(typed, name, runs, monkeypatch):
    monkeypatch.chdir(runs.parent)
    said = []
    assert find_run(runs, typed, said.append).path.resolve() == runs / name
    assert said == ([f"run=mla-seed1, the newest in {runs}"] if typed is None else said)
    if typed is not None:
        folder, names = located(runs, [typed])
        assert (folder / names[0]).resolve() == runs / (name if "*" not in typed else typed)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("nope", "run ('nope') is not there in .*; there are: mla-seed1, mla-seed0, mha-seed0"),
        ("mla", "did you mean run=mla-seed1"),
        ("mla-*", "is the name of several; take one of: mla-seed1, mla-seed0"),
        ("runs/nope/", "there are: mla-seed1"),
    ],
)
def test_a_run_that_is_not_there_lists_those_there_are(typed, message, runs, monkeypatch):
    monkeypatch.chdir(runs.parent)
    with pytest.raises(ConfigError, match=re.sub(r"([()])", r"\\\1", message)):
        find_run(runs, typed, print)


def test_without_any_run_the_command_that_trains_one_is_said(tmp_path):
    with pytest.raises(ConfigError, match=r"train one: python train_model\.py attention=mla"):
        find_run(tmp_path, None, print)


def test_a_sample_of_another_corpus_begins_with_its_own_words(prepared):
    from data.documents import opening

    text = opening(prepared)
    assert "def f1200(x): return".startswith(" ".join(text.split()))
    assert len(text.split()) == 3
    config = composed("train", "data=local", "data.path=x")
    assert config.trainer.sample_prompt is None
    assert composed("train").trainer.sample_prompt == "def "
