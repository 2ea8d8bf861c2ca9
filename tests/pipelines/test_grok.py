"""The training of the modular adder can be killed anywhere; what it writes can be loaded."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from pipelines import addition
from pipelines.addition import Recipe as CoderRecipe
from pipelines.addition import print_report, train_coder
from pipelines.grok import Recipe, asdict, build_model, train
from pipelines.grok_card import export
from pipelines.verify import verify
from sae.base.errors import UserError
from sae.base.files import sha256_file
from sae.coders import coder_hash
from sae.lm.modular_addition import WEIGHTS, addition_folder, load_modular_addition
from sae.metrics.addition import addition_report
from tests.damage import Damage


def recipe(work: Path, epochs: int) -> Recipe:
    return Recipe(
        work=str(work), epochs=epochs, p=11, d_model=16, heads=2, d_mlp=32, checkpoint_every=7
    )


def test_a_training_goes_on_where_it_was(tmp_path: Path) -> None:
    whole = build_model(recipe(tmp_path / "a", 20))
    train(recipe(tmp_path / "a", 20), whole)
    first = recipe(tmp_path / "b", 14)
    train(first, build_model(first))
    second = build_model(replace(first, seed=5))  # its weights come from the checkpoint
    assert train(replace(first, epochs=20), second) == 20
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


def test_a_checkpoint_of_another_recipe_is_not_gone_on_with(tmp_path: Path) -> None:
    """Its test pairs would be pairs that the model was trained on."""
    first = recipe(tmp_path, 7)
    train(first, build_model(first))
    other = replace(first, seed=1)
    with pytest.raises(UserError, match="another recipe \\(its seed differ"):
        train(other, build_model(other))


def test_what_is_exported_is_the_model_with_its_card(tmp_path: Path) -> None:
    small = recipe(tmp_path / "work", 7)
    net = build_model(small)
    train(small, net)
    numbers = export(tmp_path / "out", net, asdict(small), 7)
    loaded = load_modular_addition(tmp_path / "out")
    assert torch.equal(loaded.logits(net.grid), net.logits(net.grid))
    text = (tmp_path / "out" / "README.md").read_text()
    assert numbers["hash"] in text
    assert "python -m pipelines.grok --epochs 7 --seed 0" in text


def test_a_coder_of_the_embedded_adder_is_measured() -> None:
    """A short training: the adder still adds with the coder in place, by the same frequencies."""
    net = load_modular_addition()
    coder = train_coder(net, CoderRecipe(steps=300))
    report = addition_report(coder, net)
    losses = report["losses"]["spliced"]
    assert len(report["key_frequencies"]) == 4
    assert losses["restricted"] < losses["excluded"]
    assert report["controls"]["random_directions"]["coverage"] == 0
    console = Console(record=True, width=160)
    print_report(report, console)
    assert "Key frequencies and latents" in console.export_text()


def test_the_report_says_what_it_is_of_and_is_sealed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["addition", "--out", str(tmp_path), "--steps", "20"])
    addition.main()
    said = json.loads((tmp_path / "addition.json").read_text())["provenance"]
    assert said["coder"]["hash"] == coder_hash(tmp_path / "coder")
    assert said["model"]["hash"] == sha256_file(addition_folder() / WEIGHTS)
    assert verify(tmp_path) == []
    for name in ("addition.json", "coder/cfg.json"):
        with Damage(tmp_path / name, "flip", 0.5):
            assert [problem for problem in verify(tmp_path) if name in problem]


@pytest.mark.slow
def test_every_key_frequency_of_the_embedded_adder_is_covered() -> None:
    net = load_modular_addition()
    report = addition_report(train_coder(net, CoderRecipe()), net)
    for row in report["key_frequencies"]:
        assert row["best_preactivation_share"] >= 0.9, row
        assert row["best_activation_share"] >= 0.9, row
    assert report["controls"]["random_directions"]["coverage"] == 0
