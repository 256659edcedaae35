"""A run for tests of actions: one network, which never trains."""

from types import SimpleNamespace

from pruning import strongest

from sparse_engine.config.config import Config
from sparse_engine.layers.state_dict import load_state
from sparse_engine.layers.surgery import replace_modules
from sparse_engine.training.member_states import copy_of


class FakeRun:
    """The Run of actions.py; `asked` lists what actions wanted of the training, in order."""

    def __init__(self, model, config=None, teacher=None, images=()):
        self.model, self.config, self.teacher = model, config or Config(), teacher
        self.images, self.best, self.kept, self.asked, self.tickets = images, [], {}, [], []
        self.topology = SimpleNamespace(update=lambda rate: self.asked.append(("update", rate)))

    def next_member(self, sparsity=None):
        self.asked.append(("next member", sparsity))

    def present_states(self):
        return [self.evaluated(self.model)]

    def evaluated(self, model):
        return {"accuracy": 0.5, "model": copy_of(model.state_dict())}

    def save_ticket(self, state):
        self.tickets.append(state)

    def load(self, state):
        load_state(self.model, state)

    def replace_layers(self, layers):
        replace_modules(self.model, layers)

    def permute(self, order):
        order.apply_(self.model)

    def strongest(self, model, sparsity):
        return strongest(model, sparsity, self.config)

    def training_images(self):
        return iter(self.images)

    def agreed(self, find):
        return find()
