"""What to type instead: the sentences that refuse a command line, each with the next command."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from launch.keys import (
    SCRIPTS,
    Key,
    attention_keys,
    choices,
    entries_with,
    groups_of,
    keys_of,
    look_up,
)
from launch.near import command, counts_tokens, near_choice, shell_word, similar_keys
from launch.schemas import PREPARE_COMMANDS

_IN_TOKENS = "steps max_steps num_steps iters max_iters epochs num_epochs epoch num_train_epochs"
_LAUNCHERS = (
    "hydra/launcher takes basic (one run after another, the default), and submitit_local or "
    "submitit_slurm, which pip install hydra-submitit-launcher brings"
)

# What an arrangement sets, by the name that it has in an attention's configuration.
_PLACED = {
    "sliding_window": "window or window_full and layers.window",
    "attention_sinks": "window layers.sinks=true",
    "kv_source_layer": "shared_pairs, shared_upper, shared_last or layers.source",
}


def unknown_flag(config_name: str, argument: str, rest: Sequence[str]) -> str:
    """Say what to type for `--key value`, `--key=value`, `-key=value` and the like."""
    name, assigned, value = argument.lstrip("-").partition("=")
    name = name.replace("-", "_")
    if not assigned and rest and not rest[0].startswith("-") and "=" not in rest[0]:
        value = rest[0]
    if re.fullmatch(r"(resume|continue|restart|resume_from\w*)", name):
        return f"there is no {argument}: rerunning the same command resumes its run"
    if tokens := config_name == "train" and counts_tokens(name):
        return f"there is no {argument}; {tokens}"
    if name in ("no_wandb", "offline", "disable_wandb"):
        return f"there is no {argument}; keys have no dashes: tracking=none"
    if name == "data" and config_name in ("train", "prepare") and value not in choices("data"):
        return f"there is no {argument}; {wrong_choice(config_name, 'data', value)}"
    if not name:
        return f"'{argument}' is not KEY=VALUE; --help lists every key"
    if name == "dry_run" and config_name == "train":
        return f"there is no {argument}; keys have no dashes: dry_run=true"
    if name in ("verbose", "quiet", "debug", "dry_run"):
        smoke = command(config_name, "debug=smoke")
        known = f"; {smoke} is a run of seconds" if config_name == "train" else ""
        return f"there is no {argument}{known}; --help lists every key"
    found = _assignment(config_name, name, value)
    if found is None:
        return f"there is no {argument}; keys have no dashes: KEY=VALUE (--help lists them)"
    return f"there is no {argument}; keys have no dashes: {shell_word(found)}"


def _assignment(config_name: str, name: str, value: str) -> str | None:
    """Return KEY=VALUE for what somebody may have meant; None where no key is like the name."""
    groups = groups_of(config_name)
    known = [*groups, *keys_of(config_name)]
    found = None
    if name.lower() in map(str.lower, known):
        found = next(key for key in known if key.lower() == name.lower())
    elif len(name) <= 2 and (starting := [key for key in known if key.startswith(name)]):
        found = starting[0] if len(starting) == 1 or starting[0] in groups else None
    found = found or next(iter(similar_keys(config_name, name)), None)
    if found is None:
        return None
    if found in groups:
        value = near_choice(found, value) or value or next(iter(groups[found]), "VALUE")
    return f"{found}={_meant(found, value) or 'VALUE'}"


def _meant(key: str, value: str) -> str:
    """Return a value as a key takes it, where other programs count GPUs."""
    is_count = key.rpartition(".")[2] == "device" and re.fullmatch(r"\d+|true|all", value.lower())
    return "cuda" if is_count else value


def not_an_assignment(
    config_name: str, argument: str, typed: Sequence[str], rest: Sequence[str]
) -> str:
    """Say what to type for a word that is no KEY=VALUE."""
    groups = groups_of(config_name)
    if argument.endswith(":") and rest:
        argument += rest[0]
    before = typed[-1] if typed else ""
    key, _, value = before.partition("=")
    following = rest[0] if rest else ""
    if argument == "=" or (argument.startswith("=") and before == ""):
        return "write it without spaces: KEY=VALUE"
    if before and value == "" and before.endswith("="):
        return f"write it without spaces: {shell_word(before + argument)}"
    if before.endswith(",") or argument.startswith(","):
        meant = "".join([before, argument, *_until_assignment(rest)])
        return f"write it without spaces: {shell_word(meant)}"
    if before and look_up(config_name, key) is None and key not in groups:
        key = next(iter(similar_keys(config_name, key)), key)
    known = look_up(config_name, key)
    if before and known is not None and known.is_text and "=" not in argument:
        words = " ".join([value, argument, *_until_assignment(rest)])
        quoted = shell_word(f"{key}={words}")
        return f"'{argument}' is not KEY=VALUE; quote a value that has spaces: {quoted}"
    if following.startswith("=") and re.fullmatch(r"[\w.]+", argument):
        value = following[1:] or (rest[1] if len(rest) > 1 else "VALUE")
        meant = _assignment(config_name, argument, value) or f"{argument}={value}"
        return f"write it without spaces: {shell_word(meant)}"
    found = re.fullmatch(r"([\w.]+)\s*(?::|\s|->)\s*(\S.*)", argument)
    if found and (assigned := _assignment(config_name, found[1], found[2])):
        return f"'{argument}' is not KEY=VALUE; write {shell_word(assigned)}"
    if argument in groups or look_up(config_name, argument) is not None:
        value = following if following and "=" not in following else ""
        if argument in groups and not value:
            listed = ", ".join(groups[argument])
            return f"'{argument}' needs a value: {argument}=NAME with one of {listed}"
        meant = str(_assignment(config_name, argument, value))
        return f"'{argument}' is a key and needs a value: {shell_word(meant)}"
    if argument in ("resume", "continue"):
        return f"'{argument}' is not KEY=VALUE; rerunning the same command resumes its run"
    if argument in ("help", "?"):
        return f"'{argument}' is not KEY=VALUE; the help is --help"
    if config_name == "generate" and not typed:
        words = " ".join([argument, *_until_assignment(rest)])
        return f"'{argument}' is not KEY=VALUE; the prompt is {shell_word(f'prompt={words}')}"
    if config_name == "eval" and argument in choices("experiment"):
        return f"'{argument}' is not KEY=VALUE; write experiment={argument}"
    if config_name == "prepare" and (
        near := difflib.get_close_matches(argument, PREPARE_COMMANDS, n=1)
    ):
        return f"'{argument}' is not KEY=VALUE; {command(config_name, near[0])} has it first"
    if config_name == "eval":
        return f"'{argument}' is not KEY=VALUE; runs are named by run=: {_run_of(argument)}"
    file = re.fullmatch(r"(?:conf/)?(\w+)/(\w+)(?:\.yaml)?", argument)
    if file and file[1] in groups and file[2] in groups[file[1]]:
        return f"'{argument}' is not KEY=VALUE; write {file[1]}={file[2]}"
    if any(one in ("data=local", "data=hub") for one in typed):
        return f"'{argument}' is not KEY=VALUE; write {shell_word(f'data.path={argument}')}"
    for group in groups:
        if choice := near_choice(group, argument, exact=True):
            return f"'{argument}' is not KEY=VALUE; write {group}={choice}"
    if config_name in ("train", "prepare") and re.search(r"[/~.]", argument):
        meant = shell_word(f"data.path={argument}")
        return f"'{argument}' is not KEY=VALUE; text of your own is data=local {meant}"
    for group in groups:
        if choice := near_choice(group, argument):
            return f"'{argument}' is not KEY=VALUE; did you mean {group}={choice}?"
    return f"'{argument}' is not KEY=VALUE; --help lists every key"


def _run_of(name: str) -> str:
    name = name.rstrip("/")
    return shell_word(f"run={name}" if re.search(r"[-/*]", name) else f"run={name}-*")


def _until_assignment(rest: Sequence[str]) -> list[str]:
    words: list[str] = []
    for word in rest:
        if "=" in word or word.startswith("-"):
            break
        words.append(word)
    return words


def one_of_several(config_name: str, key: str, known: Key | None, pieces: Sequence[str]) -> str:
    """Say what to type for several values of a key that takes one."""
    value = ",".join(pieces)
    if not all(piece.strip() for piece in pieces):
        meant = shell_word(f"{key}={','.join(piece for piece in pieces if piece.strip())}")
        return f"{key}={value} has a comma too many: {meant}"
    if known is not None and known.is_list:
        listed = shell_word(f"{key}=[{','.join(piece.strip() for piece in pieces)}]")
        return f"{key}={value} names several: write {listed}"
    sweep = f"{key} takes one value"
    if config_name == "train":
        typed = command(config_name, "-m", f"{key}={value}")
        sweep = f"for a run with each of the {len(pieces)} values add -m: {typed}"
    if known is not None and known.kind in ("int", "float"):
        digits = [re.sub(r"[\s_]", "", piece) for piece in pieces]
        if all(re.fullmatch(r"\d{3}", piece) for piece in digits[1:]) and (
            re.fullmatch(r"\d{1,3}", digits[0])
            and known.kind == "int"
            and (len(digits) > 2 or digits[1] == "000")
        ):
            return f"{key}={value}: write it without commas, {key}={''.join(digits)}; {sweep}"
        if len(pieces) == 2 and re.fullmatch(r"\d+", digits[0]) and known.kind == "float":
            point = f"{key}={digits[0]}.{digits[1]}"
            return f"{key}={value}: with a decimal point it is {point}; {sweep}"
    if config_name != "train":
        return f"{key}={value}: {sweep}"
    return f"{key}={value} is a sweep of {len(pieces)} runs; {sweep}"


def sweep_without_flag(config_name: str, typed: Sequence[str], runs: int) -> str:
    """Say what to type for an experiment of several runs."""
    (experiment,) = [one for one in typed if one.startswith("experiment=")][-1:]
    return f"{experiment} is a sweep of {runs} runs: add -m: {command(config_name, '-m', *typed)}"


def wrong_choice(
    config_name: str, group: str, value: str, options: Sequence[str] | None = None
) -> str:
    """Say what there is for a choice that there is not.

    Args:
        config_name: Of the entry point.
        group: Such as attention.
        value: What was typed.
        options: What Hydra found; the files in conf/ if not given.
    """
    if group == "hydra/launcher":
        return f"there is no launcher '{value}'; {_LAUNCHERS}"
    listed = ", ".join(options or choices(group))
    text = f"there is no {group} '{value}'"
    if group == "tokenizer" and (value == "gpt2" or "/" in value):
        meant = shell_word(f"tokenizer.path={value}")
        return f"{text}; one of transformers is tokenizer=pretrained {meant} (there are {listed})"
    is_there = value not in ("", ".") and "\0" not in value and Path(value).exists()
    if group == "data" and (is_there or re.search(r"[/~.]|^\S+ ", value)):
        meant = shell_word(f"data.path={value}")
        return f"{text}; text of your own is data=local {meant} (there are {listed})"
    if group == "tracking":
        near = near_choice(group, value)
        takes = " or ".join(f"tracking={one}" for one in ([near] if near else choices(group)))
        return f"{text}; take {takes} (every run writes metrics.jsonl, which needs no account)"
    if group == "experiment":
        return f"{text}; there are {listed}; files of your own go to conf/experiment/"
    if group == "layers" and re.fullmatch(r"\d+", value):
        return (
            f"{text}; the number of layers is model.num_hidden_layers={value} (there are {listed})"
        )
    near = near_choice(group, value)
    hint = f"; did you mean {group}={near}?" if near else ""
    other = [name for name in groups_of(config_name) if name != group]
    elsewhere = [name for name in other if value in choices(name)]
    if elsewhere:
        hint = f"; did you mean {elsewhere[0]}={value}?"
    return f"{text}{hint or ';'} There are {listed}" if hint else f"{text}; there are {listed}"


def unknown_key(config_name: str, key: str, value: str = "") -> str:
    """Say which key may have been meant, or which entry point has it."""
    if config_name != "train" and (by_run := _by_run(config_name, key, value)):
        return by_run
    parent, _, leaf = key.rpartition(".")
    if parent == "model.attention" and leaf in _PLACED:
        return (
            f"there is no key '{key}': it is set layer by layer, by layers={_PLACED[leaf]} "
            "(docs/layers.md)"
        )
    if parent == "model.attention" and (have := attentions_with(leaf)):
        return f"the attention chosen has no {key}; {have}"
    if key == "model.attention":
        near_name = near_choice("attention", value) or "NAME"
        return (
            f"model.attention is a section of keys; an attention is chosen by attention={near_name}"
        )
    if any(known.startswith(f"{key}.") for known in keys_of(config_name)):
        below = [k for k in keys_of(config_name) if k.startswith(f"{key}.")]
        return f"{key} is a section of keys: {key}.KEY=VALUE, such as {below[0]}=VALUE"
    if re.match(r"data\.(corpora|weights)\b", key):
        return f"there is no key '{key}' here; it goes with data=mixture and a corpus of that name"
    near = similar_keys(config_name, key)
    if (tokens := counts_tokens(key)) and config_name == "train":
        return f"there is no key '{key}'; {tokens}"
    others = [f"python {SCRIPTS[one]}" for one in entries_with(key) if one != config_name]
    has_leaf = any(one.rpartition(".")[2] == leaf for one in near)
    if others and not has_leaf and ("." in key or not near):
        return (
            f"there is no key '{key}' in python {SCRIPTS[config_name]}; {' and '.join(others)} "
            f"{'has' if len(others) == 1 else 'have'} it"
        )
    if near:
        text = f"there is no key '{key}'; did you mean {' or '.join(map(repr, near))}?"
        if value and len(near) == 1:
            is_group = near[0] in groups_of(config_name)
            meant = (near_choice(near[0], value) if is_group else None) or _meant(near[0], value)
            text += f" {shell_word(f'{near[0]}={meant}')}"
        return text
    siblings = [k.rpartition(".")[2] for k in keys_of(config_name) if k.startswith(f"{parent}.")]
    if parent and siblings:
        return f"there is no key '{key}'; {parent} has {', '.join(siblings)}"
    return f"there is no key '{key}'; see --help for those there are"


def attentions_with(leaf: str) -> str:
    """Say which choices of `attention` have a key; '' if none has."""
    have = [name for name, keys in attention_keys().items() if leaf in keys]
    shown = (
        f"attention={', '.join(have[:-1])} and {have[-1]}"
        if have[1:]
        else f"attention={''.join(have)}"
    )
    return f"{shown} {'has' if len(have) == 1 else 'have'} {leaf}" if have else ""


def _by_run(config_name: str, key: str, value: str) -> str:
    """Say how runs are named, where a training's key was typed to choose them."""
    patterns = {
        "attention": f"{value}-*",
        "model": f"*-{value}-*",
        "data": f"*-{value}-*",
        "seed": f"*-seed{value}",
        "optim": "NAME",
        "run_name": value,
        "study": "NAME",
        "experiment": "NAME",
    }
    if key not in patterns or config_name == "prepare" or look_up(config_name, key):
        return ""
    if key == "seed" and config_name == "generate":
        return ""  # of the sampler, rather
    script = SCRIPTS[config_name]
    if key in ("experiment", "study"):
        where = shell_word(f"run=runs/{value}/NAME")
        return f"{script} has no {key}; a study's run is named by its folder: {where}"
    what = f"{script} takes runs as they were trained, by name"
    if config_name == "eval":
        several = value.split(",")
        if len(several) > 1 and "NAME" not in patterns[key]:
            names = [patterns[key].replace(value, one) for one in several]
            return f"{what}: {shell_word(f'run=[{chr(44).join(names)}]')} in place of {key}={value}"
        return f"{what}: {shell_word(f'run={patterns[key]}')} in place of {key}={value}"
    pattern = patterns[key] if key == "run_name" else patterns[key].replace("*", "...")
    return f"{what}: run={pattern} in place of {key}={value}; runs/ has those there are"
