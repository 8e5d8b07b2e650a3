"""Who, what and where of data.stories, and how a story begins and ends; its plots are in plots.txt."""

from __future__ import annotations

from importlib import resources


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]


GIRLS = _words(
    "Mia, Lily, Anna, Zoe, Ella, Rosa, Nina, Ruby, Ivy, Lucy, Maya, Tess, Amy, Sara, Emma, Molly, Lena, Kate"
)
BOYS = _words("Tom, Ben, Max, Leo, Sam, Jack, Finn, Noah, Omar, Luca, Tim, Hugo, Eli, Paul, Adam, Oscar, Nick, Theo")
ANIMALS = _words("rabbit, bear, fox, mouse, duck, cat, dog, frog, squirrel, owl, pig, goat, hedgehog")
WORDS: dict[str, list[str]] = {
    "hero_animal": ANIMALS,
    "friend_animal": ANIMALS,
    "nice": _words("kind, happy, curious, quiet, funny, brave, gentle, clever, cheerful, shy, friendly, merry"),
    "small": _words("little, small, tiny"),
    "place": _words("garden, park, forest, meadow, playground, yard, orchard"),
    "home": _words(
        "a small house by the river, a white house on a hill, a cozy home near the woods, a house with a red door, "
        "a little house at the end of the road, a warm house full of books, an old house with a big tree"
    ),
    "far": _words(
        "the old bridge, the big oak tree, the blue lake, the top of the hill, the old mill, the stone wall, the well"
    ),
    "hidden": _words(
        "under the bed, behind the big chair, under a bush, in the tall grass, behind a tree, under the old bench, "
        "behind the door"
    ),
    "thing": _words(
        "red ball, toy car, blue kite, teddy bear, wooden boat, yellow drum, paper plane, toy train, jump rope, "
        "puzzle, rocking horse, orange bucket"
    ),
    "other": _words(
        "green hat, shiny stone, silver bell, red scarf, little flute, picture book, box of crayons, toy truck, "
        "spinning top, soft blanket, striped sock, glass marble"
    ),
    "food": _words(
        "apple pie, chocolate cake, warm bread, berry jam, honey cookies, pancakes, carrot soup, banana bread, "
        "orange jelly, cheese sandwiches, noodle soup"
    ),
    "fruit": _words("apples, pears, plums, cherries, strawberries, peaches"),
    "baby": _words("bird, kitten, puppy, duckling, lamb, chick"),
    "grown": _words("Grandma, Mom, Dad, Grandpa, Aunt Rose, Uncle Joe"),
    "neighbor": _words("old Mr. Brown, Mrs. Green, the baker, the farmer, the mailman, the teacher, Miss Hill"),
    "day": [
        *_words("One sunny day, One morning, One rainy day, One windy day, One day, One cold morning, One afternoon"),
        *_words("On a bright spring day, On a quiet Sunday, One warm evening"),
    ],
    "color": _words("red, blue, green, yellow, purple, orange"),
}

# How the story of one who has no friend yet begins, and any other one too.
ALONE = [
    "Once upon a time, there was a {small} {hero_is} named {hero}. {He} lived in {home}. {Hero} was very {nice}.",
    "{Hero} was a {nice} {hero_is}. {He} lived with {grown} in {home}.",
    "In {home} lived a {small} {hero_is}. {His} name was {hero}, and {he} was {nice}.",
    "Once there was a {hero_is} called {hero}. Everybody said that {he} was {nice}.",
]
TOGETHER = [
    "There once was a {nice} {hero_is} called {hero}. Every day {he} played in the {place} with {his} friend {friend}.",
    "Once there was a {hero_is} who was very {nice}. {His} name was {hero}. {His} friend was {friend}, a {friend_is}.",
    "{Hero} and {friend} were best friends. {Hero} was a {nice} {hero_is}, and {friend} was a {friend_is}.",
]
ENDINGS = [
    "That night, {hero} lay in bed and smiled. It had been a good day.",
    "{Hero} was happy. {He} gave {grown} a big hug and went to sleep.",
    "From that day on, {hero} never forgot what {he} had learned.",
    "When the sun went down, {hero} went home. {He} told {grown} everything, and {grown} was proud of {him}.",
    "{Hero} laughed, and {friend} laughed too. It was the best day of all.",
    '"What a day," said {hero}. Then {he} closed {his} eyes and dreamed of the {place}.',
    "After that, {hero} and {friend} were even better friends than before.",
    "{Hero} and {friend} told this story again and again, and each time it made them smile.",
]
STRANGERS = ("a new friend", "the first day of school")  # plots in which hero and friend meet for the first time


def plots() -> dict[str, list[list[str]]]:
    """Title → beats → ways to tell each. A title with a star at its end stands for two stories."""
    text = (resources.files(__package__) / "plots.txt").read_text(encoding="utf-8")
    found = {}
    for part in text.split("\n## ")[1:]:
        title, _, body = part.partition("\n")
        found[title] = [beat.splitlines() for beat in body.strip().split("\n\n")]
    return found
