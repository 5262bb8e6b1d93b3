"""Using a finished run: load, classify, export to timm, test again; on a user's own images from folder to file."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import headwise
from headwise.artifacts.export import Classifier, Guess, evaluate, export_merged
from headwise.artifacts.saved import SavedRun
from headwise.errors import CheckpointError, ConfigError, DataError, WeightsError
from headwise.network.backbone import BackboneSpec
from made_cases import each
from made_networks import REPO, compose_config, run
from made_scripts import loaded
from made_words import QUIET

AUTO = ["backbone=vit_tiny_random", "backbone.weights=auto", "rank=r4"]
NAMES = ["red", "green", "blue"]
SIZES = {"train": 24, "test": 15}


def draw_images(root: Path) -> Path:
    """Noisy images of three colours, one per class, with train.txt and test.txt."""
    rng = np.random.default_rng(0)
    for split, count in SIZES.items():
        (root / split).mkdir(parents=True)
        lines = []
        for i in range(count):
            pixels = rng.integers(0, 120, (110, 100, 3), dtype=np.uint8)
            pixels[..., i % 3] += 130
            Image.fromarray(pixels).save(root / split / f"{i}.png")
            lines.append(f"{split}/{i}.png {i % 3}\n")
        (root / f"{split}.txt").write_text("".join(lines))
    return root


def train(root: Path, images: Path, *overrides: str) -> Path:
    """Run the tiny network on the images; returns the run's folder."""
    cfg = compose_config(
        "dataset=own/folder",
        "data=folder",
        f"data.root={images}",
        "dataset.num_classes=3",
        f"dataset.class_names=[{','.join(NAMES)}]",
        *QUIET,
        "protocol.epochs=2",
        "protocol.batch_size=8",
        f"root={root}",
        *overrides,
    )
    run(cfg)
    (folder,) = (file.parent for file in (root / "runs").glob("**/result.json"))
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pretrained weights as a file: the tiny random network's."""
    config: Any = compose_config("backbone=vit_tiny_random").backbone
    spec = BackboneSpec(**{**config, "overrides": dict(config.overrides)})
    file = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in spec.build().export_state_dict().items()}, str(file))
    return file


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, images: Path, weights: Path) -> Iterator[Path]:
    """A finished two-phase run on the images."""
    root = tmp_path_factory.mktemp("outputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADWISE_CACHE", str(root / "cache"))
        yield train(root, images, "method=hs_lora", "backbone=vit_tiny_random", f"backbone.weights={weights}")


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    """The run's folder, copied elsewhere, to be damaged."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    record = json.loads((folder / "result.json").read_text())
    change(record)
    (folder / "result.json").write_text(json.dumps(record))


def test_own_images_train_to_a_labelled_result(trained: Path) -> None:
    result = SavedRun.read(trained).result
    assert [phase.label for phase in result.phases] == ["lora", "head_lora"]
    assert "own data" in result.labels
    assert all(phase.num_test == SIZES["test"] for phase in result.phases)


def test_classify_turns_photographs_upright_and_reads_all_bits(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headwise.data.notices._said", set())
    net = headwise.load(trained)
    scene = np.random.default_rng(1).integers(0, 256, (110, 100, 3), dtype=np.uint8)
    upright, stored = Image.fromarray(scene), Image.fromarray(np.rot90(scene))  # EXIF 6: turn it clockwise to see it
    exif = stored.getexif()
    exif[0x0112] = 6
    stored.save(tmp_path / "phone.png", exif=exif)
    expected = net.preprocess(upright)
    for image in (tmp_path / "phone.png", Image.open(tmp_path / "phone.png")):
        assert torch.equal(net.preprocess(image), expected)
    assert caplog.messages == ["classify: images are turned upright by their EXIF orientation"], "once"
    deep = Image.fromarray(((scene[..., 0].astype(np.uint32) * 4095 + 127) // 255).astype(np.uint16))
    deep.save(tmp_path / "deep.png")
    assert torch.equal(net.preprocess(tmp_path / "deep.png"), net.preprocess(Image.fromarray(scene[..., 0])))
    assert caplog.messages[1:] == ["classify: images of more than 8 bits a value are scaled to 8 by what each needs"]
    net.task = replace(net.task, depth=16)
    assert net.preprocess(deep).max() < expected.min() + 0.3, "as the run read them, not by what each needs"
    with pytest.raises(DataError, match=r"classify: the image cannot be used .* no 8-bit equivalent"):
        net.preprocess(Image.fromarray(np.full((9, 9), 0.5, np.float32)))


@pytest.mark.parametrize("merged", [True, False])
def test_load_gives_a_frozen_network_in_evaluation_mode(trained: Path, merged: bool) -> None:
    net = headwise.load(trained, merged=merged)
    assert isinstance(net, Classifier)
    assert not any(module.training for module in net.modules())
    assert not any(parameter.requires_grad for parameter in net.parameters())
    kinds = {type(module).__name__ for module in net.modules()}
    assert ("AdaptedLinear" in kinds) is not merged


def test_merged_and_unmerged_agree(trained: Path) -> None:
    x = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(headwise.load(trained)(x), headwise.load(trained, merged=False)(x), atol=1e-5, rtol=0)


def test_load_leaves_random_states_alone(trained: Path) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    headwise.load(trained)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # type: ignore[index]


def test_classify_takes_paths_images_and_batches(trained: Path, images: Path) -> None:
    net = headwise.load(trained)
    file = images / "test" / "0.png"
    with Image.open(file) as image:
        (from_image,) = net.classify(image)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    (from_path,) = net.classify(file)
    assert from_image == from_path
    assert isinstance(from_path, Guess) and from_path.name == NAMES[from_path.index]
    assert 1 / 3 <= from_path.probability <= 1
    assert net.classify([file, str(file)]) == pytest.approx([from_path, from_path])
    (from_batch,) = net.classify(pixels)
    assert from_batch.index == from_path.index
    assert net.probabilities([file]).sum().item() == pytest.approx(1)


def test_classify_agrees_with_the_test_of_the_run(trained: Path, images: Path) -> None:
    lines = [line.split() for line in (images / "test.txt").read_text().splitlines()]
    guesses = headwise.load(trained).classify([images / path for path, _ in lines])
    right = sum(guess.index == int(label) for guess, (_, label) in zip(guesses, lines, strict=True))
    assert 100 * right / len(lines) == pytest.approx(SavedRun.read(trained).result.accuracy, abs=1e-4)


def test_classify_names_a_file_that_is_no_image(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "note.png").write_text("no image")
    with pytest.raises(DataError, match=r"note\.png.*cannot be decoded"):
        headwise.load(trained).classify(tmp_path / "note.png")


def test_nothing_classified_is_an_empty_answer(trained: Path) -> None:
    net = headwise.load(trained)
    assert net.classify([]) == []
    assert tuple(net.probabilities([]).shape) == (0, net.task.num_classes)


@pytest.mark.parametrize("given", [5, None, b"x", [b"x"], [None], {"a.png"}])
def test_what_is_no_image_is_refused(trained: Path, given: Any) -> None:
    with pytest.raises(DataError, match="classify takes PIL images, paths, sequences of them, or a uint8 tensor"):
        headwise.load(trained).classify(given)


@each(
    "given, said",
    [
        (None, "a run is named by the path of its folder, got NoneType"),
        (5, "a run is named by the path of its folder, got int"),
        (b"/tmp", "a run is named by the path of its folder, got bytes"),
        ("x" * 300, "x"),
        ("x\0y", "x"),
    ],
)
def test_what_names_no_run_is_refused(given: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        headwise.load(given)


@pytest.mark.parametrize("trust", [5, [5], "a b", b"x"])
def test_what_names_no_module_is_not_trusted(trained: Path, trust: Any) -> None:
    with pytest.raises(ConfigError, match="trust names modules of your own"):
        headwise.load(trained, trust=trust)


def test_no_run_says_where_there_is_one(trained: Path) -> None:
    with pytest.raises(ConfigError, match=rf"no finished run in .*did you mean {trained}"):
        headwise.load(trained.parent)


def test_weights_may_move_but_not_change(copied: Path, weights: Path, tmp_path: Path) -> None:
    moved = shutil.copy(weights, tmp_path / "moved.safetensors")
    edit(copied, lambda record: record["config"]["backbone"].update(weights="gone.safetensors"))
    with pytest.raises(WeightsError, match=r"content [0-9a-f]{64}; weights file 'gone.safetensors' does not"):
        headwise.load(copied)
    headwise.load(copied, weights=moved)
    other = {name: tensor + 1 for name, tensor in load_file(weights).items()}
    save_file(other, str(tmp_path / "other.safetensors"))
    with pytest.raises(WeightsError, match=r"with the content [0-9a-f]{64}; '.*other.safetensors' is [0-9a-f]{64}"):
        headwise.load(copied, weights=tmp_path / "other.safetensors")


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_damaged_tensors_are_named(copied: Path, damage: str) -> None:
    file = copied / "phase-2.safetensors"
    content = file.read_bytes()
    file.unlink()
    if damage == "cut":
        file.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"phase-2\.safetensors"):
        headwise.load(copied)


@pytest.mark.parametrize("phase", [1, 2])
def test_a_flipped_bit_is_refused_wherever_a_run_is_read(copied: Path, tmp_path: Path, phase: int) -> None:
    """Issue 14, A3: loading, exporting and testing again name the file and what to do."""
    file = copied / f"phase-{phase}.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.unlink()
    file.write_bytes(bytes(data))
    for use in (headwise.load, evaluate, lambda run: export_merged(run, tmp_path / "x.safetensors")):
        with pytest.raises(CheckpointError, match=rf"{file.name} is not the file .*resume=force"):
            use(copied)
    assert not (tmp_path / "x.safetensors").exists()


def test_evaluate_repeats_every_phase_exactly(trained: Path) -> None:
    retests = evaluate(trained)
    assert [retest.label for retest in retests] == ["lora", "head_lora"]
    assert all(retest.is_same for retest in retests)


def test_evaluate_refuses_other_images(copied: Path, images: Path, tmp_path: Path) -> None:
    changed = Path(shutil.copytree(images, tmp_path / "changed"))
    Image.new("RGB", (100, 110)).save(changed / "test" / "3.png")
    with pytest.raises(DataError, match=r"not those of the run: content"):
        evaluate(copied, data_root=changed)
    shutil.copy(images / "test" / "3.png", changed / "test" / "3.png")
    assert all(retest.is_same for retest in evaluate(copied, data_root=changed))


def test_images_that_were_drawn_have_no_folder(copied: Path, tmp_path: Path) -> None:
    drawn = {"_target_": "headwise.data.sources.SyntheticSource"}
    edit(copied, lambda record: record["config"].update(data=drawn))
    with pytest.raises(ConfigError, match=r"data_root='.*' means nothing to .*SyntheticSource reads no folder"):
        evaluate(copied, data_root=tmp_path)


def test_evaluate_script_tells_by_its_status(copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = loaded("evaluate").main
    assert main([str(copied), "--json", str(tmp_path / "out.json")]) == 0
    assert [entry["is_same"] for entry in json.loads((tmp_path / "out.json").read_text())] == [True, True]
    edit(copied, lambda record: record["phases"][1].update(accuracy=record["phases"][1]["accuracy"] - 1e-5))
    assert main([str(copied)]) == 1
    assert "DIFFERENT" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([str(tmp_path / "nowhere")])
    assert capsys.readouterr().err.startswith("error: run_dir: no finished run in")


def test_export_is_a_plain_timm_network(trained: Path, tmp_path: Path) -> None:
    export = export_merged(trained, tmp_path / "model.safetensors")
    assert export.random_difference <= 1e-5
    assert export.real_difference is not None and export.real_difference <= 1e-5
    keys = load_file(export.file).keys()
    assert {"blocks.0.attn.qkv.weight", "head.weight", "head.bias"} <= keys
    assert not any("delta" in key or ".qkv.q" in key for key in keys)
    assert export.metadata["class_names"] == NAMES
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_export_without_the_images_says_so(copied: Path, tmp_path: Path) -> None:
    edit(copied, lambda record: record["config"]["data"].update(root=str(tmp_path / "gone")))
    export = export_merged(copied, tmp_path / "model.safetensors")
    assert export.real_difference is None
    assert "gone" in export.note


def test_export_refuses_another_suffix(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must end in \.safetensors"):
        export_merged(trained, tmp_path / "model.pt")


def test_export_refuses_what_cannot_be_merged(tmp_path: Path, images: Path) -> None:
    folder = train(tmp_path / "outputs", images, "method=adaptformer", "backbone=vit_tiny_random")
    with pytest.raises(CheckpointError, match=r"blocks\.0 is wrapped .*use headwise\.load"):
        export_merged(folder, tmp_path / "model.safetensors")
    assert not (tmp_path / "model.safetensors").exists()
    assert headwise.load(folder).classify(images / "test" / "0.png")[0].name in NAMES
    assert all(retest.is_same for retest in evaluate(folder))


def test_export_of_a_swin(tmp_path: Path, images: Path) -> None:
    folder = train(tmp_path / "outputs", images, "method=head_lora", "backbone=swin_tiny_random")
    export = export_merged(folder, tmp_path / "swin.safetensors")
    assert max(export.random_difference, export.real_difference or 0.0) <= 1e-5


def documented_block(mark: str) -> str:
    """The one python block of README and tutorial that holds `mark`."""
    pages = (REPO / "README.md").read_text() + (REPO / "docs" / "tutorial.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", pages, flags=re.DOTALL)
    (block,) = (block for block in blocks if mark in block)
    return str(block)


def test_documented_lines_classify_with_timm_alone(
    trained: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    export_merged(trained, tmp_path / "model.safetensors")
    shutil.copy(images / "test" / "1.png", tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    code = documented_block("timm.create_model")
    assert "headwise" not in code
    exec(compile(code, "documents", "exec"), {})
    (guess,) = headwise.load(trained).classify("image.png")
    assert int(capsys.readouterr().out) == guess.index


def test_documented_lines_of_load(
    trained: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = documented_block("headwise.load")
    (named,) = re.findall(r'headwise\.load\("(.*?)"\)', code)
    (tmp_path / named).parent.mkdir(parents=True)
    shutil.copytree(trained, tmp_path / named)
    shutil.copy(images / "test" / "1.png", tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "documents", "exec"), {})
    assert "Guess(" in capsys.readouterr().out


def test_weights_of_the_hub_are_compared_by_content(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(seed: int) -> None:
        def fill(self: BackboneSpec, model: Any) -> None:
            torch.manual_seed(seed)
            for parameter in model.parameters():
                parameter.data.normal_(std=0.02)

        monkeypatch.setattr(BackboneSpec, "_fetch", fill)

    fetch(0)
    folder = train(tmp_path / "root", images, "method=lora", *AUTO)
    loaded = json.loads((folder / "result.json").read_text())["provenance"]["weights"]["loaded"]
    assert len(loaded) == 64
    assert headwise.load(folder) is not None
    fetch(1)
    with pytest.raises(WeightsError, match=rf"other weights than timm's hub has now .*: tensors {loaded[:12]}, here "):
        headwise.load(folder)
