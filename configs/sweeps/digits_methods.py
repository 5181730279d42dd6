"""All methods on digits at equal cost, five seeds that were fixed beforehand.

  python -m launch.sweep --sweep=configs/sweeps/digits_methods.py --workdir=runs/digits_methods

Hardware: two CPU cores, forty minutes. A method is better than its control where the Holm-adjusted p is below .05 and
the mean gain at least .03; both were decided beforehand.
"""
from configs.methods import digits
from configs.sweeps import methods

SEEDS = range(5)


def get_sweep():
  runs = {f"{method}_{seed}": {"config": f"configs/methods/digits.py:{method}", "config.seed": seed}
          for seed in SEEDS for method in digits.METHODS}
  return {"config": "configs/methods/digits.py", "runs": runs, "columns": methods.COLUMNS,
          "groups": {method: [f"{method}_{seed}" for seed in SEEDS] for method in digits.METHODS},
          "test": {"column": "gain over control", "least": 0.03},
          "share": {f"{method}_{seed}": methods.stages(method in digits.OFFLINE, seed)
                    for method in digits.METHODS for seed in SEEDS}}
