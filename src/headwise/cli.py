"""What every script shares: errors as text, and an exit status that tells success. Standard library only."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence

from headwise.errors import HeadwiseError, Interrupted

Main = Callable[[Sequence[str] | None], int]


def script(main: Main) -> Callable[..., int]:
    """Let a script's main return 1 with ``error: ...`` on stderr for what the user can mend, 130 when stopped.

    ::

        @script
        def main(arguments: Sequence[str] | None = None) -> int: ...

        if __name__ == "__main__":
            sys.exit(main())
    """

    @functools.wraps(main)
    def guarded(arguments: Sequence[str] | None = None) -> int:
        try:
            return main(arguments)
        except (KeyboardInterrupt, Interrupted) as error:
            print(f"\n{str(error) or 'stopped by the user'}", file=sys.stderr)
            return 130
        except HeadwiseError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1

    return guarded
