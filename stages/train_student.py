"""`pipeline train-student`: train a student from a dump, or as a baseline without one."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import click
from torch import Tensor, nn

from pipeline.core.errors import ConfigError, quoted
from pipeline.core.hashing import canonical_json
from pipeline.evaluation.assessment import assess
from pipeline.evaluation.context import RunContext
from pipeline.loading.training_set import TrainingSet
from pipeline.losses import find_loss, make_loss, require_kept, require_outputs, require_targets
from pipeline.modalities.prepared import PreparedData, require_sample
from pipeline.modalities.table import views_of
from pipeline.models.auxiliary import count_parameters
from pipeline.models.checkpoint import ModelCard, load_state
from pipeline.models.pretrained import initial_network
from pipeline.store.soft_labels import SoftLabels
from pipeline.store.waiting import TIMEOUT_SECONDS
from pipeline.tracking.log import RunLog, require_installed
from pipeline.training.failures import naming_epoch
from pipeline.training.loop import RunSpec
from pipeline.training.run import train
from pipeline.training.state import TrainingResult
from stages import paths
from stages.dumps import open_dump, store_digest
from stages.engine import Engine
from stages.machine import Machine
from stages.options import reads_params, reads_store, trains_on_engine
from stages.outputs import Outputs, main_figure, test_figures
from stages.params import ModelParams, Params, RecipeParams
from stages.ranks import training_ranks
from stages.ray_commands import run_together


@click.command()
@click.argument("student")
@click.argument("recipe")
@click.argument("seed", type=click.IntRange(0, 2**32 - 1))
@click.option("--dump", default=None, help="Dump to learn from; omit it for a baseline.")
@click.option(
    "--follow",
    is_flag=True,
    help="Begin while the dump is still being written (best with cache-logits --by-view): each epoch waits "
    "until its view is whole. The weights are the same as with the complete dump.",
)
@click.option(
    "--follow-timeout",
    type=click.FloatRange(0, 7 * 86_400),
    metavar="SECONDS",
    default=TIMEOUT_SECONDS,
    show_default=True,
    help="With --follow: wait this long without a new shard while no process writes the dump.",
)
@reads_store
@trains_on_engine
@reads_params
def command(
    params: Params,
    student: str,
    recipe: str,
    seed: int,
    dump: str | None,
    follow: bool,
    follow_timeout: float,
    allow_drift: bool,
    machine: Machine,
    engine: Engine | None,
) -> None:
    """Train STUDENT by RECIPE with SEED, from a dump or, for a baseline, without one.

    Writes models/students/RUN.pt (best epoch on validation) and RUN.last.pt with their cards, and
    runs/RUN/metrics.json (figures of the best epoch on the test samples) and history.csv. Processes
    of torchrun, srun or mpirun train one student together; so do workers of Ray, with --on. Trackers of
    `training.log` write below logs/.
    """
    if dump is not None and ("/" in dump or dump.endswith(".zarr")):
        raise ConfigError(
            f"--dump is {quoted(dump)}; expected the name of a dump of params.yaml; a store elsewhere is "
            "found by places.logits, the folder or address of all stores"
        )
    run = _Run(student=student, recipe=recipe, seed=seed, dump=dump)
    spec, loss = params.student(student), params.recipe(recipe)
    params.require_models(f"students.{student}")
    require_installed(spec.training.log)
    _require_dump_fits(params, run, allow_drift=allow_drift, follow=follow)
    if engine is not None:
        run_together(engine, spec.workers)
        return
    made_by = params.makes(student, recipe)
    with ExitStack() as held:
        with training_ranks(machine.device) as ranks:
            held.enter_context(run.outputs.held(ranks))
            log = run.outputs.log(spec.training.log, {**run.told, **made_by}, ranks)
            held.enter_context(log)
            context = machine.context(params.data, ranks)
            task, n_outputs = context.task, len(context.data.classes)
            require_outputs(loss.loss, task.measures, n_outputs, task.name)
            require_sample(context.data, seed=seed, workers=machine.workers)
            store, drift = None, None
            if dump is not None:
                seconds = follow_timeout if follow else None
                store, drift = open_dump(
                    params, dump, context, allow_drift=allow_drift, follow_seconds=seconds
                )
            training_set = _lesson(params, context.data, taught=store is not None)
            network, card = initial_network(context.data, spec.start(params.data.options.size), seed)
            result = run.train(
                context,
                network,
                card,
                spec=spec,
                recipe=loss,
                store=store,
                training_set=training_set,
                log=log,
            )
        if ranks.is_first:
            logits = None if store is None else store.held_out("test", context.data.test)
            told = {
                "labelled_images": training_set.labelled,
                "drift": drift,
                "made_with": canonical_json(made_by),
                "dataset": context.data.digest(),
                "store": None if store is None else store_digest(store),
            }
            if find_loss(loss.loss).reads_codes:
                told["cosine"] = None  # codewords leave the student's axes free: it would be chance
            with naming_epoch(result.best_epoch, network, spec.training):
                run.write(context, network, card, result, teacher_logits=logits, told=told, log=log)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """The run of one student, identified by the parts of its name."""

    student: str
    recipe: str
    seed: int
    dump: str | None

    @property
    def name(self) -> str:
        return paths.run_name(self.dump, self.student, self.recipe, self.seed)

    @property
    def told(self) -> dict[str, Any]:
        """The parts of its name, for metrics.json and trackers."""
        return {"student": self.student, "recipe": self.recipe, "seed": self.seed, "dump": self.dump}

    @property
    def outputs(self) -> Outputs:
        return Outputs(name=self.name, checkpoint=paths.STUDENTS / f"{self.name}.pt")

    def train(
        self,
        context: RunContext,
        network: nn.Module,
        card: ModelCard,
        *,
        spec: ModelParams,
        recipe: RecipeParams,
        store: SoftLabels | None,
        training_set: TrainingSet,
        log: RunLog,
    ) -> TrainingResult:
        """Train the student, from a store's logits or from labels alone."""
        return train(
            context,
            network,
            card,
            RunSpec(
                loss=make_loss(recipe.loss, recipe.settings),
                settings=spec.training.settings(),
                seed=self.seed,
                state_path=self.outputs.state_path,
                identity={"loss": [recipe.loss, recipe.settings], "store": store and store.identity()},
                log=log,
            ),
            views=spec.training.views if store is None else views_of(store),
            store=store,
            training_set=training_set,
        )

    def write(
        self,
        context: RunContext,
        network: nn.Module,
        card: ModelCard,
        result: TrainingResult,
        *,
        teacher_logits: Tensor | None,
        told: dict[str, Any],
        log: RunLog,
    ) -> None:
        """Write checkpoints, history and metrics: `told`, and the best epoch's figures on test samples."""
        load_state(network, result.best, self.name)
        found = assess(context, network, card.preprocessing, teacher_logits)
        metrics: dict[str, Any] = {
            **self.told,
            **found.to_dict(),
            **main_figure(result.history[result.best_epoch - 1].validation),
            "parameters": count_parameters(network, card.architecture),
            **result.speed,
            "best_epoch": result.best_epoch,
            "epochs": len(result.history),
            "skipped_steps": result.skipped_steps,
            **told,
        }
        outputs = self.outputs
        outputs.write_checkpoints(result, card)
        outputs.write_run(metrics, result.history, found.validation)
        log.end(test_figures({**found.to_dict(), "best_epoch": result.best_epoch}))
        outputs.finish()
        click.echo(f"{self.name}: test {found.test.headline}" if found.test.headline else self.name)


