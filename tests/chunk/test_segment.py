"""Where sentences, lines, items and paragraphs end."""

import pytest

from ragkit.chunk.segment import ITEM, LINE, PARAGRAPH, SENTENCE, sentence_cuts

CASES = {
    "plain": "It rained. |We stayed! |Why? |Because.",
    "titles and initials": "Dr. Smith met J. R. Tolkien and Mrs. Jones. |They spoke.",
    "latin": "Use a list, e.g. Python, cf. Fig. 3 and Eq. 4. |See Smith et al. (2019) for more.",
    "acronyms": "He lives in the U.S. Army base. |She left the U.S. |The rest stayed.",
    "numbers": "It costs 3.14 dollars. |In 1999. |Then 12.5 more.",
    "german": "Am 3. Oktober, d.h. bzw. z.B. im Herbst, Nr. 7. |Das war gut.",
    "quotes": 'He said "Stop." |She asked "Why?" and left. |(It was late.) |Done.',
    "footnotes": "It is known.[12] |So we go on.",
    "dots": "Wait... what? |Yes… |No.",
    "chinese": "今天下雨。|我们在家！|为什么？|「好。」|走吧",
    "hindi": "यह एक वाक्य है। |यह दूसरा है।",
    "arabic": "كيف حالك؟ |أنا بخير.",
    "thai": "ประเทศไทย มีอากาศร้อน",
    "urls": "See https://a.b/c.d?e=f!g for it. |Fine.",
}


@pytest.mark.parametrize("marked", CASES.values(), ids=CASES.keys())
def test_sentences_end_where_a_reader_ends_them(marked: str) -> None:
    text = marked.replace("|", "")
    cuts = sentence_cuts(text)
    pieces = [text[a:b] for a, b in zip([0, *cuts.at], [*cuts.at, len(text)], strict=True)]
    assert "|".join(pieces) == marked
    assert set(cuts.strength.tolist()) <= {SENTENCE}


def strengths(text: str) -> list[tuple[str, int]]:
    cuts = sentence_cuts(text)
    return [(text[at : at + 3], strength) for at, strength in zip(cuts.at.tolist(), cuts.strength.tolist(), strict=True)]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_blank_lines_end_paragraphs_and_markers_begin_items(newline: str) -> None:
    text = "Intro, no stop\n\nOne.\nTwo\n- aaa\n- bbb\n1. ccc\n \nEnd".replace("\n", newline)
    wanted = [("One", PARAGRAPH), ("Two", LINE), ("- a", ITEM), ("- b", ITEM), ("1. ", ITEM), ("End", PARAGRAPH)]
    assert strengths(text) == wanted


def test_lines_wrapped_by_hand_do_not_end_there() -> None:
    prose = "It was a bright cold day in April and all of the clocks were striking some hour that " * 8
    lines = [prose[i : i + 60] for i in range(0, 480, 60)]
    assert strengths("\n".join(lines)) == []
    assert strengths("\n".join([*lines[:3], "a short one", "Then:", *lines[3:]])) == [("The", LINE)]


def test_a_cut_is_never_before_a_combining_mark() -> None:
    assert strengths("One. \u0301Two。\ufe0fThree") == []
