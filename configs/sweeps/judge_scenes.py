"""Does learning to judge one task help to judge another? Five seeds that were fixed beforehand.

  python -m launch.sweep --sweep=configs/sweeps/judge_scenes.py --workdir=runs/judge_scenes --jobs=2

Arms: each task alone with a number of updates; each task alone with as many updates as the joint run, of the same
labels, the control that decides; and the joint run, in which every task has the first number of updates on average. A
seed is one of the order and of the labels; the network that all begin from and the examination are the same. Nothing
was tuned on these seeds.

Hardware: two CPU cores, three hours with a run on each: an update takes a core .17 to .25 seconds for pictures, .4 for
clips and the joint run, 300 questions of an examination 10 to 13 with the compiling; what generators make is made
once, in five minutes.

What came out (README, "Judges"): the same compute spent on one task alone gives pairs of pictures, scores of
generators' pictures and answers about pictures far more than sharing does; scores of renders, clips and answers about
clips are not told apart. Against as many updates of a task alone, sharing is shown to help scores of pictures, of clips
and of answers about pictures, and no pairs.
"""
from configs import judge_scenes

SEEDS = range(5)
SAID = {  # of a task, and what UnifiedReward (2503.05236) found: a task alone for as many updates, and all
  "image_pair": ("pairs of renders", "no figure"),
  "image_point": ("scores of renders", "no figure"),
  "sample_pair": ("pairs of pictures of generators", "GenAI-Bench .650 to .709"),
  "sample_point": ("scores of pictures of generators", "no figure"),
  "video_pair": ("pairs of clips", "VideoGen-RewardBench .631 to .793"),
  "video_point": ("scores of clips", "no figure"),
  "image_answers": ("pairs of answers about pictures", "VL-RewardBench .490 to .661"),
  "image_answer": ("scores of answers about pictures", "no figure"),
  "video_answers": ("pairs of answers about clips", "ShareGPTVideo .755 to .840"),
  "video_answer": ("scores of answers about clips", "no figure"),
}
ARMS = [arm for arm in judge_scenes.arms() if arm not in ("base", "verdict", "preferred")]


def made(arm: str) -> list:
  """The stages of an arm that do not depend on the seed: what generators made."""
  return [stage for stage in judge_scenes.arms()[arm] if stage.startswith(tuple(judge_scenes.PROMPTS))]


def labels(arm: str) -> list:
  """Options with the seed of what is learned: of questions about renders, and about what generators made."""
  own = "config.runs.judge.data.seed"
  return [own, "config.runs.judge.data.data.seed"] if made(arm) else [own]


def get_sweep():
  runs = {f"{arm}_{seed}": {"config": f"configs/judge_scenes.py:{arm}", "config.seed": seed,
                            **dict.fromkeys(labels(arm), seed + 1)} for seed in SEEDS for arm in ARMS}
  asked = {task: name for name, (tasks, *_) in judge_scenes.TASKS.items() for task in tasks}
  asked.update(dict.fromkeys(judge_scenes.SAMPLES, "image_generation"))
  of = lambda arm: [f"{arm}_{seed}" for seed in SEEDS]
  claims = [{"text": f"One judge of everything is better than one of its task alone for as many updates: {said}",
             "paper": f"{paper} (2503.05236)", "path": ["scores", task, "accuracy"], "runs": of("joint"),
             "against": of(f"{asked[task]}_longer")} for task, (said, paper) in SAID.items()]
  return {"title": "UnifiedReward", "config": "configs/judge_scenes.py", "runs": runs,
          "columns": {task: ["scores", task, "accuracy"] for task in SAID},
          "share": {run: {stage: f"common/{stage}" for stage in made(arm)} for arm in ARMS if made(arm)
                    for run in of(arm)},
          "groups": {arm: of(arm) for arm in ARMS}, "claims": claims}
