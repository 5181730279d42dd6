"""Does learning to judge one task help to judge another? Five seeds that were fixed beforehand.

  python -m launch.sweep --sweep=configs/sweeps/judge_scenes.py --workdir=runs/judge_scenes --jobs=2

Arms: each task alone with a number of updates; each task alone with as many updates as the joint run, of the same
labels, the control that decides; and the joint run, in which every task has the first number of updates on average. A
seed is one of the order and of the labels; the network that all begin from and the examination are the same. Nothing
was tuned on these seeds.

Hardware: two CPU cores, two and a half hours and two runs at a time, by extrapolation: an update takes a core .17
seconds for pictures and .38 for clips and the joint run, 300 questions of an examination 10 to 13 with the compiling.

Recorded so far is the first seed, from which nothing follows yet. Scores of pictures, clips and answers about both:
joint .838, .737, .672, .634; alone for as long .691, .566, .662, .519; alone for as many updates as the joint run .889,
.730, .872, .678. Pairs of pictures and clips the joint judge cannot tell (.507, .504; alone for as many updates .813,
.548).
"""
from configs import judge_scenes

SEEDS = range(5)
ARMS = [arm for arm in judge_scenes.arms() if arm not in ("base", "verdict", "preferred")]


def get_sweep():
  runs = {f"{arm}_{seed}": {"config": f"configs/judge_scenes.py:{arm}", "config.seed": seed,
                            "config.runs.judge.data.seed": seed + 1} for seed in SEEDS for arm in ARMS}
  asked = [task for tasks, *_ in judge_scenes.TASKS.values() for task in tasks]
  return {"config": "configs/judge_scenes.py", "runs": runs,
          "columns": {task: ["scores", task, "accuracy"] for task in asked},
          "groups": {arm: [f"{arm}_{seed}" for seed in SEEDS] for arm in ARMS}}
