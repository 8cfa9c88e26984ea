"""Running out of memory, said with the figures that tell what to change."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from core.errors import CudaOutOfMemoryError, HostOutOfMemoryError, TrainingError
from core.estimate import Need, available_bytes


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


def require_room(need: Need, batch_size: int, device: torch.device, given_back: int = 0) -> None:
    """Refuses a training that cannot fit, before its memory is taken.

    Args:
        given_back: Bytes of the host that are freed as the features are made.

    Raises:
        CudaOutOfMemoryError, HostOutOfMemoryError: with ``needed_bytes``, ``available_bytes``,
            ``batch_size`` and, in bytes, what of it is for ``table``, ``weights`` and ``batch``.
    """
    on_host = need if device.type == "cpu" else Need(need.table, 0, 0)
    free = available_bytes()
    if free is not None and on_host.total > free + given_back:
        raise _refusal(HostOutOfMemoryError, on_host, free + given_back, batch_size)
    if device.type == "cuda" and need.total > (on_gpu := _free_on(device)):
        raise _refusal(CudaOutOfMemoryError, need, on_gpu, batch_size)


def _free_on(device: torch.device) -> int:
    """Of the GPU: what nobody holds, and what PyTorch holds without use."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def _refusal(error: type[TrainingError], need: Need, free: int, batch_size: int) -> TrainingError:
    where = "of the GPU " if error is CudaOutOfMemoryError else ""
    figures = f"{need.total / 2**30:.2f} GiB {where}and {free / 2**30:.2f} are free"
    return error(
        f"Training needs {figures}: {need.advice}.",
        batch_size=batch_size,
        needed_bytes=need.total,
        available_bytes=free,
        table_bytes=need.table,
        weights_bytes=need.weights,
        batch_bytes=need.batch,
    )


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
