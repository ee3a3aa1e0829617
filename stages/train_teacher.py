"""`pipeline train-teacher`: train or fine-tune a teacher, or evaluate pretrained weights."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn

from pipeline.core.errors import ConfigError, MismatchError, StoreError
from pipeline.core.progress import note
from pipeline.evaluation.assessment import assess
from pipeline.evaluation.context import RunContext
from pipeline.losses import make_loss
from pipeline.modalities.prepared import PreparedData, require_sample
from pipeline.models.auxiliary import count_parameters
from pipeline.models.checkpoint import ModelCard, load_state, save_checkpoint, state_digest
from pipeline.models.embedder import Embedder
from pipeline.models.pretrained import initial_network, pretrained_network
from pipeline.models.teacher import require_same_outputs
from pipeline.places.addresses import removal
from pipeline.store.reader import LogitStore
from pipeline.tasks.task import Task
from pipeline.tracking.log import RunLog, require_installed
from pipeline.training.failures import naming_epoch
from pipeline.training.loop import RunSpec
from pipeline.training.run import train
from pipeline.training.settings import TrainingSettings
from pipeline.training.state import TrainingResult
from stages import paths
from stages.dvc import is_stage
from stages.engine import Engine
from stages.machine import Machine
from stages.options import reads_params, trains_on_engine
from stages.outputs import Outputs, main_figure, test_figures
from stages.params import ModelParams, Params
from stages.places import made_stores
from stages.ranks import training_ranks
from stages.ray_commands import run_together
from stages.teachers import judging, making

# Training samples on which the features of an embedding are standardised.
_MEASURED = 2048


@click.command()
@click.argument("teacher")
@trains_on_engine
@reads_params
def command(params: Params, teacher: str, machine: Machine, engine: Engine | None) -> None:
    """Train or fine-tune TEACHER, or evaluate its pretrained weights.

    Writes models/teachers/TEACHER.pt with its card, and runs/teacher-TEACHER/metrics.json with its
    figures on the un-augmented test samples. Processes of torchrun, srun or mpirun train it together; so
    do workers of Ray, with --on. Trackers of `training.log` write below logs/.
    """
    spec = params.teacher(teacher)
    params.require_models(f"teachers.{teacher}")
    if engine is not None:
        run_together(engine, spec.workers)
        return
    outputs = Outputs(name=paths.teacher_run(teacher), checkpoint=paths.teacher_checkpoint(teacher))
    result: TrainingResult | None = None
    require_installed(spec.training.log)
    with ExitStack() as held:
        with training_ranks(machine.device) as ranks:
            held.enter_context(outputs.held(ranks))
            log = outputs.log(spec.training.log, params.makes_teacher(teacher), ranks)
            held.enter_context(log)
            context = machine.context(params.data, ranks)
            require_sample(context.data, seed=spec.seed, workers=machine.workers)
            context = judging(context, spec)
            if spec.weights is not None and not spec.fine_tune:
                network, card = _resolve(context, teacher, spec)
                log.begin({"weights": state_digest(network)}, 0)
            else:
                network, card = initial_network(
                    context.data, spec.start(params.data.options.size), spec.seed
                )
                if ranks.is_first and not outputs.state_path.exists():
                    _compare_stores(params, teacher, context.data)
                result = _train(context, network, card, spec, outputs.state_path, log)
        if ranks.is_first:
            settings, told = spec.training.settings(), making(params, teacher, context.data)
            _write(
                context,
                teacher,
                network,
                card,
                result,
                settings=settings,
                outputs=outputs,
                told=told,
                log=log,
            )


def _compare_stores(params: Params, teacher: str, data: PreparedData) -> None:
    """Tell of stores that the teacher, once trained again, will not have made, before hours of training.

    Raises:
        MismatchError: DVC runs this, and the data are others than a store's: its next stage would fail.
    """
    for dump, store in made_stores(params, teacher):
        ways = f"give dump {dump!r} a new name in params.yaml, or remove the store with: {removal(store)}"
        if is_stage() and _is_of_other_data(store, data):
            raise MismatchError(
                f"{store}: the data have changed since {teacher} made it, and training it again makes a "
                f"different teacher, so the dump would be refused afterwards; {ways}; then run: dvc repro"
            )
        note(
            f"{store}: made by {teacher} before this training; unless its weights come out the same, "
            f"cache-logits will refuse the store: {ways}"
        )


def _is_of_other_data(store: Path, data: PreparedData) -> bool:
    """Whether training samples are new or changed since a complete store was made; False if unknown."""
    try:
        opened = LogitStore.open(store)
    except StoreError:
        return False  # unfinished, damaged or of another version, which the stage that reads it tells
    try:
        opened.rows_of(data.train)
    except MismatchError:
        return True
    return False


def _resolve(context: RunContext, name: str, spec: ModelParams) -> tuple[nn.Module, ModelCard]:
    """Load a pretrained network unchanged onto the device."""
    network, card = pretrained_network(context.data, spec.start(None), encodes=True)
    require_same_outputs(name, card, context.data, context.task)
    network.to(context.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if isinstance(network, Embedder) and spec.normalise == "features":
        some = context.data.train.spread(_MEASURED)
        network.standardise(context.predict(network, card.preprocessing, some)[0])
    return network, card


def _train(
    context: RunContext,
    network: nn.Module,
    card: ModelCard,
    spec: ModelParams,
    state_path: Path,
    log: RunLog,
) -> TrainingResult:
    return train(
        context,
        network,
        card,
        RunSpec(
            loss=make_loss(_supervised(context.task), {}),
            settings=spec.training.settings(),
            seed=spec.seed,
            state_path=state_path,
            log=log,
        ),
        views=spec.training.views,
        store=None,
    )


def _supervised(task: Task) -> str:
    """Return the loss of labels alone for a task.

    Raises:
        ConfigError: labels cannot train a model of this task.
    """
    if task.supervised is None:
        raise ConfigError(
            f"teachers of task {task.name} are not trained: no loss of labels has this output; expected a "
            "finished teacher; set its weights and remove fine_tune"
        )
    return task.supervised


def _write(
    context: RunContext,
    name: str,
    network: nn.Module,
    card: ModelCard,
    result: TrainingResult | None,
    *,
    settings: TrainingSettings,
    outputs: Outputs,
    told: dict[str, Any],
    log: RunLog,
) -> None:
    """Write the checkpoint and the metrics: test figures, and the parameters that decided them."""
    if result is None:
        found = assess(context, network, card.preprocessing)
        save_checkpoint(outputs.checkpoint, network.state_dict(), card)
    else:
        load_state(network, result.best, name)
        with naming_epoch(result.best_epoch, network, settings):
            found = assess(context, network, card.preprocessing)
        outputs.write_checkpoints(result, card)
    # Drop figures that compare with a teacher: this model has none.
    compared = context.task.against_teacher
    own = {figure: value for figure, value in found.to_dict().items() if figure not in compared}
    metrics = {
        "teacher": name,
        **own,
        **main_figure(found.validation.followed),
        "parameters": count_parameters(network, card.architecture),
        "epochs": 0 if result is None else len(result.history),
        "skipped_steps": 0 if result is None else result.skipped_steps,
        **told,
    }
    outputs.write_run(metrics, [] if result is None else result.history, found.validation)
    log.end(test_figures(own))
    outputs.finish()
    click.echo(f"{name}: test {found.test.headline}" if found.test.headline else name)
