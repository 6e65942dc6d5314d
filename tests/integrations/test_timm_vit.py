"""timm's vision transformers with fewer tokens and keys, beside an oracle that has all tokens and masks them."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import prunesampler as ps
from prunesampler.errors import ArgumentError, StateError, UnsupportedError

timm = pytest.importorskip("timm")
from timm.layers import set_reentrant_ckpt  # noqa: E402
from timm.models.deit import VisionTransformerDistilled  # noqa: E402
from timm.models.vision_transformer import Block, ResPostBlock, VisionTransformer  # noqa: E402

from prunesampler.integrations import timm_vit  # noqa: E402
from prunesampler.integrations.timm_vit import sparsify  # noqa: E402

BLOCKS = (1, 3, 4)
NOW: dict[str, Any] = {"blocks": BLOCKS, "dense_epochs": 0, "cosine_epochs": 0}


def tiny(fused: bool = True, **options: Any) -> VisionTransformer:
    """In double precision, with 16 patches and six blocks; its attention is far from uniform."""
    torch.manual_seed(0)
    given = {"img_size": 16, "patch_size": 4, "embed_dim": 12, "depth": 6, "num_heads": 3, "num_classes": 5}
    model = VisionTransformer(**{**given, **options}).double()
    for block in model.blocks:
        block.attn.fused_attn = fused
        nn.init.normal_(block.attn.qkv.weight, std=0.7)
    return model


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def gradients(model: nn.Module, loss: Tensor) -> list[Tensor]:
    model.zero_grad()
    loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


# -- the oracle --------------------------------------------------------------------------------------------------


def rounded_up(of: int, percent: int) -> int:
    return -(-of * percent // 100)


def best(values: Tensor, among: list[int], count: int) -> list[int]:
    return sorted(among, key=lambda place: -values[place].item())[:count]


def masked(model: VisionTransformer, x: Tensor, tokens: int, attention: int) -> Tensor:
    """The logits at ratios in percent. No token leaves: keys that are out, and queries' other keys, are masked."""
    x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(x))))
    batch, length, width = x.shape
    prefix = model.num_prefix_tokens
    stay = [list(range(prefix, length)) for _ in range(batch)]
    allowed = torch.ones(batch, length, length, dtype=torch.bool)
    for place, block in enumerate(model.blocks):
        attn = block.attn
        qkv = attn.qkv(block.norm1(x)).reshape(batch, length, 3, attn.num_heads, -1)
        q, k, v = attn.q_norm(qkv[:, :, 0]), attn.k_norm(qkv[:, :, 1]), qkv[:, :, 2]
        scores = torch.einsum("bihc,bjhc->bhij", q, k) / math.sqrt(q.shape[-1])
        there = torch.zeros(batch, length, dtype=torch.bool)
        there[:, :prefix] = True
        for row, kept in enumerate(stay):
            there[row, kept] = True
        unmasked = scores.masked_fill(~there[:, None, None], -torch.inf).softmax(-1).mean(1)
        weights = scores.masked_fill(~(allowed & there[:, None])[:, None], -torch.inf).softmax(-1)
        mixed = torch.einsum("bhij,bjhc->bihc", weights, v).reshape(batch, length, width)
        x = x + block.drop_path1(block.ls1(attn.proj(mixed)))
        if place in BLOCKS:
            allowed = torch.ones(batch, length, length, dtype=torch.bool)
            for row, kept in enumerate(stay):
                kept = stay[row] = best(unmasked[row, 0], kept, rounded_up(len(kept), tokens))
                for query in kept if attention < 100 else []:
                    allowed[row, query, prefix:] = False
                    allowed[row, query, best(unmasked[row, query], kept, rounded_up(len(kept), attention))] = True
        x = x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
    return model.head(model.norm(x)[:, 0])


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("ratios", [(90, 100), (50, 100), (90, 10), (60, 30), (100, 20), (1, 1)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reg_tokens": 2, "no_embed_class": True, "qk_norm": True},
        {"init_values": 0.3, "drop_path_rate": 0.5, "pre_norm": True, "img_size": (16, 12)},
    ],
)
def test_logits_and_gradients_are_those_of_masked_tokens(
    ratios: tuple[int, int], options: dict[str, Any], fused: bool
) -> None:
    model = tiny(fused, **options)
    inputs = images()[..., : options.get("img_size", (16, 16))[1]]
    torch.manual_seed(3)
    wanted = masked(model, inputs, *ratios)
    wanted_gradients = gradients(model, wanted.square().sum())
    sparsify(model, ratios[0] / 100, ratios[1] / 100, **NOW)
    torch.manual_seed(3)  # of the paths that are dropped
    found = model(inputs)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    for got, expected in zip(gradients(model, found.square().sum()), wanted_gradients, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-9)


