"""What a result's numbers stand beside, which attacks had to run, and what it cannot speak of.

All of it follows from values that the result holds. The audit writes it by these functions, and whoever verifies a
result computes it again by the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from leakaudit.result import augmentation
from leakaudit.result.adversary import GRANTED
from leakaudit.result.batteries import BATTERIES
from leakaudit.result.federation import Client, client_of, in_words
from leakaudit.result.rules import ANYTHING, BESIDES, PLANTING, scored_victims
from leakaudit.result.schema import DefenseResult, Known, Value
from leakaudit.result.specs import apart, split
from leakaudit.result.surfaces import ROUNDS, covered_by, uncovered
from leakaudit.result.tasks import measure_in, shares_labels, spoken

PLANTED = (
    "Attacks that change the model are handed what the same clients share, through the same defense, of the model that "
    "they plant; all others what they share of the real one."
)


def assumptions(
    settings: Mapping[str, Value],
    exposure: Mapping[str, Value],
    target: Mapping[str, Value],
    notes: Sequence[str] = (),
) -> tuple[str, ...]:
    """Return the sentences every number of an audit stands beside; the last are `notes`, what loading said of the data.

    `settings`, `exposure` and `target` are those of the result. Missing ones count as zero or as not granted.
    """
    size, client = whole(settings, "batch_size"), client_of(settings)
    victims = whole(settings, "records") // max(1, size) * client.clients
    facts = {name for name in GRANTED if exposure.get(name)}
    counted = {"auxiliary": f" ({whole(target, 'auxiliary_records')})"}
    granted = [words + counted.get(name, "") for name, words in GRANTED.items() if name in facts]
    missing = [name for name in GRANTED if name not in facts]
    training = settings.get("mode") == "train"
    mode = "training mode" if training else "evaluation mode (fixed BatchNorm statistics, no dropout)"
    tuned = "The attacks' prior, step size and length are chosen on the adversary's own records, never on a victim's."
    if settings.get("budget") is not None:
        tuned += " Where the time budget ended that, an attack ran at its default settings."
    untuned = "The adversary owns no records to tune on: attacks run at their default settings, which can be weaker."
    return (
        f"{'One client' if victims == 1 else f'Each of {victims} clients'} {in_words(client, size // client.clients)}, "
        f"computed in {mode}, at the model's present weights.",
        *_summed(client),
        f"The adversary sees that {'update' if client.local else 'gradient'} and the model, "
        f"{', '.join(granted) or 'and nothing else'}"
        f" (not granted: {', '.join(missing) or 'nothing'}).",
        *(() if "labels" in facts else ("Labels are not given to the adversary: it infers them from the update.",)),
        *((_LINE_UP[shares_labels(target)],) if "defense" in facts else ()),
        tuned if "auxiliary" in facts else untuned,
        *((PLANTED,) if PLANTING in facts else ()),
        _seen(client),
        *(_of_accuracy(settings, target) if settings.get("utility") else ()),
        *(_augmented(target) if settings.get("utility") or settings.get("stages") else ()),
        *_chosen(settings),
        *notes,
    )


_LINE_UP = {
    True: "Candidates of a line-up come with their label, which they share.",
    False: "Candidates of a line-up come with their labels.",
}


def _summed(client: Client) -> tuple[str, ...]:
    together = f"The updates of {client.clients} clients are summed before anybody sees them (secure aggregation)."
    return (together,) if client.clients > 1 else ()


def _seen(client: Client) -> str:
    if client.rounds == 1:
        return "One update per record is seen; repeated rounds of the same record would leak more."
    return (
        f"In {client.rounds} rounds every client sends its update of the same records from the same weights, and the "
        "adversary pools them."
    )


def _of_accuracy(settings: Mapping[str, Value], target: Mapping[str, Value]) -> tuple[str, ...]:
    return tuple(spoken(told, measure_in(target)) for told in _of_training(settings, target))


def _of_training(settings: Mapping[str, Value], target: Mapping[str, Value]) -> tuple[str, ...]:
    client = client_of(settings)
    if client.local:
        dealt = "at random" if client.split == "iid" else "sorted by class"
        return (
            "Accuracy is another experiment than the attacks: a federation of clients like these (FedAvg, the mean "
            f"taken by the server's Adam), between whom the private records are dealt {dealt}, trains models from "
            "fresh weights in training mode, and every update passes the defense.",
            _over_runs(target),
        )
    size, training = whole(settings, "batch_size"), whole(settings, "training_batch_size")
    return (
        "Accuracy is another experiment than the attacks: models trained from fresh weights in training mode, "
        f"by Adam on shared updates of {training} records. A defense whose noise depends on the batch "
        f"size (dp-sgd adds σC/B) is weaker there than in the attacked batches of {size}.",
        _over_runs(target),
    )


def _augmented(target: Mapping[str, Value]) -> tuple[str, ...]:
    done = augmentation.told(target)
    return (f"In training pictures are {done} at random, for every defense alike.",) if done else ()


def _over_runs(target: Mapping[str, Value]) -> str:
    return (
        f"An interval of accuracy is over training runs, all on the same {whole(target, 'test_records')} test records: "
        "how it would come out on others is not in it."
    )


def _chosen(settings: Mapping[str, Value]) -> tuple[str, ...]:
    """Say which attacks were chosen in place of the battery's."""
    attacks, battery = specs_of(settings, "attacks"), BATTERIES.get(str(settings.get("battery")))
    if battery is None or attacks == battery.attacks:
        return ()
    return (f"Only these attacks were chosen, besides the defenses' adaptive ones: {', '.join(attacks)}.",)


