"""Commands as a user types them: a process of its own, one device, a directory without a checkout."""
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
# A test's programs run once or a few times, and compiling them was most of its time: so it takes a fifth.
HASTY = ("--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
         " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1")


def command(*arguments, where, seconds=1200, flags=HASTY):
  """(exit code, everything printed) of python -m ARGUMENTS in the folder `where`; "" are a user's own `flags`."""
  environment = {**os.environ, "XLA_FLAGS": flags}
  done = subprocess.run([sys.executable, "-m", *arguments], cwd=where, capture_output=True, text=True, timeout=seconds,
                        env={**environment, "PYTHONPATH": str(ROOT)})
  return done.returncode, done.stdout + done.stderr
