"""Bytes that this worker sends to others, counted at the operators of torch's process groups, whoever calls them."""

import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode


def size(tensor):
    return tensor.numel() * tensor.element_size()


class Sent(TorchDispatchMode):
    """`bytes` by kind of exchange; rings send a gathered tensor's part to P - 1 others, and the same for a scattered sum."""

    def __init__(self):
        super().__init__()
        self.bytes = {}

    @property
    def total(self):
        return sum(self.bytes.values())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, P, rank = func.__name__.split(".")[0], dist.get_world_size(), dist.get_rank()
        if func.namespace == "c10d":
            if "alltoall_base" in name:
                _, given, _, _, splits = args[:5]
                rows = len(given) // P if not splits else splits[rank]
                sent = size(given) - size(given[:1]) * rows if len(given) else 0
            elif "allgather_base" in name:
                sent = size(args[1]) * (P - 1)
            elif "reduce_scatter_base" in name:
                sent = size(args[0]) * (P - 1)
            elif "allreduce" in name:
                sent = sum(2 * size(tensor) * (P - 1) / P for tensor in args[0])
            else:
                raise AssertionError(f"{name} is not counted")
            self.bytes[name] = self.bytes.get(name, 0) + sent
        return func(*args, **(kwargs or {}))
