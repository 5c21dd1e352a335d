"""Rules over names select the parameters they say, on any model, wrapped or not, or complain."""

import random
import re
import warnings

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from lighter_freezers.selection.select import ParameterSelector, canonical_name


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 2, 1)
        self.norm = nn.BatchNorm1d(2)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(Block() for _ in range(12))
        self.head = nn.Linear(2, 2)


class Wrapper(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(5, 2)
        self.middle = nn.Linear(2, 2)
        self.lm_head = nn.Linear(2, 5, bias=False)
        self.lm_head.weight = self.wte.weight


def names_of(model: nn.Module, **arguments: str | list[str]) -> list[str]:
    return list(ParameterSelector.from_arguments(**arguments).select(model))


def random_tree(rng: random.Random, depth: int = 3) -> nn.Module:
    tree = nn.Module()
    for name in rng.sample(["a", "ab", "b", "layer1", "layer10", "x_y"], 3):
        if depth and rng.random() < 0.7:
            tree.add_module(name, random_tree(rng, depth - 1))
        else:
            tree.register_parameter(name, nn.Parameter(torch.zeros(1)) if rng.random() < 0.8 else None)
    return tree


def naive(
    model: nn.Module, names: set[str], prefixes: tuple[str, ...], except_: tuple[str, ...]
) -> list[str]:
    every = [name for name, _ in model.named_parameters()]
    matched = [name for name in every if name in names or name.startswith(prefixes)]
    return [name for name in matched if not name.startswith(except_)]


@pytest.mark.parametrize("seed", range(60))
def test_agrees_with_a_naive_matcher_on_random_trees(seed: int) -> None:
    """Names, prefixes and exceptions select what a match of every name with every rule selects, in order."""
    rng = random.Random(seed)
    model = random_tree(rng)
    every = [name for name, _ in model.named_parameters()]
    if not every:
        pytest.skip("this tree has no parameters")
    names = rng.choices(every, k=2)
    prefixes = tuple(name[: rng.randint(1, len(name))] for name in rng.choices(every, k=3))
    except_ = tuple(name[: rng.randint(2, len(name))] for name in rng.choices(every, k=2) if len(name) > 1)
    expected = naive(model, set(names), prefixes, except_)
    selector = ParameterSelector(names=tuple(names), prefixes=prefixes, except_prefixes=except_)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # layer1 and layer10
        if expected:
            assert list(selector.select(model)) == expected
        else:
            pytest.raises(ValueError, selector.select, model).match("leave nothing")


@pytest.mark.parametrize("tie", [False, True])
def test_agrees_with_a_naive_matcher_on_a_large_model(tie: bool) -> None:
    """250 prefixes on thousands of tensors select what the naive matcher selects, tied weights or not."""
    model = Wrapper(nn.ModuleList(nn.ModuleList(nn.Linear(1, 1) for _ in range(25)) for _ in range(50)))
    if tie:
        model.network[3][4].bias = model.network[40][20].bias
    prefixes = tuple(f"network.{block}.{layer}." for block in range(0, 50, 1) for layer in range(0, 25, 5))
    selected = ParameterSelector(prefixes=prefixes).select(model)
    expected = dict(model.named_parameters())
    assert len(prefixes) == 250
    assert set(selected) - {"network.3.4.bias"} == set(naive(model, set(), prefixes, (" ",)))
    assert ("network.3.4.bias" in selected) == tie
    assert all(parameter is expected[name] for name, parameter in selected.items())


@pytest.mark.parametrize("rule", ["head.weight", "network.head.weight", "model.head.weight"])
@pytest.mark.parametrize("argument", ["names", "name_starts_with", "patterns"])
@pytest.mark.parametrize("model", [Net(), Wrapper(Net())], ids=["bare", "wrapped"])
def test_rules_match_with_and_without_the_wrapper(rule: str, argument: str, model: nn.Module) -> None:
    """`head`, `network.head` and the old `model.head` mean the same, below a LighterModule and without it."""
    (selected,) = names_of(model, **{argument: rule})
    assert selected.removeprefix("network.") == "head.weight"


def test_literal_match_comes_before_wrappers() -> None:
    """A rule that matches as it is written is not tried behind the wrapper too."""
    model = Wrapper(Net())
    model.head = nn.Linear(2, 2)
    assert names_of(model, name_starts_with="head.") == ["head.weight", "head.bias"]
    assert names_of(model, name_starts_with="network.head.") == ["network.head.weight", "network.head.bias"]


@pytest.mark.parametrize("rule", ["model", "model.", "network"])
def test_the_wrapper_itself_selects_all_it_holds(rule: str) -> None:
    """`model.` of the old guides is the whole network of a LighterModule."""
    model = Wrapper(Net())
    assert len(names_of(model, name_starts_with=rule)) == len(list(model.parameters()))


def test_names_are_stable_under_compile_checkpoint_and_data_parallel() -> None:
    """Wrapping a model or a block changes neither the rules that match nor the names that come back."""
    plain = names_of(Net(), name_starts_with=["encoder.3", "head"])
    model = Net()
    model.encoder[3] = checkpoint_wrapper(model.encoder[3])
    for wrapped in (model, torch.compile(model), nn.DataParallel(torch.compile(model))):
        assert names_of(wrapped, name_starts_with=["encoder.3", "head"]) == plain
        raw = [name for name, _ in wrapped.named_parameters() if canonical_name(name) in plain]
        assert names_of(wrapped, names=raw) == plain


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("_orig_mod.h.0.weight", "h.0.weight"),
        ("module._orig_mod.h.0._checkpoint_wrapped_module.weight", "h.0.weight"),
        ("_fsdp_wrapped_module.h._fsdp_wrapped_module.0.weight", "h.0.weight"),
        ("_orig_mod.module.weight", "weight"),
        ("h.module.weight", "h.module.weight"),
        ("module", "module"),
    ],
)
def test_canonical_name_drops_technical_segments(name: str, expected: str) -> None:
    """Segments of wrappers go, those of the model stay, and a canonical name is its own canonical name."""
    assert canonical_name(name) == expected
    assert canonical_name(expected) == expected


