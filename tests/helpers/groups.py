"""Functions run by several gloo workers of this machine at once, forked from this process."""

import os
import traceback
from datetime import timedelta

import torch
import torch.distributed as dist
from ports import free_ports


def together(workers, work):
    """Calls work(rank) in each worker of a process group; all have to end well."""
    (port,), threads = free_ports(1), torch.get_num_threads()
    pids = []
    for rank in range(workers):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                torch.set_num_threads(1)
                os.environ.update(RANK=str(rank), WORLD_SIZE=str(workers), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
                dist.init_process_group("gloo", timeout=timedelta(seconds=60))
                work(rank)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        pids.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * workers
    assert torch.get_num_threads() == threads
