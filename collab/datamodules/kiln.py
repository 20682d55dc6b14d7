"""Goals of task=kiln: book a firing in the kiln that several potters share."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from collab.conversation import Agenda, AgendaItem, Goal
from collab.datamodules.goals import TaskGoals
from collab.randomness import RngKey

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")
SLOTS = ("morning", "afternoon", "evening")
FIRINGS = ("bisque", "glaze", "raku")
POTTERS = {  # split -> who books; no potter is in two splits
    "train": ("Marta", "Oskar", "Ines", "Piet", "Hanna", "Luis", "Greta", "Ivo"),
    "val": ("Selma", "Anton"),
    "test": ("Ruth", "Bruno", "Alma", "Theo"),
}
_OTHERS = ("Vera", "Emil", "Nora")  # who have booked already
_PER_POTTER = 3


class KilnGoals(TaskGoals):
    """Goals of `task=kiln`, three for each potter. The user opens with the wish to book and holds the rest back.

    The metadata hold the calendar before (`state`) and the one that is `wanted`: day -> slot -> booking.
    """

    def shipped(self, split: str) -> list[Goal]:
        return [_goal(potter, number) for number in range(_PER_POTTER) for potter in POTTERS[split]]


def _goal(potter: str, number: int) -> Goal:
    draws = RngKey(1, role="kiln", goal=f"{potter}-{number}").stream()
    places = [(day, slot) for day in DAYS for slot in SLOTS]
    order = [places[i] for i in draws.permutation(len(places))]
    (day, slot), taken = order[0], order[1:5]
    firing = FIRINGS[int(draws.integers(len(FIRINGS)))]
    state: dict[str, Any] = {day: {} for day in DAYS}
    for place, (other_day, other_slot) in enumerate(taken):
        state[other_day][other_slot] = {"name": _OTHERS[place % len(_OTHERS)], "firing": FIRINGS[place % len(FIRINGS)]}
    wanted = deepcopy(state)
    wanted[day][slot] = {"name": potter, "firing": firing}
    agenda = Agenda(
        makes="action",
        opening="I want to book the shared kiln.",
        items=(
            AgendaItem("day", f"It has to be on {day}.", cues="date when week"),
            AgendaItem("time", f"The {slot} suits me best.", cues="slot hour morning afternoon evening when"),
            AgendaItem("firing", f"It is a {firing} firing.", cues="kind type what clay bisque glaze raku"),
            AgendaItem("name", f"Put it down for {potter}.", cues="who whom booked under potter"),
        ),
    )
    return Goal(
        id=f"{potter.lower()}-{number}",
        prompt=f"Please book the shared kiln for {potter} on {day} in the {slot}, for a {firing} firing.",
        reference=f"The kiln is booked for {potter} on {day} in the {slot}: {firing}.",
        metadata={"agenda": agenda.entry(), "state": state, "wanted": wanted},
    )
