"""UnifiedReward (2503.05236) in Scenes: a judge of everything makes the pairs from which everything learns.

  python -m align.main --config=configs/recipes/unified_reward.py --workdir=runs/unified_reward
  python -m align.main --config=configs/recipes/unified_reward.py:clip --workdir=runs/unified_reward_clip
  python -m align.main --config=configs/recipes/unified_reward.py:answer --workdir=runs/unified_reward_answer

One small judge learns from pictures, clips and answers, in pairs and in scores: from the generators' own pictures and
clips, labelled by the exact detector in the place of people, and from answers about renders. It then builds preference
data from other samples, whose prompts name combinations that it has labels of, as all training captions do, and DPO
learns from them; prompts of combinations that no training caption has, and the detector, say what came of it. The first
command is about pictures, the others about clips and about answers, with the same judge; all are runs of
configs/sweeps/unified_reward.py, which trains it once; `unified_reward.py:image,tuning` is what
configs/sweeps/unified_tuning.py tries rates with. Pairs of pictures are made in four ways (rewards/judging/sift.py) at
20 answers of the judge a prompt, and learned from in as many updates; pairs of clips and of answers in the first:

  two_stage  10 pictures, 5 comparisons of neighbours in both orders, 10 scores; the best of the winners against the
             worst of the losers, dropped unless better
  point      20 pictures, 20 scores; the best against the worst
  pair       20 pictures, 10 comparisons; a random one
  random     2 pictures, neither judged nor ordered

`control` is supervised training of the same compute, in passes of the network on one sample: updates (a pair takes 8,
with the reference), and sampling as for the way that samples most. Passes of the judge are not counted, nor are its
labels. `talker` is a network that knows what pictures show and has only begun to answer: of 10 answers at temperature
0.7 to questions about other scenes the judge makes pairs, from which `answerer` learns, and both are examined (`asked`,
`asked_again`), on questions that have one right answer: of captions many are right, and lists are beyond the judge.

The judge reads 32 x 32 pixels, and the generators make 16 x 16: it sees them enlarged (`side`), as in its training.

Hardware: two CPU cores. The judge took half an hour of one, once, after five to eight minutes for its labels; then,
with another run on the other core, a seed of pictures 25 minutes, one of clips 15, answers 8.

What came out over five seeds (configs/sweeps/unified_reward.py; t-intervals): `two_stage` succeeds on .630, `point` on
.629, `pair` on .607, the base on .605, the control on .607, `random` on .583. So pairs in two stages beat random ones
by .047 +- .021, the base by .025 +- .008, the control by .022 +- .010, `pair` by .023 +- .022 and `point` by .001 +-
.020. Of its pairs .76 are better by the exact detector, .22 equal and .01 worse; of `point` .71, .27 and .02; of `pair`
.47, .50 and .04.

What the judge sees, on 60 prompts to learn from whose pictures it has no labels of (600 of the base, .64 of them
right): its scores have AUC .867, of positions .70; of what is asked for and there it says so in .95, of what is not in
.80. Of comparisons between different pictures .69 are decided, in .105 it prefers the first place, and .85 of the
decided are right. What it writes of all that it sees is right to the word in .59. Four times as many labelled prompts
and writing all that it sees, in place of what is asked for, made this of an AUC of .56 with .13 of the comparisons
decided.

Beta and rate were chosen for `two_stage` on seed 100 and other held-out prompts (configs/sweeps/unified_tuning.py; no
records were kept): from .608 of the base, beta 300, 100 and 30 come to .623, .648 and .643 at 3e-4, 300 and 100 to .583
and .511 at 1e-3. With the exact detector in the judge's place `point` came to .657 from .603, with half as many prompts
and beta 300. Beta and rate of clips are what configs/sweeps/seedance_tuning.py found on seed 100, of the same base and
of pairs by other rewards: .661 from .577, and .640 for the control at 3e-4. At beta 100 and 3e-4 `two_stage` fell from
.473 to .105 (one seed).

Clips, at the first seed: of 320 prompts the judge makes 130 pairs, of which .577 are better by the exact detector, .377
equal and .046 worse; DPO on them comes from .473 to .534, +.061 (+.030 to +.093), and the control to .546: the gain is
that of supervised training.

Answers, at the first seed: of 1,500 questions the judge makes 382 pairs, of which .796 are better, .202 equal and .003
worse, as in .83 of its comparisons it changes its mind with the order; and yet what learns from them is worse, .623
right where it was .652 (colours .687 to .691, counts .946 to .928, shapes .453 to .391, presence .520 to .480). With
the exact answer in the judge's place DPO came from .786 to .802, of another talker on seed 100, at the same rate (.794
at 1e-5, .785 at 1e-4): that network has little to gain so.
"""
import ml_collections

from configs import common, judge_scenes