def test_the_oracle_tells_ratios_apart() -> None:
    model, x = tiny(), images()
    found = [masked(model, x, *ratios) for ratios in ((100, 100), (60, 100), (60, 30), (100, 30))]
    assert all((a - b).abs().max() > 1e-3 for i, a in enumerate(found) for b in found[:i])
    torch.testing.assert_close(found[0], model(x))


# -- counts, schedule --------------------------------------------------------------------------------------------


def lengths(model: VisionTransformer, x: Tensor) -> list[int]:
    found: list[int] = []
    hooks = [block.register_forward_hook(lambda _m, _i, out: found.append(out.shape[1])) for block in model.blocks]
    model(x)
    for hook in hooks:
        hook.remove()
    return found


def test_as_published() -> None:
    model = VisionTransformer(img_size=32, patch_size=4, embed_dim=8, num_heads=2, num_classes=2, reg_tokens=3)
    sparsity = sparsify(model)
    x = torch.randn(1, 3, 32, 32)
    for epoch, share in ((0, 1), (9.99, 1), (10, 1), (35, (1 + math.sqrt(0.5)) / 2), (60, 0.5), (110, 0), (300, 0)):
        sparsity.set_epoch(epoch)
        assert sparsity.tokens == pytest.approx(0.9 + 0.1 * share, abs=1e-12)
        assert sparsity.attention == pytest.approx(0.1 + 0.9 * share, abs=1e-12)
    assert lengths(model, x) == [4 + 64] * 3 + [4 + 58] * 3 + [4 + 53] * 3 + [4 + 48] * 3
    sparsity.set_epoch(10)
    assert lengths(model, x) == [4 + 64] * 12


def test_an_epoch_after_the_other() -> None:
    sparsity = sparsify(tiny(), 0.5, 1, blocks=(0,), dense_epochs=2, cosine_epochs=2)
    found = []
    for _ in range(6):
        found.append(round(sparsity.tokens, 6))
        sparsity.step()
    assert found == [1, 1, 1, 0.75, 0.5, 0.5]
    assert sparsity.epoch == 6
    assert repr(sparsity) == "Sparsity(epoch=6, tokens=0.5, attention=1)"


@pytest.mark.parametrize(
    ("of", "ratio", "count"), [(30, 0.1, 3), (10, 0.1, 1), (64, 0.9, 58), (7, 1.0, 7), (3, 1e-9, 1)]
)
def test_counts_are_rounded_up_and_floats_do_not_add_one(of: int, ratio: float, count: int) -> None:
    assert timm_vit._count(of, ratio) == count


def forward_flops(model: VisionTransformer, x: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops()


@pytest.mark.parametrize("attention", [1, 0.5])
def test_the_flops_that_are_saved_are_those_of_the_tokens(attention: float) -> None:
    model, x, width = tiny(fused=False), images(2), 12
    dense = forward_flops(model, x)
    sparsify(model, 0.5, attention, **NOW)
    at_attention, at_mlp = [17, 17, 9, 9, 5, 3], [17, 9, 9, 5, 3, 3]  # tokens of each block

    def block(attending: int, further: int) -> int:
        projections = 4 * attending * width**2
        products = 2 * attending**2 * width  # of all keys, as a mask saves none
        return 2 * 2 * (projections + products + 8 * further * width**2)

    saved = 6 * block(17, 17) - sum(map(block, at_attention, at_mlp))
    selecting = sum(2 * 2 * width * n * (n if attention < 1 else 1) for n in (17, 9, 5))
    assert dense - forward_flops(model, x) == saved - selecting


# -- how models are trained --------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", [1, 0.3])
def test_checkpointing_recomputes_with_the_mask_of_its_own_forward(attention: float) -> None:
    model = tiny()
    sparsify(model, 0.6, attention, **NOW)
    first, second = images(2), images(2).flip(0, 2)
    wanted = gradients(model, model(first).square().sum() + 2 * model(second).square().sum())
    model.set_grad_checkpointing()
    found = gradients(model, model(first).square().sum() + 2 * model(second).square().sum())
    for got, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, expected)


