"""Networks in files that leave the project: compact, dense, ONNX, torch.export.

What is fast stays with the kernels: the compact file and an exported program run on them where
sparse_kernels is installed; a dense state dict and ONNX hold every weight, zeros included, and
take the time of a dense network.
"""

from __future__ import annotations

import copy
import importlib.util
import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sparse_kernels  # noqa: F401 (an exported program calls its operators)
from sparse_engine.config.config import Config
from sparse_engine.config.values import check_values
from sparse_engine.data.catalog import DatasetInfo
from sparse_engine.errors import InputError, RunFailure, first_line
from sparse_engine.layers.base import SparseLayer
from sparse_engine.layers.state_dict import without_unused_slots
from sparse_engine.layers.surgery import budget_layers, change_layouts, replace_modules
from sparse_engine.runs.files import replacing
from sparse_engine.runs.model import dense_model
from sparse_engine.runs.safetensors import read_tensors, write_tensors
from sparse_engine.sparsity.sparsify import dense_state_dict, densify
from sparse_kernels import BlockLayout

VERSION = "sparse-engine-compact-1"
SUFFIX = ".safetensors"
# An ONNX graph sums in another order.
_TOLERANCE = 1e-3


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
    _check_mode(model)
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
        model = copy.deepcopy(model) if facts is None else dense_model(*facts)
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
    return (model.to(dtypes.pop()) if len(dtypes) == 1 else model).eval()


def exported_facts(path: str | Path) -> tuple[Config, DatasetInfo]:
    """Return the configuration and the data set of the run whose ticket save_safetensors wrote.

    Raises:
        InputError: as load_safetensors.
    """
    return _facts(_read(path)[1], path)


def save_dense(model: nn.Module, path: str | Path) -> None:
    """Write a state dict with every weight, as the same network of ordinary layers has it.

    Raises:
        InputError: the model is in training mode.
    """
    _check_mode(model)
    with replacing(Path(path)) as file:
        torch.save(dense_state_dict(model), file)


def save_torch_export(model: nn.Module, path: str | Path, example: Tensor) -> None:
    """Write the program of torch.export; sparse layers stay calls of our operators.

    Args:
        model: the network, in eval mode.
        path: the file.
        example: an input of the model [N, ...], N at least 2; the batch may be of any size later,
            the device may not change.

    Raises:
        InputError: the model is in training mode, or cannot be exported.
    """
    _check_mode(model)
    _check_example(example)
    try:
        batch = torch.export.Dim("batch")
        program = torch.export.export(model, (example,), dynamic_shapes=({0: batch},))
    except Exception as error:  # torch.export raises of many kinds
        raise InputError(f"torch.export cannot export this model: {first_line(error)}") from None
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    with replacing(Path(path)) as file:
        file.write(buffer.getvalue())


def load_torch_export(path: str | Path) -> nn.Module:
    """Return the module of save_torch_export.

    In a program that has not imported this function, `import sparse_kernels` before torch's own
    torch.export.load.

    Raises:
        InputError: the file is missing or corrupt.
    """
    if not Path(path).is_file():
        raise InputError(f"file '{path}' does not exist")
    wrong = f"file '{path}' is no program of torch.export; export it again"
    if not zipfile.is_zipfile(path):  # of which torch would log more than a line
        raise InputError(wrong)
    try:
        return torch.export.load(io.BytesIO(Path(path).read_bytes())).module()
    except Exception as error:  # so does reading
        raise InputError(f"{wrong}: {first_line(error)}") from None


def save_onnx(model: nn.Module, path: str | Path, example: Tensor) -> float | None:
    """Write the densified model as ONNX: input "images" [batch, ...], output "logits".

    ONNX knows no block-sparse product: the speed-up does not travel, nor do the bytes saved.

    Args:
        model: the network, in eval mode; it stays as it is.
        path: the file.
        example: an input as save_torch_export takes it.

    Returns:
        The largest difference from PyTorch's logits over the largest logit, as ONNX Runtime runs
        the file; None where onnxruntime is not installed.

    Raises:
        InputError: the model is in training mode, or onnx and onnxscript are not installed;
            RunFailure: ONNX Runtime gives another result.
    """
    _check_mode(model)
    _check_example(example)
    _need("onnx", "onnxscript")
    twin = densify(copy.deepcopy(model)).eval()
    program = torch.onnx.export(
        twin,
        (example,),
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        verbose=False,
    )
    content = program.model_proto.SerializeToString()
    error = _onnx_error(twin, content, example)
    if error is not None and not error < _TOLERANCE:
        raise RunFailure(f"ONNX Runtime differs by {error:.1e} from PyTorch; nothing was written")
    with replacing(Path(path)) as file:
        file.write(content)
    return error


@torch.no_grad()
def _onnx_error(model: nn.Module, content: bytes, example: Tensor) -> float | None:
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": example.cpu().numpy()})
    wanted = model(example).cpu()
    return ((torch.from_numpy(logits) - wanted).abs().max() / wanted.abs().max()).item()


def _need(*packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"ONNX export needs {' and '.join(missing)}; install the extra 'export' "
            "(pip install sparse-engine[export])"
        )


def _check_mode(model: nn.Module) -> None:
    if any(module.training for module in model.modules()):
        raise InputError("the model is in training mode: call model.eval() before exporting it")


def _check_example(example: Tensor) -> None:
    if len(example) < 2:
        raise InputError(
            "an example of fewer than two inputs would fix the size of the batch: give two"
        )


def _read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors and words of a compact file of this version."""
    tensors, words = read_tensors(Path(path))
    version = words.get("format")
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
        facts: dict[str, Any] = json.loads(words["data"])
        return config, DatasetInfo(
            **{key: tuple(v) if isinstance(v, list) else v for key, v in facts.items()}
        )
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise InputError(
            f"file '{path}' holds no configuration of a run: {error}; export it again"
        ) from None


def _layout(layer: dict[str, Any], ids: Tensor) -> BlockLayout:
    shape: Sequence[int] = layer["shape"]
    empty = BlockLayout(shape, layer["block"], torch.arange(len(ids)), taps=layer["taps"])
    empty.update_(ids, empty.validate(ids))
    return empty
