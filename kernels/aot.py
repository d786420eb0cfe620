"""Ahead-of-time gate: compiles every Triton kernel for sm_80 and sm_90 on a machine without a GPU and judges the code.

    python -m kernels.aot [--csv FILE] [--only NAME | --record]

What is compiled is what the wrappers launch: the public functions run on meta tensors, each launch is caught, and its
arguments are specialised as Triton's JIT would (16-byte alignment, constants). Judged, per kernel and architecture:
nothing spilled; table rows moved 128 bits at a time; tensor cores and asynchronous copies in half-precision products;
registers at most MARGIN above those recorded in aot_ceilings.csv (--record rewrites it). Controls that break one rule
each must be rejected, or the gate itself has failed. Exit status 1 on any failure.
"""

import argparse
import collections
import csv
import dataclasses
import hashlib
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # an interpreted kernel cannot be compiled

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from kernels.triton import launch, lookup, topm
from kernels.triton.grouped_mm import Tile, grouped_mm

ARCHITECTURES = (80, 90)
MARGIN = 8  # registers; the allocation granularity of the hardware
CEILINGS = pathlib.Path(__file__).with_name("aot_ceilings.csv")
TOOLS = pathlib.Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclasses.dataclass(frozen=True)
class Case:
    """One kernel as one call launches it, and what its machine code must show."""

    name: str
    kernel: Any
    arguments: tuple
    options: tuple
    wide_loads: int = 0  # 128-bit loads from global memory, at least
    tensor_cores: bool = False
    aligned: bool = True  # False withholds what the JIT knows about alignment
    rejected_for: str = ""  # a control: the complaint it must provoke


@dataclasses.dataclass(frozen=True)
class Build:
    registers: int
    stack_bytes: int
    spills: int
    shared_bytes: int
    loads_128: int
    loads_narrow: int
    async_copies_128: int
    tensor_cores: int
    instructions: int
    ptx_sha256: str


def launches(call: Callable[[], object]) -> list[tuple]:
    """(kernel, arguments, options) of every launch within `call`, none of which happens."""
    caught = []
    start, launch.start = launch.start, lambda kernel, grid, *rest: caught.append((kernel, *rest))
    try:
        call()
    finally:
        launch.start = start
    return caught


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16, grad: bool = False) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta", requires_grad=grad and dtype.is_floating_point)


def forward_and_backward(function: Callable, *arguments: object, **options: object) -> None:
    out = function(*arguments, **options)
    out = out[0] if isinstance(out, tuple) else out
    out.backward(torch.empty_like(out))


def lookups(
    dtype: torch.dtype, width: int, n_cores: int, n_groups: int, n_tokens: int = 4096, deterministic: bool = True
) -> list[tuple]:
    values, weight = meta(1 << 20, width, dtype=dtype, grad=True), meta(n_tokens, 84, n_cores, dtype=dtype, grad=True)
    row, group = meta(n_tokens, 84, dtype=torch.int64), meta(n_tokens, 84, dtype=torch.int64)
    return launches(
        lambda: forward_and_backward(lookup.weighted_lookup, values, row, weight, group, n_groups, deterministic=deterministic)
    )


def products(dtype: torch.dtype, n_rows: int, n_experts: int = 64, tile: Tile | None = None) -> list[tuple]:
    x, weight = meta(n_rows, 768, dtype=dtype, grad=True), meta(n_experts, 768, 384, dtype=dtype, grad=True)
    counts = meta(n_experts, dtype=torch.int64)
    return launches(lambda: forward_and_backward(grouped_mm, x, weight, counts, tile=tile))


def tuckers(n: int, m: int) -> list[tuple]:
    row, col = (meta(1024, 1, n, 2, dtype=torch.float32, grad=True) for _ in range(2))
    core = meta(2, 1, 2, 2, dtype=torch.float32, grad=True)
    u, t = (meta(1, 2, dtype=torch.float32) for _ in range(2))
    return launches(lambda: forward_and_backward(topm.tucker_topm, row, col, core, u, t, m))


