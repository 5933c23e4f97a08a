"""Checks an installed momo_wrap: `python -I tests/smoke.py`, in an environment that has it.

With -I neither this folder nor the current one is on the path, which hold the sources.
"""

import re
import subprocess
import sys
from importlib.metadata import metadata
from importlib.resources import files

import torch

import momo_wrap
from momo_wrap import MoMoWrapper

of_package = metadata("momo_wrap")
assert "site-packages" in str(momo_wrap.__file__), momo_wrap.__file__
assert of_package["Version"] == momo_wrap.__version__
assert (files("momo_wrap") / "py.typed").is_file()

description = str(of_package.get_payload())  # type: ignore[attr-defined]
assert description.startswith("# momo_wrap")
relative = re.findall(r"\]\((?!https?:)[^)]*\)", description)
assert not relative, f"An index can't follow {relative}."

param = torch.nn.Parameter(torch.tensor([3.0]))
optimizer = MoMoWrapper(torch.optim.SGD([param], lr=100.0))
loss = param.square().sum()
loss.backward()
optimizer.step(loss=loss)
# The model is zero at x - f / |g|^2 g = 3 - 9/36 * 6.
assert torch.equal(param.detach(), torch.tensor([1.5])), param

command = [sys.executable, "-I", "-m", "momo_wrap"]
done = subprocess.run(command, capture_output=True, text=True, check=True)
assert done.stdout.startswith(f"momo_wrap:  {momo_wrap.__version__}\n"), done.stdout
assert re.search(r"^compiled: +cpu: (yes|no: .+)$", done.stdout, flags=re.MULTILINE), done.stdout
print(done.stdout, end="")
