"""Where a layer's blocks lie, as a buffer that other people's code may copy, send or average.

Tools that see parameters and buffers only (averages, DistributedDataParallel, checkpoints) move
`values` from one network to another; what these mean lies in `block_ids`. The index lists that
kernels follow are made from a copy of the ids, and made anew where the buffer has other numbers.
Ids that other code has written are checked first: no kernel sees one that is not.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.errors import InputError
from sparse_engine.layers.ids import block_check, replicas
from sparse_engine.layers.ids.block_check import AVERAGED, are_averaged, are_between, block_signs
from sparse_engine.layers.ids.copies import Copied, version
from sparse_engine.layers.ids.same_numbers import same_numbers
from sparse_engine.layers.ids.stacked import NO_BUFFERS, as_of_one
from sparse_engine.layers.unrecorded import is_recorded, unrecorded
from sparse_kernels import BlockLayout

REMEDY = (
    "if this network is an average, name it in DynamicSparsity(averages=[...]); if they were never "
    "written, as from a checkpoint without block_ids, call the layer's reset_parameters()"
)
CHANGED = "other code has written block_ids: call sparse_engine.refresh(model)"


class BlockIds(Copied):
    """A module with a layout, which follows its buffer `block_ids` [Z], int32.

    A second buffer, `block_check` [32], is made of the ids: see block_check.py.
    On a CPU every look at `layout` compares the buffer's numbers with those that the lists were
    made from. On a GPU that would be a wait in every forward, so there it compares the tensor and
    its version counter: code that leaves no trace there (a write through `.data`) must call
    `sparse_engine.refresh(model)`. Compiled code looks when it is compiled; on a CPU it stops with
    a RuntimeError where ids have changed since; on a GPU, and in CUDA graphs, it does not look.
    """

    block_ids: Tensor
    block_check: Tensor
    _layout: BlockLayout
    # The buffer last looked at, and the versions that it, the lists' ids and the signs had then.
    _known: tuple[Tensor, int, int, int] | None = None
    _leader: weakref.ref[BlockIds] | None = None  # of an average: the layer whose ids it has
    is_updated = False
    """Whether a rule of topology updates changes this layer's blocks."""

    def _hold(self, layout: BlockLayout, device: torch.device) -> None:
        """Take a layout; the buffer is on a device, which may be meta, where it has no numbers."""
        self._layout = layout
        self.register_buffer("block_ids", layout.block_ids.to(device, copy=True))
        self.register_buffer("block_check", block_signs(layout.block_ids).to(device))

    @property
    def layout(self) -> BlockLayout:
        """Which block lies in which slot: the blocks that the buffer says.

        Raises:
            InputError: other code has written ids that are no layout.
        """
        is_exported = self._look()
        if torch.compiler.is_dynamo_compiling() and not is_exported:
            self._assert_known()
        return self._layout

    @layout.setter
    def layout(self, layout: BlockLayout) -> None:
        self._layout = layout
        self._write_ids()

    def change_blocks_(self, block_ids: Tensor, active: int | None = None) -> None:
        """Give the slots other blocks, in place and without a wait; see BlockLayout.update_."""
        self.layout.update_(block_ids, active)
        self._write_ids()

    def follow_blocks_of(self, leader: BlockIds) -> None:
        """From now on have the ids of another layer, whatever is written into the buffer."""
        self._leader = weakref.ref(leader)

    @property
    def _has_leader(self) -> bool:
        return self._leader is not None and self._leader() is not None

    def refresh(self) -> None:
        """Make the lists anew from the buffer's numbers; waits for a GPU.

        Raises:
            InputError: they are no layout.
        """
        if not self.block_ids.is_meta:
            self._take(self.block_ids)

    def _look(self) -> bool:
        """Follow the buffer, once where a compiler traces; return whether that is to export."""
        if is_recorded():
            with unrecorded(), as_of_one(self):
                self._follow()
        else:
            self._follow()
        return torch.compiler.is_exporting()  # to traced code torch 2.11 says yes always

    # As torch.compiler.assume_constant_result says it, which would import the compiler.
    _look._dynamo_marked_constant = True

    def _assert_known(self) -> None:
        """Let compiled code stop where ids have changed since; see the class on GPUs."""
        ids = self._buffers["block_ids"]
        if ids.device.type == "cpu":
            same = (ids == self._layout.block_ids).all()
            torch._assert_async(same, CHANGED)

    def _follow(self) -> None:
        ids = self._buffers["block_ids"]
        # Subclasses of Tensor (fake ones, traced ones) have no numbers to look at.
        if type(ids) is not Tensor:
            return
        if (parallel := replicas.newly_met()) is not None:
            self._meet(parallel)
        if self._known is not None and version(self._layout.block_ids) != self._known[2]:
            self._write_ids()  # somebody has called layout.update_
        if self._is_known(ids):
            if self._known is None:
                self._note_ids()
            elif not _would_wait(ids) and self._are_signs_written():
                self._check_signs()
                self._note_ids()
        elif ids.is_meta:
            raise InputError(NO_BUFFERS.format(kind=type(self).__name__))
        elif same_numbers(ids, self._layout.block_ids):
            self._note_ids()
        elif self._has_leader or self._is_rounded(ids):
            self._write_ids()
        else:
            self._check_is_no_average(ids)
            if self._are_signs_written():
                self._check_signs()
            self._take(ids)

    def _are_signs_written(self) -> bool:
        """Return whether somebody has written to `block_check` since it was last looked at."""
        signs = self._buffers["block_check"]
        is_new = self._known is None or version(signs) != self._known[3]
        return is_new and type(signs) is Tensor and not signs.is_meta

    def _check_signs(self) -> None:
        """Raise InputError if values are averaged over different blocks; a leader's stay right.

        Signs of other ids may be there before these, where code copies tensor by tensor.
        """
        if self._has_leader:
            self._write_ids()
        elif are_averaged(self._buffers["block_check"]):
            raise InputError(f"other code has written to a {type(self).__name__}: {AVERAGED}")

    def _is_known(self, ids: Tensor) -> bool:
        """Return whether the numbers are known to be those of the lists, without a wait."""
        if ids.is_meta:
            return self._parameters["values"].is_meta
        if not _would_wait(ids):
            return same_numbers(ids, self._layout.block_ids)
        if self._known is None or self._known[0] is not ids:
            return False
        if version(ids) == self._known[1] + 1 and replicas.is_sent():
            # Up to torch 2.13 that is what sending leaves: no reason to wait, unless ids differ.
            same = (ids == self._layout.block_ids).all()
            torch._assert_async(same, "block_ids of processes differ, or other code wrote them")
            self._note_ids()
        return version(ids) == self._known[1]

    @staticmethod
    def _meet(parallel: nn.Module) -> None:
        """Follow what a DistributedDataParallel has sent before its first forward."""
        modules = parallel.module.modules()
        layers = [m for m in modules if isinstance(m, BlockIds) and not m.block_ids.is_meta]
        replicas.send_ids_([layer.block_ids for layer in layers], parallel)
        for layer in layers:
            if not same_numbers(layer.block_ids, layer._layout.block_ids):
                layer._take(layer.block_ids)

    def _take(self, ids: Tensor) -> None:
        """Make the lists from ids that other code has written."""
        try:
            active = self._layout.validate(ids)
        except ValueError as error:
            raise InputError(
                f"other code has written block_ids of a {type(self).__name__} that are no layout "
                f"({error}): {REMEDY}"
            ) from None
        self._layout.update_(ids.to(self._layout.device), active)
        self._write_ids()

    def _is_rounded(self, ids: Tensor) -> bool:
        """Return whether ids are means of equal ids: a copy whose blocks have not changed since.

        A mean of equal integers, cut to an integer, may be one less.
        """
        source = self._source()
        if source is None or block_check.are_signs_of(self._buffers["block_check"], ids):
            return False
        return source.equal(self._layout.block_ids) and are_between(ids, source, source)

    def _check_is_no_average(self, ids: Tensor) -> None:
        """Raise InputError for means of a copy's ids and of those of the layer it is made from."""
        source, own = self._source(), self._layout.block_ids
        if source is None or block_check.are_signs_of(self._buffers["block_check"], ids):
            return
        if not ids.equal(source) and are_between(ids, source, own):
            raise InputError(
                f"the block_ids of a copy of a {type(self).__name__} are means of block ids, which "
                f"say nothing: {REMEDY}"
            )

    def _source(self) -> Tensor | None:
        """Return the present ids of the layer that this is a copy of, if they can be compared."""
        origin = None if self.origin is None else self.origin()
        own = self._layout.block_ids
        found = own if origin is None else origin._buffers["block_ids"]
        fits = (found.shape, found.device) == (own.shape, own.device)
        return found if origin is not None and fits else None

    def _write_ids(self) -> None:
        """Write the lists' ids into the buffer: into the same tensor, if it can hold them."""
        ids, own = self._layout.block_ids, self._buffers["block_ids"]
        if (own.shape, own.dtype, own.device) != (ids.shape, ids.dtype, ids.device):
            self._buffers["block_ids"] = ids.clone()
        elif _would_wait(ids) or type(ids) is not Tensor or not torch.equal(own, ids):
            with torch.no_grad():
                own.copy_(ids)
        self._write_signs()
        self._note_ids()

    def _write_signs(self) -> None:
        signs, own = block_signs(self._layout.block_ids), self._buffers["block_check"]
        if (own.shape, own.dtype, own.device) != (signs.shape, signs.dtype, signs.device):
            self._buffers["block_check"] = signs
        else:
            with torch.no_grad():
                own.copy_(signs)

    def _note_ids(self) -> None:
        ids, signs = self._buffers["block_ids"], self._buffers["block_check"]
        self._known = (ids, version(ids), version(self._layout.block_ids), version(signs))

    def _apply(self, fn: Any, recurse: bool = True) -> BlockIds:
        if not torch.compiler.is_dynamo_compiling():
            self._look()  # before the numbers move, and perhaps get lost: to_empty, meta
        super()._apply(fn, recurse)
        self._move_ids()
        return self

    def _move_ids(self) -> None:
        """Follow the values to their device, with the numbers that the lists have."""
        device = self._parameters["values"].device
        # On the meta device the lists would lose their numbers, which to_empty() cannot restore.
        if device.type == "meta":
            for name in ("block_ids", "block_check"):
                self._buffers[name] = self._buffers[name].to(device)
        else:
            self._layout = self._layout.to(device)
            self._write_ids()

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        if not torch.compiler.is_dynamo_compiling():
            self._look()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def __getstate__(self) -> dict[str, Any]:
        self._follow()
        apart = ("_known", "_leader", "is_updated")
        return {k: v for k, v in super().__getstate__().items() if k not in apart}

    def __setstate__(self, state: dict[str, Any]) -> None:
        layout = state.pop("layout", None)  # as pickled before ids were a buffer
        super().__setstate__(state)
        if layout is not None:
            self._hold(layout, self._parameters["values"].device)


def refresh(model: nn.Module) -> None:
    """Look at the `block_ids` of every sparse layer of a model, and make its lists from them.

    For code that writes and leaves no trace: on a GPU through `.data`, or into a model that is
    compiled or captured. Waits for the device. InputError for ids that are no layout.
    """
    for module in model.modules():
        if isinstance(module, BlockIds):
            module.refresh()


def _would_wait(ids: Tensor) -> bool:
    """Return whether a look at numbers would wait for the device."""
    return ids.is_cuda
