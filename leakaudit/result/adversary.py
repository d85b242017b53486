"""What an adversary may know or do, in words: the one table that assumptions, results and reports read."""

from __future__ import annotations

# By the name of the fact, as it goes on after "the adversary". What a preset may grant, in the order of reports.
GRANTED: dict[str, str] = {
    "labels": "is told the true labels",
    "buffers": "sees BatchNorm statistics",
    "defense": "knows the defense, its code and parameters",
    "auxiliary": "owns other records of the same kind",
    "model_control": "may change the model (malicious server)",
}
# What each preset grants of these.
PRESETS: dict[str, tuple[str, ...]] = {
    "honest-but-curious": ("buffers",),
    "adaptive": ("buffers", "defense", "auxiliary"),
    "malicious-server": ("buffers", "defense", "auxiliary", "model_control"),
}
# What results say of an adversary beside that; `rounds` is in older ones.
WORDS: dict[str, str] = {
    "preset": "preset",
    **GRANTED,
    "released": "is handed the replaced records in every attack, not only in the bound",
    "rounds": "updates seen of the same records",
}
