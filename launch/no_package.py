"""Build backend that builds nothing: kvlab runs from its checkout.

Its commands read conf/ and write runs/ beside themselves, and packages called `data` or `training`
would be in the way of others in an environment.
"""

from typing import NoReturn

_INSTEAD = "kvlab is not installed but runs from its checkout: sh prepare_for_use.sh"


def build_wheel(*args: object, **kwargs: object) -> NoReturn:
    """Refuse, whatever is asked for, saying what to do instead.

    Raises:
        SystemExit: Always.
    """
    raise SystemExit(_INSTEAD)


# Every hook of PEP 517 and PEP 660 that a front end may call first.
build_sdist = build_editable = build_wheel
get_requires_for_build_wheel = get_requires_for_build_sdist = build_wheel
get_requires_for_build_editable = build_wheel
prepare_metadata_for_build_wheel = prepare_metadata_for_build_editable = build_wheel
