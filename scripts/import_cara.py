"""Convert a released CaRA checkpoint: python scripts/import_cara.py FILE.pt svhn.safetensors --task svhn."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from headwise.cli import of_import, script
from headwise.commands.arguments import OutFile
from headwise.commands.written import writing
from headwise.errors import CheckpointError
from headwise.protocol.presets import published_value


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = of_import(
        __doc__,
        "The file becomes a first phase that is tested and merged, not trained. Its scale is not in it: give "
        "the one it was trained with. CaRA saw images normalised as ImageNet's (protocol.normalize=imagenet).",
        "as released, a torch file (.pt); only tensors are read",
    )
    parser.add_argument("--task", help="such as svhn: prints the scale that the authors used")
    parser.add_argument(
        "--backbone",
        type=OutFile(),
        help="also write the frozen network that is in the file, for backbone.weights=FILE",
    )
    return parser.parse_args(arguments)


@script
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = parse(arguments)
    with writing(options.out, options.backbone, force=options.force, reads=[options.file]):
        scale = "S" if options.task is None else published_value("cara", options.task, "scale").value

        from headwise.artifacts.released import read_cara
        from headwise.training.loop import write_tensors

        found = read_cara(options.file)
        if options.backbone is not None and not found.backbone:
            raise CheckpointError(f"{options.file} holds no backbone, only the factors and the classifier")
        write_tensors(options.out, found.tensors, {"source": options.file.name, "format": "cara"})
        print(
            f"wrote {options.out}: {found.rank} components, {found.blocks} blocks of width {found.width} with "
            f"{found.heads} heads, {found.num_classes} classes"
        )
        weights = ""
        if options.backbone is not None:
            write_tensors(options.backbone, found.backbone, {"source": options.file.name})
            print(f"wrote {options.backbone}: {len(found.backbone)} tensors")
            weights = f" backbone.weights={options.backbone}"
        print(
            "python train.py method=hs_lora method@method.first=cara "
            f"method.first.checkpoint={options.out} method.first.rank={found.rank} method.first.scale={scale} "
            f'"method.heads.targets=[q,k,v]" dataset={options.task or "TASK"} protocol.normalize=imagenet{weights}'
        )
        return 0


if __name__ == "__main__":
    sys.exit(main())
