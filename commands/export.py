"""Writing a model for transformers: what export_model.py does."""

import dataclasses
import os
from pathlib import Path

import torch
from torch import Tensor

from data.prepared import PreparedData
from interop.conversion.convert import Conversion, convert
from interop.exporting.export import Exportable, export, require_free_place
from interop.exporting.model_card import Origin
from interop.importing.folder import read_stock
from interop.importing.initial_model import require_same_tokenizer
from interop.stock import from_stock
from launch.runs import find_run
from launch.schemas import ExportConfig
from launch.terminal import announce, complain, say
from measuring.runs import load_run
from tracking.configuration import read_configuration
from training.machine.hardware import pick_device

_CALIBRATION_CONTEXT = 2048


def main(config: ExportConfig) -> None:
    """Load the model, convert it if asked, and write it."""
    # All is on this machine; transformers, which reads this when imported, would ask the Hub.
    os.environ["HF_HUB_OFFLINE"] = "1"

    out = config.out_path
    require_free_place(out)
    device = pick_device(config.device)
    source = _of_folder(config) if config.run is None else _of_run(config, config.run)
    if config.convert is not None:
        announce(f"converting to {config.convert}")
        source = _converted(source, config)
    announce("writing the folder and comparing it with transformers' model")
    exported = export(source, out, config.dtype, device)
    agreement = exported.agreement
    say(
        f"{source.origin.name}: written to {out} as {exported.architecture}, {config.dtype}\n"
        f"transformers gives the logits of kvlab's model at {agreement.positions:,} positions of "
        f"{agreement.documents} validation texts (largest difference {agreement.difference:.1e}, "
        f"rounding allows {agreement.tolerance:.1e}) and {agreement.new_tokens} tokens of its "
        "greedy text"
    )


def _of_run(config: ExportConfig, name: str) -> Exportable:
    run = find_run(config.runs_path, name, complain)
    loaded = load_run(run, torch.device("cpu"), complain)
    summary, recorded = run.read_summary() or {}, read_configuration(run.config_path)
    origin = Origin(run.name, is_run=True, summary=summary, recorded=recorded)
    return Exportable(loaded.model.config, loaded.model.state_dict(), loaded.prepared, origin)


def _of_folder(config: ExportConfig) -> Exportable:
    folder = Path(str(config.hf)).expanduser()
    prepared = PreparedData(Path(str(config.data_folder)).expanduser())
    stock = read_stock(folder)
    model, weights = from_stock(stock.config, stock.weights)
    what_to_do = "name data in data_folder that was prepared with the folder's tokenizer"
    require_same_tokenizer(folder, model, prepared, "hf", what_to_do)
    return Exportable(model, weights, prepared, Origin(folder.resolve().name, is_run=False))


def _converted(source: Exportable, config: ExportConfig) -> Exportable:
    asked = Conversion(
        str(config.convert),
        config.num_key_value_heads,
        config.kv_lora_rank,
        config.qk_rope_head_dim,
    )
    calibration = _calibration(source, config.calibration_tokens)
    model, weights = convert(source.config, source.weights, asked, calibration)
    origin = dataclasses.replace(source.origin, conversion=f"converted to {config.convert}")
    return dataclasses.replace(source, config=model, weights=weights, origin=origin)


def _calibration(source: Exportable, num_tokens: int) -> Tensor | None:
    """Return windows from all over the training split, [n, length]; None if none are asked for."""
    if num_tokens == 0:
        return None
    stream = source.prepared.stream("train")
    # A window of all positions of a long context would take memory, and say little more.
    context = min(source.config.max_position_embeddings, _CALIBRATION_CONTEXT)
    length = min(context, num_tokens, len(stream))
    windows = len(stream) // length
    rows = min(num_tokens // length, windows)
    starts = [row * windows // rows * length for row in range(rows)]
    return torch.stack([torch.from_numpy(stream.window(start, length)) for start in starts])
