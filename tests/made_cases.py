"""Many small cases in one test: what each costs is then its own work, and every one that fails is named."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

SHOWN = 500
"""Characters of a message on what was skipped."""


@contextlib.contextmanager
def apart(given: dict[str, Any], name: str) -> Iterator[dict[str, Any]]:
    """Fixtures of a case."""
    own = dict(given)
    with contextlib.ExitStack() as stack:
        if "tmp_path" in given:
            own["tmp_path"] = given["tmp_path"] / name
            own["tmp_path"].mkdir()
        if "monkeypatch" in given:
            own["monkeypatch"] = stack.enter_context(given["monkeypatch"].context())
        if "capsys" in given:
            given["capsys"].readouterr()
        if "caplog" in given:
            given["caplog"].clear()
        yield own


def each(names: str, cases: Iterable[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """As ``pytest.mark.parametrize``, but one test; each case has its own folder, and no other's patches or output.

    If any case skips, the test is shown as skipped once all others have passed, and says which and why.

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
            skipped: list[str] = []
            for number, row in enumerate(rows):
                values = dict(zip(keys, row if len(keys) > 1 else (row,), strict=True))
                try:
                    with apart(given, str(number)) as own:
                        check(**own, **values)
                except pytest.skip.Exception as reason:
                    skipped.append(f"{values}: {reason}")
                except (Exception, pytest.fail.Exception) as error:
                    error.add_note(f"with {values}")
                    failed.append(error)
            if failed:
                raise BaseExceptionGroup(f"{len(failed)} of {len(rows)} cases", failed)
            if skipped:
                pytest.skip(f"{len(skipped)} of {len(rows)} cases; {'; '.join(skipped)}"[:SHOWN])

        shared = [kind for name, kind in signature.parameters.items() if name not in keys]
        every.__signature__ = signature.replace(parameters=shared)  # type: ignore[attr-defined]
        del every.__wrapped__
        return every

    return wrap
