"""Format rewards, guards and the recognition reward, with hand-computed values."""

import random

import pytest

from rewards.check import check_options
from rewards.compose import RewardSpec
from rewards.format import (
    copy,
    graded_format,
    has_reasoning,
    overlong,
    repetition,
    strict_format,
    think_answer,
)
from rewards.grammar.read import parse
from rewards.recognition import brevity, normalize_label, recognition
from rewards.reference import Reference

TEXT = """<think>
A person squats.
One repetition: down and up
rep1: 0.5-1.2s
rep2: 1.2-2.0s
Check: evenly spaced
Total: 2
</think>
<answer>2</answer>"""
MARKED = Reference(count=2, cycles=((0.5, 1.2), (1.2, 2.0)), duration_s=2.5)
UNMARKED = Reference(count=2)
LIST = "rep1: 0.5-1.2s\nrep2: 1.2-2.0s\n"


@pytest.mark.parametrize(
    ("text", "marked", "unmarked"),
    [
        (TEXT, 1.0, 1.0),
        (TEXT.replace("think>", "thinking>"), 1.0, 1.0),
        # no list: 6 and 10 fail where the clip has marks
        (TEXT.replace(LIST, ""), 0.8, 1.0),
        # a list of empty intervals: 6 and 10
        (TEXT.replace("0.5-1.2", "0.0-0.0").replace("1.2-2.0", "0.0-0.0"), 0.8, 0.8),
        (TEXT.replace("<answer>2", "<answer>3"), 0.9, 0.9),  # 10
        (TEXT.replace("<answer>2", "<answer>2.5"), 0.8, 0.8),  # 9, 10
        (TEXT.replace("Check: evenly spaced\n", ""), 0.9, 0.9),  # 7
        (TEXT.replace("evenly spaced", "..."), 0.9, 0.9),  # 7
        (TEXT.replace("Total: 2\n", ""), 0.7, 0.7),  # 6, 8, 10
        (TEXT + " Done.", 0.9, 0.9),  # 3
        (TEXT.replace("</think>\n", ""), 0.8, 0.8),  # 1, 3
        (TEXT.replace("<answer>2</answer>", ""), 0.6, 0.6),  # 2, 3, 9, 10
        ("<think></think><answer>2</answer>", 0.4, 0.4),  # 1, 2, 3, 9
        ("<answer>2</answer>", 0.2, 0.2),  # 2, 9
        ("", 0.0, 0.0),
        ("2", 0.0, 0.0),
        ("rep1: 0.5-1.2s", 0.0, 0.0),
    ],
)
def test_graded_format(text: str, marked: float, unmarked: float) -> None:
    assert graded_format(parse(text), MARKED) == pytest.approx(marked)
    assert graded_format(parse(text), UNMARKED) == pytest.approx(unmarked)


def test_a_count_of_zero_needs_no_list() -> None:
    text = TEXT.replace(LIST, "").replace("Total: 2", "Total: 0").replace(">2<", ">0<")
    assert graded_format(parse(text), MARKED) == 1.0
    assert graded_format(parse(text), Reference(count=0, cycles=())) == 1.0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (TEXT, 1.0),
        (TEXT + "\n", 1.0),
        (TEXT.replace("think>", "thinking>"), 1.0),
        (TEXT.replace(LIST, ""), 1.0),
        (TEXT.replace(LIST, "rep1-2: 0.5-1.2-2.0s\n"), 1.0),
        (TEXT.replace("A person", "A man in red.\n\nThe person"), 1.0),
        (TEXT.replace("Check:", " Check:"), 0.0),
        (TEXT.replace("</think>\n", "</think> "), 0.0),
        (TEXT.replace("Total: 2", "Total: two"), 0.0),
        (TEXT.replace("rep1: ", "rep1:"), 0.0),
        ("Sure! " + TEXT, 0.0),
        (TEXT.replace("rep2", "rep3"), 0.0),
        ("", 0.0),
    ],
)
def test_strict_format(text: str, value: float) -> None:
    assert strict_format(parse(text), MARKED) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<think>it jumps</think><answer>jumping</answer>", 1.0),
        ("<think>it jumps</think>\n<answer>2</answer>\n", 1.0),
        ("<think> </think><answer>2</answer>", 0.0),
        ("<think>it jumps</think><answer></answer>", 0.0),
        ("<answer>2</answer><think>it jumps</think>", 0.0),
        ("So <think>it jumps</think><answer>2</answer>", 0.0),
        ("<answer>2</answer>", 0.0),
    ],
)
def test_think_answer(text: str, value: float) -> None:
    assert think_answer(parse(text), Reference()) == value


