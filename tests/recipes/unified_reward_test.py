"""The recipe of UnifiedReward: constructions that cost and learn the same, labels for the judge, and a reduced run."""
import json
import random
import shutil
from pathlib import Path

import judges
import numpy as np
import pytest
from commands import command

from align import build, claims, config
from align.datasets import pairs, scenes_labels
from align.policies import chat
from configs.recipes import unified_reward as recipe
from diffusion import vlm
from launch import sweep
from rewards import scenes

FILE = "configs/recipes/unified_reward.py"
SWEEP = "configs/sweeps/unified_reward.py"


@pytest.fixture(scope="module")
def runs():
  return build.resolve(config.load(FILE))["runs"]


@pytest.fixture(scope="module")
def clips():
  return build.resolve(config.load(f"{FILE}:clip"))["runs"]


@pytest.fixture(scope="module")
def told():
  return build.resolve(config.load(f"{FILE}:answer"))["runs"]


def test_constructions_differ_in_their_pairs_alone(runs):
  arms = {way: runs[way] for way in recipe.WAYS}
  assert {way: run["data"].pop("path") for way, run in arms.items()} == {
    way: f"@pairs/pairs/{way}" for way in recipe.WAYS}
  assert all(run == arms["random"] for run in arms.values())
  assert set(runs["evaluate"]["arms"]) == {"base", "control", *recipe.WAYS}
  assert (runs["evaluate"]["primary"], runs["evaluate"]["baseline"]) == ("two_stage", "base")
  found = runs["pairs"]
  assert found["calls"] == 20 == found["samples"] and found["rewards"]["rank"]["scheme"] == "adjacent"
  assert found["ways"] == recipe.WAYS and found["pairs"] == 1


@pytest.mark.parametrize("kind", ["runs", "clips"])
def test_the_control_trains_as_long_as_pairs_are_made_and_learned(kind, request):
  made = request.getfixturevalue(kind)
  found, learned, control = made["pairs"], made["two_stage"], made["control"]
  sampled = found["data"]["count"] * found["samples"] * (learned["policy"]["steps"] + 1)
  passes = sampled + learned["steps"] * learned["batch"] * 2 * (3 + 1)
  assert 0 <= passes - control["steps"] * control["batch"] * 3 < control["batch"] * 3
  assert learned["policy"] == control["policy"]
  assert {**learned["optim"], "lr": control["optim"]["lr"]} == control["optim"]  # each has the rate that suits it


def test_clips_have_pairs_in_two_stages_and_prompts_of_their_own(clips):
  found, verdict = clips["pairs"], clips["evaluate"]
  assert found["ways"] == ("two_stage",) and found["calls"] == 2 * found["samples"] == 20
  assert {name: found["rewards"][name]["question"] for name in ("points", "rank")} == {
    "points": "scenes_video_point", "rank": "scenes_video_pair"}
  assert verdict["arms"] == {"base": "clips", "two_stage": "@two_stage", "control": "@control"}
  data = [clips[name]["data"] for name in ("clip_labels", "pairs", "control")] + [verdict["data"]]
  assert {(one["frames"], one["most"]) for one in data} == {(6, 1)} and "talker" not in clips


def test_prompts_and_scenes_are_never_those_of_another_stage(runs, clips):
  for made in (runs, clips):
    noise = [(made[name]["data"]["seed"], made[name].get("seed", 0)) for name in ("labels", "clip_labels", "pairs")]
    assert len({seed for _, seed in noise[:2]} & set(range(5))) == 0  # nor the noise of a seed of the sweep
    assert noise[2][0] not in (noise[0][0], noise[1][0]) and made["evaluate"]["data"]["split"] == "test"
    assert {made[name]["data"]["split"] for name in ("labels", "clip_labels", "pairs", "control")} == {"train"}
  assert "talker" not in runs


def test_questions_are_never_those_of_another_stage(told):
  asked = [told[name]["data"].get("seed", 0) for name in ("see", "talker", "answers", "asked")]
  assert len({*asked, mixture(told)[-1]["seed"]}) == 5 and told["asked"]["data"] == told["asked_again"]["data"]
  assert [told[name]["model"] for name in ("asked", "asked_again")] == ["@talker", "@answerer"]
  assert told["answers"]["ways"] == ("two_stage",) and told["answerer"]["start"] == {"policy": "@talker"}


def mixture(runs):
  """What the judge learns from: clips, which are mixed with pictures, which are mixed with answers."""
  out = [runs["judge"]["data"]]
  while "data" in out[-1]:
    out.append(out[-1]["data"])
  return out


