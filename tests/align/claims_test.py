"""Claims: the rule of the verdict, what is incomplete, where the table goes, and two runs in earnest."""
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from commands import ROOT, command
from scipy import stats

from align import build, claims, config, guard

PATH = ["differences", "b - a", "overall", "difference"]
BESIDE = {"text": "b beats a", "paper": "by 3 points", "path": PATH, "runs": ["s0", "s1", "s2"], "primary": True}


def of(*values, least=0.03):
  claim = claims.Claim(**{**BESIDE, "runs": [f"s{i}" for i in range(len(values))]})._replace(least=least)
  return claims.judged(claim, [(v, None) for v in values])


def test_the_verdict_is_read_off_the_t_interval():
  found = of(0.04, 0.05, 0.06)  # sd .01, t(.975, 2) = 4.3027: half width .024841
  assert found.mean == pytest.approx(0.05) and found.verdict == "holds"
  np.testing.assert_allclose(found.interval, [0.05 - 0.0248414, 0.05 + 0.0248414], rtol=1e-6)
  values = [0.01, -0.02, 0.05, 0.03, 0.0]
  np.testing.assert_allclose(of(*values).interval, stats.t.interval(0.95, 4, np.mean(values), stats.sem(values)))
  assert of(*values).verdict == "undecided"                    # wide: 0 and .03 are both inside
  assert of(0.039, 0.04, 0.041).verdict == "holds" and of(0.039, 0.04, 0.041, least=0.05).verdict == "does not hold"
  assert of(0.02, 0.021, 0.022).verdict == "does not hold"     # above 0, but too little
  assert of(-0.2, -0.21, -0.2).verdict == "does not hold"
  assert of(0.0, 0.04, 0.08).verdict == "undecided"            # enough on average, 0 inside
  assert of(0.01, 0.028, 0.029, 0.03).verdict == "undecided"   # not enough on average, .03 inside
  assert of(0.04, 0.04).verdict == "holds"                     # no spread at all


def test_one_run_has_its_figure_and_no_verdict():
  one = claims.Claim(**{**BESIDE, "runs": ["s0"]})
  found = claims.judged(one, [(0.2, [0.1, 0.3])])
  assert found == claims.Found(1, 0.2, [0.1, 0.3], None)
  said = claims.table([("x", one, found)]).splitlines()  # its claim is primary, but of one run
  assert said[:2] == ["<details><summary>1 exploratory claim</summary>", ""] and said[-2:] == ["", "</details>"]
  assert said[4:-2] == ["| x | b beats a | by 3 points | +0.200 (+0.100 to +0.300), 1 seed | – |"]


def test_primary_claims_stand_before_the_others():
  claim, found = claims.Claim(**BESIDE), claims.Found(3, .1, [.0, .2], "holds")
  rows = [("x", claim._replace(primary=False), found), ("y", claim, found), ("z", claim, found)]
  first, said, folded = (part.splitlines() for part in re.split("\n\n(?=Primary|<details>)", claims.table(rows)))
  assert [line.split(" | ")[0] for line in first] == ["| system", "| ---", "| y", "| z"]
  assert said == ["Primary claims: y holds; z holds."]
  assert folded[0] == "<details><summary>1 exploratory claim</summary>"
  assert [line.split(" | ")[0] for line in folded[2:]] == ["| system", "| ---", "| x", "", "</details>"]


def written(folder, rates, interval=None):
  folder.mkdir(parents=True, exist_ok=True)
  for name, (b, a) in rates.items():
    (folder / f"{name}.json").write_text(json.dumps({
      "overrides": {}, "arms": {"a": {"overall": {"rate": a}}, "b": {"overall": {"rate": b}}},
      "differences": {"b - a": {"overall": {"difference": b - a, "interval": interval}}}}))


