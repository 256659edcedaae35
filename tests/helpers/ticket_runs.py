"""Run folders as training leaves them, made without training."""

import torch

from sparse_engine.config.config import Config
from sparse_engine.data.load import dataset_info
from sparse_engine.layers.state_dict import without_unused_slots
from sparse_engine.methods.resolve import resolve
from sparse_engine.runs.run_folder import RunFolder
from sparse_engine.training.network import build_network


def make_run(path, members=2, tickets=None, **settings):
    """Make a run folder of random tickets, one a member; return their networks in eval mode."""
    given = {"method": "dst-ensemble", "model": "mlp", "dataset": "digits", "block": "16x16"}
    given |= {"sparsity": 0.8, "members": members, "device": "cpu", "out": str(path)}
    config = resolve(Config(**{**given, **settings}))
    info = dataset_info(config.dataset, config.data_dir)
    models = []
    with RunFolder.create(config) as folder:
        for member in range(tickets or members):
            model = build_network(config, info, torch.device("cpu"), member).model
            folder.save_member(member + 1, without_unused_slots(model, model.state_dict()))
            models.append(model.eval())
    return models
