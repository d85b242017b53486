"""What of an exchange somebody could attack, and the sentence an audit says where nothing that ran did."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

ROUNDS = "several-rounds"  # covered where the client sends in several, not by an attack
GENERATIVE = "generative-prior"  # what attacks cover that run only where a generator of pictures was given


@dataclass(frozen=True)
class Surface:
    """One way to attack what is shared, by the name that an attack `covers`."""

    name: str  # kebab-case
    untested: str  # one sentence, for an audit in which no attack covered it
    fact: str = ""  # of `Exposure`: an attack that requires it is one on this surface
    replaced_only: bool = False  # it is there only where a defense replaces records by a generator's


SURFACES = (
    Surface(
        "generator-weights",
        "What a generator's own weights remember of the records it was trained on: whoever holds the weights "
        "may tell who was in the training set.",
        replaced_only=True,
    ),
    Surface(
        "batchnorm-statistics",
        "BatchNorm statistics: the adversary may see them, but no attack that ran uses them.",
        fact="buffers",
    ),
    Surface(
        GENERATIVE,
        "Attacks with a generator of pictures (`generator` in model.py).",
    ),
    Surface(
        "malicious-server",
        "A malicious server that changes the model (`--exposure malicious-server`).",
        fact="model_control",
    ),
    Surface("further-knowledge", "Diffusion priors, and servers that train or vary what they plant (SEER, LOKI)."),
    Surface(ROUNDS, "Averaging over several rounds of the same records."),
    Surface("local-steps", "Updates after several local steps (FedAvg)."),
    Surface(
        "layer-by-layer",
        "Attacks that solve further layers' equations (`r-gap`, `spear`, `april`, `cocktail-party`).",
    ),
)


def covered_by(covers: Iterable[str], requires: Iterable[str]) -> frozenset[str]:
    """Return the names of the surfaces that an attack is on: those it declares, and those whose facts it requires."""
    facts = set(requires)
    return frozenset(covers) | {s.name for s in SURFACES if s.fact in facts}


def uncovered(covered: Iterable[str], *, replaced: bool) -> tuple[str, ...]:
    """Return the sentence of every surface that is not in `covered`, by name.

    `replaced` says whether any defense replaced records by a generator's.
    """
    known = set(covered)
    return tuple(s.untested for s in SURFACES if s.name not in known and (replaced or not s.replaced_only))
