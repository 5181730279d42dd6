"""Commands as a user types them: a process of its own, one device, a directory without a checkout."""
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def command(*arguments, where, seconds=1200):
  """(exit code, everything printed) of python -m ARGUMENTS in the folder `where`."""
  environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  done = subprocess.run([sys.executable, "-m", *arguments], cwd=where, capture_output=True, text=True, timeout=seconds,
                        env={**environment, "PYTHONPATH": str(ROOT)})
  return done.returncode, done.stdout + done.stderr
