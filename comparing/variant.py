"""A variant: all runs of one configuration, and what it is called."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from comparing.plain import plain
from comparing.recipes import differing_keys
from measuring.rows import EvaluatedRun
from modeling.config import LayersConfig
from tracking.configuration import flat

LAYERS = "layers."
UNIFORM = flat({"layers": dataclasses.asdict(LayersConfig())})
"""What layers that are alike have set."""
# Follow from the size of the model.
_DERIVED = re.compile(
    r"model\.(intermediate_size|attention\.(hidden_size|num_attention_heads|\w*head_dim))"
)


@dataclasses.dataclass
class Variant:
    """All runs of one configuration, which differ in their seed.

    Args:
        label: Unique in its group.
        runs: By seed; of several with one seed, the first by name counts.
        result: What is reported of it: see `docs/notation.md`.
        baseline: What it is compared with; itself if it is one, None if there is none.
    """

    label: str
    runs: list[EvaluatedRun]
    result: dict[str, Any] = dataclasses.field(default_factory=dict)
    baseline: "Variant | None" = None

    @property
    def is_baseline(self) -> bool:
        """Whether it is what others are compared with."""
        return self.baseline is self

    @property
    def attention(self) -> str:
        """The attention's registered name."""
        return str(self.runs[0].row["attention"])

    @property
    def is_external(self) -> bool:
        """Whether it is a model that kvlab did not train."""
        return self.runs[0].is_external

    @property
    def layers(self) -> str:
        """The arrangement of its layers in words; "uniform" where all are alike."""
        return arrangement_of(self.settings)

    @property
    def ignored(self) -> list[str]:
        """Names of runs that repeat a seed."""
        first = self.by_seed()
        return [run.name for run in self.runs if first[run.row["seed"]] is not run]

    @property
    def settings(self) -> dict[str, Any]:
        """The configuration that its runs share, but for the seed."""
        return self.runs[0].settings

    def by_seed(self) -> dict[int | None, EvaluatedRun]:
        """Return the runs by seed, None for an external model; of several the first."""
        first: dict[int | None, EvaluatedRun] = {}
        for run in self.runs:
            first.setdefault(run.row["seed"], run)
        return first


def arrangement_of(settings: Mapping[str, Any]) -> str:
    """Name an arrangement of layers by its label, or by its settings where it has none."""
    name = str(settings.get(f"{LAYERS}name", "uniform"))
    if name != "uniform":
        return name
    differing = (key for key in UNIFORM if settings.get(key, UNIFORM[key]) != UNIFORM[key])
    parts = [f"{key.rpartition('.')[2]}={settings[key]}" for key in differing]
    return ", ".join(parts).replace(" ", "") or name


def kind_of(run: EvaluatedRun) -> str:
    """Name a run's attention, and the arrangement of its layers unless they are alike."""
    layers = arrangement_of(run.settings)
    return run.row["attention"] if layers == "uniform" else f"{run.row['attention']} {layers}"


def label_variants(variants: Sequence[Variant]) -> None:
    """Name variants after attention and arrangement, and where that is not enough by the rest."""
    trained = [variant for variant in variants if not variant.is_external]
    for kind in {variant.label for variant in trained}:
        alike = [variant for variant in trained if variant.label == kind]
        if len(alike) == 1:
            continue
        keys = {key for v in alike for key in differing_keys(alike[0].settings, v.settings)}
        positions = [variant.runs[0].row["positions"] for variant in alike]
        shown = sorted(key for key in keys if not _DERIVED.fullmatch(key))
        if len({variant.settings.get("model.name") for variant in alike}) > 1:
            shown = [key for key in shown if not key.startswith("model.")]
            # A model that began with a folder is named after it.
            shown = shown if "begins_with" in shown else ["model.name", *shown]
        if len(set(positions)) > 1:
            shown = [key for key in shown if key != "model.position_embedding"]
        for variant, where in zip(alike, positions, strict=True):
            parts = [
                f"{key.rsplit('.', 1)[-1]}={plain(variant.settings.get(key))}" for key in shown
            ]
            if len(set(positions)) > 1:
                parts.insert(0, f"{where} positions")
            variant.label = " ".join([kind, ", ".join(parts[:3])]).strip()
    labels = [variant.label for variant in variants]
    for variant in variants:
        if labels.count(variant.label) > 1:
            variant.label = variant.runs[0].name
