"""What a study's networks take on machines other than the one whose times its tables show."""

from collections.abc import Iterator, Mapping

from bench.report.tables import markdown
from bench.study.grid import Run, Study, name_of
from bench.study.times import step_of, time_of

Rows = Mapping[str, Mapping[str, str]]
# By machine, in words.
Machines = Mapping[str, Rows]
HEAD = ("training", "machine", "dense step, ms", "time / dense")
LARGER = ("larger network: dense step, ms", "projected")


def usual_machine(machines: Machines) -> str:
    """Return the machine that has timed most points, as `read_times` names it; "" without any."""
    return max(machines, key=lambda name: len(machines[name]), default="")


def usual_times(machines: Machines) -> Rows:
    """Return the times of the usual machine, by point."""
    return machines.get(usual_machine(machines), {})


def machines_table(study: Study, rows: Rows, machines: Machines) -> str:
    """Return what all machines took for what another than the usual one has timed, as Markdown.

    Args:
        study: whose trainings are timed.
        rows: of its runs, by key; a training without any is left out.
        machines: times, as `read_times` returns them.
    """
    usual, lines = usual_machine(machines), []
    for name, run in _trainings(study, rows):
        times = {
            m: (time_of(of_one, run.settings), _larger(study, of_one, run))
            for m, of_one in machines.items()
        }
        if not any(any(pair) for machine, pair in times.items() if machine != usual):
            continue
        for machine, pair in times.items():
            if any(pair):
                lines.append([name, machine, *_cells(pair[0]), *_cells(pair[1])])
                name = ""
    width = len(HEAD) + len(LARGER) * bool(study.projection)
    return markdown((*HEAD, *LARGER)[:width], [line[:width] for line in lines])


def _trainings(study: Study, rows: Rows) -> Iterator[tuple[str, Run]]:
    """Yield each training that is timed by itself and has a row, and what to call it."""
    seen = set()
    for grid in study.grids:
        for run in grid.runs:
            step = step_of(run.settings)
            if run.key in rows and step not in seen:
                seen.add(step)
                yield ": ".join(part for part in (grid.name, name_of(run.point)) if part), run


def _larger(study: Study, times: Rows, run: Run) -> Mapping[str, str] | None:
    projection = study.projection
    return time_of(times, projection.of(run.settings)) if projection else None


def _cells(time: Mapping[str, str] | None) -> tuple[str, str]:
    return (f"{float(time['dense_ms']):.0f}", time_cell(time)) if time else ("", "")


def time_cell(time: Mapping[str, str]) -> str:
    """Return the time of the whole training over the dense one's, and the rounds' spread."""
    training, step, low, high = (
        float(time[name]) for name in ("training_ratio", "step_ratio", "ratio_p20", "ratio_p80")
    )
    scale = training / step
    return f"{training:.2f} ({scale * low:.2f}-{scale * high:.2f})"
