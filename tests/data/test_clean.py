"""Cleaning: each rule drops what it says and nothing else, in English and in Chinese; duplicates are found."""

from __future__ import annotations

import json

import pytest
from storyteller.stories import stories

from llama3_scratch.data.clean import C4, GOPHER, WebPage, broken_rule, c4_lines, tidy
from llama3_scratch.data.duplicates import Exact, Near
from llama3_scratch.data.report import Report, cleaned
from llama3_scratch.errors import UsageError
from tests.recipes import script

ENGLISH = next(iter(stories(5, 1)))
CHINESE = (
    "从前有一个小女孩，她和奶奶住在山脚下的一间小房子里。每天早上，她都要到河边去打水，在路上跟小鸟和松鼠说话。\n\n"
    "有一天，下了很大的雨，河上的桥被冲走了。小女孩不知道怎么过河，就坐在石头上哭了起来。这时候，一只老乌龟慢慢地游过来，说：“别哭，我背你过去。”\n\n"
    "小女孩高兴极了，回家以后，她把这件事告诉了奶奶。奶奶笑着说，做了好事的人，总会有朋友来帮忙的。"
)


def test_good_texts_stay():
    for text in (ENGLISH, CHINESE):
        assert broken_rule(text, ["gopher", "c4"]) is None, text
    assert sum(broken_rule(text, ["gopher", "c4"]) is not None for text in stories(6, 200)) == 0


BULLETS = "\n".join(f"- the item number {n} of all that there is to have" for n in range(12))
BAD = {
    "50 to 100,000 words": "The cat and the dog ran to the house with a ball.",
    "words of 3 to 10 letters on average": "a b to of the " * 20 + "i o u e " * 20,
    "at most a symbol (#, …) for 10 words": "".join(f"#tag{n} and the {n}th thing of it " for n in range(30)),
    "at most 90% of lines are bullets": BULLETS,
    "at most 30% of lines end in an ellipsis": "\n".join(
        f"And then came the thing of number {n} to be..." for n in range(9)
    ),
    "80% of words have a letter": "".join(f"the {n} and {n + 1} to {n * 7} of {n * 13} have " for n in range(100, 120)),
    "2 stop words": " ".join(f"word{chr(97 + n % 26)}{chr(97 + n // 26)} goes" for n in range(60)),
    "at most 30% of lines repeat": "\n".join(
        ["The same short line of it"] * 6 + [f"{ENGLISH[9 * n : 9 * n + 60]}" for n in range(6)]
    ),
}


@pytest.mark.parametrize("rule", BAD)
def test_gophers_rules_by_name(rule):
    page = WebPage(BAD[rule])
    assert not GOPHER[rule](page)
    assert GOPHER[rule](WebPage(ENGLISH)) and GOPHER[rule](WebPage(CHINESE))


def test_repetition_by_hand():
    page = WebPage("a b a b c\n\nx\n\nx\n\nyy")
    assert page.top_ngram(2) == 4 / 9 and page.repeated(page.lines, by_characters=False) == 1 / 4
    assert page.repeated(page.paragraphs, by_characters=True) == 1 / 13
    assert page.repeated_ngrams(2) == 2 / 9 and page.repeated_ngrams(3) == 0 and WebPage("a b c").top_ngram(2) == 0
    again = f"{ENGLISH}\n\n{ENGLISH}"
    assert broken_rule(again, ["gopher"]) == "gopher: at most 30% of lines repeat"
    assert broken_rule(again.replace("\n", " "), ["gopher"]).startswith("gopher: at most 15% in repeated runs of 5")


def test_c4s_rules_and_lines():
    text = "Home\nClick here\nThis is a line of good text.\nPlease enable JavaScript to see it.\nNo end here at all\n"
    assert c4_lines(text) == ["This is a line of good text."]
    assert c4_lines("今天天气真的很好。\n首页") == ["今天天气真的很好。"]
    three = "One line of five words. Two of it are here.\nAnd here is the third one!"
    assert broken_rule(three, ["c4"]) is None
    assert not C4["no curly bracket"](WebPage("if (x) { y }")) and not C4['no "lorem ipsum"'](
        WebPage("Lorem Ipsum dolor")
    )
    assert broken_rule("One good sentence stands here.", ["c4"]) == "c4: 3 sentences in lines that end as sentences do"


def test_tidied_text_is_the_same_to_read():
    assert tidy("cafe\u0301\r\nb\x00\x07c\ufeff\td\ue000") == "café\nbc\td"
    assert tidy(CHINESE) == CHINESE and tidy(ENGLISH) == ENGLISH


def test_exact_duplicates():
    seen = Exact()
    assert [seen(text) for text in ("A b", "c", "a  B\n", "a bc")] == [False, False, True, False]


def test_near_duplicates():
    pytest.importorskip("datasketch")
    many = list(stories(7, 60))
    seen = Near(0.7)
    assert not any(map(seen, many))
    changed = many[3].replace(".", "!", 2).replace("the", "this", 1)
    assert seen(changed) and seen(CHINESE) is False and seen(CHINESE.replace("老乌龟", "小乌龟"))
    with pytest.raises(UsageError, match=r"between 0 and 1 in common, got 1\.5"):
        Near(1.5)


def test_the_report_counts_and_says_why():
    report = Report()
    kept = list(cleaned([ENGLISH, CHINESE, ENGLISH, "\x00", "too short of it"], report, rules=["gopher"]))
    assert kept == [ENGLISH, CHINESE]
    assert report.as_dict() == {
        "read": 5,
        "kept": 2,
        "dropped": {"stood there before": 1, "nothing in it": 1, "gopher: 50 to 100,000 words": 1},
    }
    assert next(iter(report.lines())) == "5 documents read, 2 kept"


def test_the_script_cleans_and_reports(tmp_path, capsys):
    rows = [ENGLISH, CHINESE, ENGLISH, "short"]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in rows))
    assert script("train_tokenizer")([str(tmp_path / "rows.jsonl"), "--size", "260", "--out", str(tmp_path / "t")]) == 0
    named = ["--tokenizer", str(tmp_path / "t"), "--out", str(tmp_path / "data"), "--validation", "0"]
    cleaning = ["--clean", "gopher,c4", "--near", "0.8"]
    assert script("prepare_data")([str(tmp_path / "rows.jsonl"), *named, *cleaning]) == 0
    assert "4 documents read, 2 kept" in capsys.readouterr().out
    assert json.loads((tmp_path / "data" / "report.json").read_text())["kept"] == 2
    assert script("prepare_data")([str(tmp_path / "rows.jsonl"), *named, "--clean", "good"]) == 2
    assert "--clean good: expected gopher or c4" in capsys.readouterr().err
