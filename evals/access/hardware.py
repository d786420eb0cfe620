"""Bytes that a decoding step reads from a GPU's memory, by the GPU's own counters.

    python -m evals.access.hardware --results results/cpu --out results/cpu/access_hardware.csv

Nsight Compute (`ncu`) runs `python -m evals.decode.latency --one-step ARCH BATCH DTYPE`, which brackets one step of the
benchmark's model by cudaProfilerStart and cudaProfilerStop, and reports each kernel; the sum over kernels is the step's.
Every kernel starts with empty caches (ncu's --cache-control all): a weight is read from memory once by each kernel that
needs it, as in a model far larger than the caches. Activations and the kernels' scratch count as well as weights and cache.
Where ncu or the permission to use it is missing, a sentence says so and the table has no rows.
"""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import yaml

from evals.records import errors, options, schema
from evals.records.errors import UserError
from evals.records.provenance import device_name

FROM_MEMORY, FROM_L2 = "dram__bytes_read.sum", "lts__t_sectors_op_read.sum"
UNITS = {"byte": 1, "Kbyte": 10**3, "Mbyte": 10**6, "Gbyte": 10**9, "Tbyte": 10**12, "sector": 32}
FORBIDDEN = "ERR_NVGPUCTRPERM"


class NoCounters(Exception):
    """This machine's counters cannot be read; the message says why, in a sentence."""


def read_counters(log: str) -> dict[str, float]:
    """Bytes per metric, summed over kernels, from ncu's output in CSV; sectors are 32 bytes.

    Raises:
        NoCounters: the user may not read them.
        ValueError: no kernel was counted, or a line cannot be read; the message quotes it.
    """
    if FORBIDDEN in log:
        raise NoCounters(
            f"the driver keeps this user from the GPU's counters ({FORBIDDEN}): ask for the module option "
            "NVreg_RestrictProfilingToAdminUsers=0, or for the capability SYS_ADMIN in a container"
        )
    lines = [line for line in log.splitlines() if line.startswith('"')]
    rows = csv.DictReader(lines[next((i for i, line in enumerate(lines) if '"Metric Name"' in line), len(lines)) :])
    found: defaultdict[str, float] = defaultdict(float)
    for row in rows:
        if row["Metric Value"] is None:
            raise ValueError(f"ncu's output is cut short in a line of {row.get('Kernel Name')}")
        if row["Metric Name"] in (FROM_MEMORY, FROM_L2):
            try:
                value = float(row["Metric Value"].replace(",", ""))
                found[row["Metric Name"]] += value * UNITS[row["Metric Unit"]]
            except (KeyError, ValueError):
                told = f"{row['Metric Name']} = {row['Metric Value']} {row['Metric Unit']}"
                raise ValueError(f"ncu reports {told} of {row.get('Kernel Name')}") from None
    if not found[FROM_MEMORY]:
        said = [line for line in log.splitlines() if line.startswith(("==ERROR==", "==WARNING=="))]
        raise ValueError(f"ncu counted no kernel: {said[-1] if said else 'it says nothing of why'}")
    return dict(found)


def find_ncu() -> str:
    """Path of ncu. Raises NoCounters where there is none."""
    home = os.environ.get("CUDA_HOME", "")
    found = shutil.which("ncu") or (home and shutil.which("ncu", path=os.path.join(home, "bin")))
    if not found:
        raise NoCounters("Nsight Compute (ncu) is not on the path: no hardware counters")
    return found


