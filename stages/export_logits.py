"""`pipeline export-logits`: write cached outputs for other loaders, as tars or Parquet files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from pipeline.core.errors import ConfigError, counted, did_you_mean, first_of
from pipeline.core.text import NAME
from pipeline.core.trust import Trust
from pipeline.export.logits import CARD, Request, export_logits
from pipeline.modalities.prepared import PreparedData
from pipeline.places.folder import Root
from pipeline.samples.parts import find_parts
from pipeline.samples.splits import TRAIN
from pipeline.store.opening import open_logits
from stages import paths
from stages.failures import say
from stages.options import finds_params, trusts_code
from stages.params import Params
from stages.places import find_store
from stages.ranks import require_alone
from stages.runtime import bound_threads


@click.command()
@click.argument("dump")
@click.option(
    "--format",
    "form",
    type=click.Choice(["wds", "parquet"]),
    required=True,
    help="WebDataset tars with one array per sample, or Parquet files of key, view and logits.",
)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="New folder to write."
)
@click.option("--fp16", is_flag=True, help="Write float16.  [default: float32]")
@click.option(
    "--shard-rows",
    type=click.IntRange(min=1),
    default=10_000,
    show_default=True,
    help="Samples per tar.",
)
@click.option(
    "--like",
    metavar="PATTERN",
    default=None,
    help="Divide and order training samples as in these tars, e.g. 'train-{000..099}.tar', under their "
    "names.  [default: in the order of data/prepared]",
)
@trusts_code
@finds_params
def command(
    read_params: Callable[[], Params],
    dump: str,
    form: str,
    out: Path,
    fp16: bool,
    shard_rows: int,
    like: str | None,
    trust: Trust,
) -> None:
    """Write the outputs of DUMP, a dump, an ensemble or a store's folder, for loaders of other libraries.

    The store of a name lies where `places` of params.yaml says; a folder or an address, e.g.
    s3://bucket/main.zarr, needs no params.yaml. Each sample keeps its key, so outputs are siblings of its
    file. OUT appears when it is complete; card.json in it describes views, codec and fidelity. Nothing is
    overwritten.
    """
    del trust  # The option has named the code to the tables.
    require_alone()
    bound_threads()
    if like is not None and form != "wds":
        raise ConfigError("--like is for --format wds; a Parquet file is joined by key; leave it out")
    store = open_logits(_named(read_params(), dump) if NAME.fullmatch(dump) else dump)
    tars = () if like is None else find_parts(like, ".tar", {}).files[TRAIN]
    request = Request(form=form, half=fp16, shard_rows=shard_rows, like=tars)
    card = export_logits(store, PreparedData.open(paths.PREPARED), out, request)
    size = sum(file["bytes"] for file in card["files"].values())
    held = [
        f", un-augmented {split} {count:,}" for split, count in card["samples"].items() if split != TRAIN
    ]
    say(
        f"{out}: {counted(store.n_views, 'view')} of {card['samples'][TRAIN]:,} training samples"
        f"{''.join(held)}; {counted(store.n_classes, 'output')} each in {card['dtype']}, {size:,} bytes in "
        f"{counted(len(card['files']), 'file')}, described by {CARD}"
    )


def _named(params: Params, dump: str) -> Root:
    """Return the place of a dump's store; refuse a name that is nearly that of another dump.

    Raises:
        ConfigError: neither params.yaml nor data/logits has the dump.
    """
    place, hint = find_store(params, dump), did_you_mean(dump, params.stores)
    if hint and dump not in params.stores and isinstance(place, Path) and not place.exists():
        raise ConfigError(
            f"params.yaml has no dump {dump!r}; expected one of {first_of(params.stores)}{hint}"
        )
    return place
