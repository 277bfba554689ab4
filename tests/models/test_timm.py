"""Networks of timm, which imports torchvision: tested where that does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lifelong import models
from lifelong.errors import InputError
from lifelong.experiments.recipe import recipe
from lifelong.experiments.run import run

try:
    import timm
except (ImportError, RuntimeError):  # a torchvision of another build of PyTorch raises the latter
    pytest.skip("timm is not to be had, or its torchvision does not go with this PyTorch", allow_module_level=True)

CREATE = timm.create_model


@pytest.fixture(autouse=True)
def drawn_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are drawn: tests download nothing."""

    def create(name: str, pretrained: bool, **more: Any) -> nn.Module:
        assert pretrained
        torch.manual_seed(0)
        made: nn.Module = CREATE(name, pretrained=False, **more)
        return made

    monkeypatch.setattr(timm, "create_model", create)


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224", "convnext_atto", "efficientnet_lite0"])
@pytest.mark.parametrize("side", [64, None])
def test_features_are_those_of_timm(name: str, side: int | None) -> None:
    settings = {} if side is None else {"image_size": side}
    trunk = models.trunk(f"timm:{name}", settings, (3, 32, 32), 0).eval()
    own = timm.create_model(name, pretrained=True, **({"img_size": side} if side and "vit" in name else {})).eval()
    own.reset_classifier(0)
    about = timm.data.resolve_model_data_config(own)
    images = torch.rand(2, 3, 32, 32)
    size = side or about["input_size"][-1]
    resized = nn.functional.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True)
    mean, std = (torch.tensor(about[each]).view(3, 1, 1) for each in ("mean", "std"))
    with torch.no_grad():
        torch.testing.assert_close(trunk(images), own((resized - mean) / std), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("learn", [{"learn": "all"}, {"learn": "head"}, {"learn": "lora", "adapted": ["conv2"]}])
def test_they_learn_a_stream(learn: dict[str, Any]) -> None:
    made = {"stream": "split", "tasks": 2, "classes_per_task": [2, 2], "scenario": "task", "train_samples": 8}
    network = {"name": "timm:resnet10t", "image_size": 32, **learn}
    result = run(recipe({**made, "method": "magmax", "model": network, "epochs": 1, "threads": 1, "device": "cpu"}))
    assert len(result["accuracy"]) == 3


def test_an_unknown_name_gets_the_closest() -> None:
    with pytest.raises(InputError, match="timm has no model 'resnet1', did you mean 'resnet"):
        models.trunk("timm:resnet1", {}, (3, 32, 32), 0)
