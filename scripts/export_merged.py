"""Write a finished run for others: one file or a hub's folder for timm and transformers, or ONNX.

python scripts/export_merged.py RUN_DIR --out model.safetensors --hub model --onnx model.onnx
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

from headwise.cli import of_run, script
from headwise.commands.arguments import OutFile, out_folder
from headwise.commands.written import writing
from headwise.errors import ConfigError
from headwise.runs.postponed import postpone
from headwise.storage import atomic

EPILOG = "The tutorial shows how to load each and classify an image without headwise."
HUB_FILES = ("config.json", "model.safetensors", "README.md")


@script
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = of_run(__doc__, EPILOG)
    parser.add_argument("--out", type=OutFile(".safetensors"), help="a state dict for timm, ending in .safetensors")
    parser.add_argument(
        "--hub", type=out_folder, help=f"a folder for Hugging Face's hub, timm and transformers: {', '.join(HUB_FILES)}"
    )
    parser.add_argument("--onnx", type=OutFile(".onnx"), help="an ONNX file, ending in .onnx")
    options = parser.parse_args(arguments)
    if options.out is None and options.hub is None and options.onnx is None:
        raise ConfigError("nothing is to be written; give --out FILE, --hub FOLDER or --onnx FILE")
    of_hub = () if options.hub is None else (options.hub / name for name in HUB_FILES)
    with writing(options.out, options.onnx, *of_hub, options.json, force=options.force):
        postpone()
        from headwise.artifacts.export import export_merged

        export = export_merged(
            options.run_dir,
            options.out,
            options.weights,
            options.data_root,
            options.trust,
            hub=options.hub,
            onnx=options.onnx,
        )
        for written in (export.file, export.hub, export.onnx):
            if written is not None:
                print(f"wrote {written}: {export.metadata['model']}")
        print("largest difference of a logit between the trained and the exported network:")
        print(f"  random input  {export.random_difference:.3g}")
        if export.real_difference is None:
            print(f"  test images   not compared ({export.note})")
        else:
            print(f"  test images   {export.real_difference:.3g}")
        for what, apart in (("read by timm", export.hub_difference), ("onnxruntime", export.onnx_difference)):
            if apart is not None:
                print(f"  {what:13} {apart:.3g}")
        if options.json:
            atomic.write_json(options.json, dataclasses.asdict(export))
        return 0


if __name__ == "__main__":
    sys.exit(main())
