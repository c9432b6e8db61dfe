"""Train a small language model with the attention of your choice: python train_model.py --help."""

import ensure_environment

ensure_environment.ensure()

import contextlib  # noqa: E402
import dataclasses  # noqa: E402
import math  # noqa: E402
import os  # noqa: E402
from collections.abc import Callable, Mapping  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import TYPE_CHECKING, Any  # noqa: E402

import launch.run  # noqa: E402
from launch import schemas, sweep, terminal  # noqa: E402
from launch.errors import ConfigError  # noqa: E402
from launch.failures import tell  # noqa: E402
from launch.recorded import as_yaml, require_same_run  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

    from data.prepared import PreparedData
    from modeling.config import GPTConfig
    from settings.run import Recipe
    from tracking.run_folder import RunFolder
    from training.dry_run import Unprepared
    from training.ranks.world import World

    Initial = Callable[[], Mapping[str, Tensor]]


def main(config: schemas.TrainConfig) -> None:
    """Prepare the data if need be, then train, or resume, the run that the configuration names.

    Of several ranks that torchrun started, each calls this; rank 0 alone prepares, writes, prints.
    """
    # PyTorch takes seconds to import, which `--help` and a misspelt key need not wait for.
    from data.prepared import PreparedData
    from measuring.windows import cache_context_for, windows_for
    from modeling.accounting import match_cache
    from modeling.arrangement import layer_configs
    from tracking.run_folder import RunFolder
    from training.ranks.joining import joined
    from training.recipe.budget import make_budget
    from training.summary import describe_in_short, describe_run

    layer_configs(config.model)
    initial = None
    if config.init_from is not None:
        config, initial = _begun_with(Path(config.init_from).expanduser(), config)
    elif config.match == "cache":
        model = match_cache(config.model, config.match_cache_ratio, config.match_cache_context)
        config = dataclasses.replace(config, model=model)
    windows_for(config.eval, config.model)
    cache_context_for(config.eval, config.model)
    budget = make_budget(config.trainer, config.schedule, config.model.max_position_embeddings)
    schedule = config.schedule
    warmup = schedule.warmup(budget.num_steps)
    # What is recorded is what it comes to.
    config = dataclasses.replace(
        config, schedule=dataclasses.replace(schedule, warmup_steps=warmup)
    )
    run = RunFolder(config.runs_path, config.run_name)

    timeout = config.trainer.rank_timeout_seconds
    with joined(config.trainer.device, tell, timeout) as world:
        world.share_of(budget.sequences_per_pass)
        if config.dry_run:
            _dry_run(run, config, world)
            return
        folder = world.from_main(lambda: str(_prepared(config).folder))
        prepared = PreparedData(Path(folder))
        if initial is not None:
            _require_its_tokenizer(str(config.init_from), config.model, prepared)
        asked = config.model
        config = _with_tokenizer(config, prepared)
        say = terminal.say if world.is_main else _say_nothing
        if schedule.warmup_steps is None and warmup < schedule.warmup_at_most:
            say(
                f"warm-up: {warmup} step{'s' * (warmup != 1)} instead of "
                f"{schedule.warmup_at_most}, a tenth of the run's {budget.num_steps} "
                "(schedule.warmup_steps sets another)"
            )
        if config.fair_lr:
            config = _with_fair_rate(config, prepared, world, say, initial)
        sheet = _sheet(asked, config.model)
        say_once = _say_unless_repeated if world.is_main else _say_nothing
        summary, was_finished = _trained(run, config, prepared, world, say_once, sheet, initial)
        if was_finished:
            say(
                f"{config.run_name} is finished: validation perplexity "
                f"{summary['validation_perplexity']:.2f}; nothing to do "
                "(another run_name=... or seed=... trains another)"
            )
            return
        if sweep.current:
            say(describe_in_short(summary))
            return
        if world.is_main and config.trainer.sample_tokens > 0:
            terminal.say(f"sample:\n{run.read_sample()}\n", end="")
        is_default = run.path.parent == schemas.ROOT / "runs"
        arguments = [] if is_default else [f"runs_dir={config.runs_path}"]
        say(describe_run(summary, prepared.name, prepared.baselines, run.path, arguments))


