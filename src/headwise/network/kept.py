"""The network of many runs: built and read once, then given again as it was.

Its tensors are kept in a file without a name, outside of the process's memory: what a run holds at most, which its
record says, is the same whether it is the first of its process or not.
"""

from __future__ import annotations

import contextlib
import copy
import json
import tempfile
import weakref
from collections.abc import Iterator
from dataclasses import asdict
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor, nn

from headwise.network.backbone import Backbone, BackboneSpec
from headwise.storage.hashes import stamp_of
from headwise.storage.weights import weights_file
from headwise.updates.qkv import SplitQKV


class KeptNetwork:
    """A network of which any number can be had, each with tensors of its own; `close` lets go of it."""

    def __init__(self, net: Backbone) -> None:
        """Keep a network as it was built, on the CPU; it stays the caller's.

        Raises:
            OSError: if there is no room for its tensors.
            ValueError: if it holds a tensor of a kind that is not known here.
        """
        tensors = list(_tensors(net))
        if not all(_is_plain(tensor) for tensor in tensors):
            raise ValueError("a tensor that is more than its values")
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix="headwise-")  # noqa: SIM115  as long as this is kept
        self.close = weakref.finalize(self, self._file.close)
        for tensor in tensors:
            self._file.write(_bytes(tensor).data)
        self._file.flush()
        # the same modules around tensors without values; what is joined is joined again
        hollow = {id(tensor): _hollow(tensor) for tensor in tensors}
        hollow |= {
            id(joined): torch.empty(0, device="meta")
            for part in _split(net)
            for joined in (part._weight, part._bias)
            if joined is not None
        }
        self._hollow = copy.deepcopy(net, hollow)

    def give(self) -> Backbone:
        """The network as it was built, as new."""
        self._file.seek(0)
        net = copy.deepcopy(self._hollow, {id(tensor): self._read(tensor) for tensor in _tensors(self._hollow)})
        for part in _split(net):
            part.join()
        return net

    def _read(self, hollow: Tensor) -> Tensor:
        tensor = torch.empty(hollow.shape, dtype=hollow.dtype)
        if self._file.readinto(_bytes(tensor).data) != tensor.nbytes:  # type: ignore[attr-defined]
            raise OSError("a network that is kept for the next run cannot be read again")
        return nn.Parameter(tensor, hollow.requires_grad) if isinstance(hollow, nn.Parameter) else tensor


class Networks:
    """Networks as they are built, the last one of which is kept for whoever asks for it next."""

    def __init__(self) -> None:
        self._key = ""
        self._kept: KeptNetwork | None = None

    def has(self, spec: BackboneSpec, drop_path: float) -> bool:
        """Whether a network need not be built."""
        return self._kept is not None and self._key == _key(spec, drop_path)

    def give(self, spec: BackboneSpec, drop_path: float) -> Backbone:
        """As `BackboneSpec.build`, its errors included; nobody else has any of its tensors."""
        key = _key(spec, drop_path)
        if self._kept is not None:
            if self._key == key:
                return self._kept.give()
            self._kept.close()
            self._kept = None
        net = spec.build(drop_path)
        with contextlib.suppress(OSError, ValueError):  # then it is built again
            self._key, self._kept = key, KeptNetwork(net)
        return net


def _key(spec: BackboneSpec, drop_path: float) -> str:
    """All that a network is built from; a file of weights by its place and what changes when it is replaced."""
    stamp: list[Any] = []
    if spec.weights not in ("auto", "none"):
        stamp = [*stamp_of((file := weights_file(spec.weights)).stat()), str(file.resolve())]
    return json.dumps([asdict(spec), drop_path, stamp, str(torch.get_default_dtype())], sort_keys=True, default=str)


def _tensors(net: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers, each once, in the order of the modules."""
    yield from net.parameters()
    yield from net.buffers()


def _is_plain(tensor: Tensor) -> bool:
    """Whether its values, shape and type say all of it."""
    return type(tensor) in (nn.Parameter, Tensor) and tensor.device.type == "cpu" and tensor.is_contiguous()


def _bytes(tensor: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The memory of a contiguous tensor."""
    return tensor.detach().flatten().view(torch.uint8).numpy()


def _hollow(tensor: Tensor) -> Tensor:
    hollow = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    return nn.Parameter(hollow, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else hollow


def _split(net: nn.Module) -> list[SplitQKV]:
    return [module for module in net.modules() if isinstance(module, SplitQKV)]
