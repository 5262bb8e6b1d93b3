"""Blocks of a network as torch.compile makes them."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import nn

from headwise.errors import ConfigError

VERSIONS = 16
"""Compiled versions for each block: training or test, first block or later, last batch, before and after heads go."""


@contextlib.contextmanager
def compiled(blocks: Sequence[nn.Module], backend: str | Callable[..., Any] = "inductor") -> Iterator[None]:
    """Inside, every block runs as torch.compile makes it, with the random numbers that it draws uncompiled.

    Args:
        blocks: of one network or several.
        backend: of torch.compile; the usual one writes C++ for a CPU and Triton's kernels for a GPU.

    Raises:
        ConfigError: where torch cannot compile them: no compiler at hand, or operations that it does not know.
    """
    # inside, and not with this module: torch's compiler takes seconds to load
    import torch._dynamo
    import torch._inductor.config

    # sizes that a process met before, in another run, would become variables here, and sums change their order
    torch.compiler.reset()
    for block in blocks:
        block.compile(backend=backend)
    # what differs from block to block makes a version of each; beyond the limit torch goes on uncompiled
    versions = torch._dynamo.config.patch(recompile_limit=VERSIONS * len(blocks))
    numbers = torch._inductor.config.patch(fallback_random=True)
    try:
        with versions, numbers, warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\._inductor")
            # torch hides this one as it is shown, which is too late where warnings are errors
            warnings.filterwarnings("ignore", "The .grad attribute of a Tensor", UserWarning)
            yield
    except torch._dynamo.exc.TorchDynamoException as error:
        reason = str(getattr(error, "inner_exception", error)).strip().split("\n")[0]
        raise ConfigError(f"trainer.compile=true: {reason}; trainer.compile=false trains without") from error
    finally:
        for block in blocks:
            block._compiled_call_impl = None  # torch has no other way back
