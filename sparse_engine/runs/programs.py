"""Programs of torch.export: with our operators, or with PyTorch's own alone.

Our operators keep the size and the time of a sparse network, and need the package in the process
that reads the file. PyTorch's own run wherever torch does: of the densified network, or of the
sparse one, whose blocks are then scattered into a dense weight in every call.
"""

import copy
import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from sparse_engine.errors import InputError, first_line
from sparse_engine.runs.files import own_storages, replacing
from sparse_engine.runs.safetensors import check_mode
from sparse_engine.sparsity.sparsify import densify
from sparse_kernels import decompositions
from sparse_kernels.registration import NAMESPACE

NEEDS = (
    "This program calls operators of the package sparse_kernels, a part of sparse-engine: install "
    "it, and `import sparse_kernels` before torch.export.load. Exported as torch-export-dense a "
    "program runs with torch alone."
)


def save_torch_export(
    model: nn.Module,
    path: str | Path,
    example: Tensor,
    class_names: Sequence[str] = (),
    dense: bool = False,
) -> None:
    """Write the program of torch.export; sparse layers are calls of our operators unless dense.

    Args:
        model: the network, in eval mode.
        path: the file.
        example: an input of the model [N, ...], N at least 2; the batch may be of any size later,
            the device may not change.
        class_names: what the classes are called, as the file's extra file "class_names".
        dense: the program of the densified model, which runs where torch is alone.

    Raises:
        InputError: the model is in training mode, or cannot be exported.
    """
    check_mode(model)
    check_example(example)
    model = dense_twin(model) if dense else model
    try:
        batch = torch.export.Dim("batch")
        program = torch.export.export(model, (example,), dynamic_shapes=({0: batch},))
    except Exception as error:  # torch.export raises of many kinds
        raise InputError(f"torch.export cannot export this model: {first_line(error)}") from None
    for tensors in (program.state_dict, program.constants):
        tensors.update(own_storages(tensors))
    buffer = io.BytesIO()
    extra = {"class_names": json.dumps(list(class_names))} if class_names else {}
    if _own_operators(program):
        extra["needs"] = NEEDS
    torch.export.save(program, buffer, extra_files=extra)
    with replacing(Path(path)) as file:
        file.write(buffer.getvalue())


def load_torch_export(path: str | Path) -> nn.Module:
    """Return the module of save_torch_export; its `class_names` say what the outputs stand for.

    torch's own torch.export.load reads the file too: after `import sparse_kernels`, unless the
    program is dense.

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


def to_aten(program: ExportedProgram) -> ExportedProgram:
    """Return a program of torch.export with PyTorch's own operators in place of ours.

    It runs in a process that has torch alone, and AOTInductor, ExecuTorch and torch.onnx.export
    take it. Its parameters are blocks still, which every call scatters into dense weights: with
    small batches the program of the densified model is some times faster.

    Raises:
        InputError: an operator of training, which has no definition by PyTorch's own.
    """
    found = program.run_decompositions(decompositions())
    left = _own_operators(found)
    if left:
        raise InputError(
            f"operator {left[0]} has no definition by PyTorch's own: export the model in eval mode"
        )
    return found


def dense_twin(model: nn.Module) -> nn.Module:
    """Return a densified copy in eval mode, whose weights torch.export can save in any version."""
    twin = densify(copy.deepcopy(model)).eval()
    return twin.to(memory_format=torch.contiguous_format)


def check_example(example: Tensor) -> None:
    """Raise InputError if an example would make torch fix the size of the batch."""
    if len(example) < 2:
        raise InputError(
            "an example of fewer than two inputs would fix the size of the batch: give two"
        )


def _own_operators(program: ExportedProgram) -> list[str]:
    """Return the names of our operators that a program calls."""
    graphs = [m.graph for m in program.graph_module.modules() if isinstance(m, fx.GraphModule)]
    targets = {node.target for graph in graphs for node in graph.nodes}
    return sorted(str(t) for t in targets if getattr(t, "namespace", "") == NAMESPACE)