def test_records_are_read_and_none_is_left_out_silently(tmp_path):
  claim = claims.Claim(**BESIDE)
  written(tmp_path, {"s0": (0.6, 0.5), "s1": (0.7, 0.5)}, [0.0, 0.2])
  found = claims.judged(claim, claims.of(claim, tmp_path))
  assert found == claims.Found(2)
  said = claims.table([("x", claim, found), ("y", claim, claims.Found(3, .1, [.0, .2], "holds")), ("x", claim, found)])
  assert said.splitlines()[2].startswith("| y | ") and len(said.splitlines()) == 7
  assert "\n\nPrimary claims: y holds.\n\n" in said
  assert said.endswith("\n\nClaims whose runs are not all recorded yet: 2 of x.")
  written(tmp_path, {"s2": (0.8, 0.5)}, [0.1, 0.5])
  figures = claims.of(claim, tmp_path)
  np.testing.assert_allclose([value for value, _ in figures], [0.1, 0.2, 0.3])
  assert claims.judged(claim, figures).recorded == 3 and figures[2][1] == [0.1, 0.5]
  apart = claim._replace(path=["arms", "b", "overall", "rate"], minus=["arms", "a", "overall", "rate"])
  assert claims.of(apart, tmp_path)[0] == (pytest.approx(0.1), None)


def test_other_runs_are_compared_seed_by_seed(tmp_path):
  written(tmp_path, {"s0": (0.6, 0.5), "s1": (0.7, 0.5), "o0": (0.5, 0.45), "o1": (0.8, 0.6)})
  claim = claims.Claim(**{**BESIDE, "runs": ["s0", "s1"], "path": ["arms", "b", "overall", "rate"]},
                       against=["o0", "o1"])
  np.testing.assert_allclose([value for value, _ in claims.of(claim, tmp_path)], [0.1, -0.1])
  (tmp_path / "o1.json").unlink()
  assert claims.of(claim, tmp_path)[1] is None and claims.judged(claim, claims.of(claim, tmp_path)) == claims.Found(1)
  entry = {**BESIDE, "runs": ["s0", "s1"]}
  with pytest.raises(build.UserError, match="about the run 'o2', but the sweep's are"):
    claims.checked({**entry, "against": ["s0", "o2"]}, {"s0": {}, "s1": {}}, "at")
  with pytest.raises(build.UserError, match="at compares 2 runs with 1; .against. must name one for each"):
    claims.checked({**entry, "against": ["s0"]}, {"s0": {}, "s1": {}}, "at")


def test_a_record_that_does_not_have_the_figure_is_refused(tmp_path):
  claim = claims.Claim(**{**BESIDE, "runs": ["s0"]})
  (tmp_path / "s0.json").write_text('{"differences": {"b - a": {"overall": {"difference": null}}}}')
  with pytest.raises(build.UserError, match="s0.json' has None at differences / b - a / overall / difference; a claim "
                                            "needs a number there: correct the claim's path"):
    claims.of(claim, tmp_path)
  (tmp_path / "s0.json").write_text("{")
  with pytest.raises(build.UserError, match="s0.json' cannot be read.*must be JSON: remove it"):
    claims.of(claim, tmp_path)


def test_a_primary_claim_of_several_parts_holds_where_all_do():
  claim = claims.Claim(**BESIDE)
  of = lambda *verdicts: claims.verdicts([("x", claim, claims.Found(3, .1, [.0, .2], verdict)) for verdict in verdicts])
  assert of("holds", "holds") == "Primary claims: x holds (2 of 2 parts hold)."
  assert of("holds", "undecided") == "Primary claims: x undecided (1 of 2 parts hold)."
  assert of("undecided", "does not hold", "holds") == "Primary claims: x does not hold (1 of 3 parts hold)."
  assert of("holds", None) == "" and claims.verdicts([("x", claim._replace(primary=False), claims.Found(3))]) == ""


def test_a_record_of_another_run_is_refused(tmp_path):
  path = sweep_file(tmp_path / "s.py", {"s0": {"config.seed": 3}}, [{**BESIDE, "runs": ["s0"]}])
  written(tmp_path / "r", {"s0": (0.6, 0.5)})
  with pytest.raises(build.UserError, match="s0.json' was made with {}, but the run 's0' of its sweep is "
                                            "{'config.seed': 3}; both must be the same: remove the record"):
    claims.rows_of(path, tmp_path / "r")


