"""Operations as they are read: from lists, YAML and JSON, with errors that say where and what there is."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from lighter_freezers.layers.operations import Operation, read_operations

FREEZE = {"name": "freeze_layer", "value": "wte", "trigger_loss": math.inf, "max_wait_iters": 0}
RANK = {"name": "set_layer_lora_rank", "value": ["attn.3", 16], "trigger_loss": 2.8, "max_wait_iters": 1000}


def read(entry: dict[str, Any]) -> Operation:
    return read_operations([entry], "val/loss")[0]


def test_an_entry_as_the_guide_writes_it() -> None:
    """Name, value, loss and wait; `reevaluate` and `desc` may be left out."""
    operation = read(RANK)

    assert (operation.name, operation.value, operation.reevaluate) == (
        "set_layer_lora_rank",
        ("attn.3", 16),
        False,
    )
    assert (operation.trigger.trigger_loss, operation.trigger.max_wait) == (2.8, 1000)
    assert str(operation) == "set_layer_lora_rank attn.3 16"


@pytest.mark.parametrize("is_wrapped", [False, True])
@pytest.mark.parametrize("suffix", [".json", ".yaml", ".yml"])
def test_a_file_gives_what_the_list_gives_and_is_not_touched(
    suffix: str, is_wrapped: bool, tmp_path: Path
) -> None:
    """A list, or a mapping with `operations`; JSON's Infinity and YAML's .inf are one number."""
    entries = [
        FREEZE,
        RANK,
        {"name": "reset_lr_schedule", "value": None, "trigger_loss": 2.0, "desc": "again"},
    ]
    text = json.dumps({"operations": entries} if is_wrapped else entries)
    path = tmp_path / f"schedule{suffix}"
    path.write_text(text if suffix == ".json" else text.replace("Infinity", ".inf"))
    path.chmod(0o444)
    before = path.stat()
    read_from_file = read_operations(str(path), "val/loss")

    expected = read_operations(entries, "val/loss")
    assert [(str(o), o.trigger, o.desc) for o in read_from_file] == [
        (str(o), o.trigger, o.desc) for o in expected
    ]
    assert (path.stat().st_mtime_ns, path.stat().st_size) == (before.st_mtime_ns, before.st_size)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"name": "freeze_layr"},
            ValueError,
            r"operations\[0\]: unknown operation 'freeze_layr'. Closest: freeze_layer",
        ),
        ({"name": "change_lr"}, ValueError, "unknown operation 'change_lr'. Closest: .*scale_lr"),
        ({"name": None}, ValueError, "unknown operation None"),
        ({"value": 3}, TypeError, r"operations\[0\].value \(freeze_layer\) must be a layer such as 'attn.2'"),
        ({"value": None}, TypeError, "must be a layer"),
        ({"trigger_loss": "2.5"}, TypeError, "trigger_loss must be a number. Got '2.5'"),
        ({"trigger_loss": "inf"}, TypeError, r"write \.inf in YAML"),
        ({"trigger_loss": math.nan}, ValueError, "not NaN"),
        ({"trigger_loss": -math.inf, "max_wait_iters": None}, ValueError, "this would never happen"),
        ({"max_wait_iters": 1e3}, TypeError, "max_wait_iters must be a whole number"),
        ({"max_wait_iters": -1}, ValueError, "counts from 0"),
        ({"trigger_loss": None, "max_wait_iters": None}, ValueError, r"does not say when. Give trigger_loss"),
        ({"reevaluate": "yes"}, TypeError, "reevaluate must be true or false"),
        ({"desc": 3}, TypeError, "desc must be a text"),
        ({"trigger": 3}, ValueError, r"has unknown keys \['trigger'\]. Keys: name, value"),
        ({"completed": True}, ValueError, "The checkpoint stores what is done: remove 'completed'"),
        ({"name": "set_layer_lora_rank", "value": "attn.3"}, TypeError, r"must be \[layer, rank\]"),
        ({"name": "set_layer_lora_rank", "value": ["attn.3", "8"]}, TypeError, "Remove the quotes"),
        ({"name": "set_attn_lora_rank", "value": -1}, ValueError, "counts from 0"),
        ({"name": "set_attn_lora_rank", "value": None}, TypeError, "must be a LoRA rank"),
        ({"name": "set_lr", "value": "5e-5"}, TypeError, r"YAML reads 5e-5 as a string: write 5\.0e-5"),
        ({"name": "set_lr", "value": 0}, ValueError, "above 0"),
        ({"name": "reset_lr_schedule", "value": 1}, TypeError, "takes no value"),
    ],
)
def test_what_cannot_be_meant_is_an_error(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    """When the config is read, with the place and the nearest names."""
    with pytest.raises(error, match=message):
        read({**FREEZE, **change})


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ([], ValueError, "operations is empty"),
        ({"name": "set_lr"}, TypeError, "must be a list of operations"),
        (["freeze"], TypeError, r"operations\[0\] must be a mapping"),
        ("missing.yaml", ValueError, "there is no file 'missing.yaml'"),
        (3, TypeError, "must be a list"),
    ],
)
def test_what_is_no_list_is_an_error(source: Any, error: type[Exception], message: str) -> None:
    """Nor is a file that is not there."""
    with pytest.raises(error, match=message):
        read_operations(source, "val/loss")


def test_an_error_in_a_file_names_the_file(tmp_path: Path) -> None:
    """And the entry in it."""
    path = tmp_path / "plan.json"
    path.write_text(json.dumps([RANK, {**FREEZE, "value": 1}]))

    with pytest.raises(TypeError, match=r"plan\.json: operations\[1\]\.value"):
        read_operations(path, "val/loss")
    with pytest.raises(ValueError, match=r"neither \.yaml"):
        read_operations(_touched(tmp_path / "plan.txt"), "val/loss")


@pytest.mark.parametrize("suffix", [".json", ".yaml"])
def test_a_file_with_a_byte_order_mark_is_read_and_a_broken_one_is_named(suffix: str, tmp_path: Path) -> None:
    """The mark is what Windows editors write; what is broken is neither JSON nor YAML, or not UTF-8."""
    path = tmp_path / f"plan{suffix}"
    path.write_text(json.dumps([RANK]), encoding="utf-8-sig")
    assert [operation.name for operation in read_operations(path, "val/loss")] == ["set_layer_lora_rank"]

    for broken in (b"[{", "Übung".encode("latin-1")):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=rf"operations: .*plan\{suffix}' is not {suffix[1:].upper()}: "):
            read_operations(path, "val/loss")


def _touched(path: Path) -> str:
    path.touch()
    return str(path)
