"""Tie a program's life to its parent's, then become that program: ``exec_shim.py SIGNAL PARENT_PID PROGRAM ARGS…``.

Run as a script by a bare interpreter (``python -I -S``), so it imports nothing of the product. A shim rather than
``preexec_fn``, because running Python between fork and exec can deadlock in a parent that has threads.
"""

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    orphan_signal, parent = int(sys.argv[1]), int(sys.argv[2])
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, orphan_signal) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it died before the tie was made
        sys.exit(1)
    os.execv(sys.argv[3], sys.argv[3:])  # noqa: S606 - becoming the program, without a shell, is the purpose


if __name__ == "__main__":
    main()
