"""Continuing a prompt: what generate_text.py does."""

from pathlib import Path

from data.documents import opening
from launch.runs import find_run
from launch.schemas import GenerateConfig
from launch.terminal import complain, is_read, say
from measuring.runs import load_run
from modeling.generate import generate_text
from modeling.kv_cache import cache_dtype_of
from tracking.configuration import read_configuration
from training.machine.hardware import pick_device

_DEFAULT_NEW_TOKENS = 200


def main(config: GenerateConfig) -> None:
    """Stream the continuation to the terminal."""
    device = pick_device(config.device)
    run = find_run(Path(config.runs_dir), config.run, complain)
    loaded = load_run(run, device, complain)
    tokenizer = loaded.prepared.tokenizer()
    prompt = config.prompt
    if prompt is None:
        recorded = read_configuration(run.config_path).get("trainer.sample_prompt")
        prompt = recorded if isinstance(recorded, str) and recorded else opening(loaded.prepared)
    max_new_tokens = config.max_new_tokens
    if max_new_tokens is None:
        context = loaded.model.config.max_position_embeddings
        room = context - len(tokenizer.encode(prompt).ids)
        # A prompt that leaves no room for one is refused.
        max_new_tokens = max(1, min(_DEFAULT_NEW_TOKENS, room))
        if 0 < room < _DEFAULT_NEW_TOKENS:
            complain(f"max_new_tokens={max_new_tokens}: as many as fit the context of {context}")
    pieces = generate_text(
        loaded.model,
        tokenizer,
        prompt,
        max_new_tokens,
        config.sampling,
        stop_token=loaded.prepared.end_of_document_id,
        cache_dtype=cache_dtype_of(config.cache_dtype),
    )
    for number, piece in enumerate(pieces):
        # The prompt is shown only once the first piece shows that the request is a valid one.
        say((prompt if number == 0 else "") + piece, end="")
        if not is_read():
            return
    say("")
