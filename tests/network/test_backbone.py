"""Backbones: timm's numbers and names, weights files of every kind, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from headwise.errors import CheckpointError, ConfigError, WeightsError
from headwise.network.backbone import Backbone, BackboneSpec
from headwise.updates.adapted import AdaptedLinear
from headwise.updates.lowrank import LowRank
from made_cases import each
from made_networks import CLASSES, images, logits, network, plain_timm, spec
from made_weights import google_file, trunk

X = images()


def build(family: str, file: Path, **changes: Any) -> Backbone:
    net = dataclasses.replace(spec(family), weights=str(file), **changes).build()
    return net.eval()


@each("family", ["vit", "swin"])
def test_logits_are_timms_exactly(family: str) -> None:
    model = plain_timm(family)
    net = Backbone(copy.deepcopy(model), 32, (0.5,) * 3, (0.5,) * 3)
    assert torch.equal(logits(net, X), logits(model, X))


@each("family", ["vit", "swin"])
def test_the_export_is_timms(family: str) -> None:
    net, plain = network(family), plain_timm(family)
    exported = net.export_state_dict()
    assert list(exported) == list(plain.state_dict())
    plain.load_state_dict(exported, strict=True)
    assert torch.equal(logits(plain, X), logits(net, X))
    exported["head.bias" if family == "vit" else "head.fc.bias"].add_(1.0)
    assert torch.equal(logits(plain, X), logits(net, X))


@each("family", ["vit", "swin"])
def test_plain_attention_is_the_same_function(family: str) -> None:
    net = network(family)
    before = logits(net, X)
    net.set_attention("plain")
    assert not any(getattr(module, "fused_attn", False) for module in net.modules())
    torch.testing.assert_close(logits(net, X), before)
    with pytest.raises(ConfigError, match=r"trainer\.attention must be auto or one of timm, plain, got 'flash'"):
        net.set_attention("flash")


def test_blocks_are_compiled_inside_and_not_afterwards() -> None:
    net = network("vit")
    before = logits(net, X)
    seen: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
        seen.append(len(inputs))
        return graph.forward

    with net.compiled(backend):
        torch.testing.assert_close(logits(net, X), before)
    assert seen, "nothing was compiled"
    with net.compiled(backend):
        count = len(seen)
        assert torch.equal(logits(copy.deepcopy(net), X), before) and len(seen) == count  # a copy is as it was
    torch.compiler.reset()
    assert torch.equal(logits(net, X), before) and len(seen) == count


def test_what_a_process_compiled_before_changes_nothing() -> None:
    kinds: list[set[type]] = []

    def backend(graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        kinds.append({type(value) for value in inputs})
        return graph.forward

    def inside(size: int) -> list[set[type]]:
        kinds.clear()
        net = network("vit")
        with net.compiled(backend):
            logits(net, torch.randn(size, *X.shape[1:]))
        return list(kinds)

    torch.compiler.reset()
    assert inside(3) == inside(5)  # another size is not a variable one


def test_blocks_that_cannot_be_compiled_are_refused_in_a_line() -> None:
    def backend(graph: torch.fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
        raise RuntimeError("No working C++ compiler found\nin any place")

    torch.compiler.reset()
    net = network("vit")
    with pytest.raises(ConfigError) as error, net.compiled(backend):
        logits(net, X)
    assert str(error.value) == (
        "trainer.compile=true: No working C++ compiler found; trainer.compile=false trains without"
    )
    assert logits(net, X).isfinite().all()


def test_a_network_with_an_update_is_not_exported() -> None:
    net = network("vit")
    site = net.sites[0]
    net.replace(site, AdaptedLinear.around(net.linear(site), LowRank(site, net.linear(site).weight, 2)))
    with pytest.raises(CheckpointError, match=r"blocks.0.attn.qkv.q still carries a AdaptedLinear; merge before"):
        net.export_state_dict()


def test_sites_of_a_vit() -> None:
    sites = network("vit").sites
    assert [site.key for site in sites[:6]] == [f"s0.b0.{proj}" for proj in ("q", "k", "v", "o", "fc1", "fc2")]
    assert len(sites) == 12
    divided = {site.proj: (site.num_heads, site.head_dim, site.head_axis) for site in sites}
    assert divided == {
        **dict.fromkeys("qkv", (4, 12, "output")),
        "o": (4, 12, "input"),
        "fc1": (1, 192, None),
        "fc2": (1, 48, None),
    }


def test_sites_of_a_swin() -> None:
    queries = [site for site in network("swin").sites if site.proj == "q"]
    assert [(s.stage, s.block, s.num_heads, s.head_dim) for s in queries] == [(0, 0, 4, 8), (1, 0, 8, 8), (1, 1, 8, 8)]
    outputs = [site for site in network("swin").sites if site.proj == "o"]
    assert [(s.num_heads, s.head_dim, s.head_axis) for s in outputs] == [(n, 8, "input") for n in (4, 8, 8)]


def test_a_head_of_o_reads_what_the_head_computed() -> None:
    """Zeroing the values of a head and zeroing its columns of o are the same."""
    for family in ("vit", "swin"):
        net, x = network(family), images()
        one, other = copy.deepcopy(net), copy.deepcopy(net)
        for changed, proj in ((one, "v"), (other, "o")):
            for site in (site for site in changed.sites if site.proj == proj):
                mask = site.rows((torch.arange(site.num_heads) != 1).float())
                linear = changed.linear(site)
                if proj == "v":
                    linear.weight.data *= mask[:, None]
                    linear.bias.data *= mask
                else:
                    linear.weight.data *= mask[None, :]
        assert float((logits(one, x) - logits(net, x)).abs().max()) > 1e-3
        assert float((logits(one, x) - logits(other, x)).abs().max()) < 1e-5


@each("family", ["vit", "swin"])
def test_every_site_leads_to_its_projection(family: str) -> None:
    net = network(family)
    for site in net.sites:
        assert net.linear(site).weight.shape[0] == site.num_rows
        assert net.get_submodule(net.path(site)) is net.linear(site)
    assert len(net.blocks) == len({(site.stage, site.block) for site in net.sites})


def test_bases_are_frozen_views() -> None:
    net = network("vit")
    bases = net.bases(["q", "fc1"])
    assert [site.proj for site in bases] == ["q", "fc1"] * 2
    assert not any(base.requires_grad for base in bases.values())
    net.replace(net.sites[0], nn.Sequential(net.linear(net.sites[0])))
    with pytest.raises(ConfigError, match=r"s0.b0.q is a Sequential without a dense weight"):
        net.bases(["q"])
    with pytest.raises(ConfigError, match="target 'query' matches no projection"):
        net.bases(["query"])


def test_wrap_lists_what_is_there() -> None:
    net = network("vit")
    wrapped = net.wrap("blocks.1.mlp", lambda inner: nn.Sequential(inner))
    assert net.model.get_submodule("blocks.1.mlp") is wrapped
    assert torch.equal(logits(net, X), logits(network("vit"), X))
    with pytest.raises(ConfigError, match=r"no module at 'blocks.1.mpl' to wrap \(did you mean 'blocks.1.mlp'\?\)"):
        net.wrap("blocks.1.mpl", nn.Sequential)


def test_a_new_head_follows_the_random_state() -> None:
    net, heads = network("vit"), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        net.new_head(7)
        heads.append(net.head.weight.detach().clone())
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert net.head.weight.shape == (7, 48)
    assert heads[0].std().item() == pytest.approx(0.02, rel=0.2)
    assert not net.head.bias.any()


def test_random_weights_follow_their_seed_only() -> None:
    torch.manual_seed(1)
    one = spec("vit").build()
    torch.manual_seed(2)
    other = spec("vit").build()
    assert torch.equal(one.model.blocks[0].mlp.fc1.weight, other.model.blocks[0].mlp.fc1.weight)
    assert torch.initial_seed() == 2
    changed = dataclasses.replace(spec("vit"), seed=1).build()
    assert not torch.equal(one.model.blocks[0].mlp.fc1.weight, changed.model.blocks[0].mlp.fc1.weight)


def tiny(timm_name: str, img_size: int = 32, **overrides: Any) -> BackboneSpec:
    return BackboneSpec(name="x", timm_name=timm_name, img_size=img_size, weights="none", overrides=overrides)


@each(
    "recipe, message",
    [
        (
            tiny("vit_small_patch16_dinov3", attn_type="rope", qkv_fused=False, num_kv_heads=2),
            r"attention AttentionRope does not divide q, k and v into the same heads; allowed: timm's ViT .*, BEiT",
        ),
        (
            tiny("vit_dpwee_patch16_reg1_gap_256", depth=1),
            r"VisionTransformer has blocks of DiffParallelScalingBlock, not of one attention and one mlp; .*EVA",
        ),
        (tiny("swinv2_cr_tiny_224", 64), r"SwinTransformerV2Cr has neither blocks nor layers of them; allowed: timm's"),
        (
            tiny("resnet18"),
            r"^'resnet18' has no attention to adapt \(did you mean '\w+'\?\); allowed: timm's ViT [^\n]*$",
        ),
        (tiny("convnext_tiny.fb_in1k"), r"^'convnext_tiny.fb_in1k' has no attention to adapt"),
        (
            tiny("vit_tiny_patch16_225"),
            r"unknown timm network 'vit_tiny_patch16_225' \(did you mean 'vit_tiny_patch16_",
        ),
        (tiny("vit_tiny_patch16_224", 40), "backbone.img_size must be a positive multiple of 16, got 40"),
        (tiny("vit_tiny_patch16_224", 36, patch_size=8), "multiple of 8, got 36"),
        (
            tiny("vit_tiny_patch16_224", embed_dims=3),
            "timm cannot build 'vit_tiny_patch16_224' of .* with .*embed_dims",
        ),
    ],
)
def test_networks_that_cannot_be_used(recipe: BackboneSpec, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe.build()


@each("side, shown", [(0, "0"), (-16, "-16"), (True, "true"), (32.5, "32.5")])
def test_a_side_without_whole_pixels_is_refused_before_anything_is_built(side: Any, shown: str) -> None:
    with pytest.raises(
        ConfigError, match=f"^backbone.img_size must be the side of a square in pixels, a .*, got {shown}"
    ):
        tiny("vit_tiny_patch16_224", side)


@each("family", ["vit", "swin"])
@each("kind", ["safetensors", "pth", "wrapped", "half"])
def test_weights_are_read(family: str, kind: str, tmp_path: Path) -> None:
    state = trunk(family)
    file = tmp_path / ("w.pth" if kind in ("pth", "wrapped") else "w.safetensors")
    if kind == "half":
        save_file({name: t.half() if t.is_floating_point() else t for name, t in state.items()}, file)
    elif kind == "safetensors":
        save_file(state | {"head.weight": torch.zeros(3, 3)}, file)
    else:
        torch.save({"model": state} if kind == "wrapped" else state, file)
    net = build(family, file)
    net.new_head(CLASSES)
    exported = net.export_state_dict()
    for name, tensor in state.items():
        wanted = tensor.half().float() if kind == "half" and tensor.is_floating_point() else tensor
        assert torch.equal(exported[name], wanted), name
    assert net.provenance["weights"] == file.name


def written(tmp_path: Path, state: dict[str, Tensor]) -> Path:
    save_file(state, tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


def test_missing_weights() -> None:
    with pytest.raises(WeightsError, match=r"weights file '/no/such.npz' does not exist; give an existing file with"):
        build("vit", Path("/no/such.npz"))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # numpy leaves a damaged npz open
@each("name", ["w.safetensors", "w.pth", "w.npz"])
def test_truncated_weights(name: str, tmp_path: Path) -> None:
    whole = tmp_path / f"whole_{name}"
    if name.endswith("safetensors"):
        save_file(trunk(), whole)
    elif name.endswith("pth"):
        torch.save(trunk(), whole)
    else:
        google_file(whole)
    (tmp_path / name).write_bytes(whole.read_bytes()[:2000])
    with pytest.raises(WeightsError, match=rf"{name} cannot be read as weights .*is the download complete"):
        build("vit", tmp_path / name)


class Stranger:
    """Something that only a pickle could hold."""


def test_no_pickle_is_run(tmp_path: Path) -> None:
    torch.save({"model": Stranger()}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"w.pth cannot be read as weights"):
        build("vit", tmp_path / "w.pth")


@each(
    "change, message",
    [
        (lambda s: s.pop("blocks.1.mlp.fc1.bias"), r"it lacks blocks.1.mlp.fc1.bias \(192,\)"),
        (
            lambda s: s.update({"blocks.0.norm1.bias": torch.zeros(47)}),
            r"blocks.0.norm1.bias is \(47,\), the backbone has \(48,\)",
        ),
        (lambda s: s.update(stranger=torch.zeros(2)), r"it also holds stranger \(2,\)"),
        (lambda s: s["norm.weight"].fill_(torch.nan), "norm.weight holds values that are not finite"),
    ],
)
def test_weights_of_another_architecture(change: Any, message: str, tmp_path: Path) -> None:
    state = trunk()
    change(state)
    with pytest.raises(WeightsError, match=message):
        build("vit", written(tmp_path, state))


def test_swin_weights_in_a_vit(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"w.safetensors is of another architecture: it lacks blocks.0"):
        build("vit", written(tmp_path, trunk("swin")))


def test_position_embeddings_are_resized(tmp_path: Path) -> None:
    state = trunk()
    net = build("vit", written(tmp_path, state), img_size=48)
    assert net.img_size == 48
    embedding = net.model.pos_embed
    assert embedding.shape == (1, 1 + 36, 48)
    torch.testing.assert_close(embedding[:, 0], state["pos_embed"][:, 0])
    net.new_head(CLASSES)
    assert logits(net, torch.zeros(1, 3, 48, 48)).isfinite().all()


def test_google_weights(tmp_path: Path) -> None:
    file = google_file(tmp_path / "w.npz")
    net = build("vit", file)
    with np.load(file, allow_pickle=False) as stored:
        query = stored["Transformer/encoderblock_1/MultiHeadDotProductAttention_1/query/kernel"]
        first = stored["Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel"]
    head_two = net.model.blocks[1].attn.qkv.q.weight[2 * 12 : 3 * 12]
    assert torch.equal(head_two, torch.from_numpy(query[:, 2].T))
    assert torch.equal(net.model.blocks[0].mlp.fc1.weight, torch.from_numpy(first.T))


def test_google_weights_of_another_size(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"w.npz"):
        build("vit", google_file(tmp_path / "w.npz", width=32))
    with pytest.raises(WeightsError, match=r"w.npz"):
        build("vit", google_file(tmp_path / "w.npz", depth=1))
    with pytest.raises(WeightsError, match="npz weights are in Google's ViT layout, the backbone is SwinTransformer"):
        build("swin", google_file(tmp_path / "w.npz"))


def test_what_must_be_said_about_weights() -> None:
    assert spec("vit").labels == ["stand-in weights"]
    papers = BackboneSpec(name="x", timm_name="vit_base_patch16_224.orig_in21k")
    assert papers.labels == []
    assert dataclasses.replace(papers, weights="/a/file.npz").labels == ["unverified weights"]
