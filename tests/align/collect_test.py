"""Pairs from a policy and a judge: what each way looks at and costs, what is written, and judges that fail."""
import json

import jax
import numpy as np
import pytest

from align import answers, collect, main
from align.build import UserError, build
from align.datasets import pairs, scenes_questions
from diffusion import folder, vlm_small

WAYS = ("two_stage", "point", "pair", "random")
JUDGES = {"points": {"name": "judges:media"}, "truth": {"name": "judges:bright"},
          "rank": {"name": "judges:media", "kind": "pair_v1_qwen", "scheme": "adjacent"}}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  made = build("align.policies", {"name": "toy:policy"})
  place = tmp_path_factory.mktemp("toy")
  folder.save(place, "policy", {"name": "toy:policy"}, jax.jit(made.init)(jax.random.key(0)))
  return str(place)


def collected(model, workdir, **options):
  return collect.collect(workdir, **{
    "model": model, "data": {"name": "toy:data", "media": False}, "rewards": JUDGES, "score": "points/total",
    "rank": "rank/total", "samples": 8, "batch": 32, "audit": "truth/total", **options})


def rows(place):
  source = pairs.read(place)
  return [source.record(i) for i in range(source.size)]


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
  place = tmp_path_factory.mktemp("collected")
  return place, collected(model, place, ways=WAYS, calls=8)


def test_each_way_looks_at_what_the_calls_pay_for(whole):
  place, results = whole
  assert results == json.loads((place / "results.json").read_text()) and results["prompts"] == 8
  assert set(results["seconds"]) == {"sampling", "judging"} and min(results["seconds"].values()) >= 0
  assert {way: one["candidates"] for way, one in results["ways"].items()} == {
    "two_stage": 4, "point": 8, "pair": 8, "random": 8}
  assert {way: one["calls"] for way, one in results["ways"].items()} == {
    "two_stage": 8, "point": 8, "pair": 8, "random": 0}
  most = {way: max(max(r["sample_win"], r["sample_lose"]) for r in rows(place / "pairs" / way)) for way in WAYS}
  assert most["two_stage"] == 3 and max(most.values()) == 7


def test_what_is_written_is_what_was_judged(whole):
  place, _ = whole
  for way in WAYS:
    for row in rows(place / "pairs" / way):
      win, lose = (row[name].mean() / 255 for name in ("win", "lose"))
      np.testing.assert_allclose([row["score_win"], row["score_lose"]], [1 + 9 * win, 1 + 9 * lose], atol=1e-2)
      assert row["scores_win"]["points/total"] == pytest.approx(row["score_win"]) and "rank/flips" in row["scores_win"]
      assert (row["judge"], row["way"], row["kind"]) == ("points/total", way, "image")
      assert row["provenance"]["rewards"] == JUDGES and len(row["provenance"]["config"]) == 16
      assert way == "random" or win > lose
      neighbour = row["sample_win"] ^ 1 == row["sample_lose"]
      assert way != "pair" or neighbour and row["orders_win"].tolist() == [1, 1] == (1 - row["orders_lose"]).tolist()


def test_points_are_the_best_and_the_worst_of_all(whole):
  place, _ = whole
  by_way = {way: {r["prompt_id"]: r for r in rows(place / "pairs" / way)} for way in WAYS}
  for p, row in by_way["point"].items():
    assert all(row["score_win"] >= one[p]["score_win"] and row["score_lose"] <= one[p]["score_lose"]
               for one in by_way.values() if p in one)