def _lesson(params: Params, data: PreparedData, *, taught: bool) -> TrainingSet:
    """Return the training set of a student; baselines run as many steps per epoch as distilled students."""
    labels = params.data.student_labels(data)
    if taught:
        return TrainingSet.of_all(data.train, labels)
    return TrainingSet.of_labelled(data.train, labels, length=len(data.train))


def _require_dump_fits(params: Params, run: _Run, *, allow_drift: bool, follow: bool) -> None:
    recipe = params.recipe(run.recipe)
    if recipe.needs_teacher and run.dump is None:
        raise ConfigError(f"recipe {run.recipe!r} learns from a teacher's logits; add --dump DUMP")
    if not recipe.needs_teacher and run.dump is not None:
        raise ConfigError(f"recipe {run.recipe!r} is a baseline and reads no logits; remove --dump")
    if run.dump is not None:
        where = f"dump {run.dump}"
        require_targets(recipe.loss, where, mixes=params.dump_views(run.dump).mixes)
        if find_loss(recipe.loss).reads_codes and params.reheaded(run.dump) is not None:
            raise ConfigError(
                f"loss {recipe.loss!r} learns codewords, but {where} is another head over a dump; expected "
                "that dump itself; change --dump, or choose another loss"
            )
        require_kept(recipe.loss, params.dump_codecs(run.dump), where)
        if follow:
            _require_can_follow(params, run.dump, allow_drift=allow_drift)
    elif allow_drift or follow:
        option = "--allow-drift" if allow_drift else "--follow"
        raise ConfigError(f"{option} concerns a dump's samples; use it with --dump DUMP, or remove it")


def _require_can_follow(params: Params, dump: str, *, allow_drift: bool) -> None:
    if allow_drift:
        raise ConfigError(
            "--allow-drift replays samples of all views, which a dump has only at its end; remove --follow "
            "or --allow-drift"
        )
    if dump in params.ensembles or params.reheaded(dump) is not None:
        raise ConfigError(
            f"{dump!r} is made of complete dumps; --follow expects a dump that a teacher writes; remove it"
        )
