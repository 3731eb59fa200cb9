"""What the allocator does with the buffers of the wire, for this whole process."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
# Where glibc's own adjustment ends, on 64 bits, once a block of 32 MiB has been freed: mallopt(3).
MMAP_THRESHOLD_BYTES = 32 << 20
TRIM_THRESHOLD_BYTES = 2 * MMAP_THRESHOLD_BYTES


def reuse_freed_memory() -> None:
    """Lets glibc keep freed buffers for the next message; elsewhere, changes nothing.

    libzmq takes fresh memory for every chunk. glibc would give it back to the kernel each time, and
    have it zeroed when it comes again: 16 page faults a MiB at either end, 3 with this.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
        mallopt(M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)