def _sheet(asked: "GPTConfig", model: "GPTConfig") -> str:
    """Return what a model costs beside MHA, and what its arrangement does not do at this size.

    Args:
        asked: The model before its MLP was matched to MHA's parameters.
        model: What is trained.
    """
    from modeling.accounting import mha_yardstick
    from modeling.arrangement import remarks
    from training.recipe.budget_sheet import budget_sheet

    baseline = mha_yardstick(dataclasses.replace(asked, vocab_size=model.vocab_size))
    return "\n".join([*remarks(model), budget_sheet(model, baseline)])


def _begun_with(
    folder: Path, config: schemas.TrainConfig
) -> "tuple[schemas.TrainConfig, Initial | None]":
    """Return the configuration with the model of a folder, and what reads its weights.

    Where the folder is gone, a run that has begun goes on without it.
    """
    from interop.initial import initial_model, recorded_model, sha256_of_model
    from tracking.configuration import read_configuration
    from tracking.run_folder import RunFolder

    run = RunFolder(config.runs_path, config.run_name)
    if not folder.is_dir() and (run.summary_path.exists() or _has_checkpoint(run)):
        recorded = read_configuration(run.config_path)
        model, sha256 = recorded_model(recorded), recorded.get("init_sha256")
        return _with_model(config, model, sha256), None
    asked = config.model
    model, sha256 = initial_model(folder, asked).config, sha256_of_model(folder)
    if config.init_sha256 not in (None, sha256):
        raise ConfigError(
            f"{folder} holds another model than init_sha256 ({config.init_sha256}) says; it has "
            f"{sha256}"
        )
    config = _with_model(config, model, sha256)

    def weights() -> "Mapping[str, Tensor]":
        """Read them again where they are needed: a training would keep them besides its own."""
        if sha256_of_model(folder) != sha256:
            raise ConfigError(f"{folder} has changed since this command began; try again")
        return initial_model(folder, asked).weights

    return config, weights


def _with_model(
    config: schemas.TrainConfig, model: "GPTConfig", sha256: "str | None"
) -> schemas.TrainConfig:
    """Return the configuration with a folder's model, whose MLP has its width."""
    return dataclasses.replace(
        config, model=model, layers=model.layers, match="none", init_sha256=sha256
    )


def _require_its_tokenizer(folder: str, model: "GPTConfig", prepared: "PreparedData") -> None:
    from interop.initial import require_same_tokenizer

    what_to_do = f"set tokenizer=pretrained tokenizer.path={folder}"
    require_same_tokenizer(Path(folder).expanduser(), model, prepared, "init_from", what_to_do)


def _has_checkpoint(run: "RunFolder") -> bool:
    """Tell whether the training will find one, or refuse to begin where all are damaged."""
    from tracking.checkpoints import CheckpointStore

    return bool(CheckpointStore(run.checkpoints_path, 1, read_only=True).steps())


def _has_begun(run: "RunFolder") -> bool:
    """Tell whether a run has a configuration that it was trained by."""
    return run.read_summary() is not None or _has_checkpoint(run)


