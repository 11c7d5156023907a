import subprocess
import sys

import pytest

PRODUCTS = """
import reward_model, torch
torch.set_num_threads(2)
torch.manual_seed(0)
weight, row = torch.randn({outputs}, {inputs}), torch.randn({inputs})
results = set()
for rows in (64, 128, 192, 256, 320, 512, 640, 1024):
    x = torch.randn(rows, {inputs})
    x[rows // 3] = row
    results.add(tuple(torch.nn.functional.linear(x, weight)[rows // 3].tolist()))
print(len(results))
"""


@pytest.mark.parametrize(("inputs", "outputs"), [(1536, 384), (1408, 512), (4864, 896)])
def test_a_row_does_not_depend_on_the_number_of_rows(inputs: int, outputs: int) -> None:
    """MLPs of real models. In a process of its own: the mode is fixed at the first product."""
    code = PRODUCTS.format(inputs=inputs, outputs=outputs)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
