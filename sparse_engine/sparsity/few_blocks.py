"""Networks that are left so few blocks that outputs are constants wherever the blocks lie."""

from collections.abc import Sequence

from sparse_engine.layers.plan import LayerPlan

# The share of all outputs that is told of: a single small layer is not worth a line.
TOLD_FROM = 0.1


def fewest_empty_outputs(plan: LayerPlan) -> int:
    """Return how many outputs of a layer have no block, wherever its blocks lie.

    Blocks of one row feed the same output channels; without any, these are constants.
    """
    return max(0, plan.shape[0] - plan.block[0] * (plan.active // plan.group))


def few_blocks_note(plans: Sequence[LayerPlan]) -> str | None:
    """Return a line for a network in whose layers a tenth of all outputs, or more, has no block."""
    sparse = [plan for plan in plans if not plan.is_dense]
    empty = {plan.name: fewest_empty_outputs(plan) for plan in sparse}
    outputs = {plan.name: plan.shape[0] for plan in sparse}
    if sum(empty.values()) < TOLD_FROM * sum(outputs.values()) or not sparse:
        return None
    worst = max(empty, key=lambda name: empty[name] / outputs[name])
    grouped = any(plan.group > 1 for plan in sparse if empty[plan.name])
    return (
        f"at least {sum(empty.values())} of {sum(outputs.values())} outputs of sparse layers are "
        f"constants, for there are too few blocks ({worst}: {empty[worst]} of {outputs[worst]}): "
        f"use {'--taps each, ' * grouped}a smaller --block or a lower --sparsity"
    )
