"""The nodes of autograd: their names, and how long those of parameters' gradients live.

Such a node is bound to the stream it was made on. One that lives on from the default stream makes a
recording fail, so that nodes in a step that is recorded have to be new ones.
"""

import torch


def mark(model: torch.nn.Module, name: str) -> None:
    """Mark the living nodes of a model's parameters; one that is made anew has no mark."""
    for node in _nodes(model):
        node.metadata.setdefault("made", name)


def marks(model: torch.nn.Module) -> set[str]:
    """Return the marks of the living nodes."""
    return {node.metadata["made"] for node in _nodes(model) if "made" in node.metadata}


def names(y: torch.Tensor) -> set[str]:
    """Return the names of all nodes that a result came from."""
    nodes = [y.grad_fn]
    for node in nodes:
        nodes += [before for before, _ in node.next_functions if before is not None]
    return {node.name() for node in nodes}


def _nodes(model: torch.nn.Module) -> list:
    trained = [p for p in model.parameters() if p.requires_grad]
    return [torch.autograd.graph.get_gradient_edge(p).node for p in trained]
