"""Signatures: who stands behind these very bytes, and every way in which that does not hold."""

from __future__ import annotations

import json
import stat
from dataclasses import fields, replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from leakaudit.cli.entry import app
from leakaudit.errors import UserError
from leakaudit.reports.html import render
from leakaudit.reports.signed import check, signature_of
from leakaudit.result import outcome as outcomes
from leakaudit.result.keys import fingerprint, new_key, read_private, read_public, sign
from leakaudit.result.schema import AuditResult, to_json
from leakaudit.result.signature import PREFIX, Part, Signature, covered, load
from leakaudit.result.signature import to_json as written
from tests.outcomes import every

pytest.importorskip("cryptography")
NOBODY = "nobody should have been asked for a passphrase"


def run(*words: object, said: str = "") -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], input=said)


def unasked() -> str:
    raise AssertionError(NOBODY)


@pytest.fixture
def place(tmp_path: Path, sound: AuditResult) -> Path:
    """A folder with a result, its report, a key, and a signature over the two."""
    (tmp_path / "result.json").write_text(to_json(sound), encoding="utf-8")
    (tmp_path / "report.html").write_text(render(sound), encoding="utf-8")
    assert run("sign", "--new-key", tmp_path / "officer").exit_code == 0
    signed = run("sign", tmp_path / "result.json", "--key", tmp_path / "officer.pem", "--name", "Ä. Officer",
                 "--report", tmp_path / "report.html")  # fmt: skip
    assert signed.exit_code == 0, signed.output
    return tmp_path


def verified(place: Path, *more: object, key: str = "officer.pub.pem") -> Result:
    return run("verify", place / "report.html", place / "result.json", "--key", place / key, *more)


def test_a_signature_that_holds_says_by_whom_over_what_and_when(place: Path) -> None:
    found = verified(place)
    assert found.exit_code == 0
    own = fingerprint(read_public(place / "officer.pub.pem"))
    made = load(place / "result.json.sig")
    for said in ("The signature holds: “Ä. Officer” signed result.json and report.html", own, "What this cannot know"):
        assert said in found.output
    assert made.key == own
    assert run("verify", place / "result.json", "--key", place / "officer.pub.pem").exit_code == 0
    unchecked = run("verify", place / "report.html", place / "result.json")
    assert unchecked.exit_code == 0
    assert "Signed by “Ä. Officer”" in unchecked.output
    assert "not checked: give --key" in unchecked.output


def test_what_is_signed_is_every_field_behind_a_prefix_of_its_own(place: Path) -> None:
    made = load(place / "result.json.sig")
    data = covered(made)
    assert data.startswith(PREFIX)
    assert set(json.loads(data.removeprefix(PREFIX))) == {f.name for f in fields(Signature)}
    assert covered(replace(made, signature="A" * 88)) == data
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    public = load_pem_public_key((place / "officer.pub.pem").read_bytes())
    import base64

    public.verify(base64.b64decode(made.signature), data)  # type: ignore[union-attr,call-arg]


@pytest.mark.parametrize("name", [f.name for f in fields(Signature) if f.name not in ("algorithm", "schema", "key")])
def test_whatever_is_changed_in_a_signature_breaks_it(place: Path, name: str) -> None:
    path = place / "result.json.sig"
    made = load(path)
    other: object = {
        "files": made.files[:1],
        "audited": "2026-01-01T00:00:00Z",
        "signed": "2020-01-01T00:00:00Z",
        "signature": made.signature.translate(str.maketrans("ABCDefgh", "BCDEfghi")),
    }.get(name, "another")
    assert other != getattr(made, name)
    path.write_text(written(replace(made, **{name: other})), encoding="utf-8")  # type: ignore[arg-type]
    found = verified(place)
    assert found.exit_code == 1
    assert "the signature does not hold" in found.output
    assert "What this cannot know" not in found.output


