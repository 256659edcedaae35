"""Programs of torch.export: what they give, and where they run."""

import zipfile

import pytest
import torch
from exported_layers import NETWORKS, exported
from exported_networks import images, network
from torch import nn
from torch_alone import COMPARE, run_alone

from sparse_engine import to_aten
from sparse_engine.errors import InputError
from sparse_engine.runs.programs import load_torch_export, save_torch_export
from sparse_kernels.dispatch.backend import forced_backend

QUICK = "every layer"
READ = COMPARE.format(read="torch.export.load(path).module()")


def operators(program):
    return {node.target for node in program.graph.nodes if node.op == "call_function"}


def program_of(model, x):
    """Return the program of a model for batches of any size, as users make it."""
    return torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))


def write_numbers(model, inputs, path):
    """Write what a model gives, for a process that has torch alone to compare with.

    By PyTorch's own products, as there: in bf16 those of kernels are rounded elsewhere.
    """
    with torch.no_grad(), forced_backend("masked"):
        torch.save([(x, model(x)) for x in inputs], f"{path}.numbers")


def check_core(path):
    """Check that core ATen is all that is left of a program, as ExecuTorch wants it."""
    called = operators(torch.export.load(path).run_decompositions())
    kinds = {target for target in called if isinstance(target, torch._ops.OpOverload)}
    assert {target.__module__ for target in called - kinds} <= {"_operator"}  # sums of sizes
    # Left by every cast; ExecuTorch takes it out.
    others = {str(t) for t in kinds if torch.Tag.core not in t.tags}
    assert others <= {"aten._assert_tensor_metadata.default"}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Return what a process with torch alone says of a program of either kind."""
    folder = tmp_path_factory.mktemp("programs")
    model, inputs = exported(QUICK)
    for name in ("aten.pt2", "own.pt2"):
        write_numbers(model, inputs, folder / name)
    torch.export.save(to_aten(program_of(model, inputs[0])), folder / "aten.pt2")
    save_torch_export(model, folder / "own.pt2", inputs[0])
    write_numbers(network(), [images(2), images(5)], folder / "dense.pt2")
    trained = network().to(memory_format=torch.channels_last)  # as the trainer's are
    save_torch_export(trained, folder / "dense.pt2", images(2), dense=True)
    return folder, *run_alone(READ, folder, "aten.pt2", "dense.pt2", "own.pt2")


def test_programs_of_aten_run_with_torch_alone(alone):
    folder, _, out, errors = alone
    assert out.split() == ["aten.pt2", "agrees", "dense.pt2", "agrees"], errors
    check_core(folder / "aten.pt2")


def test_torch_names_what_is_missing(alone):
    folder, status, _, errors = alone
    assert status == 1
    assert "failed to resolve torch.ops.sparse_kernels.conv2d.default to an operator" in errors
    with zipfile.ZipFile(folder / "own.pt2") as file:
        (name,) = (name for name in file.namelist() if name.endswith("extra/needs"))
        assert b"`import sparse_kernels` before torch.export.load" in file.read(name)


def test_with_the_package_operators_are_kept(alone):
    folder, *_ = alone
    model, inputs = exported(QUICK)
    loaded = load_torch_export(folder / "own.pt2")
    for x in inputs:
        torch.testing.assert_close(loaded(x), model(x))
    called = {str(node.target) for node in loaded.graph.nodes}
    assert {f"sparse_kernels.{kind}.default" for kind in ("conv2d", "linear")} <= called


@pytest.mark.slow
def test_other_networks_run_with_torch_alone(tmp_path):
    paths = []
    for number, name in enumerate(name for name in NETWORKS if name != QUICK):
        (model, inputs), path, dense = exported(name), f"{number}.pt2", f"{number}-dense.pt2"
        torch.export.save(to_aten(program_of(model, inputs[0])), tmp_path / path)
        check_core(tmp_path / path)
        write_numbers(model, inputs, tmp_path / path)
        paths.append(path)
        if not name.startswith(QUICK):  # one layer of which becomes one of transformers
            save_torch_export(model, tmp_path / dense, inputs[0], dense=True)
            write_numbers(model, inputs, tmp_path / dense)
            paths.append(dense)
    _, out, errors = run_alone(READ, tmp_path, *paths)
    assert out.split() == [word for path in paths for word in (path, "agrees")], errors


# What compilers and exporters warn of is their own.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dense", [False, True])
def test_packages_of_aotinductor_run_with_torch_alone(dense, tmp_path):
    (model, inputs), path = exported("fused" if dense else QUICK), str(tmp_path / "compiled.pt2")
    if dense:
        save_torch_export(model, tmp_path / "ticket.pt2", inputs[0], dense=True)
        program = torch.export.load(tmp_path / "ticket.pt2")
    else:
        program = to_aten(program_of(model, inputs[0]))
    torch._inductor.aoti_compile_and_package(program, package_path=path)
    write_numbers(model, inputs, path)
    read = COMPARE.format(read="torch._inductor.aoti_load_package(path)")
    _, out, errors = run_alone(read, tmp_path, path)
    assert out.split() == [path, "agrees"], errors


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [QUICK, "fused", "attention"])
def test_executorch_gives_the_same(name):
    exir = pytest.importorskip("executorch.exir", reason="executorch is not installed")
    from executorch.runtime import Runtime

    model, inputs = exported(name)
    batch = torch.export.Dim("batch", max=8)  # whose memory is planned
    program = to_aten(torch.export.export(model, (inputs[0],), dynamic_shapes=({0: batch},)))
    content = exir.to_edge(program).to_executorch().buffer
    method = Runtime.get().load_program(content).load_method("forward")
    for x in inputs:
        (found,) = method.execute([x])
        torch.testing.assert_close(found, model(x))


@pytest.mark.usefixtures("triton_backend")
def test_fused_operators_have_definitions():
    model, inputs = exported("fused")
    program = program_of(model, inputs[0])
    fused = {"conv2d_fused", "norm_affine", "norm_forward"}
    assert {f"sparse_kernels.{name}.default" for name in fused} <= set(map(str, operators(program)))
    found = to_aten(program).module()
    torch.testing.assert_close(found(inputs[1]), model(inputs[1]))


def test_operators_of_training_are_refused():
    class Sums(nn.Module):
        def forward(self, x):
            return torch.ops.sparse_kernels.norm_tile_sums(x)

    program = torch.export.export(Sums(), (images(2),))
    with pytest.raises(InputError, match=r"^operator sparse_kernels\.norm_tile_sums.* eval mode"):
        to_aten(program)


def test_what_is_no_program(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load_torch_export(tmp_path / "none.pt2")
    (tmp_path / "x.pt2").write_bytes(b"no program")
    with pytest.raises(InputError, match=r"is no program of torch\.export"):
        load_torch_export(tmp_path / "x.pt2")
    torch.save({}, tmp_path / "y.pt2")
    with pytest.raises(InputError, match=r"is no program of torch\.export"):
        load_torch_export(tmp_path / "y.pt2")


def test_what_torch_cannot_export(tmp_path):
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(InputError, match=r"torch\.export cannot export this model"):
        save_torch_export(Branching().eval(), tmp_path / "x.pt2", images())
    assert not list(tmp_path.iterdir())
