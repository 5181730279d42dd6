"""The benchmark of the recipes: every second of a made-up run is in one phase; small arms run. Nothing is timed."""
import pytest

from align import build, config
from launch import bench, phases


def test_seconds_of_later_experiences_are_summed_by_phase_and_the_first_one_shows_what_compiling_took():
  one = [("embed", 1.0), ("rollout", 4.0), ("decode", 1.0), ("score", 2.0), ("select", 0.5), ("update", 3.0),
         ("update", 3.5)]
  first = [(name, s + 10) for name, s in one]
  found = phases.phases([*first, *one, *one, *[(name, 2 * s) for name, s in one]], 2, 3)
  assert {name: row["seconds"] for name, row in found.items()} == {
    "compiling": 70.0, "sampling": 6.0, "scoring": 2.0, "updating": 7.0}
  assert found["sampling"]["spread"] == 3.0


def test_what_follows_the_last_update_belongs_to_the_next_experience_at_most():
  found = phases.phases([("update", 5.0), ("update", 1.0), ("follow", 0.5), ("update", 1.0)], 1, 2)
  assert found["updating"]["seconds"] == pytest.approx(1.25) and found["compiling"]["seconds"] == pytest.approx(3.75)


@pytest.mark.parametrize("arm", phases.ARMS)
def test_every_arm_stands_alone(arm, tmp_path):
  file, name = phases.ARMS[arm]
  spec = phases.alone(build.resolve(config.load(f"{phases.RECIPES}/{file}"))["runs"][name], tmp_path)
  assert "@" not in str(spec["start"]) + str(spec["data"])
  build.build("align.datasets", spec["data"]).record(0)


@pytest.mark.slow  # an update to compile
def test_a_small_arm_is_measured_and_printed(capsys):
  found = phases.measured("unified reward, dpo", 2, ("config.runs.two_stage.batch=8",))
  assert list(found) == [f"unified reward, dpo, {phase}" for phase in ("compiling", "sampling", "scoring", "updating")]
  assert found["unified reward, dpo, updating"]["seconds"] > 0 and found["unified reward, dpo, scoring"]["seconds"] == 0
  assert found["unified reward, dpo, updating"]["memory"] > 2 ** 27
  bench.printed("recipes", found)
  assert "updating" in capsys.readouterr().out
