"""Train a small language model with the attention of your choice: python train_model.py --help."""

import ensure_environment

ensure_environment.ensure()

import dataclasses  # noqa: E402

import run_config  # noqa: E402


def main(config: run_config.TrainConfig) -> None:
    """Prepare the data if need be, then train, or resume, the run that the configuration names."""
    # PyTorch takes seconds to import, which `--help` and a misspelt key need not wait for.
    from tqdm import tqdm

    from data.pipeline import prepare
    from modeling.accounting import match_to_mha
    from modeling.gpt import check
    from tracking.run_folder import RunFolder
    from tracking.wandb_mirror import WandbMirror
    from training.budget import make_budget
    from training.loop import Recipe, train
    from training.summary import describe_run

    check(config.model)
    config.eval.windows(config.model)
    make_budget(config.trainer, config.schedule, config.model.max_position_embeddings)
    run = RunFolder(config.runs_dir, config.run_name)

    prepared = prepare(config.data, config.tokenizer, print)
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
    if config.match == "params":
        model = match_to_mha(model)
    # What is recorded is the model that is trained.
    config = dataclasses.replace(config, model=model)
    recipe = Recipe(
        model=model,
        optim=config.optim,
        schedule=config.schedule,
        trainer=config.trainer,
        eval=config.eval,
        sampling=config.sampling,
        seed=config.seed,
    )
    with run.lock():
        summary = run.read_summary()
        if summary is not None or any(run.checkpoints_path.glob("[0-9]*")):
            run_config.require_same_run(run.config_path, config)
        if summary is not None and summary.get("finished"):
            print(
                f"{config.run_name} is finished: validation perplexity "
                f"{summary['validation_perplexity']:.2f}; nothing to do "
                "(another run_name=... or seed=... trains another)"
            )
            return
        run.write_config(run_config.as_yaml(config))
        mirror = WandbMirror(
            config.tracking, run.path, config.run_name, dataclasses.asdict(config), tqdm.write
        )
        failed = True
        try:
            summary = train(recipe, prepared, run, mirror, tqdm.write)
            failed = False
        finally:
            mirror.finish(exit_code=int(failed))
    is_default = run.path.parent == run_config.ROOT / "runs"
    arguments = [] if is_default else [f"runs_dir={config.runs_dir}"]
    print(describe_run(summary, prepared.name, prepared.baselines, run.path, arguments))


if __name__ == "__main__":
    run_config.run("train", run_config.TrainConfig, main)