CALLS, WAYS = 20, ("two_stage", "point", "pair", "random")  # answers of the judge to a prompt, and ways to make pairs
BATCH, PAIR, TRAIN = 24, 8, 3    # pairs of an update, passes of a pair, and of a sample that is learned from
LEARNED, COLUMNS, LENGTHS = 6000, (66, 108, 144), (40, 80, 128)  # the judge's updates, and sizes of what it learns from
RENDERED = 0.3                   # share of renders among labelled pictures
JUDGE = {"name": "unified", "model": "@judge", "dtype": "float32", "side": 32, "at_once": 80, "length": LENGTHS[-1]}
ASKED = ("colour", "shape", "count", "there")
TALKED, ANSWER = 300, (36, 4)    # updates of the answerer's base, columns of its questions and tokens of its answers
GENERATORS = {  # what is aligned. labels: the stage of the judge's, its prompts, and its share of what the judge learns
                # from; beta, rate: of DPO; control: its batch; held: prompts of the verdict, and samples of each
  "image": {
    "policy": common.SCENES, "start": "scenes", "data": {}, "questions": ("scenes_image_pair", "scenes_image_point"),
    "labels": ("labels", 2400, 0.65), "rendered": RENDERED, "ways": WAYS, "prompts": 480, "samples": 20, "updates": 220,
    "beta": 100.0, "rate": 3e-4, "control": 48, "held": (common.held_out(480), 4),
  },
  "clip": {
    "policy": common.CLIPS, "start": "clips", "data": common.MOVING,
    "questions": ("scenes_video_pair", "scenes_video_point"),
    "labels": ("clip_labels", 480, 0.2), "rendered": 0.0, "ways": WAYS[:1], "prompts": 320, "samples": 10,
    "updates": 150, "beta": 300.0, "rate": 1e-4, "control": 32, "held": (common.held_out_clips(480), 2),
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


def generator(kind: str, tuning: bool = False) -> dict:
  """The runs that align one kind of generator, and their verdict; for tuning in two stages alone, on other prompts."""
  spec = GENERATORS[kind]
  ways = spec["ways"][:1] if tuning else spec["ways"]
  (held, samples), steps = spec["held"], spec["policy"]["steps"]
  plain = {"task": "train", "policy": spec["policy"], "start": {"policy": spec["start"]}, "log_every": 10,
           "optim": {"name": "adamw", "lr": 3e-4, "decay": "linear"}}
  passes = spec["updates"] * BATCH * PAIR + spec["prompts"] * spec["samples"] * (steps + 1)
  arms = {way: {**plain, "steps": spec["updates"], "batch": BATCH, "optim": {**plain["optim"], "lr": spec["rate"]},
                "data": {"name": "pairs", "path": f"@pairs/pairs/{way}"},
                "algorithm": {"name": "dpo", "beta": spec["beta"], "ema": 0.99}} for way in ways}
  arms["control"] = {**plain, "steps": passes // (spec["control"] * TRAIN), "batch": spec["control"], "drop": 0.1,
                     "data": {"name": "scenes", "split": "train", "count": 20_000, **spec["data"]},
                     "algorithm": {"name": "sft", "ema": 0.99}}
  if tuning:
    del arms["control"]
  places = {"base": spec["start"], **{name: f"@{name}" for name in arms}}
  return {
    "pairs": judges(spec["questions"], ways, common.REWARD, "exact", model=spec["start"], calls=CALLS,
                    samples=spec["samples"], batch=200, data=prompts(kind, spec["prompts"], seed=2)),
    **arms, "evaluate": {**common.verdict(places, samples, primary="two_stage", baseline="base"),
                        "data": {**held, "seed": int(tuning)}}}


def answerer() -> dict:
  """A network that has learned what pictures show and just begun to answer, and DPO of it."""
  made = judge_scenes.base()
  talker = judge_scenes.learned(TALKED, ASKED, judge_scenes.LR, *ANSWER, batch=16, model="@model",
                                data={"seed": 40_000}, start={"policy": "@see"})
  questions = {**judge_scenes.WORLD, "tasks": ASKED}
  exam = {"task": "examine", "data": {**questions, "split": "test", "count": 2400, "seed": judge_scenes.HELD}}
  told = {"judge": {**JUDGE, "answers": judge_scenes.MODEL}, "model": "@talker",
          "policy": {**talker["policy"], "temperature": 0.7}, "samples": 10, "batch": 80}
  return {
    "model": made["model"], "see": made["see"], "talker": talker,
    "answers": judges(("scenes_image_answers", "scenes_image_answer"), ("two_stage",),
                      {"name": "verdict", "model": judge_scenes.MODEL}, "accuracy",
                      data={**questions, "count": 1500, "seed": 30_000}, **told),
    "answerer": {"task": "train", "steps": 120, "batch": 16, "policy": talker["policy"], "log_every": 10,
                 "start": {"policy": "@talker"}, "data": {"name": "pairs", "path": "@answers/pairs/two_stage"},
                 "algorithm": {"name": "dpo", "beta": 0.1, "sft": 0.3},
                 "optim": {"name": "adamw", "lr": 3e-5, "decay": "linear"}},
    "asked": {**exam, "model": "@talker"}, "asked_again": {**exam, "model": "@answerer"},
  }


def get_config(how: str = "image"):
  kind, part = common.picked(how, (*GENERATORS, "answer"), ("whole", "tuning"))
  if kind == "answer" and part == "tuning":
    raise ValueError(f"how = {how!r}: there is no tuning of answers; choose tuning of {' or '.join(GENERATORS)}, or "
                     "answer alone")
  if kind == "answer":
    more = answerer()
  else:
    more = generator(kind, part == "tuning")
  title = "UnifiedReward" if kind == "image" else f"UnifiedReward, {kind}s"
  return ml_collections.ConfigDict({"task": "pipeline", "title": title, "seed": 0, "runs": {**judge(), **more}})
