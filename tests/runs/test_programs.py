"""Programs of torch.export: what they give, and where they run."""

import operator
import zipfile

import pytest
import torch
from exported_layers import NETWORKS, exported
from exported_networks import images, network
from torch import nn
from torch_alone import COMPARE, run_alone

from sparse_engine import sparsify, to_aten
from sparse_engine.errors import InputError
from sparse_engine.runs.programs import load_torch_export, save_torch_export


def operators(program):
    return {node.target for node in program.graph.nodes if node.op == "call_function"}


def program_of(model, x):
    """Return the program of a model for batches of any size, as users make it."""
    return torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))


def test_torch_export_keeps_the_operators(tmp_path):
    model, path = network(), tmp_path / "ticket.pt2"
    save_torch_export(model, path, images(2))
    loaded = load_torch_export(path)
    for count in (2, 5):
        torch.testing.assert_close(loaded(images(count)), model(images(count)))
    called = {str(node.target) for node in loaded.graph.nodes}
    assert "sparse_kernels.conv2d.default" in called


def test_programs_of_every_layer_run_where_torch_is_alone(tmp_path):
    paths = []
    for number, name in enumerate(NETWORKS):
        model, inputs = exported(name)
        paths.append(tmp_path / f"{number}.pt2")
        save_torch_export(model, paths[-1], inputs[0], aten=True)
        with torch.no_grad():
            torch.save([(x, model(x)) for x in inputs], f"{paths[-1]}.numbers")
    code = COMPARE.format(read="torch.export.load(path).module()")
    status, out, errors = run_alone(code, tmp_path, *paths)
    assert status == 0, errors
    assert out.split() == [word for path in paths for word in (str(path), "agrees")]


@pytest.mark.parametrize("name", NETWORKS)
def test_core_aten_is_all_that_is_left(name):
    model, inputs = exported(name)
    program = to_aten(program_of(model, inputs[0])).run_decompositions()
    called = operators(program)
    others = {t for t in called if not isinstance(t, torch._ops.OpOverload)}
    assert others <= {operator.getitem}
    assert {str(t) for t in called - others if torch.Tag.core not in t.tags} == set()


def test_without_the_package_torch_names_what_is_missing(tmp_path):
    path = tmp_path / "ticket.pt2"
    save_torch_export(network(), path, images(2))
    status, _, errors = run_alone("torch.export.load(sys.argv[1])", tmp_path, path)
    assert status == 1
    assert "failed to resolve torch.ops.sparse_kernels.conv2d.default to an operator" in errors
    with zipfile.ZipFile(path) as file:
        (name,) = (name for name in file.namelist() if name.endswith("extra/needs"))
        assert b"`import sparse_kernels` before torch.export.load" in file.read(name)


@pytest.mark.usefixtures("triton_backend")
def test_fused_operators_have_definitions():
    model, x = exported("fused")[0], images(3)
    sparsify(model)
    program = program_of(model, x)
    fused = {"conv2d_fused", "norm_affine", "norm_forward"}
    assert {f"sparse_kernels.{name}.default" for name in fused} <= set(map(str, operators(program)))
    found = to_aten(program)
    for count in (2, 5):
        torch.testing.assert_close(found.module()(images(count)), model(images(count)))


def test_operators_of_training_are_refused():
    class Sums(nn.Module):
        def forward(self, x):
            return torch.ops.sparse_kernels.norm_tile_sums(x)

    program = torch.export.export(Sums(), (images(2),))
    with pytest.raises(InputError, match=r"^operator sparse_kernels\.norm_tile_sums.* eval mode"):
        to_aten(program)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["every layer", "ensemble"])
def test_compiled_packages_run_where_torch_is_alone(name, tmp_path):
    model, inputs = exported(name)
    path = str(tmp_path / "ticket.pt2")
    program = to_aten(program_of(model, inputs[0]))
    torch._inductor.aoti_compile_and_package(program, package_path=path)
    with torch.no_grad():
        torch.save([(x, model(x)) for x in inputs], f"{path}.numbers")
    code = COMPARE.format(read="torch._inductor.aoti_load_package(path)")
    status, out, errors = run_alone(code, tmp_path, path)
    assert status == 0, errors
    assert out.split() == [path, "agrees"]
