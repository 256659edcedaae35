"""Now sparse_engine.training.tuning."""

import sys
import types
from typing import Any

from sparse_engine.errors import warn_renamed
from sparse_engine.training.tuning import *  # noqa: F403
from sparse_engine.training.tuning import tune


class _Tune(types.ModuleType):
    """Once imported, this module is sparse_engine.tune, which is a function by that name too."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return tune(*arguments, **options)


sys.modules[__name__].__class__ = _Tune
warn_renamed(__name__, "sparse_engine.training.tuning")
