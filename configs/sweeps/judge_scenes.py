"""Does learning to judge one task help to judge another? Five seeds that were fixed beforehand.

  python -m launch.sweep --sweep=configs/sweeps/judge_scenes.py --workdir=runs/judge_scenes --jobs=2

Arms: each task alone with a number of updates; each task alone with as many updates as the joint run, of the same
labels, the control that decides; and the joint run, in which every task has the first number of updates on average. A
seed is one of the order and of the labels; the network that all begin from and the examination are the same. Nothing
was tuned on these seeds.

Hardware: two CPU cores, two and a half hours with a run on each: an update takes a core .17 seconds for pictures, .38
for clips and the joint run, 300 questions of an examination 10 to 13 with the compiling.

What came out (README, "Judges"): the same compute spent on one task alone gives pictures and answers about them far
more than sharing does, and for clips and answers about them the two are not told apart. Against as many updates of a
task alone, sharing is shown to help scores of pictures, of clips and of answers about pictures, and no pairs.
"""
from configs import judge_scenes

SEEDS = range(5)
SAID = {  # of a task, and what UnifiedReward (2503.05236) found: a task alone for as many updates, and all
  "image_pair": ("pairs of pictures", "GenAI-Bench .650 to .709"),
  "image_point": ("scores of pictures", "no figure"),
  "video_pair": ("pairs of clips", "VideoGen-RewardBench .631 to .793"),
  "video_point": ("scores of clips", "no figure"),
  "image_answers": ("pairs of answers about pictures", "VL-RewardBench .490 to .661"),
  "image_answer": ("scores of answers about pictures", "no figure"),
  "video_answers": ("pairs of answers about clips", "ShareGPTVideo .755 to .840"),
  "video_answer": ("scores of answers about clips", "no figure"),
}
ARMS = [arm for arm in judge_scenes.arms() if arm not in ("base", "verdict", "preferred")]


def get_sweep():
  runs = {f"{arm}_{seed}": {"config": f"configs/judge_scenes.py:{arm}", "config.seed": seed,
                            "config.runs.judge.data.seed": seed + 1} for seed in SEEDS for arm in ARMS}
  asked = {task: name for name, (tasks, *_) in judge_scenes.TASKS.items() for task in tasks}
  of = lambda arm: [f"{arm}_{seed}" for seed in SEEDS]
  claims = [{"text": f"One judge of everything is better than one of its task alone for as many updates: {said}",
             "paper": f"{paper} (2503.05236)", "path": ["scores", task, "accuracy"], "runs": of("joint"),
             "against": of(f"{asked[task]}_longer")} for task, (said, paper) in SAID.items()]
  return {"config": "configs/judge_scenes.py", "runs": runs,
          "columns": {task: ["scores", task, "accuracy"] for task in asked},
          "groups": {arm: of(arm) for arm in ARMS}, "claims": claims}
