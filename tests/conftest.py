import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
pytest.register_assert_rewrite("cpu_kernels", "made_up_wheels", "one_rounding")  # helpers that compare

# Whole workflows, compilers and processes that are killed: first, so that no worker is left with one of them at the end.
LONG = ("workflows/test_workflow", "workflows/test_training", "workflows/test_command", "test_readme", "kernels/test_dispatch")
LONG += ("workflows/test_ablate", "kernels/test_aot", "kernels/test_triton", "workflows/test_progress", "reports/test_report")
LONG += ("slurm/test_slurm", "workflows/test_faults", "workflows/test_parallel")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if wanting := [item for item in items if item.get_closest_marker("gpu")]:
        import torch

        if not torch.cuda.is_available():
            for item in wanting:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))

    def place(item: pytest.Item) -> int:
        return next((i for i, name in enumerate(LONG) if name in item.nodeid), len(LONG))

    items.sort(key=place)