def test_the_judge_learns_from_what_both_generators_make_and_from_answers(runs, told):
  labels = mixture(runs)
  assert [one.get("path") for one in labels] == ["@clip_labels/pairs", "@labels/pairs", None]
  assert [runs[name]["model"] for name in ("clip_labels", "labels")] == ["clips", "scenes"]
  assert [runs[name]["score"] for name in ("clip_labels", "labels")] == ["scenes/total"] * 2
  assert all(task.split("_")[1].startswith("answer") for task in labels[-1]["tasks"])
  own = (1 - labels[0]["share"]) * labels[1]["share"] * (1 - labels[1]["rendered"])
  assert own > 0.35 and min(one["count"] for one in labels[:2]) >= runs["judge"]["steps"] * runs["judge"]["batch"]
  policy = runs["judge"]["policy"]
  asked = [made["rewards"][part]["length"] for made in (runs["pairs"], told["answers"]) for part in ("points", "rank")]
  assert set(asked) == {policy["length"][-1]} and runs["judge"]["alike"]


def test_the_longest_that_a_judge_learns_to_write_has_room():
  talk, rng = vlm.open_("judge").chat, random.Random(0)
  thing = lambda color, x, y: {"color": color, "shape": "triangle", "x": x, "y": y, "r": 0.1, "score": 1.0}
  corner = [thing("purple", 0.9, 0.9)] * 6
  clause = {"class": "triangle", "count": 1, "color": "purple"}
  picture = {"category": "position", "include": [clause, {**clause, "position": ["right of", 0]}], "exclude": []}
  frames = [[thing(color, t / 10, 0.5) for color in scenes.COLORS] for t in range(6)]
  clip = {"category": "clip", "exclude": [], "motion": [
    {"class": "triangle", "color": "purple", "direction": "right", "speed": "quickly"}]}
  for task, spec, found in (("image_pair", picture, corner), ("video_pair", clip, frames)):
    media = np.zeros((6, 16, 16, 3) if "motion" in spec else (16, 16, 3), np.uint8)
    said = scenes_labels.item(*task.split("_"), rng, "a caption", [(media, *scenes_labels.seen(spec, found))] * 2,
                              32).answer
    assert said.count(" and ") == 2 * (scenes_labels.NAMED - 1)
    assert recipe.LENGTHS[-2] < len(chat.turns(talk, [said])) <= recipe.LENGTHS[-1]


def test_every_run_of_the_sweep_has_the_same_judge(runs, clips, told):
  made = sweep.load(SWEEP)
  shared = {"labels", "clip_labels", "judge"}
  assert {name: set(places) for name, places in made["share"].items()} == {
    **{f"seed{seed}": shared for seed in range(5)}, "clips0": shared, "answers0": shared}
  assert all(runs[name]["seed"] is not None for name in shared)
  assert all(runs[name] == clips[name] == told[name] for name in shared)
  assert [one["config.seed"] for one in made["runs"].values()] == [*range(5), 0, 0]
  begun = {one[f"config.runs.{stage}.seed"] for one in made["runs"].values() for stage in ("pairs", "answers")
           if f"config.runs.{stage}.seed" in one}
  assert begun == {*range(1000, 1005)}  # other noise than the verdict's
  assert made["runs"]["clips0"]["config"] == f"{FILE}:clip"
  first, *others = claims.read(SWEEP)
  assert first.primary and first.path == ["differences", "two_stage - random", "overall", "difference"]
  about = [claim.path[1] for claim in others if claim.runs == ["clips0"]]
  assert about == ["two_stage - base", "two_stage - control"]


@pytest.mark.parametrize("kind", ["image", "clip"])
def test_beta_is_tuned_in_two_stages_alone_and_on_other_prompts(kind):
  whole, tuned = (build.resolve(config.load(f"{FILE}:{kind}{part}"))["runs"] for part in ("", ",tuning"))
  verdict, other = tuned.pop("evaluate"), whole.pop("evaluate")
  assert verdict.pop("data") == {**other.pop("data"), "seed": 1}
  arms = verdict.pop("arms")
  assert arms == {name: other["arms"][name] for name in arms} and {**verdict, "arms": other["arms"]} == other
  assert tuned["pairs"].pop("ways") == ("two_stage",) and whole["pairs"].pop("ways")[0] == "two_stage"
  assert {*tuned} == {*recipe.judge(), "pairs", "two_stage"} and tuned == {name: whole[name] for name in tuned}


def test_another_kind_is_refused():
  with pytest.raises(ValueError, match="how = 'clips': 'clips' is not one of image, clip, answer, whole, tuning;"):
    recipe.get_config("clips")
  with pytest.raises(ValueError, match="'answer,tuning': there is no tuning of answers; choose tuning of image"):
    recipe.get_config("answer,tuning")


