"""Operators under torch.func, the earlier vmap and forward AD: as dense ones of the same weight."""

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from layer_cases import Case, make, operator
from torch.func import (
    grad,
    grad_and_value,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    linearize,
    vjp,
    vmap,
)
from torch.utils._pytree import tree_leaves

from sparse_kernels.operators.reference import scatter_blocks
from sparse_kernels.transforms import untransformed

# PyTorch's own: of formulas that it scripts, of constants in a graph, and of its padding.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.script"),
    pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
]
CASES = {
    "ragged, unused slots": Case((3, 7), (5, 7), (2, 3), unused=2),
    "one vector, one block": Case((7,), (5, 7), (2, 3), density=0.01),
    "strided, padded, dilated": Case(
        (2, 3, 5, 6), (4, 3, 2, 2), (2, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2)
    ),
    "unbatched, same, unstructured": Case(
        (3, 4, 3), (2, 3, 2, 2), (1, 1), 0.3, 1, padding="same", bias=False
    ),
}
ALL = (0, 1, 2)


def scalar(function):
    return lambda *tensors: function(*tensors).tanh().square().sum()


def stacked(tensor, dim=0, size=3):
    return torch.stack([tensor * (number + 1) for number in range(size)], dim)


def tangents(tensors):
    return tuple(tensor.sin() for tensor in tensors)


def along_dual_numbers(function, tensors, which):
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t, t.sin()) if i in which else t
                 for i, t in enumerate(tensors)]  # fmt: skip
        return tuple(forward_ad.unpack_dual(function(*duals)))


def batched_gradients(function, tensors):
    tensors = [tensor.clone().requires_grad_() for tensor in tensors]
    y = function(*tensors)
    grads = stacked(y.detach().cos())
    return torch.autograd.grad(y, tensors, grads, is_grads_batched=True, allow_unused=True)


def gradient_of_gradients(function, values, bias, x):
    values = values.clone().requires_grad_()
    inner = vmap(grad(scalar(function), 2), (None, None, 0))(values, bias, stacked(x))
    return torch.autograd.grad(inner.square().sum(), values)


old = torch.autograd.functional
TRANSFORMS = {
    "grad_and_value": lambda f, *t: grad_and_value(scalar(f), ALL)(*t),
    "vjp": lambda f, *t: vjp(f, *t)[1](f(*t).sin()),
    "vmap over x": lambda f, v, b, x: vmap(f, (None, None, -1), out_dims=1)(v, b, stacked(x, -1)),
    "vmap over values": lambda f, v, b, x: vmap(f, (1, None, None))(stacked(v, 1), b, x),
    "vmap over bias": lambda f, v, b, x: vmap(f, (None, 1, None))(v, stacked(b, 1), x),
    "vmap over all": lambda f, *t: vmap(f, chunk_size=2)(*map(stacked, t)),
    "vmap over none": lambda f, v, b, x: vmap(lambda a: a * f(v, b, x))(x.new_ones(2)),
    "vmap of vmap": lambda f, v, b, x: vmap(vmap(f, (0, None, None)), (None, 0, 1))(
        stacked(v), stacked(b), stacked(x, 1)
    ),
    "per sample": lambda f, v, b, x: vmap(grad(scalar(f), ALL), (None, None, 0))(v, b, stacked(x)),
    "jacrev": lambda f, *t: jacrev(f, ALL, chunk_size=7)(*t),
    "jacfwd": lambda f, *t: jacfwd(f, ALL)(*t),
    "hessian": lambda f, *t: hessian(scalar(f), (0, 1))(*t),
    "reverse over forward": lambda f, *t: jacrev(jvp_of(f), (0, 2))(*t),
    "reverse over reverse": lambda f, *t: jacrev(grad(scalar(f), 0), (0, 2))(*t),
    "jvp of the bias": lambda f, v, b, x: jvp(lambda b: f(v, b, x), (b,), (b.sin(),)),
    "dual values": lambda f, *t: along_dual_numbers(f, t, [0]),
    "dual x": lambda f, *t: along_dual_numbers(f, t, [2]),
    "is_grads_batched": lambda f, *t: batched_gradients(f, t),
    "backward through torch.func": gradient_of_gradients,
    "vectorized jacobian": lambda f, *t: old.jacobian(f, t, vectorize=True),
    "vectorized, forward": lambda f, *t: old.jacobian(
        f, t, vectorize=True, strategy="forward-mode"
    ),
    "hvp": lambda f, *t: old.hvp(scalar(f), t, tangents(t)),
}


