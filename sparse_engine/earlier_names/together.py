"""Now sparse_engine.models.grouped.members."""

from sparse_engine.models.grouped.members import *  # noqa: F403
