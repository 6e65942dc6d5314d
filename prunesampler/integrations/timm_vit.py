"""Fewer tokens and fewer attention connections while one of timm's vision transformers trains.

The token and attention levels of "Peeling the Onion" (Kong et al., AAAI 2023). Its example level, which rows to train
on, is :func:`prunesampler.attach`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunesampler.errors import ArgumentError, StateError, UnsupportedError, check_bool, check_number, missing

try:
    import timm
    from timm.models.vision_transformer import Attention, Block, VisionTransformer
except ImportError as error:
    raise missing("timm", error) from error

__all__ = ["Sparsity", "sparsify"]

_VERSION = 1
_MASKS = "attn_mask" in inspect.signature(Block.forward).parameters  # since timm 1.0.16


def sparsify(
    model: nn.Module,
    tokens: float = 0.9,
    attention: float = 0.1,
    *,
    blocks: Sequence[int] = (3, 6, 9),
    dense_epochs: float = 10,
    cosine_epochs: float = 100,
    in_eval: bool = False,
) -> Sparsity:
    """Have a vision transformer go on with its most attended tokens, and each token with its most attended keys.

    At each of ``blocks``, after its attention and before its MLP, the patches that the class token attends to most
    stay: ceil(n · ratio) of n, so three blocks at 0.9 leave about 0.73 of them. From there to the next of ``blocks``
    each patch attends to the ceil(n · ratio) patches that it attended to most, the same in all heads, and to the class
    and register tokens. These are never dropped and attend to everything. Attention is the mean over heads.

    The model is changed in place: same parameters, same state dict, same outputs, an optimizer or a wrapper that has
    it already goes on. Copies of it, such as an exponential moving average, follow the same handle.

    Args:
        model: a ``timm.models.vision_transformer.VisionTransformer`` with a class token, which its head reads
            (``global_pool="token"``). Not a wrapper around one: of DDP, give ``model.module``.
        tokens: the ratio in (0, 1] of patches that stay at each of ``blocks``, once the schedule has come to its end.
        attention: likewise the ratio of keys that a patch attends to. This saves no work, see docs/vit.md. 1 leaves
            attention as it is; below 1 timm >= 1.0.16 is needed.
        blocks: where tokens and keys are selected, counted from 0.
        dense_epochs: both ratios are 1 for so long, and then
        cosine_epochs: fall along half a cosine for so long.
        in_eval: whether to select in eval mode too. By default evaluation has all tokens and keys.

    Returns:
        The handle, at epoch 0. Call :meth:`Sparsity.step` after each epoch: without it both ratios remain 1.

    Raises:
        UnsupportedError: the model is of another class or scripted, has no class token, pools its tokens, or has
            blocks or attention of another kind; or timm is too old for ``attention``.
        StateError: the model is sparse already.
        ArgumentError: an argument breaks its rule.

    >>> from timm.models.vision_transformer import VisionTransformer
    >>> vit = VisionTransformer(img_size=32, patch_size=4, embed_dim=24, num_heads=2, num_classes=10)
    >>> sparsity = sparsify(vit, tokens=0.5, attention=0.25, dense_epochs=0, cosine_epochs=2)
    >>> for epoch in range(3):
    ...     print(sparsity, vit.forward_features(torch.zeros(2, 3, 32, 32)).shape[1])
    ...     sparsity.step()
    Sparsity(epoch=0, tokens=1, attention=1) 65
    Sparsity(epoch=1, tokens=0.75, attention=0.625) 28
    Sparsity(epoch=2, tokens=0.5, attention=0.25) 9
    >>> sparsity.remove()
    """
    schedule = _Schedule(
        _ratio("tokens", tokens),
        _ratio("attention", attention),
        check_number("dense_epochs", dense_epochs, 0),
        check_number("cosine_epochs", cosine_epochs, 0),
        check_bool("in_eval", in_eval),
    )
    vit = _checked(model)
    chosen = _places(blocks, len(vit.blocks))
    if schedule.attention_goal < 1 and not _MASKS:
        raise UnsupportedError(
            f"attention={attention}: the attention of timm {timm.__version__} takes no mask; install timm>=1.0.16, or "
            "give attention=1"
        )
    return Sparsity(vit, schedule, chosen)


class Sparsity:
    """What :func:`sparsify` has done to a model, and at which epoch it is.

    Attributes:
        blocks: where tokens and keys are selected, ascending.
    """

    def __init__(self, model: VisionTransformer, schedule: _Schedule, blocks: tuple[int, ...]) -> None:
        self.blocks = blocks
        self._model, self._schedule = model, schedule
        self._hooks: list[Any] = []
        model.__class__ = _SparseVisionTransformer
        model._schedule = schedule
        for place, block in enumerate(model.blocks):
            block.__class__ = _SparseBlock
            block._schedule, block._prefix = schedule, model.num_prefix_tokens
            block._selects, block._is_masked = place in blocks, place > blocks[0]
            if place in blocks:
                block._queries, block._keys = _Kept(), _Kept()
                self._hooks.append(block.attn.q_norm.register_forward_hook(block._queries))
                self._hooks.append(block.attn.k_norm.register_forward_hook(block._keys))

    @property
    def epoch(self) -> float:
        """Epochs trained so far."""
        return self._schedule.epoch

    @property
    def tokens(self) -> float:
        """The ratio of patches that stay at each of ``blocks``, now."""
        return self._schedule.tokens

    @property
    def attention(self) -> float:
        """The ratio of keys that a patch attends to, now."""
        return self._schedule.attention

    def set_epoch(self, epoch: float) -> None:
        """Take both ratios to an epoch >= 0. As published, once a step: ``set_epoch(epoch + step / len(loader))``."""
        self._schedule.go_to(check_number("epoch", epoch, 0))

    def step(self) -> None:
        """An epoch is over."""
        self._schedule.go_to(self.epoch + 1)

    def remove(self) -> None:
        """Make the model what it was, for good; copies of it too have all tokens and keys from now on."""
        self._schedule.removed = True
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        # FSDP puts a class of its own over ours: that one stays, and calls a block that selects nothing any more.
        if type(self._model) is _SparseVisionTransformer:
            self._model.__class__ = VisionTransformer
            del self._model._schedule
        for block in self._model.blocks:
            if type(block) is _SparseBlock:
                block.__class__ = Block
                for name in ("_schedule", "_prefix", "_selects", "_is_masked", "_queries", "_keys"):
                    block.__dict__.pop(name, None)

    def state_dict(self) -> dict[str, Any]:
        """The epoch, and the options that it must be loaded with: plain numbers. The weights are in the model's own."""
        return {"version": _VERSION, "epoch": self.epoch, **self._options()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on at the epoch of the state.

        Raises:
            StateError: the state is of other options or another version, damaged, or not a state of this class. Nothing
                has changed.
        """
        own = self.state_dict()
        if not isinstance(state, Mapping) or state.keys() != own.keys():
            found = sorted(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
            raise StateError(f"expected a state of sparsify, which holds {sorted(own)}; got {found}")
        if state["version"] != _VERSION:
            raise StateError(
                f"expected a state of version {_VERSION}; got version {state['version']!r}: update prunesampler"
            )
        pairs = [
            f"{name} {state[name]!r} in the state and {value!r} here"
            for name, value in self._options().items()
            if state[name] != value
        ]
        if pairs:
            raise StateError(f"the state is of other options: {', '.join(pairs)}; give sparsify those of the state")
        try:
            self.set_epoch(state["epoch"])
        except ArgumentError as error:
            raise StateError(f"the state is damaged: {error}") from error

    def _options(self) -> dict[str, Any]:
        schedule = self._schedule
        return {
            "tokens": schedule.tokens_goal,
            "attention": schedule.attention_goal,
            "blocks": list(self.blocks),
            "dense_epochs": schedule.dense_epochs,
            "cosine_epochs": schedule.cosine_epochs,
        }

    def __repr__(self) -> str:
        removed = ", removed" if self._schedule.removed else ""
        return f"Sparsity(epoch={self.epoch:g}, tokens={self.tokens:g}, attention={self.attention:g}{removed})"


class _Schedule:
    """The ratios of an epoch. All blocks of a model and of its copies share one."""

    def __init__(self, tokens: float, attention: float, dense: float, cosine: float, in_eval: bool) -> None:
        self.tokens_goal, self.attention_goal = tokens, attention
        self.dense_epochs, self.cosine_epochs = dense, cosine
        self.in_eval, self.removed = in_eval, False
        self.go_to(0.0)

    def go_to(self, epoch: float) -> None:
        self.epoch = epoch
        self.tokens, self.attention = self._ratio(self.tokens_goal), self._ratio(self.attention_goal)

    def _ratio(self, goal: float) -> float:
        since = self.epoch - self.dense_epochs
        if since >= self.cosine_epochs:
            return goal
        if since <= 0:
            return 1.0
        return goal + (1 - goal) * (1 + math.cos(math.pi * since / self.cosine_epochs)) / 2

    def selects(self, training: bool) -> bool:
        return not self.removed and (training or self.in_eval) and min(self.tokens, self.attention) < 1

    def __deepcopy__(self, _: dict[int, Any]) -> _Schedule:
        return self


class _SparseVisionTransformer(VisionTransformer):  # type: ignore[misc]  # untyped
    """Refuses what needs all tokens in their places."""

    _schedule: _Schedule

    def forward_intermediates(self, *args: Any, **kwargs: Any) -> Any:
        if self._schedule.selects(self.training):
            raise UnsupportedError(
                "intermediate features have a place for every patch, and some patches are left out; call it in eval "
                "mode (without in_eval=True), or after remove()"
            )
        return super().forward_intermediates(*args, **kwargs)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        if global_pool not in (None, "token") and not self._schedule.removed:
            raise UnsupportedError(
                f"global_pool={global_pool!r} would pool over the tokens that are left; call remove() first"
            )
        super().reset_classifier(num_classes, global_pool)


class _SparseBlock(Block):  # type: ignore[misc]  # untyped
    """A block that may drop tokens between its attention and its MLP, and attends where it is told to.

    The mask goes from block to block as an attribute of the tokens that it is for. Kept anywhere else, activation
    checkpointing would recompute one forward with the mask of another.
    """

    _schedule: _Schedule
    _prefix: int
    _selects: bool
    _is_masked: bool
    _queries: _Kept
    _keys: _Kept

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        schedule = self._schedule
        if not schedule.selects(self.training):
            return super().forward(x, *args, **kwargs)  # type: ignore[no-any-return]
        if args or any(value is not None and value is not False for value in kwargs.values()):
            raise UnsupportedError(
                "attn_mask and is_causal are made for all tokens, and some are left out; give none, or call remove()"
            )
        mask = getattr(x, "_attention_mask", None)
        if mask is None and self._is_masked and schedule.attention < 1:
            raise UnsupportedError(
                "the attention mask was lost between two blocks: reentrant activation checkpointing, FSDP around "
                "single blocks and hooks that replace a block's output do that; give sparsify attention=1, or "
                "checkpoint after timm.layers.set_reentrant_ckpt(False)"
            )
        masked = {} if mask is None else {"attn_mask": mask}
        if self._selects:
            with self._queries as queries, self._keys as keys:
                attended = self.attn(self.norm1(x), **masked)
                weights = self._weights(queries.value, keys.value, all_rows=schedule.attention < 1)
            x = x + self.drop_path1(self.ls1(attended))
            rows = _top_tokens(weights[:, 0, self._prefix :], schedule.tokens)
            patches = x[:, self._prefix :].gather(1, rows[:, :, None].expand(-1, -1, x.shape[2]))
            x = torch.cat([x[:, : self._prefix], patches], dim=1)
            x = x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
            if schedule.attention < 1:
                mask = _key_mask(weights, rows, self._prefix, schedule.attention).to(keys.dtype)
        else:
            x = super().forward(x, **masked)
        if mask is not None:
            x._attention_mask = mask  # type: ignore[attr-defined]
        return x

    @torch.no_grad()
    def _weights(self, queries: Tensor, keys: Tensor, all_rows: bool) -> Tensor:
        """(B, rows, N): how the tokens attend to one another where nothing is masked; or the class token alone."""
        queries = queries if all_rows else queries[:, :, :1]
        scores = queries @ keys.transpose(-2, -1) * self.attn.scale
        weights: Tensor = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))
        return weights.mean(1)


class _Kept:
    """A forward hook that keeps, within its ``with``, what a module returns: the queries or keys of timm's attention.

    So attention itself stays timm's own, fused or not, with whatever it does beside.
    """

    def __init__(self) -> None:
        self.value: Any = None
        self.dtype: torch.dtype = torch.float32
        self._open = False

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        if self._open:
            self.value, self.dtype = output.detach(), output.dtype

    def __enter__(self) -> _Kept:
        self._open = True
        return self

    def __exit__(self, *_: object) -> None:
        self._open, self.value = False, None


def _top_tokens(weights: Tensor, ratio: float) -> Tensor:
    """Of (B, n) weights the columns of the highest, (B, ceil(n · ratio)), ascending."""
    return weights.topk(_count(weights.shape[1], ratio), dim=1).indices.sort(dim=1).values


def _key_mask(weights: Tensor, rows: Tensor, prefix: int, ratio: float) -> Tensor:
    """What timm's attention adds to the scores of the tokens that stay, (B, 1, N, N): 0 or minus infinity."""
    among = weights[:, prefix:, prefix:]
    among = among.gather(1, rows[:, :, None].expand(-1, -1, among.shape[2]))
    among = among.gather(2, rows[:, None, :].expand(-1, rows.shape[1], -1))
    top = among.topk(_count(rows.shape[1], ratio), dim=2).indices
    allowed = torch.full_like(among, -math.inf).scatter_(2, top, 0.0)
    return nn.functional.pad(allowed, (prefix, 0, prefix, 0))[:, None]


def _count(of: int, ratio: float) -> int:
    """Rounded up; but 30 · 0.1 is 3, not the 3.0000000000000004 that floats make of it."""
    return max(1, math.ceil(of * ratio - 1e-9 * of))


# -- what can be made sparse -------------------------------------------------------------------------------------


def _ratio(name: str, value: float) -> float:
    return check_number(name, value, 0, 1, above=True)


def _places(blocks: Sequence[int], depth: int) -> tuple[int, ...]:
    rule = f"must be different block numbers in [0, {depth - 1}], ascending, as the model has {depth} blocks"
    places = list(blocks) if isinstance(blocks, Sequence) and not isinstance(blocks, str) else []
    ints = all(isinstance(place, int) and not isinstance(place, bool) and 0 <= place < depth for place in places)
    if not places or not ints or places != sorted(set(places)):
        raise ArgumentError("blocks", rule, blocks)
    return tuple(places)


def _checked(model: Any) -> VisionTransformer:
    kind = type(model).__name__
    if isinstance(model, torch.jit.ScriptModule):
        raise UnsupportedError(f"a {kind} has its forward compiled in; sparsify the model before torch.jit")
    if isinstance(model, _SparseVisionTransformer):
        raise StateError("the model is sparse already; call remove() of its handle first")
    for name in ("module", "_orig_mod"):
        if isinstance(getattr(model, name, None), VisionTransformer):
            raise UnsupportedError(f"a {kind} is a wrapper around the VisionTransformer; give model.{name}")
    if type(model) is not VisionTransformer:
        raise UnsupportedError(
            f"expected a timm.models.vision_transformer.VisionTransformer; got a {type(model).__module__}.{kind}, "
            "whose forward may need every token (before fully_shard it is the former)"
        )
    if model.cls_token is None:
        raise UnsupportedError("the model has no class token, whose attention says which tokens stay")
    if model.global_pool != "token":
        raise UnsupportedError(
            f"global_pool={model.global_pool!r}: the head would pool over the tokens that are left; make the model "
            'with global_pool="token"'
        )
    for place, block in enumerate(model.blocks):
        if type(block) is not Block:
            raise UnsupportedError(f"expected timm's Block as block {place}; got a {type(block).__name__}")
        if type(block.attn).forward is not Attention.forward:
            raise UnsupportedError(f"expected timm's Attention in block {place}; got a {type(block.attn).__name__}")
    return model
