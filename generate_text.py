"""Continue a prompt with a trained model: python generate_text.py prompt="def "."""

from launch.environment import ensure


def main() -> None:
    """Stream a continuation to the terminal."""
    ensure()
    from launch.run import run
    from launch.schemas import GenerateConfig

    def job(config: GenerateConfig) -> None:
        from commands.generate import main  # imports PyTorch, for which --help does not wait

        main(config)

    run("generate", GenerateConfig, job)


if __name__ == "__main__":
    main()
