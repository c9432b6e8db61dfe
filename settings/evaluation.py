"""Keys of an evaluation."""

from dataclasses import dataclass, field

from settings.dtypes import CACHE_DTYPE_NAMES, dtype_meant
from settings.fields import Section, key


@dataclass
class DecodeSettings(Section, prefix="eval.decode_speed."):
    """Where the decoding step is timed."""

    batch_sizes: list[int] = key(lambda: [1, 8])
    """Sequences decoded together; [] times nothing."""
    contexts: list[int] = key(lambda: [128, 1024])
    """Tokens in the cache; may be more than a run was trained on, as timing needs no quality."""
    rounds: int = key(5, at_least=1)
    """In each, every run has a turn; the result is the median over rounds."""
    steps: int = key(4, at_least=1)
    """Tokens decoded in a turn."""

    def conflicts(self) -> list[str]:
        """Return what is wrong with values that have to fit others."""
        lists = {"batch_sizes": self.batch_sizes, "contexts": self.contexts}
        return [
            f"eval.decode_speed.{name} ({values}) must be different and at least 1"
            for name, values in lists.items()
            if any(value < 1 for value in values) or len(set(values)) < len(values)
        ]


DEFAULT_MARGIN = 0.01


@dataclass
class EvalSettings(Section, prefix="eval."):
    """How perplexity is measured, and the KV cache and the speed of decoding with it."""

    name: str = "default"
    """Label of the choice."""
    perplexity: bool = True
    """Score the split; false leaves the KV cache and the speed of decoding."""
    baseline: str | None = key(None, kind="word")
    """Attention that each variant is compared with, by the run that differs least in all else; null
    takes mha where there is one."""
    margin: float = key(DEFAULT_MARGIN, above=0, below=1)
    """Relative difference of perplexity up to which two variants are equivalent: 0.01 is 1 %."""
    context: int | None = key(None, at_least=1)
    """Tokens a window shows the model at most; null takes the model's own context."""
    stride: int | None = key(None, at_least=1)
    """Tokens newly scored per window; null takes the context: disjoint windows, the fast way."""
    batch_size: int = key(16, at_least=1)
    """Windows scored together; does not change the result."""
    cache_batch_size: int = key(1, at_least=1)
    """Sequences in the decode that measures the KV cache."""
    cache_context: int | None = key(None, at_least=1, at_most=10_000_000)
    """Tokens at which a sequence's KV cache is stated, since windows make it no multiple of the
    tokens; so many are decoded to measure it. null takes the model's own context."""
    decode: bool = False
    """Score token by token through the KV cache, as a server would, not in whole windows."""
    cache_dtype: str | None = key(None, one_of=CACHE_DTYPE_NAMES, hint=dtype_meant)
    """What the cache stores: float32, bfloat16, float16 or int8; null: what the weights are."""
    decode_path: str | None = key(None, kind="word")
    """How a step reads the cache, see model.attention.decode_path; null takes each run's own."""
    decode_speed: DecodeSettings = field(default_factory=DecodeSettings)
    """Where the decoding step is timed."""
    tasks: list[str] = key(list)
    """Tasks, groups or tags of lm-evaluation-harness (pip install "lm_eval==0.4.13"), such as
    hellaswag or [hellaswag,arc_easy]; see docs/lm_eval.md."""
    task_folder: str | None = key(None, kind="path")
    """A folder of task files (*.yaml) to add to the harness's own; code in them is refused."""
    task_limit: int | None = key(None, at_least=1)
    """The first documents of each task that are asked, for a quick look; null asks all."""
    num_fewshot: int | None = key(None, at_least=0)
    """Examples before each question, where a task does not insist on none; null: as it says."""

    def conflicts(self) -> list[str]:
        """Return what is wrong with values that have to fit others."""
        found = []
        if self.context is not None and self.stride is not None and self.stride > self.context:
            found.append(
                f"eval.stride ({self.stride}) must not exceed eval.context ({self.context}), or "
                "tokens between windows would go unscored"
            )
        if self.cache_dtype in CACHE_DTYPE_NAMES and self.perplexity and not self.decode:
            found.append(
                f"eval.cache_dtype={self.cache_dtype} changes no perplexity unless it is measured "
                "through the cache: set eval.decode=true, or eval.perplexity=false"
            )
        if not all(self.tasks) or len(set(self.tasks)) < len(self.tasks):
            found.append(f"eval.tasks ({self.tasks}) must be different names")
        how = ("task_folder", "task_limit", "num_fewshot")
        given = [name for name in how if getattr(self, name) is not None]
        if given and not self.tasks:
            found.append(f"eval.{given[0]} says how tasks are run; name some: eval.tasks=NAME")
        return found + self.decode_speed.problems()
