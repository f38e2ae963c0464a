"""What the report says: what each pass did, what it cost, where it did not apply and why.

A small Swin goes to the portable target. Its TorchScript export has opset 17, which has no Gelu, so that one pass has
something to refuse. Writes below build/report/.
"""

from collections import Counter
from pathlib import Path

import swinopt

FOLDER = Path(__file__).resolve().parent.parent / "build" / "report"


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    exported = swinopt.export(
        "swin_tiny_patch4_window7_224",
        FOLDER / "small_swin.onnx",
        exporter="torchscript",
        seed=0,
        img_size=112,
        embed_dim=48,
        depths=(2, 2),
        num_heads=(2, 4),
    )
    report = swinopt.optimize(exported, target="portable").report

    # The whole report in one line, and whether every pass stood its test.
    print(report.summary())
    print("no pass was rolled back" if report.ok else "a pass was rolled back")

    # Pass by pass. max_abs_diff is None where nothing changed, so that nothing was checked.
    print("\npasses that changed something:")
    for entry in report.passes:
        if entry.status == "applied":
            print(f"  {entry.name:24} {entry.applied:4} times, {entry.nodes_before:4} -> {entry.nodes_after:4} nodes")

    # A refusal is a place where a pass looked, and a precondition did not hold.
    print("\nrefusals:")
    for entry in report.passes:
        for reason, count in Counter(refusal.reason for refusal in entry.refusals).items():
            print(f"  {entry.name}: {reason} ({count} times)")

    print("\nwhere the nodes went:")
    gone = Counter(report.ops_before) - Counter(report.ops_after)
    print(" ", ", ".join(f"{count} {op}" for op, count in gone.most_common(6)))

    # For other programs: JSON, there and back without loss. For people: one page of HTML that needs nothing else.
    (FOLDER / "report.json").write_text(report.to_json(), encoding="utf-8")
    assert swinopt.Report.from_json((FOLDER / "report.json").read_bytes()) == report
    (FOLDER / "report.html").write_text(report.to_html(), encoding="utf-8")
    print(f"\nwritten: {FOLDER / 'report.json'} and report.html")


if __name__ == "__main__":
    main()
