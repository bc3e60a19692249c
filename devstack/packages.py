"""Programs the stack needs from the system: installed where that needs no question, else named."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence

from devstack.service import StackError


def install(what: str, candidates: Sequence[str]) -> None:
    """Install the first of these Debian packages that the system knows, or raise StackError.

    Done without asking only for root on Debian and its kin, where `apt-get` needs no password.
    """
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise StackError(f"{what} is missing; install it with: sudo apt-get install {candidates[0]}")
    print(f"Installing {what} with apt-get ...", file=sys.stderr, flush=True)
    _apt("apt-get", "-qq", "update")
    for package in candidates:
        if _apt("apt-cache", "show", package).returncode == 0:
            break
    else:
        raise StackError(f"{what} is missing, and apt-get knows none of: {', '.join(candidates)}")
    command = (
        "apt-get",
        "-qq",
        "-y",
        "--no-install-recommends",
        "-o",
        "DPkg::Lock::Timeout=300",
        "install",
        package,
    )
    done = _apt(*command)
    if done.returncode != 0:
        raise StackError(f"{what} is missing and `{' '.join(command)}` failed:\n{done.stdout[-2000:]}")


def _apt(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
