"""The 24 sets as upstream offers them: sizes of downloads and caches, and what must be fetched by hand. Facts only."""

from __future__ import annotations

from dataclasses import dataclass

MB = 1_000_000


@dataclass(frozen=True)
class Upstream:
    """One upstream set.

    Args:
        download: bytes of the archives, approximate where nobody publishes them.
        cache: bytes of the cache for a network of 224 pixels, all tasks on the set together; 0: it is read from the
            prepared records, because its training crops need larger images.
        manual: names that must lie in the folder of manual downloads before anything can be prepared.
        how: where to get them.
        note: what often goes wrong.
        dead: what to do where upstream's address answers no longer; empty where it does.
        archive: name of that download in the folder of manual downloads.
    """

    download: int
    cache: int
    manual: tuple[str, ...] = ()
    how: str = ""
    note: str = ""
    dead: str = ""
    archive: str = ""


UPSTREAM: dict[str, Upstream] = {
    "cifar100": Upstream(169 * MB, 34 * MB),
    "caltech101": Upstream(137 * MB, 1067 * MB, note="which images are drawn depends on the machine that prepares it"),
    "dtd": Upstream(625 * MB, 434 * MB),
    "oxford_flowers102": Upstream(345 * MB, 1076 * MB),
    "oxford_iiit_pet": Upstream(811 * MB, 703 * MB),
    "svhn_cropped": Upstream(1_576 * MB, 83 * MB),
    "sun397": Upstream(
        39_100 * MB,
        3_425 * MB,
        note="its checksum is known to fail now and then: try again",
        dead="its address (vision.princeton.edu/projects/2010/SUN/SUN397.tar.gz) and the one of its authors' other "
        "server have answered 404 since 2025: place a copy of SUN397.tar.gz (39,077,296,924 bytes) in "
        "<root>/downloads/manual, or give a list-file tree with --root",
        archive="SUN397.tar.gz",
    ),
    "patch_camelyon": Upstream(8_030 * MB, 934 * MB),
    "eurosat": Upstream(94 * MB, 79 * MB),
    "resisc45": Upstream(
        400 * MB,
        1_099 * MB,
        ("NWPU-RESISC45",),
        "download NWPU-RESISC45.rar (https://1drv.ms/u/s!AmgKYzARBl5ca3HNaHIlzp_IXjs) and unpack it there: 45 folders "
        "of 700 images in the folder NWPU-RESISC45",
    ),
    "diabetic_retinopathy_detection": Upstream(
        90_000 * MB,
        6_573 * MB,
        ("train", "test", "sample", "trainLabels.csv"),
        "download from https://www.kaggle.com/c/diabetic-retinopathy-detection/data (account needed) and unpack "
        "train.zip.* into train/, test.zip.* into test/, sample.zip into sample/, and trainLabels.csv",
    ),
    "clevr": Upstream(19_000 * MB, 2_409 * MB),
    "dmlab": Upstream(3_020 * MB, 3_573 * MB),
    "kitti": Upstream(12_600 * MB, 258 * MB),
    "dsprites": Upstream(28 * MB, 306 * MB),
    "smallnorb": Upstream(263 * MB, 121 * MB),
    "food101": Upstream(4_996 * MB, 0),
    "cars196": Upstream(
        1_957 * MB,
        0,
        ("cars_train.tgz", "cars_test.tgz", "car_devkit.tgz", "cars_test_annos_withlabels.mat"),
        "the addresses are dead since 2023: place the four original files there under these names",
    ),
    "fgvc_aircraft": Upstream(
        2_753 * MB,
        0,
        ("fgvc-aircraft-2013b",),
        "download fgvc-aircraft-2013b.tar.gz (https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/) and unpack it "
        "there; its builder is this package's own",
    ),
}
"""By the name of the builder. The size of Resisc45's and Retinopathy's archives is not published by upstream."""
