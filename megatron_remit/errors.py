"""Errors that the user of a command can fix."""

import sys
from collections.abc import Callable


class UserError(RuntimeError):
    """Bad input. The message names the file or flag, what was found, what was expected and what to do."""


def cli(main: Callable[[], None]) -> None:
    """Run a command-line program's ``main``; a :class:`UserError` ends it with one readable line and exit status 2."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
