"""The command `sae`. Options of a run are keys of `pipelines.config.RunConfig`, nowhere else."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import click

import sae
from pipelines.arguments import config_of, switched
from pipelines.config import RunConfig
from pipelines.results import whole_command
from pipelines.system_errors import of_memory, of_the_system
from sae.base.config import describe
from sae.base.errors import CheckFailure, UserError
from sae.base.interrupts import Interrupted, raised_signals

STAGE_HELP = {
    "harvest": "Run the model over the corpus and store its activations.",
    "train": "Train the coders on the stored activations.",
    "evaluate": "Measure the coders on held-out text.",
    "index": "Build the feature index that the browser reads.",
    "scorecard": "Measure each feature: does another seed have it, what does the model lose by it.",
    "export": "Write each feature dictionary to one HDF5 file.",
}
EXTRA = {"ignore_unknown_options": True, "allow_extra_args": True}
SEED = click.IntRange(0, 2**32 - 1)  # what numpy takes, and the settings of a run
DEMO = Path(__file__).parent / "demo.yaml"


class SettingsCommand(click.Command):
    """A command whose `--help` ends with the settings of its part of the configuration."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        parts = ("model", "corpus") if self.name in ("harvest", None) else ()
        wanted = {self.name or "", *parts}
        rows = [
            (key, f"{text}  [{'default: ' + str(default) if default is not None else 'optional'}]")
            for key, default, text in describe(RunConfig)
            if self.name in ("run", "demo") or key.split(".")[0] in wanted or "." not in key
        ]
        with formatter.section("Settings, as key=value or --key value"):
            formatter.write_dl([(key, text) for key, text in rows])
            if self.name in STAGE_HELP:
                formatter.write_text(f"The `{self.name}.` may be left out.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(sae.__version__, prog_name="sae")
def cli() -> None:
    """Loupe: from text to readable features of a GPT-2.

    A RUN is a YAML configuration, or the folder of an earlier run.
    """


def _stage_command(name: str) -> click.Command:
    @click.pass_context
    def stage(context: click.Context, run: Path | None, quick: bool | None = None) -> None:
        config = config_of(run, context.args, name)
        if quick is not None and quick != config.evaluate.quick:
            config = config_of(run, [*switched(quick), *context.args], name)
        _execute(config, only=name, start=None, dry_run=False)

    run_argument = click.Argument(["run"], type=click.Path(path_type=Path), required=False)
    quick = click.Option(
        ["--quick/--full"],
        default=None,
        help="Fewer tokens and no slow controls, or the whole; default: as the run was before.",
    )
    return SettingsCommand(
        name,
        callback=stage,
        params=[run_argument, *([quick] if name == "evaluate" else [])],
        help=STAGE_HELP[name],
        context_settings=EXTRA,
    )


for _name in STAGE_HELP:
    cli.add_command(_stage_command(_name))


@cli.command("run", cls=SettingsCommand, context_settings=EXTRA)
@click.argument("run", type=click.Path(path_type=Path), required=False)
@click.option("--from", "start", metavar="STAGE", help="Redo this stage and all behind it.")
@click.option("--only", metavar="STAGE", help="Look at this stage alone.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.pass_context
def run_command(
    context: click.Context, run: Path | None, start: str | None, only: str | None, dry_run: bool
) -> None:
    """Do all stages of RUN that are not up to date."""
    _execute(config_of(run, context.args), only, start, dry_run)


@cli.command("demo", cls=SettingsCommand, context_settings=EXTRA)
@click.option("--browse/--no-browse", "open_browser", default=True, help="Open the browser after.")
@click.pass_context
def demo_command(context: click.Context, open_browser: bool) -> None:
    """The whole job on the embedded model: minutes on a laptop, no download."""
    config = config_of(DEMO, context.args)
    _execute(config, None, None, dry_run=False)
    if open_browser:
        from pipelines.browse import browse

        sys.exit(browse(config.folder))


@cli.command("browse")
@click.argument("folder", type=click.Path(path_type=Path), default=Path("runs/demo"))
@click.option("--port", default=8501, show_default=True, help="Port of the web page.")
@click.option("--headless", is_flag=True, help="Do not open a browser window.")
def browse_command(folder: Path, port: int, headless: bool) -> None:
    """Open the feature browser on a run folder."""
    from pipelines.browse import browse

    sys.exit(browse(folder, port, headless))


def _count(name: str, default: int, help: str) -> Callable[[Any], Any]:
    return click.option(name, type=click.IntRange(1), default=default, show_default=True, help=help)


@cli.command("mechanisms")
@click.argument("what", type=click.Choice(["induction", "concepts", "probes", "labels"]))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--coder", default="topk", show_default=True, help="Name of one of the run's coders.")
@_count("--sequences", 128, "Induction: repeated sequences.")
@_count("--tokens", 65_536, "Concepts: tokens of each split.")
@_count("--texts", 600, "Probes: texts of each dataset.")
@_count("--directions", 64, "Labels: random directions.")
@click.option("--seed", type=SEED, default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="JSON file; default: in the run.")
def mechanisms_command(
    what: Literal["induction", "concepts", "probes", "labels"], folder: Path, **options: Any
) -> None:
    """What a coder's latents have of induction, of concepts with rules, of sae-probes' datasets;
    and their labels against those of random directions."""
    from pipelines.mechanisms import report

    report(what, folder, **options)


@cli.command("explain")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--coder", default="topk", show_default=True, help="Name of one of the run's coders.")
@click.option("--features", metavar="FILTER", help="As in `sae export`; default: all that live.")
@click.option("--most", default=50, show_default=True, help="So many of them, at random.")
@click.option("--endpoint", metavar="URL", help="OpenAI-compatible, as http://localhost:8000/v1.")
@click.option("--model", metavar="NAME", help="A model of the endpoint.")
@click.option(
    "--key-variable", default="OPENAI_API_KEY", show_default=True, help="Holds the key; or `none`."
)
@click.option("--passages", default=40, show_default=True, help="In each of the two tests.")
@click.option("--answer-tokens", default=300, show_default=True, help="Cap on those of an answer.")
@click.option("--price-in", type=float, help="Of a million prompt tokens, for the estimate.")
@click.option("--price-out", type=float, help="Of a million completion tokens.")
@click.option("--concurrency", default=4, show_default=True, help="Requests at a time.")
@click.option("--timeout", default=120.0, show_default=True, help="Seconds for one try.")
@click.option(
    "--seed", type=SEED, default=0, show_default=True, help="Decides features and passages."
)
@click.option("--ask-again", is_flag=True, help="Also where the answer could not be read.")
@click.option("--yes", is_flag=True, help="Send without asking.")
def explain_command(run: Path, **options: Any) -> None:
    """Let a language model explain features of RUN, and test what it says on held-out text.

    Text of the corpus goes to the endpoint; what it may cost is said first.
    """
    from pipelines.explain import explain

    explain(run, **options)


@cli.command("info")
@click.argument("path", type=click.Path(path_type=Path))
def info_command(path: Path) -> None:
    """What a run folder, store, coder, index or export is."""
    from pipelines.summary import print_info

    print_info(path)


@cli.command("verify")
@click.argument("path", type=click.Path(path_type=Path))
def verify_command(path: Path) -> None:
    """Read everything back; exit with 1 and a list if anything is wrong."""
    from pipelines.verify import verify

    problems = verify(path)
    for problem in problems:
        click.echo(problem)
    if problems:
        sys.exit(1)
    click.echo(f"{path}: sound")


def _execute(config: RunConfig, only: str | None, start: str | None, dry_run: bool) -> None:
    from pipelines.manifest import Manifest
    from pipelines.runner import plan, run_stages
    from pipelines.summary import print_summary

    todo = plan(config, Manifest.open(config.folder), only, start)
    if dry_run:
        for task in todo:
            coders = " ".join(coder for coder in task.coders if coder)
            click.echo(f"would do {task.stage.name} {coders}".rstrip())
        if len(todo) > 1 and todo[0].stage.name == "harvest" and not todo[0].forced:
            click.echo("What follows the harvest is done if the store then holds other things.")
    if not todo:
        click.echo(f"{config.folder} is up to date.")
        if only == "evaluate" and config.evaluate.quick:
            click.echo(f"The evaluation is a quick one; the whole: {whole_command(config)}")
    if dry_run:
        return
    run_stages(config, todo)
    if only is None or only == "evaluate":
        print_summary(config)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: a user's mistake is one sentence on stderr and exit code 2.

    1: a check failed, or the disk or the memory is full; 130 and 143: SIGINT and SIGTERM.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        with raised_signals():
            cli(arguments, standalone_mode=False)
    except UserError as error:
        _fail(str(error), code=2)
    except CheckFailure as error:
        _fail(str(error), code=1)
    except click.exceptions.Abort as error:
        stopped = error.__cause__
        if not isinstance(stopped, Interrupted):
            sys.exit(130)
        _fail(stopped.sentence or f"Stopped by {stopped.name}.", code=stopped.code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except OSError as error:
        sentence, code = of_the_system(error)
        if not sentence:
            raise
        _fail(sentence, code)
    except (MemoryError, RuntimeError) as error:  # torch's are RuntimeErrors
        sentence = of_memory(error)
        if not sentence:
            raise
        _fail(sentence, code=1)


def _fail(sentence: str, code: int) -> None:
    click.echo(f"sae: {sentence}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
