"""What judges write and how it must be read: the forms that are asked for, and answers that only look like them."""
import json

import numpy as np
import pytest

from rewards.judging import answers
from rewards.judging.formats import TABLE

PAIR = "image_generation_pair_v1_llava"
NAN = float("nan")


def parsed(name, text):
  return answers.parse(TABLE[name], text)


# Every text of a comparison, and the one verdict that it may have; "failed" where it is ambiguous.
VERDICTS = [
  ("Image 1 is better than Image 2.", "first"),
  ("Image 2 is better than Image 1.", "second"),
  ("Both images are equally good.", "tie"),
  ("Image 1 is better", "first"),                                        # the form of the other family
  ("image 2 is better than image 1", "second"),
  ("IMAGE 2 IS BETTER THAN IMAGE 1!", "second"),
  ("  \n**Image 1 is better than Image 2.**\n", "first"),
  ("## Verdict: Image 2 is better.", "second"),
  ("- `Image 1 is better`", "first"),
  ("__Image 1__ is better than *Image 2*.", "first"),
  ("“Image 2 is better than Image 1.”", "second"),
  ("Ｉｍａｇｅ　１ is better than Image\u00a02.", "first"),  # full-width, and a space that does not break
  ("Image 1\u200b is better.", "first"),
  ("Image 1 is better than Image 2 because it is sharper.", "first"),
  ("Image 1 is better than Image 2. It shows 2 dogs out of 2, image 2 only 1.", "first"),
  ("The first has 10 cats; the second has 2.\nFinal answer: Image 2 is better than Image 1.", "second"),
  ("The dog is blurred. Image 2 is better.", "second"),
  ('The sign reads "Image 1 is better". Image 2 is better.', "second"),
  ("Image 2 is not better than Image 1. Image 1 is better.", "first"),
  ("Image 1 is better. Image 1 is better.", "first"),
  ("", "failed"),
  (" \n\t", "failed"),
  ("Image 1: a red circle. Score: 3\nImage 2: a red square. Score: 5\nImage 2 is better than Image 1.", "second"),
  ("Final verdict:\nImage 1 is better.", "first"),
  ("I looked at both\n\nImage 1 is better.", "first"),
  ("It is false that:\nImage 1 is better than Image 2.", "failed"),
  ("I cannot say that\nImage 1 is better.", "failed"),
  ("If colour matters,\nImage 1 is better.", "failed"),
  ("Image 1 is better than Image 2. Actually no.", "failed"),
  ("Image 1 is better.\nWait, it is blurred.", "failed"),
  ("Image 1 is better.\nNo.", "failed"),
  ("Image 1 is better than Image 2. No part of it is blurred.", "first"),
  ("- Image 2: the colour is wrong\nImage 1 is better.", "first"),
  ("This is wrong:\nImage 1 is better.", "failed"),
  ("Image 10 is better.", "failed"),
  ("Image 1 is better than Image 20.", "failed"),
  ("Image 1 is better than Image 1.", "failed"),
  ("Image 1 is not better than Image 2.", "failed"),
  ("I do not think Image 1 is better than Image 2.", "failed"),
  ("It is false that Image 2 is better.", "failed"),
  ("Neither Image 1 is better nor worse.", "failed"),
  ("If colour matters, Image 1 is better.", "failed"),
  ("Image 1 is better. No, Image 2 is better.", "failed"),
  ("Image 1 is better in colour, but Image 2 is better overall.", "failed"),
  ("Image 1 is better in colour.", "failed"),
  ("Image 1 is better because of its light, though both images are equally good.", "failed"),
  ("Is Image 1 better than Image 2?", "failed"),
  ("Image 1 is better?", "failed"),
  ("Image 1 is better than Image 2 or not", "failed"),
  ("Image 1 is slightly better than Image 2.", "failed"),
  ("Image 2 is worse than Image 1.", "failed"),
  ("Both images are equally bad.", "failed"),
  ("Both images are not equally good.", "failed"),
  ("both images are equally good, yet Image 1 is better.", "failed"),
  ('The caption says "Image 1 is better".', "failed"),
  ("Image ① is better.", "failed"),
  ("1 is better", "failed"),
  ("1", "failed"),
  ("Image 1", "failed"),
  ("The first image is better.", "failed"),
  ("Video 1 is better than Video 2.", "failed"),
  ("Image 1 is better / Image 2 is better / Both images are equally good", "failed"),
]


