"""Running out of memory, said with the figures that tell what to change."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from core.errors import CudaOutOfMemoryError, HostOutOfMemoryError, TrainingError


@contextmanager
def memory_errors(batch_size: int, device: torch.device) -> Iterator[None]:
    """Names what PyTorch and NumPy say where memory runs out, on the device or on the host.

    Raises:
        CudaOutOfMemoryError, HostOutOfMemoryError: with ``batch_size``, ``allocated_bytes``, ``total_bytes``.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        allocated = torch.cuda.memory_allocated(device)
        total = torch.cuda.get_device_properties(device).total_memory
        raise _error(CudaOutOfMemoryError, "The GPU", batch_size, allocated, total) from error
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "can't allocate memory" not in str(error):
            raise
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        raise _error(HostOutOfMemoryError, "The trainer", batch_size, peak, total) from error


def _error(
    error: type[TrainingError], where: str, batch_size: int, allocated: int, total: int
) -> TrainingError:
    used = f"{allocated / 2**30:.1f} of {total / 2**30:.1f} GiB in use"
    return error(
        f"{where} ran out of memory ({used}): lower batch_size ({batch_size}) or hidden_dim.",
        batch_size=batch_size,
        allocated_bytes=allocated,
        total_bytes=total,
    )
