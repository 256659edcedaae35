"""DynamicSparsityCallback for the Trainer of Hugging Face's transformers."""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from sparse_engine.errors import InputError
from sparse_engine.integrations.trainer_topology import TrainerTopology, framework
from sparse_engine.sparsity.sharded import refuse_tools

if TYPE_CHECKING:
    ExportableState = TrainerCallback = Any
else:
    _callback = framework("transformers.trainer_callback")
    ExportableState, TrainerCallback = _callback.ExportableState, _callback.TrainerCallback

Self = TypeVar("Self", bound="DynamicSparsityCallback")


class DynamicSparsityCallback(TrainerTopology, TrainerCallback, ExportableState):
    """DynamicSparsity in a Trainer of transformers.

        trainer = Trainer(model, arguments, train_dataset=data)
        DynamicSparsityCallback(rule="rigl", interval=100).add_to(trainer)

    Call sparsify before you make the Trainer. Its state is in the file trainer_state.json of each
    checkpoint, and a resumed run takes it from there, whatever
    `restore_callback_states_from_checkpoint` says. What the last update did (`sparsity/density`,
    `sparsity/exchanged`, `sparsity/survival`: see BlockMoves) is added to what the Trainer logs.
    """

    _metrics: Mapping[str, float] = {}
    saved: str | None = None
    """The state that a Trainer has loaded, where it makes callbacks anew."""

    def add_to(self: Self, trainer: Any) -> Self:
        """Join a Trainer, as the first of its callbacks: others report what it adds to logs.

        Given as one of `callbacks=[...]` it does the same, but TensorBoard and other places that
        `report_to` names miss its metrics.
        """
        trainer.callback_handler.callbacks.insert(0, self)
        self.on_init_end(trainer.args, trainer.state, trainer.control)
        return self

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Refuse DeepSpeed before it changes the model."""
        if args.deepspeed:
            refuse_tools(type("DeepSpeedEngine", (), {}))

    def on_train_begin(
        self,
        args: Any,
        state: Any,
        control: Any,
        model: nn.Module | None = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Begin: model, optimizer and checkpoint are there, and the number of steps is known."""
        assert model is not None
        self.on_init_end(args, state, control)
        name = type(self).__name__
        found = state.stateful_callbacks.get(name) if state.global_step else None
        if isinstance(found, list):
            raise InputError(f"a Trainer takes one {name}, and its checkpoint is of several")
        text = found["attributes"]["saved"] if found else None
        self.keep(_unpacked(text) if text else None)
        self.begin(model, optimizer, state.max_steps or None, state.global_step)
        # Of a checkpoint from before there was a callback, in which Trainer looks for its name.
        state.stateful_callbacks.setdefault(name, {})
        self._metrics = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Update the topology if it is time; the Trainer calls this once for each step."""
        self._metrics = self.after_step() or self._metrics

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Add what the last update did to what is logged of training."""
        if logs is not None and "loss" in logs:
            logs.update(self._metrics)
            state.log_history[-1].update(self._metrics)

    def state(self) -> dict[str, Any]:
        """Return what trainer_state.json holds of this callback."""
        given, state = dict(self.arguments), self.run_state()
        # What no file can hold is text, which is refused where a callback is made of it.
        given["averages"] = "not saved" if given["averages"] else []
        if given["process_group"] not in (None, False):
            given["process_group"] = "not saved"
        return {"args": given, "attributes": {"saved": _packed(state) if state else None}}


def _packed(state: Mapping[str, Any]) -> str:
    """Return a state as text for a JSON file."""
    file = io.BytesIO()
    torch.save(state, file)
    return base64.b64encode(zlib.compress(file.getvalue(), 1)).decode()


def _unpacked(text: str) -> dict[str, Any]:
    try:
        data = zlib.decompress(base64.b64decode(text))
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception:
        raise InputError(
            "the checkpoint's trainer_state.json holds no state of DynamicSparsityCallback that "
            "can be read: resume from another checkpoint"
        ) from None
