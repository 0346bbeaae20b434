"""A program that runs another one for as long as somebody holds its standard input open.

``python -m spar_lite.engines.guard COMMAND ...`` leads a process group of its own, with the command
and its children in it. When the pipe at its input ends, because the run closed it, or was killed,
the group is asked to end, and after ``GRACE`` seconds made to. So no run leaves a server behind.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time

GRACE = 20.0


def main() -> None:
    """Run the command given by the arguments; end with its process group, whatever comes."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # a handler: the command would inherit SIG_IGN
    try:
        child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    except OSError as error:
        sys.exit(f"{sys.argv[1]}: {error.strerror}")
    while child.poll() is None and not select.select([0], [], [], 0.2)[0]:
        pass
    if child.returncode is None:
        os.killpg(0, signal.SIGTERM)
    deadline = time.monotonic() + GRACE
    while child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(0, signal.SIGKILL)  # what its children left, and this process


if __name__ == "__main__":
    main()
