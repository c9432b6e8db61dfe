"""Settings of optimizer, schedule and trainer. Nothing here imports torch."""

import math
import re
from dataclasses import dataclass

from modeling.config import dtype_meant

PRECISIONS = ("auto", "float32", "bfloat16")
PARALLELISMS = ("ddp", "fsdp")
# Beyond, the machine would end the process or be busy for ever, before anything is refused.
DEVICES = ("auto", "cpu", "cuda")
_MAX = {"max_tokens": 2**53, "micro_batch_size": 2**16, "num_threads": 2**10}


def _in_range(key: str, value: float, low: float, high: float, *, low_open: bool = False) -> str:
    """Return a problem if value is not in [low, high), or (low, high) if low_open; else ''."""
    if math.isfinite(value) and (value > low if low_open else value >= low) and value < high:
        return ""
    bound = f"above {low}" if low_open else f"at least {low}"
    below = "" if math.isinf(high) else f" and below {high}"
    return f"{key} ({value}) must be {bound}{below}"


def device_problems(key: str, device: str) -> list[str]:
    """Return what is wrong with the name of a device, and what there is instead."""
    if device in DEVICES:
        return []
    text = f"{key} ('{device}') must be auto, cpu or cuda"
    if re.fullmatch(r"(cuda|gpu):?\d+|\d+", device):
        number = re.sub(r"\D", "", device)
        return [
            f"{text}; one GPU of several is CUDA_VISIBLE_DEVICES={number} python ... {key}=cuda"
        ]
    if device.lower() in ("gpu", "nvidia", "rocm", "hip"):
        return [f"{text}; a GPU is {key}=cuda"]
    if device.lower() in ("mps", "metal", "xpu", "tpu", "xla", "npu"):
        return [f"{text}; kvlab does not run on {device}: {key}=cpu does"]
    return [text]


@dataclass
class OptimSettings:
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101), alone or beside Muon."""

    name: str = "muon"
    """muon: Muon for the blocks' matrices, AdamW for the rest; or adamw for all."""
    learning_rate: float = 8e-3
    """Peak, reached after warm-up."""
    weight_decay: float = 0.1
    """On the blocks' matrices; norms and biases have none."""
    embedding_weight_decay: float = 0.1
    """On embeddings, and on the output projection, which is one where they are tied."""
    momentum: float = 0.95
    """Of Muon."""
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8

    def problems(self) -> list[str]:
        """Return every value out of its range, naming the key."""
        found = [
            ""
            if self.name in ("adamw", "muon")
            else f"optim.name ('{self.name}') must be adamw or muon",
            _in_range("optim.learning_rate", self.learning_rate, 0, math.inf, low_open=True),
            _in_range("optim.weight_decay", self.weight_decay, 0, math.inf),
            _in_range("optim.embedding_weight_decay", self.embedding_weight_decay, 0, math.inf),
            _in_range("optim.momentum", self.momentum, 0, 1),
            _in_range("optim.beta1", self.beta1, 0, 1),
            _in_range("optim.beta2", self.beta2, 0, 1),
            _in_range("optim.eps", self.eps, 0, math.inf, low_open=True),
        ]
        return [problem for problem in found if problem]