def test_an_audit_says_how_often_pairs_are_right(whole, model, tmp_path):
  _, results = whole
  for way in ("two_stage", "point", "pair"):
    found = results["ways"][way]["audit"]
    assert found["better"]["share"] == found["right"]["share"] == 1.0 and found["worse"]["share"] == 0.0
    assert found["better"]["count"] == results["ways"][way]["pairs"]
  truth = np.array([[1, 0, 1, 1], [1, 0, 0, 0], [np.nan, 1, 1, 1]])
  found = collect.audited(truth, [(0, 0, 1), (0, 2, 3), (1, 1, 0), (2, 0, 1)], 0)
  assert {name: one["share"] for name, one in found.items()} == {"better": 1 / 3, "equal": 1 / 3, "worse": 1 / 3,
                                                                 "right": 0.5}
  assert [one["count"] for one in found.values()] == [3, 3, 3, 2]
  low, high = found["right"]["interval"]
  assert low == 0.0 and high == 1.0
  swapped = collected(model, tmp_path, score="truth/total", audit="points/total", rank=None)
  assert swapped["ways"]["point"]["audit"]["right"]["share"] == 1.0


def test_a_judge_that_fails_too_often_stops_with_what_it_wrote(model, tmp_path):
  broken = {**JUDGES, "points": {"name": "judges:media", "broken": 1.0}}
  said = "; ".join(f"prompt 'a handwritten {word}', sample 0: 'Well ...'" for word in ("one", "two", "three"))
  with pytest.raises(UserError, match=r"config.score = 'points/total': the judge failed on 1.000 of 64 samples, "
                                      rf"allowed is config.failures = 0.2; mend the judge.*{said}$"):
    collected(model, tmp_path / "a", rewards=broken)
  assert not (tmp_path / "a" / "pairs").exists()
  levels = np.sort(np.concatenate([[r["score_win"], r["score_lose"]] for r in _all(model, tmp_path / "b")]))
  half = float((np.median(levels) - 1) / 9)
  some = {**JUDGES, "points": {"name": "judges:media", "broken": half}}
  with pytest.raises(UserError, match="failed on 0.[2-8].* of 64 samples"):
    collected(model, tmp_path / "c", rewards=some)
  found = collected(model, tmp_path / "d", rewards=some, failures=0.9)
  assert 0 < found["failed_scores"] < 64
  least = min(r["score_lose"] for r in rows(tmp_path / "d" / "pairs"))
  assert least >= 1 + 9 * half - 1e-3  # what failed is in no pair


def _all(model, place):
  collected(model, place, pairs=4, rank=None)
  return rows(place / "pairs")


@pytest.mark.parametrize("options, message", [
  ({"pairs": 5}, "config.pairs = 5 must be in 1 .. 4, half of config.samples = 8"),
  ({"pairs": 3, "calls": 8}, "config.pairs = 3 must be in 1 .. 2"),
  ({"batch": 8, "samples": 6}, r"batch = 8, on this mesh \d+, must be a multiple of config.samples = 6"),
  ({"ways": ("points",)}, "config.ways has 'points', which is not one of two_stage, point.*nearest: 'point'"),
  ({"ways": ("pair",), "rank": None}, "config.ways has 'pair', but config.rank is None"),
  ({"calls": 6}, "config.calls = 6 pays for 3 candidates of two_stage.*an even number"),
  ({"calls": 20}, "config.calls = 20 pays for 10 candidates of two_stage; they must be 2 to config.samples = 8"),
  ({"failures": 1.5}, "config.failures = 1.5 must be a share, 0 to 1"),
  ({"score": "points/totl"}, "config.score = 'points/totl' is not one of the scores points/total"),
  ({"audit": "truth/x"}, "config.audit = 'truth/x' is not one of the scores"),
  ({"margin": 9.5}, r"none of 8 prompts gave a pair that differs by more than margin = 9.5 in points/total "
                    r"\(two_stage: 0 undecided, 0 unscored, 8 close\)"),
])
def test_refusals(model, tmp_path, options, message):
  with pytest.raises(UserError, match=message):
    collected(model, tmp_path, **options)


def test_several_ways_must_be_named(whole):
  place, _ = whole
  with pytest.raises(UserError, match="holds the pairs of pair, point, random, two_stage; one of them must be named"):
    pairs.make(place / "pairs")
  assert pairs.make(place / "pairs" / "point").size == 8


# --- answers ----------------------------------------------------------------------------------------------------------

QUESTIONS = {"name": "scenes_questions", "tasks": ("colour", "count"), "size": 16, "count": 24, "seed": 7}


