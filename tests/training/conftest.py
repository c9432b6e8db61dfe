import pytest
from weights import Killed

from modeling.config import SamplingSettings
from modeling.gpt import GPT
from settings.evaluation import EvalSettings
from settings.run import Recipe
from settings.training import OptimSettings, ScheduleSettings, TrainerSettings
from tests.tiny_models import tiny_config


@pytest.fixture
def recipe(prepared) -> Recipe:
    """Twelve steps of a tiny model with dropout, so that the random state matters."""
    model = tiny_config(
        "mla",
        width=32,
        heads=4,
        vocab_size=prepared.vocab_size,
        max_position_embeddings=32,
        num_hidden_layers=2,
        of_attention={"attention_dropout": 0.1},
    )
    trainer = TrainerSettings(
        max_tokens=12 * 4 * 32,
        micro_batch_size=2,
        gradient_accumulation_steps=2,
        precision="float32",
        device="cpu",
        eval_every_steps=5,
        eval_tokens=200,
        checkpoint_every_steps=3,
        sample_tokens=4,
    )
    return Recipe(
        model=model,
        optim=OptimSettings(),
        schedule=ScheduleSettings(warmup_steps=3),
        trainer=trainer,
        eval=EvalSettings(),
        sampling=SamplingSettings(),
        seed=1,
    )


@pytest.fixture
def die_after(monkeypatch):
    """Make the process 'die' in the step after the given one, before anything of it is saved."""

    def arm(step: int) -> None:
        loss, left = GPT.loss, [2 * step]  # two passes a step

        def dying(self, *arguments, **options):
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return loss(self, *arguments, **options)

        monkeypatch.setattr(GPT, "loss", dying)

    return arm
