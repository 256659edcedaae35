"""Networks in files that leave the project: compact, dense, ONNX, torch.export.

What is fast stays with the kernels: the compact file and an exported program run on them where
sparse_kernels is installed; a dense state dict and ONNX hold every weight, zeros included, and
take the time of a dense network.
"""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from sparse_engine.errors import RunFailure
from sparse_engine.installed import require
from sparse_engine.runs.files import own_storages, replacing
from sparse_engine.runs.programs import (
    check_example,
    dense_twin,
    load_torch_export,
    save_torch_export,
    to_aten,
)
from sparse_engine.runs.safetensors import (
    DENSE,
    SUFFIX,
    check_mode,
    load_safetensors,
    save_safetensors,
    write_tensors,
)
from sparse_engine.sparsity.sparsify import dense_state_dict

__all__ = [
    "load_safetensors",
    "load_torch_export",
    "save_dense",
    "save_onnx",
    "save_safetensors",
    "save_torch_export",
    "to_aten",
]
# An ONNX graph sums in another order.
_TOLERANCE = 1e-3


def save_dense(model: nn.Module, path: str | Path, class_names: Sequence[str] = ()) -> None:
    """Write a state dict with every weight, as the same network of ordinary layers has it.

    Under a name that ends in .safetensors it is a file of that format, as Hugging Face's libraries
    read it, with names of the classes as JSON in the metadata "class_names". Else it is one of
    torch.save, with these names where they disturb no load_state_dict:
    `_metadata[""]["class_names"]`.

    Raises:
        InputError: the model is in training mode.
    """
    check_mode(model)
    state = dense_state_dict(model)
    if Path(path).suffix == SUFFIX:
        names = {"class_names": json.dumps(list(class_names))} if class_names else {}
        return write_tensors(state, {"format": DENSE, **names}, Path(path))
    state = own_storages(state)
    if class_names:
        state._metadata = {"": {"class_names": list(class_names)}}
    with replacing(Path(path)) as file:
        torch.save(state, file)


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
    check_example(example)
    require("ONNX export", "onnx", "onnxscript")
    twin = dense_twin(model)
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
