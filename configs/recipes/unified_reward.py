"""UnifiedReward (2503.05236) in Scenes: a judge of everything makes the pairs from which everything learns.

  python -m align.main --config=configs/recipes/unified_reward.py --workdir=runs/unified_reward

One small judge learns from pictures, clips and answers, in pairs and in scores, and from 600 prompts whose pictures by
the generator itself are labelled by the exact detector, in the place of people. It then builds preference data for
other prompts, and DPO learns from them; prompts, of combinations that no training caption has, and the detector say
what came of it. Pairs are made in four ways (rewards/judging/sift.py) at 20 answers of the judge a prompt, and learned
from in as many updates:

  two_stage  10 pictures, 5 comparisons of neighbours in both orders, 10 scores; the best of the winners against the
             worst of the losers, dropped unless better
  point      20 pictures, 20 scores; the best against the worst
  pair       20 pictures, 10 comparisons; a random one
  random     2 pictures, neither judged nor ordered

`control` is supervised training of the same compute, in passes of the network on one sample: updates (a pair takes 8,
with the reference), and sampling as for the way that samples most. Passes of the judge are not counted. `talker` is a
network that has learned to answer for a while: of 10 answers at temperature 0.7 to questions about other scenes the
judge makes pairs in two stages, from which `answerer` learns, and both are examined (`asked`, `asked_again`). Clips are
one more entry of GENERATORS.

The judge reads 32 x 32 pixels, and the generator makes 16 x 16: it sees them enlarged (`side`), as in its training.

Hardware: two CPU cores. By estimate, from seconds of a core: .01 to sample a picture, .014 to .016 for a score, .019
to .024 for an answer about a pair, so five minutes of one core for the pictures' pairs, and under twenty for a seed;
half an hour for the judge, once. It was not run whole yet. What is known, of 600 pictures of the base for 60 training
prompts (which may be among the labelled ones), 63 % of them right: a judge of rendered scenes alone
(configs/judge_scenes.py, right about 88 % of their scores) cannot rank them, AUC .52, .55 within a prompt, and 9 of 10
comparisons change with the order. After 1,500 updates from a joint judge on 1,273 labelled pairs, which were better
and worse ones only, scores had AUC .58, .61 within a prompt (two .76, attribution .68, position .59), and of the pairs
of `point` .50 were better, .41 equal and .09 worse, of random pairs .15, .65 and .20. Comparisons were still
undecided, since that judge wrote one better and one worse score whatever it saw; since then equal pictures are among
the labels (datasets/scenes_labels.py), and most of these are renders that differ in little. After 2,500 updates of 32
on such alone (four fifths renders, lr 1e-3, about 34 minutes of a core beside other work), of what captions ask for
the judge sees 95 of 96 things that are there and 39 of 65 that are not, on other renders; of the generator's pictures
it still says "yes" too often: .127 of comparisons between different ones are decided, of these .938 rightly, and scores
have AUC .56. More updates have not been tried.
"""
import ml_collections

from configs import common, judge_scenes

CALLS, SAMPLES = 20, 20          # answers of the judge, and candidates, of a prompt
WAYS = ("two_stage", "point", "pair", "random")
UPDATES, BATCH, PAIR = 220, 24, 8
TRAIN, CONTROL = 3, 48           # passes of a sample that is learned from, and the control's batch
LABELLED, PROMPTS = 600, 240
LEARNED, SHARE = 4000, 0.6       # updates of the judge, and the share of labelled pictures in them,
RENDERED = 0.8                   # of which this share is renders
JUDGE = {"name": "unified", "model": "@judge", "dtype": "float32", "side": 32, "at_once": 80, "length": 80}
ASKED = ("list", "caption", "count", "side")
TALKED, ANSWER = 300, (36, 24)   # updates of the answerer's base, columns of its questions and tokens of its answers
GENERATORS = {                   # what is aligned: its policy, its prompts, the questions about it, the truth
  "image": {
    "policy": common.SCENES, "start": "scenes", "steps": 8, "media": {"name": "scenes", "count": 20_000},
    "prompts": {"name": "scenes_prompts"}, "questions": ("scenes_image_pair", "scenes_image_point"),
    "truth": common.REWARD,
  },
}


def judges(kind: str, ways: tuple, **more) -> dict:
  """Pairs of one kind of media, or of answers, by the judge; more: what is collected from whom."""
  pair, point = GENERATORS[kind]["questions"] if kind in GENERATORS else ("scenes_image_answers", "scenes_image_answer")
  truth = {"truth": GENERATORS[kind]["truth"], "audit": "truth/exact"} if kind in GENERATORS else {
    "truth": {"name": "verdict", "model": judge_scenes.MODEL}, "audit": "truth/accuracy"}
  judge = JUDGE if kind in GENERATORS else {**JUDGE, "answers": judge_scenes.MODEL}
  return {"task": "collect", "ways": ways, "score": "points/total", "rank": "rank/total", "audit": truth["audit"],
          "rewards": {"points": {**judge, "question": point}, "truth": truth["truth"],
                      "rank": {**judge, "question": pair, "scheme": "adjacent"}}, **more}


