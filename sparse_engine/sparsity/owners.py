"""STUB"""

from torch.optim import Optimizer
from sparse_engine.layers.optimizer_state import reset_slots


class Owners:
    def __init__(self, optimizers, parameters):
        self.optimizers = [optimizers] if isinstance(optimizers, Optimizer) else list(optimizers)
        self.parameters = parameters
        self.on_step = None
        for o in self.optimizers:
            o.register_step_post_hook(lambda opt, a, k: self.on_step(opt))

    def of(self, p):
        return [
            o for o in self.optimizers if any(q is p for g in o.param_groups for q in g["params"])
        ]

    def trained(self):
        return {n for n, p in self.parameters.items() if p.requires_grad and self.of(p)}

    def reset_slots(self, p, slots, unless=None):
        for o in self.of(p):
            reset_slots(o, p, slots, unless)
