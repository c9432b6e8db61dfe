"""What a user types, as Hydra's grammar takes it: free text as it stands, numbers with suffixes.

docs/command_line.md says the same for users.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from launch.errors import ConfigError
from launch.keys import Key, choices, groups_of, in_a_pattern, look_up, with_home
from launch.mistakes import one_of_several, unknown_key, wrong_choice
from launch.near import shell_word
from launch.quoting import QUOTED, quoted, require_closed, split_at_commas, whole_number
from launch.words import not_an_assignment, unknown_flag

# Hydra's functions that make a sweep of a value, or a list of it.
_FUNCTION = re.compile(
    r"(choice|range|interval|glob|shuffle|sort|tag|extend_list|str|int)\s*\(.*\)"
)
_INTERPOLATION = re.compile(r"\$\{([^{}]*)\}")
_PLAIN = re.compile(r"[\w.+-]*|\[[\w.+,\s'\"-]*\]", re.ASCII)
_LONG_FLAGS = ("--help", "--version", "--cfg", "--multirun")
_SHORT_FLAGS = ("-h", "-c", "-m")


def for_hydra(config_name: str, arguments: Sequence[str]) -> list[str]:
    """Return what a user types as Hydra takes it, flags first.

    Args:
        config_name: Of the entry point, as `launch.run.run` takes it.
        arguments: Of the command line.

    Raises:
        ConfigError: Saying what to type instead, if it can only be a mistake.
    """
    flags, typed = _split(config_name, arguments)
    if config_name == "eval":
        # A choice of conf/experiment/ to Hydra, with settings that are a training's.
        typed = [re.sub(r"^experiment=", "study=", argument) for argument in typed]
    is_multirun = any(re.match(r"-m$|--mu", flag) for flag in flags)
    # Nothing is chosen there by default, which Hydra has no other word for.
    typed = [one for one in typed if one not in ("experiment=null", "debug=null")]
    return flags + [_as_hydra(config_name, one, typed, is_multirun) for one in typed]


def _split(config_name: str, arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the flags, and the assignments."""
    flags: list[str] = []
    typed: list[str] = []
    rest = list(arguments)
    while rest:
        argument = _as_of_a_keyboard(rest.pop(0))
        name = argument.partition("=")[0]
        is_long = len(name) > 3 and any(flag.startswith(name) for flag in _LONG_FLAGS)
        if name in _SHORT_FLAGS or is_long:
            flags.append(argument)
            if argument in ("-c", "--cfg") and rest:
                flags.append(rest.pop(0))
        elif argument.startswith("-"):
            raise ConfigError(unknown_flag(config_name, argument, rest))
        elif not re.match(r"[+~]*\w[\w/@.:$-]*\s*=|~", argument):
            raise ConfigError(not_an_assignment(config_name, argument, typed, rest))
        else:
            typed.append(argument)
    return flags, typed


def _as_of_a_keyboard(argument: str) -> str:
    """Return an argument with the dash that was meant where an editor made a long one of it.

    Raises:
        ConfigError: If an editor made typographic quotes, which a shell does not take for quotes.
    """
    argument = argument.lstrip(" ")
    if re.match("[\u201c\u201d\u201e\u2018\u2019\u00ab]", argument):
        meant = argument.strip("\u201c\u201d\u201e\u2018\u2019\u00ab\u00bb")
        raise ConfigError(f"{argument} has typographic quotes; type plain ones: '{meant}'")
    meant = re.sub("^[-\u2010-\u2015\u2212]*[\u2010-\u2015\u2212][-]*", "--", argument)
    return meant[1:] if meant != argument and re.fullmatch(r"--\w", meant) else meant


def _as_hydra(config_name: str, argument: str, typed: Sequence[str], is_multirun: bool) -> str:
    """Return one assignment with its value written as Hydra's grammar wants it."""
    prefix, key, value = _parts(argument)
    _require_settable(argument, key, value, is_multirun)
    if re.match(r"~?hydra\b", key) or "@" in key:
        return argument
    is_group, known = key in groups_of(config_name), look_up(config_name, key)
    if is_group:
        if prefix:
            raise ConfigError(f"{argument}: leave out the {prefix}: {key}={value}")
        _require_choices(config_name, key, value, typed, is_multirun)
    elif known is None:
        if not _may_be_of_another_file(key, typed):
            raise ConfigError(unknown_key(config_name, key, value))
    elif not known.is_text:
        value = _as_value(config_name, key, known, value, is_multirun)
    elif value != "null" or not known.may_be_null or _is_called_null(key, typed):
        value = _as_text(config_name, key, known, value, is_multirun)
    if in_a_pattern(key):
        prefix = "++"  # of an attention that is composed when the pattern is known
    return f"{prefix}{key}={value}"


def _require_settable(argument: str, key: str, value: str, is_multirun: bool) -> None:
    """Refuse what Hydra has and kvlab has not."""
    if argument.startswith("~") and not argument.startswith("~hydra"):
        raise ConfigError(f"{argument}: no key can be left out; give it another value: KEY=VALUE")
    for folder in re.findall(r"file://([^],]+)", value) if key == "hydra.searchpath" else []:
        if not _is_there(folder):
            raise ConfigError(f"{key}: there is no folder {folder}")
    if not is_multirun and re.match(r"~?hydra\.(?!launcher|searchpath)", key):
        raise ConfigError(f"{key} cannot be set; folders are set by runs_dir and reports_dir")
    if key.startswith("attention@layers.attentions."):
        name = key.rpartition(".")[2]
        raise ConfigError(
            f"{argument}: leave it out; layers.pattern=[{name},own] brings {value} itself"
        )


