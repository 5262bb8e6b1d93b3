"""Run by test_prepare.py in a Python that has TensorFlow: prepare sets from fake archives of the real layout.

python prepare_fake.py ROOT CACHE [--checksums | --tfrecord]: the archives are made under ROOT/downloads/manual, where
upstream looks for files that were placed by hand, so nothing is fetched. --checksums keeps upstream's check of them;
--tfrecord only writes two sets as tfrecord files, which TensorFlow alone can.
"""

from __future__ import annotations

import io
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

REPO = Path(__file__).parents[2]
sys.path.insert(0, str(REPO / "src"))

from headwise.data.preparing.prepare import Place, as_json, choose, prepare, read_tasks  # noqa: E402

rng = np.random.default_rng(0)


def jpeg(side: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(stream, "JPEG")
    return stream.getvalue()


def make_archives(manual: Path) -> None:
    from scipy.io import savemat

    manual.mkdir(parents=True)
    fine, coarse = (b"\n".join(b"name%d" % i for i in range(n)) + b"\n" for n in (100, 20))
    files = {"train.bin": 40, "test.bin": 20}
    with tarfile.open(manual / "cifar-100-binary.tar.gz", "w:gz") as tar:
        texts = {"fine_label_names.txt": fine, "coarse_label_names.txt": coarse}
        for name, count in files.items():
            rows = [bytes([i % 20, i % 100]) + rng.bytes(3072) for i in range(count)]
            texts[name] = b"".join(rows)
        for name, data in texts.items():
            entry = tarfile.TarInfo(f"cifar-100-binary/{name}")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    for split, count in (("train", 40), ("test", 20), ("extra", 3)):
        images = rng.integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        labels = (np.arange(count) % 10 + 1).astype(np.uint8)[:, None]
        savemat(manual / f"{split}_32x32.mat", {"X": images, "y": labels})
    with zipfile.ZipFile(manual / "EuroSAT.zip", "w") as archive:
        for name in ("Forest", "River"):
            for i in range(20):
                archive.writestr(f"2750/{name}/{name}_{i + 1}.jpg", jpeg(64))
    for name in ("airport", "beach"):
        (manual / "NWPU-RESISC45" / name).mkdir(parents=True)
        for i in range(10):
            (manual / "NWPU-RESISC45" / name / f"{name}_{i + 1:03d}.jpg").write_bytes(jpeg(256))


def main() -> None:
    root, cache = Path(sys.argv[1]), Path(sys.argv[2])
    if "--tfrecord" in sys.argv:
        from made_tfds import load_task, write_set

        for name in ("smallnorb_azi", "clevr_count"):
            write_set(root, load_task(name), form="tfrecord")
        return
    place = Place(root, cache, 40, "pil_bicubic", official=False)
    if not place.manual.exists():
        make_archives(place.manual)
    if "--checksums" not in sys.argv:
        from tensorflow_datasets.core.download.download_manager import DownloadManager

        DownloadManager._register_or_validate_checksums = lambda *args, **kwargs: None
    names = ["cifar100"] if "--checksums" in sys.argv else ["cifar100", "svhn", "eurosat", "resisc45"]
    tasks = choose(read_tasks(REPO / "conf" / "dataset"), names)
    states = prepare(tasks, place, lambda line: print(line, flush=True))
    (root / "states.json").write_text(as_json(states))
    if "--checksums" not in sys.argv:
        assert "tensorflow" in sys.modules, "upstream's builders ran with it"


if __name__ == "__main__":
    main()
