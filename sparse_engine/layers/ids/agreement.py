"""Block ids where FSDP2 cuts up the values: all processes must have the same ones.

fully_shard sends nothing: it takes for the rows of a process what that process has there. So where
processes have drawn different blocks the values would be parts of different networks. That is
checked once.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sparse_engine.errors import InputError
from sparse_engine.layers.ids.block_check import block_signs
from sparse_engine.layers.ids.block_ids import BlockIds
from sparse_engine.shards import is_sharded


class AgreedBlockIds(BlockIds):
    """Block ids that are looked at when the module is given other values."""

    _is_agreed = False  # whether all processes that share the values were seen to have these ids

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "values" and "block_ids" in self._buffers:
            if self.block_ids.is_meta:
                self._move_ids()  # made without numbers, and now given some
            if is_sharded(value) and not self._is_agreed and not value.is_meta:
                self._check_same_blocks(value)
                self._is_agreed = True

    def _check_same_blocks(self, values: Tensor) -> None:
        """Raise InputError unless all processes that hold parts of the values have the same ids.

        Called in all of them: by fully_shard, or to_empty() after it. Waits for the device.
        """
        mesh = values.device_mesh  # type: ignore[attr-defined]
        signs = block_signs(self._layout.block_ids)
        ends = torch.cat([signs, -signs]).to(mesh.device_type)
        for group in mesh.get_all_groups():
            dist.all_reduce(ends, dist.ReduceOp.MAX, group=group)
        if (ends[: len(signs)] != -ends[len(signs) :]).any():
            raise InputError(
                f"the processes that share the values of a {type(self).__name__} have chosen "
                "different blocks: seed them alike before sparsify, or let all load one state "
                "dict, then call fully_shard"
            )