def _is_called_null(key: str, typed: Sequence[str]) -> bool:
    """Return whether null is a text or the name of a folder, rather than none."""
    chosen = any(one.startswith(("data=", "tokenizer=")) for one in typed)
    return key == "prompt" or (key.endswith(".path") and chosen)


def _require_choices(
    config_name: str, group: str, value: str, typed: Sequence[str], is_multirun: bool
) -> None:
    """Refuse several choices without -m, and one that neither conf/ nor an own folder has."""
    require_closed(group, value)
    is_list = value.startswith("[") and value.endswith("]")
    pieces = split_at_commas(value[1:-1] if is_list else value)
    if len(pieces) > 1 and not is_multirun:
        raise ConfigError(one_of_several(config_name, group, None, pieces))
    if _FUNCTION.fullmatch(value) or "${" in value or _has_own_folder(typed):
        return
    for piece in map(str.strip, pieces):
        name = piece[1:-1] if QUOTED.fullmatch(piece) else piece
        if name not in ("null", *choices(group)):
            raise ConfigError(wrong_choice(config_name, group, name))


def _as_value(config_name: str, key: str, known: Key, value: str, is_multirun: bool) -> str:
    """Return a number, a word or a list; what Hydra could not read is quoted, for its own rule."""
    require_closed(key, value)
    if known.is_list and not re.match(r"\s*[\[$]|null$|\w+\s*\(", value):
        value = f"[{value}]"
    pieces = split_at_commas(value)
    if len(pieces) > 1 and not is_multirun:
        raise ConfigError(one_of_several(config_name, key, known, pieces))
    if key == "model.attention":
        raise ConfigError(unknown_key(config_name, key, value))
    return ",".join(_plain(known, piece) for piece in pieces)


def _plain(known: Key, value: str) -> str:
    value = whole_number(value) if known.kind == "int" else value
    is_mapping = known.kind == "other" and value.startswith(("{", "["))
    if _PLAIN.fullmatch(value.strip()) or _FUNCTION.fullmatch(value) or "${" in value or is_mapping:
        return value
    return value if QUOTED.fullmatch(value) else quoted(value)


def _has_own_folder(typed: Sequence[str]) -> bool:
    return any(one.startswith("hydra.searchpath=") for one in typed)


def _parts(argument: str) -> tuple[str, str, str]:
    """Return the plus signs of an assignment, its key and its value."""
    found = re.fullmatch(r"([+]*)([^=]*?)\s*=(.*)", argument, re.DOTALL)
    return (found[1], found[2], found[3]) if found else ("", argument, "")


def _may_be_of_another_file(key: str, typed: Sequence[str]) -> bool:
    """Return whether a folder or an attention of the user's own may bring a key."""
    is_of_an_attention = key.startswith(("model.attention.", "layers.attentions."))
    return _has_own_folder(typed) or is_of_an_attention


def _as_text(config_name: str, key: str, known: Key, value: str, is_multirun: bool) -> str:
    """Quote a value that may be any text, or a list of such."""
    is_path = known.kind in ("path", "folder")
    if QUOTED.fullmatch(value):
        return value
    if is_path or key == "run":
        _require_user(key, value)
    if known.kind == "folder":
        value = with_home(value)
    if known.kind == "prose":
        return quoted(value, keeps_interpolations=False)
    if is_multirun and _FUNCTION.fullmatch(value):
        return value
    if is_path and _is_there(value):
        return _one(config_name, value)
    is_list = value.startswith("[") and value.endswith("]")
    if known.is_list and value.startswith("[") and not is_list:
        raise ConfigError(f"{key}: a bracket is not closed in {value}")
    pieces = split_at_commas(value[1:-1] if known.is_list and is_list else value)
    texts = ",".join(_one(config_name, piece.strip()) for piece in pieces if piece.strip())
    if known.is_list and (is_list or key not in ("run", "hf")):
        return f"[{texts}]"
    if known.is_list and len(pieces) > 1 and _are_several(key, pieces):
        raise ConfigError(one_of_several(config_name, key, known, pieces))
    if is_multirun and not known.is_list:
        return ",".join(_one(config_name, piece) for piece in pieces)
    return _one(config_name, value)


def _require_user(key: str, value: str) -> None:
    """Refuse ~NAME where there is no user of that name, if it could be one's."""
    if not re.match(r"~[a-z_][\w-]*(/|$)", value, re.ASCII):
        return
    try:
        Path(value).expanduser()
    except RuntimeError:
        name = value.partition("/")[0]
        raise ConfigError(
            f"{key}: there is no user {name[1:]}, whose folder {name} would be; a folder of this "
            f"name is {shell_word(f'{key}=./{value}')}"
        ) from None


def _are_several(key: str, pieces: Sequence[str]) -> bool:
    """Return whether pieces are several names, not one path that has a comma in it."""
    return key == "run" or all(re.match(r"[A-Za-z0-9~][^=]*$", piece) for piece in pieces)


def _one(config_name: str, value: str) -> str:
    """Quote one text, unless the user quoted it for Hydra already."""
    if QUOTED.fullmatch(value):
        return value

    def names_a_key(found: re.Match[str]) -> bool:
        inner = found[1]
        resolver = re.match(
            r"(oc\.\w+|env|divide|multiply|arranged|name_or|corpus|hydra|now):", inner
        )
        return resolver is not None or look_up(config_name, inner) is not None

    has_interpolation = any(names_a_key(found) for found in _INTERPOLATION.finditer(value))
    return quoted(value, keeps_interpolations=has_interpolation or "${${" in value)


def _is_there(value: str) -> bool:
    try:
        return bool(value) and Path(value).expanduser().exists()
    except (OSError, RuntimeError, ValueError):
        return False