def jvp_of(function):
    return lambda *t: jvp(scalar(function), t, tangents(t))[1]


def functions(case, dtype=torch.float64):
    """Return the operator and its dense twin, as functions of values, bias and x, and these."""
    x, values, layout, bias = make(case, dtype)
    x, values = x.detach(), values.detach().nan_to_num(0)
    bias = x.new_zeros(case.weight[0]) if bias is None else bias.detach()
    # The weight is a linear map of the values, so any transform can go through it.
    unit = torch.eye(values.numel(), dtype=dtype).view(-1, *values.shape)
    index, sizes = layout.tensors(), layout.sizes()
    columns = torch.stack([scatter_blocks(u, index, sizes).flatten() for u in unit], 1)
    geometry = case.geometry if len(case.weight) == 4 else {}
    dense = F.conv2d if geometry else F.linear

    def of_blocks(values, bias, x):
        return operator(case)(x, values, layout, bias, **geometry)

    def of_weight(values, bias, x):
        weight = (columns @ values.flatten()).view(case.weight)
        return dense(x, weight, bias, **geometry)

    return of_blocks, of_weight, (values, bias, x)


@pytest.mark.usefixtures("both_paths")
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
def test_transforms_are_those_of_a_dense_operator(transform):
    for case in CASES.values():
        of_blocks, of_weight, tensors = functions(case)
        found, wanted = (transform(f, *tensors) for f in (of_blocks, of_weight))
        for own, dense in zip(tree_leaves(found), tree_leaves(wanted), strict=True):
            torch.testing.assert_close(own, dense)


@pytest.mark.usefixtures("both_paths")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_per_sample_gradients_in_other_types(dtype):
    of_blocks, of_weight, tensors = functions(CASES["strided, padded, dilated"], dtype)
    exact = [tensor.double() for tensor in tensors]
    _, of_exact, _ = functions(CASES["strided, padded, dilated"])
    found, dense, exact = (
        TRANSFORMS["per sample"](f, *t)
        for f, t in ((of_blocks, tensors), (of_weight, tensors), (of_exact, exact))
    )
    for own, other, right in zip(found, dense, exact):
        assert own.dtype == dtype
        error, allowed = ((t.double() - right).norm() for t in (own, other))
        assert error <= 2 * allowed + 1e-6 * right.norm()


def test_linearize():
    of_blocks, of_weight, tensors = functions(CASES["ragged, unused slots"])
    y, along = linearize(of_blocks, *tensors)
    wanted = jvp(of_weight, tensors, tangents(tensors))
    torch.testing.assert_close((y, along(*tangents(tensors))), wanted)


def test_a_batch_of_none():
    of_blocks, of_weight, (values, bias, x) = functions(CASES["ragged, unused slots"])
    for dims, none in (((0, None, None), (values[None][:0], bias, x)),
                       ((None, None, 0), (values, bias, x[None][:0]))):  # fmt: skip
        found, wanted = (vmap(f, dims)(*none) for f in (of_blocks, of_weight))
        assert found.shape == wanted.shape == (0, 3, 5)


def test_lists_written_to_before_backward_are_noticed():
    x, values, layout, _ = make(CASES["ragged, unused slots"])

    def twice(x):
        first = operator(CASES["ragged, unused slots"])(x, values, layout)
        with untransformed():
            layout.update_(layout.block_ids.flip(0))
        return first.sum()

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        grad(twice)(x.detach())


def test_a_compiled_transform():
    of_blocks, _, tensors = functions(CASES["ragged, unused slots"])
    called = lambda *t: TRANSFORMS["jvp of the bias"](of_blocks, *t)  # noqa: E731
    compiled = torch.compile(called, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*tensors), called(*tensors))