def test_another_key_another_file_and_no_signature_are_told_apart(place: Path) -> None:
    run("sign", "--new-key", place / "other")
    assert "is by another key" in verified(place, key="other.pub.pem").output
    assert verified(place, key="other.pub.pem").exit_code == 1
    made = load(place / "result.json.sig")
    claimed = replace(made, key=fingerprint(read_public(place / "other.pub.pem")))
    (place / "claimed.sig").write_text(written(claimed), encoding="utf-8")
    found = verified(place, "--signature", place / "claimed.sig", key="other.pub.pem")
    assert (found.exit_code, "does not hold" in found.output) == (1, True)
    found = verified(place, "--signature", place / "none.sig")
    assert (found.exit_code, "There is no signature" in found.output) == (1, True)
    with (place / "result.json").open("a", encoding="utf-8") as file:
        file.write("\n")
    found = run("verify", place / "result.json", "--key", place / "officer.pub.pem")
    assert (found.exit_code, "is not the file that was signed" in found.output) == (1, True)


def test_a_report_made_again_of_a_signed_result_is_covered_beside_one_that_was_signed(place: Path) -> None:
    given: dict[Part, Path | None] = {"result": place / "result.json", "report": place / "again.html", "gate": None}
    (place / "again.html").write_text("printed again", encoding="utf-8")
    found = [
        check(place / "result.json.sig", given, place / "officer.pub.pem", derived=derived) for derived in (True, False)
    ]
    assert [each.holds for each in found] == [True, False]
    assert "and the report says what that says" in found[0].sentences[0]


def test_a_folder_stands_for_the_result_in_it_and_is_verified_with_its_report(place: Path, sound: AuditResult) -> None:
    made, key = place / "result.json.sig", ("--key", place / "officer.pem")
    made.unlink()
    assert run("sign", place, *key).exit_code == 0
    assert [file.part for file in load(made).files] == ["result"]  # what is not named is not signed
    found = run("verify", place, "--key", place / "officer.pub.pem")
    assert (found.exit_code, "is, byte for byte, what" in found.output) == (0, True)
    said = every(sound)["fail"][1]
    (place / "gate.json").write_text(outcomes.to_json(said))
    assert run("verify", place).exit_code == 0  # the report shows no gate
    (place / "report.html").write_text(render(sound, said))
    assert run("verify", place).exit_code == 0
    (place / "gate.json").write_text(outcomes.to_json(replace(said, notes=("Another.",))))
    assert "shows another gate" in run("verify", place).output


def test_a_report_that_its_result_gives_needs_no_signature_and_a_gate_does(place: Path, sound: AuditResult) -> None:
    outcome = every(sound)["fail"][1]
    (place / "gate.json").write_text(outcomes.to_json(outcome), encoding="utf-8")
    (place / "report.html").write_text(render(sound, outcome), encoding="utf-8")
    assert verified(place, "--gate", place / "gate.json").exit_code == 1  # another report, and a gate, than signed
    key = ("--key", place / "officer.pem")
    own = place / "own.sig"
    assert run("sign", place / "result.json", *key, "-o", own).exit_code == 0
    found = verified(place, "--gate", place / "gate.json", "--signature", own)
    assert (found.exit_code, "gate.json is not among what" in found.output.replace("\n", "")) == (1, True)
    both = place / "both.sig"
    assert run("sign", place / "result.json", *key, "--gate", place / "gate.json", "-o", both).exit_code == 0
    found = verified(place, "--gate", place / "gate.json", "--signature", both)
    assert (found.exit_code, "and the report says what that says" in found.output.replace("\n", " ")) == (0, True)


