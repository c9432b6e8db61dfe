"""The systems that benchmarks/train.py compares: what each imports, builds and does in a step.

A builder imports its framework and returns a function that builds model and optimizer, so that the
caller can measure the process between the two. Frameworks are imported inside the builders: a
process holds only the one it measures.

Every system gets the dimensions of a kvlab configuration, fused AdamW, gradients clipped to the
same norm and, in bfloat16, autocast over float32 weights. Where a framework's own default is slower
than that, it gets the faster way, and the comment at that place says so.
"""

import math
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from benchmarks.peers import deepseek_v3_config, litgpt_config, llama_config

if TYPE_CHECKING:
    from torch import Tensor, nn

EAGER, COMPILED = "eager", "compiled"

# transformers' TrainingArguments: learning_rate. Any rate that keeps the loss finite would do.
PEER_LEARNING_RATE = 5e-5


@dataclass(frozen=True)
class Job:
    """What one worker process measures; plain values, so that it travels as JSON."""

    system: str
    size: str
    dtype: str
    """float32, or bfloat16: autocast over float32 weights."""
    mode: str
    """eager or compiled."""
    device: str
    batch: int
    context: int
    threads: int | None
    """None leaves PyTorch's choice."""
    warmup_steps: int
    model: dict[str, Any]
    """Fields of the kvlab configuration; for a peer, of the equivalent one."""
    optim: dict[str, Any] = field(default_factory=dict)
    schedule: dict[str, Any] = field(default_factory=dict)
    max_grad_norm: float = 1.0

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of a forward pass."""
        import torch

        return torch.autocast(self.device, torch.bfloat16, enabled=self.dtype == "bfloat16")


@dataclass(frozen=True)
class Training:
    """A model ready to be trained."""

    model: "nn.Module"
    step: "Callable[[Tensor, Tensor], float]"
    """One optimizer step on tokens and targets [batch, context]; returns the loss."""


Build = Callable[[], Training]


def start_as_train_model_does() -> None:
    """Do what `train_model.py` does before its first import, allocator settings included.

    To be called before anything is read from a pipe: the process may be replaced by one with
    another environment. BENCHMARK_ALLOCATOR=default leaves the allocator as it is.
    """
    from launch.environment import ensure
    from training.machine import allocator

    ensure()
    if os.environ.get("BENCHMARK_ALLOCATOR") != "default":
        allocator.tune()


def kvlab(job: Job) -> Build:
    """A kvlab model and its training loop's step."""
    import torch

    # What a user's process has imported by the time it trains.
    import launch.run  # noqa: F401
    import training.loop  # noqa: F401
    from modeling.config import GPTConfig
    from modeling.gpt import GPT
    from settings.training import OptimSettings, ScheduleSettings
    from training.recipe.optim import build_optimizers, set_learning_rate
    from training.recipe.schedule import learning_rate

    optim, schedule = OptimSettings(**job.optim), ScheduleSettings(**job.schedule)
    num_steps = 100_000  # of the run that the schedule is for; far more than are measured

    def build() -> Training:
        model = GPT(GPTConfig(**job.model)).to(job.device)
        autocast_dtype = torch.bfloat16 if job.dtype == "bfloat16" else None
        optimizers = build_optimizers(model, optim, autocast_dtype)
        # As the loop does; without its way back to eager, which would be measured unnoticed.
        loss_of = torch.compile(model.loss) if job.mode == COMPILED else model.loss
        autocast = job.autocast()
        steps_done = 0

        def step(tokens: "Tensor", targets: "Tensor") -> float:
            # Mirrors the body of `training.loop.train` with one pass per step.
            nonlocal steps_done
            rate = learning_rate(schedule, optim.learning_rate, steps_done, num_steps)
            set_learning_rate(optimizers, rate)
            with autocast:
                pass_loss = loss_of(tokens, targets)
            pass_loss.backward()
            loss = pass_loss.item()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), job.max_grad_norm).item()
            if not math.isfinite(loss) or not math.isfinite(norm):
                raise ValueError(f"the loss is {loss} and the gradient norm {norm}")
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            steps_done += 1
            return loss

        model.train()
        return Training(model, step)

    return build


