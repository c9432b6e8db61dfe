"""Check an attention of your own: python check_attention.py attention=NAME."""

import sys

from launch.environment import ensure


def main() -> None:
    """Check the attentions that the command line names, a line for each promise."""
    ensure()
    from commands.check_attention import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