def test_reasoning_copied_from_the_prompt_is_none() -> None:
    prompt = "How many times does the person in the video\nsquat? Describe what you see first."
    copied = TEXT.replace("A person squats.", "how many times does the person in the video squat?")
    assert has_reasoning(parse(copied), MARKED)
    assert not has_reasoning(parse(copied), Reference(count=2, prompt=prompt))
    assert has_reasoning(parse(TEXT), Reference(count=2, prompt="A person squats."))  # too short


@pytest.mark.parametrize(
    ("num_tokens", "value"),
    [(0, 0.0), (80, 0.0), (85, -0.25), (90, -0.5), (100, -1.0), (120, -1.0)],
)
def test_overlong_is_that_of_dapo(num_tokens: int, value: float) -> None:
    reference = Reference(num_tokens=num_tokens, max_tokens=100)
    assert overlong(parse(""), reference) == pytest.approx(value)


def test_overlong_limits() -> None:
    assert overlong(parse(""), Reference(max_tokens=100)) is None
    assert (
        overlong(parse(""), Reference(num_tokens=75, max_tokens=100), buffer_fraction=0.5) == -0.5
    )
    with pytest.raises(ValueError, match="buffer_fraction"):
        overlong(parse(""), Reference(), buffer_fraction=0.0)


def test_repetition() -> None:
    assert repetition(parse(TEXT), MARKED) == 0.0
    # 100 words in a cycle of 2: 97 4-grams of which 2 are distinct; (1 - 2/97 - 0.5) / 0.5
    loop = parse("<think>" + "down up " * 50 + "</think>")
    assert repetition(loop, MARKED) == pytest.approx(-(1 - 2 / 97 - 0.5) / 0.5)
    assert repetition(parse(""), MARKED) == 0.0
    many = TEXT.replace(LIST, "".join(f"rep{i}: {i}.0-{i}.5s\n" for i in range(1, 200)))
    assert repetition(parse(many), MARKED) == 0.0  # the list is not prose
    with pytest.raises(ValueError, match="ngram"):
        repetition(loop, MARKED, ngram=0)


def test_copy() -> None:
    prompt = "one two three four five six seven eight"
    reference = Reference(prompt=prompt)
    assert copy(parse(prompt), reference) == -1.0
    # 6-grams: "two..seven" and "three..eight" are copied, "four..nine" is not
    assert copy(parse("two three four five six seven eight nine"), reference) == pytest.approx(
        -2 / 3
    )
    assert copy(parse("nothing of the kind"), reference) == 0.0
    assert copy(parse(prompt), Reference()) is None
    with pytest.raises(ValueError, match="ngram"):
        copy(parse(""), reference, ngram=0)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Jumping Jack", 1.0),
        ("jumping_jack", 1.0),
        ("  JUMPING   jack\n", 1.0),
        ("star jump", 1.0),
        ("Jumping jack.", 1.0),
        ("“Jumping-Jack”!", 1.0),
        ("**jumping jack**", 1.0),
        ("jumping, jack", 0.0),
        ("jumping jack, squat", 0.0),
        ("squat, star jump, jumping jack, plank", 0.0),  # all classes
        ("bicycle", 0.0),  # no class of the list
        (".", 0.0),
        ("a jumping jack", 0.0),
        ("jump", 0.0),
        ("jumping jack or squat", 0.0),
        ("jumping jacks", 0.0),
        ("", 0.0),
    ],
)
def test_recognition_is_exact(text: str, value: float) -> None:
    reference = Reference(label="jumping jack", aliases=("Star_Jump",))
    assert recognition(parse(f"<answer>{text}</answer>"), reference) == value
    assert recognition(parse(text), reference) == 0.0  # no answer tag


def test_recognition_needs_one_answer_and_a_label() -> None:
    hedged = "<answer>squat</answer><answer>jumping jack</answer>"
    assert recognition(parse(hedged), Reference(label="squat")) == 0.0
    assert recognition(parse(hedged), Reference(count=2)) is None
    assert normalize_label(" Push_UP ") == "push up"


def test_a_label_of_punctuation_is_answered_by_nothing() -> None:
    for text in ("", "...", "!"):
        assert recognition(parse(f"<answer>{text}</answer>"), Reference(label="...")) == 0.0


