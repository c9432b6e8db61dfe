"""Train a small language model with the attention of your choice: python train_model.py --help."""

from launch.environment import ensure


def main() -> None:
    """Train, or resume, the run that the command line names."""
    ensure()
    from launch.run import run
    from launch.schemas import TrainConfig

    def job(config: TrainConfig) -> None:
        from commands.train import main  # imports PyTorch, for which --help does not wait

        main(config)

    run("train", TrainConfig, job)


if __name__ == "__main__":
    main()