def _trained(
    run: "RunFolder",
    config: schemas.TrainConfig,
    prepared: "PreparedData",
    world: "World",
    say: Callable[[str], None],
    first_lines: str = "",
    initial: "Initial | None" = None,
) -> tuple[dict[str, Any], bool]:
    """Train a run, or go on with it, unless it is finished.

    Args:
        run: Its folder.
        config: What is recorded.
        prepared: The corpus.
        world: The ranks that train it.
        say: Prints a line.
        first_lines: Said before the training, if there is any.
        initial: Reads the weights that it begins with; random ones if not given.

    Returns:
        What summary.json holds, and whether the run was finished before.

    Raises:
        ConfigError: If the run exists with another configuration.
    """
    from tracking.wandb_mirror import WandbMirror
    from training.endurance.resumption import newest_checkpoint_hint
    from training.errors import TrainingInterrupted
    from training.loop import train
    from training.machine.signals import ignore_signals

    recipe = _recipe(config)
    with run.lock() if world.is_main else contextlib.nullcontext():
        finished = world.from_main(lambda: _start(run, config, prepared, say))
        if finished is not None:
            return finished, True
        if first_lines:
            say(first_lines)
        if _has_checkpoint(run):
            initial = None  # its weights are the checkpoint's
        if initial is not None:
            model = config.model
            say(
                f"begins with the weights in {config.init_from}, which decides the model: "
                f"{model.attention['name']}, {model.num_hidden_layers} layers of width "
                f"{model.hidden_size}; the context is this training's, "
                f"{model.max_position_embeddings} tokens (model.max_position_embeddings); "
                "attention=, layers= and other keys of the model have no effect"
            )
        tracking = dataclasses.replace(
            config.tracking, wandb=config.tracking.wandb and world.is_main
        )
        mirror = WandbMirror(
            tracking,
            run.path,
            config.run_name,
            dataclasses.asdict(config),
            say,
            resumes=_has_checkpoint(run),
        )
        failed = True
        try:
            with world.telling(lambda: newest_checkpoint_hint(run.checkpoints_path)):
                summary = train(recipe, prepared, run, mirror, say, world, initial)
            failed = False
        except TrainingInterrupted:
            ignore_signals(but_ctrl_c=True)  # schedulers ask twice
            raise
        finally:
            mirror.finish(exit_code=int(failed))
    return summary, False


def _recipe(config: schemas.TrainConfig) -> "Recipe":
    """Return what decides a run's numbers."""
    from settings.run import Recipe

    return Recipe(
        model=config.model,
        optim=config.optim,
        schedule=config.schedule,
        trainer=config.trainer,
        eval=config.eval,
        sampling=config.sampling,
        seed=config.seed,
    )


def _dry_run(run: "RunFolder", config: schemas.TrainConfig, world: "World") -> None:
    """Say what a run would take from here on, and leave nothing behind.

    Raises:
        ConfigError: If the run exists with another configuration, as training it would.
    """
    from data.pipeline import prepared_folder
    from data.prepared import PreparedData
    from tracking.checkpoints import CheckpointStore
    from training import cost_sheet, dry_run
    from training.recipe.budget import make_budget

    say = terminal.say if world.is_main else _say_nothing
    folder = prepared_folder(config.data, config.tokenizer)
    is_prepared = world.from_main(folder.exists)
    corpus: PreparedData | dry_run.Unprepared
    if is_prepared:
        corpus = PreparedData(folder)
    else:
        corpus = dry_run.stand_in(config.data, config.tokenizer, config.model.vocab_size)
    asked = config.model
    config = dataclasses.replace(_with_tokenizer(config, corpus), dry_run=False)
    if _has_begun(run):
        require_same_run(run.config_path, config)
    if (summary := run.read_summary()) and summary.get("finished"):
        say(f"{run.name} is finished: it would take nothing")
        return
    steps = CheckpointStore(run.checkpoints_path, 1, read_only=True).steps()
    first_step = steps[-1] if steps else 0

    say(_sheet(asked, config.model))
    recipe = _recipe(config)
    measured = dry_run.measure(recipe, corpus, world)
    arguments = (config.data, config.tokenizer, config.runs_path, first_step, measured)
    lines = cost_sheet.describe(recipe, corpus, *arguments)
    say("\n".join([f"{run.name}, a dry run: nothing is written", *lines]))
    context = config.model.max_position_embeddings
    budget = make_budget(config.trainer, config.schedule, context)
    cost = cost_sheet.cost_of(recipe, budget, first_step, measured)
    costs = {run.name: cost}
    if config.fair_lr:
        whole = cost_sheet.cost_of(recipe, budget, 0, measured)
        grid = _missing_in_grid(config)
        costs |= dict.fromkeys(grid, whole)
        if grid:
            first = cost_sheet.total([whole] * len(grid))
            say(f"fair_lr=true trains {len(grid)} runs first: {first.describe()}")
    if sweep.current:
        sweep.current.expect(costs)


