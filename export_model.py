"""Write a model as a folder for transformers: python export_model.py run=... out=..."""

from launch.environment import ensure


def main() -> None:
    """Write the model that the command line names."""
    ensure()
    from launch.run import run
    from launch.schemas import ExportConfig

    def job(config: ExportConfig) -> None:
        from commands.export import main  # imports PyTorch, for which --help does not wait

        main(config)

    run("export", ExportConfig, job)


if __name__ == "__main__":
    main()