def not_tested(
    rows: Sequence[DefenseResult], known: Iterable[Known], settings: Mapping[str, Value] | None = None
) -> tuple[str, ...]:
    """Return what an audit cannot speak of: attacks it knew but did not run, and what nothing that ran covers.

    An attack ran where at least one of its victims was scored under any of the defenses: one that could not be run, or
    crashed, covers nothing. Several rounds are covered where the client of the `settings` sends in several, all pooled.
    """
    there = {attack.name: attack for attack in known}
    tried = {attack.name for row in rows for attack in row.attacks if not attack.settled_by}
    ran = {attack.name for row in rows for attack in row.attacks if scored_victims(attack)}
    left = [name for name in there if name not in tried]
    covered = {s for name in ran if name in there for s in covered_by(there[name].covers, there[name].requires)}
    covered |= {ROUNDS} if ran and client_of(settings or {}).rounds > 1 else set()
    return (
        *((f"Attacks known here but not run in this scan: {', '.join(left)}.",) if left else ()),
        *uncovered(covered, replaced=any(row.replaces_records for row in rows)),
    )


def roles(battery: Iterable[str], known: Iterable[Known], changes: Iterable[str], own: Iterable[str]) -> dict[str, str]:
    """Return the role of every attack that runs on a defense, by name: the battery's, the examiners, the defense's own.

    Examiners are the `known` attacks that `examine` what the defense was seen to change (`changes`); `own` are those
    that the defense names itself. Both count as adaptive where there is a defense. One that must be handed the replaced
    records is a bound, whatever else it is.
    """
    there = {attack.name: attack for attack in known}
    seen, named = {*changes, ANYTHING}, tuple(own)
    examiners = [name for name, attack in there.items() if seen & set(attack.examines)]
    defended = bool(named or seen - BESIDES - {ANYTHING})
    found = {}
    for name in (*battery, *examiners, *named):
        standing = "adaptive" if defended and name in (*examiners, *named) else "standard"
        found[name] = "bound" if name in there and "released" in there[name].requires else standing
    return found


def left_out(battery: str, names: Iterable[str]) -> tuple[str, ...]:
    """Return the attacks of a battery that are not among those of these names; none of a battery that is not known."""
    ran, base = set(names), BATTERIES.get(battery)
    return () if base is None else tuple(spec for spec in base.attacks if split(spec)[0] not in ran)


def specs_of(settings: Mapping[str, Value], name: str) -> tuple[str, ...]:
    """Return the specs that a setting of a result holds."""
    return tuple(apart(str(settings.get(name) or "")))


def whole(values: Mapping[str, Value], name: str) -> int:
    """Return a whole number of a result's settings or target, 0 where it has none of that name."""
    found = values.get(name)
    return found if isinstance(found, int) and not isinstance(found, bool) else 0
