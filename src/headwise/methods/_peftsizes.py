"""How many parameters a config of the peft library trains, in closed form.

Legend: O, I features of a projection.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from peft.tuners.lokr.layer import factorization

from headwise.errors import ConfigError, suggest
from headwise.methods._peftconfig import config_class


def _lora(o: int, i: int, r: int, use_dora: bool = False, lora_bias: bool = False) -> int:
    return r * (i + o) + (o if use_dora else 0) + (o if lora_bias else 0)


def _lokr(o: int, i: int, r: int, decompose_both: bool, decompose_factor: int) -> int:
    """Two Kronecker factors; one whose larger side is more than 2 r is of rank r, the first if asked for."""
    rows, columns = factorization(o, decompose_factor), factorization(i, decompose_factor)
    sizes = []
    for (height, width), low in zip(zip(rows, columns, strict=True), (decompose_both, True), strict=True):
        sizes.append(r * (height + width) if low and r < max(height, width) / 2 else height * width)
    return sum(sizes)


def _glora(o: int, i: int, r: int, config_A_B: str, config_C: str, config_D_E: str) -> int:
    matrix = {"lora": r * (o + i), "vector": o, "constant": 1, "none": 0}
    column = {"lora": r * (i + 1), "vector": i, "none": 0}
    values = {"vector": o, "constant": 1, "none": 0}
    return 2 * matrix[config_A_B] + column[config_C] + 2 * values[config_D_E]


def _oft(o: int, i: int, r: int, oft_block_size: int, block_share: bool) -> int:
    """Skew matrices of size b: b (b - 1) / 2 for each block, or once."""
    size = oft_block_size or i // r
    return (1 if block_share else i // size) * (size * (size - 1) // 2)


def _psoft(o: int, i: int, r: int, psoft_orth: bool, psoft_mag_a: bool, psoft_mag_b: bool) -> int:
    return (r * (r - 1) // 2 if psoft_orth else r * r) + r * (psoft_mag_a + psoft_mag_b)


def _miss(o: int, i: int, r: int, mini_r: int, init_weights: bool | str) -> int:
    return {"bat": o // r * r * r, "mini": r * mini_r}.get(str(init_weights), r * o)


AT_EACH: Mapping[str, Callable[..., int]] = {
    "LoraConfig": _lora,
    "AdaLoraConfig": lambda o, i, init_r: init_r * (i + o + 1),
    "C3AConfig": lambda o, i, block_size: o * i // block_size,
    "DeloraConfig": lambda o, i, r: r * (i + o) + 1,
    "FourierFTConfig": lambda o, i, n_frequency: n_frequency,
    "GloraConfig": _glora,
    "GraloraConfig": lambda o, i, r, hybrid_r: (r + hybrid_r) * (i + o),
    "HiraConfig": lambda o, i, r: r * (i + o),
    "HRAConfig": lambda o, i, r: r * i,
    "LNTuningConfig": lambda o, i: o * i + o,
    "LoHaConfig": lambda o, i, r: 2 * r * (i + o),
    "LoKrConfig": _lokr,
    "MissConfig": _miss,
    "OFTConfig": _oft,
    "OSFConfig": lambda o, i: (min(o, i) - min(o, i) // 2) * (o + i + 1),
    "PsoftConfig": _psoft,
    "RandLoraConfig": lambda o, i, r: -(-min(o, i) // r) * (r + min(o, i)),
    "RoadConfig": lambda o, i, variant: int(str(variant).removeprefix("road_")) * o,
    "ShiraConfig": lambda o, i, r: r * (i + o),
    "VBLoRAConfig": lambda o, i, r, num_vectors, vector_length: num_vectors * r * ((i + o) // vector_length),
    "VeraConfig": lambda o, i, r: r + o,
    "WaveFTConfig": lambda o, i, n_frequency: n_frequency,
}
"""By config: its number at one projection, of O, I and the fields that it names; AdaLoRA's is of its initial ranks."""
SHARED: Mapping[str, Callable[..., int]] = {
    "VBLoRAConfig": lambda num_vectors, vector_length: num_vectors * vector_length,
}
"""By config: what all projections share."""
UNEVEN = ("rank_pattern", "n_frequency_pattern", "block_size_pattern", "proportional_parameters", "effective_rank")
"""Fields that give projections sizes of their own."""


def size_of(config: Mapping[str, Any]) -> tuple[Callable[[int, int, int], int], int]:
    """Parameters of a config at one projection, of its O, I and heads, and what all share; ConfigError if not known."""
    name = config_class(config).__name__
    if name not in AT_EACH:
        raise ConfigError(f"the size of {config['_target_']} is not known in closed form{suggest('', AT_EACH)}")
    if uneven := [field for field in UNEVEN if config.get(field)]:
        raise ConfigError(
            f"the size of {config['_target_']} with {uneven[0]} is not known in closed form; leave it out"
        )
    cost, given = AT_EACH[name], _given(AT_EACH[name], config)
    shared = SHARED.get(name)
    return (
        lambda num_rows, num_inputs, _: int(cost(num_rows, num_inputs, **given)),
        0 if shared is None else shared(**_given(shared, config)),
    )


def _given(cost: Callable[..., int], config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config that a cost names, as given or at peft's default."""
    kind = config_class(config)
    names = [name for name in inspect.signature(cost).parameters if name not in ("o", "i")]
    return {name: config.get(name, getattr(kind, name)) for name in names}
