"""Published networks are read from files of their very layout, compute what independent codes do, and never pose as others."""

from __future__ import annotations

import hashlib
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

from recollect import bundle as bundles
from recollect.batch import Domains
from recollect.bundle import Bundle
from recollect.config import preset
from recollect.evaluation import extractors
from recollect.evaluation.classification import answer
from recollect.evaluation.extractors import (
    PUBLISHED,
    Backbone,
    ByClassifierBundle,
    FeaturesConfig,
    Lpips,
    lpips_net,
    open_extractor,
    open_lpips,
)
from recollect.pretrained import WeightsFile
from recollect.training.trainer import build

RELUS: dict[Backbone, list[int]] = {
    "alex": [1, 4, 7, 9, 11],
    "vgg": [3, 8, 15, 22, 29],
    "squeeze": [1, 4, 7, 9, 10, 11, 12],
}


def lively(net: nn.Module) -> dict[str, Tensor]:
    """Random weights of a network, such that what it says depends on what it sees, in its last layer still."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, tensor in net.state_dict().items():
        if tensor.ndim > 1:
            scale = (2 / tensor[0].numel()) ** 0.5
            found[name] = torch.randn(tensor.shape, generator=generator) * scale
        elif tensor.is_floating_point():
            found[name] = torch.rand(tensor.shape, generator=generator) * 0.2 + (0.9 if name.endswith(("var", "weight")) else 0)
    return found


def noise(count: int, size: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def given_as(path: Path) -> WeightsFile:
    return WeightsFile(path=str(path), sha256=sha256(path))


@pytest.fixture(scope="module")
def fid_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights with the names, shapes and format of weights-inception-2015-12-05-6726825d.pth."""
    net = models.Inception3(num_classes=1008, aux_logits=False, init_weights=False)
    path = tmp_path_factory.mktemp("weights") / PUBLISHED["inception"].file
    torch.save(lively(net), path)
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in the place of torch's cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def published(fid_weights: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The random weights in torch's cache, as if they were those that were published."""
    monkeypatch.setitem(PUBLISHED, "inception", replace(PUBLISHED["inception"], sha256=sha256(fid_weights)))
    return Path(shutil.copy(fid_weights, cache))


def test_inception_computes_what_torch_fidelity_computes(published: Path) -> None:
    reference: Any = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3", reason="torch-fidelity is not installed")
    names = ["2048", "logits_unbiased"]
    theirs = reference.FeatureExtractorInceptionV3("fid", names, feature_extractor_weights_path=str(published))
    ours = open_extractor(FeaturesConfig())
    assert (ours.name, ours.features, ours.classes, ours.questions) == ("inception", 2048, 1008, ("",))
    pixels = torch.randint(0, 256, (2, 3, 48, 40), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    features, logits = theirs(pixels)
    images = pixels / 127.5 - 1
    assert float(features.std(0).mean()) > 1e-3, "the random network does not tell pictures apart"
    assert torch.allclose(ours.describe(images).float(), features, rtol=1e-4, atol=1e-5)
    said = ours.probabilities(images)
    assert said.shape == (2, 1, 1008) and torch.allclose(said[:, 0].float(), logits.softmax(1), rtol=1e-3, atol=1e-7)


def test_torchvisions_inception_is_torchvisions(tmp_path: Path) -> None:
    """Fine-tuned to five classes, and with the auxiliary head of the published file."""
    net = models.inception_v3(weights=None, init_weights=False, num_classes=5, transform_input=True)
    net.load_state_dict(lively(net), strict=False)
    net.eval()
    path = tmp_path / "fine-tuned.safetensors"
    save_file(net.state_dict(), path)
    ours = open_extractor(FeaturesConfig(name="inception_v3", weights=given_as(path)))
    assert ours.name == f"inception_v3:{ours.digest[:8]}" and ours.classes == 5
    images = noise(2, 299)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.inference_mode():
        expected = net(((images + 1) / 2 - mean[:, None, None]) / deviation[:, None, None]).softmax(1)
    assert torch.allclose(ours.probabilities(images)[:, 0].float(), expected, rtol=1e-3, atol=1e-5)


def test_weights_that_were_not_published_do_not_have_the_bare_name(fid_weights: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    save_file(torch.load(fid_weights, weights_only=True), path)
    ours = open_extractor(FeaturesConfig(weights=given_as(path)))
    assert ours.name == f"inception:{ours.digest[:8]}" and len(ours.digest) == 64
    with pytest.raises(ValueError, match=r"no safetensors file.*inception-2015-12-05-6726825d\.pth.*torch-fidelity"):
        open_extractor(FeaturesConfig(weights=given_as(fid_weights)))  # a pickle that a configuration names is not opened


def test_a_missing_file_is_named_with_where_it_is_published(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *args, **kwargs: pytest.fail("nobody asked for the network"))
    missing = r"alexnet-owt-7be5be79\.pth there \(published by torchvision as AlexNet_Weights.*lpips\.download=true"
    with pytest.raises(ValueError, match=missing):
        open_lpips(FeaturesConfig(name="alex"))
    with pytest.raises(ValueError, match=r"my\.lpips: .*my\.lpips\.weights\.path is empty.*vgg16-397923af\.pth"):
        open_lpips(FeaturesConfig(name="vgg"), field="my.lpips")
    with pytest.raises(ValueError, match=r"no file '/nowhere/i\.safetensors'.*inception_v3_google-0cc3c7bd\.pth"):
        open_extractor(FeaturesConfig(name="inception_v3", weights=WeightsFile(path="/nowhere/i.safetensors")))


def test_the_network_is_used_only_when_asked_for_and_once(
    published: Path, fid_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a file URL in the place of the publisher's: torch's own download, with its check of the digest."""
    published.unlink()
    here = replace(PUBLISHED["inception"], url=fid_weights.as_uri())
    monkeypatch.setitem(PUBLISHED, "inception", here)
    with pytest.raises(ValueError, match=r"features\.download=true"):
        open_extractor(FeaturesConfig())
    assert open_extractor(FeaturesConfig(download=True)).name == "inception"
    assert sha256(published) == here.sha256
    assert open_extractor(FeaturesConfig()).name == "inception"  # what lies in the cache needs no network
    monkeypatch.setitem(PUBLISHED, "inception", replace(here, sha256="0" * 64))
    with pytest.raises(ValueError, match=f"its SHA-256 is {here.sha256}, the published one's begins with 00000000"):
        open_extractor(FeaturesConfig())
    published.unlink()
    with pytest.raises(RuntimeError, match="hash"):
        open_extractor(FeaturesConfig(download=True))
    assert not published.exists()