def sweep_file(path, runs, entries):
  path.write_text(f"def get_sweep():\n  return {dict(config='c.py', columns={}, runs=runs, claims=entries)!r}\n")
  return str(path)


@pytest.mark.parametrize("entry, message", [
  ({"paper": ""}, "text, paper, runs, path are needed, .* are known: add paper"),
  ({"best": 1}, "are known: remove best"),
  ({"runs": ["s1", "s7"]}, "about the run 's7', but the sweep's are s0, s1, s2; name one of them"),
])
def test_a_claim_that_cannot_be_is_refused(entry, message, tmp_path):
  runs = {name: {} for name in BESIDE["runs"]}
  path = sweep_file(tmp_path / "s.py", runs, [BESIDE, {**BESIDE, **entry}])
  with pytest.raises(build.UserError, match="claim 2 of .*s.py.*" + message):
    claims.read(path)


def test_files_without_claims_are_refused(tmp_path):
  with pytest.raises(build.UserError, match="no file 'nowhere.py'; a sweep is a file that defines get_sweep"):
    claims.opened("nowhere.py")
  for text in ("x = 1", "def get_sweep(): return {'runs': {'a': {}}}"):
    (tmp_path / "s.py").write_text(text)
    with pytest.raises(build.UserError, match="makes no claims; its get_sweep.. must return"):
      claims.opened(str(tmp_path / "s.py"))


def test_the_table_goes_between_its_marks_and_nowhere_else(tmp_path):
  runs = {name: {} for name in BESIDE["runs"]}
  path, page = sweep_file(tmp_path / "s.py", runs, [BESIDE]), tmp_path / "page.md"
  written(tmp_path / "r/s", {"s0": (0.6, 0.5), "s1": (0.7, 0.5), "s2": (0.8, 0.5)})
  options = dict(sweeps=(path,), records=str(tmp_path / "r"), run_missing=False, into=str(page))
  for bad in (None, "a\n", "<!-- claims -->\n", "<!-- /claims --> <!-- claims -->",
              "<!-- claims --> <!-- claims --> <!-- /claims -->"):
    if bad is not None:
      page.write_text(bad)
    with pytest.raises(build.UserError, match="must have the line <!-- claims --> and after it <!-- /claims -->"):
      claims.claims(tmp_path / "w", **options)
  assert not (tmp_path / "w").exists()
  page.write_text("before\n\n<!-- claims -->\nold\n<!-- /claims -->\nafter\n")
  for _ in range(2):  # the second time changes nothing
    made = claims.claims(tmp_path / "w", **options)["claims"]
    table = (tmp_path / "w/claims.md").read_text()
    assert page.read_text() == f"before\n\n<!-- claims -->\n{table}<!-- /claims -->\nafter\n"
  assert "| b beats a | by 3 points | +0.200 (−0.048 to +0.448), 3 seeds | undecided |" in table
  assert json.loads((tmp_path / "w/claims.json").read_text()) == json.loads(json.dumps(made))
  assert made[0]["system"] == "s" and made[0]["recorded"] == 3 and made[0]["verdict"] == "undecided"


