#!/bin/sh
# Make kvlab ready: install the pinned packages, prepare the data. Run it as often as you like.
#
# usage: sh prepare_for_use.sh [--dev] [KEY=VALUE ...]
#
#   --dev      install requirements-dev.txt (tests, lint, types) instead of requirements.txt
#   KEY=VALUE  for the preparation of the data, for example data=wikitext2
#
# The packages go into the Python that `python` is: the active virtual or conda environment, or a
# plain interpreter (3.11 to 3.13). Where the system's package manager owns that Python (PEP 668)
# they go into .venv beside this script. It never trains, never asks and needs no account.

set -eu

fail() {
    echo "prepare_for_use.sh: $1" >&2
    exit "${2:-1}"
}

version_of() { # prints 3.12, or fails where $1 is no interpreter that runs
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

is_supported() { # hydra-core 1.3 does not run on Python 3.14
    case $1 in 3.11 | 3.12 | 3.13) ;; *) return 1 ;; esac
}

is_externally_managed() {
    "$1" -c '
import os, sys, sysconfig
marker = os.path.join(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED")
sys.exit(not (sys.prefix == sys.base_prefix and os.path.exists(marker)))'
}

missing_pins() { # prints what of the requirements file $2 the interpreter $1 lacks
    "$1" -c '
import importlib.metadata, pathlib, sys

def pins(path):
    for line in pathlib.Path(path).read_text(encoding="utf-8").splitlines():
        line = line.split("#")[0].strip()
        if line.startswith("-r "):
            yield from pins(line[3:].strip())
        elif line:
            yield line

for pin in pins(sys.argv[1]):
    name, _, wanted = pin.partition("==")
    try:
        found = importlib.metadata.version(name.strip())
    except Exception:  # absent, or the damaged record of an interrupted installation
        found = None
    # 2.13.0+cu130 satisfies ==2.13.0
    if found is None or wanted.strip() not in (found, found.split("+")[0]):
        print(pin)' "$2"
}

# Work from this script's own folder, also when it is called through a symbolic link.
script=$0
while [ -L "$script" ]; do
    target=$(readlink "$script")
    case $target in
    /*) script=$target ;;
    *) script=$(dirname "$script")/$target ;;
    esac
done

requirements=requirements.txt
shown_overrides=
for argument; do
    shift
    case $argument in
    -h | --help)
        sed -n '2,/^$/s/^# \{0,1\}//p' "$script"
        exit 0
        ;;
    --dev) requirements="requirements-dev.txt" ;;
    -* | =*) fail "unknown argument '$argument'; see sh prepare_for_use.sh --help" 2 ;;
    *=*)
        set -- "$@" "$argument"
        case $argument in
        *[!A-Za-z0-9_.,:/=+@%-]*) shown_overrides="$shown_overrides '$argument'" ;;
        *) shown_overrides="$shown_overrides $argument" ;;
        esac
        ;;
    *) fail "'$argument' is neither KEY=VALUE, such as data=wikitext2, nor --dev; see --help" 2 ;;
    esac
done

CDPATH='' cd -P "$(dirname "$script")"
exec </dev/null # nothing below may wait for an answer

# Which Python.
version=
for python in python python3; do
    version=$(version_of "$python") && break
done
[ -n "$version" ] || fail "no python and no python3 that runs; install Python 3.11, 3.12 or 3.13"
typed_python=$python
[ "$python" = python ] ||
    echo "There is no working \`python\` here; type the commands with $python."

venv_python=.venv/bin/python
if ! is_supported "$version"; then
    if venv_version=$(version_of "$venv_python") && is_supported "$venv_version"; then
        python=$venv_python
    else
        newer=python3.12
        for candidate in python3.13 python3.12 python3.11; do
            if version_of "$candidate" >/dev/null; then newer=$candidate && break; fi
        done
        fail "$python is Python $version and kvlab needs 3.11 to 3.13; make such an environment ($newer -m venv .venv), then run this again"
    fi
fi

missing=$(missing_pins "$python" "$requirements")
if [ -n "$missing" ] && is_externally_managed "$python"; then
    if ! venv_version=$(version_of "$venv_python"); then
        "$python" -c 'import ensurepip' 2>/dev/null ||
            fail "$python cannot make a virtual environment; install the Debian package python3-venv, then run this again"
        echo "The system's package manager owns $python (PEP 668): making .venv for the packages."
        "$python" -m venv --clear .venv
    elif ! is_supported "$venv_version"; then
        fail ".venv holds Python $venv_version and kvlab needs 3.11 to 3.13; remove .venv, then run this again"
    fi
    python=$venv_python
    missing=$(missing_pins "$python" "$requirements")
fi

# The packages.
if [ -n "$missing" ]; then
    if ! "$python" -m pip --version >/dev/null 2>&1; then
        "$python" -m ensurepip >/dev/null 2>&1 ||
            fail "$python has no pip; install it (Debian: python3-pip), or activate an environment that has it, then run this again"
    fi
    where=$("$python" -c 'import sys; print(sys.prefix)')
    # shellcheck disable=SC2086 # one line for all names
    echo "Installing into $where (minutes, the first time):" $missing
    PIP_ROOT_USER_ACTION=ignore "$python" -m pip install --quiet --no-input \
        --disable-pip-version-check -r "$requirements"
fi

# The data.
"$python" prepare_data.py "$@"

echo "Ready: the packages of $requirements and the data."
if [ "$python" = "$venv_python" ]; then
    echo "The packages are in .venv: train_model.py, eval_model.py and generate_text.py find it by themselves (for pytest: . .venv/bin/activate)."
fi
if [ "$requirements" = requirements.txt ]; then
    echo "Next: $typed_python train_model.py attention=mla$shown_overrides"
elif [ "$python" = "$venv_python" ]; then
    echo "Next: . .venv/bin/activate && python -m pytest"
else
    echo "Next: $typed_python -m pytest"
fi
