"""Now sparse_engine.runs.exported."""

from sparse_engine.runs.exported import *  # noqa: F403