def judge() -> dict:
  """The joint judge, shared by all seeds, with what it learns from besides rendered scenes."""
  tasks = tuple(task for names, *_ in judge_scenes.TASKS.values() for task in names)
  columns = max(columns for _, columns, _ in judge_scenes.TASKS.values())
  learned = judge_scenes.learned(LEARNED, tasks, judge_scenes.LR, columns, JUDGE["length"], batch=16, seed=0)
  scenes = {**learned["data"], "count": judge_scenes.LABELS * len(judge_scenes.TASKS), "seed": 1}
  return {
    "labels": {"task": "collect", "model": "scenes", "samples": 10, "pairs": 5, "batch": 200, "seed": 0,
               "data": {"name": "scenes_prompts", "split": "train", "count": LABELLED, "seed": 1},
               "rewards": {"scenes": common.REWARD}, "score": "scenes/total"},
    "judge": {**learned, "data": {"name": "scenes_labels", "path": "@labels/pairs", "data": scenes, "share": SHARE,
                                 "rendered": RENDERED, "count": 65_536}},
  }


def generator(kind: str) -> tuple[dict, dict]:
  """(the runs that align one kind of generator, {arm: what is evaluated})."""
  spec, prefix = GENERATORS[kind], "" if kind == "image" else f"{kind}_"
  plain = {"task": "train", "policy": spec["policy"], "start": {"policy": spec["start"]}, "log_every": 10,
           "optim": {"name": "adamw", "lr": 3e-4, "decay": "linear"}}
  passes = UPDATES * BATCH * PAIR + PROMPTS * SAMPLES * (spec["steps"] + 1)
  runs = {f"{prefix}pairs": judges(kind, WAYS, model=spec["start"], samples=SAMPLES, calls=CALLS, batch=10 * SAMPLES,
                                   data={**spec["prompts"], "split": "train", "count": PROMPTS, "seed": 2})}
  for way in WAYS:
    runs[f"{prefix}{way}"] = {**plain, "steps": UPDATES, "batch": BATCH,
                              "data": {"name": "pairs", "path": f"@{prefix}pairs/pairs/{way}"},
                              "algorithm": {"name": "dpo", "beta": 1000.0, "ema": 0.99}}
  runs[f"{prefix}control"] = {**plain, "steps": passes // (CONTROL * TRAIN), "batch": CONTROL, "drop": 0.1,
                              "data": {**spec["media"], "split": "train"}, "algorithm": {"name": "sft", "ema": 0.99}}
  arms = {"base": spec["start"], **{name.removeprefix(prefix): f"@{name}" for name in runs if "pairs" not in name}}
  return runs, arms


def answerer() -> dict:
  """A network that answers, shared by all seeds, and DPO of it."""
  talker = judge_scenes.learned(TALKED, ASKED, judge_scenes.LR, *ANSWER, batch=16, data={"seed": 40_000}, seed=0)
  questions = {**judge_scenes.WORLD, "tasks": ASKED}
  exam = {"task": "examine", "data": {**questions, "split": "test", "count": 800, "seed": judge_scenes.HELD}, "seed": 0}
  return {
    "talker": {**talker, "start": {"policy": judge_scenes.MODEL}},
    "answers": judges("answer", ("two_stage",), model="@talker", policy={**talker["policy"], "temperature": 0.7},
                      data={**questions, "count": 360, "seed": 30_000}, samples=10, batch=80),
    "answerer": {"task": "train", "steps": 120, "batch": 16, "policy": talker["policy"], "log_every": 10,
                 "start": {"policy": "@talker"}, "data": {"name": "pairs", "path": "@answers/pairs/two_stage"},
                 "algorithm": {"name": "dpo", "beta": 0.1}, "optim": {"name": "adamw", "lr": 1e-4, "decay": "linear"}},
    "asked": {**exam, "model": "@talker"}, "asked_again": {**exam, "model": "@answerer"},
  }


def get_config():
  runs, arms = generator("image")
  evaluate = {**common.verdict(arms, primary="two_stage", baseline="base"), "data": common.held_out(480)}
  return ml_collections.ConfigDict({"task": "pipeline", "title": "UnifiedReward", "seed": 0,
                                    "runs": {**judge(), **runs, **answerer(), "evaluate": evaluate}})
