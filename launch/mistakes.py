"""Keys, choices and values that are not there: what to type instead."""

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

# What an arrangement sets, by the name that it has in an attention's configuration.
_PLACED = {
    "sliding_window": "window or window_full and layers.window",
    "attention_sinks": "window layers.sinks=true",
    "kv_source_layer": "shared_pairs, shared_upper, shared_last or layers.source",
}
# How runs are named, by a key of a training that chooses one.
_RUNS_OF = {
    **{"attention": "{}-*", "model": "*-{}-*", "data": "*-{}-*", "seed": "*-seed{}"},
    **{"run_name": "{}", "optim": "NAME"},
}


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
    digits = [re.sub(r"[\s_]", "", piece) for piece in pieces]
    are_thousands = all(re.fullmatch(r"\d{3}", piece) for piece in digits[1:])
    if known is not None and known.kind == "int" and re.fullmatch(r"\d{1,3}", digits[0]):
        if are_thousands and (len(digits) > 2 or digits[1] == "000"):
            return f"{key}={value}: write it without commas, {key}={''.join(digits)}; {sweep}"
    elif known is not None and known.kind == "float" and len(pieces) == 2 and digits[0].isdecimal():
        point = f"{key}={digits[0]}.{digits[1]}"
        return f"{key}={value}: with a decimal point it is {point}; {sweep}"
    what = f" is a sweep of {len(pieces)} runs; " if config_name == "train" else ": "
    return f"{key}={value}{what}{sweep}"


def sweep_without_flag(config_name: str, typed: Sequence[str], runs: int) -> str:
    """Say what to type for several runs."""
    what = next((one for one in reversed(typed) if one.startswith("experiment=")), "this")
    return f"{what} is a sweep of {runs} runs: add -m: {command(config_name, '-m', *typed)}"


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
    text = f"there is no {group} '{value}'"
    listed = ", ".join(options or choices(group))
    is_there = value not in ("", ".") and "\0" not in value and Path(value).exists()
    if group == "hydra/launcher":
        return (
            f"there is no launcher '{value}'; hydra/launcher takes basic (one run after another, "
            "the default), and submitit_local or submitit_slurm, which pip install "
            "hydra-submitit-launcher brings"
        )
    if group == "tokenizer" and (value == "gpt2" or "/" in value):
        meant = shell_word(f"tokenizer.path={value}")
        return f"{text}; one of transformers is tokenizer=pretrained {meant} (there are {listed})"
    if group == "data" and (is_there or re.search(r"[/~.]|^\S+ ", value)):
        meant = shell_word(f"data.path={value}")
        return f"{text}; text of your own is data=local {meant} (there are {listed})"
    near = near_choice(group, value)
    if group == "tracking":
        takes = " or ".join(f"tracking={one}" for one in ([near] if near else choices(group)))
        return f"{text}; take {takes} (every run writes metrics.jsonl, which needs no account)"
    if group == "experiment":
        return f"{text}; there are {listed}; files of your own go to conf/experiment/"
    if group == "layers" and re.fullmatch(r"\d+", value):
        meant = f"model.num_hidden_layers={value}"
        return f"{text}; the number of layers is {meant} (there are {listed})"
    others = [name for name in groups_of(config_name) if name != group and value in choices(name)]
    if others or near:
        meant = f"{others[0]}={value}" if others else f"{group}={near}"
        return f"{text}; did you mean {meant}? There are {listed}"
    return f"{text}; there are {listed}"


def unknown_key(config_name: str, key: str, value: str = "") -> str:
    """Say which key may have been meant, or which entry point has it."""
    if config_name != "train" and (by_run := _by_run(config_name, key, value)):
        return by_run
    parent, _, leaf = key.rpartition(".")
    if key == "model.attention":
        near_name = near_choice("attention", value) or "NAME"
        return f"{key} is a section of keys; an attention is chosen by attention={near_name}"
    if parent == "model.attention" and (have := attentions_with(leaf)):
        return f"the attention chosen has no {key}; {have}"
    if below := [known for known in keys_of(config_name) if known.startswith(f"{key}.")]:
        return f"{key} is a section of keys: {key}.KEY=VALUE, such as {below[0]}=VALUE"
    text = f"there is no key '{key}'"
    if parent == "model.attention" and leaf in _PLACED:
        return f"{text}: it is set layer by layer, by layers={_PLACED[leaf]} (docs/layers.md)"
    if key.startswith(("data.corpora.", "data.weights.")) and "data" in groups_of(config_name):
        return f"{text} here; it goes with data=mixture and a corpus of that name"
    if config_name == "train" and (tokens := counts_tokens(key)):
        return f"{text}; {tokens}"
    near = similar_keys(config_name, key)
    others = [f"python {SCRIPTS[one]}" for one in entries_with(key) if one != config_name]
    has_leaf = any(one.rpartition(".")[2] == leaf for one in near)
    if others and not has_leaf and ("." in key or not near):
        have = "has" if len(others) == 1 else "have"
        return f"{text} in python {SCRIPTS[config_name]}; {' and '.join(others)} {have} it"
    if near:
        text += f"; did you mean {' or '.join(map(repr, near))}?"
        meant = shell_word(f"{near[0]}={as_taken(config_name, near[0], value)}")
        return f"{text} {meant}" if value and len(near) == 1 else text
    siblings = [k.rpartition(".")[2] for k in keys_of(config_name) if k.startswith(f"{parent}.")]
    if parent and siblings:
        return f"{text}; {parent} has {', '.join(siblings)}"
    return f"{text}; see --help for those there are"


def attentions_with(leaf: str) -> str:
    """Say which choices of `attention` have a key; '' if none has."""
    have = [name for name, keys in attention_keys().items() if leaf in keys]
    listed = " and ".join(filter(None, [", ".join(have[:-1]), *have[-1:]]))
    return f"attention={listed} {'has' if len(have) == 1 else 'have'} {leaf}" if have else ""


def _by_run(config_name: str, key: str, value: str) -> str:
    """Say how runs are named, where a training's key was typed to choose them."""
    # A seed is the sampler's, rather, where text is generated.
    is_other = config_name == "prepare" or (key, config_name) == ("seed", "generate")
    if is_other or look_up(config_name, key):
        return ""
    script = SCRIPTS[config_name]
    if key in ("experiment", "study"):
        where = shell_word(f"run=runs/{value}/NAME")
        return f"{script} has no {key}; a study's run is named by its folder: {where}"
    if key not in _RUNS_OF:
        return ""
    names = list(dict.fromkeys(_RUNS_OF[key].format(one) for one in value.strip("[],").split(",")))
    if config_name == "eval":
        run = shell_word(f"run=[{','.join(names)}]" if len(names) > 1 else f"run={names[0]}")
        there = ""
    else:
        run, there = f"run={names[0].replace('*', '...')}", "; runs/ has those there are"
    return (
        f"{script} takes runs as they were trained, by name: {run} in place of {key}={value}{there}"
    )


def as_taken(config_name: str, key: str, value: str) -> str:
    """Return a value as a key or a group takes it."""
    if key in groups_of(config_name):
        return near_choice(key, value) or value or next(iter(choices(key)), "VALUE")
    # Other programs count GPUs.
    if key.rpartition(".")[2] == "device" and re.fullmatch(r"\d+|true|all", value.lower()):
        return "cuda"
    known = look_up(config_name, key)
    return value or ("true" if known and known.kind == "bool" else "VALUE")