@pytest.mark.parametrize("text, verdict", VERDICTS)
def test_verdicts(text, verdict):
  found = parsed(PAIR, text)
  assert found.verdict == verdict
  np.testing.assert_equal(found.value, {"first": 1.0, "second": 0.0, "tie": 0.5, "failed": NAN}[verdict])
  assert bool(found.reason) == (verdict == "failed") and found.tie == (verdict == "tie")


def test_other_sentences():
  assert parsed("image_understanding_pair_v1_llava", "The first response is better. It names the dog.").value == 1
  long = "The second response is better than the first response."
  assert parsed("image_understanding_pair_v1_llava", long).value == 0
  assert parsed("image_understanding_pair_v1_llava", "Both responses are equally good").verdict == "tie"
  assert parsed("image_generation_yes_seedream", "Yes. Nothing is known to be missing.").value == 1
  assert parsed("image_generation_yes_seedream", "No, the cat is missing").reason
  assert parsed("image_generation_yes_seedream", "Yes and no.").reason


@pytest.mark.parametrize("text, value", [
  ("Answer 1 is vague.\nOverall Judgment: Answer 2 is better than Answer 1.", 0),
  ("**Overall Judgment:** Answer 1 is better.", 1),
  ("Answer 1 is better on accuracy. Answer 2 is better on clarity.\nOverall judgment: Answer 1 is better.", 1),
  ("Answer 2 is better than Answer 1.", None),
  ("Overall Judgment: both are fine.", None),
  ("Overall Judgment: Both answers are equally good.", None),
  ("Overall Judgment: Answer 1 is better.\nOverall Judgment: Answer 2 is better.", None)])
def test_a_label_before_the_verdict(text, value):
  found = parsed("video_understanding_pair_v1_qwen", text)
  assert found.value == value if value is not None else found.reason


# Scores from 1 to 10; None where there is none that can be trusted.
SCORES = [
  ("Final Score: 7", 7), ("final score: 7.25", 7.25), ("**Final Score:** 8", 8), ("Final Score: **8**/10", 8),
  ("Final Score: 4.5/10", 4.5), ("Final Score (1-10): 9 out of 10.", 9), ("3. Final Score: 7.", 7),
  ("The 3 cats have 12 legs (2 missing).\nFinal Score: 3", 3), ("Final Score: 6\nFinal Score: 6.0", 6),
  ("Final Score: 6. The image is sharp.", 6), ("Final Score：１０", 10),
  ('It reads "Final Score: 2".\nFinal Score: 5', 5),
  ("Final Score: 45", None), ("Final Score: 0", None), ("Final Score: 10.5", None), ("Final Score: -3", None),
  ("Final Score: 4.5/5", None), ("Final Score (1-5): 4", None), ("Final Score: 4-5", None),
  ("Final Score: 4 or 5", None),
  ("Final Score: 3,5", None), ("Final Score: 4.5.2", None), ("Final Score: 1e1", None), ("Final Score: nan", None),
  ("Final Score: four", None), ("Final Score: 4²", None), ("Final Score: 4½", None), ("Final Score: [score]", None),
  ("Final Score:", None), ("Score: 7", None), ("7", None), ("Not the Final Score: 7", None), ("Final Score 7", None),
  ("Final Score: 3\nFinal Score: 8", None), ("Final Score: 3\nFinal Score: unknown", None), ("", None),
  ("Final Score: 7%", None), ("Final Score: 7 * 1", None), ("Final Score: 7 to 8", None), ("Final Score: 6. 5", None),
]


@pytest.mark.parametrize("text, value", SCORES)
def test_scores(text, value):
  found = parsed("image_generation_point_sift", text)
  np.testing.assert_equal(found.value, NAN if value is None else float(value))
  assert found.verdict == ("failed" if value is None else "") and bool(found.reason) == (value is None)


def test_a_failure_says_what_was_read():
  assert "'Final Score' is 45, out of 1 to 10: 'Final Score: 45'" in parsed("image_generation_point_sift",
                                                                            "Final Score: 45").reason
  assert parsed(PAIR, None).reason and parsed(PAIR, b"Image 1 is better").reason


MOTION = "Visual quality: 3\n2. Temporal consistency: 4\nDynamic degree: 1.5/4\nText-video alignment: 2\n"


