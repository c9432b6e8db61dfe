"""Settings of evaluation. Nothing here imports torch."""

from dataclasses import dataclass, field

from modeling.config import cache_dtype_problems

LONGEST_CACHE = 10_000_000
"""Tokens that are decoded at most, to measure a cache."""


@dataclass
class DecodeSettings:
    """Where the decoding step is timed."""

    batch_sizes: list[int] = field(default_factory=lambda: [1, 8])
    """Sequences decoded together; an empty list times nothing."""
    contexts: list[int] = field(default_factory=lambda: [128, 1024])
    """Tokens in the cache; may be more than the model was trained on."""
    rounds: int = 5
    """In each every run has a turn; the result is the median over rounds."""
    steps: int = 4
    """Tokens decoded in a turn."""

    def problems(self) -> list[str]:
        """Return every value out of its range, naming the key."""
        found = []
        for key in ("batch_sizes", "contexts"):
            values = getattr(self, key)
            if any(value < 1 for value in values) or len(set(values)) < len(values):
                found.append(f"eval.decode_speed.{key} ({values}) must be different and at least 1")
        for key in ("rounds", "steps"):
            if getattr(self, key) < 1:
                found.append(f"eval.decode_speed.{key} ({getattr(self, key)}) must be at least 1")
        return found


@dataclass
class EvalSettings:
    """How perplexity is measured, and the KV cache and the speed of decoding with it."""

    name: str = "default"
    perplexity: bool = True
    """Score the split; false leaves the KV cache and the speed of decoding."""
    baseline: str | None = None
    """Attention to compare with; null takes mha where there is one."""
    context: int | None = None
    """Tokens a window shows the model at most; null takes the model's own context."""
    stride: int | None = None
    """Tokens newly scored per window; null takes the context: disjoint windows, the fast way."""
    batch_size: int = 16
    """Windows scored together; does not change the result."""
    cache_batch_size: int = 1
    """Sequences in the decode that measures the KV cache."""
    cache_context: int | None = None
    """Tokens at which a sequence's KV cache is stated; null takes the model's own context."""
    decode: bool = False
    """Score token by token through the KV cache, as a server would, not in whole windows."""
    cache_dtype: str | None = None
    """What the cache stores: float32, bfloat16, float16 or int8; null: what the weights are."""
    decode_path: str | None = None
    """How a step reads the cache, see model.attention.decode_path; null takes the run's own."""
    decode_speed: DecodeSettings = field(default_factory=DecodeSettings)
    tasks: list[str] = field(default_factory=list)
    """Tasks, groups or tags of lm-evaluation-harness; see docs/lm_eval.md."""
    task_folder: str | None = None
    """A folder of task files to add to the harness's own."""
    task_limit: int | None = None
    """The first documents of each task that are asked, for a quick look; null asks all."""
    num_fewshot: int | None = None
    """Examples before each question, where a task does not insist on none; null: as it says."""

    def problems(self) -> list[str]:
        """Return every value out of its range, naming the key."""
        found = []
        for key in ("context", "stride", "batch_size", "cache_batch_size", "cache_context"):
            value = getattr(self, key)
            if value is not None and value < 1:
                found.append(f"eval.{key} ({value}) must be at least 1")
        if self.context is not None and self.stride is not None and self.stride > self.context:
            found.append(
                f"eval.stride ({self.stride}) must not exceed eval.context ({self.context}), or "
                "tokens between windows would go unscored"
            )
        if (self.cache_context or 1) > LONGEST_CACHE:
            found.append(
                f"eval.cache_context ({self.cache_context}) must be at most {LONGEST_CACHE:,}: "
                "so many tokens are decoded to measure the cache"
            )
        unknown = cache_dtype_problems("eval.cache_dtype", self.cache_dtype)
        found += unknown
        if self.cache_dtype and not unknown and self.perplexity and not self.decode:
            found.append(
                f"eval.cache_dtype={self.cache_dtype} changes no perplexity unless it is measured "
                "through the cache: set eval.decode=true, or eval.perplexity=false"
            )
        return found + self._task_problems() + self.decode_speed.problems()

    def _task_problems(self) -> list[str]:
        found = []
        if not all(self.tasks) or len(set(self.tasks)) < len(self.tasks):
            found.append(f"eval.tasks ({self.tasks}) must be different names")
        if self.task_limit is not None and self.task_limit < 1:
            found.append(f"eval.task_limit ({self.task_limit}) must be at least 1")
        if self.num_fewshot is not None and self.num_fewshot < 0:
            found.append(f"eval.num_fewshot ({self.num_fewshot}) must be at least 0")
        how = ("task_folder", "task_limit", "num_fewshot")
        given = [key for key in how if getattr(self, key) is not None]
        if given and not self.tasks:
            found.append(f"eval.{given[0]} says how tasks are run; name some: eval.tasks=NAME")
        return found