def _missing_in_grid(config: schemas.TrainConfig) -> list[str]:
    """Name the runs that a fair learning rate needs and that are not trained yet."""
    from tracking.run_folder import RunFolder
    from training.recipe.fair_rate import GRID_FOLDER, grid, name_in_grid

    rates = grid(config.optim.learning_rate, config.fair_lr_factors)
    names = [name_in_grid(config.run_name, config.seed, rate) for rate in rates]
    folders = {name: RunFolder(config.runs_path / GRID_FOLDER, name) for name in names}
    summaries = {name: folder.read_summary() or {} for name, folder in folders.items()}
    return [name for name, summary in summaries.items() if not summary.get("finished")]


def _with_fair_rate(
    config: schemas.TrainConfig,
    prepared: "PreparedData",
    world: "World",
    say: Callable[[str], None],
    initial: "Initial | None",
) -> schemas.TrainConfig:
    """Return the configuration with the learning rate that a grid of runs speaks for.

    The runs that are missing are trained first.

    Raises:
        TrainingError: If several ranks train: an error of one, a diverged run, ends them all.
    """
    from measuring.errors import BrokenWeights
    from tracking.run_folder import RunFolder
    from tracking.wandb_environment import forget_names_of_one_run
    from training.errors import TrainingDiverged, TrainingError
    from training.recipe.fair_rate import (
        GRID_FOLDER,
        GRID_SEED,
        choose,
        describe,
        grid,
        name_in_grid,
    )

    if world.size > 1:
        raise TrainingError(
            f"fair_lr=true trains its grid in one process, not in {world.size} ranks; find the "
            "rate without torchrun, then set fair_lr=false and that optim.learning_rate"
        )
    nlls: dict[float, float] = {}
    # They are the run's that is trained afterwards, not those of the grid.
    names_of_one_run = forget_names_of_one_run()
    for rate in grid(config.optim.learning_rate, config.fair_lr_factors):
        one = dataclasses.replace(
            config,
            run_name=name_in_grid(config.run_name, config.seed, rate),
            runs_dir=str(config.runs_path / GRID_FOLDER),
            study=None,
            seed=GRID_SEED,
            # As of a run by itself: grids that overlap share it.
            fair_lr=False,
            fair_lr_factors=schemas.TrainConfig().fair_lr_factors,
            optim=dataclasses.replace(config.optim, learning_rate=rate),
        )
        try:
            folder = RunFolder(one.runs_path, one.run_name)
            summary, _ = _trained(folder, one, prepared, world, say, initial=initial)
            nlls[rate] = summary["validation_nll"]
        except (TrainingDiverged, BrokenWeights):
            nlls[rate] = math.inf
    os.environ.update(names_of_one_run)
    choice = choose(nlls)
    say(describe(nlls, choice))
    optim = dataclasses.replace(config.optim, learning_rate=choice.learning_rate)
    return dataclasses.replace(config, optim=optim)


def _with_tokenizer(
    config: schemas.TrainConfig, prepared: "PreparedData | Unprepared"
) -> schemas.TrainConfig:
    """Return the configuration with the model that is trained: what is recorded.

    Raises:
        ConfigError: If the model does not fit the tokenizer.
    """
    from modeling.accounting import match_to_mha

    vocab_size = config.model.vocab_size or prepared.vocab_size
    if vocab_size < prepared.vocab_size:
        raise ConfigError(
            f"model.vocab_size ({vocab_size}) must be at least the tokenizer's "
            f"{prepared.vocab_size}; set model.vocab_size=null to take that"
        )
    end = config.model.end_of_document_id
    if end not in (None, prepared.end_of_document_id):
        raise ConfigError(
            f"model.end_of_document_id ({end}) must be the tokenizer's "
            f"{prepared.end_of_document_id}; set model.end_of_document_id=null to take that"
        )
    if config.model.intra_document_mask:
        end = prepared.end_of_document_id
    model = dataclasses.replace(config.model, vocab_size=vocab_size, end_of_document_id=end)
    if config.match != "none":
        model = match_to_mha(model)
    return dataclasses.replace(config, model=model)


