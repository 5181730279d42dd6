"""A small vision-language judge of Scenes: it learns to see from nothing, and then to judge, one task alone or all.

  python -m align.main --config=configs/judge_scenes.py:base --workdir=runs/judge_base
  python -m align.main --config=configs/judge_scenes.py --workdir=runs/judge_scenes

Arms are `base`, what ships as diffusion/bases/judge; each of TASKS alone, with STEPS updates or, NAME_longer, with as
many as the joint run; `joint`, all of them; `verdict`, the joint judge after GRPO whose reward is whether an answer can
be read and is right; and `preferred`, after DPO of right answers against wrong ones. All but the first begin from what
ships. The comparison over seeds is configs/sweeps/judge_scenes.py.

Pictures that were made for a caption are renders, good, damaged or of something else, and as often samples of the base
in 2, 3 and 10 steps, generators of different quality, whose pictures of a prompt the exact detector labels
(datasets/scenes_labels.py): 5, right; 3, half of the caption or more; 1, less; of 1,500 questions .35, .30 and .35.
`collect` keeps of each what differs. Judges learn of captions that the base learned, too (`samples_2` and so on), and
are asked about combinations that it never saw (`asked_2`).

Hardware: two CPU cores, under an hour for `base`, whose four stages took about 18 minutes of one core: lists of objects
while each token of a picture is named, talks, pairs of pictures, and single questions. An arm is 4 to 15 minutes, and
what generators make five, once. What ships says, greedily, on 1,000 questions each about other scenes of 1 to 3
objects, with Wilson's 95 % intervals and the share of the most frequent answer:

  colour  1.000 [.996, 1.000]  .20        count  .958 [.944, .969]  .36
  shape    .993 [.986,  .997]  .34        there  .979 [.968, .986]  .53

On which side something is was not learned, and motion was not measured. Scenes of two seeds are drawn independently at
continuous places: of 4,744 pictures of the examination none was among 18,122 of training.

Judges write what they see before their verdict (datasets/scenes_questions.py); without that they stayed at chance of
pairs (.48 [.43, .52]) and of answers (.49, .53) after 600 updates. On seed 100 alone, a learning rate of 1e-3, and 490
to 510 questions each about scenes of their own, renders alone, with 95 % intervals; "600" saw 4,096 labels several
times, "1200" 16,384:

  image_generation     600   pairs   .590 [.547, .633]   scores   .831 [.796, .861]
                       1200          .696 [.655, .735]            .882 [.853, .908]
  image_understanding  600   pairs   .639 [.596, .680]   scores   .504 [.457, .549]
                       1200          .684 [.643, .725]            .837 [.802, .867]

Of pairs of pictures the verdict follows the two scores that were written before it; what is still wrong is a score. To
score both of two answers first, too, did not help (.673). All arms over five seeds stand in the README. The readings
"probability" and "expected" of rewards/judging/judge.py ask for the verdict without the description, which these judges
never learned: read what they write.

Ask a judge by

  python -m rewards.judge --model=runs/judge_scenes/judge/export --prompts=rewards/judging/scenes.json \
    --task=scenes_image_pair --prompt="a red circle" a.png b.png
"""
import ml_collections

from configs import common

MODEL = "judge"           # what :base makes, in diffusion/bases
WORLD = {"name": "scenes_questions", "size": 32, "most": 3}
ADAM = {"name": "adamw", "b2": 0.99, "weight_decay": 0.01, "decay": "cosine", "clip": 1.0}
TASKS = {  # of judges: what they are asked, the columns that it takes, and the tokens of an answer
  "image_generation": (("image_pair", "image_point"), 72, 52),
  "video_generation": (("video_pair", "video_point"), 144, 48),
  "image_understanding": (("image_answers", "image_answer"), 76, 20),
  "video_understanding": (("video_answers", "video_answer"), 120, 20),
}
SAMPLES = ("sample_pair", "sample_point")  # the same two, asked about pictures that generators made
QUALITIES = (2, 3, 10)  # steps of the generator: of captions that it learned .28, .53 and .62 are right
PROMPTS = {"samples": {"split": "train", "seed": 3}, "asked": {"split": "test", "seed": 4}}  # to learn from, to examine
STEPS = 400           # of a task alone; the joint run has as many for each
LR = 1e-3
LABELS = 16_384       # of a task
EXAM, HELD = 2_200, 20_000  # questions of two kinds, half of them about pairs, and the seed of their scenes