def test_dimensions_beside_the_score():
  found = parsed("video_generation_point_v1_llava", MOTION + "Factual consistency: 3\nFinal Score: 6")
  assert found.value == 6 and found.parts == {"visual_quality": 3, "temporal_consistency": 4, "dynamic_degree": 1.5,
                                              "text_video_alignment": 2, "factual_consistency": 3}
  assert "Factual consistency" in parsed("video_generation_point_v1_llava", MOTION + "Final Score: 6").reason
  assert "out of 1 to 4" in parsed("video_generation_point_v1_llava", MOTION + "Factual consistency: 5\nFinal Score: 6"
                                   ).reason


def test_dimensions_alone_are_averaged():
  text = "Alignment Score (1-5): 2.6947\nCoherence Score (1-5): 4\nStyle Score (1-5): 3.3053"
  found = parsed("image_generation_point_v2", text)
  np.testing.assert_allclose(found.value, 10 / 3)
  assert found.parts == {"alignment": 2.6947, "coherence": 4, "style": 3.3053}
  assert parsed("video_generation_point_v2", text.replace("Coherence", "Physics")).parts["physics"] == 4
  assert parsed("image_generation_point_v2", text.replace("(1-5): 4", "(1-10): 4")).reason
  assert parsed("image_generation_point_v2", text + "\nStyle Score (1-5): 1").reason


def test_elements():
  text = "dog (animal): 1\n- red ball (object): 0\nbeside (relation): 1\nFinal Score: 3.5"
  found = parsed("image_generation_point_v1", text)
  assert found.value == 3.5 and found.parts == {"elements": 2 / 3}
  assert "neither 0 nor 1" in parsed("image_generation_point_v1", text.replace(": 0", ": 0.5")).reason
  assert "neither 0 nor 1" in parsed("image_generation_point_v1", text.replace(": 0", ": 10")).reason
  assert "no line" in parsed("image_generation_point_v1", "Final Score: 3.5").reason
  assert parsed("image_generation_point_v1", text.replace("3.5", "6")).reason


def test_words():
  scores = "\nAlignment Score (1-5): 4\nCoherence Score (1-5): 3\nStyle Score (1-5): 5"
  found = parsed("image_generation_point_v1.5", '[["a", 0.1], ["dog", 0.25], ["[No_mistakes]", 0.9]]' + scores)
  assert found.value == 4 and found.parts == {"alignment": 4, "coherence": 3, "style": 5, "no_mistakes": 0.9}
  assert parsed("image_generation_point_v1.5", "[['a', 0.1], ['[No_mistakes]', 1]]" + scores).parts["no_mistakes"] == 1
  for broken in ("", '[["a", 0.1]]', '[["a", 1.5], ["[No_mistakes]", 0.9]]',
                 '[["[No_mistakes]", 0.9], ["[No_mistakes]", 0.1]]'):
    assert parsed("image_generation_point_v1.5", broken + scores).reason


BLOCKS = "Alignment:\nImage 1: 0.7\nImage 2: 0.3\nCoherence:\nImage 1: 0.4\nImage 2: 0.6\n" \
         "Style:\nImage 1: 0.6\nImage 2: 0.4"


def test_shares():
  found = parsed("image_generation_pair_score_v2", BLOCKS)
  np.testing.assert_allclose([found.value, *found.parts.values()], [17 / 30, 0.7, 0.4, 0.6])
  assert found.verdict == "first" and list(found.parts) == ["alignment", "coherence", "style"]
  assert parsed("image_generation_pair_score_v2", BLOCKS.replace("0.6", "0.5").replace("0.4", "0.5")).value > 0.5
  even = "\n".join(f"**{d} Score:** Image 1: 0.5, Image 2: 0.5" for d in ("Alignment", "Coherence", "Style"))
  assert parsed("image_generation_pair_score_v2", even).verdict == "tie"
  video = BLOCKS.replace("Image", "Video")
  assert parsed("video_generation_pair_score_v2", video).value == found.value


@pytest.mark.parametrize("old, new, message", [
  ("Image 1: 0.7", "Image 1: 0.9", "do not add up to 1"), ("Image 1: 0.7", "Image 1: 7", "out of 0 to 1"),
  ("Style:", "Taste:", "0 blocks of 'Style'"), ("Style:", "Alignment:", "2 blocks of 'Alignment'"),
  ("Image 1: 0.7\n", "", "0 blocks of 'Alignment'"), ("Image 1: 0.7", "Image 10: 0.7", "0 blocks"),
  ("Image 1: 0.7", "Image 1: high", "0 blocks")])
def test_broken_shares(old, new, message):
  assert message in parsed("image_generation_pair_score_v2", BLOCKS.replace(old, new)).reason


