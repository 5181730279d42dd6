"""Every claim of the recipes, published and ours, in one table: it runs their sweeps at the seeds that are published.

  python -m align.main --config=configs/claims.py --workdir=runs/claims
  python -m align.main --config=configs/claims.py --workdir=runs/claims --config.into=README.md \
    --config.run_missing=False

Hardware: two CPU cores, at most two hours for a recipe's five seeds (--config.jobs=2 uses both) where configs/records
has nothing of it, an hour more for what is run at one seed, three for the comparison of judges; seconds where it has
all. The second command makes the table of what is recorded, in README.md between its marks.
"""
import ml_collections

SWEEPS = ("unified_reward", "judge_scenes", "dense_reward", "seedance", "uae")


def get_config():
  return ml_collections.ConfigDict({
    "task": "claims",
    "sweeps": tuple(f"configs/sweeps/{name}.py" for name in SWEEPS),
  })
