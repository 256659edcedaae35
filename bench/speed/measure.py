"""A contender made ready, checked and timed, and the rows that come of it."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bench.report import records as files
from bench.report.records import Records, Row, best_dense
from bench.speed.correctness import Reference
from bench.speed.energy import joules_a_round
from bench.speed.layer_check import check_layers
from bench.speed.roofline import rates_of
from bench.speed.steps import Step
from bench.speed.timing import (
    STEP,
    Phases,
    Times,
    clock_of,
    in_turn,
    milliseconds,
    quantile,
    ratios,
)
from bench.speed.variant import Case, Contender

# Below it a row is called dense, whatever blocks its layers have.
SPARSE_SHARE = 0.8
# Passes over the layers' FLOPs: the backward has two products for each of the forward's.
PASSES = {"forward": 1, "backward": 2, STEP: 3}
SECONDS = 1.2  # of GPU time that a contender's rounds take together
ROUNDS = (8, 40)  # fewest and most of them


@dataclass
class Ready:
    """A contender that has passed its check."""

    step: Step
    error: float | None
    step_error: float
    peak: int | None


def prepare(case: Case, contender: str, device: str, reference: Reference) -> Ready:
    """Build, warm up, capture and check a contender.

    The peak is that of one step after warm-up, or of the capture of one, so that what the
    libraries' own searches take is left out.

    Raises:
        WrongResult, Unavailable, InputError: it gives no row.
    """
    before = torch.cuda.memory_allocated() if device == "cuda" else 0
    step = Step(case, contender, device)
    error = check_layers(step)
    start = {name: t.detach().clone() for name, t in step.model.state_dict().items()}
    step.run()
    peak = None
    if "captured" in step.options:
        peak = peak_of(step.capture_step, device, before)
    with torch.no_grad():
        for name, tensor in step.model.state_dict().items():
            tensor.copy_(start[name])
    step_error = reference.check(step)
    if peak is not None:
        peak -= sum(t.numel() * t.element_size() for t in start.values())
    del start
    if peak is None and device == "cuda":
        peak = peak_of(step.run, device, before)
    return Ready(step, error, step_error, peak)


def measure(
    phases: Mapping[str, Phases], device: str, rounds: int
) -> tuple[Times, dict[str, float]]:
    """Return the times of contenders that take turns, and the energy of a step where it is known.

    Args:
        phases: by contender; on a GPU one at a time, so that it has the memory for itself.
        device: "cuda" or "cpu".
        rounds: on a CPU; on a GPU as many as fit a second.
    """
    clock = clock_of(device, torch.get_num_threads())
    if device == "cpu":
        return in_turn(phases, rounds, clock), {}
    first = in_turn(phases, 2, clock)
    longest = max(max(times[STEP]) for times in first.values())
    rounds = int(min(max(SECONDS / longest, ROUNDS[0]), ROUNDS[1]))
    times = in_turn(phases, rounds, clock, warm_up=0)
    if len(phases) > 1:
        return times, {}

    def more() -> int:
        in_turn(phases, rounds, clock, warm_up=0)
        return rounds

    energy = joules_a_round(more)
    return times, {} if energy is None else {STEP: energy}


def topology_times(ready: Ready, device: str, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of a step that collects dense gradients and of the update after it."""
    clock = clock_of(device, torch.get_num_threads())
    times = in_turn({"update": ready.step.updating_phases()}, rounds, clock)["update"]
    del times[STEP]
    return times


def rows(
    report: str,
    ready: Ready,
    times: Mapping[str, Sequence[float]],
    dense: Callable[[str], Mapping[str, Any]],
    together: Mapping[str, Sequence[float]] | None = None,
    energy: Mapping[str, float] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield the columns of each phase of a contender.

    Args:
        report: which of the reports.
        ready: the contender.
        times: seconds by phase and round.
        dense: gives the columns dense_ms and against of a phase.
        together: the dense contender's times of the same rounds, where they took turns.
        energy: joules by phase.
    """
    step, case = ready.step, ready.step.case
    facts = facts_of(report, step) | {
        "state_mb": step.state_bytes() / 1e6,
        "peak_mb": None if ready.peak is None else ready.peak / 1e6,
        "error": None if ready.error is None else f"{ready.error:.1e}",
        "step_error": f"{ready.step_error:.1e}",
    }
    whole = sum(step.flops.values()) * case.network.batch
    rates = rates_of(files.device_name(step.device))
    for phase, seconds in times.items():
        found = milliseconds(seconds)
        rate = PASSES.get(phase, 0) * whole / (1e-3 * found["p50_ms"]) / 1e12
        useful = rate * step.flops_ratio() or None
        ratio = ratios(seconds, together[phase]) if together and phase in together else {}
        yield {
            **facts,
            **found,
            **ratio,
            **dense(phase),
            "phase": phase,
            "tflops": useful,
            "dense_tflops": rate or None,
            "roofline": 1e12 * useful / rates.tensor if useful and rates else None,
            "energy_j": (energy or {}).get(phase),
        }


def facts_of(report: str, contender: Contender) -> dict[str, Any]:
    """Return the columns that describe a contender, whatever was measured of it."""
    case, share = contender.case, contender.kernel_share()
    sparse = share is not None and share >= SPARSE_SHARE
    found = {
        "report": report,
        "dtype": "bf16" if contender.device == "cuda" else "fp32",
        "subject": case.network.name,
        "batch": case.network.batch,
        "contender": contender.name,
        "label": "sparse" if sparse else "dense",
        "kernel_share": share,
        "flops_ratio": contender.flops_ratio(),
        "density": contender.density(),
    }
    if case.sparsity:
        choice = {"distribution": case.distribution, "block": case.block}
        found |= {"sparsity": case.sparsity, **choice}
    return found


def baseline(
    records: Records, case: Case, together: Mapping[str, Sequence[float]] | None
) -> Callable[[str], Mapping[str, Any]]:
    """Return a function that gives the columns dense_ms and against of a phase.

    Args:
        records: whose dense rows of this run are compared with,
        case: of this network,
        together: unless these times of the dense contender are of the same rounds.
    """

    def found(phase: str) -> Mapping[str, Any]:
        if together is None:
            return best_dense(records.rows, case.network.name, phase)
        if phase not in together:
            return {}
        return {"dense_ms": 1e3 * quantile(together[phase], 0.5), "against": "dense"}

    return found


def line(row: Row) -> str:
    """Return what a person looks at in a row."""
    dense = float(row["dense_ms"]) / float(row["p50_ms"]) if row["dense_ms"] else 0
    speed = f"x{dense:.2f}" if dense else ""
    where = f"{row['sparsity'] or '-':>5} {row['distribution']:8} {row['block']:>8}"
    share = f"{float(row['kernel_share']):.0%}" if row["kernel_share"] else ""
    return (
        f"{row['subject']:20} {where} {row['contender']:24} {row['phase']:16} "
        f"{float(row['p50_ms']):10.3f} ms {speed:>7} {row['label']:6} {share}"
    )


def free() -> None:
    """Give back the GPU's memory of contenders that are gone."""
    if torch.cuda.is_available():
        if "torch._dynamo" in sys.modules:
            torch.compiler.reset()
        gc.collect()
        torch.cuda.empty_cache()


def peak_of(run: Callable[[], Any], device: str, before: int = 0) -> int | None:
    """Run something; return the peak of the GPU's memory above `before`, in bytes."""
    if device != "cuda":
        run()
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
