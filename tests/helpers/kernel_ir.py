"""Triton's intermediate code of a kernel as `kernels.aot` would compile it, and the widths of the addresses in it."""

import contextlib
import re

import triton
from triton._C.libtriton import ir, passes

from kernels import aot

DEFINED = re.compile(r"^\s*(%[\w#:]+) = (\S+) (.*)$", re.M)


def code(monkeypatch, case) -> str:
    """The code before any optimisation; nothing is compiled further."""
    found = []

    class Stop(Exception):
        pass

    def instead(source, target, options):
        backend = triton.compiler.make_backend(target)
        context = ir.context()
        ir.load_dialects(context)
        backend.load_dialects(context)
        parsed = backend.parse_options(options)
        functions, modules = backend.get_codegen_implementation(parsed), backend.get_module_map()
        made = source.make_ir(target, parsed, functions, modules, context)
        inliner = ir.pass_manager(made.context)
        passes.common.add_inliner(inliner)
        inliner.run(made, "inline")
        found.append(re.sub(r" loc\(.*\)$", "", str(made), flags=re.M))
        raise Stop

    monkeypatch.setattr(aot.triton, "compile", instead)
    with contextlib.suppress(Stop):
        aot.compile_case(case, 90)
    return found[0]


def accesses(text: str) -> list[tuple[str, set[str]]]:
    """(kernel argument, integer types of the offsets added to it) of every load, store and atomic addition.

    All functions are inlined; a name of one branch may come again in the next, so the latest definition counts.
    """
    known: dict[str, tuple[str, str]] = {}
    found = []
    for line in text.splitlines():
        if access := re.search(r"tt\.(?:load|store|atomic_rmw)[^%]*(%[\w#]+)", line):
            types, name = set(), access[1]
            while name in known:
                operation, rest = known[name]
                if operation == "tt.addptr":
                    types |= set(re.findall(r"i32|i64", rest.rpartition(",")[2]))
                name = re.findall(r"%[\w#]+", rest)[0]
            found.append((name.removeprefix("%"), types))
        if defined := DEFINED.match(line):
            known[defined[1].split(":")[0]] = defined[2], defined[3]
    return found


def narrow_products(text: str, width: int) -> list[str]:
    """32-bit products with a constant `width`, but for those of the number of a core, which is within its row."""
    known = {name: (operation, rest) for name, operation, rest in DEFINED.findall(text)}

    def constant(name: str) -> bool:
        operation, rest = known.get(name, ("", ""))
        spread = operation == "tt.splat" and constant(re.findall(r"%[\w#]+", rest)[0])
        return spread or (operation == "arith.constant" and re.search(rf"\b{width}\b", rest) is not None)

    found = []
    for operation, rest in known.values():
        sides = re.findall(r"%[\w#]+", rest)
        core = any(known.get(side, ("",))[0] in ("arith.divsi", "tt.get_program_id") for side in sides)
        if operation == "arith.muli" and rest.endswith(("i32", "i32>")) and any(map(constant, sides)) and not core:
            found.append(f"{operation} {rest}")
    return found
