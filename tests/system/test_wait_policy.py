"""OpenMP's threads sleep while they wait, whether torch is imported after the package or before: CPU time tells."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# A round is an operation of two threads, then a rest, during which nothing is to be done.
ROUNDS = """
import time
torch.set_num_threads(2)
x = torch.ones(1 << 17)
x.exp()
spent = 0.0
for _ in range(20):
    x.exp()
    begun = time.process_time()
    time.sleep(0.02)
    spent += time.process_time() - begun
print(spent)
"""


def spent_waiting(imports, **environment):
    """Seconds of CPU time that a process with these imports takes for 20 rests."""
    clean = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "OMP_NUM_THREADS")}
    code = "".join(f"import {name}\n" for name in imports) + ROUNDS
    return float(subprocess.check_output([sys.executable, "-c", code], env=clean | environment))


@pytest.mark.skipif(
    sys.platform != "linux" or (os.cpu_count() or 1) < 2, reason="torch has GNU's OpenMP on Linux alone"
)
def test_threads_sleep_while_they_wait():
    spinning = spent_waiting(["torch"])
    assert spent_waiting(["llama3_scratch", "torch"]) < spinning / 2
    assert spent_waiting(["torch", "llama3_scratch"]) < spinning / 2


@pytest.mark.skipif(sys.platform != "linux", reason="torch has GNU's OpenMP on Linux alone")
@pytest.mark.parametrize("name, value", [("OMP_WAIT_POLICY", "ACTIVE"), ("GOMP_SPINCOUNT", "7")])
@pytest.mark.parametrize("imports", [("torch", "llama3_scratch"), ("llama3_scratch",)])
def test_ones_own_policy_stays(name, value, imports):
    code = "import os, threading\n" + "".join(f"import {name}\n" for name in imports)
    code += f"print(os.environ.get('OMP_WAIT_POLICY'), os.environ['{name}'], threading.active_count())"
    clean = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    said = subprocess.check_output([sys.executable, "-c", code], env=clean | {name: value}, text=True).split()
    assert said == ["ACTIVE" if name == "OMP_WAIT_POLICY" else "None", value, "1"]
