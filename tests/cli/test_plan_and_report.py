"""`lighter-freezers`, `plan` and `report`, run as a user runs them, on the config that names them."""

import inspect
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lighter_freezers import ResultsSummary
from lighter_freezers._log import log
from lighter_freezers.cli.main import main
from lighter_freezers.planning.config_errors import unused_variables
from tests import lab

CONFIG = Path(__file__).parents[2] / "configs/freezing/plan_and_report.yaml"
SMALL = [
    "data::num_train_sequences=24",
    "data::num_val_sequences=4",
    "data::batch_size=2",
    "model::network::config::n_embd=32",
    "trainer::max_steps=100",
    "trainer::max_epochs=-1",
    "trainer::val_check_interval=50",
    "trainer::check_val_every_n_epoch=null",
    "trainer::limit_val_batches=1",
]


def in_a_process(*words: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], cwd=folder, capture_output=True, text=True, check=False, timeout=120
    )


def small(folder: Path) -> list[str]:
    """Overrides for a small model on a short text, which lies in this folder."""
    return [*SMALL, f"data::cache_dir={folder}", f"data::text={folder / 'text.txt'}"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run."""
    folder = tmp_path_factory.mktemp("planned")
    (folder / "text.txt").write_text(inspect.getsource(subprocess))
    command = [str(Path(sys.executable).parent / "lighter"), "fit", str(CONFIG), *small(folder)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_help_and_version_import_no_torch() -> None:
    """They answer at once, and name every command."""
    code = (
        "import sys; from lighter_freezers.cli.main import main; "
        "print(main(sys.argv[1:]), 'torch' in sys.modules)"
    )
    helped, versioned = (in_a_process("-c", code, word) for word in ("--help", "--version"))

    assert helped.stdout.endswith("0 False\n")
    assert "  plan " in helped.stdout
    assert "  report " in helped.stdout
    assert versioned.stdout.startswith("lighter-freezers ")
    assert versioned.stdout.endswith("0 False\n")


def write_mistakes() -> None:
    """Configs and folders of runs that are none."""
    Path("broken.yaml").write_text("trainer: [1,\n")
    Path("list.yaml").write_text("- trainer\n- model\n")
    Path("bytes.yaml").write_bytes(bytes(range(128, 256)))
    Path("modle.yaml").write_text("trainer: {_target_: pytorch_lightning.Trainer}\nmodle: {}\n")
    trainer = "{_target_: pytorch_lightning.Trainer, accelerator: cpu, logger: false, max_epochs: 1}"
    model = "{_target_: tests.lab.regression, namespace: pytorch_lightning}"
    Path("without_data.yaml").write_text(f"trainer: {trainer}\nmodel: {model}\n")
    with_text = trainer.replace("max_epochs: 1", "callbacks: [my.Freezer]")
    Path("text.yaml").write_text(f"trainer: {with_text}\nmodel: {model}\n")
    Path("empty").mkdir()
    for name, summary in (("damaged", '{"metrics": [1]}'), ("other", "{}")):
        Path(name).mkdir()
        Path(name, "results_summary.json").write_text(summary)
        Path(name, "freeze_report.json").write_text("{}")
        Path(name, "a.group_norms.csv").write_text("step,total_norm\none,1.0\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "the following arguments are required: COMMAND"),
        ([], "COMMAND is one of compare, init, layers, plan, plots, report, schedule, spectrum"),
        (["plam"], "invalid choice: 'plam'"),
        (["plan"], "the following arguments are required: config.yaml"),
        (["plan", "nowhere.yaml"], "nowhere.yaml"),
        (
            ["plan", str(CONFIG), "--picture", "plan.gif"],
            "A picture is a .png or an .svg file. Got 'plan.gif'.",
        ),
        (["plan", str(CONFIG), "~trainer"], "The config has no 'trainer'"),
        (["plan", "misspelt.yaml"], "Did you mean `name_starts_with`?"),
        (["plan", "broken.yaml"], "The file is no YAML: while parsing a flow node"),
        (["plan", "of_the_cli.yaml"], "this looks like a config of LightningCLI"),
        (
            ["schedule", "of_the_cli.yaml", "--strategy", "gradual"],
            "this looks like a config of LightningCLI",
        ),
        (
            ["report", "empty"],
            "There is no freeze_report.json in 'empty'. Add lighter_freezers.Phase",
        ),
        (["plan", "list.yaml"], "list.yaml is no config: it has a list at its top"),
        (["schedule", "list.yaml", "--strategy", "gradual"], "list.yaml is no config"),
        pytest.param(
            ["plan", "text.yaml"],
            "trainer::callbacks has 'my.Freezer', no callback. Write `- _target_: my.F",
            id="a text for a callback",
        ),
        (["plan", "misspelt.yaml", "model::_target_=torc.nn.Linear"], "Did you mean `torch.nn.Linear`?"),
        (["plan", "misspelt.yaml", "model::in_features=$max("], "'$max(' is no Python expression"),
        (["plan", "misspelt.yaml", "model::in_features=$'a'.uper()"], "Did you mean `upper`?"),
        (["plan", "misspelt.yaml", "model::size=1"], "It takes in_features, out_features, bias"),
        (["plan", "without_data.yaml"], "`train_dataloader` must be implemented"),
        (["plan", "bytes.yaml"], "The file is no text"),
        (
            ["plan", "modle.yaml"],
            "The config has no 'model'. lighter needs trainer and model, and data",
        ),
        (["plan", "modle.yaml"], "Is 'modle' meant?"),
        (["report", "damaged"], "damaged/freeze_report.json is not what PhaseRecorder writes, or it is dam"),
        (["report", "empty", "--plan", "list.yaml"], "list.yaml is not a plan of `plan ... --json`"),
        (["compare", "damaged"], "damaged/results_summary.json is not what ResultsSummary writes"),
        (["compare", "other"], "other/results_summary.json holds no results of a run"),
        (["plots", "damaged"], "damaged/a.group_norms.csv is not a file of GradientNormMonitor"),
    ],
)
def test_a_mistake_is_one_message_and_status_2(
    words: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    misspelt = "{_target_: lighter_freezers.Freezer, name_start_with: a}"
    trainer = f"trainer: {{_target_: pytorch_lightning.Trainer, callbacks: [{misspelt}]}}\n"
    Path("misspelt.yaml").write_text(
        trainer + "model: {_target_: torch.nn.Linear, in_features: 1, out_features: 1}\n"
    )
    write_mistakes()
    Path("of_the_cli.yaml").write_text("trainer: {max_epochs: 1}\nmodel: {class_path: my.Model}\n")
    status = main(words)

    printed = capsys.readouterr().err
    assert status == 2
    assert said in printed
    assert "Traceback" not in printed


def test_a_reader_that_has_enough_ends_a_command_quietly() -> None:
    """As `plan ... | head` does: nothing is said of a broken pipe."""
    words = [sys.executable, "-m", "lighter_freezers", "layers", "tests.callbacks.block_net:BlockNet"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout
        assert running.stderr
        running.stdout.close()
        said = running.stderr.read()

    assert (said, running.returncode) == ("", 0)


@pytest.mark.wide
def test_the_plan_of_a_config_by_its_own_command(folder: Path, tmp_path: Path) -> None:
    """A fresh process: JSON alone on stdout, a picture, and no other file."""
    words = [
        "plan",
        str(CONFIG),
        *small(folder),
        "--no-times",
        "--json",
        "--picture",
        "p.svg",
    ]
    done = in_a_process("-m", "lighter_freezers", *words, folder=tmp_path)

    assert done.returncode == 0, done.stderr[-3000:]
    planned = json.loads(done.stdout)
    assert [(phase["step"], phase["end_step"]) for phase in planned["phases"]] == [
        (0, 40),
        (40, 80),
        (80, 100),
    ]
    assert planned["num_steps"] == 100
    assert [path.name for path in tmp_path.iterdir()] == ["p.svg"]


def test_overrides_are_those_of_lighter_fit(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A shorter run has fewer phases, and a rule that thaws too late."""
    words = [*small(folder), "trainer::max_steps=60"]
    assert main(["plan", str(CONFIG), *words, "--no-times"]) == 0

    text = capsys.readouterr().out
    assert "step 40 (epoch 3): thaws h.3-5\n" in text
    assert "step 80" not in text.split("When what changes")[1].split("Warnings")[0]
    assert "until step 80] never thaws: the run ends at step 60" in text


def test_a_misspelt_variable_is_told_of(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By `plan`, and at the start of a run with a ResultsSummary; one that another uses is right."""
    sentence = "vars::lower_stp is used nowhere in the config. Did you mean vars::lower_step?"
    assert main(["plan", str(CONFIG), *small(folder), "vars::lower_stp=60", "--no-times"]) == 0
    assert f"  - {sentence}\n" in capsys.readouterr().out
    config: dict[str, object] = {"vars": {"a": 1, "b": "$@vars::a + 1"}, "model": {"c": "@vars::b"}}
    assert unused_variables(config) == unused_variables({**config, "vars": {"x": 1}, "d": "@vars"}) == []

    module = lab.regression("pytorch_lightning")
    variables = {"lower_step": 1, "lower_stp": 2}
    module.save_hyperparameters({"config": {"vars": variables, "x": "@vars::lower_step"}})
    warned: list[str] = []
    monkeypatch.setattr(log, "warning", warned.append)
    trainer = lab.trainer("pytorch_lightning", callbacks=[ResultsSummary()], default_root_dir=tmp_path)
    trainer.fit(module, lab.batches(), lab.batches())
    assert warned == [sentence]


def test_the_report_of_a_run(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the plan that it makes from the run's own config: equal to the byte, and with times."""
    monkeypatch.chdir(folder)
    assert main(["report", "outputs/plan_and_report/version_0", "--json"]) == 0

    compared = json.loads(capsys.readouterr().out)
    lines: list[dict[str, Any]] = compared["lines"]
    counts = [line for line in lines if line["what"] != "relative_time"]
    times = [line for line in lines if line["what"] == "relative_time"]
    assert compared["missing"] == []
    assert [line["off"] for line in counts] == [0.0] * 12
    assert {line["phase"] for line in counts} == {"step 0", "step 40", "step 80"}
    assert all(line["planned"] and line["measured"] for line in times)


def test_a_run_without_a_recorder_has_a_report(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan of its own config.yaml, with totals."""
    monkeypatch.chdir(folder)
    shutil.copy("outputs/plan_and_report/version_0/config.yaml", tmp_path)
    assert main(["report", str(tmp_path), "--no-times"]) == 0

    printed = capsys.readouterr()
    assert "Nothing was measured" in printed.err
    assert "of the operations of training everything" in printed.out


def test_the_report_with_a_saved_plan(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the run did not do, and what the plan did not have, is said."""
    shorter = [*small(folder), "trainer::max_steps=60"]
    assert main(["plan", str(CONFIG), *shorter, "--no-times", "--json"]) == 0
    saved = tmp_path / "plan.json"
    saved.write_text(capsys.readouterr().out)
    run_dir = str(folder / "outputs/plan_and_report/version_0")

    assert main(["report", run_dir, "--plan", str(saved)]) == 0
    text = capsys.readouterr().out
    assert "step 80 of the run: not in the plan" in text
    assert "\n  step 40: wte to lm_head 0.001, h.3 to h.5 0.0005\n" in text
    assert "\nTotals\n  this schedule does " in text
    assert main(["report", str(folder)]) == 2
    assert f"Reports are in: {run_dir}" in capsys.readouterr().err
