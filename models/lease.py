"""The lock of a file between processes, which is never seen without its holder."""

import os
import secrets
import sys
from contextlib import suppress
from errno import EEXIST

from filelock import SoftFileLease


class WholeLease(SoftFileLease):
    """A lease whose file gets its name only once it says who holds it.

    So a process that is killed while it takes the lock leaves nothing that seems held under its
    name. The file is written under another name, which ends in the lock's, and linked. Where the
    filesystem has no links it is written in place.
    """

    def _create_marker(self, path: str, flags: int, opened: list[int]) -> int:
        if sys.platform == "win32":  # an open file cannot be removed there
            return super()._create_marker(path, flags, opened)
        if os.path.lexists(path):
            raise FileExistsError(EEXIST, os.strerror(EEXIST), path)
        folder, name = os.path.split(path)
        new = os.path.join(folder, f".{secrets.token_hex(8)}{name}")
        descriptor = super()._create_marker(new, flags, opened)
        try:
            self._write_lock_info(descriptor)
            os.lseek(descriptor, 0, os.SEEK_SET)  # the caller writes the same once more
            os.link(new, path)
        except OSError as error:
            opened.clear()
            self._mark_descriptor_released()
            os.close(descriptor)
            if isinstance(error, FileExistsError):
                raise
            return super()._create_marker(path, flags, opened)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(new)
        return descriptor
