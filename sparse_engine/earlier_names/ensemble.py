"""Now sparse_engine.runs.ensemble."""

from sparse_engine.runs.ensemble import *  # noqa: F403
