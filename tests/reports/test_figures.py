"""The frontier: one labelled point for each defense that was measured, in the page's own colours."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from leakaudit.reports import figures
from leakaudit.result.schema import AuditResult, Estimate

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("size", figures.SIZES)
def test_it_is_svg_with_text_unique_ids_and_theme_colours(golden: AuditResult, size: str) -> None:
    text = figures.frontier(golden, size)
    root = ET.fromstring(text)
    assert root.tag == f"{SVG}svg"
    written = {"".join(t.itertext()).strip() for t in root.iter(f"{SVG}text")}
    labels = {"A  none", "B  gaussian:std=0.01", "D  obscure"} if size == "wide" else {"A", "B", "D"}
    assert labels | {"limit 30%", "chance", "test accuracy"} <= written
    colours = set(re.findall(r"#[0-9a-fA-F]{6}\b", text))
    assert colours == set()
    assert {"var(--ink)", "var(--muted)", "var(--rule)", "var(--accent)", "var(--paper)"} <= set(
        re.findall(r"var\(--\w+\)", text)
    )
    ids = [e.get("id") for e in root.iter() if e.get("id")]
    assert all((i or "").startswith(f"frontier-{size}-") for i in ids)
    assert len(ids) == len(set(ids))
    links = {link.removeprefix("#") for e in root.iter() for name, link in e.items() if name.endswith("href")}
    links |= set(re.findall(r"url\(#([^)]+)\)", text))
    assert links <= set(ids)


def test_what_was_not_measured_is_not_drawn(golden: AuditResult) -> None:
    keys = [p.key for p in figures.points(golden)]
    assert keys == ["A", "B", "D"]  # C has no accuracy
    gone = Estimate(reason="not trained")
    blank = replace(golden, defenses=tuple(replace(d, accuracy=gone) for d in golden.defenses))
    assert figures.frontier(blank, "wide") == ""


def test_the_bound_is_drawn_where_there_is_one(golden: AuditResult) -> None:
    bounds = [p.bound.value if p.bound else None for p in figures.points(golden)]
    assert bounds == [None, None, 0.2]
    text = figures.frontier(golden, "wide")
    without = replace(golden, defenses=golden.defenses[:3])
    hollow = re.compile(r"<use [^>]*style=\"fill: var\(--paper\); stroke: var\(--accent\)")
    assert len(hollow.findall(text)) == 1
    assert len(hollow.findall(figures.frontier(without, "wide"))) == 0


def test_labels_keep_apart(golden: AuditResult) -> None:
    crowd = tuple(
        replace(golden.defenses[1], spec=f"gaussian:std=0.0{i}", accuracy=Estimate(0.7 + 0.001 * i, 0.68, 0.72, 3))
        for i in range(6)
    )
    root = ET.fromstring(figures.frontier(replace(golden, defenses=crowd), "wide"))
    places = []
    for text in root.iter(f"{SVG}text"):
        words = "".join(text.itertext()).strip()
        found = re.search(r"translate\(([-\d.]+) ([-\d.]+)\)", text.get("transform") or "")
        if "gaussian" in words and found:
            places.append((float(found[1]), float(found[2])))
        elif "gaussian" in words:
            places.append((float(text.get("x") or "nan"), float(text.get("y") or "nan")))
    assert len(places) == 6
    pairs = [(a, b) for i, a in enumerate(places) for b in places[:i]]
    assert all(abs(ax - bx) > 60 or abs(ay - by) > 8 for (ax, ay), (bx, by) in pairs)


def test_mathematics_and_markup_in_a_label_stay_text(golden: AuditResult) -> None:
    odd = replace(golden.defenses[1], spec="$\\frac{1}{0}$<b>&\u6f22")
    root = ET.fromstring(figures.frontier(replace(golden, defenses=(odd,)), "wide"))
    assert "A  $\\frac{1}{0}$<b>&\u6f22" in {"".join(t.itertext()).strip() for t in root.iter(f"{SVG}text")}


def test_the_global_style_of_matplotlib_is_left_alone(golden: AuditResult) -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    figures.frontier(golden, "narrow")
    assert dict(mpl.rcParams) == before


def test_both_limits_are_marked_where_there_are_two(golden: AuditResult) -> None:
    def written(result: AuditResult) -> set[str]:
        root = ET.fromstring(figures.frontier(result, "wide"))
        return {"".join(t.itertext()).strip() for t in root.iter(f"{SVG}text")}

    limited = replace(golden, settings=golden.settings | {"max_accuracy_loss": 0.1})
    assert "limit 65%" in written(limited) - written(golden)  # without a defense 75 %
    assert "limit 30%" in written(limited) & written(golden)
    assert figures.least_accuracy(golden) is None
    assert "accuracy 65%" in figures.describe(limited)
