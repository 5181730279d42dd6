"""The learning rate of every method on digits, on a seed that the comparison does not use.

  python -m launch.sweep --sweep=configs/sweeps/digits_tuning.py --workdir=runs/digits_tuning

Hardware: two CPU cores, forty minutes. The best verdict decides, whatever the method.
"""
from configs.methods import digits
from configs.sweeps import methods

SEED, RATES = 100, (1e-4, 3e-4, 1e-3)


def get_sweep():
  runs = {f"{method}_{rate:g}": {"config": f"configs/methods/digits.py:{method}", "config.seed": SEED,
                                 "config.runs.aligned.optim.lr": rate}
          for method in digits.METHODS for rate in RATES}
  return {"config": "configs/methods/digits.py", "runs": runs, "columns": methods.COLUMNS,
          "share": {name: methods.stages(name.rpartition("_")[0] in digits.OFFLINE, SEED) for name in runs}}
