"""The questions that UnifiedReward and its family are asked (2503.05236, -Think 2505.03318, -Flex 2602.02380), and the
yes-question of Seedream 3.0 (2504.11346).

What is asked, what is shown, and the form of the answer are those of the papers and the released code; the words are
our own. A checkpoint that was trained on other words should be asked with those: `questions.published`. Scores of
version 2.0 have decimals: read as "expected", only the digit in front of them is seen, which lowers them by up to 1.
"""
from pathlib import Path

from rewards.judging import questions
from rewards.judging.questions import Question

PAIR = "(1) how well it follows the caption: objects, their relations, their attributes; (2) overall quality: "
LOOK = {"image": "clarity, detail, colour, appeal", "video": "clarity, smooth motion, colour, appeal"}
FACTORS = ("whether objects are named rightly, whether relations and attributes are right, how helpful the answer is, "
           "and whether it is harmless and fair")
CLEAR = "accuracy, completeness, clarity and relevance to the question"
MOTION = ("Visual quality", "Temporal consistency", "Dynamic degree", "Text-video alignment", "Factual consistency")
DIMENSIONS = {"image": ("Alignment", "Coherence", "Style"), "video": ("Alignment", "Physics", "Style")}
THREE = ("Alignment", "Coherence", "Style")
THINK = {"generation_image": "semantic consistency, aesthetics and authenticity",
         "generation_video": "semantic consistency, temporal coherence and authenticity",
         "understanding": "semantic accuracy, correctness and clarity"}
FLEX = {"image": ("Semantic Alignment", "Quality and Realism", "Aesthetics"),
        "video": ("Semantic Alignment", "Dynamic Realism", "Cinematography")}
RESPONSES = ("The first response is better", "The second response is better", "Both responses are equally good")
CAPTION = "\nCaption: [{prompt}]"
ANSWERS = {True: "\nQuestion: [{prompt}]\nAnswer 1: [{first}]\nAnswer 2: [{second}]",
           False: "\nQuestion: [{prompt}]\nAnswer: [{answer}]"}


def named(noun: str, long: bool, tie: bool = True) -> tuple:
  """The sentences for a first that is better, a second, and a tie. long: whether they name both candidates."""
  than = (f" than {noun} 2", f" than {noun} 1") if long else ("", "")
  ties = (f"Both {noun.lower()}s are equally good",) if tie else ()
  return f"{noun} 1 is better{than[0]}", f"{noun} 2 is better{than[1]}", *ties


def choose(sentences: tuple) -> str:
  return "Answer with exactly one of these sentences: " + " / ".join(f'"{s}."' for s in sentences)


def said(bounds: tuple) -> str:
  return f"from {bounds[0]} to {bounds[1]}"


def one(medium: str, task: str, kind: str, suffix: str, version: str, text: str, parser: str, **fields) -> Question:
  media = 2 if kind in ("pair", "pair_score") and task == "generation" else 1
  return Question(f"{medium}_{task}_{kind}_{suffix}", medium, task, kind, version, media, text, parser, **fields)


def seen(medium: str, whole: bool = False, frames: int = 8, spread: str = "ends") -> dict:
  """How media are shown: squares of 512 as published, frames one by one, or a video whole."""
  if medium == "image" or whole:
    return {} if whole else {"side": 512}
  return {"frames": frames, "spread": spread, "as_images": True, "side": 512}


# --- pictures and clips that were made for a caption ------------------------------------------------------------------


def generation_pair(medium: str, qwen: bool) -> Question:
  sentences = named(medium.capitalize(), long=not qwen)
  text = (f"Here are two {medium}s that were made for one caption. Compare each for {PAIR}{LOOK[medium]}. "
          f"{choose(sentences)}{CAPTION}")
  return one(medium, "generation", "pair", "v1_qwen" if qwen else "v1_llava", "v1", text, "sentence", begun="",
             sentences=sentences, **seen(medium, whole=qwen))