def cases() -> Iterator[Case]:
    def named(label: str, caught: list[tuple], roles: tuple[str, ...] | None = None, **expected: Any) -> Iterator[Case]:
        for (kernel, arguments, options), role in zip(caught, roles or [""] * len(caught), strict=False):
            name = " ".join((kernel.fn.__name__.strip("_"), role, label)).replace("  ", " ")
            yield Case(name, kernel, arguments, tuple(options.items()), **expected)

    def wide(dtype: torch.dtype, width: int) -> dict[str, Any]:
        """Loads that bring in the rows in flight: one warp moves 512 bytes at a time."""
        return {"wide_loads": lookup.PICKS * lookup.block(width, lookup.TILE) * dtype.itemsize // 512}

    bf16, fp32 = torch.bfloat16, torch.float32
    yield from named("bf16 C1024", lookups(bf16, 1024, 1, 1), **wide(bf16, 256))
    yield from named("fp32 C1024", lookups(fp32, 1024, 1, 1), **wide(fp32, 256))
    yield from named("bf16 C144 h2 G4", lookups(bf16, 144, 2, 4), **wide(bf16, 72))
    yield from named("bf16 C200", lookups(bf16, 200, 1, 1)[:2], **wide(bf16, 200))
    yield from named("bf16 C1024 T1", lookups(bf16, 1024, 1, 1, n_tokens=1)[:1], **wide(bf16, 256))
    yield from named("bf16 C1024", lookups(bf16, 1024, 1, 1, deterministic=False)[1:2], wide_loads=1)
    roles = ("forward", "grad x", "grad weight")
    yield from named("bf16 S8192", products(bf16, 8192), roles, tensor_cores=True)
    for rows in (64, 2048, 4096):
        yield from named(f"bf16 S{rows}", products(bf16, rows)[:2], roles, tensor_cores=True)
    yield from named("fp32 S8192", products(fp32, 8192), roles)
    yield from named("n512 m32", launches(lambda: forward_and_backward(
        topm.product_topm, *(meta(1024, 4, 512, dtype=fp32, grad=True) for _ in range(2)), 32
    )))  # fmt: skip
    yield from named("tucker n720 m42", tuckers(720, 42))
    yield from named("tucker n2048 m80", tuckers(2048, 80))
    yield from named("tucker n964 m94", tuckers(964, 94)[:1])

    unaligned = lookups(bf16, 1024, 1, 1)[:1]
    yield from named("control: unaligned", unaligned, **wide(bf16, 256), aligned=False, rejected_for="128-bit")
    tall = Tile(128, 128, 64, 4, 3)
    yield from named("control: fp32 tile", products(fp32, 8192, tile=tall)[:1], rejected_for="spill")
    small = products(fp32, 64)[:1]
    yield from named("control: no tensor cores", small, tensor_cores=True, rejected_for="tensor")


def tool(name: str, path: str) -> str:
    flags = ["-res-usage"] if name == "cuobjdump" else ["-c"]
    return subprocess.run([TOOLS / name, *flags, path], capture_output=True, text=True, check=True).stdout


OPCODE = re.compile(r"^\s*(?:/\*[0-9a-f]+\*/)?\s*(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]+(?:\.[A-Za-z0-9_]+)*)", re.M)


def count_instructions(sass: str) -> dict[str, int]:
    """Numbers for Build out of nvdisasm's text. A vector of four floats is written F32x4 or 128."""
    counts: collections.Counter[str] = collections.Counter()
    for opcode in OPCODE.findall(sass):
        kind, *modifiers = opcode.split(".")
        is_wide = not {"128", "F32x4"}.isdisjoint(modifiers)
        counts["instructions"] += 1
        counts["spills"] += kind in ("STL", "LDL")
        counts["loads_128"] += kind == "LDG" and is_wide
        counts["loads_narrow"] += kind == "LDG" and not is_wide
        counts["async_copies_128"] += kind == "LDGSTS" and is_wide
        counts["tensor_cores"] += kind in ("HMMA", "HGMMA")
    names = {field.name for field in dataclasses.fields(Build)}
    return {name: counts[name] for name in names if name in counts}


def compile_case(case: Case, architecture: int) -> Build:
    target = GPUTarget("cuda", architecture, 32)
    backend = make_backend(target)
    binder = create_function_from_signature(case.kernel.signature, case.kernel.params, backend)
    bound, specialization, given = binder(*case.arguments, **dict(case.options))
    options, signature, constants, attributes = case.kernel._pack_args(backend, given, bound, specialization, given)
    source = ASTSource(case.kernel, signature, constants, attributes if case.aligned else {})
    compiled = triton.compile(source, target=target, options=options.__dict__)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = tool("cuobjdump", file.name)
        counts = count_instructions(tool("nvdisasm", file.name))
    ((registers, stack),) = re.findall(r"REG:(\d+) STACK:(\d+)", usage)[:1]
    ptx = hashlib.sha256(compiled.asm["ptx"].encode()).hexdigest()[:12]
    zeros: dict[str, Any] = {field.name: 0 for field in dataclasses.fields(Build)}
    return Build(
        **zeros | counts
        | {"registers": int(registers), "stack_bytes": int(stack), "shared_bytes": compiled.metadata.shared, "ptx_sha256": ptx}
    )  # fmt: skip


def complaints(case: Case, build: Build, ceiling: int | None) -> list[str]:
    """Every rule that the machine code breaks, in words; ceiling: the most registers it may use, None if not recorded."""
    found = []
    if build.spills or build.stack_bytes:
        found.append(f"{build.spills} spill instructions, {build.stack_bytes} bytes of stack")
    if build.loads_128 < case.wide_loads:
        found.append(f"{build.loads_128} 128-bit loads, {case.wide_loads} expected")
    if case.tensor_cores and not build.tensor_cores:
        found.append("no tensor core instruction")
    if case.tensor_cores and not build.async_copies_128:
        found.append("no 128-bit asynchronous copy")
    if ceiling is None:
        found.append("no register count recorded (--record)")
    elif build.registers > ceiling:
        found.append(f"{build.registers} registers, at most {ceiling} expected")
    return found


def judge(case: Case, build: Build, ceiling: int | None) -> tuple[bool, str]:
    """(passed, complaints): a case passes without complaint, a control with the one it was made for."""
    found = complaints(case, build, ceiling)
    passed = any(case.rejected_for in words for words in found) if case.rejected_for else not found
    return passed, "; ".join(found)


def read_ceilings(path: pathlib.Path = CEILINGS) -> dict[tuple[str, int], int]:
    with path.open(newline="") as file:
        return {(row["case"], int(row["sm"])): int(row["registers"]) + MARGIN for row in csv.DictReader(file)}


def write_csv(path: pathlib.Path, rows: list[dict[str, Any]], columns: list[str]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m kernels.aot", description=__doc__.split("\n")[0], epilog="example: python -m kernels.aot --only topm"
    )
    parser.add_argument("--csv", type=pathlib.Path, help="write the table to this file")
    parser.add_argument("--record", action="store_true", help=f"make the register counts found those of {CEILINGS.name}")
    parser.add_argument("--only", default="", metavar="NAME", help="only cases whose name begins so, such as topm")
    options = parser.parse_args(argv)
    chosen = [case for case in cases() if case.name.startswith(options.only)]
    if not chosen or (options.only and options.record):
        parser.error("--record takes no --only" if chosen else f"no case begins with {options.only!r}")
    ceilings, rows = {} if options.record else read_ceilings(), []
    columns = ["registers", "spills", "shared_bytes", "loads_128", "loads_narrow", "async_copies_128", "tensor_cores"]
    print(f"{'case':44s} sm " + " ".join(columns))
    for case in chosen:
        for sm in ARCHITECTURES:
            build = compile_case(case, sm)
            free = options.record or case.rejected_for
            passed, found = judge(case, build, build.registers if free else ceilings.get((case.name, sm)))
            rows.append(dict(case=case.name, sm=sm, **dataclasses.asdict(build), passed=passed, complaints=found))
            numbers = " ".join(f"{getattr(build, name):{len(name)}d}" for name in columns)
            print(f"{case.name:44s} {sm} {numbers} {'ok' if passed else 'FAILED'} {found}", flush=True)
    if options.record:
        write_csv(CEILINGS, [row for row in rows if "control" not in row["case"]], ["case", "sm", "registers"])
    if options.csv:
        write_csv(options.csv, rows, list(rows[0]))
    failed = [f"{row['case']} sm_{row['sm']}: {row['complaints'] or 'not rejected'}" for row in rows if not row["passed"]]
    print(f"{len(rows)} builds, {len(failed)} failed", *failed, sep="\n  ")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
