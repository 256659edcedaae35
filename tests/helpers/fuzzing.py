"""What the fuzz tests share: commands run in this process, and what they may end with."""

import contextlib
import functools
import io
import os
from pathlib import Path
from unittest import mock

from sparse_engine.data.load import load_dataset
from sparse_engine.errors import InputError, RunFailure
from sparse_engine.sparsity import layer_times
from sparse_engine.training import run

FLAGS = ["--model", "mlp", "--block", "8x8", "--batch-size", "256", "--device", "cpu"]
kept_dataset = functools.lru_cache(maxsize=8)(load_dataset)


class Accepted(Exception):
    """A run that would now begin to write."""


ENDS = {Accepted: "accepted", InputError: "refused", RunFailure: "failed"}


def accept(config, folder, world, info):
    raise Accepted


def contents(folder="."):
    """Return every file below a folder, but the lock that says nothing."""
    paths = (p for p in Path(folder).rglob("*") if p.is_file() and p.name != "lock")
    return {str(p): p.read_bytes() for p in paths}


def linear_times(plan, problem, module, counts, device, dtype):
    """Stand for layer_times.measure, which takes seconds."""
    return [count / plan.total for count in counts]


@contextlib.contextmanager
def no_output():
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()) as err,
        mock.patch.dict(os.environ),
    ):
        yield err


def outcome(command, arguments, begins=False):
    """Run a command; return "done", "accepted", "refused" or "failed". Anything else is an error.

    Args:
        command: main of train or evaluate.
        arguments: of it.
        begins: whether a run that is accepted is trained.
    """
    patches = [
        mock.patch.object(layer_times, "measure", linear_times),
        mock.patch.object(run, "tune_run", return_value="nothing"),
        mock.patch.object(run, "load_dataset", kept_dataset),
    ]
    if not begins:
        patches.append(mock.patch.object(run, "_open_folder", accept))
    with no_output(), contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        try:
            command(arguments)
        except (Accepted, InputError, RunFailure) as end:
            return ENDS[type(end)]
        except SystemExit as stop:
            if stop.code:
                raise
    return "done"
