"""Blocks, order and roles of some 400 models: rows written by hand, and forward passes."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from lighter_freezers.layers import freeze_first_n_layers
from lighter_freezers.selection.anatomy import Anatomy, anatomy_of
from lighter_freezers.selection.anatomy.addresses import stack_names
from lighter_freezers.selection.anatomy.tree import leading
from lighter_freezers.selection.layer_names import parameters_of_layer
from tests.zoo import drawn_libraries, drawn_models, more_models, transformers_models, vision_models
from tests.zoo.table import DOCS, REFUSED, main, row_of, rows

MODELS: Mapping[str, tuple[Callable[[], nn.Module], Any]] = {
    **vision_models.MODELS,
    **transformers_models.MODELS,
    **more_models.MODELS,
    **drawn_models.MODELS,
    **drawn_libraries.MODELS,
}
CORE = frozenset(
    [
        *("plain_teaching_gpt", "plain_module_dict", "plain_numbered", "plain_two_classes", "plain_moe"),
        *("plain_unet_lists", "plain_unet_attributes", "plain_unet_encoders_decoders", "plain_lstm"),
        *("plain_pairs_in_lists", "tv_mobilenet_v3_small", "tv_googlenet", "tv_fcn_resnet50", "lfm2", "esm"),
        *("drawn_reversed", "drawn_flamingo", "drawn_named", "drawn_streams", "drawn_tasks", "drawn_depth"),
        *("drawn_children", "drawn_unet_reversed", "drawn_exits", "drawn_experts", "drawn_nerf"),
        *("zamba2", "jamba", "clip", "qwen3_5", "wav2vec2_stable", "poolformer", "detr", "llava", "upernet"),
    ]
)
NO_FORWARD = frozenset(("xlstm", "nystromformer", "lxmert", "pvt", "glpn", "siglip2", "monai_swin_unetr"))
ROWS = rows()
WRITTEN_FOR = (5, 24)  # names of modules and of classes differ between versions of transformers
NAMES = [name if name in CORE else pytest.param(name, marks=pytest.mark.wide) for name in ROWS]


def _has_example(name: Any) -> bool:
    name = name if isinstance(name, str) else name.values[0]
    return name in MODELS and example_of(name) is not None


def _skip_where_it_cannot_be_built(name: str) -> None:
    if name not in MODELS:
        pytest.skip(f"{name}: its package is not installed")
    version = tuple(map(int, transformers.__version__.split(".")[:2]))
    is_of_transformers = getattr(MODELS[name][0], "__module__", "") != vision_models.__name__
    if (
        is_of_transformers
        and not name.startswith(("plain_", "drawn_", "monai_", "timm_", "tv_", "smp_"))
        and version < WRITTEN_FOR
    ):
        pytest.skip(f"{name}: written for transformers {'.'.join(map(str, WRITTEN_FOR))}, not {version}")


def _tensors(kind: str) -> Any:
    ids, side = {"input_ids": torch.arange(3, 11)[None]}, kind.removeprefix("img")
    others: dict[str, Any] = {
        "ids": ids,
        "ed": {**ids, "decoder_input_ids": torch.arange(3, 8)[None]},
        "wave": {"input_values": torch.zeros(1, 200)},
        "clip": {**ids, "pixel_values": torch.zeros(1, 3, 16, 16)},
        "ved": {"pixel_values": torch.zeros(1, 3, 16, 16), "decoder_input_ids": torch.arange(3, 8)[None]},
        "tokens": (torch.arange(6)[None],),
        "list64": ([torch.zeros(3, 64, 64)],),
    }
    return others.get(kind) or (
        {"pixel_values": torch.zeros(1, 3, int(side), int(side))} if side != kind else None
    )


def example_of(name: str) -> Any:
    """Arguments for a forward pass; None where the table has none."""
    given = MODELS[name][1]
    if name in NO_FORWARD or given is None:
        return None
    return _tensors(given) if isinstance(given, str) else (torch.zeros(given),)


def _addresses(anatomy: Anatomy) -> Iterator[tuple[str, tuple[str, ...]]]:
    """What `layers` prints for the last block of each stack, and what is in it."""
    count = Counter[str]()
    for stack, name in zip(anatomy.stacks, stack_names(anatomy), strict=True):
        count[name] += len(stack.blocks)
        yield f"{name}.block.{count[name] - 1}".lstrip("."), stack.blocks[-1]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_a_model_of_the_zoo(name: str) -> None:
    """It is read as the table says, a forward pass runs in that order, and each parameter has one place."""
    _skip_where_it_cannot_be_built(name)
    model = MODELS[name][0]()
    every = [each for each, _ in model.named_parameters()]
    anatomy = anatomy_of(model)

    assert row_of(name, anatomy, every) == ROWS[name]._replace(note="")
    groups = [*anatomy.blocks, anatomy.embeddings, anatomy.final_norms, anatomy.heads, anatomy.others]
    assert sorted(each for group in groups for each in group) == sorted(every)
    for address, block in _addresses(anatomy):
        assert set(parameters_of_layer(model, address, anatomy)) == set(block), address
    if ROWS[name].stacks == REFUSED:
        with pytest.raises(ValueError, match="blocks="):
            freeze_first_n_layers(model, 1)
    if (example := example_of(name)) is not None:
        assert anatomy_of(model, example=example) == anatomy


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in NAMES if _has_example(name)])
def test_a_row_agrees_with_a_forward_pass(name: str) -> None:
    """By hooks and the row alone: stacks hold what is called, between embeddings and norms or heads."""
    _skip_where_it_cannot_be_built(name)
    if ROWS[name].stacks == REFUSED:
        pytest.skip(f"{name}: it is refused")
    model, row = MODELS[name][0](), ROWS[name]
    first = _first_calls(model, example_of(name))
    trained = {
        each for each, module in model.named_modules() if each and any(True for _ in module.parameters())
    }
    others = {*row.embeddings.split(), *row.norms.split(), *row.heads.split()}
    spans = []
    for stack in row.stacks.split():
        path, count = stack.rpartition(":")[0].removeprefix("."), int(stack.rpartition(":")[2])
        inside = f"{path}." if path in dict(model.named_modules()) and path else path
        members: dict[str, int] = {}  # a block that is a list is not called itself
        for each, time in first.items():
            if each.startswith(inside) and each in trained and others.isdisjoint(leading(each)):
                members.setdefault(each[len(inside) :].partition(".")[0], time)
        times = sorted(members.values())
        assert len(times) >= count or name in ("monai_unet", "drawn_pix2pix"), stack  # recursions
        spans.append((times[0], times[-1]))
    for paths, is_placed in (
        (row.embeddings, lambda time: time < max(start for start, _ in spans)),
        (f"{row.norms} {row.heads}", lambda time: time > min(start for start, _ in spans)),
    ):
        for path in {*paths.split()} - {*row.tied.split()}:  # a tied weight runs at both ends
            called = [time for each, time in first.items() if each == path or each.startswith(f"{path}.")]
            assert not called or is_placed(min(called)), path


def _first_calls(model: nn.Module, example: Any) -> dict[str, int]:
    """Path of each module to the place of its first call among those of all modules."""
    first: dict[str, int] = {}

    def note(path: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            first.setdefault(path, len(first))

        return hook

    for path, module in model.named_modules():
        module.register_forward_pre_hook(note(path))
    with torch.no_grad():
        model.eval()
        model(**example) if isinstance(example, Mapping) else model(*example)
    return first


@pytest.mark.wide
def test_the_zoo_is_large_and_seldom_refused() -> None:
    """At least 150 models, and 95 of 100 read."""
    refused = [row.name for row in ROWS.values() if row.stacks == REFUSED]

    assert len(ROWS) >= 150
    assert len(refused) * 20 <= len(ROWS), refused


def test_the_page_of_the_zoo_is_made_from_its_table(tmp_path, monkeypatch) -> None:
    """`python -m tests.zoo.table` writes what stands in the docs."""
    written = DOCS.read_text()
    monkeypatch.setattr("tests.zoo.table.DOCS", tmp_path / "zoo.md")
    main()

    assert (tmp_path / "zoo.md").read_text() == written
