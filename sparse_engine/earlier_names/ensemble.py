"""Now sparse_engine.runs.ensemble."""

from sparse_engine.errors import warn_renamed
from sparse_engine.runs.ensemble import *  # noqa: F403

warn_renamed(__name__, "sparse_engine.runs.ensemble")