def test_a_mask_that_is_lost_is_missed_and_the_cures_work() -> None:
    model = tiny()
    sparsity = sparsify(model, 0.6, 0.3, **NOW)
    wanted = model(images())
    model.set_grad_checkpointing()
    set_reentrant_ckpt(True)
    try:
        with pytest.raises(UnsupportedError, match=r"mask was lost .* give sparsify attention=1, or .* after timm"):
            model(images().requires_grad_()).sum().backward()
        sparsity.remove()
        sparsify(model, 0.6, attention=1, **NOW)
        model(images().requires_grad_()).sum().backward()
    finally:
        set_reentrant_ckpt(False)
    again = tiny()
    again.set_grad_checkpointing()
    sparsify(again, 0.6, 0.3, **NOW)
    found = again(images())
    torch.testing.assert_close(found, wanted)
    found.sum().backward()


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("qk_norm", [True, False])
def test_in_bfloat16_by_autocast_or_altogether(fused: bool, qk_norm: bool) -> None:
    model = tiny(fused, qk_norm=qk_norm).float()
    sparsify(model, 0.6, 0.3, **NOW)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images().float())
    assert logits.dtype == torch.bfloat16
    assert all(gradient.isfinite().all() for gradient in gradients(model, logits.float().square().sum()))
    model.bfloat16()
    assert gradients(model, model(images().bfloat16()).sum())[0].isfinite().all()


def test_compiled_without_a_break_it_is_the_same() -> None:
    model = tiny(depth=3)
    sparsify(model, 0.6, 0.3, blocks=(0, 1), dense_epochs=0, cosine_epochs=0)
    wanted = model(images())
    wanted_gradients = gradients(model, wanted.sum())
    found = torch.compile(model, backend="aot_eager", fullgraph=True)(images())
    torch.testing.assert_close(found, wanted)
    for got, expected in zip(gradients(model, found.sum()), wanted_gradients, strict=True):
        torch.testing.assert_close(got, expected)


def test_ddp_around_it(tmp_path: Any) -> None:
    model = tiny()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        with pytest.raises(UnsupportedError, match=r"give model\.module"):
            sparsify(wrapped)
        sparsity = sparsify(wrapped.module, 0.6, 0.3, **NOW)
        logits = wrapped(images())
        found = gradients(model, logits.square().sum())
        torch.testing.assert_close(found, gradients(model, model(images()).square().sum()))
        sparsity.remove()
        assert (wrapped(images()) - logits).abs().max() > 1e-3
    finally:
        torch.distributed.destroy_process_group()


def test_attach_scores_what_it_returns() -> None:
    model = tiny()
    sparsify(model, 0.5, 0.5, **NOW)
    dataset = torch.utils.data.TensorDataset(images(8), torch.arange(8) % 5)
    loader = torch.utils.data.DataLoader(dataset, batch_size=4)
    loader = ps.attach(loader, model, keep=None, score_epochs=1)
    expected = []
    for x, y in loader:
        logits = model(x)
        expected.append((logits.detach().softmax(1) - nn.functional.one_hot(y, 5)).norm(dim=1))
        nn.functional.cross_entropy(logits, y).backward()
    loader.pruning.finish()
    torch.testing.assert_close(torch.tensor(loader.pruning.table.scores["el2n"]), torch.cat(expected).float())


# -- off, copied, removed ----------------------------------------------------------------------------------------


def test_evaluation_has_all_tokens_unless_asked() -> None:
    model, x = tiny(), images()
    dense = model(x)
    for in_eval in (False, True):
        sparsity = sparsify(model, 0.5, 0.3, in_eval=in_eval, **NOW)
        trained = model(x)
        model.eval()
        assert torch.equal(model(x), trained if in_eval else dense)
        model.train()
        sparsity.remove()


def test_at_ratios_of_one_nothing_changes() -> None:
    model, x = tiny(drop_path_rate=0.3), images()
    torch.manual_seed(5)
    wanted = model(x)
    sparsify(model, blocks=BLOCKS)
    torch.manual_seed(5)
    assert torch.equal(model(x), wanted)


