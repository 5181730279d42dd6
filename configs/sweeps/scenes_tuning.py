"""The learning rate of every method on Scenes, on a seed that the comparison does not use.

  python -m launch.sweep --sweep=configs/sweeps/scenes_tuning.py --workdir=runs/scenes_tuning

Hardware: two CPU cores, eighty minutes. The best verdict decides, whatever the method.
"""
from configs.methods import scenes
from configs.sweeps import methods, scenes_methods

SEED, RATES = 100, (1e-4, 3e-4, 5e-4)


def get_sweep():
  names = [(method, rate, f"{method}_{rate:g}") for method in scenes.METHODS for rate in RATES]
  stages = lambda method: methods.stages(False, SEED, scenes_methods.STAGES.get(method, ("control",)))
  return {"config": "configs/methods/scenes.py", "columns": methods.COLUMNS,
          "runs": {name: {"config": f"configs/methods/scenes.py:{method}", "config.seed": SEED,
                          "config.runs.aligned.optim.lr": rate} for method, rate, name in names},
          "share": {name: stages(method) for method, _, name in names}}