def generation_point(medium: str, bounds: tuple, suffix: str) -> Question:
  """Both criteria and one score, as the sifting of preference data asks."""
  text = (f"Here is one {medium} that was made for a caption. Judge it for {PAIR}{LOOK[medium]}. Give a score "
          f"{said(bounds)}, higher is better, as the line \"Final Score: \" and the number.{CAPTION}")
  return one(medium, "generation", "point", suffix, "v1", text, "score", label="Final Score", range=bounds,
             begun="Final Score: ", **seen(medium))


def image_elements() -> Question:
  text = (f"Here is one image that was made for a caption. Judge it for {PAIR}{LOOK['image']}. First list what the "
          "caption asks for, one a line, as \"element (type): \" and 1 if the image shows it, 0 if not. Then give a "
          f"score from 1 to 5, higher is better, as the line \"Final Score: \" and the number.{CAPTION}")
  return one("image", "generation", "point", "v1", "v1", text, "elements", label="Final Score", range=(1, 5),
             begun="Final Score: ", **seen("image"))


def image_words() -> Question:
  text = ("Here is one image that was made for a caption. First give every word of the caption a number from 0 to 1, "
          "as a list [[\"word\", number], ...]: the higher, the less well the image shows that word. The list ends "
          "with \"[No_mistakes]\", whose number is high where nothing is wrong. Then rate the image from 1 to 5, "
          f"higher is better, in three lines: {rated(THREE)}.{CAPTION}")
  return one("image", "generation", "point", "v1.5", "v1.5", text, "words", range=(1, 5), dimensions=THREE,
             begun="{dimension} Score (1-5): ", **seen("image"))


def rated(dimensions: tuple) -> str:
  return ", ".join(f'"{d} Score (1-5): " and the number' for d in dimensions)


def generation_rated(medium: str) -> Question:
  dimensions = DIMENSIONS[medium]
  text = (f"Here is one {medium} that was made for a caption. Rate it from 1 to 5, decimals allowed, higher is better, "
          f"in {len(dimensions)} lines: {rated(dimensions)}.{CAPTION}")
  return one(medium, "generation", "point", "v2", "2.0", text, "score", range=(1, 5), dimensions=dimensions,
             begun="{dimension} Score (1-5): ", **seen(medium, frames=16, spread="left"))


def generation_shared(medium: str) -> Question:
  noun = medium.capitalize()
  text = (f"Here are two {medium}s that were made for one caption. For each of {', '.join(THREE)} say how good they "
          "are beside each other: two numbers from 0 to 1 that add up to 1. Write three blocks, each the name of what "
          f"is compared, then the lines \"{noun} 1: \" and \"{noun} 2: \" with their numbers.{CAPTION}")
  return one(medium, "generation", "pair_score", "v2", "2.0", text, "shares", sentences=(f"{noun} 1", f"{noun} 2"),
             dimensions=THREE, range=(0, 1), **seen(medium, spread="left"))


def video_rated(qwen: bool) -> Question:
  lines = ", ".join(f'"{d}: "' for d in MOTION)
  text = (f"Here is one video that was made for a caption. Rate it from 1 to 4, higher is better, in five lines: "
          f"{lines}, each with its number. Then give an overall score from 1 to 10 as the line \"Final Score: \" and "
          f"the number.{CAPTION}")
  return one("video", "generation", "point", "v1_qwen" if qwen else "v1_llava", "v1", text, "score",
             label="Final Score", range=(1, 10), dimensions=MOTION, part_range=(1, 4), begun="Final Score: ",
             **seen("video", whole=qwen))


# --- answers about a picture or a clip --------------------------------------------------------------------------------


def understanding_pair(medium: str, qwen: bool) -> Question:
  strict = medium == "video" and qwen  # five factors and ties, except for Qwen's videos
  label, factors = ("Overall Judgment", CLEAR) if strict else ("", FACTORS)
  sentences = named("Answer", long=strict, tie=not strict) if qwen else RESPONSES
  form = f"End with the line \"{label}: \" and one of the sentences. There is no tie. " if strict else ""
  reason = "" if qwen else " Then say why."
  text = (f"Here are a question about the {medium} and two answers to it. Compare them for {factors}. {form}"
          f"{choose(sentences)}{reason}{ANSWERS[True]}")
  return one(medium, "understanding", "pair", "v1_qwen" if qwen else "v1_llava", "v1", text, "sentence", label=label,
             sentences=sentences, begun=f"{label}: " if label else "", **seen(medium, whole=qwen))


