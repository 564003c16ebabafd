"""Tie a program's life to its parent's, then become that program.

``exec_shim.py SIGNAL PARENT_PID USER PROGRAM ARGS…``; an empty USER keeps the user.

Run as a script by a bare interpreter (``python -I -S``), so it imports nothing of the product. A shim rather than
``preexec_fn``, because running Python between fork and exec can deadlock in a parent that has threads.
"""

import ctypes
import os
import pwd
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    orphan_signal, parent, user = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    if user:
        _become(user)  # first, because a change of user undoes the tie
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, orphan_signal) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it died before the tie was made
        sys.exit(1)
    os.execv(sys.argv[4], sys.argv[4:])  # noqa: S606 - becoming the program, without a shell, is the purpose


def _become(user: str) -> None:
    account = pwd.getpwnam(user)
    os.initgroups(user, account.pw_gid)
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)


if __name__ == "__main__":
    main()
