"""A result of 64 records and 8 defenses with random pictures: as large as a page gets that is not cut."""

from __future__ import annotations

import base64
import struct
import zlib
from dataclasses import replace
from random import Random

from leakaudit.result.schema import AttackResult, AuditResult, DefenseResult, Estimate, Picture

SIDE, RECORDS, SHOWN = 32, 64, 8  # a gallery shows the 8 most leaking records


def png(random: Random, side: int = SIDE) -> str:
    """Return a base64 PNG (side, side, 3) of random pixels, which no compression makes smaller."""
    rows = b"".join(b"\0" + random.randbytes(3 * side) for _ in range(side))
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    data = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + data).decode()


def big(golden: AuditResult, seed: int = 0) -> AuditResult:
    """Return a result whose every attack that draws pictures shows as many as an audit stores."""
    random = Random(seed)
    template = golden.defenses[1].attacks[0]
    originals = [png(random) for _ in range(SHOWN)]

    def attack(name: str, role: str, replaced: bool) -> AttackResult:
        gallery = tuple(
            Picture(
                victim=i,
                record=0,
                label=f"class {i} with a name that is not short",
                original=original,
                shared=png(random) if replaced else None,
                reconstruction=png(random),
                psnr=20.0 - i,
                ssim=0.5,
                identified=bool(i % 2),
            )
            for i, original in enumerate(originals)
        )
        hits = random.randrange(RECORDS)
        share = Estimate(hits / RECORDS, max(0.0, hits / RECORDS - 0.1), min(1.0, hits / RECORDS + 0.1), RECORDS)
        return replace(
            template,
            name=name,
            role=role,
            identification=share,
            statuses={"converged": RECORDS},
            gallery=gallery,
            records=(),
        )

    def defense(i: int) -> DefenseResult:
        replaced = i >= 6
        roles = ["standard", "standard", "adaptive", "adaptive", "bound" if replaced else "adaptive"]
        attacks = tuple(attack(f"attack-number-{k}", role, replaced) for k, role in enumerate(roles))
        spec = "none" if i == 0 else f"defense-{i}:setting=0.{i},another_setting={i}"
        accuracy = Estimate(0.9 - 0.05 * i, 0.88 - 0.05 * i, 0.92 - 0.05 * i, 3)
        verdict = golden.defenses[i % 4].verdict
        return replace(
            golden.defenses[i % 4],
            spec=spec,
            attacks=attacks,
            accuracy=accuracy,
            accuracies=(0.89 - 0.05 * i, 0.9 - 0.05 * i, 0.91 - 0.05 * i),
            replaces_records=replaced,
            verdict=verdict,
            requested=i > 0,
        )

    settings = golden.settings | {"records": RECORDS, "max_accuracy_loss": 0.1}
    return replace(golden, defenses=tuple(defense(i) for i in range(8)), settings=settings)
