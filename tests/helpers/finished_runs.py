"""Runs made by the command, in the working directory, and what is read from their folders."""

import json

import torch
from resumed_runs import rows_of

from sparse_engine.config.config import Config
from sparse_engine.config.values import read_config_file
from sparse_engine.train import main


def train_with(flags, capsys):
    """Return a function that trains with some flags more into a folder; it returns the result."""

    def call(out, *arguments):
        main([*flags, "--out", out, *arguments])
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return call


def config_of(out):
    return Config(**read_config_file(f"{out}/config.json"))


def column(out, name):
    return [float(row[name]) for row in rows_of(out)]


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def same_blocks(first, second):
    ids = [name for name in first if name.endswith("block_ids")]
    assert ids
    return all(set(first[n].tolist()) == set(second[n].tolist()) for n in ids)