def test_a_name_that_a_wrapper_would_hide_is_an_error() -> None:
    """Two parameters that differ only in a technical segment are refused rather than mixed up."""
    model = nn.Module()
    model.module, model.head = Net(), nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"'head' and 'module\.head' become one name"):
        names_of(model, name_starts_with="head")


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("*.bias", 25),
        ("encoder.1?.conv.weight", 2),
        ("re:conv", 24),
        (r"re:^encoder\.(0|3)\.norm", 4),
        ("class:BatchNorm1d", 24),
        ("class:Block", 48),
        ("class:_NormBase", 24),
        ("layers:block.2", 4),
        ("layers:conv.0-3", 8),
        ("layers:norm.*", 24),
    ],
)
@pytest.mark.parametrize("model", [Net(), Wrapper(Net())], ids=["bare", "wrapped"])
def test_patterns(pattern: str, count: int, model: nn.Module) -> None:
    """Globs, regular expressions, classes (derived ones too) and layer names select what they should."""
    assert len(names_of(model, patterns=pattern)) == count


def test_exceptions_beat_matches_of_every_kind() -> None:
    """What an exception names is left out, whatever matched it."""
    selected = names_of(
        Net(),
        names="head.bias",
        name_starts_with="encoder.1.",
        patterns="class:Linear",
        except_names="head.bias",
        except_name_starts_with="encoder.1.norm",
        except_patterns="*conv.bias",
    )
    assert selected == ["encoder.1.conv.weight", "head.weight"]


def test_exceptions_that_leave_nothing_are_an_error() -> None:
    """A selector that excepts all it matches is a mistake."""
    with pytest.raises(ValueError, match=r"exceptions \['head'\] leave nothing"):
        names_of(Net(), name_starts_with="head.", except_name_starts_with="head")


def test_all_rules_without_match_are_in_one_message() -> None:
    """Every rule that matches nothing is named with close names, exceptions too."""
    with pytest.raises(ValueError, match="4 rules match no parameter of Net") as caught:
        names_of(
            Net(),
            names=["head.wight", "head.bias"],
            name_starts_with="encodr",
            patterns="class:Conv9d",
            except_names="encoder.0",
        )
    message = str(caught.value)
    assert "names 'head.wight' matches no parameter. Closest names: 'head.weight'" in message
    assert "name_starts_with 'encodr' matches no parameter. Closest names: 'encoder'" in message
    assert "no module is of class 'Conv9d'; the model has BatchNorm1d, Block, Conv1d" in message
    assert (
        "except_names 'encoder.0' is a module, not a parameter: write except_name_starts_with: 'encoder.0.'"
        in message
    )


def test_unknown_layer_is_a_rule_without_match() -> None:
    """The reason why a layer is unknown is part of the message."""
    with pytest.raises(ValueError, match=r"patterns 'layers:conv\.12': Layer index 12 out of range"):
        names_of(Net(), patterns="layers:conv.12")


def test_missing_rules_only_warn_when_asked() -> None:
    """With on_missing="warn" the rules that match still select."""
    selector = ParameterSelector(names=("head.bias", "nose.bias"))
    with pytest.warns(UserWarning, match=r"One rule matches no parameter of Net:\n- names 'nose.bias'"):
        assert list(selector.select(Net(), on_missing="warn")) == ["head.bias"]


