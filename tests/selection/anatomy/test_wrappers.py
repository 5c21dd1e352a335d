"""What is around a model does not change what its layers, embeddings and head are."""

from collections.abc import Callable

import accelerate
import peft
import pytest
import torch
import transformers
from lightning.fabric import Fabric
from torch import nn
from torch.optim.swa_utils import AveragedModel

from lighter_freezers.selection.anatomy import anatomy_of
from lighter_freezers.selection.layer_names import parameters_of_layer


class Kept(nn.Module):
    """A wrapper of the user, such as one that keeps an average: one child holds all."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner, self.decay = model, 0.9

    def forward(self, *inputs: torch.Tensor) -> object:
        return self.inner(*inputs)


def with_adapters(model: nn.Module) -> nn.Module:
    return peft.get_peft_model(
        model, peft.LoraConfig(target_modules=["query"], modules_to_save=["classifier"])
    )


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compiled": torch.compile,
    "parallel": nn.DataParallel,
    "average": AveragedModel,
    "user": Kept,
    "fabric": lambda model: Fabric(accelerator="cpu", devices=1).setup(model),
    "accelerate": lambda model: accelerate.Accelerator(cpu=True).prepare(model),
    "peft": with_adapters,
    "twice": lambda model: Kept(Fabric(accelerator="cpu", devices=1).setup(torch.compile(model))),
}


def bert() -> nn.Module:
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 32}
    return transformers.BertForSequenceClassification(transformers.BertConfig(num_hidden_layers=3, **sizes))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapper_is_seen_through(wrapper: str) -> None:
    """Blocks, both ends and addresses are those of the model inside."""
    wrapped = WRAPPERS[wrapper](bert())
    anatomy = anatomy_of(wrapped)
    ends = [name.rsplit(".", 2)[-2] for name in (anatomy.embeddings[0], anatomy.heads[-1])]

    assert [len(stack.blocks) for stack in anatomy.stacks] == [3]
    assert anatomy.stacks[0].path.endswith("bert.encoder.layer")
    assert (anatomy.others, anatomy.final_norms) == ((), ())
    assert ends[0] == "word_embeddings"
    assert any("classifier" in name for name in anatomy.heads)
    assert len(parameters_of_layer(wrapped, "block.-1")) == len(anatomy.blocks[-1])
    assert any("classifier" in name for name in parameters_of_layer(wrapped, "head"))
