"""Convert a published Bi-LoRA checkpoint: python scripts/import_bilora.py svhn-bit1-dim32.bin svhn.safetensors."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from headwise.cli import of_import, script
from headwise.commands.arguments import Whole
from headwise.commands.written import writing

BITS = (1, 2, 4, 8)
MOST = 100_000
"""Of everything that is counted here."""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; rank and bits default to what the file's name says (bit1-dim32)."""
    parser = of_import(
        __doc__,
        "Use it: python train.py method=bi_lora +method.checkpoint=svhn.safetensors method.scale=10 "
        "dataset=svhn protocol.normalize=none (the scale is that of the published task, it is not in the file)",
        "as published, such as svhn-bit1-dim32.bin",
    )
    parser.add_argument("--rank", type=Whole(1, MOST), help="hidden width; read from dim<n> in the name, else 32")
    parser.add_argument(
        "--bits", type=Whole(1, 8), choices=BITS, help="of the adapter; read from bit<n> in the name, else 1"
    )
    parser.add_argument("--head-bits", type=Whole(1, 32), choices=(*BITS, 32), default=32, help="1 for a bihead file")
    parser.add_argument("--classes", type=Whole(2, MOST), help="of the task; read from the file's length if not given")
    parser.add_argument("--blocks", type=Whole(1, MOST), default=12)
    parser.add_argument("--width", type=Whole(1, MOST), default=768)
    return parser.parse_args(arguments)


def named(file: Path, key: str, default: int) -> int:
    """The number after `key` in a file's name."""
    found = re.search(rf"{key}(\d+)", file.stem)
    return int(found[1]) if found else default


@script
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = parse(arguments)
    with writing(options.out, force=options.force, reads=[options.file]):
        from headwise.artifacts.released import Layout, read_bi_lora
        from headwise.training.loop import write_tensors

        layout = Layout(
            blocks=options.blocks,
            width=options.width,
            rank=named(options.file, "dim", 32) if options.rank is None else options.rank,
            bits=named(options.file, "bit", 1) if options.bits is None else options.bits,
            num_classes=options.classes,
            head_bits=options.head_bits,
        )
        tensors = read_bi_lora(options.file, layout)
        write_tensors(options.out, tensors, {"source": options.file.name, "format": "bi_lora"})
        classes = layout.classes(options.file.stat().st_size)
        print(f"wrote {options.out}: rank {layout.rank}, {layout.bits} bit(s), {classes} classes")
        print(f"  adapter {layout.adapter_bytes:,} bytes, classifier {layout.head_bytes(classes):,} bytes")
        return 0


if __name__ == "__main__":
    sys.exit(main())
