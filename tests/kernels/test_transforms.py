import pytest
import torch
from torch.func import grad, vmap

from sparse_kernels.transforms import refuse_batches, rows_of, untransformed


def test_what_tensors_stand_for():
    x, seen = torch.arange(24).view(2, 3, 4).float(), []

    def look(x):
        with untransformed():
            seen.append(rows_of(x))
        return x.sum()

    vmap(vmap(grad(look), in_dims=1), in_dims=2)(x)
    (rows,) = seen
    assert rows.equal(x.permute(2, 1, 0).flatten(0, 1))  # the outer batch first
    look(x)
    assert seen[-1].equal(x[None])


def test_batches_of_gradients_are_refused():
    x = torch.zeros(3, requires_grad=True)
    y = 2 * x
    y.register_hook(refuse_batches)
    torch.autograd.grad(y, x, torch.ones(3), retain_graph=True)
    with pytest.raises(RuntimeError, match="fused passes take no batch"):
        torch.autograd.grad(y, x, torch.ones(2, 3), is_grads_batched=True)
