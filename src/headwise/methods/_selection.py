"""The selection that the authors of SPT store (ziplab/SPT, commit 64ac94d, ``param_req_*.pth``), read as a plan.

A dictionary: ``tuned_matrices``, per block six 0 or 1 for q, k, v, proj, fc1 and fc2; ``tuned_vectors``, names;
``unstructured_name_shapes``, name to shape, in the order in which ``unstructured_indexes``, (n,), count the entries of
all of these tensors in one row; ``params``, the size in millions with the CLS token. Names are those of a ViT whose q,
k and v are apart: ``blocks.3.attn.q.weight``. ``unstructured_name_shapes_int`` repeats the shapes as numbers of numpy.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headwise.errors import CheckpointError, ConfigError, damage
from headwise.methods.base import Plan
from headwise.updates.sites import Site

PLACES = {"q": "attn.q", "k": "attn.k", "v": "attn.v", "o": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
"""Our projections in the order of ``tuned_matrices``, each with the authors' name in a block."""
FIELDS = ("tuned_matrices", "tuned_vectors", "unstructured_name_shapes", "unstructured_indexes", "params")


class _Skipped:
    """Stands for the numbers and types of numpy in a file: they are needed for nothing, and nothing of numpy runs."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


_NUMPY = ("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")


class Selected:
    """What one file selects.

    Attributes:
        matrices: (block, projection of ours) of the structured ones.
        vectors: the authors' names of vectors that train whole.
        entries: the authors' name to positions in the flattened tensor, (n,), ascending.
        shapes: of the tensors of `entries`.
        params: in all, with the CLS token.
    """

    def __init__(self, file: Path) -> None:
        """Read tensors and plain data, nothing of which is run; CheckpointError if a file is no such selection."""
        self.file, content = file, _content(file)
        try:
            rows = [[int(flag) for flag in row] for row in content["tuned_matrices"]]
            self.num_blocks = len(rows)
            self.matrices = [(b, proj) for b, row in enumerate(rows) for proj, on in _paired(row) if on]
            self.vectors = [_name(name) for name in content["tuned_vectors"]]
            self.shapes = {_name(n): tuple(map(int, s)) for n, s in content["unstructured_name_shapes"].items()}
            self.params = round(float(content["params"]) * 1e6)
            self.entries = _entries(content["unstructured_indexes"], self.shapes)
        except (ValueError, TypeError, AttributeError, RuntimeError, OverflowError) as error:
            raise CheckpointError(f"{file} is no selection of SPT: {damage(error)}") from error

    def plan(
        self, sites: Sequence[Site], num_blocks: int, candidates: Mapping[str, Tensor], biases: Mapping[str, str]
    ) -> tuple[Plan, int]:
        """As ``SPTLoRA.prepare`` gives it, and the number of single entries, those of norms included.

        Of a network's sites and blocks, with its matrices by site and its vectors by name as `candidates`, and the
        names of its projections' biases, each with the key of the site. ConfigError if the selection is of another
        network.
        """
        places = {f"blocks.{site.block}.{PLACES[site.proj]}": site.key for site in sites if site.stage == 0}
        keys = {f"{place}.weight": key for place, key in places.items() if key in candidates}
        ours = {f"{place}.bias": name for place, key in places.items() for name, own in biases.items() if own == key}
        named = {**{name: name for name in candidates}, **ours, **keys}
        asked: dict[str, Any] = {**dict.fromkeys(self.vectors), **self.shapes}
        for name, shape in asked.items():
            if name not in named or shape not in (None, tuple(candidates[named[name]].shape)):
                raise ConfigError(f"{self.file} selects {name}, which this network does not have in that shape")
        structured = {f"s0.b{block}.{proj}" for block, proj in self.matrices}
        if self.num_blocks != num_blocks or not structured <= set(keys.values()):
            raise ConfigError(f"{self.file} is of a network of {self.num_blocks} blocks, this one has {num_blocks}")
        entries = {named[name]: found for name, found in self.entries.items() if len(found)}
        plan: Plan = {
            "structured": [site.key for site in sites if site.key in structured],
            "sparse": {key: pack_entries(entries[key]) for key in keys.values() if key in entries},
            # of norms below the threshold the authors' code trains no entries either
            "biases": {key: pack_entries(entries[name]) for name, key in biases.items() if name in entries},
            "vectors": [named[name] for name in self.vectors],
        }
        return plan, sum(map(len, entries.values()))


def _content(file: Path) -> Mapping[str, Any]:
    try:
        with torch.serialization.safe_globals([(_Skipped, name) for name in _NUMPY]):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from error
    except Exception as error:
        raise CheckpointError(f"{file} cannot be read as a selection of SPT ({damage(error)})") from error
    missing = [name for name in FIELDS if name not in content] if isinstance(content, Mapping) else list(FIELDS)
    if missing:
        raise CheckpointError(f"{file} is no selection of SPT: it lacks {', '.join(missing)}")
    return content


def _paired(row: Sequence[int]) -> Sequence[tuple[str, int]]:
    if len(row) != len(PLACES) or not set(row) <= {0, 1}:
        raise ValueError(f"a block of tuned_matrices has {len(PLACES)} flags, got {row}")
    return list(zip(PLACES, row, strict=True))


def _name(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"names are text, got {type(name).__name__}")
    return name


def _entries(indexes: object, shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Positions in the row of all tensors, taken apart by tensor."""
    if not isinstance(indexes, Tensor) or indexes.ndim != 1 or indexes.is_floating_point():
        raise TypeError("unstructured_indexes must be whole numbers, (n,)")
    sizes = [int(torch.Size(shape).numel()) for shape in shapes.values()]
    ordered = indexes.long().sort().values
    if len(ordered) and not 0 <= int(ordered[0]) <= int(ordered[-1]) < sum(sizes):
        raise ValueError(f"unstructured_indexes must be in 0..{sum(sizes) - 1}")
    if bool((ordered.diff() == 0).any()):
        raise ValueError("unstructured_indexes names an entry twice")
    found, start = {}, 0
    for name, size in zip(shapes, sizes, strict=True):
        found[name] = ordered[(ordered >= start) & (ordered < start + size)] - start
        start += size
    return found


def pack_entries(entries: Tensor) -> str:
    """Positions in a matrix as text that JSON can hold: sorted, differences, compressed."""
    ordered = np.sort(entries.cpu().numpy()).astype("<i4")
    return base64.b64encode(zlib.compress(np.diff(ordered, prepend=np.int32(0)).astype("<i4").tobytes(), 9)).decode()


def unpack_entries(text: str) -> Tensor:
    """The reverse of `pack_entries`, (n,) int32, ascending."""
    steps = np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype="<i4")
    return torch.from_numpy(np.cumsum(steps, dtype=np.int32).copy())