def understanding_point(medium: str) -> Question:
  bounds = (0, 100) if medium == "image" else (1, 5)
  text = (f"Here are a question about the {medium} and an answer to it. Judge the answer for {FACTORS}. Explain first, "
          f"then give a score {said(bounds)}, higher is better, as the line \"Final Score: \" and the number."
          f"{ANSWERS[False]}")
  return one(medium, "understanding", "point", "v1", "v1", text, "score", label="Final Score", range=bounds,
             begun="Final Score: ", **seen(medium))


# --- judges that reason, and the word yes -----------------------------------------------------------------------------


def think(medium: str, task: str) -> Question:
  made = task == "generation"
  noun, core = (medium.capitalize(), THINK[f"{task}_{medium}"]) if made else ("Answer", THINK[task])
  what = f"two {medium}s that were made for one caption" if made else f"a question about the {medium} and two answers"
  sentences = named(noun, long=False, tie=False)
  text = (f"Here are {what}. Between <think> and </think>, score each candidate from 1 to 10 for {core}, and for up to "
          "two more dimensions if they matter here; give a short reason for each score, then the sums. After that, "
          f"between <answer> and </answer>, write nothing but \"{sentences[0]}\" or \"{sentences[1]}\"; there is no "
          f"tie.{CAPTION if made else ANSWERS[True]}")
  return one(medium, task, "pair", "think", "think", text, "think", sentences=sentences,
             **seen(medium, spread="left"))


def flex(medium: str) -> Question:
  noun, categories = medium.capitalize(), FLEX[medium]
  form = ('{"prompt": "...", "categories": [{"name": "...", "dims": [{"name": "...", "reasons": "...", "score_1": 0, '
          f'"score_2": 10}}], "cat_reason": "...", "cat_winner": "{noun} 1"}}], "reason": "...", '
          f'"winner": "{noun} 1"}}')
  text = (f"Here are two {medium}s that were made for one caption. Compare them in the categories "
          f"{', '.join(categories)}, and in one more if the caption calls for it. In each choose three to five "
          "dimensions that matter here; for each give both candidates scores from 0 to 10 that add up to exactly 10, "
          f"with what you saw. Every winner is \"{noun} 1\" or \"{noun} 2\"; there is no tie. Answer with one JSON "
          f"object of this form and nothing else:\n{form}{CAPTION}")
  return one(medium, "generation", "pair", "flex", "flex", text, "json", sentences=(f"{noun} 1", f"{noun} 2"),
             dimensions=categories, range=(0, 10), **seen(medium, spread="left"))


def yes(medium: str) -> Question:
  text = f"Does this {medium} show everything that the caption says? Answer Yes or No.{CAPTION}"
  return one(medium, "generation", "yes", "seedream", "seedream", text, "sentence", sentences=("Yes", "No"), begun="",
             **seen(medium))


def table() -> dict:
  """{name: Question} of all."""
  both = [(medium, qwen) for medium in questions.MEDIUMS for qwen in (False, True)]
  rows = [make(medium, qwen) for make in (generation_pair, understanding_pair) for medium, qwen in both]
  rows += [image_elements(), image_words(), video_rated(False), video_rated(True)]
  for medium in questions.MEDIUMS:
    rows += [generation_point(medium, (1, 10), "sift"), generation_rated(medium), generation_shared(medium),
             understanding_point(medium), flex(medium), yes(medium)]
    rows += [think(medium, task) for task in questions.TASKS]
  return {row.name: questions.check(row, row.name) for row in rows}


TABLE = table()


SCENES = Path(__file__).parent / "scenes.json"  # what judges of Scenes are asked


def known(folder: str | None = None) -> dict:
  """{name: Question} of the table, of judges of Scenes, and of the JSON files at `folder`, which come first."""
  return {**TABLE, **questions.published(SCENES, TABLE),
          **(questions.published(folder, TABLE) if folder is not None else {})}


def question(name: str, folder: str | None = None) -> Question:
  """One of them. ValueError with the nearest name."""
  return questions.find(name, known(folder))