TREE = "arms: wave, Clap_hands; legs: kick, lunge"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("wave", 1.0),
        ("waving", 1.0),  # an alias
        ("clap hands", 0.3),
        ("Clap-Hands.", 0.3),
        ("kick", 0.0),
        ("swim", 0.0),  # of no parent
        ("arms", 0.0),  # a parent is no class
        ("clap", 0.0),  # never a part of a name
        ("wave, clap hands", 0.0),
        ("wave</answer><answer>clap hands", 0.0),
        ("", 0.0),
    ],
)
def test_another_class_of_the_right_parent_earns_its_share(text: str, value: float) -> None:
    response = parse(f"<answer>{text}</answer>")
    reference = Reference(label="wave", aliases=("waving",))
    assert recognition(response, reference, parents=TREE, same_parent=0.3) == value
    assert recognition(response, reference) == float(value == 1.0)  # off by default
    of_none = Reference(label="swim")
    assert recognition(response, of_none, parents=TREE) == float(text == "swim")
    assert recognition(response, Reference(count=2), parents=TREE) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parents": "arms wave"}, r"parents: 'arms wave', expected PARENT: CLASS, CLASS"),
        ({"parents": "arms: wave; legs:"}, r"parents: 'legs:', expected PARENT"),
        ({"parents": "arms: wave,; legs: kick"}, r"parents: 'arms: wave,', expected PARENT"),
        ({"parents": "arms: wave; legs: Wave"}, r"parents: 'wave' is of 'arms' and of 'legs'"),
        ({"same_parent": 1.5}, r"same_parent=1\.5, expected 0 to 1"),
    ],
)
def test_a_hierarchy_that_cannot_be_read_is_told_at_the_start(
    options: dict[str, str | float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        recognition(parse(""), Reference(), **options)  # type: ignore[arg-type]
    spec = RewardSpec.from_mapping({"recognition": {"weight": 1.0, **options}})
    with pytest.raises(ValueError, match=message):
        check_options(spec)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<think>One arm up.</think><answer>wave</answer>", 1.0),  # 4 words
        ("<think>One arm is up.</think><answer>wave</answer>", 0.8),  # 4 of 5
        ("<think>One arm is up and it moves.</think>\n<answer>wave</answer>", 0.5),  # 4 of 8
        ("<answer>wave</answer>", 1.0),
        ("<think><see-one-arm-up> <b> <i> it moves</think><answer>wave</answer>", 4 / 6),
        ("<think>One arm up.</think><answer>kick</answer>", 0.0),
        ("<answer></answer>", 0.0),
        ("", 0.0),
    ],
)
def test_brevity(text: str, value: float) -> None:
    assert brevity(parse(text), Reference(label="wave"), words=4) == value
    assert brevity(parse(text), Reference(count=2), words=4) is None


def test_brevity_of_no_words_is_refused() -> None:
    with pytest.raises(ValueError, match="words=0, expected at least 1"):
        brevity(parse(""), Reference(), words=0)


_PIECES = (
    *("<think>", "</think>", "<answer>", "</answer>", "<thinking>", "</thinking>", "<ans"),
    *("jumping jack", "Jumping_Jack.", "star jump", "squat", "rep1: 0-1s", "Total: 2", "², ٣"),
    *("\ud800", "\x00", "\n", " ", "ß", "İ", "🤸", "<|im_end|>", "x" * 500, ".", "“", "-"),
)


_TREE = "jumps: jumping jack; jumps: squat"


def check_fuzzed(number: int, seed: int) -> None:
    """Random answers get 0 or 1, and 1 only where the one answer tag holds a name of the class."""
    rng = random.Random(seed)
    reference = Reference(label="jumping jack", aliases=("Star_Jump",))
    right = 0
    for _ in range(number):
        text = "".join(rng.choices(_PIECES, k=rng.randrange(9)))
        if rng.random() < 0.5:
            text = f"<answer>{text}</answer>"
        response = parse(text)
        reward = recognition(response, reference)
        name = (response.answer_text or "").casefold().replace("_", " ").replace("-", " ")
        is_right = name.strip(" .“\n") in ("jumping jack", "star jump")
        assert reward == float(is_right), text
        credit = recognition(response, reference, parents=_TREE, same_parent=0.25)
        assert credit == (0.25 if name.strip(" .“\n") == "squat" else reward), text
        brief = brevity(response, reference, words=2)
        assert brief is not None
        assert (brief > 0) == is_right, text
        right += is_right
    assert 0 < right < number / 10


def test_fuzzed_answers_never_raise() -> None:
    check_fuzzed(4000, 0)


@pytest.mark.slow
def test_100_000_fuzzed_answers_never_raise() -> None:
    check_fuzzed(100_000, 1)
