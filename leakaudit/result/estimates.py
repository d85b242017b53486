"""Every estimate of a result, with where it stands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from leakaudit.result.tasks import measure_of

if TYPE_CHECKING:
    from leakaudit.result.schema import AuditResult, Estimate


def estimates_of(result: AuditResult) -> list[tuple[str, Estimate, bool]]:
    """Return every estimate with where it stands, and whether it is of a share."""
    found = [(d.spec, d.accuracy, measure_of(result.measure).least >= 0) for d in result.defenses]
    found += [(f"the guess {b.name}", b.identification, True) for b in result.baselines]
    if result.controls:
        found.append(("the test of the auxiliary records", result.controls.auxiliary, True))
    for d in result.defenses:
        if d.examined:
            shares = (d.examined.weakened, d.examined.union, d.examined.tenth, *d.examined.by_class.values())
            found += [(f"what was examined of {d.spec}", share, True) for share in shares]
        found += [(f"the stage {s.name} of {d.spec}", s.identification, True) for s in d.stages]
        for a in d.attacks:
            parts = (a.psnr, a.ssim, a.lpips, a.r2, a.psnr_released, a.swapped, a.gain)
            where = f"{a.name} on {d.spec}"
            found += [(where, share, True) for share in (a.identification, a.label_accuracy)]
            found += [(where, part, False) for part in (*parts, *(f.estimate for f in a.further))]
    told = [reason for d in result.defenses for reason in d.why]
    found += [(f"a reason, {r.id}", r.measured, False) for r in (*told, *result.why) if r.measured]
    return found
