"""How long checkpoints take and how large they are, sparse against dense: python -m bench.checkpoints

A checkpoint is what a run writes: model, momenta, blocks and all else (trainer_state.state_of).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from bench.records import markdown_table
from sparse_engine.config import Config
from sparse_engine.data.load import load_dataset
from sparse_engine.recipes import resolve
from sparse_engine.run_folder import RunFolder
from sparse_engine.trainer import Trainer
from sparse_engine.trainer_state import restore, state_of

SPARSITIES = (0.0, 0.8, 0.9)
REPEATS = 9