def test_a_file_of_another_layout_is_refused(fid_weights: Path, tmp_path: Path) -> None:
    tensors = torch.load(fid_weights, weights_only=True)
    for change, message in (
        ({"Mixed_7c.branch_pool.conv.weight": None}, r"1 tensors are missing, such as Mixed_7c\.branch_pool\.conv\.weight"),
        ({"fc.weight": None}, r"no tensor fc\.weight"),
        ({"fc.bias": torch.zeros(3)}, r"head\.bias is \(3,\), not \(1008,\)"),
    ):
        path = tmp_path / "changed.safetensors"
        save_file({name: tensor for name, tensor in (tensors | change).items() if tensor is not None}, path)
        with pytest.raises(ValueError, match=rf"weights\.path: .*{message}.*torch-fidelity"):
            open_extractor(FeaturesConfig(weights=given_as(path)))


def test_names_in_the_wrong_place() -> None:
    with pytest.raises(ValueError, match="compares pictures by LPIPS"):
        open_extractor(FeaturesConfig(name="alex"))
    with pytest.raises(ValueError, match="alex, vgg or squeeze, not in inception"):
        open_lpips(FeaturesConfig())
    with pytest.raises(ValueError, match=r"features\.bundle is empty"):
        open_extractor(FeaturesConfig(name="classifier"))


