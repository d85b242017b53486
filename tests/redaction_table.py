"""Print what every output holds at each level: `python -m tests.redaction_table`."""

from __future__ import annotations

import torch

from tests.image_hunt import likeness
from tests.leaving import LEVELS, WORDS, Written, left, private
from tests.text_hunt import Pixels, told

SEEN = 0.999  # a correlation that only the record itself has


def held(made: Written, name: str, pixels: Pixels) -> str:
    """Return in a few words what an output of a level holds, a dash for nothing, and nothing where there is none."""
    data = made.outputs().get(name)
    if data is None:
        return ""
    shown = made.found.get(name, [])
    words = sorted(told(name, data, pixels, WORDS))
    if shown:
        alike = torch.tensor([likeness(picture, private()).tolist() for picture in shown]).amax(0)
        records = int((alike > SEEN).sum())
        words.insert(0, f"{records} private records" if records else f"{len(shown)} pictures, {float(alike.max()):.2f}")
    return ", ".join(words) or "-"


def main() -> None:
    """Print the table: outputs by levels."""
    torch.set_num_threads(1)
    pixels = Pixels.of(private().double().numpy())
    made = {level: left(level) for level in LEVELS}
    outputs = dict.fromkeys(plain(name) for found in made.values() for name in found.outputs())
    print("| output | " + " | ".join(LEVELS) + " |\n|---|" + "---|" * len(LEVELS))
    for output in sorted(outputs):
        cells = []
        for found in made.values():
            name = next((n for n in found.outputs() if plain(n) == output), "")
            cells.append(held(found, name, pixels) if name else "")
        print(f"| {output} | " + " | ".join(cells) + " |")


def plain(name: str) -> str:
    """Return the name of an output without what a clock or a spec puts into it."""
    parts = name.split("/")
    return f"{parts[0]}/…" if len(parts) > 1 and parts[0] in ("tensorboard", "defenses") else name


if __name__ == "__main__":
    main()
