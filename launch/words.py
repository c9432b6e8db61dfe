"""Words and flags of a command line that are no KEY=VALUE, and what to type instead."""

import difflib
import re
from collections.abc import Sequence

from launch.keys import choices, groups_of, keys_of, look_up
from launch.mistakes import as_taken, wrong_choice
from launch.near import command, counts_tokens, near_choice, shell_word, similar_keys
from launch.schemas import PREPARE_COMMANDS

# What other programs call by a word or a flag of its own.
_OTHERWISE = {
    r"resume|continue|restart|resume_from\w*": "rerunning the same command resumes its run",
    r"help|\?": "the help is --help",
    r"config_\w+|c[dnp]|experimental_rerun": "hydra.searchpath=[file:///FOLDER] adds a folder with "
    "files like those in conf/",
    r"no_wandb|offline|disable_wandb": "keys have no dashes: tracking=none",
    r"|verbose|quiet": "--help lists every key",
}


def unknown_flag(config_name: str, argument: str, rest: Sequence[str]) -> str:
    """Say what to type for `--key value`, `--key=value`, `-key=value` and the like."""
    name, assigned, value = argument.lstrip("-").partition("=")
    name = name.replace("-", "_")
    if not assigned and rest and not rest[0].startswith("-") and "=" not in rest[0]:
        value = rest[0]
    said = _otherwise(name) or (counts_tokens(name) if config_name == "train" else "")
    if (
        not said
        and name == "data"
        and value not in choices("data")
        and name in groups_of(config_name)
    ):
        said = wrong_choice(config_name, "data", value)
    if not said:
        meant = _assignment(config_name, name, value)
        said = f"keys have no dashes: {shell_word(meant or 'KEY=VALUE')}"
        said += "" if meant else " (--help lists them)"
    return f"there is no {argument}; {said}"


def _otherwise(name: str) -> str:
    return next((said for known, said in _OTHERWISE.items() if re.fullmatch(known, name)), "")


def _assignment(config_name: str, name: str, value: str) -> str | None:
    """Return KEY=VALUE for what somebody may have meant; None where no key is like the name."""
    groups = groups_of(config_name)
    known = [*groups, *keys_of(config_name)]
    found = next((key for key in known if key.lower() == name.lower()), None)
    starting = [key for key in known if len(name) <= 2 and key.startswith(name)]
    if starting and (len(starting) == 1 or starting[0] in groups):
        found = found or starting[0]
    found = found or next(iter(similar_keys(config_name, name)), None)
    return None if found is None else f"{found}={as_taken(config_name, found, value)}"


def not_an_assignment(
    config_name: str, argument: str, typed: Sequence[str], rest: Sequence[str]
) -> str:
    """Say what to type for a word that is no KEY=VALUE.

    Args:
        config_name: Of the entry point.
        argument: The word.
        typed: The assignments before it.
        rest: What follows it.
    """
    if argument.endswith(":") and rest:
        argument += rest[0]
    before, following = typed[-1] if typed else "", rest[0] if rest else ""
    meant: str | None = ""
    if argument == "=" or (argument.startswith("=") and not before):
        meant = "KEY=VALUE"
    elif before.endswith("=") and before.count("=") == 1:
        meant = before + argument
    elif before.endswith(",") or argument.startswith(","):
        meant = "".join([before, argument, *_until_assignment(rest)])
    elif following.startswith("=") and re.fullmatch(r"[\w.]+", argument):
        value = following[1:] or (rest[1] if len(rest) > 1 else "VALUE")
        meant = _assignment(config_name, argument, value) or f"{argument}={value}"
    if meant:
        return f"write it without spaces: {shell_word(meant)}"
    said = _after_a_text(config_name, argument, before, rest) or _otherwise(argument)
    if not said and (needed := _needed(config_name, argument, following)):
        return f"'{argument}' needs a value: {needed}"
    said = said or _written(config_name, argument) or _a_name(config_name, argument, typed, rest)
    said = said or _a_choice(config_name, argument, typed) or "--help lists every key"
    return f"'{argument}' is not KEY=VALUE; {said}"


def _after_a_text(config_name: str, argument: str, before: str, rest: Sequence[str]) -> str:
    """Say how to quote a word that goes with the text before it; '' if that takes no text."""
    key, _, value = before.partition("=")
    if before and look_up(config_name, key) is None and key not in groups_of(config_name):
        key = next(iter(similar_keys(config_name, key)), key)
    known = look_up(config_name, key)
    if not before or known is None or not known.is_text or "=" in argument:
        return ""
    words = " ".join([value, argument, *_until_assignment(rest)])
    return f"quote a value that has spaces: {shell_word(f'{key}={words}')}"


def _needed(config_name: str, argument: str, following: str) -> str:
    """Return a key or a group, which stands alone, with a value; '' if the word is neither."""
    value = "" if "=" in following else following
    if argument in groups_of(config_name) and not value:
        return f"{argument}=NAME with one of {', '.join(choices(argument))}"
    if argument in groups_of(config_name) or look_up(config_name, argument) is not None:
        return shell_word(str(_assignment(config_name, argument, value)))
    return ""


def _written(config_name: str, argument: str) -> str:
    """Say how `key: value`, `key value` and `key->value` are written; '' if the word is none."""
    found = re.fullmatch(r"([\w.]+)\s*(?::|\s|->)\s*(\S.*)", argument)
    assigned = found and _assignment(config_name, found[1], found[2])
    return f"write {shell_word(assigned)}" if assigned else ""


def _a_name(config_name: str, argument: str, typed: Sequence[str], rest: Sequence[str]) -> str:
    """Say which key takes what an entry point is asked for most often; '' if that is not clear."""
    if config_name == "generate" and not typed:
        words = " ".join([argument, *_until_assignment(rest)])
        return f"the prompt is {shell_word(f'prompt={words}')}"
    near = difflib.get_close_matches(argument, PREPARE_COMMANDS, n=1)
    if config_name == "prepare" and near:
        return f"{command(config_name, near[0])} has it first"
    if config_name == "eval" and argument in choices("experiment"):
        return f"write experiment={argument}"
    if config_name == "eval":
        name = argument.rstrip("/")
        is_whole = re.search(r"[-/*]", name)
        return (
            f"runs are named by run=: {shell_word(f'run={name}' if is_whole else f'run={name}-*')}"
        )
    return ""


def _a_choice(config_name: str, argument: str, typed: Sequence[str]) -> str:
    """Say which group has a choice of that name, or which key a path goes to; '' if none."""
    groups = groups_of(config_name)
    folder, _, name = argument.removeprefix("conf/").removesuffix(".yaml").rpartition("/")
    if folder in groups and name in groups[folder]:
        return f"write {folder}={name}"
    own = shell_word(f"data.path={argument}")
    if any(one in ("data=local", "data=hub") for one in typed):
        return f"write {own}"
    for group in groups:
        if choice := near_choice(group, argument, exact=True):
            return f"write {group}={choice}"
    if "data" in groups and re.search(r"[/~.]", argument):
        return f"text of your own is data=local {own}"
    near = ((group, near_choice(group, argument)) for group in groups)
    return next((f"did you mean {group}={choice}?" for group, choice in near if choice), "")


def _until_assignment(rest: Sequence[str]) -> list[str]:
    ends = [number for number, word in enumerate(rest) if "=" in word or word.startswith("-")]
    return list(rest[: ends[0]] if ends else rest)
