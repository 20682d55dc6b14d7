"""Word problems of `task=math`: a story, one quantity that the user forgets to state, a question, and the exact answer.

No split shares a template with another, so the test has other kinds of calculation, not just other numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Template:
    """One kind of problem. Texts have a {name} and the numbers by their letters.

    Attributes:
        name: In the ids of its goals.
        story: What the user says at once.
        hidden: The quantity that the user leaves out at first.
        question: The question of the problem; it cannot be answered without `hidden`.
        cues: Words by which the assistant can ask for `hidden`, besides its own words.
        numbers: Letter -> the values that it may take.
        answer: The numbers, by their letters -> the exact answer.
    """

    name: str
    story: str
    hidden: str
    question: str
    cues: str
    numbers: Mapping[str, range]
    answer: Callable[..., int | Fraction]


TRAIN = (
    Template(
        "trays",
        "{name} bakes rolls for a market. Each tray holds {a} rolls, and {b} rolls turn out burnt.",
        "There are {c} trays.",
        "How many good rolls are there?",
        "oven batch",
        {"a": range(12, 31), "b": range(2, 10), "c": range(3, 15)},
        lambda a, b, c: a * c - b,
    ),
    Template(
        "ferry",
        "A ferry ticket costs {a} euros for an adult and {b} euros for a child. {name} pays for {c} adults and some "
        "children.",
        "{d} children come along.",
        "How many euros does the trip cost?",
        "kids",
        {"a": range(8, 20), "b": range(3, 8), "c": range(2, 6), "d": range(2, 9)},
        lambda a, b, c, d: a * c + b * d,
    ),
    Template(
        "tank",
        "A rain tank holds {a} litres at the start of the week. {name} takes {b} litres out of it on each of {c} days.",
        "A storm adds {d} litres on Sunday.",
        "How many litres are in the tank at the end of the week?",
        "rain refill added storm water",
        {"a": range(200, 400, 5), "b": range(5, 21), "c": range(2, 7), "d": range(20, 91, 5)},
        lambda a, b, c, d: a - b * c + d,
    ),
    Template(
        "fence",
        "{name} puts a fence around a garden that is a rectangle. The long side measures {a} metres, and a metre of "
        "fence costs {b} euros.",
        "The short side measures {c} metres.",
        "How many euros does the fence cost?",
        "width wide breadth other",
        {"a": range(15, 31), "b": range(4, 13), "c": range(6, 15)},
        lambda a, b, c: 2 * (a + c) * b,
    ),
    Template(
        "pages",
        "{name} has read {a} pages of a novel and reads {b} pages every evening from now on.",
        "The novel has {c} pages.",
        "How many more evenings does the novel take? Give a fraction if it is no whole number.",
        "long length total book altogether",
        {"a": range(20, 90), "b": range(12, 31), "c": range(200, 400)},
        lambda a, b, c: Fraction(c - a, b),
    ),
    Template(
        "beads",
        "A necklace takes {a} blue beads and {b} white beads. {name} makes several necklaces of that kind.",
        "{name} makes {c} necklaces.",
        "How many beads are used in all?",
        "many several pieces",
        {"a": range(14, 40), "b": range(6, 25), "c": range(3, 13)},
        lambda a, b, c: (a + b) * c,
    ),
    Template(
        "choir",
        "A choir sings in rows of {a} people, and {b} people stand in front of them. {name} conducts without singing.",
        "The choir fills {c} rows.",
        "How many people sing?",
        "lines",
        {"a": range(6, 16), "b": range(2, 6), "c": range(3, 9)},
        lambda a, b, c: a * c + b,
    ),
    Template(
        "savings",
        "{name} saves {a} euros a week for a bicycle that costs {b} euros.",
        "{name} has {c} euros already.",
        "How many weeks does it take until the price is reached exactly? Give a fraction if it is no whole number.",
        "start begin beginning own far saved",
        {"a": range(5, 26), "b": range(240, 480, 10), "c": range(20, 120, 5)},
        lambda a, b, c: Fraction(b - c, a),
    ),
    Template(
        "paint",
        "A litre of paint covers {a} square metres. {name} paints a wall that is {b} metres long.",
        "The wall is {c} metres high.",
        "How many litres of paint are needed? Give a fraction if it is no whole number.",
        "height tall size",
        {"a": range(6, 13), "b": range(5, 21), "c": range(2, 6)},
        lambda a, b, c: Fraction(b * c, a),
    ),
    Template(
        "bus",
        "{a} people are on a bus. At the first stop {b} people get off.",
        "At the first stop {c} people get on.",
        "{name} counts those who are left. How many people are on the bus after the first stop?",
        "board enter join new",
        {"a": range(25, 50), "b": range(4, 15), "c": range(3, 18)},
        lambda a, b, c: a - b + c,
    ),
    Template(
        "jam",
        "{name} cooks jam from {a} kilos of plums and {b} kilos of sugar. While it cooks, {c} kilos boil away.",
        "The jam goes into jars of {d} grams each.",
        "How many jars does the jam fill? Give a fraction if it is no whole number.",
        "jar size hold weigh big",
        {"a": range(8, 16), "b": range(3, 7), "c": range(1, 4), "d": range(250, 501, 50)},
        lambda a, b, c, d: Fraction((a + b - c) * 1000, d),
    ),
    Template(
        "stamps",
        "{name} sorts stamps into an album. {a} pages hold {b} stamps each, and the last page holds fewer.",
        "The last page holds {c} stamps.",
        "How many stamps are in the album?",
        "fewer last remaining rest",
        {"a": range(8, 25), "b": range(12, 25), "c": range(1, 12)},
        lambda a, b, c: a * b + c,
    ),
    Template(
        "train",
        "A train leaves with {name} on board and goes at {a} kilometres an hour. It stands still for {b} hours in all.",
        "It arrives {c} hours after it has left.",
        "How many kilometres has it travelled?",
        "time duration long journey arrive take",
        {"a": range(60, 141, 5), "b": range(1, 3), "c": range(4, 10)},
        lambda a, b, c: a * (c - b),
    ),
    Template(
        "eggs",
        "Each hen lays {a} eggs a week. {name} keeps {b} eggs a week and sells the others at {c} cents each.",
        "{name} has {d} hens.",
        "How many cents does that bring in a week?",
        "chickens animals birds",
        {"a": range(4, 7), "b": range(3, 10), "c": range(25, 51, 5), "d": range(5, 16)},
        lambda a, b, c, d: (a * d - b) * c,
    ),
)

VAL = (
    Template(
        "cinema",
        "A cinema has {a} seats in the stalls and {b} on the balcony. {name} counts {c} empty seats in the stalls.",
        "On the balcony {d} seats are empty.",
        "How many people sit in the cinema?",
        "free upstairs unoccupied",
        {"a": range(120, 240, 5), "b": range(40, 90), "c": range(10, 40), "d": range(5, 30)},
        lambda a, b, c, d: a + b - c - d,
    ),
    Template(
        "logs",
        "{name} saws logs into pieces, and every cut takes {a} minutes. There are {b} logs, all alike.",
        "Each log becomes {c} pieces.",
        "How many minutes does the sawing take?",
        "parts many into",
        {"a": range(2, 8), "b": range(4, 15), "c": range(3, 8)},
        lambda a, b, c: a * b * (c - 1),
    ),
    Template(
        "recipe",
        "A soup for {a} guests takes {b} grams of lentils. {name} cooks it for more guests, with as much for each.",
        "{c} guests are coming.",
        "How many grams of lentils are needed? Give a fraction if it is no whole number.",
        "people persons eat dinner",
        {"a": range(3, 7), "b": range(200, 500, 10), "c": range(8, 20)},
        lambda a, b, c: Fraction(b * c, a),
    ),
    Template(
        "tiles",
        "A square floor is tiled with {a} tiles along each side. {name} breaks {b} tiles and has to buy these anew.",
        "One tile costs {c} euros.",
        "How many euros do all the tiles cost?",
        "price cost much expensive",
        {"a": range(8, 21), "b": range(2, 9), "c": range(2, 7)},
        lambda a, b, c: (a * a + b) * c,
    ),
)

TEST = (
    Template(
        "orchard",
        "An orchard has {a} rows of {b} apple trees, and {c} of the trees bear nothing. {name} picks all the others.",
        "Every tree that bears gives {d} kilos.",
        "How many kilos of apples are picked?",
        "yield harvest weight give produce average",
        {"a": range(5, 13), "b": range(6, 15), "c": range(2, 12), "d": range(20, 61, 5)},
        lambda a, b, c, d: (a * b - c) * d,
    ),
    Template(
        "phone",
        "A phone plan costs {a} euros a month, and every message costs {b} cents more. {name} keeps it for {c} months.",
        "{name} sends {d} messages in all.",
        "How many cents does that cost altogether?",
        "texts sent",
        {"a": range(5, 16), "b": range(4, 12), "c": range(2, 7), "d": range(30, 120, 5)},
        lambda a, b, c, d: a * c * 100 + b * d,
    ),
    Template(
        "candles",
        "A candle is {a} centimetres long and gets {b} millimetres shorter every hour. {name} lights it at noon.",
        "It is blown out after {c} hours.",
        "How many millimetres are left of it?",
        "burn long time out when",
        {"a": range(18, 31), "b": range(6, 15), "c": range(3, 10)},
        lambda a, b, c: 10 * a - b * c,
    ),
    Template(
        "relay",
        "Four runners share a relay. The first three take {a}, {b} and {c} seconds. {name} runs last.",
        "The whole relay takes {d} seconds.",
        "For how many seconds does the last one run?",
        "total whole together team altogether overall",
        {"a": range(50, 70), "b": range(50, 70), "c": range(50, 70), "d": range(240, 280)},
        lambda a, b, c, d: d - a - b - c,
    ),
    Template(
        "shelves",
        "{name} moves {a} books into new shelves. A shelf has {b} boards, and each board takes as many books.",
        "A board takes {c} books.",
        "How many shelves do the books fill? Give a fraction if it is no whole number.",
        "each hold fit room",
        {"a": range(300, 900, 10), "b": range(4, 8), "c": range(18, 33)},
        lambda a, b, c: Fraction(a, b * c),
    ),
    Template(
        "salt",
        "{name} stirs salt into {a} grams of water until the whole weighs {b} grams more than the water did. Then some "
        "of the water dries up.",
        "{c} grams of water dry up.",
        "Which fraction of what is left is salt?",
        "evaporate dries lost weight water",
        {"a": range(300, 600, 20), "b": range(20, 90, 5), "c": range(40, 160, 10)},
        lambda a, b, c: Fraction(b, a + b - c),
    ),
)

TEMPLATES = {"train": TRAIN, "val": VAL, "test": TEST}
NAMES = ("Amira", "Bela", "Chidi", "Dora", "Emre", "Farah", "Goran", "Hana", "Ilse", "Jonas", "Keiko", "Luca")
