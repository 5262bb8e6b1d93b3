"""Write a finished run as one file for timm: python scripts/export_merged.py RUN_DIR --out model.safetensors."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

from headwise.cli import of_run, script
from headwise.commands.arguments import OutFile
from headwise.commands.written import writing
from headwise.storage import atomic

EPILOG = "The README shows how to load the file and classify an image with timm alone."


@script
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = of_run(__doc__, EPILOG)
    parser.add_argument(
        "--out", type=OutFile(".safetensors"), required=True, help="file to write, ending in .safetensors"
    )
    options = parser.parse_args(arguments)
    with writing(options.out, options.json, force=options.force):
        from headwise.artifacts.export import export_merged

        export = export_merged(options.run_dir, options.out, options.weights, options.data_root, options.trust)
        print(f"wrote {export.file}: {export.metadata['model']}")
        print("largest difference of a logit between the trained and the exported network:")
        print(f"  random input  {export.random_difference:.3g}")
        if export.real_difference is None:
            print(f"  test images   not compared ({export.note})")
        else:
            print(f"  test images   {export.real_difference:.3g}")
        if options.json:
            atomic.write_json(options.json, dataclasses.asdict(export))
        return 0


if __name__ == "__main__":
    sys.exit(main())
