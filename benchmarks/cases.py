"""Inputs on which an audit was once wrong, and what is right: those of the folder `shared/cases` beside the checkout.

    python -m benchmarks.cases                 all
    python -m benchmarks.cases --quick         without the planted verdicts, which take minutes
    python -m benchmarks.cases --only 10-pil-float:I12

Each is loaded, looked at as by doctor, and most are scanned. Exits 1 where any is wrong; says so and exits 0 where the
folder is not there.
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import tempfile
import time
import traceback
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from leakaudit.audit.stages import audit_at_stages
from leakaudit.errors import UserError, sentence
from leakaudit.load.loading import load_target
from leakaudit.load.preflight import preflight, raise_on_errors
from leakaudit.load.units import with_units
from leakaudit.protocol.target import Target
from leakaudit.result.schema import AttackResult, AuditResult
from leakaudit.scene.plan import Plan

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "cases"


@dataclass(frozen=True)
class Came:
    """What came of a case: the target and its result where there are any, else the refusal; all that was told."""

    target: Target | None = None
    result: AuditResult | None = None
    refusal: str = ""
    told: str = ""

    def attack(self, name: str, defense: str = "none") -> AttackResult | None:
        """Return an attack's result on one defense."""
        rows = self.result.defenses if self.result is not None else ()
        return next((a for d in rows if d.spec == defense for a in d.attacks if a.name == name), None)

    def verdict(self, defense: str) -> str:
        """Return the verdict of one defense."""
        rows = self.result.defenses if self.result is not None else ()
        return next((d.verdict for d in rows if d.spec == defense), "missing")


