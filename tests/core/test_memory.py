import os

import numpy as np
import pytest
import torch

from core.errors import CudaOutOfMemoryError, HostOutOfMemoryError
from core.memory import memory_errors

CPU = torch.device("cpu")
FAR_TOO_MANY = 2**56


@pytest.mark.parametrize("allocate", [torch.empty, np.empty, lambda count: bytearray(count)])
def test_running_out_of_memory_names_the_batch_size_and_the_memory(allocate):
    message = r"ran out of memory .*lower batch_size \(4096\)"
    with pytest.raises(HostOutOfMemoryError, match=message) as caught, memory_errors(4096, CPU):
        allocate(FAR_TOO_MANY)
    details = caught.value.details
    assert details["batch_size"] == 4096
    assert 0 < details["allocated_bytes"] <= details["total_bytes"]
    assert details["total_bytes"] == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert len(caught.value.message) < 100


@pytest.mark.parametrize("error", [RuntimeError("size mismatch"), ValueError("no")])
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error)) as caught, memory_errors(8, CPU):
        raise error
    assert caught.value is error


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_full_gpu_is_named_as_one():
    device = torch.device("cuda:0")
    with pytest.raises(CudaOutOfMemoryError, match="The GPU ran out") as caught, memory_errors(8, device):
        torch.empty(2**50, device=device)
    assert caught.value.details["total_bytes"] > 2**30
