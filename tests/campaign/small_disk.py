"""``python -m tests.campaign.small_disk BYTES PROGRAM <its flags>``: no file of the program may grow beyond BYTES.

The kernel's answer is an OSError at the write, as that of a full disk is.
"""

import resource
import runpy
import signal
import sys


def main() -> None:
    limit, program, *flags = sys.argv[1:]
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    # What the process prints goes to a file too; the error line must fit.
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    sys.argv = [program, *flags]
    if program.endswith(".py"):
        runpy.run_path(program, run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__")


if __name__ == "__main__":
    main()
