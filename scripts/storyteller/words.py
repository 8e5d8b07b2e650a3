"""Who, what and where of the stories, how a story begins and ends, and how the plots are read from plots.txt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]


GIRLS = _words(
    "Mia, Lily, Anna, Zoe, Ella, Rosa, Nina, Ruby, Ivy, Lucy, Maya, Tess, Amy, Sara, Emma, Molly, Lena, Kate"
)
BOYS = _words("Tom, Ben, Max, Leo, Sam, Jack, Finn, Noah, Omar, Luca, Tim, Hugo, Eli, Paul, Adam, Oscar, Nick, Theo")
WOMEN = _words("Grandma, Mom, Aunt Rose, Mrs. Green, the farmer, the teacher, Miss Hill")
MEN = _words("Dad, Grandpa, Uncle Joe, old Mr. Brown, the baker, the mailman")
ANIMALS = _words("rabbit, bear, fox, mouse, duck, cat, dog, frog, squirrel, owl, pig, goat, hedgehog")

# A plot may have narrower choices of its own: what breaks with a crack can't be a jump rope.
WORDS: dict[str, list[str]] = {
    "hero_animal": ANIMALS,
    "friend_animal": ANIMALS,
    "nice": _words("happy, curious, quiet, funny, gentle, clever, cheerful, friendly, merry, lively"),
    "small": _words("little, small, young"),
    "hobby": _words(
        "to sing, to paint, to tell jokes, to look at the clouds, to collect stones, to count everything, to build "
        "towers, to listen to the birds, to hop over puddles, to make up songs, to look at picture books"
    ),
    "place": _words("garden, park, forest, meadow, playground, yard, orchard"),
    "home": _words(
        "a small house by the river, a white house on a hill, a cozy home near the woods, a house with a red door, "
        "a little house at the end of the road, a warm house full of books, an old house with a big tree"
    ),
    "far": _words(
        "the old bridge, the big oak tree, the blue lake, the top of the hill, the old mill, the stone wall, the well"
    ),
    "hidden": _words(
        "under a bush, behind a big stone, in the tall grass, behind a tree, under the old bench, behind the shed"
    ),
    "thing": _words(
        "red ball, toy car, blue kite, teddy bear, wooden boat, yellow drum, paper plane, toy train, jump rope, "
        "rag doll, wooden horse, orange bucket"
    ),
    "other": _words(
        "green hat, shiny stone, silver bell, red scarf, little flute, picture book, box of crayons, toy truck, "
        "spinning top, soft blanket, striped sock, glass marble"
    ),
    "food": _words("apple pie, chocolate cake, warm bread, carrot soup, banana bread, plum cake, cheese pie"),
    "fruit": _words("apples, pears, plums, cherries, strawberries, peaches"),
    "baby": _words("kitten, puppy, duckling, lamb, chick, bunny"),
    "grown": _words("Grandma, Mom, Dad, Grandpa, Aunt Rose, Uncle Joe"),
    "neighbor": _words("old Mr. Brown, Mrs. Green, the baker, the farmer, the mailman, the teacher, Miss Hill"),
    "day": _words(
        "One day, One morning, One fine day, One Saturday, One Sunday morning, One bright morning, One spring day, "
        "One summer day, On a quiet Sunday, On a day in May, Early one morning"
    ),
    "color": _words("red, blue, green, yellow, purple, orange"),
}

# How a story begins whose hero has no friend yet, and any other one too.
ALONE = [
    "Once upon a time, there was a {small} {hero_is} named {hero}. {He} lived in {home}. {Hero} was very {nice}.",
    "{Hero} was a {nice} {hero_is}. {He} lived with {grown} in {home}. [Most of all, {he} liked {hobby}.|]",
    "In {home} lived a {small} {hero_is}. {His} name was {hero}, and {he} was {nice}. [{He} liked {hobby}.|]",
    "Once there was a {hero_is} called {hero}. Everybody said that {he} was {nice}. [{He} loved {hobby}.|]",
    "Do you know {hero}? {Hero} is a {small} {hero_is} who lives with {grown} in {home}. This is a story about {him}.",
    "A {small} {hero_is} lived with {grown} in {home}. {Hero} was {his} name. "
    "[Most of all, {he} liked {hobby}.|{He} was very {nice}.]",
    "This is the story of {hero}, a {nice} {hero_is}. {He} liked {hobby}, and {he} liked to be with {grown}.",
]
TOGETHER = [
    "There once was a {nice} {hero_is} called {hero}. Every day {he} played in the {place} with {his} friend {friend}.",
    "Once there was a {hero_is} who was very {nice}. {His} name was {hero}. {His} friend was {friend}, a {friend_is}.",
    "{Hero} and {friend} were best friends. {Hero} was a {nice} {hero_is}, and {friend} was a {friend_is}. "
    "[They both liked {hobby}.|]",
    "A {small} {hero_is} named {hero} had a friend, a {friend_is} called {friend}. Both of them liked {hobby}.",
    "{Hero} was a {small} {hero_is} and lived in {home}. Next door lived {friend}, a {friend_is}. They met every day.",
]
# A plot names the kinds of ending that fit what has happened.
ENDINGS = {
    "bed": [
        "That night, {hero} lay in bed and smiled. It had been a good day.",
        "When the stars came out, {hero} was already in bed. {He} thought of the day and fell asleep with a smile.",
        '"What a day," said {hero} that evening. Then {he} closed {his} eyes and dreamed of the {place}.',
        "{Hero} went to bed early that night. {He} was tired and happy, and the moon looked in at the window.",
        'In the evening, {grown} tucked {hero} in. "Are you happy?" asked {grown}. "Very," said {hero}, and slept.',
    ],
    "home": [
        "When the sun went down, {hero} went home. {He} told {grown} everything, and {grown} was proud of {him}.",
        "At dinner, {hero} told {grown} the whole story. {Grown} listened and gave {him} a big hug.",
        '"How was your day?" asked {grown} in the evening. {Hero} had so much to tell that {his} soup got cold.',
        "{Hero} ran home to {grown} and told {g_him} all about it. {Grown} nodded and smiled.",
    ],
    "friend": [
        "{Hero} laughed, and {friend} laughed too. It was one of the best days of all.",
        "After that, {hero} and {friend} were even better friends than before.",
        "{Hero} and {friend} told this story again and again, and each time it made them smile.",
        '"You are my best friend," said {hero}. "And you are mine," said {friend}.',
    ],
    "morning": [
        "{Hero} jumped out of bed and ran into the {place}. It was going to be a good day.",
        "All day long, {hero} had to smile. And in the evening {he} was glad to go to bed again.",
        '"I hope I will dream that again," said {hero}. {He} ate a big breakfast and hummed a happy song.',
        "{Hero} never forgot that dream. Sometimes, when {he} was sad, {he} thought of it, and then {he} had to laugh.",
    ],
    "learned": [
        "From that day on, {hero} never forgot what {he} had learned.",
        "{Hero} was still {small}, but now {he} was a little wiser.",
        'Long after, {hero} still thought of it. "I learned a lot," {he} said, "and I was only {small}."',
        '{Hero} thought about it for a long time. "I will remember this," {he} said softly.',
    ],
}
PERSONS = ("hero", "friend", "grown", "neighbor")


@dataclass(frozen=True)
class Plot:
    """What happens: beats, of each of which a story has one line. Its lines fit each other, whichever are picked."""

    title: str
    words: dict[str, list[str]]  # choices that take the place of those of WORDS
    ends: list[str]  # kinds of ENDINGS
    strangers: bool  # hero and friend meet for the first time
    beats: list[list[str]]


def plots() -> list[Plot]:
    """The plots of plots.txt, in its order."""
    text = Path(__file__).with_name("plots.txt").read_text(encoding="utf-8")
    return [_plot(part) for part in text.split("\n## ")[1:]]


def _plot(text: str) -> Plot:
    head, *beats = text.strip().split("\n\n")
    title, *settings = head.splitlines()
    words = {name: _words(choices) for name, _, choices in (line.partition(":") for line in settings)}
    ends, begins = words.pop("ends"), words.pop("begins", [])
    return Plot(title, words, ends, "strangers" in begins, [beat.splitlines() for beat in beats])