def test_removed_it_is_as_before() -> None:
    model, x = tiny(), images()
    before = [dict(vars(block)) for block in model.blocks]
    dense, keys = model(x), list(model.state_dict())
    sparsity = sparsify(model, 0.5, 0.3, **NOW)
    assert list(model.state_dict()) == keys
    assert (model(x) - dense).abs().max() > 1e-3
    sparsity.remove()
    sparsity.remove()
    assert type(model) is VisionTransformer
    assert {type(block) for block in model.blocks} == {Block}
    assert [set(vars(block)) for block in model.blocks] == [set(each) for each in before]
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(model(x), dense)
    assert "removed" in repr(sparsity)
    sparsify(model, blocks=BLOCKS)  # and can be made sparse again


def test_copies_have_weights_of_their_own_and_follow_the_handle() -> None:
    model, x = tiny(), images()
    sparsity = sparsify(model, 0.5, 0.3, blocks=BLOCKS, dense_epochs=1, cosine_epochs=0)
    average = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in average.parameters():
            parameter.mul_(1.1)
    dense = average(x)
    sparsity.step()
    sparse = average(x)
    assert (sparse - dense).abs().max() > 1e-3
    assert (sparse - model(x)).abs().max() > 1e-3
    for block in model.blocks:  # the copy looks at its own queries and keys
        nn.init.zeros_(block.attn.qkv.weight)
    assert torch.equal(average(x), sparse)
    sparsity.remove()
    assert torch.equal(average(x), dense)


def test_a_pickled_model_goes_on_alike() -> None:
    model, x = tiny(), images()
    sparsify(model, 0.5, 0.3, **NOW)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), model(x))


# -- state -------------------------------------------------------------------------------------------------------


def test_a_state_brings_back_the_epoch() -> None:
    options = {"blocks": BLOCKS, "dense_epochs": 1, "cosine_epochs": 4}
    sparsity = sparsify(tiny(), 0.5, 0.3, **options)
    sparsity.set_epoch(2.25)
    file = io.BytesIO()
    torch.save({"sparsity": sparsity.state_dict()}, file)
    file.seek(0)
    other_model = tiny()
    other = sparsify(other_model, 0.5, 0.3, **options)
    other.load_state_dict(torch.load(file, weights_only=True)["sparsity"])
    assert (other.epoch, other.tokens, other.attention) == (2.25, sparsity.tokens, sparsity.attention)
    assert len(set(lengths(other_model, images()))) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version 2: update prunesampler"),
        ({"tokens": 0.6}, "tokens 0.6 in the state and 0.5 here.*give sparsify those of the state"),
        ({"blocks": [1, 3]}, r"blocks \[1, 3\] in the state"),
        ({"epoch": -1}, "damaged: epoch must be"),
        ({"epoch": "3"}, "damaged: epoch must be"),
        ({"epoch": math.nan}, "damaged: epoch must be"),
        ({"more": 1}, "expected a state of sparsify"),
        (None, "expected a state of sparsify.*NoneType"),
    ],
)
def test_a_state_of_something_else_changes_nothing(change: Any, message: str) -> None:
    sparsity = sparsify(tiny(), 0.5, 0.3, blocks=BLOCKS)
    sparsity.set_epoch(40)
    with pytest.raises(StateError, match=message):
        sparsity.load_state_dict(None if change is None else {**sparsity.state_dict(), "epoch": 7, **change})
    assert sparsity.epoch == 40


# -- refusals ----------------------------------------------------------------------------------------------------


class Own(VisionTransformer):
    pass


