"""Memory that a step frees is there for the next one.

The C library gives large blocks back to the system as soon as they are freed, and a step that asks for them again has its pages
made and cleared anew, thousands of them: half of a step's CPU time where feature maps are large.
"""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h
PAD = 64 << 20  # bytes by which the heap grows at least


def keep_freed_memory() -> bool:
    """Ask glibc to keep what this process frees until it ends; returns whether there was somebody to ask.

    For a process that trains on a CPU. The memory it holds is then its peak, which every step reaches anyway.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    wanted = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1, M_TOP_PAD: PAD}
    taken = [mallopt(option, value) for option, value in wanted.items()]
    return all(taken)
