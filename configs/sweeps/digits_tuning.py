"""The learning rate of every method on digits, and of their control, on a seed that the comparison does not use.

  python -m launch.sweep --sweep=configs/sweeps/digits_tuning.py --workdir=runs/digits_tuning

Hardware: two CPU cores, forty minutes. The best verdict decides, whatever the method.
"""
from configs.methods import digits
from configs.sweeps import methods

SEED, RATES, CONTROL = 100, (1e-4, 3e-4, 1e-3), (3e-4, 1e-3, 3e-3)


def get_sweep():
  config = lambda method, stage, rate: {"config": f"configs/methods/digits.py:{method}", "config.seed": SEED,
                                        f"config.runs.{stage}.optim.lr": rate}
  runs = {f"{method}_{rate:g}": config(method, "aligned", rate) for method in digits.METHODS for rate in RATES}
  share = {name: methods.stages(name.rpartition("_")[0] in digits.OFFLINE, SEED) for name in runs}
  for rate in CONTROL:  # beside the cheapest method, which is trained once for all of them
    name = f"control_{rate:g}"
    runs[name] = config("chosen", "control", rate)
    share[name] = methods.stages(True, SEED, ("reward", "judge", "base", "aligned"))
  return {"config": "configs/methods/digits.py", "runs": runs, "columns": methods.COLUMNS, "share": share}
