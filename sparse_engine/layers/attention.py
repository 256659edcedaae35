"""nn.MultiheadAttention whose four projections are modules, so that each can be made sparse."""

import math
from collections.abc import Container, Iterator, MutableMapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_engine.layers.base import weight_parameter
from sparse_engine.layers.leaf import Leaf
from sparse_engine.layers.modules import SparseLinear
from sparse_kernels.operators.reference import scatter_blocks

INPUTS = ("q_proj", "k_proj", "v_proj")


class _Declined:
    """Stands for a packed weight where PyTorch looks for one to take a fast path with.

    nn.TransformerEncoder and its layers take none where an argument overrides torch functions.
    """

    @classmethod
    def __torch_function__(cls, *_: Any, **__: Any) -> Any:
        return NotImplemented


class ProjectedAttention(Leaf):
    """Multi-head attention (Vaswani et al. 2017) with the interface of nn.MultiheadAttention.

    nn.MultiheadAttention keeps the projections of query, key and value in one parameter and calls
    no module; here they are q_proj, k_proj, v_proj and out_proj, nn.Linear or SparseLinear. State
    dicts of nn.MultiheadAttention load.
    """

    q_proj: nn.Linear | SparseLinear
    k_proj: nn.Linear | SparseLinear
    v_proj: nn.Linear | SparseLinear
    out_proj: nn.Linear | SparseLinear

    # Read by nn.TransformerEncoder and nn.TransformerEncoderLayer.
    in_proj_weight = _Declined()
    in_proj_bias = None
    _qkv_same_embed_dim = False

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        """Take the sizes, the weights (copied) and the output projection of `attention`.

        Raises:
            ValueError: for what `why_whole` names.
        """
        super().__init__()
        if reason := why_whole(attention):
            raise ValueError(f"the projections of an attention with {reason} cannot be taken apart")
        self.embed_dim, self.num_heads = attention.embed_dim, attention.num_heads
        self.head_dim, self.kdim, self.vdim = attention.head_dim, attention.kdim, attention.vdim
        self.dropout, self.batch_first = attention.dropout, attention.batch_first
        self.is_packed = attention.in_proj_weight is not None
        weights = [attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight]
        if self.is_packed:
            weights = _thirds(attention.in_proj_weight)
        for name, weight, bias in zip(INPUTS, weights, _thirds(attention.in_proj_bias)):
            setattr(self, name, _linear(weight, bias))
        self.out_proj = attention.out_proj
        self.train(attention.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend, as nn.MultiheadAttention does.

        Args:
            query: [L, N, E], or [N, L, E] with batch_first, or [L, E].
            key, value: the same with S positions and widths kdim and vdim.
            key_padding_mask: [N, S]; True, or a number added to the scores, hides a position.
            need_weights: whether to return weights [N, L, S]; without, the fused kernel runs.
            attn_mask: [L, S] or [N * heads, L, S], as key_padding_mask.
            average_attn_weights: over heads; else the weights are [N, heads, L, S].
            is_causal: a hint that attn_mask is the causal one.

        Returns:
            Output of the query's shape, and the weights or None.

        Raises:
            ValueError: is_causal without attn_mask.
        """
        if is_causal and attn_mask is None:
            raise ValueError("is_causal is a hint on attn_mask: give the mask too")
        batched = query.ndim == 3
        projected = (self.q_proj(query), self.k_proj(key), self.v_proj(value))
        q, k, v = (self._split_heads(y, batched) for y in projected)
        if is_causal and key_padding_mask is None and not need_weights:
            mask = None
        else:
            mask, is_causal = self._merge_masks(attn_mask, key_padding_mask, q, k), False
        rate = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q @ k.mT / math.sqrt(self.head_dim)
            weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), rate)
            y = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            y = F.scaled_dot_product_attention(q, k, v, mask, rate, is_causal)
        y = y.transpose(1, 2).flatten(2)
        if not batched:
            return self.out_proj(y[0]), None if weights is None else weights[0]
        return self.out_proj(y if self.batch_first else y.transpose(0, 1)), weights

    def _split_heads(self, y: Tensor, batched: bool) -> Tensor:
        """Return [N, heads, L, E / heads] of a projection in the order of the input."""
        if not batched:
            y = y[None]
        elif not self.batch_first:
            y = y.transpose(0, 1)
        return y.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _merge_masks(
        self, attention: Tensor | None, padding: Tensor | None, q: Tensor, k: Tensor
    ) -> Tensor | None:
        """Return what is added to the scores, broadcast to [N, heads, L, S]; None for nothing."""
        if attention is not None and attention.ndim == 3 and len(attention) > 1:
            attention = attention.view(len(q), self.num_heads, *attention.shape[1:])
        if padding is not None:
            padding = padding.view(len(q), 1, 1, k.shape[2])
        parts = [_added(mask, q.dtype) for mask in (attention, padding) if mask is not None]
        return sum(parts[1:], parts[0]) if parts else None

    def to_dense(self) -> nn.MultiheadAttention:
        """Return an nn.MultiheadAttention with the same weights, zeros included."""
        dense = nn.MultiheadAttention(
            self.embed_dim,
            self.num_heads,
            self.dropout,
            self.q_proj.bias is not None,
            kdim=self.kdim,
            vdim=self.vdim,
            batch_first=self.batch_first,
            device="meta",
        )
        layers = [getattr(self, name) for name in INPUTS]
        trained = next(self.q_proj.parameters()).requires_grad
        state = {
            f"{name}.{kind}": getattr(getattr(self, name), kind)
            for name in INPUTS
            for kind in ("weight", "bias")
        }
        self.pack_(state)
        for name, value in state.items():
            kind = "bias" if name.endswith("bias") else "weight"
            own = [layer for layer, part in zip(layers, INPUTS) if name[:2] in ("in", part[:2])]
            parameter = nn.Parameter(value.detach().clone(), requires_grad=trained)
            gradients = [_gradient(layer, kind) for layer in own]
            if not any(gradient is None for gradient in gradients):
                parameter.grad = torch.cat(gradients)
            sources = [weight_parameter(x) if kind == "weight" else x.bias for x in own]
            vars(parameter).update(common_attributes(sources))
            setattr(dense, name, parameter)
        out = self.out_proj
        dense.out_proj = out.to_dense() if isinstance(out, SparseLinear) else out
        return dense.train(self.training)

    def pack_(self, state: MutableMapping[str, Any], prefix: str = "") -> None:
        """Put nn.MultiheadAttention's names in the place of ours in a dense state dict."""
        weights = [state.pop(f"{prefix}{name}.weight") for name in INPUTS]
        biases = [state.pop(f"{prefix}{name}.bias", None) for name in INPUTS]
        if self.is_packed:
            state[f"{prefix}in_proj_weight"] = torch.cat(weights)
        else:
            state.update({f"{prefix}{n}_weight": w for n, w in zip(INPUTS, weights)})
        if biases[0] is not None:
            state[f"{prefix}in_proj_bias"] = torch.cat(biases)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *others: Any, **options: Any
    ) -> None:
        # What is changed here is what the projections are then loaded from.
        for kind in ("weight", "bias"):
            packed = state_dict.pop(f"{prefix}in_proj_{kind}", None)
            parts = [state_dict.pop(f"{prefix}{name}_{kind}", None) for name in INPUTS]
            parts = parts if packed is None else packed.chunk(3)
            found = {f"{prefix}{n}.{kind}": p for n, p in zip(INPUTS, parts) if p is not None}
            state_dict.update(found)
        super()._load_from_state_dict(state_dict, prefix, *others, **options)


