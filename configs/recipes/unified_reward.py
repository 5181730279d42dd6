"""UnifiedReward (2503.05236) in Scenes: a judge of everything makes the pairs from which everything learns.

  python -m align.main --config=configs/recipes/unified_reward.py --workdir=runs/unified_reward
  python -m align.main --config=configs/recipes/unified_reward.py:clip --workdir=runs/unified_reward_clip

One small judge learns from pictures, clips and answers, in pairs and in scores: from the generators' own pictures and
clips, labelled by the exact detector in the place of people, and from answers about renders. It then builds preference
data from other samples, whose prompts name combinations that it has labels of, as all training captions do, and DPO
learns from them; prompts of combinations that no training caption has, and the detector, say what came of it. The first
command is about pictures and answers, the second about clips, with the same judge; both are a run each of
configs/sweeps/unified_reward.py, which trains it once; `unified_reward.py:image,tuning` is what
configs/sweeps/unified_tuning.py tries rates with. Pairs of pictures are made in four ways (rewards/judging/sift.py) at
20 answers of the judge a prompt, and learned from in as many updates; pairs of clips in the first:

  two_stage  10 pictures, 5 comparisons of neighbours in both orders, 10 scores; the best of the winners against the
             worst of the losers, dropped unless better
  point      20 pictures, 20 scores; the best against the worst
  pair       20 pictures, 10 comparisons; a random one
  random     2 pictures, neither judged nor ordered

`control` is supervised training of the same compute, in passes of the network on one sample: updates (a pair takes 8,
with the reference), and sampling as for the way that samples most. Passes of the judge are not counted, nor are its
labels. `talker` is a network that has learned to answer for a while: of 10 answers at temperature 0.7 to questions
about other scenes the judge makes pairs in two stages, from which `answerer` learns, and both are examined (`asked`,
`asked_again`), on questions that have one right answer: of captions many are right.

The judge reads 32 x 32 pixels, and the generators make 16 x 16: it sees them enlarged (`side`), as in its training.

Hardware: two CPU cores. By estimate, from seconds of a core: .01 to sample a picture, .045 a clip, a pass of their
networks .0014 and .005, .02 for what the judge writes of a picture, .03 of two, .03 and .05 of clips: half an hour for
the judge, once, after ten minutes for its labels; under twenty-five for a seed of pictures and answers, fourteen of
clips, of which compiling takes two. It was not run whole yet.

An earlier judge learned from 1,273 pairs of 600 prompts, beside four times as many questions about renders, and wrote
only whether what is asked for is there: after 2,500 updates of 32 it saw 95 of 96 things that are there and 39 of 65
that are not, on other renders; of 600 pictures of the base, 63 % of them right, its scores had AUC .56, and .127 of the
comparisons between different ones were decided, .938 of these rightly. So there are four times as many prompts now,
mostly the generator's own pictures, and the judge first writes all that it sees in one, and where
(datasets/scenes_labels.py). Of 60 prompts, with renders, scores of 5 are .50 of the labels, 4 .19, 3 .22 and less .09;
of pairs the first is better in .35, equally good in .28, worse in .37; of 20 prompts of clips 5 are .42, 4 .20, 2 .35,
and of pairs .39, .25, .35. What such a judge sees has not been measured yet.

What a judge without error would give, on seed 100 alone, of 480 prompts: from .603 of the base `point` comes to .657
with the exact detector in the judge's place (beta 300; 1000: .638, at three times the rate .615), `random`, at 1000,
to .605.
"""
import ml_collections

from configs import common, judge_scenes

CALLS, WAYS = 20, ("two_stage", "point", "pair", "random")  # answers of the judge to a prompt, and ways to make pairs
TUNED = ("two_stage", "random")  # what rates and beta are chosen on
BATCH, PAIR, TRAIN = 24, 8, 3    # pairs of an update, passes of a pair, and of a sample that is learned from
LEARNED, COLUMNS, LENGTHS = 6000, (66, 108, 144), (40, 80, 128)  # the judge's updates, and sizes of what it learns from
BETA = 300.0                     # of DPO of generators, chosen on seed 100 with pairs by the exact detector
RENDERED = 0.3                   # share of renders among labelled pictures
JUDGE = {"name": "unified", "model": "@judge", "dtype": "float32", "side": 32, "at_once": 80, "length": LENGTHS[-1]}
ASKED = ("list", "count", "side")
TALKED, ANSWER = 300, (36, 24)   # updates of the answerer's base, columns of its questions and tokens of its answers
GENERATORS = {  # what is aligned. labels: the stage of the judge's, its prompts, and its share of what the judge learns
                # from; control: its batch; held: prompts of the verdict, and how often each is sampled
  "image": {
    "policy": common.SCENES, "start": "scenes", "data": {}, "questions": ("scenes_image_pair", "scenes_image_point"),
    "labels": ("labels", 2400, 0.65), "rendered": RENDERED, "ways": WAYS, "prompts": 480, "samples": 20, "updates": 220,
    "control": 48, "held": (common.held_out(480), 4),
  },
  "clip": {
    "policy": common.CLIPS, "start": "clips", "data": common.MOVING,
    "questions": ("scenes_video_pair", "scenes_video_point"),
    "labels": ("clip_labels", 480, 0.2), "rendered": 0.0, "ways": WAYS[:1], "prompts": 320, "samples": 10,
    "updates": 150, "control": 32, "held": (common.held_out_clips(480), 2),
  },
}