TINY = {
  "labels": {"data.count": 12, "samples": 4, "pairs": 2, "batch": 48},
  "clip_labels": {"data.count": 12, "samples": 4, "pairs": 2, "batch": 48},
  "judge": {"steps": 2, "batch": 8, "optim.warmup_steps": 1, "alike": 2},
  "pairs": {"data.count": 12, "samples": 4, "calls": 4, "batch": 48},
  **{way: {"steps": 2, "batch": 8} for way in recipe.WAYS}, "control": {"steps": 2, "batch": 8},
  "see": {"steps": 2, "batch": 8, "optim.warmup_steps": 1},
  "talker": {"steps": 2, "batch": 8, "optim.warmup_steps": 1}, "answerer": {"steps": 2, "batch": 8},
  "answers": {"data.count": 12, "samples": 4, "batch": 48, "policy.temperature": 2.0,
              "model": "judge", "policy.model": "judge"},  # as a talker of two updates does not come to an end
  "asked": {"data.count": 8, "batch": 8}, "asked_again": {"data.count": 8, "batch": 8},
  "evaluate": {"data.count": 12, "samples": 1, "batch": 16},
}


def reduced(kind):
  """The recipe at a reduced size, with judges that learned nothing replaced by others: what is brighter, or longer, is
  better. Clips and answers go without the judge's stages, which are those of pictures."""
  made = config.load(f"{FILE}:{kind}")
  for stage in () if kind == "image" else recipe.judge():
    del made["runs"][stage]
  made = config.override(made, [f"config.runs.{run}.{name}={value}" for run, values in TINY.items()
                                if run in made["runs"] for name, value in values.items()])
  rank = {"kind": "pair_v1_qwen", "scheme": "adjacent"}
  media = {"name": "judges:media", "medium": "video" if kind == "clip" else "image"}
  answers = {"name": "judges:answers", "model": "judge"}
  for stage, judge in {"pairs": media, "answers": answers}.items():
    if stage in made["runs"]:
      found = made["runs"][stage]["rewards"]
      made["runs"][stage]["rewards"] = {"points": judge, "rank": {**judge, **rank}, "truth": found["truth"]}
  return made


def begun(place, kind):
  """A function that runs the reduced recipe in `place` and returns its results."""
  (place / "reduced.json").write_text(json.dumps(reduced(kind)))
  (place / "reduced.py").write_text("import json\n\n\ndef get_config():\n  return json.load(open('reduced.json'))\n")
  shutil.copy(Path(judges.__file__), place)

  def run():
    code, said = command("align.main", "--config=reduced.py", "--workdir=w", where=place)
    assert code == 0 and "report: " in said, said
    return json.loads((place / "w/results.json").read_text())
  return run


def figures(results, runs):
  """What the sweep's claims about these runs would read."""
  kept = sweep.record(results, {})
  return {tuple(claim.path): sweep.reach(kept, claim.path) for claim in claims.read(SWEEP) if claim.runs[0] == runs}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_reduced_run_ends_in_a_report_and_goes_on_where_it_was(tmp_path):
  run, place = begun(tmp_path, "image"), tmp_path / "w"
  results = run()
  assert set(results["arms"]) == {"base", "control", *recipe.WAYS}
  for way in recipe.WAYS:
    found = results["collected"]["pairs"]["ways"][way]
    assert found["calls"] == (0 if way == "random" else 4) and found["audit"]["right"]["count"] <= found["pairs"]
    assert pairs.make(str(place / "pairs/pairs" / way)).size == found["pairs"]
  assert all(map(np.isfinite, figures(results, "seed0").values()))
  stage = place / "two_stage/stage.json"
  stage.write_text(json.dumps({**json.loads(stage.read_text()), "done": False}))  # as if it had been interrupted
  (place / "evaluate/stage.json").unlink()
  assert run()["arms"]["two_stage"]["overall"] == results["arms"]["two_stage"]["overall"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_reduced_run_of_answers_says_how_good_they_were_and_are(tmp_path):
  results, place = begun(tmp_path, "answer")(), tmp_path / "w"
  assert set(results["examined"]) == {"asked", "asked_again"} and set(results["collected"]) == {"answers"}
  assert pairs.read(str(place / "answers/pairs/two_stage")).record(0)["kind"] == "text"
  found = {path: value for path, value in figures(results, "answers0").items() if len(path) == 3}
  assert found and all(map(np.isfinite, found.values()))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_reduced_run_of_clips_ends_in_a_report_of_clips(tmp_path):
  results, place = begun(tmp_path, "clip")(), tmp_path / "w"
  assert set(results["arms"]) == {"base", "two_stage", "control"} and set(results["collected"]["pairs"]["ways"]) == {
    "two_stage"}
  row = pairs.read(str(place / "pairs/pairs/two_stage")).record(0)
  assert row["kind"] == "video" and row["win"].shape == (6, 16, 16, 3)
  found = figures(results, "clips0")
  assert len(found) == 2 and all(map(np.isfinite, found.values()))