@pytest.fixture(scope="module")
def talker(tmp_path_factory):
  """(a tiny model, the workdir of a run in which it learned a little)."""
  root = tmp_path_factory.mktemp("talker")
  name = str(vlm_small.write(root / "model", tuple(scenes_questions.texts()), width=16, depth=1, tower=1, heads=1))
  policy = {"name": "chat", "model": name, "columns": 40, "length": 4}
  main.run({"task": "train", "steps": 30, "batch": 8, "policy": policy, "algorithm": {"name": "sft"},
            "data": {**QUESTIONS, "seed": 8, "count": 64}, "optim": {"name": "adamw", "lr": 1e-2}, "log_every": 30},
           root / "run")
  return name, str(root / "run"), policy


def test_answers_are_collected_and_learned_from(talker, tmp_path):
  name, run, policy = talker
  rewards = {"points": {"name": "judges:answers", "model": name}, "truth": {"name": "verdict", "model": name},
             "rank": {"name": "judges:answers", "model": name, "kind": "pair_v1_qwen", "scheme": "adjacent"}}
  config = {"task": "pipeline", "seed": 3, "runs": {
    "pairs": {"task": "collect", "model": run, "data": QUESTIONS, "samples": 6, "batch": 48, "rewards": rewards,
              "score": "points/total", "rank": "rank/total", "audit": "truth/accuracy",
              "ways": ("two_stage", "random")},
    "aligned": {"task": "train", "steps": 2, "batch": 8, "policy": policy, "start": {"policy": run}, "log_every": 1,
                "data": {"name": "pairs", "path": "@pairs/pairs/two_stage"}, "algorithm": {"name": "dpo", "beta": 0.1},
                "optim": {"name": "adamw", "lr": 1e-3}}}}
  main.run(config, tmp_path)
  found = rows(tmp_path / "pairs" / "pairs" / "two_stage")
  source = build("align.datasets", QUESTIONS)
  for row in found:
    assert row["kind"] == "text" and row["win"] != row["lose"]
    assert len(row["win"]) >= len(row["lose"])  # what this judge likes
    asked = source.record(row["prompt_id"])
    assert row["prompt"] == asked["prompt"] and (row["media"] == asked["media"]).all() and row["shown"] == 1
  results = json.loads((tmp_path / "pairs" / "results.json").read_text())
  assert results["unusable"] < 100 and results["failed_scores"] == 0 and "truth/accuracy" in results["scores"]
  logged = [json.loads(line) for line in (tmp_path / "aligned" / "metrics.jsonl").read_text().splitlines()]
  assert logged[0]["train/loss"] == pytest.approx(np.log(2), abs=1e-4)  # the policy is the reference still
  kept = [json.loads(line) for line in (tmp_path / "pairs" / "answers.jsonl").read_text().splitlines()]
  assert {line["reward"] for line in kept} == {"points", "rank"} and all(line["text"] for line in kept)
  assert {line["prompt"] for line in kept} <= {source.record(i)["prompt"] for i in range(3)}
  again = main.run({**config["runs"]["pairs"], "seed": 3}, tmp_path / "again")
  assert again["ways"] == results["ways"]


def test_a_judge_that_has_learned_nothing_is_shown_what_it_writes(talker, tmp_path):
  name, run, _ = talker
  judge = {"name": "unified", "model": name, "question": "scenes_image_answer", "answers": name, "length": 4,
           "dtype": "float32", "at_once": 12}
  with pytest.raises(UserError, match=r"the judge failed on [.0-9]+ of \d+ samples.*prompt '.*', sample \d: '"):
    collect.collect(tmp_path, model=run, data={**QUESTIONS, "count": 6}, rewards={"points": judge}, batch=12,
                    score="points/total", samples=2)


def test_texts_need_a_tokenizer(model):
  with pytest.raises(UserError, match="is a policy 'toy:policy', but answers are collected from a policy 'chat'"):
    answers.texts(model, np.zeros((1, 1, 4), np.int32))