def torchvisions(backbone: Backbone) -> nn.Module:
    """The layers below LPIPS with random weights, under torchvision's names."""
    net: nn.Module = {"alex": models.alexnet, "vgg": models.vgg16, "squeeze": models.squeezenet1_1}[backbone](weights=None)
    net.classifier = nn.Identity()  # 90 % of the file, and not used
    net.load_state_dict(lively(net))
    return net.eval()


def by_hand(backbone: Backbone, net: nn.Module, one: Tensor, other: Tensor) -> Tensor:
    """LPIPS as in the paper's eq. 1, with the heads that the package has."""
    heads = lpips_net(backbone).state_dict()
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    levels = []
    for x in (one, other):
        x, found = (x - shift[:, None, None]) / scale[:, None, None], []
        for index, layer in enumerate(net.features[: RELUS[backbone][-1] + 1]):  # type: ignore[index]
            x = layer(x)
            if index in RELUS[backbone]:
                found.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        levels.append(found)
    pairs = zip(*levels, strict=True)
    per_level = [F.conv2d((a - b).square(), heads[f"lin{level}.model.1.weight"]) for level, (a, b) in enumerate(pairs)]
    return torch.stack([level.mean((1, 2, 3)) for level in per_level]).sum(0)


@pytest.fixture(scope="module")
def squeeze() -> Lpips:
    return Lpips("squeeze", torchvisions("squeeze").state_dict(), published=False)


@pytest.mark.parametrize("backbone", ["alex", "squeeze", "vgg"])
def test_lpips_is_the_papers(backbone: Backbone, tmp_path: Path) -> None:
    net = torchvisions(backbone)
    path = tmp_path / f"{backbone}.safetensors"
    save_file(net.state_dict(), path)
    distance = open_lpips(FeaturesConfig(name=backbone, weights=given_as(path)))
    assert distance.name == f"{backbone}:{distance.digest[:8]}" and not distance.published
    one, other = noise(2, 40), noise(2, 40, seed=1)
    with torch.inference_mode():
        expected = by_hand(backbone, net, one, other)
    assert float(expected.min()) > 1e-3
    assert torch.allclose(distance(one, other).float(), expected, rtol=1e-4)


def test_the_published_file_holds_what_lpips_wants() -> None:
    """The fixtures above leave torchvision's classifiers out; their other names are those of the whole networks."""
    with torch.device("meta"):
        whole = {"alex": models.alexnet(), "vgg": models.vgg16(), "squeeze": models.squeezenet1_1()}
    for backbone, net in whole.items():
        shapes = {name: tensor.shape for name, tensor in net.state_dict().items() if name.startswith("features.")}
        net.classifier = nn.Identity()
        assert shapes == {name: tensor.shape for name, tensor in net.state_dict().items()}
        assert PUBLISHED[backbone].sha256 in PUBLISHED[backbone].file and len(PUBLISHED[backbone].sha256) == 8


def test_the_published_alexnet_has_the_bare_name(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = cache / "alexnet-owt-7be5be79.pth"
    torch.save(torchvisions("alex").state_dict(), path)
    monkeypatch.setitem(PUBLISHED, "alex", replace(PUBLISHED["alex"], sha256=sha256(path)[:8]))
    distance = open_lpips(FeaturesConfig(name="alex"))
    assert distance.published and distance.name == "alex"


@pytest.mark.parametrize("known", [False, True])
def test_a_pickle_is_not_run(cache: Path, monkeypatch: pytest.MonkeyPatch, known: bool) -> None:
    """Not even one with the published digest; another one is not so much as looked into."""

    class Touch:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (cache / "touched",)

    path = cache / PUBLISHED["alex"].file
    torch.save({"features.0.weight": Touch()}, path)
    if known:
        monkeypatch.setitem(PUBLISHED, "alex", replace(PUBLISHED["alex"], sha256=sha256(path)))
    with pytest.raises(pickle.UnpicklingError if known else ValueError, match="(?i)weights.only" if known else "its SHA-256 is"):
        open_lpips(FeaturesConfig(name="alex"))
    assert not (cache / "touched").exists()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([32, 40, 47]))
