"""What a wrong key or choice may have meant, and commands that a user can type."""

import difflib
import re

from launch.keys import SCRIPTS, choices, groups_of, keys_of

# What other programs call a key, by the last part of its name.
_ALIASES = {
    "model.hidden_size": "dim d_model n_embd embed_dim width hidden hidden_dim",
    "model.num_hidden_layers": "layers n_layer n_layers num_layers depth",
    "model.num_attention_heads": "heads n_head n_heads num_heads",
    "model.max_position_embeddings": "block_size seq_len seq_length sequence_length "
    "context_length context_size max_seq_len max_length ctx n_ctx",
    "model.attention.kv_lora_rank": "kv_rank rank latent_dim latent_rank kv_latent lora_rank",
    "model.attention.q_lora_rank": "q_rank",
    "model.attention.num_key_value_heads": "kv_heads n_kv_heads num_kv_heads groups num_groups",
    "model.attention.attention_dropout": "dropout attn_dropout",
    "tokenizer.vocab_size": "vocab",
    "layers.window": "sliding_window window_size swa window local_window attention_window",
    "layers.share": "kv_sharing cla cross_layer share_kv",
    "layers.source": "kv_source kv_source_layers",
    "layers.pattern": "layer_types attention_pattern",
    "optim.learning_rate": "lr max_lr base_lr rate",
    "optim.weight_decay": "wd decay",
    "schedule.warmup_steps": "warmup warmup_iters num_warmup_steps",
    "trainer.micro_batch_size": "batch_size bs batch per_device_train_batch_size",
    "trainer.gradient_accumulation_steps": "grad_accum accumulate_grad_batches accumulation",
    "trainer.max_tokens": "steps max_steps num_steps iters max_iters epochs num_epochs epoch "
    "num_train_epochs tokens",
    "trainer.max_grad_norm": "grad_clip clip gradient_clip_val",
    "trainer.precision": "dtype amp bf16 fp16 mixed_precision",
    "trainer.max_minutes": "max_time minutes time_limit",
    "trainer.num_threads": "threads num_cpus",
    "trainer.device": "gpu cuda accelerator gpus",
    "trainer.sample_prompt": "prompt sample",
    "trainer.eval_every_steps": "eval_interval eval_every val_every eval_steps",
    "trainer.checkpoint_every_steps": "save_every save_steps save_interval checkpoint_every",
    "device": "gpu cuda accelerator gpus",
    "sampling.temperature": "temp",
    "max_new_tokens": "max_tokens num_tokens length tokens max_length n",
    "prompt": "text input",
    "run_name": "name exp_name experiment_name",
    "runs_dir": "output_dir out_dir save_dir log_dir output logdir",
    "run": "checkpoint ckpt runs load run_name",
    "data.num_workers": "workers",
    "eval.tasks": "task",
    "report_name": "report name",
    "data.path": "path file folder train_file data_dir",
    "optim": "optimizer opt",
    "schedule": "scheduler lr_scheduler",
    "data": "dataset corpus text",
    "attention": "attn",
    "tracking": "wandb logger",
}
_IN_TOKENS = (
    "steps max_steps num_steps iters max_iters epochs num_epochs epoch max_epochs num_train_epochs"
)
# What there is for a choice that kvlab does not have.
_CHOICES = {
    "attention": {
        "mla": "deepseek latent multi_head_latent",
        "gqa": "grouped llama grouped_query",
        "mqa": "multi_query",
        "mha": "multi_head full vanilla standard gpt2",
    },
    "layers": {
        "uniform": "none full null default",
        "window": "sliding swa local sliding_window",
        "window_full": "gemma3 smollm3 hybrid interleaved local_global",
        "shared_pairs": "cla pairs shared cross_layer",
        "shared_upper": "yoco upper",
        "shared_last": "gemma3n last",
    },
    "tracking": {"wandb": "weights_and_biases", "none": "off false no null disabled"},
    "optim": {"adamw": "adam sgd"},
    "data": {"wikitext2": "wikitext", "fineweb_edu": "fineweb"},
}


def command(config_name: str, *arguments: str) -> str:
    """Return a command that a user can type, quoted for every shell."""
    return " ".join(["python", SCRIPTS[config_name], *map(shell_word, arguments)])


def shell_word(argument: str) -> str:
    """Quote a word for sh, bash and zsh, if it needs that."""
    if re.fullmatch(r"[\w./:=,+@%-]+", argument):
        return argument
    key, assigned, value = argument.partition("=")
    if assigned and re.fullmatch(r"[\w.]+", key) and "'" not in value:
        return f"{key}='{value}'"
    return "'" + argument.replace("'", "'\\''") + "'"


def counts_tokens(name: str) -> str:
    """Say how long a training is, for who counts steps or epochs; '' for any other name."""
    if name.rpartition(".")[2].lower().replace("-", "_") not in _IN_TOKENS.split():
        return ""
    return (
        "the length of a training is counted in tokens, trainer.max_tokens=N; a step is 2,048 by "
        "default: 8 sequences of 256"
    )


def near_choice(group: str, value: str, *, exact: bool = False) -> str | None:
    """Return the choice of a group that a wrong one may have meant."""
    known = choices(group)
    plain = re.sub(r"[\s-]+", "_", value.strip("'\" ").lower()).removesuffix(".yaml")
    if plain in known:
        return plain
    if exact or not plain:
        return None
    for choice, others in _CHOICES.get(group, {}).items():
        if plain in others.split() or any(
            len(other) > 4 and plain.startswith(other) for other in others.split()
        ):
            return choice
    found = difflib.get_close_matches(plain, known, n=1, cutoff=0.7)
    squeezed = plain.replace("_", "")
    begun = [choice for choice in known if squeezed and choice.startswith(squeezed[:4])]
    same = [choice for choice in known if choice.replace("_", "") == squeezed]
    starting = [choice for choice in known if choice.startswith(plain) or choice.endswith(plain)]
    return next(iter([*same, *starting[:1], *found, *begun[:1]]), None)


def similar_keys(config_name: str, key: str) -> list[str]:
    """Return the keys that a wrong one may have meant, the likeliest first; at most three."""
    known = [*groups_of(config_name), *keys_of(config_name)]
    leaf = key.rpartition(".")[2].lower().replace("-", "_")
    for candidate in known:
        if candidate.lower() == key.lower():
            return [candidate]
    if f"model.{key}" in known:
        return [f"model.{key}"]
    parent = key.rpartition(".")[0]
    same_leaf = [k for k in known if k.rpartition(".")[2] == leaf and k != key]
    by_alias = [
        name for name, others in _ALIASES.items() if leaf in others.split() and name in known
    ]
    by_alias.sort(key=lambda name: not (parent and name.startswith(parent)))
    alike = [k for k in known if "." in k and k != "model.attention"] if parent else known
    near = difflib.get_close_matches(key, alike, n=1, cutoff=0.75)
    leaves = [k for k in known if "." in k]
    near_leaf = difflib.get_close_matches(leaf, [k.rpartition(".")[2] for k in leaves], 1, 0.75)
    by_leaf = [k for k in leaves if near_leaf and k.rpartition(".")[2] == near_leaf[0]]
    if parent:
        here = [name for name in by_alias if name.startswith(f"{parent}.")]
        return (here or same_leaf or by_alias or near or by_leaf)[:3]
    begun = [k for k in known if len(leaf) > 2 and k.startswith(leaf)]
    # A group, `eval=` or `model=`, shares its name with nothing below.
    return (by_alias[:1] or same_leaf or near or begun[:1] or by_leaf)[:3]
