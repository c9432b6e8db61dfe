"""Compare finished runs by perplexity, KV cache and speed: python eval_model.py --help."""

from launch.environment import ensure


def main() -> None:
    """Evaluate the runs that the command line names, and report on them."""
    ensure()
    from launch.run import run
    from launch.schemas import EvalConfig

    def job(config: EvalConfig) -> None:
        from commands.evaluate import main  # imports PyTorch, for which --help does not wait

        main(config)

    run("eval", EvalConfig, job)


if __name__ == "__main__":
    main()