def learned(steps: int, tasks: tuple, lr: float, columns: int, length: int, *, batch: int = 32, model: str = MODEL,
            data: dict = None, **more) -> dict:
  return {
    "task": "train", "steps": steps, "batch": batch, "algorithm": {"name": "sft"},
    "policy": {"name": "chat", "model": model, "columns": columns, "length": length},
    "data": {**WORLD, "tasks": tasks, "count": 65_536, **(data or {})},
    "optim": {**ADAM, "lr": lr, "warmup_steps": max(steps // 20, 1)}, "log_every": 50, "save_every": 250, **more,
  }


def base() -> dict:
  """What diffusion/bases/judge was made with."""
  return {
    "model": {"task": "prepare", "dataset": {"name": "judge", "depth": 3}},
    "see": learned(1000, ("list",), 2e-3, 32, 12, model="@model", data={"cells": 4}),
    "look": learned(800, ("talk", "moves"), 1e-3, 72, 52, model="@model", data={"weights": (2, 1)},
                    start={"policy": "@see"}),
    "match": learned(500, ("talk", "compare"), 1e-3, 56, 48, model="@model", data={"seed": 1000},
                     start={"policy": "@look"}),
    "ask": learned(900, ("colour", "there", "shape", "count"), 2e-3, 36, 4, model="@model", start={"policy": "@match"},
                   data={"cells": 4, "weights": (5, 3, 1, 1), "seed": 2000}),
  }


def judge(names: tuple, steps: int) -> dict:
  """Trains on these tasks, of pictures that were made for a caption as often on renders as on what generators made, and
  asks about them."""
  tasks = tuple(task for name in names for task in TASKS[name][0])
  columns, length = (max(TASKS[name][k] for name in names) for k in (1, 2))
  data = {**WORLD, "tasks": tasks, "count": LABELS * len(names), "seed": 1}
  held = {**data, "count": EXAM * len(names), "seed": HELD}  # of each of its kinds as many
  made = {}
  if "image_generation" in names:
    made = {f"{place}_{quality}": sampled(quality, **PROMPTS[place]) for place in PROMPTS for quality in QUALITIES}
    own = TASKS["image_generation"][0]  # half as often, as samples are asked about beside, so that tasks weigh the same
    data["weights"] = tuple(1 if task in own else 2 for task in tasks)
    data = beside(data, "samples", share=1 / (2 * len(names)), count=LABELS * len(names), seed=1)
    held["count"] += EXAM
    held = beside(held, "asked", share=1 / (1 + len(names)), count=held["count"], seed=HELD)
  run = learned(steps, tasks, LR, columns, length, batch=16)
  return {**made, "judge": {**run, "data": data}, "exam": {"task": "examine", "model": "@judge", "data": held}}


def sampled(quality: int, split: str, seed: int) -> dict:
  """Pictures of a generator that takes so many steps."""
  return {"task": "collect", "model": "scenes", "steps": quality, "samples": 4, "pairs": 2, "batch": 200, "seed": seed,
          "data": {"name": "scenes_prompts", "split": split, "count": 1200, "seed": seed},
          "rewards": {"scenes": common.REWARD}, "score": "scenes/total"}


def beside(data: dict, place: str, **more) -> dict:
  """These questions, and others about what the generators made."""
  paths = tuple(f"@{place}_{quality}/pairs" for quality in QUALITIES)
  return {"name": "scenes_labels", "path": paths, "brief": True, "called": "sample", "data": data, **more}


def verdict() -> dict:
  """The joint judge, then GRPO whose reward is whether an answer can be read and is right (UnifiedReward-Think)."""
  runs = judge(tuple(TASKS), len(TASKS) * STEPS)
  return {**runs, "verdict": {
    **runs["judge"], "steps": 200, "batch": 8, "group": 8, "start": {"policy": "@judge"},
    "reward": {"name": "verdict", "model": MODEL}, "optim": {"name": "adamw", "lr": 2e-5, "clip": 1.0},
    "algorithm": {"name": "grpo", "clip": 0.2, "beta": 0.04, "std": "group"}, "log_every": 5},
    "exam": {**runs["exam"], "model": "@verdict"}}


def preferred() -> dict:
  """The joint judge, then DPO of right answers against wrong ones."""
  runs = judge(tuple(TASKS), len(TASKS) * STEPS)
  return {**runs, "preferred": {
    **runs["judge"], "steps": 200, "start": {"policy": "@judge"}, "algorithm": {"name": "dpo", "beta": 0.1},
    "optim": {"name": "adamw", "lr": 2e-5, "clip": 1.0}, "log_every": 5},
    "exam": {**runs["exam"], "model": "@preferred"}}


def arms() -> dict:
  """{name: the runs of a pipeline}. A short one is first, as the others wait for what it samples."""
  alone = {name: judge((name,), STEPS) for name in TASKS}
  longer = {f"{name}_longer": judge((name,), len(TASKS) * STEPS) for name in TASKS}
  return {"base": base(), **alone, **longer, "joint": judge(tuple(TASKS), len(TASKS) * STEPS), "verdict": verdict(),
          "preferred": preferred()}


def get_config(arm: str = "joint"):
  known = arms()
  if arm not in known:
    raise ValueError(f"config judge_scenes: {arm!r} is not one of {', '.join(known)}; choose one of them")
  return ml_collections.ConfigDict({"task": "pipeline", "title": "A judge of Scenes", "seed": 0, "runs": known[arm]})
