"""What failed for a moment is tried again, later each time; what a server says for good is raised, with the shard."""

from __future__ import annotations

import errno
import os
import time
import urllib.error
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

ATTEMPTS = 5
PAUSE = 0.5  # seconds before the third attempt, twice as long before each further one; the second comes at once
_BUSY = (408, 425, 429, 500, 502, 503, 504)
_MISSING, _FORBIDDEN = (404, 410), (401, 403)
_FOR_GOOD = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


def retried(
    url: str,
    action: Callable[[], T],
    errors: tuple[type[Exception], ...],
    before_again: Callable[[], None] | None = None,
) -> T:
    """The result of ``action``, which reads from ``url``, in at most ``ATTEMPTS`` attempts.

    Args:
        url: of the shard, for the messages.
        action: called again where it raises one of ``errors``, or where a server is busy (HTTP 429, 503, …).
        errors: those that may pass.
        before_again: called before each further attempt.

    Raises:
        FileNotFoundError, PermissionError: as the server says.
        ConnectionError: the last attempt has failed too.
    """
    for attempt in range(1, ATTEMPTS + 1):
        if attempt > 1 and before_again is not None:
            before_again()
        if attempt > 2:
            time.sleep(PAUSE * 2 ** (attempt - 3))
        try:
            return action()
        except urllib.error.HTTPError as error:
            error.close()
            if error.code not in _BUSY:
                raise _answered(url, error) from None
            failed: Exception = error
        except _FOR_GOOD as error:
            number = error.errno or errno.ENOENT
            raise type(error)(number, error.strerror or os.strerror(number), url) from error
        except errors as error:
            failed = error
    raise ConnectionError(f"{url} cannot be read, in {ATTEMPTS} attempts: {failed}") from failed


def _answered(url: str, error: urllib.error.HTTPError) -> OSError:
    reason = f"the server answers {error.code} {error.reason}"
    if error.code in _MISSING:
        return FileNotFoundError(errno.ENOENT, reason, url)
    if error.code in _FORBIDDEN:
        return PermissionError(errno.EACCES, reason, url)
    return OSError(f"{url} cannot be read: {reason}")
