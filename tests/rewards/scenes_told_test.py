"""What captions say of scenes: true descriptions are complete, and each fault shows in its own number."""
import numpy as np
import pytest

from diffusion import chat, vlm
from rewards import scenes, scenes_told
from rewards.scenes.told import named, told

_, TEXTS, SPECS = scenes.batch(3, 0, 40, categories=("long",))
OBJECTS = [{"shape": "circle", "color": "red", "x": .2, "y": .2, "r": .15},
           {"shape": "square", "color": "blue", "x": .8, "y": .5, "r": .2}]
TRUE = "a small red circle at the top left and a large blue square at the right"


def test_true_descriptions_are_complete_and_invent_nothing():
  for text, spec in zip(TEXTS, SPECS, strict=True):
    found = told(text, spec["objects"])
    assert (found["complete"], found["invented"], found["right"]) == (1, 0, 1), text
    assert found["words"] == len(text.split()) and len(named(text)) == len(spec["objects"])


@pytest.mark.parametrize("text, complete, invented, right", [
  (TRUE, 1, 0, 1), (f"a photo of {TRUE}", 1, 0, 1), ("a red circle and a blue square", 1, 0, 0),
  (TRUE.replace("red", "green"), .5, .5, .5), (TRUE.replace("small", "large"), 1, 0, .5),
  (TRUE.replace("top left", "top right"), 1, 0, .5), ("a small red circle at the top left", .5, 0, .5),
  (f"{TRUE} and {TRUE}", 1, .5, 1), ("", 0, 0, 0), ("two red circles", 0, 0, 0)])
def test_each_fault_shows_in_its_own_number(text, complete, invented, right):
  found = told(text, OBJECTS)
  assert (found["complete"], found["invented"], found["right"]) == (complete, invented, right)


def test_captions_in_tokens():
  reward, talk = scenes_told.make("judge"), chat.load(vlm.at("judge"), None, None)
  rows = np.full((2, 40), talk.pad)
  for row, text in zip(rows, (TRUE, "a red circle"), strict=True):
    ids = [*talk.encode(text), talk.stop[0], *talk.encode("a blue square")]  # what follows the end is not said
    row[:len(ids)] = ids
  scores = reward.score({}, {"meta": [{"objects": OBJECTS}] * 2}, rows, None)
  np.testing.assert_allclose(scores.total, [1, .5])
  np.testing.assert_allclose(scores.parts["words"], [len(TRUE.split()), 3])
  with pytest.raises(ValueError, match="batch\\['meta'\\] has 1 records for 2 captions, each of which must have"):
    reward.score({}, {"meta": [{"objects": OBJECTS}]}, rows, None)
