"""What a CausalLMModule leaves on disk: checkpoints that resume, small ones too, and a final model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from lighter_freezers import (
    CausalLMModule,
    Freezer,
    GenerationDataModule,
    GradualUnfreezing,
    LoraPhases,
    LoraRankScheduler,
    apply_lora,
    set_layer_lora_rank,
)
from lighter_freezers.experiments.causal_models import load_evaluated
from lighter_freezers.experiments.data.prompt_tokenizer import prompt_tokenizer
from tests.experiments.training.causal_lms import (
    ARCHITECTURES,
    causal_lm,
    module,
    rows,
    saved_model,
    training_batch,
    training_loader,
)
from tests.lab import NAMESPACES, recorder, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]
LONE = "pytorch_lightning"
BOTH = {"r": 4, "lora_alpha": 8, "target": "both"}


@torch.no_grad()
def logits(network: Any) -> torch.Tensor:
    return network.eval()(input_ids=training_batch(rows(4))["input_ids"]).logits


def callbacks() -> list[Any]:
    """Ranks, phases and a freezer: all that a resumed run has to take up."""
    return [
        LoraRankScheduler(
            [{"step": 2, "rank_pattern": {"attn.*": 2}}, {"step": 6, "rank_pattern": {"mlp.0": 6}}]
        ),
        LoraPhases("both->mlp->attn", phase1_end=3, phase2_end=6),
        Freezer(patterns="layers:mlp.2", until_step=5),
    ]


@pytest.mark.parametrize("saves_frozen", [True, False])
def test_a_resumed_run_is_the_uninterrupted_one(saves_frozen: bool, tmp_path: Path) -> None:
    """Bit for bit, rates and ranks included, also if the checkpoint has no frozen weight."""
    options = {"save_frozen_weights": saves_frozen, "learning_rate": 0.02, "warmup_steps": 2}
    path = saved_model(tmp_path / "model")
    whole, resumed = (CausalLMModule(path, lora=BOTH, **options) for _ in range(2))
    saver = ModelCheckpoint(tmp_path / "saved", "{step}", every_n_train_steps=4, save_top_k=-1)
    run = trainer(LONE, callbacks=[*callbacks(), saver], max_epochs=2, enable_checkpointing=True)
    run.fit(whole, training_loader())
    rest = trainer(LONE, callbacks=callbacks(), max_epochs=2)
    rest.fit(resumed, training_loader(), ckpt_path=tmp_path / "saved" / "step=4.ckpt")

    assert rest.global_step == 8
    expected = whole.state_dict()
    assert expected.keys() == resumed.state_dict().keys()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.state_dict().items())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_checkpoint_without_frozen_weights_is_small(architecture: str, tmp_path: Path) -> None:
    """Only what trains; it is loaded strictly all the same."""
    sizes, keys = {}, {}
    for saves_frozen in (True, False):
        model = module(network=causal_lm(architecture), lora=BOTH, save_frozen_weights=saves_frozen)
        run = trainer(LONE)
        run.fit(model, training_loader())
        file = tmp_path / f"{saves_frozen}.ckpt"
        run.save_checkpoint(file, weights_only=True)
        sizes[saves_frozen] = file.stat().st_size
        keys[saves_frozen] = set(torch.load(file, weights_only=True)["state_dict"])
        twin = module(network=causal_lm(architecture), lora=BOTH, save_frozen_weights=saves_frozen)
        trainer(LONE).validate(twin, training_loader(), ckpt_path=file, verbose=False)
        assert torch.equal(logits(twin.network), logits(model.network))

    assert keys[False] == {name for name in keys[True] if ".lora_" in name}
    assert sizes[False] < 0.7 * sizes[True]

    checkpoint = torch.load(tmp_path / "False.ckpt", weights_only=True)
    del checkpoint["state_dict"][sorted(keys[False])[0]]
    torch.save(checkpoint, tmp_path / "broken.ckpt")
    with pytest.raises(RuntimeError, match="Missing key.*lora_A"):
        trainer(LONE).validate(
            module(network=causal_lm(architecture), lora=BOTH, save_frozen_weights=False),
            training_loader(),
            ckpt_path=tmp_path / "broken.ckpt",
            verbose=False,
        )


def test_a_merged_weight_is_saved_all_the_same(tmp_path: Path) -> None:
    """It is no longer that of the base model."""
    model = module(lora=BOTH, save_frozen_weights=False)
    run = trainer(LONE)
    run.fit(model, training_loader())
    set_layer_lora_rank(model.network, "mlp.0", 0)
    run.save_checkpoint(tmp_path / "merged.ckpt")
    twin = module(lora=BOTH, save_frozen_weights=False)
    trainer(LONE).validate(twin, training_loader(), ckpt_path=tmp_path / "merged.ckpt", verbose=False)

    assert torch.equal(logits(twin.network), logits(model.network))


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_the_final_model_loads_in_stock_peft(namespace: str, tmp_path: Path) -> None:
    """The adapter with the ranks that layers have now, and the tokenizer; the same bits."""
    from peft import AutoPeftModelForCausalLM, PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = saved_model(tmp_path / "model")
    model = module(namespace, path, lora=BOTH, learning_rate=0.05, save_final_model=True)
    run = trainer(namespace, callbacks=callbacks(), max_epochs=2, default_root_dir=tmp_path)
    run.fit(model, training_loader())
    folder = tmp_path / "final_model"
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(path), folder)

    assert torch.equal(logits(loaded), logits(model.network))
    assert not torch.equal(logits(loaded), logits(causal_lm()))
    assert torch.equal(logits(AutoPeftModelForCausalLM.from_pretrained(folder)), logits(model.network))
    assert AutoTokenizer.from_pretrained(folder)("abc").input_ids == [66, 67, 68]
    ours, tokenizer = load_evaluated(folder)
    assert torch.equal(logits(ours), logits(model.network))
    assert tokenizer("abc").input_ids == [66, 67, 68]

    trainer(namespace, default_root_dir=tmp_path).fit(model.train(), training_loader())
    assert (tmp_path / "final_model_1" / "adapter_model.safetensors").exists()  # nothing is overwritten


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora", "orthogonal"])
def test_the_final_model_is_right_whatever_the_factors_began_as(init: str, tmp_path: Path) -> None:
    """Some initialisations change the base; stock PEFT loads the adapter on the base as it was."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    path = saved_model(tmp_path / "model")
    model = module(LONE, path, lora={**BOTH, "init_lora_weights": init}, save_final_model=True)
    ranks = LoraRankScheduler([{"step": 1, "rank_pattern": {"attn.*": 1, "mlp.0": 0}}])
    trainer(LONE, callbacks=[ranks], max_epochs=2, default_root_dir=tmp_path).fit(model, training_loader())
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(path), tmp_path / "final_model")

    assert not torch.equal(logits(model.network), logits(causal_lm()))
    torch.testing.assert_close(logits(loaded), logits(model.network), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_the_final_model_is_the_best_of_all_stages(tmp_path: Path) -> None:
    """Where `restore_best` asks for it at the end: not the adapter of the last step."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    path = saved_model(tmp_path / "model")
    model = module(LONE, path, lora=BOTH, learning_rate=0.05, save_final_model=True)
    stages = [{"thaw": "*", "until_epoch": 1}, {"desc": "the same again"}]
    best = {"monitor": "score", "mode": "max", "at_end": True}

    def score(fit: Any, trained: Any) -> None:
        trained.log("score", torch.tensor(-float(fit.current_epoch)), on_step=False, on_epoch=True)

    at_ends = recorder(LONE, lambda _, trained: logits(trained.network).clone(), "on_train_epoch_end")
    callbacks = [GradualUnfreezing(stages=stages, restore_best=best), recorder(LONE, score), at_ends]
    trainer(LONE, callbacks=callbacks, max_epochs=3, default_root_dir=tmp_path).fit(model, training_loader())

    final = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(path), tmp_path / "final_model")
    assert torch.equal(logits(final), at_ends.seen[0])
    assert not torch.equal(at_ends.seen[2], at_ends.seen[0])


def test_the_final_model_without_lora_is_a_whole_one(tmp_path: Path) -> None:
    """As transformers saves it."""
    from transformers import AutoModelForCausalLM

    model = CausalLMModule(saved_model(tmp_path / "model"), save_final_model=True)
    trainer(LONE, default_root_dir=tmp_path).fit(model, training_loader())
    loaded, tokenizer = load_evaluated(tmp_path / "final_model")

    assert torch.equal(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path / "final_model")), logits(model.network)
    )
    assert torch.equal(logits(loaded), logits(model.network))
    assert tokenizer("abc").input_ids == [66, 67, 68]
    with pytest.raises(ValueError, match="no adapter_config.json, so it is not a PEFT adapter"):
        load_evaluated(tmp_path / "final_model", "base")


def test_the_final_model_has_the_tokenizer_that_was_trained_for_it(tmp_path: Path) -> None:
    """A byte-level BPE of ours, as a tokenizer of transformers that gives the same ids."""
    data = GenerationDataModule("samsum", "fixture", vocab_size=300, max_length=400, cache_dir=tmp_path)
    data.setup("fit")
    model = module(LONE, network=causal_lm(num_positions=400, vocab_size=300), save_final_model=True)
    trainer(LONE, default_root_dir=tmp_path, max_epochs=-1, max_steps=1).fit(model, data)
    saved = prompt_tokenizer(tmp_path / "final_model")

    texts = ["", "<eos>", "tab\t cr\r\n nul\0", "é 漢 😀 \u2028 \ufeff", " leading , trailing  "]
    assert saved.encode_all(texts) == data.tokenizer.encode_all(texts)
    assert [saved.decode(ids) for ids in saved.encode_all(texts)] == texts
    assert saved.begins_with == data.tokenizer.begins_with == (saved.eos_id,)


def test_an_adapter_that_would_not_be_the_model_is_not_written(tmp_path: Path, caplog: Any) -> None:
    """A run that is over does not fail for it; the log says what to do."""
    import logging

    network = apply_lora(causal_lm(), BOTH)
    network.lm_head.weight.requires_grad_(True)
    logging.getLogger("lighter_freezers").addHandler(caplog.handler)
    try:
        trainer(LONE, default_root_dir=tmp_path).fit(
            module(network=network, save_final_model=True), training_loader()
        )
    finally:
        logging.getLogger("lighter_freezers").removeHandler(caplog.handler)

    assert "was not saved" in caplog.text
    assert "Base weights train or trained: lm_head.weight" in caplog.text
    assert not (tmp_path / "final_model").exists()


def test_an_adapter_that_names_no_base_needs_one(tmp_path: Path) -> None:
    """Given to `network`, a model has no name."""
    module_of = module(lora=BOTH, save_final_model=True)
    trainer(LONE, default_root_dir=tmp_path).fit(module_of, training_loader())
    with pytest.raises(ValueError, match="does not name its base model: give it"):
        load_evaluated(tmp_path / "final_model")
    loaded, _ = load_evaluated(tmp_path / "final_model", saved_model(tmp_path / "model"))
    assert torch.equal(logits(loaded), logits(module_of.network))
