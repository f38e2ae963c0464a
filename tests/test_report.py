from __future__ import annotations

import copy
import html.parser
import io
import json
import math
import pickle
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest

from swinopt.errors import OptionError
from swinopt.report import (
    PassReport,
    Refusal,
    Report,
    allowed_for_rounding,
    change,
    difference,
    duration,
    group_refusals,
    printable,
)
from swinopt.report_html import GROUPS, group_of

HOSTILE = "</title></style><script>alert('1')</script>\x1b[31m[bold]&\x00\u202e"
BEFORE = {"Reshape": 40, "Constant": 30, "MatMul": 8, "Add": 12, "Erf": 2, "LayerNormalization": 4, "acme::Odd": 1}
FOLDED = {**BEFORE, "Constant": 0, "Reshape": 36}
FUSED = {"Reshape": 4, "MatMul": 8, "Add": 2, "Gelu": 2, "LayerNormalization": 4, "acme::Odd": 1, "swinopt::Attn": 2}


def sample(name: str = "fuse-attention", node: str = "/attn/Softmax") -> Report:
    refusals = (
        Refusal("/a", "mask is not the shift mask"),
        Refusal(node, "score has 3 consumers"),
        Refusal("/b", "score has 3 consumers"),
        *(Refusal(f"/n{i}", "score has 3 consumers") for i in range(3)),
    )
    return Report(
        target="tensorrt-10",
        passes=(
            PassReport("fold-constants", "applied", 34, 97, 63, 0.25, 0.5, 0.0, ops_after=FOLDED),
            PassReport("nothing-to-do", "unchanged", 0, 63, 63, 0.0, ops_after=FOLDED),
            PassReport(
                name, "applied", 2, 63, 23, 1.5, 2.0, 1.5e-6, refusals, remark=f"{node} is rounded", ops_after=FUSED
            ),
            PassReport(
                "too-bold",
                "rolled back",
                4,
                23,
                23,
                0.1,
                0.1,
                math.inf,
                note=f"{node} overflows",
                first_divergence=f"{node}_output_0",
                ops_after=FUSED,
            ),
        ),
        ops_before=BEFORE,
        ops_after=FUSED,
        seconds=4.5,
        model="swin.onnx",
        versions={"python": "3.12.1", "onnx": "1.19.0"},
        verified=True,
        max_abs_diff=1.5e-6,
    )


