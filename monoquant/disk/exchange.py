"""Two names that change places in one step, where the system can do that."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path
from typing import Any

_HERE = -100  # AT_FDCWD
_EXCHANGE = 2  # RENAME_EXCHANGE of Linux, and RENAME_SWAP of macOS
_UNABLE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM)


def exchanged(one: Path, other: Path) -> bool:
    """Let two files or folders change places, so that nobody ever sees a name without anything.

    Args:
        one: Exists.
        other: Exists, on the same file system.

    Returns:
        Whether they did; False where the system, or the file system, has no such step.

    Raises:
        OSError: When the system has it, and it fails.
    """
    library: Any = ctypes.CDLL(None, use_errno=True) if os.name == "posix" else None
    if sys.platform == "linux" and hasattr(library, "renameat2"):
        failed = library.renameat2(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE)
    elif sys.platform == "darwin" and hasattr(library, "renamex_np"):
        failed = library.renamex_np(os.fsencode(one), os.fsencode(other), _EXCHANGE)
    else:
        return False
    number = ctypes.get_errno()
    if failed and number not in _UNABLE:
        raise OSError(number, os.strerror(number), str(other))
    return not failed
