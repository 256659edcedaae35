"""What a step makes of a network, compared with another's, and the order in which it all lies."""

import torch

from sparse_kernels.memory_order import in_order


def rows(*shape: int, dtype=torch.float64) -> torch.Tensor:
    return in_order(torch.randn(*shape, dtype=dtype), "rows")


def in_rows(x: torch.Tensor) -> bool:
    return x.permute(2, 3, 0, 1).is_contiguous()


def pass_through(model, x):
    """Return output, gradients and buffers of a step; the gradient is random, in NCHW order."""
    x = x.detach().requires_grad_()
    y = model(x)
    seed = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    y.backward(seed)
    gradients = {n: p.grad for n, p in model.named_parameters()}
    buffers = {f"buffer {n}": b.clone() for n, b in model.named_buffers()}
    return {"y": y.detach(), "x": x.grad, **gradients, **buffers}


def assert_same(found, expected, tolerance):
    """Compare tensors by the norm of their difference."""
    assert found.keys() == expected.keys()
    for name, right in expected.items():
        error = (found[name] - right).double().norm()
        assert error <= tolerance * right.double().norm().clamp(min=1e-3), name


def assert_all_rows(model, x):
    """Step once and look at what each leaf module is given and gives, and at its gradients."""
    wrong, gradients = [], []

    def check(what, tensor):
        if tensor.ndim == 4 and not in_rows(tensor):
            wrong.append(what)

    def watch(name, module):
        def hook(_, inputs, output):
            check(f"{name} input", inputs[0])
            check(f"{name} output", output)
            if output.ndim == 4:
                output.register_hook(lambda g: check(f"{name} gradient", g))
                output.register_hook(lambda g: gradients.append(name))

        return module.register_forward_hook(hook)

    leaves = {n: m for n, m in model.named_modules() if next(m.children(), None) is None}
    handles = [watch(name, module) for name, module in leaves.items()]
    model(x).square().sum().backward()
    for handle in handles:
        handle.remove()
    assert not wrong
    assert len(gradients) >= len(handles) - 2  # dropout and classifier have no images