Check = Callable[[Came], Iterator[str]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One input. `plan` None: it is not scanned. `check` yields what is wrong."""

    name: str
    file: str
    check: Check
    environ: Mapping[str, str] = field(default_factory=dict)
    plan: Mapping[str, Any] | None = None
    data: str = ""  # a file that the case's own model.py writes where it is run


SHORT: dict[str, Any] = {"battery": "quick", "records": 8, "seeds": 1, "epochs": 1, "budget": 120.0}
VERDICT: dict[str, Any] = {"battery": "standard", "records": 40, "utility": False}


# -- what is right --------------------------------------------------------------------------------


def audited(came: Came) -> Iterator[str]:
    """Nothing was refused and no attack failed."""
    if came.refusal:
        yield f"refused: {came.refusal}"
    for defense in came.result.defenses if came.result is not None else ():
        for attack in defense.attacks:
            if "failed" in attack.statuses:
                yield f"{attack.name} failed ({attack.reason})"


def read(kind: str = "classes", width: int | None = None, shape: tuple[int, ...] | None = None, *says: str) -> Check:
    """The task, the number of classes and the shape are these, and these words are said."""

    def check(came: Came) -> Iterator[str]:
        yield from audited(came)
        if came.target is None:
            return
        if came.target.task.kind != kind:
            yield f"taken for {came.target.task.kind}, not {kind}"
        if width is not None and len(came.target.classes) != width:
            yield f"{len(came.target.classes)} classes, not {width}"
        if shape is not None and came.target.input_shape != shape:
            yield f"pictures of {came.target.input_shape}, not {shape}"
        yield from (f"nothing says {word!r}" for word in says if word not in came.told.lower())

    return check


def refused(*says: str) -> Check:
    """It is refused in a sentence of these words."""

    def check(came: Came) -> Iterator[str]:
        if not came.refusal:
            yield "it is not refused"
        else:
            yield from (
                f"the refusal does not say {word!r}: {came.refusal}" for word in says if word not in came.refusal
            )

    return check


def outputs(*names: str) -> Check:
    """Two classes, or a refusal that names the outputs."""

    def check(came: Came) -> Iterator[str]:
        if came.refusal:
            yield from refused("output", *names)(came)
        elif came.target is not None and len(came.target.classes) != 2:
            yield f"{len(came.target.classes)} classes were read"
        if "freeze" in came.told + came.refusal:
            yield "it advises to freeze the head"

    return check


def ends(verdict: str, *defenses: str) -> Check:
    """A verdict of defenses; "not pass" is any other."""

    def check(came: Came) -> Iterator[str]:
        yield from audited(came)
        for defense in defenses:
            found = came.verdict(defense)
            if found == "pass" if verdict == "not pass" else found != verdict:
                yield f"{defense}: {found}, where {verdict} is right"

    return check


def untouched(came: Came) -> Iterator[str]:
    """Linkage finds all sixteen behind the noise, and the caller's net is as it was."""
    yield from ends("fail", "gaussian:std=0.1")(came)
    found = came.attack("linkage", "gaussian:std=0.1")
    if found is None or found.identification.value != 1:
        yield f"linkage finds {found.identification.value if found else None}, not all"
    given = came.target.factory() if came.target is not None and came.target.factory is not None else None
    if given is not None and came.target is not None:
        now = torch.cat([p.detach().flatten() for p in given.parameters()])
        if not torch.equal(now, torch.cat([p.detach().flatten() for p in came.target.model.network.parameters()])):
            yield "the caller's own net was changed"


def labelled(share: float) -> Check:
    """Labels are told, this share of them at least."""

    def check(came: Came) -> Iterator[str]:
        yield from audited(came)
        found = came.attack("labels")
        if found is None or (found.label_accuracy.value or 0) < share:
            yield f"labels: {found.label_accuracy.value if found else None} ({found.reason if found else ''})"

    return check


def frozen(came: Came) -> Iterator[str]:
    """The frozen part is kept, so that the head learns what it can."""
    yield from read("classes", 2, None, "parameters")(came)
    control = came.result.control() if came.result is not None else None
    if control is not None and (control.accuracy.value or 0) < 0.95:
        yield f"accuracy {control.accuracy.value}, where the head reaches 1"


def others_scored(came: Came) -> Iterator[str]:
    """The nineteen that are not alone in their class are scored."""
    yield from audited(came)
    found = came.attack("linkage")
    if found is None or found.identification.n != 19:
        yield f"{found.identification.n if found else 0} records were scored, not 19"


def linked(came: Came) -> Iterator[str]:
    """Attacks work: linkage names records, and gradients are inverted."""
    yield from audited(came)
    found, inverted = came.attack("linkage"), came.attack("inverting-gradients")
    if found is None or (found.identification.value or 0) < 1:
        yield f"linkage finds {found.identification.value if found else None}, not all"
    if inverted is None or inverted.psnr.value is None:
        yield f"gradients are not inverted ({inverted.reason if inverted else ''})"


# -- the cases ------------------------------------------------------------------------------------


def case(file: str, check: Check, told: str = "", plan: Mapping[str, Any] | None = None, **environ: str) -> Case:
    """Return a case that is named by its folder and what `told` adds."""
    data = environ.pop("data", "")
    name = file.removesuffix(".py").removesuffix("/model") + (f":{told}" if told else "")
    return Case(name=name, file=file, check=check, environ=environ, plan=plan, data=data)


LINKAGE = {"defenses": ("gaussian:std=0.1",), "attacks": ("linkage",), "records": 16, "epochs": 60, "seeds": 3}
LABELS = SHORT | {"attacks": ("labels",), "records": 48, "utility": False}
CASES = (
    case("08c-same-cnn/model.py", untouched, plan={"battery": "quick"} | LINKAGE),
    case("08d-fresh-cnn/model.py", untouched, plan={"battery": "quick"} | LINKAGE),
    *(
        case("15-softmax-end/trained.py", labelled(1), end, LABELS, END=end, STEPS="40")
        for end in ("none", "log", "softmax")
    ),
    case("15-softmax-end/model.py", labelled(0.9), "batches", LABELS | {"batch_size": 4}, END="log"),
    case("15-softmax-end/model.py", audited, "sigmoid", SHORT, END="sigmoid", LOSS="bce"),
    *(
        case("08-frozen-backbone/model.py", frozen, form, SHORT | {"epochs": 40}, FORM=form)
        for form in ("object", "function")
    ),
    case("03-functional-dropout/model.py", read("classes", 2, None, "random"), ALWAYS="1"),
    case("01-feature-tuple/model.py", outputs()),
    case("01-feature-tuple/with_classes.py", outputs()),
    case("02-feature-dict/model.py", outputs("embedding", "prediction")),
    case("10-pil-float/model.py", read("classes", 2, (1, 25, 25)), "F", SHORT, KIND="F", C="1"),
    case("10-pil-float/model.py", read("classes", 2, (3, 25, 25), "grey"), "F-colour", KIND="F", C="3"),
    case("10-pil-float/model.py", refused("255"), "F255", KIND="F255", C="1"),
    case("10-pil-float/model.py", refused("4095"), "I12", KIND="I12", C="1"),
    case("10-pil-float/model.py", read("classes", 2, (1, 25, 25)), "I16", KIND="I16", C="1"),
    case("10-pil-float/model.py", refused("4095"), "I16_12", KIND="I16_12", C="1"),
    case("10-pil-float/model.py", read("classes", 2, (3, 25, 25)), "RGBA", KIND="RGBA", C="3"),
    case("09-hf-two-images/model.py", read("classes", 2, (1, 25, 25), "pixel_values")),
    case("23-wrapped/model.py", linked, "amp", SHORT, KIND="amp"),
    case("23-wrapped/model.py", linked, "dp", SHORT, KIND="dp"),
    case("23-wrapped/model.py", refused("TorchScript"), "jit", KIND="jit"),
    case("23-wrapped/model.py", refused("quantised", "float"), "quant", KIND="quant"),
    case("23-wrapped/model.py", read("classes", 2, None, "float32"), "half", SHORT, KIND="half"),
    case("21-singleton-class/model.py", others_scored, plan=SHORT | {"records": 20}),
    case("12-multilabel/model.py", read("multi-label"), plan=SHORT),
    case("24-one-logit/model.py", read("one logit", 2), plan=SHORT),
    case("13-medmnist/model.py", read("classes", 2, (1, 25, 25)), "dataset"),
    case("13-medmnist/model.py", read("classes", 2, (1, 25, 25)), "file", data="med.npz"),
)


def planted(file: str, verdict: str, *defenses: str, **plan: Any) -> Case:
    """Return a planted set-up with its right verdict."""
    told = ", ".join((*defenses, *(f"{k}={v}" for k, v in plan.items())))
    held = () if defenses == ("none",) else defenses
    return case(f"verdict/{file}.py", ends(verdict, *defenses), told, VERDICT | {"defenses": held} | plan)


PLANTED = (
    planted("mlp16", "fail", "key-perm"),
    planted("mlp16", "fail", "reused-noise"),
    *(planted("mlp16", "fail", f"turn:kind={kind}") for kind in ("invert", "rot", "flip")),
    planted("mlp16", "fail", "pseudonym", batch_size=2, records=80),
    planted("mlp16", "not pass", "sometimes", records=96),
    planted("cnn16", "fail", "prune:sparsity=0.9995"),
    planted("cnn16", "not pass", "prune:sparsity=0.999", exposure="honest-but-curious"),
    planted("burst", "fail", "gaussian:std=0.6"),
    planted("wide", "fail", "none", batch_size=16, records=64),
    planted("mlp16", "pass", "zeros"),
    planted("forms", "pass", "blank-form"),
    planted("mlp16", "pass", "pure-noise"),
)


# -- running them ---------------------------------------------------------------------------------


def older_names() -> None:
    """Let the planted set-ups import what they use under the names it had when they were written."""
    for old, names in {"leakaudit.defense": ("defense", "gradients"), "leakaudit.registry": ("registry",)}.items():
        module = types.ModuleType(old)
        for name in names:
            module.__dict__.update(vars(importlib.import_module(f"leakaudit.protocol.{name}")))
        sys.modules.setdefault(old, module)


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables within."""
    kept = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(kept)


def came_of(of: Case, folder: Path) -> Came:
    """Run a case."""
    file = SHARED / of.file
    if of.data:
        subprocess.run([sys.executable, str(file)], cwd=folder, check=True, capture_output=True)
    told: list[str] = []
    target = None
    try:
        with environment(of.environ):
            target = with_units(load_target(str(file), data=folder / of.data if of.data else None, device="cpu"))
            told += target.notes
            plan = Plan(**(of.plan or SHORT))
            found = preflight(target, mode="eval", batch_size=plan.batch_size, records=plan.records)
            told += (finding.message for finding in found)
            raise_on_errors(found)
            result = audit_at_stages(target, plan, command="benchmarks.cases") if of.plan is not None else None
            told += (finding.message for finding in (result.findings if result is not None else ()))
    except UserError as error:
        return Came(target, None, str(sentence(error)), "\n".join(told))
    return Came(target, result, told="\n".join(told))


def faults(of: Case) -> list[str]:
    """Return what is wrong with how a case ends; nothing where it is right."""
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return list(of.check(came_of(of, Path(place))))
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            return [f"crash: {type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="without the planted verdicts")
    parser.add_argument("--only", nargs="*", default=None, metavar="NAME")
    chosen = parser.parse_args()
    if not SHARED.is_dir():
        print(f"skipped: there is no {SHARED}")
        return
    older_names()
    cases = CASES if chosen.quick else (*CASES, *PLANTED)
    cases = cases if chosen.only is None else tuple(c for c in (*CASES, *PLANTED) if c.name in chosen.only)
    wrong = 0
    for of in cases:
        print(f"{of.name} … ", end="", flush=True)
        begun = time.monotonic()
        found = faults(of)
        wrong += bool(found)
        print(f"{'WRONG  ' + '; '.join(found) if found else 'right'}  {time.monotonic() - begun:.1f} s", flush=True)
    print(f"{len(cases) - wrong} right, {wrong} wrong")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