def count(ncu: str, results: Path, arch: str, batch: int, dtype: str) -> dict[str, float]:
    """Bytes per metric of one step.

    Raises:
        NoCounters: the user may not read them.
        ValueError: the step failed, or its counters cannot be read.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "ncu.csv"
        command = [
            *(ncu, "--metrics", f"{FROM_MEMORY},{FROM_L2}", "--csv", "--print-units", "base", "--log-file", str(log)),
            *("--profile-from-start", "off", "--cache-control", "all", "--clock-control", "none", "--target-processes", "all"),
            *(sys.executable, "-m", "evals.decode.latency", "--results", str(results), "--one-step", arch, str(batch), dtype),
        ]
        plain = os.environ | {"LC_ALL": "C"}  # in some languages a decimal point is a comma
        done = subprocess.run(command, env=plain, capture_output=True, text=True)
        text = log.read_text() if log.exists() else ""
    if done.returncode and FORBIDDEN not in text:
        raise ValueError((done.stderr.strip().splitlines() or [f"ncu ended with status {done.returncode}"])[-1])
    return read_counters(text)


def hardware_rows(results: Path, archs: list[str], batches: list[int], dtypes: list[str], device: str) -> Iterator[dict]:
    """Rows of `access`; a step that cannot be counted is told on stderr and left out.

    Raises:
        NoCounters: no step can be counted on this machine.
        UserError: the results hold no decode benchmark, or it has no such architecture.
    """
    path = results / "latency.yaml"
    if not path.exists():
        raise UserError(f"{path} is missing: run `snakemake latency`, which writes what the decode benchmark times")
    benchmark = yaml.safe_load(path.read_text())
    settings, models = benchmark["settings"], {entry["arch"]: entry["model"] for entry in reversed(benchmark["models"])}
    unknown = sorted(set(archs) - set(models))
    if unknown:
        raise UserError(f"{path} has no architecture {', '.join(unknown)}; it has {', '.join(sorted(models))}")
    ncu = find_ncu()
    for arch in archs or settings["archs"]:
        shared = models[arch].get("n_kv_heads") not in (None, models[arch]["n_heads"])
        for dtype in dtypes or settings["dtypes"]:
            for batch in batches or settings["batches"]:
                try:
                    found = count(ncu, results, arch, batch, dtype)
                except ValueError as error:
                    print(f"{arch}, batch {batch}, {dtype}: {error}", file=sys.stderr)
                    continue
                memory, l2 = (f"{found.get(metric, 0) / 1e6:10.1f} MB" for metric in (FROM_MEMORY, FROM_L2))
                print(f"{arch:12s} {batch:5d} {dtype}  {memory} from memory  {l2} from L2", flush=True)
                yield {
                    "run": f"{arch}-{settings['size']}",
                    "arch": arch,
                    "size": settings["size"],
                    "part": "model",
                    "kv": "gqa" if shared else "mha",
                    "context": settings["context"],
                    "dtype": dtype,
                    "batch": batch,
                    "routing": "untrained",
                    "kind": "hardware",
                    "bytes": found[FROM_MEMORY],
                    "device": device,
                }


def expected(results: Path, counted: list[dict]) -> list[dict]:
    """The formula's bytes of the counted steps, as `evals.decode.latency` declares them, to hold the counters against."""
    path = results / "latency.csv"
    if not (counted and path.exists()):
        return []
    timed = schema.read(path, "latency")
    timed = timed[(timed["part"] == "model") & (timed["variant"] == "plain")].drop_duplicates(["arch", "batch", "dtype"])
    declared = timed.set_index(["arch", "batch", "dtype"])["bytes_declared"]
    what = {"kind": "declared-expected", "routing": "uniform", "device": None}
    keys = [(row["arch"], row["batch"], row["dtype"]) for row in counted]
    return [row | what | {"bytes": float(declared[at])} for row, at in zip(counted, keys, strict=True) if at in declared]


def main() -> None:
    parser = options.parser(__doc__)
    parser.add_argument("--results", type=Path, required=True, help="results of the preset, with its latency.yaml")
    parser.add_argument("--arch", nargs="*", default=[], help="architectures (default: all of the benchmark)")
    parser.add_argument("--batch", type=int, nargs="*", default=[], help="batches (default: all of the benchmark)")
    parser.add_argument("--dtype", nargs="*", default=[], help="dtypes (default: all of the benchmark)")
    parser.add_argument("--out", type=Path, required=True, help="CSV to write, of the table access")
    args = parser.parse_args()
    rows: list[dict] = []
    try:
        import torch

        if not torch.cuda.is_available():
            raise NoCounters("there is no CUDA device: no hardware counters")
        rows += hardware_rows(args.results, args.arch, args.batch, args.dtype, device_name("cuda"))
    except NoCounters as error:
        print(error, file=sys.stderr)
    schema.write(args.out, "access", rows + expected(args.results, rows))


if __name__ == "__main__":
    errors.run(main)
