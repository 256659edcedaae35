"""Take a ticket somewhere else: sparse-engine export RUN --format FORMAT --out FILE.

Formats: safetensors (active blocks and their layout), dense (a state dict of ordinary layers),
onnx (dense as well), torch-export (a program that calls the kernels), torch-export-dense (one that
runs with torch alone).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sparse_engine.config.flags import Parser, run_command, user_path, user_path_text
from sparse_engine.errors import InputError, say_renamed

if TYPE_CHECKING:
    from sparse_engine.runs.tickets import Ticket

FORMATS = ("safetensors", "dense", "onnx", "torch-export", "torch-export-dense")


def main(arguments: Sequence[str]) -> None:
    """Run the command line `arguments`."""
    parser = Parser(
        prog="sparse-engine export",
        usage="%(prog)s RUN --format FORMAT --out FILE [flags]",
        description=(__doc__ or "").partition(":")[0] + ".",
        allow_abbrev=False,
    )
    parser.add_argument(
        "run",
        type=user_path_text,
        metavar="RUN",
        help="run folder, a member_K.pt in one, or an exported .safetensors",
    )
    parser.add_argument(
        "--format",
        required=True,
        choices=FORMATS,
        help="safetensors and torch-export are sparse, and need this package to be read",
    )
    parser.add_argument("--out", required=True, type=user_path, metavar="FILE")
    parser.add_argument("--ticket", type=int, metavar="K", help="which ticket of several, from 1")
    # Its earlier name.
    parser.add_argument("--member", type=int, dest="ticket", help=argparse.SUPPRESS)
    parser.add_argument(
        "--data-dir", type=user_path_text, help="folder with the data, if it has moved"
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="of torch-export [cpu]"
    )
    flags = parser.parse_strictly(arguments)
    if any(argument.partition("=")[0] == "--member" for argument in arguments):
        say_renamed("flags", "--member", "--ticket")
    if not flags.out.parent.is_dir():
        raise InputError(f"--out: there is no folder '{flags.out.parent}'; make it first")
    if flags.out.is_dir():
        raise InputError(f"--out '{flags.out}' is a folder; name a file")
    if flags.out.exists() and (flags.out.parent / "config.json").exists():
        raise InputError(f"--out '{flags.out}' is a file of a run; name another")
    from sparse_engine.runs.tickets import tickets_of  # late, like everything that needs torch

    with parser.naming_own_flags():
        ticket = _chosen(tickets_of(flags.run, flags.data_dir), flags)
        note = _export(ticket, flags)
    size = flags.out.stat().st_size / 1e6
    print(f"{ticket.path} as {flags.format}: '{flags.out}', {size:.2f} MB{note}")


def _chosen(tickets: Sequence[Ticket], flags: argparse.Namespace) -> Ticket:
    if flags.ticket is None and len(tickets) > 1:
        raise InputError(f"'{flags.run}' has {len(tickets)} tickets; choose one with --ticket")
    number = 1 if flags.ticket is None else flags.ticket
    if not 1 <= number <= len(tickets):
        raise InputError(f"--ticket must be from 1 to {len(tickets)}, found {number}")
    return tickets[number - 1]


def _export(ticket: Ticket, flags: argparse.Namespace) -> str:
    """Write the file; return what else is to be said."""
    import torch

    from sparse_engine.runs import exported

    if flags.device == "cuda" and not torch.cuda.is_available():
        raise InputError("device 'cuda' is not available on this machine; use --device cpu")
    model, info = ticket.load(), ticket.info
    if flags.format == "safetensors":
        exported.save_safetensors(model, flags.out, ticket.config, info)
        return ""
    if flags.format == "dense":
        exported.save_dense(model, flags.out, info.class_names)
        return "; every weight, zeros included"
    images = torch.randn(2, info.channels, info.height, info.width)
    if flags.format.startswith("torch-export"):
        device, dense = torch.device(flags.device), flags.format == "torch-export-dense"
        example = images.to(device)
        exported.save_torch_export(model.to(device), flags.out, example, info.class_names, dense)
        where = "with torch alone; dense" if dense else "where sparse_kernels is imported first"
        return f"; runs on {flags.device}, {where}"
    error = exported.save_onnx(model, flags.out, images, info.class_names)
    checked = "not checked, onnxruntime is missing" if error is None else f"error {error:.0e}"
    return f"; dense, so without the speed-up; {checked}"


if __name__ == "__main__":
    run_command(main)
