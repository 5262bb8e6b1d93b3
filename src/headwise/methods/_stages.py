"""What methods share whose tensors serve a whole stage: its sites, and the one width that they are cut by."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from headwise.errors import ConfigError
from headwise.updates.sites import Site


def by_stage(sites: Iterable[Site]) -> list[list[Site]]:
    """Sites in network order, one list per stage."""
    return [list(members) for _, members in itertools.groupby(sites, key=lambda site: site.stage)]


def common_width(name: str, sites: Sequence[Site], bases: Mapping[Site, Tensor]) -> int:
    """d of one stage, for a method that cuts every weight, (O, I), into squares of d.

    ConfigError, naming the method, if a projection's sides are not d by a multiple of d.
    """
    # q, k, v and o are (d, d), fc1 (m d, d) and fc2 (d, m d): the shorter side is d
    width = min(bases[sites[0]].shape)
    for site in sites:
        short, long = sorted(bases[site].shape)
        if short != width or long % width:
            raise ConfigError(
                f"{name} cuts {site.key} {tuple(bases[site].shape)} into squares of {width}; "
                "both sides must be multiples of it"
            )
    return width