def test_what_contradicts_itself_is_not_signed(place: Path, sound: AuditResult) -> None:
    (place / "result.json").write_text(to_json(replace(sound, verdict="pass")), encoding="utf-8")
    for more in ((), ("--report", place / "report.html")):
        found = run("sign", place / "result.json", "--key", place / "officer.pem", "-o", place / "x.sig", *more)
        assert found.exit_code == 1
        assert not (place / "x.sig").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("sign",),
        ("sign", "result.json"),
        ("sign", "--new-key", "officer"),
        ("sign", "result.json", "--key", "officer.pem"),  # there is a signature
        ("sign", "result.json", "--key", "officer.pub.pem", "-o", "x.sig"),
        ("sign", "result.json", "--key", "report.html", "-o", "x.sig"),
        ("sign", "result.json", "--key", "none.pem", "-o", "x.sig"),
        ("sign", "report.html", "--key", "officer.pem", "-o", "x.sig"),
        ("sign", "result.json", "--key", "officer.pem", "-o", "result.json"),
        ("sign", "result.json", "--key", "officer.pem", "-o", "x.sig", "--name", "two\nlines"),
        ("verify", "result.json", "--key", "officer.pem"),
        ("verify", "result.json", "--key", "result.json"),
        ("verify", "result.json", "--key", "officer.pub.pem", "--signature", "officer.pem"),
        ("verify", "result.json", "--key", "officer.pub.pem", "--signature", "result.json"),
        ("verify", "result.json", "--key", "rsa.pub.pem"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(
    place: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    pem = other.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (place / "rsa.pub.pem").write_bytes(pem)
    monkeypatch.chdir(place)
    before = sorted(path.name for path in place.iterdir())
    found = run(*words)
    assert isinstance(found.exception, UserError), found.output
    assert str(found.exception).count("\n") == 0
    assert sorted(path.name for path in place.iterdir()) == before


@pytest.mark.parametrize(
    "broken",
    [
        {"extra": 1},
        {"signature": "AAAA"},
        {"signature": "not base64!"},
        {"algorithm": "none"},
        {"files": []},
        {"signed": "2026-11-27"},
        {"key": "F" * 64},
        {"signer": "x" * 5000},
        {"signer": 7},
        {"schema": "leakaudit.signature/2"},
    ],
)
def test_a_file_that_is_no_signature_is_an_error_of_use(place: Path, broken: dict[str, object]) -> None:
    path = place / "result.json.sig"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | broken, indent=1, sort_keys=True) + "\n")
    given: dict[Part, Path | None] = {"result": place / "result.json", "report": None, "gate": None}
    with pytest.raises(UserError):
        check(path, given, place / "officer.pub.pem")  # type: ignore[arg-type]
    assert check(path, given, None).holds is None  # type: ignore[arg-type]


def test_a_private_key_is_its_owners_alone_and_can_be_locked(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(*args: object, **named: object) -> str:
        raise typer.Abort

    assert stat.S_IMODE((place / "officer.pem").stat().st_mode) == 0o600
    private, public = new_key("a secret")
    (place / "locked.pem").write_bytes(private)
    (place / "locked.pub.pem").write_bytes(public)
    key = read_private(place / "locked.pem", lambda: "a secret")
    assert fingerprint(key.public_key()) == fingerprint(read_public(place / "locked.pub.pem"))
    for said in ("another", ""):
        with pytest.raises(UserError, match="passphrase is another"):
            read_private(place / "locked.pem", lambda said=said: said)  # type: ignore[misc]
    words = ("sign", place / "result.json", "--key", place / "locked.pem", "-o", place / "l.sig")
    with monkeypatch.context() as patched:  # nobody is there: what a runner of commands makes of that differs
        patched.setattr("typer.prompt", nobody)
        assert isinstance(run(*words).exception, UserError)
    found = run(*words, said="a secret\n")
    assert found.exit_code == 0
    assert "Others on this machine can read" in found.output
    assert "a secret" not in found.output


def test_one_key_and_one_moment_give_the_same_signature(
    place: Path, sound: AuditResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1795742400")
    key = read_private(place / "officer.pem", unasked)
    first, again = (signature_of(sound, {"result": (place / "result.json",)}, key, "A") for _ in range(2))
    assert first == again == sign(first, key)
    assert first.audited == sound.made