STOPPABLE = """
import pathlib, signal, sys, time
asked = []
signal.signal(signal.SIGINT, lambda *a: asked.append(1))
pathlib.Path("up").touch()
while not asked:
  time.sleep(0.02)
pathlib.Path("saved").touch()
sys.exit(75)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_and_the_child_saves(number, tmp_path):
  driver = ("import sys\nfrom align import claims\n"
            "print('code', claims.waited([sys.executable, '-c', sys.argv[1]]))")
  job = subprocess.Popen([sys.executable, "-c", driver, STOPPABLE], cwd=tmp_path, stdout=subprocess.PIPE, text=True,
                         env={**os.environ, "PYTHONPATH": str(ROOT)})
  until = time.monotonic() + 60
  while not (tmp_path / "up").exists() and time.monotonic() < until:
    time.sleep(0.02)
  job.send_signal(number)
  assert "code 75" in job.communicate(timeout=60)[0] and (tmp_path / "saved").exists()


def test_the_table_of_the_readme_is_that_of_the_records(tmp_path):
  shown = (ROOT / "README.md").read_text()
  (tmp_path / "README.md").write_text(shown.replace("| undecided |", "| holds |"))
  sweeps = build.resolve(config.load("configs/claims.py"))["sweeps"]
  claims.claims(tmp_path / "w", sweeps=sweeps, into=str(tmp_path / "README.md"), run_missing=False)
  assert (tmp_path / "README.md").read_text() == shown and "Primary claims: UnifiedReward holds;" in shown


def test_exit_codes_of_the_sweep(tmp_path, monkeypatch):
  path = sweep_file(tmp_path / "s.py", {"s0": {}}, [{**BESIDE, "runs": ["s0"]}])
  options = dict(sweeps=(path,), records=str(tmp_path / "r"))
  ends = lambda code: monkeypatch.setattr(claims.sys, "executable", script(tmp_path, code))
  ends(75)
  with pytest.raises(guard.Stopped, match="sweep s was stopped and saved; the same command continues"):
    claims.claims(tmp_path / "w", **options)
  ends(2)
  with pytest.raises(build.UserError, match="ended with exit code 2 .* 0 or 1 is expected"):
    claims.claims(tmp_path / "w", **options)
  ends(1)
  with pytest.raises(build.UserError, match="runs of .*s.py failed; their claims are incomplete"):
    claims.claims(tmp_path / "w", **options)
  assert "not all recorded yet: 1 of s." in (tmp_path / "w/claims.md").read_text()


def script(folder, code):
  """A program that ends with an exit code, in the place of Python."""
  path = folder / f"ends{code}"
  path.write_text(f"#!/bin/sh\nexit {code}\n")
  path.chmod(0o755)
  return str(path)


ALIKE = """
def get_config():
  return {"task": "evaluate", "arms": {"a": "scenes", "b": "scenes"}, "primary": "b", "baseline": "a", "steps": 1,
          "data": {"name": "scenes_prompts", "count": 6}, "rewards": {"scenes": {"name": "scenes"}},
          "success": "scenes/exact", "samples": 1, "batch": 6}
"""


@pytest.mark.slow
def test_two_runs_in_earnest_and_then_from_their_records(tmp_path):
  (tmp_path / "alike.py").write_text(ALIKE)
  runs = {f"s{seed}": {"config.seed": seed} for seed in range(2)}
  (tmp_path / "two.py").write_text("def get_sweep():\n  return " + repr({
    "config": "alike.py", "runs": runs, "columns": {}, "claims": [{**BESIDE, "runs": list(runs)}]}) + "\n")
  (tmp_path / "all.py").write_text("def get_config():\n  return {'task': 'claims', 'sweeps': ('two.py',), "
                                   "'records': 'records'}\n")
  code, said = command("align.main", "--config=all.py", "--workdir=w", where=tmp_path)
  assert code == 0, said
  table = (tmp_path / "w/claims.md").read_text()
  assert "| +0.000 (+0.000 to +0.000), 2 seeds | does not hold |" in table  # the arms are the same model
  (tmp_path / "page.md").write_text("<!-- claims --><!-- /claims -->")
  code, said = command("align.main", "--config=all.py", "--workdir=w", "--config.into=page.md", where=tmp_path)
  assert code == 0 and "(1/2)" not in said, said
  assert table in (tmp_path / "page.md").read_text()


def test_another_sweep_or_place_is_no_other_run():
  old = build.resolve({"task": "claims", "sweeps": ("a.py",)})
  new = {**old, "sweeps": ("a.py", "b.py"), "into": "README.md", "jobs": 2, "run_missing": False}
  assert config.difference(old, new) == [] != config.difference(old, {**old, "records": "elsewhere"})
