"""A process in which torch is there and this package is not, and what it is to run."""

import subprocess
import sys

ALONE = """
import sys
sys.modules.update(sparse_engine=None, sparse_kernels=None)
import torch
torch.set_num_threads(1)
"""
# Reads programs, and compares what they give with what is written beside them.
COMPARE = """
for path in sys.argv[1:]:
    read = {read}
    for x, wanted in torch.load(path + ".numbers"):
        torch.testing.assert_close(read(x), wanted)
    print(path, "agrees")
"""


def run_alone(code, folder, *arguments):
    """Run code where torch alone can be imported; return exit code, output and errors."""
    command = [sys.executable, "-W", "ignore", "-c", ALONE + code, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr
