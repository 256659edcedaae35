"""Now sparse_engine.models.grouped.members."""

from sparse_engine.errors import warn_renamed
from sparse_engine.models.grouped.members import *  # noqa: F403
from sparse_engine.models.grouped.members import GroupedMembers as Together  # noqa: F401

warn_renamed(__name__, "sparse_engine.models.grouped.members")
