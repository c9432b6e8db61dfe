"""Keys of optimizer, schedule and trainer."""

from dataclasses import dataclass

from settings.dtypes import DEVICES, PRECISIONS, device_meant, dtype_meant
from settings.fields import Section, key


@dataclass
class OptimSettings(Section, prefix="optim."):
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101), alone or with Muon."""

    name: str = key("muon", one_of=("adamw", "muon"))
    """muon: Muon for the blocks' matrices, AdamW for the rest; or adamw for all."""
    learning_rate: float = key(8e-3, above=0)
    """Peak, reached after warm-up."""
    weight_decay: float = key(0.1, at_least=0)
    """Decay of the blocks' matrices; norms and biases have none."""
    embedding_weight_decay: float = key(0.1, at_least=0)
    """Decay of embeddings, and of the output projection, which is one where they are tied."""
    momentum: float = key(0.95, at_least=0, below=1)
    """Momentum of Muon; adamw has none."""
    beta1: float = key(0.9, at_least=0, below=1)
    """Decay of AdamW's mean of gradients."""
    beta2: float = key(0.95, at_least=0, below=1)
    """Decay of AdamW's mean of squared gradients."""
    eps: float = key(1e-8, above=0)
    """Added to the root of that mean."""


@dataclass
class ScheduleSettings(Section, prefix="schedule."):
    """Learning rate over the run: linear warm-up, then what the name says."""

    name: str = key("cosine", one_of=("cosine", "wsd", "constant"))
    """cosine, wsd (stable, then a decay at the end) or constant."""
    warmup_steps: int | None = key(None, at_least=0)
    """Steps of the warm-up; null: a tenth of the run, and warmup_at_most steps if that is less."""
    warmup_at_most: int = key(70, at_least=1, changes_result=False)  # warmup_steps has a part
    """Longest warm-up where warmup_steps is null."""
    final_fraction: float = key(0.1, at_least=0, at_most=1)
    """Learning rate at the end, as a fraction of the peak (cosine and wsd)."""
    decay_fraction: float = key(0.2, at_least=0, at_most=1)
    """The last part of the run, in which wsd lowers the learning rate; the others have none."""

    def warmup(self, num_steps: int) -> int:
        """Return the steps of the warm-up in a run of `num_steps`."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return min(self.warmup_at_most, num_steps // 10)


@dataclass
class TrainerSettings(Section, prefix="trainer."):
    """The budget of a run and how it is spent."""

    # Above the upper bounds, the machine would end the process or be busy for ever.
    max_tokens: int = key(1_500_000, at_least=1, below=2**53)
    """Training tokens, rounded up to whole steps: 733 of 8 sequences of 256 tokens by default."""
    max_minutes: float | None = key(None, above=0, changes_result=False)
    """Minutes from the start of the process (preparing data and earlier runs of a sweep count)
    after which the run saves and stops, with exit status 75; rerunning the command resumes it. At
    least one step is made, and the evaluation at the end is not cut short. null: no limit."""
    micro_batch_size: int = key(8, at_least=1, below=2**16)
    """Sequences in one forward and backward pass, of all ranks together."""
    gradient_accumulation_steps: int = key(1, at_least=1)
    """Passes per optimizer step; the loss is the mean over all their tokens."""
    overfit_batches: int | None = key(None, at_least=1)
    """Train on the sequences of the first n steps again and again (debug=overfit); null: on all."""
    max_grad_norm: float = key(1.0, above=0)
    """Gradients are scaled down to this norm."""
    z_loss_weight: float = key(0.0, at_least=0)
    """Weight of the z-loss (PaLM, arXiv 2204.02311, section 5: 1e-4), which keeps the logits from
    drifting; train/loss stays the NLL."""
    precision: str = key("auto", one_of=PRECISIONS, hint=dtype_meant)
    """float32, bfloat16 (autocast over float32 weights), or auto: bfloat16 where it is native."""
    device: str = key("auto", one_of=DEVICES, hint=device_meant, changes_result=False)
    """cpu, cuda, or auto."""
    deterministic: bool = key(False, changes_result=False)
    """On a GPU use only kernels that repeat their result bit for bit; a CPU does so anyway."""
    num_threads: int | None = key(None, at_least=1, below=2**10, changes_result=False)
    """CPU threads; null takes PyTorch's choice. Resuming is bit-exact only with the same number."""
    tune_allocator: bool = key(True, changes_result=False)
    """On a CPU with glibc: keep freed memory instead of faulting it in again at each step."""
    compile: bool = key(False, changes_result=False)
    """torch.compile the model; where that fails, a warning, and training continues without."""
    parallelism: str = key("ddp", one_of=("ddp", "fsdp"), changes_result=False)
    """With several ranks (torchrun): ddp (each has the whole model) or fsdp (each has a part)."""
    rank_timeout_seconds: float = key(600.0, at_least=10, changes_result=False)
    """With several ranks: end the run, with a line that names the rank, when one has not answered
    for so long. More than any rank needs alone while the others wait, such as wandb's start (a
    minute or two)."""
    activation_checkpointing: bool = key(False, changes_result=False)
    """Save memory: keep only what each block gets, and compute it again in the backward pass."""
    profile: bool = key(False, changes_result=False)
    """Write a Chrome trace of the third to fifth step, and a table of their operators, to profile/
    in the run's folder."""
    log_every_steps: int = key(1, at_least=1, changes_result=False)
    """Steps from one record of the training loss to the next."""
    eval_every_steps: int = key(100, at_least=1, changes_result=False)
    """Steps from one validation to the next."""
    eval_tokens: int = key(32_768, at_least=2, changes_result=False)  # the first is not scored
    """First tokens of the validation split that are scored during the run; at the end all are."""
    checkpoint_every_steps: int = key(100, at_least=1, changes_result=False)
    """Steps from one checkpoint to the next."""
    keep_last: int = key(2, at_least=1, changes_result=False)
    """Newest checkpoints that are kept, in addition to the one with the best validation."""
    sample_prompt: str | None = key(None, kind="prose", changes_result=False)
    """Text that is continued at the end; null: data.sample_prompt or, where that is null too, the
    first words of the validation split."""
    sample_tokens: int = key(120, at_least=0, changes_result=False)
    """Length of the sample text at the end; 0 for none."""

    def conflicts(self) -> list[str]:
        """Return what is wrong with values that have to fit others."""
        found = []
        if self.parallelism == "fsdp" and self.compile:
            found.append(
                "trainer.compile=true does not work with trainer.parallelism=fsdp; set one of "
                "trainer.compile=false and trainer.parallelism=ddp"
            )
        if self.sample_tokens > 0 and self.sample_prompt == "":
            found.append("trainer.sample_prompt is empty; give at least one character")
        return found
