"""Tunable parameters of every method in closed form, from its docstring, as a function of the phase's network."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from headwise.backbone import Backbone
from headwise.methods.spt_lora import unpack_entries
from made_networks import plain_timm
from made_phases import Phase, family_of

Shapes = list[tuple[int, int, int]]


def weights(net: Backbone, *targets: str) -> Shapes:
    """(O, I, H) of each projection."""
    return [(*base.shape, site.num_heads) for site, base in net.bases(targets).items()]


def timm_parameters(net: Backbone, ending: str = "") -> int:
    plain = plain_timm(family_of(net)).named_parameters()
    return sum(p.numel() for name, p in plain if name.endswith(ending) and not name.startswith("head."))


Shape = tuple[int, int, int, int]


def stages(phase: Phase) -> list[Shape]:
    """(blocks L, width C, heads H, head width e) of each stage."""
    queries = [site for site in phase.base.sites if site.proj == "q"]
    sizes = sorted({site.stage: (site.num_rows, site.num_heads, site.head_dim) for site in queries}.items())
    return [(sum(site.stage == stage for site in queries), *size) for stage, size in sizes]


def per_block(cost: Callable[[int], int]) -> Callable[[Phase], int]:
    """A number of parameters for each block, as a function of its width C."""
    return lambda phase: sum(num * cost(width) for num, width, _, _ in stages(phase))


def per_weight(cost: Callable[[int, int, int], int], *targets: str) -> Callable[[Phase], int]:
    """A number of parameters for each projection, as a function of O, I and H."""
    return lambda phase: sum(cost(o, i, h) for o, i, h in weights(phase.base, *targets))


def compacter(phase: Phase) -> int:
    return per_block(lambda c: 2 * 2 * (c + 32))(phase) + 4**3


def fact_tt(phase: Phase) -> int:
    return sum(2 * d * 16 + 12 * num * 16**2 for num, d, _, _ in stages(phase))


def fact_tk(phase: Phase) -> int:
    return sum(2 * d * 32 + 12 * num * 32 + 32**3 for num, d, _, _ in stages(phase))


def cara(phase: Phase) -> int:
    parts = [((3 * num + d + h + e + 1) + (9 * num + 2 * d + 1), d) for num, d, h, e in stages(phase)]
    return sum(32 * components + 6 * d for components, d in parts)


def ssf(phase: Phase) -> int:
    plain = plain_timm(family_of(phase.base)).named_modules()
    kinds = (nn.Linear, nn.LayerNorm, nn.Conv2d)
    found = [module for name, module in plain if isinstance(module, kinds) and not name.startswith("head")]
    return sum(module.weight.shape[0] * (1 if module.bias is None else 2) for module in found)


def noah(phase: Phase) -> int:
    subnet, _ = phase.method.sizes(2)
    sizes = zip(subnet["prompt_tokens"], subnet["lora_rank"], subnet["adapter_width"], strict=True)
    return sum(48 * p + 4 * 48 * r + 2 * 48 * w + w + 48 for p, r, w in sizes)


def spt_lora(phase: Phase) -> int:
    plan, parameters = phase.plan, dict(phase.base.model.named_parameters())
    sides = {site.key: sum(base.shape) for site, base in phase.base.bases(phase.method.targets).items()}
    structured = sum(8 * sides[key] for key in plan["structured"])
    sparse = sum(len(unpack_entries(text)) for text in plan["sparse"].values())
    sparse += sum(len(unpack_entries(text)) for text in plan["biases"].values())
    held = [*plan["vectors"], *(name for name in ("cls_token",) if name in parameters)]
    return structured + sparse + sum(parameters[name].numel() for name in held)


def lora(rank: int, *targets: str) -> Callable[[Phase], int]:
    return per_weight(lambda o, i, _: rank * (i + o), *targets)


COUNTS: dict[str, Callable[[Phase], int]] = {
    "adalora": per_weight(lambda o, i, _: 16 * (i + o + 1), "q", "k", "v"),
    "adapter_post": per_block(lambda c: 2 * c * 8 + 8 + c + c),
    "adaptformer": per_block(lambda c: 2 * c * 8),
    "bi_adaptformer": per_block(lambda c: 2 * c * 32),
    "bi_lora": lora(32, "q", "v"),
    "bitfit": lambda phase: timm_parameters(phase.base, ".bias"),
    "cara": cara,
    "compacter": compacter,
    "dora": per_weight(lambda o, i, _: 4 * (i + o) + o, "q", "k", "v"),
    "dylora": lora(8, "q", "v"),
    "fact_tk": fact_tk,
    "fact_tt": fact_tt,
    "fourierft": per_weight(lambda o, i, h: 100, "q", "v"),
    "full": lambda phase: timm_parameters(phase.base),
    "head_lora": lambda phase: per_weight(lambda o, i, h: 3 * (h * i + o), *phase.method.targets)(phase),
    "heart_fp32": lora(8, "q", "v"),
    "heart_lora": lora(32, "q", "v"),
    "houlsby_b8": per_block(lambda c: 2 * (2 * c * 8 + 8 + c)),
    "linear": lambda phase: 0,
    "lora": lora(4, "q", "v"),
    "matched_lora": per_weight(lambda o, i, h: 3 * (h * i + o), "q", "v"),  # of head_lora, to the last parameter
    "mora": per_weight(lambda o, i, _: (int((8 * (i + o)) ** 0.5 + 0.5) // 2 * 2) ** 2, "q", "v"),
    "noah": noah,
    "peft": per_weight(lambda o, i, _: 256 + o, "q", "v"),
    "pfeiffer": per_block(lambda c: 2 * c * 8),
    "pissa": lora(4, "q", "k", "v"),
    "qlora": lora(4, "q", "v"),
    "repadapter": per_block(lambda c: 2 * (c * 8 + 8 + c * 8 // 2 + c)),
    "spt_lora": spt_lora,
    "ssf": ssf,
    "vpt_adapter_rf256": per_block(lambda c: 2 * c * 3 + 3 + c),
    "vpt_adapter_rf64": per_block(lambda c: 2 * c * 12 + 12 + c),
    "vpt_deep": per_block(lambda c: 10 * c),
    "vpt_shallow": lambda phase: 10 * stages(phase)[0][1],
}
COUNTS |= {f"peft_{name}": COUNTS[name] for name in ("lora", "dora", "pissa")}
COUNTS |= {f"qkv_{name}": lora(4, "q", "k", "v") for name in ("split", "peft")}
COUNTS |= {"qkv_fused": per_block(lambda c: 4 * c * 4), "qkv_fused_matched": per_block(lambda c: 4 * c * 24)}
COUNTS |= {f"heart_{name}": COUNTS["heart_lora"] for name in ("front", "grad", "layer", "random", "weight")}
"""Tunable parameters without the head, in closed form, by the label of a phase (rank 4, 3 per head)."""
