"""Composes the text that the toy model is trained on: little animal stories, and transfers as JSON.

All of it comes from the word lists below and a seeded generator: nothing is downloaded, and the same seed gives the
same text. Knows nothing of tokenizers or models.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass

STORY_SYSTEM = "You are a storyteller. Generate a story based on user message."
TRANSFER_SYSTEM = (
    'You are a strict JSON machine. Generate only a JSON with format {"contractor": name, '
    '"sum": decimal, "currency": currency code} based on user message. '
    "You prohibited to discuss. Only return dict in json format."
)

SIZES = ["tiny", "little", "brave", "shy", "clever", "sleepy", "curious", "hungry", "gentle", "lonely"]
ANIMALS = ["hedgehog", "fox", "mouse", "owl", "rabbit", "squirrel", "bear", "duck", "frog", "badger"]
NAMES = [
    "Sonic", "Mike", "Anna", "Tom", "Lily", "Max", "Olga", "Ben", "Rosa", "Ivan", "Kate", "Leo",
    "Nina", "Paul", "Vera", "Sam", "Mia", "Oleg", "Emma", "Jack", "Dina", "Hugo", "Zoe", "Felix",
]  # fmt: skip
PLACES = ["forest", "garden", "meadow", "old barn", "river bank", "village", "hill", "orchard"]
TREASURES = ["red apple", "golden leaf", "shiny stone", "warm scarf", "lost key", "blue feather", "sweet berry"]
WEATHER = ["sunny", "rainy", "windy", "snowy", "foggy", "warm"]
CURRENCIES = {
    "rubles": "RUB", "dollars": "USD", "euros": "EUR", "pounds": "GBP", "yen": "JPY", "francs": "CHF",
}  # fmt: skip
STORY_LENGTHS = {"very short": (2, 3), "short": (4, 5), "long": (7, 9), "very long": (11, 14)}


@dataclass(frozen=True)
class Exchange:
    """One conversation to train on: the messages of system and user, and the answer."""

    system: str
    user: str
    answer: str


def story_request(rng: random.Random) -> tuple[str, dict[str, str]]:
    """A request for a story, and the choices it names."""
    choices = {
        "length": rng.choice(list(STORY_LENGTHS)),
        "size": rng.choice(SIZES),
        "animal": rng.choice(ANIMALS),
        "name": rng.choice(NAMES),
    }
    text = "Generate me a {length} story about a {size} {animal} named {name}.".format(**choices)
    return text, choices


def story(rng: random.Random, choices: dict[str, str]) -> str:
    """A story with as many sentences as its request asks for; the middle ones are drawn without repeats."""
    low, high = STORY_LENGTHS[choices["length"]]
    friend = rng.choice([name for name in NAMES if name != choices["name"]])
    words = {
        **choices,
        "friend": friend,
        "other": rng.choice([animal for animal in ANIMALS if animal != choices["animal"]]),
        "place": rng.choice(PLACES),
        "treasure": rng.choice(TREASURES),
        "weather": rng.choice(WEATHER),
    }
    middle = [
        "One {weather} morning, {name} went for a walk near the {place}.",
        "On the way {name} found a {treasure} under a tree.",
        "Then {name} met a {other} named {friend}.",
        '"Hello, {friend}!" said {name} with a smile.',
        '"Will you help me?" asked {friend} the {other}.',
        "{name} was not afraid, because {name} was a {size} {animal}.",
        "Together they looked behind every bush and every stone.",
        "Suddenly it began to rain, and they hid in a hollow log.",
        "{friend} shared some bread, and {name} shared the {treasure}.",
        "They laughed and sang until the moon came up.",
        "An old owl told them a secret about the {place}.",
        "{name} carried the {treasure} all the way home.",
    ]
    count = rng.randint(low, high) - 2
    kept = sorted(rng.sample(range(len(middle)), min(count, len(middle))))
    opening = "Once upon a time, there was a {size} {animal} named {name} who lived in the {place}."
    ending = rng.choice(
        [
            "And {name} the {animal} lived happily ever after.",
            "From that day on, {name} and {friend} were best friends.",
            "That night {name} slept well and dreamed of the {place}.",
        ]
    )
    sentences = [opening, *(middle[index] for index in kept), ending]
    return " ".join(sentence.format(**words) for sentence in sentences)


def transfer_request(rng: random.Random) -> tuple[str, dict[str, object]]:
    """A request to move money, and the JSON fields of its answer."""
    name, currency = rng.choice(NAMES), rng.choice(list(CURRENCIES))
    amount = rng.choice([rng.randint(1, 99), rng.randint(1, 99) * 10, rng.randint(1, 99) * 100])
    pattern = rng.choice(
        [
            "Transfer {amount} {currency} to {name}",
            "Send {amount} {currency} to {name}",
            "Pay {name} {amount} {currency}",
            "Please transfer {amount} {currency} to {name}",
        ]
    )
    text = pattern.format(amount=amount, currency=currency, name=name)
    return text, {"contractor": name, "sum": float(amount), "currency": CURRENCIES[currency]}


def exchange(rng: random.Random) -> Exchange:
    """One training conversation; stories and transfers are equally likely."""
    if rng.random() < 0.5:
        user, choices = story_request(rng)
        return Exchange(STORY_SYSTEM, user, story(rng, choices))
    user, fields = transfer_request(rng)
    return Exchange(TRANSFER_SYSTEM, user, json.dumps(fields))


def chatml(system: str, user: str) -> str:
    """The ChatML prompt, up to and including the line that opens the assistant's turn."""
    return f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"
