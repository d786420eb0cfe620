"""Memory tracer and sanitizer: every address that a Triton kernel touches, from Triton's interpreter, without a GPU.

    with Trace() as trace:
        weighted_lookup(values, row, weight)
    trace.requested("values"), trace.unique("values"), trace.problems()

Each tensor argument of a launch is moved to an address range of its own, 16 TiB apart, and every access is translated
back. So an access is attributed to the pointer it was computed from, one out of bounds is seen whatever lies there (and
not carried out), and a `Phantom` stands for a table too large to allocate. Reported: accesses out of bounds; races, one
program writing what another reads or writes within a launch, atomics aside; and hazards, a program reading what it
wrote itself with no barrier in between, which on a GPU another thread may have written.

Needs TRITON_INTERPRET=1 before Triton is imported. The interpreter's internals used here are those of Triton 3.7.
"""

import dataclasses
import inspect

import numpy as np
import torch
import triton
from triton.runtime import interpreter

SPACING = 44  # bits: one argument's share of the address space
LOAD, STORE, ATOMIC = "load", "store", "atomic"


@dataclasses.dataclass(frozen=True)
class Phantom:
    """A contiguous tensor that is not there: loads give zero, stores vanish, addresses are checked and recorded."""

    shape: tuple
    dtype: torch.dtype

    def data_ptr(self):
        return 0

    def extent(self):
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Access:
    """One load, store or atomic of one program: the bytes at `offset` from the start of argument `name`."""

    kind: str
    name: str
    program: tuple
    barriers: int  # passed by the program before this access
    offset: np.ndarray
    width: int


@dataclasses.dataclass
class Launch:
    kernel: str
    tensors: dict  # argument name -> Tensor or Phantom
    accesses: list


def _extent(tensor):
    """Bytes from a tensor's first element to the end of its last."""
    if isinstance(tensor, Phantom):
        return tensor.extent()
    if not tensor.numel():
        return 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


class Trace:
    """Context within which every interpreted launch is recorded in `launches`."""

    def __init__(self):
        if not triton.knobs.runtime.interpret:
            raise ValueError("Trace: kernels run compiled; set TRITON_INTERPRET=1 before Triton is imported")
        self.launches = []
        self._barriers = {}

    def __enter__(self):
        builder = interpreter.InterpreterBuilder
        hooks = {
            (interpreter.GridExecutor, "__call__"): self._call,
            (interpreter.GridExecutor, "_init_args_hst"): self._to_host,
            (interpreter.GridExecutor, "_restore_args_dev"): self._to_device,
            (interpreter, "_implicit_cvt"): self._convert,
            (builder, "create_masked_load"): self._load,
            (builder, "create_masked_store"): self._store,
            (builder, "create_atomic_rmw"): self._atomic,
            (builder, "create_atomic_cas"): self._refuse,
            (builder, "create_barrier"): self._barrier,
        }
        self._originals = {name: (owner, getattr(owner, name)) for owner, name in hooks}
        for (owner, name), hook in hooks.items():
            setattr(owner, name, _bound(hook) if inspect.isclass(owner) else hook)
        return self

    def __exit__(self, *_):
        for name, (owner, original) in self._originals.items():
            setattr(owner, name, original)

    def _original(self, name):
        return self._originals[name][1]

    def _call(self, executor, *arguments, **options):
        names = inspect.getfullargspec(executor.fn).args
        bound = inspect.getcallargs(executor.fn, *arguments, **{k: v for k, v in options.items() if k in names})
        tensors = {name: value for name, value in bound.items() if hasattr(value, "data_ptr")}
        self.launches.append(Launch(executor.fn.__name__, tensors, []))
        self._bases = {}
        self._barriers = {}
        return self._original("__call__")(executor, *arguments, **options)

    def _to_host(self, executor, arguments, options):
        return arguments, options

    def _to_device(self, *_):
        pass

    def _convert(self, argument):
        converted = self._original("_implicit_cvt")(argument)
        if hasattr(argument, "data_ptr"):
            # Arguments are converted in order; a tensor passed twice gets a range each, and real addresses tell races.
            place = 1 + len(self._bases)
            self._bases[place] = (list(self.launches[-1].tensors)[place - 1], argument)
            converted.handle.data = np.array([place << SPACING], dtype=np.uint64)
        return converted

    def _translate(self, builder, kind, pointers, mask):
        """Records the access; returns pointers to the real memory and the mask of those that exist."""
        fake = np.asarray(pointers.data).astype(np.int64)
        wanted = np.broadcast_to(np.asarray(mask.data, dtype=bool), fake.shape)
        width = pointers.get_element_ty().primitive_bitwidth // 8
        program = tuple(builder.grid_idx)
        real, exists = np.zeros_like(fake), np.zeros(fake.shape, dtype=bool)
        # A pointer may leave its range downwards; half a range below the start still belongs to it.
        places = (fake + (1 << (SPACING - 1))) >> SPACING
        for place in np.unique(places[wanted]):
            name, tensor = self._bases.get(int(place), ("nothing", Phantom((0,), torch.uint8)))
            here = wanted & (places == place)
            offset = fake - (int(place) << SPACING)
            access = Access(kind, name, program, self._barriers.get(program, 0), offset[here], width)
            self.launches[-1].accesses.append(access)
            if not isinstance(tensor, Phantom):
                inside = here & (offset >= 0) & (offset + width <= _extent(tensor))
                real = np.where(inside, offset + tensor.data_ptr(), real)
                exists |= inside
        return interpreter.TensorHandle(real.astype(np.uint64), pointers.dtype), interpreter.TensorHandle(exists, mask.dtype)

    def _load(self, builder, pointers, mask, other, *rest):
        real, exists = self._translate(builder, LOAD, pointers, mask)
        return self._original("create_masked_load")(builder, real, exists, other, *rest)

    def _store(self, builder, pointers, value, mask, *rest):
        real, exists = self._translate(builder, STORE, pointers, mask)
        return self._original("create_masked_store")(builder, real, value, exists, *rest)

    def _atomic(self, builder, operation, pointers, value, mask, *rest):
        real, exists = self._translate(builder, ATOMIC, pointers, mask)
        return self._original("create_atomic_rmw")(builder, operation, real, value, exists, *rest)

    def _refuse(self, *_):
        raise NotImplementedError("Trace: compare-and-swap is not traced")

    def _barrier(self, builder):
        program = tuple(builder.grid_idx)
        self._barriers[program] = self._barriers.get(program, 0) + 1

    def accesses(self, name, kinds=(LOAD,), kernel=None):
        """Every Access to argument `name`, of one kernel or all."""
        for launch in self.launches:
            if kernel in (None, launch.kernel):
                yield from (access for access in launch.accesses if access.name == name and access.kind in kinds)

    def requested(self, name, kinds=(LOAD,), kernel=None):
        """Bytes that all accesses to argument `name` asked for, each counted as often as it was made."""
        return sum(access.offset.size * access.width for access in self.accesses(name, kinds, kernel))

    def unique(self, name, kinds=(LOAD,), kernel=None):
        """Bytes of argument `name` that were touched at least once; launches must pass the same tensor."""
        found = list(self.accesses(name, kinds, kernel))
        return len(np.unique(np.concatenate([access.offset for access in found]))) * found[0].width if found else 0

    def problems(self):
        """What is wrong, one sentence each; empty when nothing is."""
        return [problem for launch in self.launches for problem in _problems(launch)]