def test_lpips_is_symmetric_and_nothing_between_equal_pictures(squeeze: Lpips, seed: int, size: int) -> None:
    one, other = noise(1, size, seed), noise(1, size, seed + 1)
    assert float(squeeze(one, one)) == 0
    assert float(squeeze(one, other)) == pytest.approx(float(squeeze(other, one)), rel=1e-5)
    assert float(squeeze(one, other)) > 0


def test_shared_pictures_are_looked_at_once_and_compared_alike(squeeze: Lpips, monkeypatch: pytest.MonkeyPatch) -> None:
    images = noise(10, 33)
    pairs = torch.triu_indices(10, 10, 1).T
    direct = squeeze(images[pairs[:, 0]], images[pairs[:, 1]])
    seen = []
    squeeze.net.net.register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
    assert torch.allclose(squeeze.between(images, pairs), direct, rtol=1e-5)
    assert sum(seen) == 10
    assert torch.allclose(squeeze.between(images, torch.tensor([[0, 1], [2, 3]])), direct[[0, 17]], rtol=1e-5)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 3, 16, 16), "32 pixels a side"),
        (torch.full((1, 3, 40, 40), torch.nan), "not finite"),
        (torch.full((1, 3, 40, 40), 255.0), r"in \[-1, 1\], not in \[255, 255\]"),
        (torch.zeros(1, 1, 40, 40), r"\(B, 3, H, W\)"),
        (torch.zeros(1, 3, 40, 40, dtype=torch.uint8), "floats"),
    ],
)
def test_what_are_no_pictures_is_refused(squeeze: Lpips, images: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        squeeze(torch.zeros(1, 3, 40, 40), images)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    run = preset("classifier:tiny", data={"size": 32, "domains": ("faces",)}, model={"width": 16, "features": 8})
    domains = Domains(("faces",), attributes=("Male", "Young", "Smiling"))
    torch.manual_seed(0)
    return bundles.write(tmp_path_factory.mktemp("bundle") / "classifier", run, domains, build(run, domains).state_dict())


def test_a_classifiers_bundle_describes_pictures_and_answers_its_questions(classifier: Bundle) -> None:
    ours = open_extractor(FeaturesConfig(name="classifier", bundle=str(classifier.path)))
    assert ours.name == f"classifier:{classifier.digest[:8]}" and ours.digest == classifier.digest
    assert (ours.questions, ours.classes, ours.features) == (("Male", "Young", "Smiling"), 2, 8)
    images = noise(3, 32)
    model: Any = classifier.build().eval()
    logits, features = answer(model, images)
    assert torch.equal(ours.describe(images), features)
    said = ours.probabilities(images)
    assert torch.allclose(said[..., 1].logit().float(), logits, atol=1e-5) and torch.allclose(
        said.sum(2), torch.ones(3, 3).double()
    )
    larger = ours.describe(F.interpolate(images, (64, 64), mode="nearest"))
    assert larger.shape == features.shape


def test_a_bundle_that_tells_nothing_is_refused(tmp_path: Path) -> None:
    small = {"width": 4, "mlp_width": 8, "critic_width": 4, "content_blocks": 1, "generator_blocks": 1}
    run = preset("munit:tiny", data={"size": 32, "domains": ("a", "b")}, model={"width": small["width"]})
    domains = Domains(("a", "b"))
    bundle = bundles.write(tmp_path / "munit", run, domains, build(run, domains).state_dict())
    with pytest.raises(ValueError, match="munit.*tells no attributes"):
        ByClassifierBundle(bundle)


def test_every_published_file_says_its_digest() -> None:
    assert set(extractors.PUBLISHED) == {"inception", "inception_v3", "alex", "vgg", "squeeze"}
    for known in PUBLISHED.values():
        assert known.sha256[:8] in known.file and known.url.endswith(known.file)
