"""An examination counts what a model says greedily, kind by kind, and a pipeline passes it on."""
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align import examine, main
from align.build import UserError
from align.datasets import scenes_questions
from align.policies import chat
from diffusion import folder, tokenizer, vlm_small
from rewards import verdict

DATA = {"name": "scenes_questions", "tasks": ("colour", "there"), "size": 16, "count": 30, "seed": 7}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A workdir whose model was trained for two steps."""
  root = tmp_path_factory.mktemp("exam")
  model = vlm_small.write(root / "model", tuple(scenes_questions.texts()), width=16, depth=1, tower=1, heads=1)
  policy = {"name": "chat", "model": str(model), "columns": 40, "length": 4}
  runs = {"train": {"task": "train", "steps": 60, "batch": 8, "policy": policy, "algorithm": {"name": "sft"},
                    "data": {**DATA, "seed": 8, "count": 64}, "optim": {"name": "adamw", "lr": 1e-2}, "log_every": 60},
          "exam": {"task": "examine", "model": "@train", "data": DATA, "batch": 8}}
  results = main.run({"task": "pipeline", "runs": runs}, root / "run")
  return root, policy, results


def test_what_is_said_is_compared_with_the_right_answers(run):
  root, policy, results = run
  made = chat.make(**{k: v for k, v in policy.items() if k != "name"})
  view, source = folder.load(str(root / "run/train")), scenes_questions.make(**{k: v for k, v in DATA.items()
                                                                               if k != "name"})
  rows = [source.record(i) for i in range(30)]
  batch = made.prepare({"prompt": [r["prompt"] for r in rows], "media": np.stack([r["media"] for r in rows]),
                        "shown": np.stack([r["shown"] for r in rows]), "meta": [r["meta"] for r in rows]})
  likely = jax.jit(lambda cond, x: made.log_prob(view, cond, x, None))
  cond = jax.tree.map(jnp.asarray, batch["cond"])
  words = sorted({r["meta"]["win"] for r in rows})
  said = [made.prepare({"prompt": [r["prompt"] for r in rows], "meta": [{"win": w} for _ in rows]})["win"]
          for w in words]
  best = np.stack([likely(cond, x) for x in said]).argmax(0)  # of one word each, so greedy is the likeliest
  right = np.array([words[k] == r["meta"]["win"] for k, r in zip(best, rows, strict=True)])
  kinds = np.array([r["meta"]["task"] for r in rows])
  for kind, found in results["scores"].items():
    assert found["count"] == (kinds == kind).sum()
    np.testing.assert_allclose(found["accuracy"], right[kinds == kind].mean())
  assert set(results["scores"]) == {"colour", "there"} and results["scores"]["there"]["accuracy"] > 0.2


def test_the_first_examples_are_kept(run):
  root, _, _ = run
  kept, source = np.load(root / "run/exam/examples.npz"), scenes_questions.make(**{k: v for k, v in DATA.items()
                                                                                   if k != "name"})
  rows = [source.record(i) for i in range(len(kept["said"]))]
  assert len(rows) == examine.EXAMPLES and kept["prompt"].tolist() == [r["prompt"] for r in rows]
  np.testing.assert_array_equal(kept["media"], [r["media"] for r in rows])
  assert kept["shown"].tolist() == [int(r["shown"]) for r in rows]
  assert kept["right"].tolist() == [said == r["meta"]["win"] for said, r in zip(kept["said"], rows, strict=True)]
  assert "made" not in kept


def test_an_example_is_told_as_far_as_it_goes(run, tmp_path):
  root, _, _ = run
  talk = verdict.opened(str(root / "model"))[0]
  said = examine.worded({"captioner": {"model": str(root / "model")}})
  red = talk.encode("red")
  assert said(np.array([*red, talk.stop[0], *red])) == "red" and said(np.array(red)) == "red"
  assert said(np.array([talk.stop[0], *red])) == ""
  ids = tokenizer.load("words").encode(["a red circle"], 8)[0][0]
  assert examine.worded({"tokens": "words"})(ids) == "a red circle"
  assert examine.worded({"name": "mine:policy"})(np.array([3, 5])) == "3 5"  # a policy of one's own
  media = np.linspace(0, 1, 2 * 4 * 4 * 3, dtype=np.float32).reshape(2, 4, 4, 3)
  kept = examine.examples(lambda ids: str(ids[0]), np.zeros(0), np.array([[7], [5]]), np.zeros(0),
                          [{"media": media}] * 2)
  assert kept["said"] == ["7", "5"]
  assert kept["media"].dtype == np.uint8 and kept["media"].max() == 255 and kept["shown"] == [2, 2]
  assert set(kept) == {"prompt", "said", "media", "shown"}


def test_of_judges_only_the_verdict_counts(run):
  root, _, _ = run
  model = str(root / "model")
  talk = verdict.opened(model)[0]
  cases = [("scenes_image_pair", 1.0, "Image 1: red. Score: 5\nImage 1 is better", True),
           ("scenes_image_pair", 1.0, "Image 1: red. Score: 5\nImage 2 is better", False),
           ("scenes_image_pair", 1.0, "Image 1: red. Score: 5", False),
           ("scenes_image_point", 5.0, "blue\nFinal Score: 5", True),
           ("", "red", "red", True), ("", "red", "blue", False)]
  rows = lambda said: np.array([(ids := [*talk.encode(text), talk.stop[0]]) + [talk.pad] * (40 - len(ids))
                                for text in said])
  given = {"win": rows(["red"] * len(cases)), "meta": [{"question": c[0], "truth": c[1]} for c in cases]}
  assert examine.agrees(model, rows([c[2] for c in cases]), given).tolist() == [c[3] for c in cases]


def test_a_pipeline_without_arms_passes_the_scores_on_and_ends_in_a_report(run):
  root, _, results = run
  page = (root / "run/report.html").read_text()
  assert "<h2>Examinations</h2>" in page and "<h2>Stages</h2>" in page and "Resolved config" in page
  assert f"<td>{results['scores']['there']['accuracy']:.3f}</td>" in page
  written = json.loads((root / "run/results.json").read_text())
  assert written["scores"] == results["scores"] and [s["name"] for s in written["stages"]] == ["train", "exam"]
  low, high = written["scores"]["there"]["interval"]
  assert low <= written["scores"]["there"]["accuracy"] <= high


def test_refusals(run, tmp_path):
  root, _, _ = run
  with pytest.raises(UserError, match="makes media, but an examination asks for answers"):
    examine.examine(tmp_path, model="scenes", data=DATA)
  plain = {"name": "scenes", "split": "train", "count": 8, "size": 16}
  with pytest.raises(UserError, match="'win' is missing"):
    examine.examine(tmp_path, model=str(root / "run/train"), data=plain)
  with pytest.raises(UserError, match="has no option 'model', in whose words a verdict could be read; examine"):
    examine.agrees(None, np.zeros((1, 2), int), {"win": np.zeros((1, 2), int), "meta": [{"question": "x"}]})
