"""Many small cases in one test: what each costs is then its own work, and every one that fails is named."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import pytest


def each(names: str, cases: Iterable[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """As ``pytest.mark.parametrize``, but one test, whose other fixtures the cases share.

    Raises:
        BaseExceptionGroup: of all cases that failed, each with a note of its values.
    """
    keys, rows = [name.strip() for name in names.split(",")], list(cases)

    def wrap(check: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(check)

        @functools.wraps(check)
        def every(**given: Any) -> None:
            assert rows, "no case"
            failed: list[BaseException] = []
            for row in rows:
                values = dict(zip(keys, row if len(keys) > 1 else (row,), strict=True))
                try:
                    check(**given, **values)
                except pytest.skip.Exception:
                    continue
                except (Exception, pytest.fail.Exception) as error:
                    error.add_note(f"with {values}")
                    failed.append(error)
            if failed:
                raise BaseExceptionGroup(f"{len(failed)} of {len(rows)} cases", failed)

        shared = [kind for name, kind in signature.parameters.items() if name not in keys]
        every.__signature__ = signature.replace(parameters=shared)  # type: ignore[attr-defined]
        del every.__wrapped__
        return every

    return wrap