class Reader(html.parser.HTMLParser):
    """What a browser takes a page for: its tags, its text, and whether all that opens also closes."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(source)
        self.close()
        self.text = "".join(self.words)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += attrs
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def svg(source: str) -> ElementTree.Element:
    found = re.findall(r"<svg.*?</svg>", source, re.DOTALL)
    assert len(found) == 1
    return ElementTree.fromstring(found[0])


# ------------------------------------------------------------------------------------------------------ data and JSON


def test_json_round_trip() -> None:
    report = sample()
    assert Report.from_json(report.to_json()) == report
    assert Report.from_json(report.to_json(indent=None).encode()) == report
    assert Report.from_dict(report.to_dict()) == report
    assert "\n" not in report.to_json(indent=None)
    assert report.to_dict() == json.loads(report.to_json())


def test_every_field_takes_part_in_the_round_trip() -> None:
    report = sample()
    assert Report.from_json(replace(report, seconds=9.0).to_json()) != report
    other = replace(report.passes[3], first_divergence="elsewhere")
    assert Report.from_json(replace(report, passes=(*report.passes[:3], other)).to_json()) != report
    refused = replace(report.passes[2], refusals=report.passes[2].refusals[1:])
    changed = replace(report, passes=(*report.passes[:2], refused, report.passes[3]))
    assert Report.from_json(changed.to_json()) == changed != report


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_json_is_strict_and_keeps_what_is_not_finite(value: float) -> None:
    text = replace(sample(), max_abs_diff=value).to_json()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert repr(Report.from_json(text).max_abs_diff) == repr(value)


def test_numpy_scalars_and_counters_are_welcome() -> None:
    counts = Counter({"Add": 3})
    p = PassReport("p", "applied", np.int64(1), 3, 3, np.float32(0.5), max_abs_diff=np.float32(0.25), ops_after=counts)  # type: ignore[arg-type]
    report = Report("cpu", (p,), counts, counts, 1.0)
    text = report.to_json()
    assert Report.from_json(text) == report
    assert json.loads(text)["passes"][0]["max_abs_diff"] == 0.25
    counts["Add"] += 1
    assert report.nodes_before == 3


def test_json_of_a_later_version_is_read() -> None:
    data = sample().to_dict()
    data["later"] = data["passes"][0]["later"] = data["passes"][2]["refusals"][0]["later"] = 1
    assert Report.from_dict(data) == sample()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "3", '{"passes": [{}]}', '{"passes": [], "target": "cpu"}'])
def test_what_is_no_report_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match="not a swinopt report"):
        Report.from_json(text)


def test_an_unknown_status_is_refused() -> None:
    data = sample().to_dict()
    data["passes"][0]["status"] = "<b>"
    with pytest.raises(OptionError, match="<b>"):
        Report.from_dict(data)


def test_of_differences_by_rounding_the_largest_is_shown_and_who_added_to_it() -> None:
    first, second, third, *_ = sample().passes
    small = replace(first, remark="small", max_abs_diff=1e-5)
    large = replace(second, remark="large", max_abs_diff=2e-5)
    # Each is measured against the untouched model: what adds nothing shows the difference of those before it.
    exact = replace(third, remark="large", max_abs_diff=2e-5, status="applied")
    assert allowed_for_rounding([small, large, exact]) == "fold-constants, nothing-to-do: large"
    assert allowed_for_rounding([replace(third, remark=None)]) == ""
    assert "ounding" not in str(replace(sample(), passes=(first,))) + replace(sample(), passes=(first,)).to_html()


def test_totals() -> None:
    report = sample()
    assert (report.nodes_before, report.nodes_after) == (97, 23)
    assert not report.ok
    assert replace(report, passes=report.passes[:3]).ok
    assert {k: report.to_dict()[k] for k in ("ok", "nodes_before", "nodes_after")} == {
        "ok": False,
        "nodes_before": 97,
        "nodes_after": 23,
    }
    assert report.summary() == (
        "97 -> 23 nodes (-76 %) in 4.5 s; 2 of 4 passes applied, 1 rolled back; max abs diff 1.5e-06"
    )
    assert replace(report, verified=False).summary().endswith("numbers not checked")


def test_a_report_is_a_value() -> None:
    assert pickle.loads(pickle.dumps(sample())) == copy.deepcopy(sample()) == sample()


# --------------------------------------------------------------------------------------------------------------- text


def test_refusals_are_grouped_and_the_most_frequent_comes_first() -> None:
    refusals = [Refusal("a", "x"), Refusal("b", "y"), Refusal("", "y"), Refusal("c", "x"), Refusal("d", "y")]
    assert group_refusals(refusals) == [("y", ["b", "(unnamed)", "d"]), ("x", ["a", "c"])]
    assert group_refusals([]) == []


def test_text_tells_everything() -> None:
    lines = str(sample()).splitlines()
    assert lines[0] == "swin.onnx for tensorrt-10"
    folded = next(line for line in lines if line.startswith("fold-constants"))
    assert " ".join(folded.split()) == "fold-constants 34 97 -> 63 250 ms 0"
    assert next(line for line in lines if line.startswith("fuse-attention ")).split()[-2:] == ["1.5e-06", "6"]
    assert "  score has 3 consumers  (x5: /attn/Softmax, /b, /n0, ...)" in lines
    assert "  mask is not the shift mask  (x1: /a)" in lines
    assert next(line for line in lines if line.startswith("rolled back: ")) == (
        "rolled back: too-bold: /attn/Softmax overflows; first tensor that diverges: /attn/Softmax_output_0"
    )
    assert "rounding: fuse-attention: /attn/Softmax is rounded" in lines
    assert lines[-1] == sample().summary()


@pytest.mark.parametrize("variable", ["FORCE_COLOR", "COLORTERM", "TTY_COMPATIBLE"])
def test_text_is_plain(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "1")
    monkeypatch.setenv("COLUMNS", "20")
    text = str(sample())
    assert text.isascii()
    assert all(c == "\n" or c.isprintable() for c in text)
    assert all(line == line.rstrip() for line in text.split("\n"))


def test_text_of_hostile_names_obeys_nobody() -> None:
    text = str(sample(HOSTILE, HOSTILE))
    assert all(c == "\n" or c.isprintable() for c in text)
    assert r"\x1b[31m[bold]&\x00\u202e" in text


def test_rich_shows_colours_in_a_terminal_and_fits_into_80_columns() -> None:
    from rich.console import Console

    console = Console(width=80, force_terminal=True, color_system="standard", record=True, file=io.StringIO())
    console.print(sample("fuse-residual-layer-norm"))
    styled = console.export_text(styles=True, clear=False)
    assert "\x1b[1;31mrolled back" in styled
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("fuse-residual-layer-norm ") for line in lines)


def test_printable() -> None:
    assert printable("a\n  b\tc") == "a b c"
    assert printable("LayerNorm_μ/ü") == "LayerNorm_μ/ü"
    assert printable("\x1b[0m\ud800") == r"\x1b[0m\ud800"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 ms"), (1e-5, "<1 ms"), (0.001, "1 ms"), (0.9994, "999 ms"), (0.9996, "1.0 s"), (99.94, "99.9 s"),
     (99.96, "1 min 40 s"), (119.7, "2 min 00 s")],
)  # fmt: skip
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_difference_and_change() -> None:
    assert [difference(v) for v in (None, 0.0, 2.13e-5, math.nan)] == ["-", "0", "2.1e-05", "nan"]
    assert [change(*v) for v in ((200, 50), (50, 75), (3, 3), (0, 2), (0, 0))] == [
        "-75 %", "+50 %", "+0 %", "new", "+0 %"
    ]  # fmt: skip


# --------------------------------------------------------------------------------------------------------------- HTML


def test_page_is_whole_and_the_fragment_has_no_frame() -> None:
    page, fragment = Reader(sample().to_html()), Reader(sample()._repr_html_())
    assert page.open == fragment.open == []
    assert page.tags["html"] == page.tags["body"] == page.tags["svg"] == fragment.tags["svg"] == 1
    assert not {"html", "head", "body", "meta"} & fragment.tags.keys()
    for words in (
        "swin.onnx",
        "97 → 23",
        "−76 %",
        "2 of 4",
        "too-bold",
        "/attn/Softmax_output_0",
        "onnx 1.19.0",
        "/attn/Softmax is rounded",
    ):
        assert words in page.text
        assert words in fragment.text
    assert page.text.count("score has 3 consumers") == 1
    assert page.tags["details"] == 2


def test_the_style_of_the_fragment_stays_in_it() -> None:
    style = re.search(r"<style>(.*)</style>", sample()._repr_html_(), re.DOTALL)
    assert style is not None
    rules = re.sub(r"@media[^{]*\{(.*?\})\s*\}", r"\1", style[1], flags=re.DOTALL)
    selectors = [selector.strip() for selector in re.findall(r"([^{}]+)\{", rules)]
    assert len(selectors) > 20
    assert all(selector.startswith(".swinopt-report") for selector in selectors)


def test_nothing_comes_from_elsewhere() -> None:
    source = sample().to_html()
    assert "//" not in source
    assert "url(" not in source
    assert "@import" not in source
    page = Reader(source)
    assert not {"script", "link", "img", "iframe", "object", "use", "image"} & page.tags.keys()
    assert not {"src", "href", "xlink:href"} & {name for name, _ in page.attributes}


@pytest.mark.parametrize("where", ["name", "node", "model", "target", "version", "op", "reason"])
def test_hostile_names_are_only_text(where: str) -> None:
    report = sample(**{where: HOSTILE}) if where in ("name", "node") else sample()
    if where in ("model", "target"):
        report = replace(report, **{where: HOSTILE})
    elif where == "version":
        report = replace(report, versions={HOSTILE: HOSTILE})
    elif where == "op":
        last = replace(report.passes[3], ops_after={**FUSED, HOSTILE: 1})
        report = replace(report, ops_after={**FUSED, HOSTILE: 1}, passes=(*report.passes[:3], last))
    elif where == "reason":
        report = replace(report, passes=(replace(report.passes[0], refusals=(Refusal("n", HOSTILE),)),))
    page, tame = Reader(report.to_html()), Reader(sample().to_html())
    assert page.open == []
    assert "script" not in page.tags
    assert page.tags["style"] == tame.tags["style"]
    assert r"<script>alert('1')</script>\x1b[31m[bold]&\x00\u202e" in page.text
    svg(report.to_html())


def test_times_below_a_millisecond_are_text_too() -> None:
    report = sample()
    quick = replace(report.passes[0], seconds=1e-6, verify_seconds=1e-6)
    source = replace(report, passes=(quick,), seconds=1e-6).to_html()
    assert source.count("&lt;1 ms") == 4
    assert "<1" not in source


def test_bands_of_the_picture_are_as_high_as_their_nodes_are_many() -> None:
    bars = svg(sample().to_html()).findall("g")
    assert len(bars) == 5
    for bar, counts in zip(bars, (BEFORE, FOLDED, FOLDED, FUSED, FUSED), strict=True):
        bands = [rect for rect in bar.findall("rect") if rect.find("title") is not None]
        by_group: Counter[str] = Counter()
        for op, count in counts.items():
            by_group[group_of(op)] += count
        expected = {f"k{list(GROUPS).index(group)}": count * 300 / 97 for group, count in by_group.items() if count}
        assert {r.attrib["class"]: float(r.attrib["height"]) for r in bands} == pytest.approx(expected, abs=0.01)
        # Stacked without gaps, from the base line up.
        base = 340.0
        for rect in bands:
            base -= float(rect.attrib["height"])
            assert float(rect.attrib["y"]) == pytest.approx(base, abs=0.05)


def test_the_picture_names_passes_counts_and_tips() -> None:
    picture = svg(sample().to_html())
    texts = ["".join(element.itertext()) for element in picture.iter("text")]
    for words in ("original", "fold-constants", "too-bold", "layout 40 ■", "■ layout 4", "97", "enlarged ×4"):
        assert words in texts
    tips = [element.text for element in picture.iter("title")]
    assert "fuse-attention: 4 layout (-32): Reshape 4" in tips
    assert "fold-constants: 63 nodes (-34), applied" in tips
    assert sum(rect.attrib["class"] == "undone" for rect in picture.iter("rect")) == 1


def test_labels_do_not_lie_on_each_other() -> None:
    ops = {"MatMul": 5000, "Gemm": 1, "LayerNormalization": 1, "Gelu": 1, "Add": 1, "Reshape": 1, "Shape": 1, "Odd": 1}
    for counts in (ops, {"Odd": 5000, **{op: 1 for op in ops if op != "Odd"}}):
        picture = svg(Report("cpu", (), counts, counts, 1.0).to_html())
        labels = [text for text in picture.iter("text") if text.attrib["class"] == "label"]
        for side in ("start", "end"):
            ys = sorted(float(text.attrib["y"]) for text in labels if text.attrib["text-anchor"] == side)
            assert len(ys) == 7
            assert all(b - a >= 14.9 for a, b in pairwise(ys))
            assert ys[0] >= 40
            assert ys[-1] <= 345


def test_a_pass_that_does_not_say_what_it_left_is_still_drawn() -> None:
    passes = (PassReport("a", "unchanged", 0, 97, 97, 0.1), PassReport("b", "applied", 1, 97, 50, 0.1))
    picture = svg(Report("cpu", passes, BEFORE, FUSED, 1.0).to_html())
    tips = [element.text for element in picture.iter("title")]
    assert "a: 40 layout: Reshape 40" in tips
    assert any(tip is not None and tip.startswith("b: 50 other") for tip in tips)


@pytest.mark.parametrize("ops_after", [{}, {"Add": 1}])
def test_empty_reports(ops_after: dict[str, int]) -> None:
    empty = Report("cpu", (), {}, ops_after, 0.0)
    assert Reader(empty.to_html()).open == []
    assert str(empty).startswith("cpu\n")
    gone = Report("cpu", (PassReport("p", "applied", 1, 1, 0, 0.0),), {"Add": 1}, {}, 0.0)
    svg(gone.to_html())
    assert Report.from_json(empty.to_json()) == empty


def test_groups() -> None:
    kinds = {"swinopt::WindowAttention": "swinopt ops", "MatMul": "linear", "com.microsoft::QuickGelu": "activation",
             "Mod": "shape and constants", "Softmax": "arithmetic", "Unsqueeze": "layout", "acme::Odd": "other",
             "LayerNormalization": "norm"}  # fmt: skip
    assert {op: group_of(op) for op in kinds} == kinds
    assert set(kinds.values()) == set(GROUPS)
    everything = [op for ops in GROUPS.values() for op in ops]
    assert len(everything) == len(set(everything))


def test_import_leaves_rich_alone() -> None:
    code = "import sys, swinopt.report as r; r.Report('cpu', (), {}, {}, 0.0).to_html(); print('rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "False\n"
