"""The benchmarks' table shows the ratio that each one measured."""

import pytest


def pytest_terminal_summary(terminalreporter) -> None:
    session = getattr(terminalreporter.config, "_benchmarksession", None)
    rows = [b for b in session.benchmarks if b.extra_info] if session else []
    if not rows:
        return
    terminalreporter.section("what was measured, in this run on this machine")
    for row in rows:
        facts = "  ".join(f"{name} {value}" for name, value in row.extra_info.items())
        terminalreporter.write_line(f"{row.name}: {facts}")


@pytest.fixture(autouse=True)
def _seeded():
    import torch

    torch.manual_seed(0)