def _prepared(config: schemas.TrainConfig) -> "PreparedData":
    """Prepare the data; where the texts are gone, a run that has begun goes on with what it had.

    Raises:
        DataError: If the texts cannot be prepared.
    """
    from data.errors import DataError
    from data.pipeline import prepare

    try:
        return prepare(config.data, config.tokenizer, terminal.say)
    except DataError:
        corpora = [config.data, *config.data.corpora.values()]
        local = [Path(str(some.path)).expanduser() for some in corpora if some.source == "local"]
        if all(path.exists() for path in local) or (found := _begun_on(config)) is None:
            raise
    terminal.say(
        f"{config.run_name}: its texts are gone; it uses the data prepared in {found.folder}"
    )
    return found


def _begun_on(config: schemas.TrainConfig) -> "PreparedData | None":
    """Find the data that a run has begun on by their hash; None if there are none."""
    from files.errors import RunError
    from measuring.corpus import find_prepared
    from measuring.errors import EvaluationError
    from tracking.checkpoints import CheckpointStore
    from tracking.run_folder import RunFolder

    run = RunFolder(config.runs_path, config.run_name)
    try:
        newest = CheckpointStore(run.checkpoints_path, 1, read_only=True).load_newest(names=[])
        if newest is None:
            return None
        keys = ("folder", "fingerprint", "tokenizer_sha256")
        return find_prepared(run, {key: newest.value(f"data.{key}", str) for key in keys})
    except (EvaluationError, RunError):
        return None


def _require_same_data(run: "RunFolder", prepared: "PreparedData") -> None:
    """Refuse to take a run for finished that was trained on other data, as resuming it would.

    Raises:
        ConfigError: Naming both fingerprints.
    """
    from files.errors import RunError
    from tracking.checkpoints import CheckpointStore

    store = CheckpointStore(run.checkpoints_path, 1, read_only=True)
    fingerprint = None
    with contextlib.suppress(RunError):  # a finished run needs none
        if (newest := store.load_newest(names=[])) is not None:
            fingerprint = newest.value("data.fingerprint", str)
    if fingerprint not in (None, prepared.fingerprint):
        raise ConfigError(
            f"run '{run.name}' was trained on data with fingerprint {fingerprint[:12]}, but "
            f"{prepared.folder} has {prepared.fingerprint[:12]}; choose another name with "
            "run_name=..."
        )


def _start(
    run: "RunFolder",
    config: schemas.TrainConfig,
    prepared: "PreparedData",
    say: Callable[[str], None],
) -> dict[str, Any] | None:
    """Record the configuration of a run that is to be trained; return a finished one's summary.

    Raises:
        ConfigError: If the run exists with another configuration, or on other data.
    """
    summary = run.read_summary()
    if _has_begun(run):
        require_same_run(run.config_path, config)
    if summary is not None and summary.get("finished"):
        _require_same_data(run, prepared)
        return summary
    text = as_yaml(config)
    if run.config_path.is_file() and run.config_path.read_bytes() != text.encode():
        say(f"{run.name} has a new configuration; the one that was there is replaced")
    run.write_config(text)
    return None


def _say_unless_repeated(line: str) -> None:
    """Print a line that no other run of the same sweep has printed."""
    if not (sweep.current and sweep.current.is_repeated(line)):
        terminal.say(line)


def _say_nothing(line: str) -> None:
    """Take a line that rank 0 prints."""


if __name__ == "__main__":
    launch.run.run("train", schemas.TrainConfig, main)
