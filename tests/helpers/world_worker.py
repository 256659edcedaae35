"""One process of several in test_processes.py: does what its arguments say, one after another."""

import os
import signal
import sys

import torch
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from sparse_engine import train as command
from sparse_engine.errors import RunFailure
from sparse_engine.sparsity.topology import Topology
from sparse_engine.training.processes import DistributedContext, process_group
from sparse_engine.training.trainer import Trainer

FLAGS = [
    "--model",
    "mlp",
    "--block",
    "8x8",
    "--batch-size",
    "256",
    "--lr",
    "0.1",
    "--device",
    "cpu",
]
RUNS = {
    "rigl": ["--method", "rigl", "--epochs", "4", "--checkpoint-every", "3"],
    "fp16": ["--method", "snfs", "--epochs", "4", "--dtype", "fp16", "--seed", "1"],
    "members": ["--method", "dst-ensemble", "--members", "3", "--epochs", "6", "--dropout", "0.1"],
}


def meet_anew():
    """Take the next port: a store holds what the processes said when they last met."""
    os.environ["MASTER_PORT"], os.environ["MEETING_PORTS"] = os.environ["MEETING_PORTS"].split(
        maxsplit=1
    )


def main(flags):
    meet_anew()
    command.main(flags)


def train(name, *flags):
    main([*FLAGS, *RUNS[name], *flags, "--timeout", "60", "--out", f"{name}-together"])


def kill(step, how):
    """Let a run end within an epoch."""
    train_step = Trainer._train_step

    def train_or_die(self, phase):
        if self.progress.step == step:
            how()
        train_step(self, phase)

    Trainer._train_step = train_or_die


def bytes_sent():
    """Print how many bytes of gradients a step sends, as DDP's buckets have them."""
    parallel, sent = DistributedContext.parallel, []

    def counting(self, model):
        wrapped = parallel(self, model)

        def hook(state, bucket):
            sent.append(bucket.buffer().numel() * bucket.buffer().element_size())
            return allreduce_hook(None, bucket)

        wrapped.register_comm_hook(None, hook)
        return wrapped

    DistributedContext.parallel = counting
    for name, flags in {
        "dense": ["--method", "dense"],
        "0.8": ["--method", "static", "--sparsity", "0.8"],
        "0.9": ["--method", "static", "--sparsity", "0.9"],
    }.items():
        main([*FLAGS, *flags, "--epochs", "1", "--out", f"bytes-{name}"])
        print(f"BYTES {name} {sum(sent) // 5}", flush=True)
        sent.clear()


def threads_left():
    """Print how many threads are left of the process group, while the world is still held."""
    meet_anew()
    threads = len(os.listdir("/proc/self/task"))
    with process_group(60, False) as world:
        world.mean(torch.ones(3))
    left = len(os.listdir("/proc/self/task")) - threads
    print(f"THREADS {left} of {world}", flush=True)


def other_topology():
    generator = Topology._generator

    def other(self, layer, number):
        return generator(self, layer, number + 100 * self.processes.rank)

    Topology._generator = other
    try:
        main([*FLAGS, "--method", "set", "--epochs", "4", "--out", "other"])
    except RunFailure as error:
        print(f"FAILURE {error}", flush=True)
    Topology._generator = generator


def one_dies():
    if os.environ["RANK"] == "1":
        kill(12, lambda: os.kill(os.getpid(), signal.SIGKILL))
    try:
        train("rigl")
    except RunFailure as error:
        print(f"FAILURE {error}", flush=True)
        os._exit(1)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for task in sys.argv[1:]:
        if task in RUNS:
            train(task, *(["--parallel", "members"] if task == "members" else []))
        else:
            globals()[task]()
