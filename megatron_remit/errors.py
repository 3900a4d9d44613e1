"""Errors that the user of a command can fix, and notes that need no fix."""

import errno
import os
import sys
from collections.abc import Callable

DOWNLOAD = "a model of the Hugging Face hub is downloaded first: hf download NAME --local-dir DIR"
"""What to do where a folder is expected and the name of a repository may have been given, for the end of a message."""
_WORKERS_OF_A_CORE = 16


class UserError(RuntimeError):
    """Bad input. The message names the file or flag, what was found, what was expected and what to do."""


def check_workers(flag: str, count: int) -> None:
    """Refuse so many processes that this machine would only swap and switch.

    Raises:
        UserError: names ``flag`` and the most that there may be.
    """
    most = max(64, _WORKERS_OF_A_CORE * (os.cpu_count() or 1))
    if count > most:
        raise UserError(f"{flag} {count}: expected at most {most}, {_WORKERS_OF_A_CORE} for each core of this machine")


def note(message: str) -> None:
    """Tell the user in one line what was decided for them; the work goes on."""
    print(f"note: {message}", file=sys.stderr)


def _check_words(words: list[str]) -> None:
    """Refuse an empty word: as a path it is the present folder, and as --save a run that saves nothing."""
    for place, word in enumerate(words):
        if not word.strip():
            flag = next((before for before in reversed(words[:place]) if before.startswith("--")), "the command line")
            raise UserError(
                f"{flag} {word!r}: an empty word, as a shell makes of a variable that is not set; give a value, or "
                "leave the flag out"
            )


def cli(main: Callable[[], None]) -> None:
    """Run a command-line program's ``main``; a :class:`UserError` ends it with one readable line and exit status 2."""
    try:
        _check_words(sys.argv[1:])
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        print(f"error: {_too_long(sys.argv[1:], str(error.filename))}", file=sys.stderr)
        raise SystemExit(2) from None


def _too_long(words: list[str], path: str) -> str:
    """What to say of ``path``, which the file system finds too long, with the flag that has it or a part of it."""
    longest = max(path.split(os.sep), key=len)
    place = next((place for place, word in enumerate(words) if longest in word), 0)
    flag = next((word for word in reversed(words[:place]) if word.startswith("--")), "a path")
    return (
        f"{flag} {longest[:40]}...: a path of {len(path)} characters whose longest name has {len(longest)}, more than "
        "the file system takes (mostly 4095 and 255); give a shorter one"
    )