def why_whole(attention: nn.MultiheadAttention, shared: Container[int] = frozenset()) -> str | None:
    """Return why an attention's projections cannot be taken apart; None if they can.

    shared: ids of parameters that other modules hold too.
    """
    if type(attention) is not nn.MultiheadAttention:
        return f"{type(attention).__name__} is a subclass"
    if attention.bias_k is not None or attention.bias_v is not None:
        return "add_bias_kv"
    if attention.add_zero_attn:
        return "add_zero_attn"
    own = [p for name, p in attention.named_parameters(recurse=False)]
    if {id(p) for _, p in input_weights(attention)} - {id(p) for p in own}:
        return "weight is no parameter"
    if any(id(p) in shared for p in own):
        return "weight shared with another module"
    return None


def input_weights(attention: nn.MultiheadAttention) -> Iterator[tuple[str, Tensor]]:
    """Yield name and value of the weights of query, key and value: one tensor, or three."""
    for name in ("in_proj_weight", *(f"{projection}_weight" for projection in INPUTS)):
        weight = getattr(attention, name)
        if weight is not None:
            yield name, weight


def _thirds(packed: nn.Parameter | None) -> list[nn.Parameter | None]:
    if packed is None:
        return [None, None, None]
    gradients = [None, None, None] if packed.grad is None else packed.grad.chunk(3)
    return [_part(packed, p, g) for p, g in zip(packed.detach().chunk(3), gradients)]


def _part(whole: nn.Parameter, part: Tensor, gradient: Tensor | None) -> nn.Parameter:
    """Return a parameter of a part of another, with its part of the gradient and its attributes."""
    parameter = nn.Parameter(part.detach().clone(), whole.requires_grad)
    parameter.grad = None if gradient is None else gradient.clone()
    vars(parameter).update(common_attributes([whole]))
    return parameter


def common_attributes(parameters: Sequence[Tensor]) -> dict[str, Any]:
    """Return the attributes that were set on all of some parameters alike; no tensors."""
    others = [vars(parameter) for parameter in parameters[1:]]
    return {
        name: value
        for name, value in vars(parameters[0]).items()
        if not isinstance(value, Tensor) and all(o.get(name) is value for o in others)
    }


def _linear(weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, "meta")
    linear.weight = _part(weight, weight, weight.grad)
    if bias is not None:
        linear.bias = _part(bias, bias, bias.grad)
    return linear


def _gradient(layer: nn.Linear | SparseLinear, kind: str) -> Tensor | None:
    """Return the gradient of a layer's weight, dense, or of its bias."""
    if not isinstance(layer, SparseLinear) or kind == "bias":
        return getattr(layer, kind).grad
    values = layer.values
    if values.grad is None or values.is_meta:
        return None
    layout = layer.layout
    return scatter_blocks(values.grad, layout.tensors(), layout.sizes()).reshape(layout.shape[:2])


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask as numbers to add to scores of a data type."""
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -math.inf)
    return mask.to(dtype)
