"""Now sparse_engine.runs.exported."""

from sparse_engine.errors import warn_renamed
from sparse_engine.runs.exported import *  # noqa: F403

warn_renamed(__name__, "sparse_engine.runs.exported")
