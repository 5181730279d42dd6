"""Eight virtual devices on the CPU, no network, compiled programs kept between runs: set before jax is imported."""
import os
import sys
import tempfile
import zlib
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(Path(__file__).parent / "support"))  # toy.py, commands.py and others

from commands import HASTY  # noqa: E402

if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
  # Eight devices share a few threads: collectives that do not wait for each other must start in one order on all of
  # them, or each holds a thread that another one needs, and XLA aborts after 40 seconds.
  os.environ["XLA_FLAGS"] = (f"{os.environ.get('XLA_FLAGS', '')} {HASTY} --xla_force_host_platform_device_count=8"
                             " --xla_cpu_enable_concurrency_optimized_scheduler=false")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"align-tests-jax-{os.getuid()}"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's own notes
os.environ.setdefault("MPLBACKEND", "agg")
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
  os.environ.setdefault(variable, "1")  # two test processes share the cores

import pytest  # noqa: E402
from absl import flags  # noqa: E402

flags.FLAGS.mark_as_parsed()  # Grain's workers ask for absl flags
SPLIT = "ALIGN_TESTS_SPLIT"  # set where tests are handed out to processes, which inherit it and must not do so again


def pytest_addoption(parser):
  parser.addoption("--slow-quarter", type=int, choices=range(4), help="of the slow tests, run one quarter only")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
  """Two processes where nothing else is asked for; a file stays in one of them, so that it compiles once."""
  option, is_worker = config.option, {SPLIT, "PYTEST_XDIST_WORKER"} & set(os.environ)
  is_one_file = len(config.args) == 1 and not Path(config.args[0].split("::")[0]).is_dir()
  if is_worker or is_one_file or option.usepdb or not config.pluginmanager.hasplugin("xdist"):
    return
  if option.numprocesses is None:
    os.environ[SPLIT] = "1"
    option.numprocesses, option.dist = 2, "loadfile"


def pytest_collection_modifyitems(config, items):
  """Quarters are by name, so that four numbers in turn run every slow test once."""
  quarter = config.getoption("--slow-quarter")
  if quarter is None:
    return
  out = [i for i in items if i.get_closest_marker("slow") and zlib.crc32(i.nodeid.encode()) % 4 != quarter]
  config.hook.pytest_deselected(items=out)
  items[:] = [i for i in items if i not in set(out)]