def _bound(hook):
    """A function, so that it becomes a method of the class it replaces one in."""
    return lambda owner, *arguments, **options: hook(owner, *arguments, **options)


def _problems(launch):
    for access in launch.accesses:
        extent = _extent(launch.tensors[access.name]) if access.name in launch.tensors else 0
        outside = (access.offset < 0) | (access.offset + access.width > extent)
        if outside.any():
            yield (
                f"{launch.kernel}: program {access.program} {access.kind}s {outside.sum()} elements of {access.name} out "
                f"of bounds, first at byte {access.offset[outside][0]} of {extent}"
            )
    yield from _conflicts(launch)


def _conflicts(launch):
    """Races between programs and hazards within one, by real address: the same bytes may be passed as two arguments."""
    if not any(access.kind == STORE for access in launch.accesses):
        return
    columns = []
    programs = {program: i for i, program in enumerate({access.program: None for access in launch.accesses})}
    bases, phantom_base = {}, 1 << 60
    for i, (name, tensor) in enumerate(launch.tensors.items()):
        bases[name] = phantom_base + (i << SPACING) if isinstance(tensor, Phantom) else tensor.data_ptr()
    written = np.unique(np.concatenate([bases.get(a.name, 0) + a.offset for a in launch.accesses if a.kind == STORE]))
    for access in launch.accesses:
        address = bases.get(access.name, 0) + access.offset
        address = np.unique(address[np.isin(address, written)])
        same = (programs[access.program], access.barriers, (LOAD, STORE, ATOMIC).index(access.kind))
        columns.append(np.stack([address, *(np.full_like(address, number) for number in same)]))
    address, program, barriers, kind = np.concatenate(columns, axis=1)

    def mixed(group, value):
        """Members of groups whose values are not all equal."""
        _, group = np.unique(group, return_inverse=True)
        low, high = np.full(group.max() + 1, np.inf), np.full(group.max() + 1, -np.inf)
        np.minimum.at(low, group, value)
        np.maximum.at(high, group, value)
        return (low != high)[group]

    raced = np.unique(address[mixed(address, program)])
    if len(raced):
        yield f"{launch.kernel}: {len(raced)} addresses are written by one program and touched by another"
    interval = np.unique(np.stack([address, program, barriers]), axis=1, return_inverse=True)[1].ravel()
    hazard = np.unique(address[mixed(interval, kind)])
    if len(hazard):
        yield f"{launch.kernel}: {len(hazard)} addresses are written and read by a program without a barrier in between"