@pytest.mark.parametrize("text, value", [
  ("<think>Image 2 is better in colour, 7+8=15 to 12.</think>\n<answer>Image 1 is better</answer>", 1),
  ("<think>a</think><answer>\n**Image 2 is better.**\n</answer>\n", 0),
  ("<answer>Image 1 is better</answer>", None),
  ("<think>a</think>Image 1 is better", None),
  ("<think>a <answer>Image 1 is better</answer>", None),
  ("<think>a</think><answer>Image 1 is better</answer><answer>Image 2 is better</answer>", None),
  ("<think><answer>Image 2 is better</answer></think><answer>Image 1 is better</answer>", None),
  ("<think>a</think><answer>Image 1 is better, by far</answer>", None),
  ("<think>a</think><answer>I think Image 1 is better</answer>", None),
  ("<think>a</think><answer>Both images are equally good</answer>", None),
  ("<think>a</think><answer>Image 1</answer>", None),
  ("<think>a</think><answer></answer>", None),
  ("<think>it goes on and on", None)])
def test_thinking(text, value):
  found = parsed("image_generation_pair_think", text)
  assert found.value == value if value is not None else found.verdict == "failed" and found.reason


def flex(winner="Image 1", names=("Semantic Alignment", "Quality and Realism", "Aesthetics"), scores=(7, 3)):
  dims = [{"name": "colour", "reasons": "{red} \"dog\"", "score_1": scores[0], "score_2": scores[1]}]
  categories = [{"name": n, "dims": dims, "cat_reason": "", "cat_winner": f"Image {1 + i % 2}"}
                for i, n in enumerate(names)]
  return {"prompt": "a dog", "categories": categories, "reason": "Image 2 wins", "winner": winner}


def test_json():
  found = parsed("image_generation_pair_flex", json.dumps(flex()))
  assert found.value == 1 and found.parts == {"semantic_alignment": 1, "quality_and_realism": 0, "aesthetics": 1}
  assert parsed("image_generation_pair_flex", f"```json\n{json.dumps(flex('image 2'), indent=1)}\n```").value == 0
  more = ("Semantic Alignment", "Quality and Realism", "Aesthetics", "Text Rendering")
  assert set(parsed("image_generation_pair_flex", json.dumps(flex(names=more))).parts) == set(found.parts)


@pytest.mark.parametrize("text, message", [
  (json.dumps(flex("tie")), "winner = 'tie'"), (json.dumps(flex(None)), "winner = None"),
  (json.dumps(flex(names=("Aesthetics",))), "'Semantic Alignment' is missing"),
  (json.dumps(flex(names=("Aesthetics",) * 4)), "there twice"), (json.dumps(flex(scores=(7, 4))), "add up to 10"),
  (json.dumps(flex(scores=(12, -2))), "add up to 10"), (json.dumps(flex(scores=("7", "3"))), "no two scores"),
  (json.dumps(flex())[:-1], "not one JSON object"), ("Image 1 is better. " + json.dumps(flex()), "not one JSON object"),
  (json.dumps(flex()) + json.dumps(flex("Image 2")), "not one JSON object"), ("[1]", "not one JSON object"),
  (json.dumps(flex())[:-1] + ', "winner": "Image 2"}', "stands twice"), ('{"winner": "Image 1"}', "is missing")])
def test_broken_json(text, message):
  assert message in parsed("image_generation_pair_flex", text).reason


def test_no_text_raises():
  rng = np.random.default_rng(0)
  pieces = ["Image 1 is better", "Final Score: ", "(1-5)", "<think>", "</answer>", "{", "}", "[[", '"', "0.5", "\n",
            "**", " ", "Alignment", ":", "\x00", "\ud800", "𝟙", "é"]
  for _ in range(300):
    text = "".join(rng.choice(pieces, rng.integers(1, 12)))
    for question in TABLE.values():
      found = answers.parse(question, text)
      assert np.isfinite(found.value) != bool(found.reason)


def test_long_texts_are_read_in_linear_time():
  for text in ("Image 1 is better " * 20000, "**" * 50000, '"' * 50000, "[" * 50000, "<think>" * 20000, "{" * 50000,
               " \n" * 50000, "1" * 50000, "Final Score: " * 20000, "a (" * 30000, '["a", 0.5], ' * 5000):
    for name in ("image_generation_pair_v1_llava", "image_generation_point_v1", "image_generation_point_v1.5",
                 "image_generation_pair_score_v2", "image_generation_pair_think", "image_generation_pair_flex"):
      assert parsed(name, text).reason
