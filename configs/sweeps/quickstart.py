"""The quickstart over seeds that were fixed beforehand; all are reported.

  python -m launch.sweep --sweep=configs/sweeps/quickstart.py --workdir=runs/sweep

Hardware: two CPU cores, ten minutes a seed.
"""


def get_sweep():
  arm = lambda name: ["arms", name, "overall", "rate"]
  gain = lambda name: ["differences", f"aligned - {name}", "overall", "difference"]
  equal = lambda name: ["scores", name, "equal/exact"]
  return {
    "config": "configs/quickstart.py",
    "runs": {f"seed{seed}": {"config.seed": seed} for seed in range(5)},
    "columns": {
      "base": arm("base"), "control": arm("control"), "aligned": arm("aligned"), "gain over base": gain("base"),
      "gain over control": gain("control"), "diversity kept": ["diversity_ratio", "value"],
      "equal, base": equal("base"), "equal, aligned": equal("aligned"),
    },
  }
