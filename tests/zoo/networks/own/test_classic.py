"""AlexNet and GoogLeNet compute what torchvision's do."""

from __future__ import annotations

import warnings

import pytest
import torch
import torchvision

from zoo.base.errors import UsageError
from zoo.networks.registry import build, classifier_names, input_for
from zoo.networks.weights.first_weights import load_weights


@pytest.mark.parametrize(
    ("name", "parameters"),
    # torchvision's records: AlexNet_Weights and GoogLeNet_Weights, meta["num_params"]
    [("alexnet", 61_100_840), ("googlenet", 6_624_904)],
)
def test_parameters_are_torchvisions(name, parameters):
    model = build(name, classes=1000, channels=3)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"] == parameters


def _torchvisions_googlenet(classes: int) -> torch.nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(3)
        # As torchvision builds it for its weights: two auxiliary classifiers, and inputs normalised anew.
        return torchvision.models.GoogLeNet(num_classes=classes, transform_input=True, init_weights=True).eval()


def test_googlenet_takes_torchvisions_file_with_its_own_normalisation(tmp_path):
    theirs = _torchvisions_googlenet(3)
    torch.save(theirs.state_dict(), tmp_path / "googlenet.pth")
    model = build("googlenet", classes=3, channels=3).eval()
    load_weights(model, "googlenet", str(tmp_path / "googlenet.pth"))
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    spec = input_for("googlenet", colour="RGB", size=None, photographs=True)
    assert (spec.size, spec.resize.edge) == ((224, 224), 256)

    def normalised(mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
        return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]

    imagenet = torchvision.models.GoogLeNet_Weights.DEFAULT.transforms()
    with torch.inference_mode():
        expected = theirs(normalised(tuple(imagenet.mean), tuple(imagenet.std)))
        found = model(normalised(spec.mean, spec.std))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert expected.std() > 0


def test_alexnet_is_torchvisions():
    torch.manual_seed(3)
    theirs = torchvision.models.alexnet(num_classes=3).eval()
    model = build("alexnet", classes=3, channels=3).eval()
    model.load_state_dict(theirs.state_dict(), strict=True)
    images = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(model(images), theirs(images))
    spec = input_for("alexnet", colour="RGB", size=None, photographs=True)
    assert (spec.size, spec.resize.edge, spec.mean) == ((224, 224), 256, (0.485, 0.456, 0.406))


@pytest.mark.parametrize(
    ("name", "arguments", "head"), [("alexnet", {"dense": 8}, "classifier.6"), ("googlenet", {}, "fc")]
)
def test_colours_and_labels(name, arguments, head):
    model = build(name, classes=4, channels=1, arguments=arguments).eval()
    assert classifier_names(model) == [head]
    assert model(torch.zeros(2, 1, 64, 64)).shape == (2, 4)
    model.reset_classifier(6)
    assert model.get_classifier() is model.get_submodule(head)
    assert model(torch.zeros(2, 1, 64, 64)).shape == (2, 6)
    assert all(m.p in (0.2, 0.5) for m in model.modules() if isinstance(m, torch.nn.Dropout))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"dense": 0}, r"arguments\.dense: expected a whole number of at least 1, got 0"), ({"dens": 1}, "dens")],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(UsageError, match=message):
        build("alexnet", classes=2, channels=3, arguments=arguments)
