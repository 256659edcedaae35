"""A network's active blocks in a file of the safetensors format, which many libraries read."""

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.config.config import Config
from sparse_engine.config.values import check_values
from sparse_engine.data.catalog import DatasetInfo, info_of
from sparse_engine.errors import InputError
from sparse_engine.installed import require
from sparse_engine.layers.base import SparseLayer
from sparse_engine.layers.state_dict import without_unused_slots
from sparse_engine.layers.surgery import budget_layers, change_layouts, replace_modules
from sparse_engine.runs.files import replacing
from sparse_engine.runs.model import trained_model
from sparse_kernels import BlockLayout

VERSION = "sparse-engine-compact-1"
DENSE = "pt"  # what Hugging Face's libraries expect
SUFFIX = ".safetensors"


def save_safetensors(
    model: nn.Module,
    path: str | Path,
    config: Config | None = None,
    info: DatasetInfo | None = None,
) -> None:
    """Write a network's active blocks, their layout and all other tensors.

    Args:
        model: the network, in eval mode.
        path: the file, in the safetensors format.
        config, info: the run's configuration and data set, if there is a run: the file then
            builds the network by itself.

    Raises:
        InputError: the model is in training mode.
    """
    check_mode(model)
    layers = {
        name: {"shape": m.layout.shape, "block": m.layout.block, "taps": m.layout.taps}
        for name, m in model.named_modules()
        if isinstance(m, SparseLayer)
    }
    words = {"format": VERSION, "layers": json.dumps(layers)}
    if config is not None and info is not None:
        words["config"], words["data"] = json.dumps(config.saved()), json.dumps(asdict(info))
    write_tensors(without_unused_slots(model, model.state_dict()), words, Path(path))


def load_safetensors(path: str | Path, model: nn.Module | None = None) -> nn.Module:
    """Return the network of save_safetensors, in eval mode, with the blocks it was saved with.

    One that the file builds by itself says in `class_names` what its outputs stand for.

    Args:
        path: the file.
        model: a network of the same architecture, sparse or dense, which stays as it is; without
            it the file must have been exported from a run.

    Raises:
        InputError: the file is corrupt, of another version, or of another network.
    """
    tensors, words = _read(path)
    facts = None if model is not None else _facts(words, path)
    try:
        model = copy.deepcopy(model) if facts is None else trained_model(*facts)
        blocks = json.loads(words["layers"])
        layouts = {
            name: _layout(blocks[name], tensors[f"{name}.block_ids"]) if name in blocks else None
            for name, _ in budget_layers(model)
        }
        replace_modules(model, change_layouts(model, layouts))
        model.load_state_dict(tensors)
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"file '{path}' cannot be loaded: {' '.join(str(error).split())[:200]}; "
            "give a model of its architecture, or export it again"
        ) from None
    dtypes = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    model = (model.to(dtypes.pop()) if len(dtypes) == 1 else model).eval()
    if facts is not None:
        model.class_names = facts[1].class_names
    return model


def exported_facts(path: str | Path) -> tuple[Config, DatasetInfo]:
    """Return the configuration and the data set of the run whose ticket save_safetensors wrote.

    Raises:
        InputError: as load_safetensors.
    """
    return _facts(_read(path)[1], path)


def check_mode(model: nn.Module) -> None:
    """Raise InputError if a model, or a part of it, is in training mode."""
    if any(module.training for module in model.modules()):
        raise InputError("the model is in training mode: call model.eval() before exporting it")


def write_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path) -> None:
    """Write tensors by name, and words; the file is whole or not there.

    Raises:
        InputError: a kind of tensor that the format lacks; RunFailure: the file cannot be written.
    """
    require("writing safetensors files", "safetensors")
    from safetensors import SafetensorError
    from safetensors.torch import save

    # The library takes neither tensors that share memory nor those in another memory order.
    own = {
        name: tensor.detach().to("cpu", memory_format=torch.contiguous_format, copy=True)
        for name, tensor in tensors.items()
    }
    try:
        content = save(own, dict(metadata))
    except (KeyError, ValueError, SafetensorError) as error:
        raise InputError(f"safetensors files cannot hold this network: {error}") from None
    with replacing(path) as file:
        file.write(content)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a file, on the CPU, and its words.

    Raises:
        InputError: the file is missing, truncated, or not of the format.
    """
    require(f"reading '{path}'", "safetensors")
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names, words = file.keys(), file.metadata() or {}
            return {name: file.get_tensor(name) for name in names}, words
    except OSError as error:
        raise InputError(f"file '{path}' cannot be read: {error}") from None
    except (SafetensorError, ValueError, KeyError, AttributeError) as error:
        raise InputError(
            f"file '{path}' is truncated or no safetensors file: {error}; export it again"
        ) from None


def _read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors and words of a compact file of this version."""
    tensors, words = read_tensors(Path(path))
    version = words.get("format")
    if version == DENSE:
        raise InputError(
            f"file '{path}' holds dense weights, not a ticket: read it with "
            "safetensors.torch.load_file, and give it to load_state_dict of the dense model"
        )
    if version != VERSION:
        origin = f"of version {version}" if version else "of no version of this program"
        raise InputError(f"file '{path}' is {origin}, and {VERSION} can be read; export it again")
    return tensors, words


def _facts(words: dict[str, str], path: str | Path) -> tuple[Config, DatasetInfo]:
    if "config" not in words:
        raise InputError(
            f"file '{path}' says no architecture; give load_safetensors a model of the same one"
        )
    try:
        config = Config(**check_values(json.loads(words["config"]), "its configuration"))
        return config, info_of(json.loads(words["data"]))
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise InputError(
            f"file '{path}' holds no configuration of a run: {error}; export it again"
        ) from None


def _layout(layer: dict[str, Any], ids: Tensor) -> BlockLayout:
    layout = BlockLayout(layer["shape"], layer["block"], torch.arange(len(ids)), taps=layer["taps"])
    layout.update_(ids, layout.validate(ids))
    return layout
