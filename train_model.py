"""Train a small language model with the attention of your choice: python train_model.py --help."""

import ensure_environment

ensure_environment.ensure()

import contextlib  # noqa: E402
import dataclasses  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import TYPE_CHECKING  # noqa: E402

import run_config  # noqa: E402

if TYPE_CHECKING:
    from data.prepared import PreparedData
    from tracking.run_folder import RunFolder


def main(config: run_config.TrainConfig) -> None:
    """Prepare the data if need be, then train, or resume, the run that the configuration names.

    Of several ranks that torchrun started, each calls this; rank 0 alone prepares, writes, prints.
    """
    # PyTorch takes seconds to import, which `--help` and a misspelt key need not wait for.
    from tqdm import tqdm

    from data.pipeline import prepare
    from data.prepared import PreparedData
    from modeling.accounting import match_cache, mha_yardstick
    from modeling.gpt import check
    from tracking.run_folder import RunFolder
    from tracking.wandb_mirror import WandbMirror
    from training.budget import make_budget
    from training.budget_sheet import budget_sheet
    from training.distributed import joined, newest_checkpoint_hint
    from training.loop import Recipe, train
    from training.summary import describe_run

    check(config.model)
    if config.match == "cache":
        model = match_cache(config.model, config.match_cache_ratio)
        config = dataclasses.replace(config, model=model)
    config.eval.windows(config.model)
    budget = make_budget(config.trainer, config.schedule, config.model.max_position_embeddings)
    run = RunFolder(config.runs_path, config.run_name)

    with joined(config.trainer.device, run_config.tell) as world:
        world.share_of(budget.sequences_per_pass)
        folder = world.from_main(lambda: str(prepare(config.data, config.tokenizer, print).folder))
        prepared = PreparedData(Path(folder))
        asked = config.model
        config = _with_tokenizer(config, prepared)
        recipe = Recipe(
            model=config.model,
            optim=config.optim,
            schedule=config.schedule,
            trainer=config.trainer,
            eval=config.eval,
            sampling=config.sampling,
            seed=config.seed,
        )
        with run.lock() if world.is_main else contextlib.nullcontext():
            if not world.from_main(lambda: _start(run, config)):
                return
            tracking = dataclasses.replace(
                config.tracking, wandb=config.tracking.wandb and world.is_main
            )
            say = tqdm.write if world.is_main else _say_nothing
            mirror = WandbMirror(
                tracking, run.path, config.run_name, dataclasses.asdict(config), say
            )
            yardstick = dataclasses.replace(asked, vocab_size=config.model.vocab_size)
            say(budget_sheet(config.model, mha_yardstick(yardstick)))
            failed = True
            try:
                with world.telling(lambda: newest_checkpoint_hint(run.checkpoints_path)):
                    summary = train(recipe, prepared, run, mirror, say, world)
                failed = False
            finally:
                mirror.finish(exit_code=int(failed))
        is_default = run.path.parent == run_config.ROOT / "runs"
        arguments = [] if is_default else [f"runs_dir={config.runs_path}"]
        say(describe_run(summary, prepared.name, prepared.baselines, run.path, arguments))


def _with_tokenizer(
    config: run_config.TrainConfig, prepared: "PreparedData"
) -> run_config.TrainConfig:
    """Return the configuration with the model that is trained: what is recorded.

    Raises:
        ConfigError: If the model does not fit the tokenizer.
    """
    from modeling.accounting import match_to_mha

    vocab_size = config.model.vocab_size or prepared.vocab_size
    if vocab_size < prepared.vocab_size:
        raise run_config.ConfigError(
            f"model.vocab_size ({vocab_size}) must be at least the tokenizer's "
            f"{prepared.vocab_size}; set model.vocab_size=null to take that"
        )
    end = config.model.end_of_document_id
    if end not in (None, prepared.end_of_document_id):
        raise run_config.ConfigError(
            f"model.end_of_document_id ({end}) must be the tokenizer's "
            f"{prepared.end_of_document_id}; set model.end_of_document_id=null to take that"
        )
    if config.model.intra_document_mask:
        end = prepared.end_of_document_id
    model = dataclasses.replace(config.model, vocab_size=vocab_size, end_of_document_id=end)
    if config.match != "none":
        model = match_to_mha(model)
    return dataclasses.replace(config, model=model)


def _start(run: "RunFolder", config: run_config.TrainConfig) -> bool:
    """Record the configuration of a run; False if the run is finished, which is then said.

    Raises:
        ConfigError: If the run exists with another configuration.
    """
    summary = run.read_summary()
    if summary is not None or any(run.checkpoints_path.glob("[0-9]*")):
        run_config.require_same_run(run.config_path, config)
    if summary is not None and summary.get("finished"):
        print(
            f"{config.run_name} is finished: validation perplexity "
            f"{summary['validation_perplexity']:.2f}; nothing to do "
            "(another run_name=... or seed=... trains another)"
        )
        return False
    run.write_config(run_config.as_yaml(config))
    return True


def _say_nothing(line: str) -> None:
    """Take a line that rank 0 prints."""


if __name__ == "__main__":
    run_config.run("train", run_config.TrainConfig, main)
