"""Runs a command that dies with its parent: ``python leash.py PARENT_PID COMMAND ...``.

Started as a file with ``python -I -S``, so it imports the standard library only and costs some 20 ms. It asks the
kernel for SIGKILL at the death of the parent, then becomes the command by exec, so the process id stays the same.
Where the kernel offers no such thing (not Linux) the command merely runs; the next start cleans up what was left.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Put the leash on and become the command."""
    parent = int(sys.argv[1])
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before the line above took effect
            sys.exit(1)
    os.execv(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
