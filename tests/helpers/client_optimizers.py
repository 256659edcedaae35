"""Check the optimizers of other packages, those that are installed: a program of its own.

The packages are slow to import, and warn.
"""

import importlib.util
import traceback

import torch
from fresh_blocks import assert_fresh
from torch import optim


def main():
    """Print a line for each optimizer: its name, and how many tensors of state have slots."""
    for package, checks in (
        ("timm", timm_optimizers),
        ("transformers", transformers_optimizers),
        ("schedulefree", schedulefree_optimizers),
        ("accelerate", accelerate_optimizers),
    ):
        if importlib.util.find_spec(package):
            for name, make, options in checks():
                try:
                    print(package, name, assert_fresh(make, **options))
                except Exception:
                    print(package, name, "failed", traceback.format_exc(limit=-2))


def timm_optimizers():
    """Yield all that can be made on a CPU."""
    from timm.optim import create_optimizer_v2, list_optimizers

    names = [name for name in list_optimizers() if not name.startswith(("bnb", "fused"))]
    for name in [*names, "lookahead_adam", "lookahead_rmsproptf"]:
        options = {"steps": 7 if name.startswith("lookahead") else 2}
        if "rmsproptf" in name:
            options["tolerance"] = 0.11  # it begins at 1 and decays from the first step on
        if name.startswith("kron"):
            options["mixed"] = ["Q"]
        yield name, lambda p, n=name: create_optimizer_v2(p, opt=n, lr=0.01, momentum=0.9), options


def transformers_optimizers():
    """Yield the library's own."""
    from transformers.optimization import Adafactor

    yield "Adafactor", Adafactor, {}
    fixed = {"lr": 0.01, "relative_step": False, "scale_parameter": False, "beta1": 0.9}
    yield "Adafactor with momentum", lambda p: Adafactor(p, **fixed), {}


def schedulefree_optimizers():
    """Yield one of each kind."""
    import schedulefree as s

    for name in ("SGD", "AdamW", "RAdam"):
        for form in ("ScheduleFree", "ScheduleFreeClosure"):
            yield name + form, lambda p, n=name + form: getattr(s, n)(p, lr=0.01), {}
    yield "wrapper", lambda p: s.ScheduleFreeWrapper(optim.SGD(p, 0.01, 0.9), momentum=0.9), {}


def accelerate_optimizers():
    """Yield a wrapped optimizer."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    yield "Rprop", lambda p: accelerator.prepare(optim.Rprop(p, lr=0.02)), {}


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