@pytest.mark.parametrize("rule", ["model..", "network..", "head..", "encoder.head."])
def test_a_malformed_prefix_never_selects_everything(rule: str) -> None:
    """A prefix that makes no path is a rule without match, also once its wrapper is taken off."""
    with pytest.raises(ValueError, match="matches no parameter"):
        names_of(Wrapper(Net()), name_starts_with=rule)


def test_a_shared_module_is_selected_once() -> None:
    """A module registered twice is selected by either name and listed under the first."""
    model = Net()
    model.same_block = model.encoder[2]
    selected = names_of(model, name_starts_with=["same_block", "head"])
    assert selected == names_of(model, name_starts_with=["encoder.2.", "head"])
    assert len(selected) == 6


def test_a_module_without_parameters_is_no_match() -> None:
    """A prefix that finds modules, but no parameter in them, is an error."""
    model = Net()
    model.dropout = nn.Dropout()
    with pytest.raises(ValueError, match="'dropout' matches no parameter"):
        names_of(model, name_starts_with="dropout")


def test_a_prefix_that_takes_a_longer_index_warns() -> None:
    """`encoder.1` takes `encoder.10` as upstream does, and says how to avoid it."""
    with pytest.warns(UserWarning, match=r"'encoder\.1' also takes 'encoder\.10'.*write 'encoder\.1\.'"):
        assert len(names_of(Net(), name_starts_with="encoder.1")) == 12
    assert len(names_of(Net(), name_starts_with="encoder.1.")) == 4


@pytest.mark.parametrize("rule", ["wte", "lm_head"])
def test_tied_weight_is_selected_by_either_name(rule: str) -> None:
    """Both names of a tied weight select it, once, under the first of them."""
    model = Tied()
    selected = ParameterSelector(prefixes=(rule, "middle")).select(model)
    assert list(selected) == ["wte.weight", "middle.weight", "middle.bias"]
    assert selected["wte.weight"] is model.lm_head.weight


def test_tied_weight_excepted_by_its_other_name_warns() -> None:
    """An exception for one name of a tied weight beats a match of the other; the warning names both."""
    with pytest.warns(UserWarning, match=r"'wte\.weight' is selected but tied to 'lm_head\.weight'"):
        assert names_of(Tied(), patterns="*", except_name_starts_with="lm_head") == [
            "middle.weight",
            "middle.bias",
        ]


def test_tied_weight_excepted_by_the_same_name_does_not_warn() -> None:
    """An exception for the very name that matched is no surprise."""
    assert names_of(Tied(), name_starts_with=["lm_head", "middle.b"], except_names="lm_head.weight") == [
        "middle.bias"
    ]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "Say what to freeze: names, name_starts_with or patterns."),
        ({"except_names": "a"}, ValueError, "Say what to freeze"),
        ({"names": 3}, TypeError, "names must be a string or a list of strings. Got 3 (int)"),
        ({"name_starts_with": {"a": 1}}, TypeError, "name_starts_with must be a string or a list"),
        ({"patterns": ["a", 1.5]}, TypeError, "patterns must hold strings. Got 1.5 (float)"),
        ({"name_starts_with": ""}, ValueError, "name_starts_with: '' would match everything"),
        ({"name_starts_with": "module."}, ValueError, "'module.' would match everything"),
        ({"names": "a", "except_patterns": " "}, ValueError, "except_patterns: ' ' would match everything"),
        ({"patterns": "re:["}, ValueError, "'[' is not a regular expression: unterminated character set"),
        ({"patterns": "re:"}, ValueError, "nothing follows 're:'"),
        ({"patterns": "layer:attn.2"}, ValueError, "is not a kind of pattern, the closest is 'layers:'"),
    ],
)
def test_arguments_that_can_only_be_mistakes(arguments: dict, error: type[Exception], message: str) -> None:
    """What YAML can get wrong is refused at construction, with the argument's name."""
    with pytest.raises(error, match=re.escape(message)):
        ParameterSelector.from_arguments(**arguments)


def test_a_prefix_of_longer_names_alone_is_meant_so() -> None:
    """Without a `layer1` of its own, `layer1` can only mean `layer10` and `layer11`: no warning."""
    model = nn.ModuleDict({name: nn.Linear(2, 2, bias=False) for name in ("layer10", "layer11", "layer2")})
    found = ParameterSelector(prefixes=("layer1",)).select(model)

    assert list(found) == ["layer10.weight", "layer11.weight"]


def test_wrappers_around_wrappers_are_dropped_from_names() -> None:
    """An averaged copy of a model under DDP has two of them; one that is all there is stays."""
    assert canonical_name("module.module.head.weight") == "head.weight"
    assert canonical_name("module.head.module.weight") == "head.module.weight"
    assert canonical_name("module") == "module"