def prompts(kind: str, count: int, seed: int) -> dict:
  return {"name": "scenes_prompts", "split": "train", "count": count, "seed": seed, **GENERATORS[kind]["data"]}


def judges(questions: tuple, ways: tuple, truth: dict, part: str, judge: dict = JUDGE, **more) -> dict:
  """Pairs by the judge, asked these questions about two and about one; more: what is collected from whom."""
  pair, point = questions
  return {"task": "collect", "ways": ways, "score": "points/total", "rank": "rank/total", "audit": f"truth/{part}",
          "rewards": {"points": {**judge, "question": point}, "truth": truth,
                      "rank": {**judge, "question": pair, "scheme": "adjacent"}}, **more}


def judge() -> dict:
  """The joint judge, shared by all seeds, with the labels that it learns from."""
  tasks = tuple(task for name in ("image_understanding", "video_understanding") for task in judge_scenes.TASKS[name][0])
  learned = judge_scenes.learned(LEARNED, tasks, judge_scenes.LR, COLUMNS[-1], LENGTHS[-1], batch=16, seed=0, alike=32)
  runs, data = {}, {**learned["data"], "seed": 1}
  for kind, spec in GENERATORS.items():
    name, count, share = spec["labels"]
    runs[name] = {"task": "collect", "model": spec["start"], "samples": 10, "pairs": 5, "batch": 200, "seed": 100,
                  "data": prompts(kind, count, seed=1), "rewards": {"scenes": common.REWARD}, "score": "scenes/total"}
    data = {"name": "scenes_labels", "path": f"@{name}/pairs", "data": data, "share": share,
            "rendered": spec["rendered"], "count": 131_072}
  return {**runs, "judge": {**learned, "data": data,
                            "policy": {**learned["policy"], "columns": COLUMNS, "length": LENGTHS}}}


def generator(kind: str, ways: tuple, seed: int = 0) -> dict:
  """The runs that align one kind of generator, and their verdict on prompts of this seed."""
  spec = GENERATORS[kind]
  (held, samples), steps = spec["held"], spec["policy"]["steps"]
  plain = {"task": "train", "policy": spec["policy"], "start": {"policy": spec["start"]}, "log_every": 10,
           "optim": {"name": "adamw", "lr": 3e-4, "decay": "linear"}}
  passes = spec["updates"] * BATCH * PAIR + spec["prompts"] * spec["samples"] * (steps + 1)
  arms = {way: {**plain, "steps": spec["updates"], "batch": BATCH,
                "data": {"name": "pairs", "path": f"@pairs/pairs/{way}"},
                "algorithm": {"name": "dpo", "beta": BETA, "ema": 0.99}} for way in ways}
  arms["control"] = {**plain, "steps": passes // (spec["control"] * TRAIN), "batch": spec["control"], "drop": 0.1,
                     "data": {"name": "scenes", "split": "train", "count": 20_000, **spec["data"]},
                     "algorithm": {"name": "sft", "ema": 0.99}}
  places = {"base": spec["start"], **{name: f"@{name}" for name in arms}}
  return {
    "pairs": judges(spec["questions"], ways, common.REWARD, "exact", model=spec["start"], calls=CALLS,
                    samples=spec["samples"], batch=200, data=prompts(kind, spec["prompts"], seed=2)),
    **arms, "evaluate": {**common.verdict(places, samples, primary="two_stage", baseline="base"),
                        "data": {**held, "seed": seed}}}


def answerer() -> dict:
  """A network that answers, shared by all seeds, and DPO of it."""
  talker = judge_scenes.learned(TALKED, ASKED, judge_scenes.LR, *ANSWER, batch=16, data={"seed": 40_000}, seed=0)
  questions = {**judge_scenes.WORLD, "tasks": ASKED}
  exam = {"task": "examine", "seed": 0,
          "data": {**questions, "split": "test", "count": 2400, "seed": judge_scenes.HELD}}
  told = {"judge": {**JUDGE, "answers": judge_scenes.MODEL}, "model": "@talker",
          "policy": {**talker["policy"], "temperature": 0.7}, "samples": 10, "batch": 80}
  return {
    "talker": {**talker, "start": {"policy": judge_scenes.MODEL}},
    "answers": judges(("scenes_image_answers", "scenes_image_answer"), ("two_stage",),
                      {"name": "verdict", "model": judge_scenes.MODEL}, "accuracy",
                      data={**questions, "count": 360, "seed": 30_000}, **told),
    "answerer": {"task": "train", "steps": 120, "batch": 16, "policy": talker["policy"], "log_every": 10,
                 "start": {"policy": "@talker"}, "data": {"name": "pairs", "path": "@answers/pairs/two_stage"},
                 "algorithm": {"name": "dpo", "beta": 0.1}, "optim": {"name": "adamw", "lr": 1e-4, "decay": "linear"}},
    "asked": {**exam, "model": "@talker"}, "asked_again": {**exam, "model": "@answerer"},
  }


def get_config(how: str = "image"):
  kind, part = common.picked(how, tuple(GENERATORS), ("whole", "tuning"))
  if part == "tuning":  # on prompts of its own
    more = generator(kind, tuple(way for way in GENERATORS[kind]["ways"] if way in TUNED), seed=1)
  else:
    more = {**generator(kind, GENERATORS[kind]["ways"]), **(answerer() if kind == "image" else {})}
  title = "UnifiedReward" if kind == "image" else f"UnifiedReward, {kind}s"
  return ml_collections.ConfigDict({"task": "pipeline", "title": title, "seed": 0, "runs": {**judge(), **more}})
