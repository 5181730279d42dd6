"""Every shipped sweep: its runs are runs of its config, what they share is theirs, what it tables and claims is found
in what they leave."""
import json
import runpy
from pathlib import Path

import pytest

from align import build, claims, config
from launch import sweep

ROOT = Path(__file__).parent.parent
FILES = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "configs/sweeps").glob("[!_]*.py")
               if "get_sweep" in runpy.run_path(p))
RECIPES = {p.stem for p in (ROOT / "configs/recipes").glob("[!_]*.py")}
CLAIMED = build.resolve(config.load("configs/claims.py"))["sweeps"]


def stages(made: dict, run: str) -> dict:
  """The resolved runs of a sweep's run."""
  given = dict(made["runs"][run])
  whole = config.override(config.load(given.pop("config", made["config"])), [f"{k}={v}" for k, v in given.items()])
  return build.resolve(whole)["runs"]


@pytest.mark.parametrize("file", FILES)
def test_a_stage_that_runs_share_is_the_same_in_all(file):
  made, found = sweep.load(file), {}
  for run, places in made.get("share", {}).items():
    runs = stages(made, run)
    seed = made["runs"][run].get("config.seed")  # of stages that have none of their own
    for stage, place in places.items():
      own = (runs[stage], seed if runs[stage].get("seed") is None else runs[stage]["seed"])
      assert found.setdefault(place, own) == own, f"{run}: {stage} in {place}"


def test_the_recipes_are_claimed():
  assert RECIPES <= {Path(path).stem for path in CLAIMED} and set(CLAIMED) <= set(FILES)


@pytest.mark.parametrize("file", FILES)
def test_runs_resolve_and_share_only_stages_that_are_theirs(file):
  made = sweep.load(file)
  for run in (next(iter(made["runs"])), *made.get("share", {})):
    assert set(made.get("share", {}).get(run, {})) <= set(stages(made, run)), run
  for names in made.get("groups", {}).values():
    assert set(names) <= set(made["runs"])


@pytest.mark.parametrize("file", FILES)
def test_records_are_those_of_runs_that_there_are(file):
  made, records = sweep.load(file), ROOT / "configs/records" / Path(file).stem
  for path in records.glob("*.json"):
    assert path.stem in made["runs"], path
    found = sweep.recorded(records, path.stem, made["runs"][path.stem])
    if "traces" not in found:
      for title, keys in made["columns"].items():
        own = sweep.reach(found, keys)
        assert own is None or isinstance(own, (int, float)), title
  sweep.table(made, records)


def kinds(data: dict) -> list:
  """Of the questions of an examination."""
  return [*kinds(data["data"]), *(f"{data['called']}_{kind}" for kind in ("pair", "point"))] if "called" in data else (
    data["tasks"])


@pytest.mark.parametrize("file", CLAIMED)
def test_claims_are_about_arms_and_examinations_that_their_runs_have(file):
  made, found = sweep.load(file), claims.read(file)
  assert any(c.primary for c in found) or Path(file).stem not in RECIPES
  assert all(len(c.runs) == 5 for c in found if c.primary)
  assert json.loads(json.dumps(made["runs"])) == made["runs"]  # what a record is compared with
  known = {run: stages(made, run) for run in {run for claim in found for run in claim.runs[:1]}}
  for claim in found:
    for path in filter(None, (claim.path, claim.minus)):
      runs = known[claim.runs[0]]
      if path[0] == "scores" and "evaluate" in runs:
        verdict = runs["evaluate"]
        assert path[1] in verdict["arms"] and path[2].split("/")[0] in verdict["rewards"], claim
      elif path[0] == "scores":  # of the one examination
        assert all(path[1] in kinds(stages(made, run)["exam"]["data"]) for run in (claim.runs[0], *claim.against[:1]))
      elif path[0] in ("examined", "collected"):
        assert path[1] in runs, claim
      else:
        verdict = runs["evaluate"]
        arms = path[1].split(" - ")
        assert set(arms) <= set(verdict["arms"]), claim
        assert path[0] == "arms" or arms[0] == verdict["primary"], claim
