"""Prepare, check or describe a corpus: python prepare_data.py [verify | inspect] data=wikitext2."""

import sys

from launch.environment import ensure


def main() -> None:
    """Do what the command line names."""
    ensure()
    from launch.run import run
    from launch.schemas import PREPARE_COMMANDS, PrepareConfig

    def job(config: PrepareConfig) -> None:
        from commands.prepare import main  # imports PyTorch, for which --help does not wait

        main(config)

    if sys.argv[1:2] and sys.argv[1] in PREPARE_COMMANDS:
        sys.argv[1] = f"command={sys.argv[1]}"
    run("prepare", PrepareConfig, job)


if __name__ == "__main__":
    main()