def _peer_training(
    job: Job, model: "nn.Module", loss_of: "Callable[[Tensor, Tensor], Tensor]"
) -> Training:
    """Wrap a peer's loss in the step that both frameworks' loops do."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=PEER_LEARNING_RATE, fused=True)

    def step(tokens: "Tensor", targets: "Tensor") -> float:
        loss = loss_of(tokens, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), job.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        # Both look at every step's loss: Trainer for NaN (logging_nan_inf_filter), litgpt to log it
        # (log_interval=1). Their schedulers, callbacks and metrics are left out, in their favour.
        return loss.item()

    model.train()
    return Training(model, step)


# transformers 5.23, read in trainer.py, training_args.py and loss/loss_utils.py: optim is
# adamw_torch_fused, max_grad_norm 1.0; Trainer sets config.use_cache=False and calls
# model(input_ids=..., labels=...), which shifts the labels itself and makes the logits float32;
# attention is sdpa where the model supports it; torch_compile, off by default, compiles the model.
# With bf16=True accelerate also copies the logits to float32 on return; left out, in its favour.
def _transformers_training(job: Job, model: Any) -> Training:
    import torch

    model.config.use_cache = False
    model = model.to(job.device)
    call = torch.compile(model) if job.mode == COMPILED else model
    autocast = job.autocast()

    def loss_of(tokens: "Tensor", targets: "Tensor") -> "Tensor":
        with autocast:
            return call(input_ids=tokens, labels=tokens).loss

    return _peer_training(job, model, loss_of)


def transformers_llama(job: Job) -> Build:
    """Llama of transformers, for MHA and GQA."""
    from transformers import LlamaForCausalLM

    return lambda: _transformers_training(job, LlamaForCausalLM(llama_config(job.model)))


def transformers_deepseek_v3(job: Job) -> Build:
    """DeepSeek-V3 of transformers with every layer dense, for MLA."""
    from transformers import DeepseekV3ForCausalLM

    return lambda: _transformers_training(job, DeepseekV3ForCausalLM(deepseek_v3_config(job.model)))


# litgpt 0.5.13, read in pretrain.py, utils.py and config.py: AdamW, fused on CUDA only (here
# everywhere, which is faster); precision bf16-mixed: autocast over float32 weights, then the logits
# made float32 (Fabric's convert_output); chunked_cross_entropy without autocast, 128 rows at a
# time; clip_gradients(max_norm=1.0); scaled_dot_product_attention. pretrain always compiles
# (torch.compile(model)); eager is there to compare like with like. tie_embeddings is an option, off
# by default; here it follows kvlab's configuration.
def litgpt(job: Job) -> Build:
    """The GPT of litgpt: MHA, GQA, or MLA with a query latent."""
    import torch
    from litgpt import GPT
    from litgpt.utils import chunked_cross_entropy

    def build() -> Training:
        model = GPT(litgpt_config(job.model, job.system, job.context))
        model.apply(model._init_weights)
        if job.model["tie_word_embeddings"]:
            model.transformer.wte.weight = model.lm_head.weight
        model = model.to(job.device)
        call = torch.compile(model) if job.mode == COMPILED else model
        autocast = job.autocast()

        def loss_of(tokens: "Tensor", targets: "Tensor") -> "Tensor":
            with autocast:
                logits = call(tokens)
            return chunked_cross_entropy(logits.float(), targets)

        return _peer_training(job, model, loss_of)

    return build


@dataclass(frozen=True)
class System:
    """One row of the comparison."""

    attention: str
    """The kvlab attention whose dimensions it has."""
    build: Callable[[Job], Build]
    is_peer: bool = True
    has_query_latent: bool = False
    """It cannot leave the queries uncompressed; see `peers.query_latent_width`."""


SYSTEMS: dict[str, System] = {
    **{
        f"kvlab-{name}": System(name, kvlab, is_peer=False)
        for name in ("mha", "mqa", "gqa", "mla_no_rope", "mla")
    },
    "transformers-mha": System("mha", transformers_llama),
    "transformers-gqa": System("gqa", transformers_llama),
    "transformers-mla": System("mla", transformers_deepseek_v3),
    "litgpt-mha": System("mha", litgpt),
    "litgpt-gqa": System("gqa", litgpt),
    "litgpt-mla": System("mla", litgpt, has_query_latent=True),
}