def with_block(block: nn.Module) -> VisionTransformer:
    model = tiny()
    model.blocks[2] = block
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tiny(class_token=False, global_pool="avg"), "no class token"),
        (lambda: tiny(class_token=False, global_pool="", reg_tokens=1), "no class token"),
        (lambda: tiny(global_pool="avg"), 'make the model with global_pool="token"'),
        (lambda: tiny(global_pool="map"), "global_pool='map'"),
        (lambda: tiny(global_pool=""), "global_pool=''"),
        (lambda: tiny(block_fn=ResPostBlock), "Block as block 0; got a ResPostBlock"),
        (lambda: with_block(nn.Identity()), "Block as block 2; got a Identity"),
        (lambda: tiny(attn_layer="diff"), "Attention in block 0; got a DiffAttention"),
        (lambda: torch.jit.script(tiny().eval()), "sparsify the model before torch.jit"),
        (lambda: torch.compile(tiny()), r"give model\._orig_mod"),
        (lambda: Own(img_size=16, patch_size=4, embed_dim=8, num_heads=2, depth=4), "test_timm_vit.Own"),
        (lambda: VisionTransformerDistilled(img_size=16, patch_size=4, embed_dim=8, num_heads=2), "Distilled"),
        (lambda: nn.Linear(2, 2), r"expected a timm\.models\.vision_transformer\.VisionTransformer; got a torch"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_other_models_are_refused(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        sparsify(make(), blocks=(1, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 0}, "tokens must be a finite number > 0 and <= 1, got 0"),
        ({"tokens": 1.1}, "tokens must be"),
        ({"attention": math.nan}, "attention must be"),
        ({"attention": True}, "attention must be"),
        ({}, r"blocks must be different block numbers in \[0, 5\], ascending, .* 6 blocks, got \(3, 6, 9\)"),
        ({"blocks": ()}, "blocks must be"),
        ({"blocks": 3}, "blocks must be"),
        ({"blocks": (3, 1)}, "blocks must be"),
        ({"blocks": (1, 1)}, "blocks must be"),
        ({"blocks": (-1,)}, "blocks must be"),
        ({"blocks": (1.0,)}, "blocks must be"),
        ({"dense_epochs": -1}, "dense_epochs must be"),
        ({"cosine_epochs": math.inf}, "cosine_epochs must be"),
        ({"in_eval": 1}, "in_eval must be True or False"),
    ],
)
def test_arguments_are_checked_before_the_model_changes(options: dict[str, Any], message: str) -> None:
    model = tiny()
    with pytest.raises(ArgumentError, match=message):
        sparsify(model, **({"blocks": BLOCKS} if options and "blocks" not in options else {}), **options)
    assert type(model) is VisionTransformer


@pytest.mark.parametrize("epoch", [-0.1, math.nan, "1", None])
def test_an_epoch_is_a_number(epoch: Any) -> None:
    sparsity = sparsify(tiny(), blocks=BLOCKS)
    with pytest.raises(ArgumentError, match="epoch must be"):
        sparsity.set_epoch(epoch)


def test_twice_is_refused() -> None:
    model = tiny()
    sparsity = sparsify(model, blocks=BLOCKS)
    with pytest.raises(StateError, match="sparse already; call remove"):
        sparsify(model, blocks=BLOCKS)
    sparsity.remove()
    sparsify(model, blocks=BLOCKS)


def test_a_timm_without_masks_selects_tokens_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm_vit, "_MASKS", False)
    model = tiny()
    with pytest.raises(UnsupportedError, match=r"install timm>=1.0.16, or give attention=1"):
        sparsify(model, blocks=BLOCKS)
    sparsify(model, 0.5, attention=1, **NOW)
    assert lengths(model, images()) == [17, 9, 9, 5, 3, 3]


def test_what_needs_every_token_is_refused_while_some_are_left_out() -> None:
    model, x = tiny(), images()
    wanted = model.forward_intermediates(x)[1]
    sparsity = sparsify(model, 0.5, 0.5, **NOW)
    with pytest.raises(UnsupportedError, match=r"eval mode .* or after remove"):
        model.forward_intermediates(x)
    with pytest.raises(UnsupportedError, match="remove"):
        model(x, attn_mask=torch.zeros(17, 17))
    with pytest.raises(UnsupportedError, match="remove"):
        model(x, is_causal=True)
    with pytest.raises(UnsupportedError, match="remove"):
        model.reset_classifier(3, global_pool="avg")
    model.reset_classifier(3)
    assert model(x).shape == (3, 3)
    torch.testing.assert_close(model.eval().forward_intermediates(x)[1], wanted)
    assert model(x, attn_mask=torch.zeros(17, 17, dtype=torch.float64)).shape == (3, 3)
    model.train()
    sparsity.remove()
    model.reset_classifier(3, global_pool="avg")
    torch.testing.assert_close(model.forward_intermediates(x)[1], wanted)