@dataclass
class ScheduleSettings:
    """Learning rate over the run: linear warm-up, then what the name says."""

    name: str = "cosine"
    """cosine, wsd (stable, then a decay at the end) or constant."""
    warmup_steps: int | None = None
    """null: a tenth of the run, and warmup_at_most steps if that is less."""
    warmup_at_most: int = 70
    final_fraction: float = 0.1
    """Learning rate at the end, as a fraction of the peak (cosine and wsd)."""
    decay_fraction: float = 0.2
    """The last part of the run, in which wsd lowers the learning rate."""

    def warmup(self, num_steps: int) -> int:
        """Return the steps of the warm-up in a run of `num_steps`."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return min(self.warmup_at_most, num_steps // 10)

    def problems(self) -> list[str]:
        """Return every value out of its range, naming the key."""
        found = [
            ""
            if self.name in ("cosine", "wsd", "constant")
            else f"schedule.name ('{self.name}') must be cosine, wsd or constant",
            ""
            if self.warmup_steps is None
            else _in_range("schedule.warmup_steps", self.warmup_steps, 0, math.inf),
            _in_range("schedule.warmup_at_most", self.warmup_at_most, 1, math.inf),
            ""
            if 0.0 <= self.final_fraction <= 1.0
            else f"schedule.final_fraction ({self.final_fraction}) must be in [0, 1]",
            ""
            if 0.0 <= self.decay_fraction <= 1.0
            else f"schedule.decay_fraction ({self.decay_fraction}) must be in [0, 1]",
        ]
        return [problem for problem in found if problem]


@dataclass
class TrainerSettings:
    """The budget of a run and how it is spent."""

    max_tokens: int = 1_500_000
    """Training tokens; rounded up to whole steps."""
    max_minutes: float | None = None
    """Save and stop so long after the start of the process; rerunning goes on. null never does."""
    micro_batch_size: int = 8
    """Sequences in one forward and backward pass, of all ranks together."""
    gradient_accumulation_steps: int = 1
    """Passes per optimizer step; the loss is the mean over all their tokens."""
    overfit_batches: int | None = None
    """Train on the sequences of the first n steps again and again, to see a model learn them by
    heart; null trains on all."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    z_loss_weight: float = 0.0
    """Of the z-loss (PaLM, arXiv 2204.02311, section 5: 1e-4), which keeps logits from drifting."""
    precision: str = "auto"
    """float32, bfloat16 (autocast over float32 weights), or auto: bfloat16 where it is native."""
    device: str = "auto"
    """cpu, cuda, or auto."""
    deterministic: bool = False
    """On a GPU only kernels that repeat their result bit for bit; a CPU does so anyway."""
    num_threads: int | None = None
    """CPU threads; null takes PyTorch's choice. Resuming is bit-exact only with the same number."""
    tune_allocator: bool = True
    """On a CPU with glibc: keep freed memory instead of faulting it in again at each step."""
    compile: bool = False
    """torch.compile the model; where that fails, a warning, and training goes on without."""
    parallelism: str = "ddp"
    """With several ranks: ddp (each has the whole model) or fsdp (each has a part)."""
    rank_timeout_seconds: float = 600.0
    """With several ranks: end the run when one has not answered for so long."""
    activation_checkpointing: bool = False
    """Keep only what each block gets, and compute the block again in the backward pass."""
    profile: bool = False
    """Write a trace of a few steps, and a table of their operators, to profile/ in the run."""
    log_every_steps: int = 1
    eval_every_steps: int = 100
    eval_tokens: int = 32_768
    """Validation tokens scored during the run; at the end the whole split is."""
    checkpoint_every_steps: int = 100
    keep_last: int = 2
    """Checkpoints kept, besides the one with the best validation."""
    sample_prompt: str | None = None
    """Text that is continued at the end; null takes the first words of the validation split."""
    sample_tokens: int = 120
    """Length of the sample text at the end; 0 for none."""

    def problems(self) -> list[str]:
        """Return every value out of its range, naming the key."""
        found = [
            _in_range(f"trainer.{key}", getattr(self, key), 1, _MAX.get(key, math.inf))
            for key in (
                "max_tokens",
                "micro_batch_size",
                "gradient_accumulation_steps",
                "log_every_steps",
                "eval_every_steps",
                "checkpoint_every_steps",
                "keep_last",
            )
        ]
        found.append(
            _in_range("trainer.max_grad_norm", self.max_grad_norm, 0, math.inf, low_open=True)
        )
        found.append(
            _in_range("trainer.rank_timeout_seconds", self.rank_timeout_seconds, 10, math.inf)
        )
        found.append(_in_range("trainer.z_loss_weight", self.z_loss_weight, 0, math.inf))
        # The first token of the split is not scored.
        found.append(_in_range("trainer.eval_tokens", self.eval_tokens, 2, math.inf))
        found.append(_in_range("trainer.sample_tokens", self.sample_tokens, 0, math.inf))
        for key in ("num_threads", "overfit_batches"):
            if getattr(self, key) is not None:
                high = _MAX.get(key, math.inf)
                found.append(_in_range(f"trainer.{key}", getattr(self, key), 1, high))
        if self.max_minutes is not None:
            found.append(
                _in_range("trainer.max_minutes", self.max_minutes, 0, math.inf, low_open=True)
            )
        found += device_problems("trainer.device", self.device)
        if self.precision not in PRECISIONS:
            found.append(
                f"trainer.precision ('{self.precision}') must be one of {', '.join(PRECISIONS)}"
                f"{dtype_meant('trainer.precision', self.precision, PRECISIONS)}"
            )
        if self.parallelism not in PARALLELISMS:
            found.append(
                f"trainer.parallelism ('{self.parallelism}') must be one of "
                f"{', '.join(PARALLELISMS)}"
            )
        if self.parallelism == "fsdp" and self.compile:
            found.append(
                "trainer.compile=true does not work with trainer.parallelism=fsdp; set one of "
                "trainer.compile=false and trainer.parallelism=ddp"
            )
        if self.sample_tokens > 0 and self.sample_prompt == "":
            found.append("trainer.sample_prompt is empty; give at least one character")
        return [problem for problem in found if problem]
