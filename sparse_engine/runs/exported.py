"""Networks in files that leave the project: compact, dense, ONNX, torch.export.

What is fast stays with the kernels: the compact file and an exported program run on them where
sparse_kernels is installed; a dense state dict and ONNX hold every weight, zeros included, and
take the time of a dense network.
"""

import copy
import importlib.util
import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import sparse_kernels  # noqa: F401 (an exported program calls its operators)
from sparse_engine.errors import InputError, RunFailure, first_line
from sparse_engine.installed import require
from sparse_engine.runs.files import own_storages, replacing
from sparse_engine.runs.safetensors import check_mode, load_safetensors, save_safetensors
from sparse_engine.sparsity.sparsify import dense_state_dict, densify

__all__ = [
    "load_safetensors",
    "load_torch_export",
    "save_dense",
    "save_onnx",
    "save_safetensors",
    "save_torch_export",
]
# An ONNX graph sums in another order.
_TOLERANCE = 1e-3


def save_dense(model: nn.Module, path: str | Path, class_names: Sequence[str] = ()) -> None:
    """Write a state dict with every weight, as the same network of ordinary layers has it.

    Names of the classes lie where they disturb no load_state_dict: `_metadata[""]["class_names"]`.

    Raises:
        InputError: the model is in training mode.
    """
    check_mode(model)
    state = own_storages(dense_state_dict(model))
    if class_names:
        state._metadata = {"": {"class_names": list(class_names)}}
    with replacing(Path(path)) as file:
        torch.save(state, file)


def save_torch_export(
    model: nn.Module, path: str | Path, example: Tensor, class_names: Sequence[str] = ()
) -> None:
    """Write the program of torch.export; sparse layers stay calls of our operators.

    Args:
        model: the network, in eval mode.
        path: the file.
        example: an input of the model [N, ...], N at least 2; the batch may be of any size later,
            the device may not change.
        class_names: what the classes are called, as the file's extra file "class_names".

    Raises:
        InputError: the model is in training mode, or cannot be exported.
    """
    check_mode(model)
    _check_example(example)
    try:
        batch = torch.export.Dim("batch")
        program = torch.export.export(model, (example,), dynamic_shapes=({0: batch},))
    except Exception as error:  # torch.export raises of many kinds
        raise InputError(f"torch.export cannot export this model: {first_line(error)}") from None
    for tensors in (program.state_dict, program.constants):
        tensors.update(own_storages(tensors))
    buffer = io.BytesIO()
    extra = {"class_names": json.dumps(list(class_names))} if class_names else {}
    torch.export.save(program, buffer, extra_files=extra)
    with replacing(Path(path)) as file:
        file.write(buffer.getvalue())


def load_torch_export(path: str | Path) -> nn.Module:
    """Return the module of save_torch_export; its `class_names` say what the outputs stand for.

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
    extra = {"class_names": ""}
    try:
        module = torch.export.load(io.BytesIO(Path(path).read_bytes()), extra_files=extra).module()
        module.class_names = tuple(json.loads(extra["class_names"] or "[]"))
        return module
    except Exception as error:  # so does reading
        raise InputError(f"{wrong}: {first_line(error)}") from None


def save_onnx(
    model: nn.Module, path: str | Path, example: Tensor, class_names: Sequence[str] = ()
) -> float | None:
    """Write the densified model as ONNX: input "images" [batch, ...], output "logits".

    ONNX knows no block-sparse product: the speed-up does not travel, nor do the bytes saved.

    Args:
        model: the network, in eval mode; it stays as it is.
        path: the file.
        example: an input as save_torch_export takes it.
        class_names: what the classes are called, kept as JSON in the metadata "class_names".

    Returns:
        The largest difference from PyTorch's logits over the largest logit, as ONNX Runtime runs
        the file; None where onnxruntime is not installed.

    Raises:
        InputError: the model is in training mode, or onnx and onnxscript are not installed;
            RunFailure: ONNX Runtime gives another result.
    """
    check_mode(model)
    _check_example(example)
    require("ONNX export", "onnx", "onnxscript")
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
    proto = program.model_proto
    if class_names:
        proto.metadata_props.add(key="class_names", value=json.dumps(list(class_names)))
    content = proto.SerializeToString()
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


def _check_example(example: Tensor) -> None:
    if len(example) < 2:
        raise InputError(
            "an example of fewer than two inputs would fix the size of the batch: give two"
        )
