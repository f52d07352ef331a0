"""Commands that look into snapshots."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlhf_data.commands.options import DEFAULT_WORKSPACE, AsJson, SnapshotPlace, WorkspacePath, open_workspace
from rlhf_data.terminal import say, short

if TYPE_CHECKING:
    from rlhf_data.plan import Workspace
    from rlhf_data.snapshot import Snapshot


def show(
    snapshot: SnapshotPlace,
    rows: Annotated[int, typer.Option(min=0, help="How many rows to show.")] = 3,
    split: Annotated[str | None, typer.Option(help="Of which split.")] = None,
    workspace: WorkspacePath = DEFAULT_WORKSPACE,
    as_json: AsJson = False,
) -> None:
    """Show a snapshot: what is in it, some rows, and where all rows went."""
    from rlhf_data.inspect import words
    from rlhf_data.inspect.places import open_at
    from rlhf_data.inspect.show import glance

    opened = open_at(snapshot, open_workspace(workspace))
    found = glance(opened, split=split, rows=rows)
    if as_json:
        print(json.dumps({"manifest": opened.manifest, **found}, ensure_ascii=False))
    else:
        lines = [*words.show(opened.manifest, opened.path, found), *words.accounting(opened.manifest["accounting"])]
        print("\n".join(lines))


def diff(
    before: Annotated[
        str, typer.Argument(help="The older snapshot: a folder, or a spec's name; @previous, @ID after.")
    ],
    after: Annotated[str, typer.Argument(help="The newer one; the latest of the same where it is left out.")] = "",
    workspace: WorkspacePath = DEFAULT_WORKSPACE,
    out: Annotated[Path | None, typer.Option(help="Write all changed rows to this Parquet file.")] = None,
    page: Annotated[Path | None, typer.Option("--html", help="Write an HTML page of the same.")] = None,
    examples: Annotated[int, typer.Option(min=0, help="How many rows of each kind of change to show.")] = 2,
    as_json: AsJson = False,
) -> None:
    """Say what changed between two snapshots, and why.

    `rlhf-data diff NAME@previous` compares the latest snapshot of a spec with the one before it.
    """
    from rlhf_data.inspect import words
    from rlhf_data.inspect.diff import diff as compare
    from rlhf_data.inspect.places import open_at

    if out is not None and out.suffix != ".parquet":
        raise typer.BadParameter(
            f"--out {out}: the changed rows are written as Parquet: name a file that ends in .parquet"
        )
    space = open_workspace(workspace)
    old = open_at(before, space)
    new = open_at(after, space) if after else open_at(str(old.path.parent), space)
    found = compare(old, new, out=out, examples=examples)
    print(json.dumps(found, ensure_ascii=False) if as_json else "\n".join(words.diff(found)))
    if out is not None:
        say(f"{out}: every changed row, before and after")
    if page is not None:
        from rlhf_data import files
        from rlhf_data.inspect.diff import KINDS
        from rlhf_data.report import diff_page

        files.write_text(page, diff_page(found, KINDS))
        say(f"{page}: the same to look at")


def query(
    sql: Annotated[
        str,
        typer.Argument(help="DuckDB SQL that only reads, such as: SELECT source, avg(margin) FROM rows GROUP BY 1."),
    ] = "",
    snapshot: Annotated[
        list[str] | None,
        typer.Option(
            "--snapshot",
            "-s",
            help="[NAME=]SNAPSHOT, more than once for several; all of this workspace where it is left out.",
        ),
    ] = None,
    workspace: WorkspacePath = DEFAULT_WORKSPACE,
    tables: Annotated[bool, typer.Option("--tables", help="List the tables and their columns, and stop.")] = False,
    rows: Annotated[int, typer.Option(min=1, help="How many rows to print; --json and --out take all.")] = 40,
    width: Annotated[int, typer.Option(min=4, help="Characters of a value to print.")] = 40,
    out: Annotated[Path | None, typer.Option(help="Write the result to this .parquet or .csv file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Ask snapshots by SQL.

    Tables: rows, quarantine, accounting, sources, splits, snapshots; of several snapshots also NAME.rows and so on.
    Of the workspace's score store: scores, and score_keys, which says whose they are.
    """
    from rlhf_data.inspect import query as asking
    from rlhf_data.inspect import words

    space = open_workspace(workspace)
    opened, store = _named_snapshots(snapshot, space), space.scores
    if tables:
        described = asking.describe(opened, store=store)
        print(json.dumps(described) if as_json else "\n".join(words.tables(described)))
    elif out is not None:
        print(f"{out}: {asking.query_to(sql, opened, out, store=store):,} rows")
    elif as_json:
        answer = asking.query(sql, opened, store=store)
        named = [dict(zip(answer.columns, row, strict=True)) for row in answer.rows]
        print(json.dumps(named, ensure_ascii=False, default=str))
    else:
        answer = asking.query(sql, opened, rows=rows, store=store)
        print("\n".join(words.table(answer.columns, answer.rows, width=width)))
        if answer.more:
            say(f"… and more than these {rows} rows: --rows N prints more, --out FILE keeps all")


def explain(
    row_id: Annotated[
        str, typer.Argument(help="The beginning of a pair_id, completion_id or prompt_id, or FILE#RECORD.")
    ],
    snapshot: Annotated[
        str, typer.Argument(help="A snapshot; all latest ones of this workspace where it is left out.")
    ] = "",
    workspace: WorkspacePath = DEFAULT_WORKSPACE,
    as_json: AsJson = False,
) -> None:
    """Say where a row comes from.

    Raw records, judgments, and what each step made of them; of an answer that is in no row, where it was left out.
    """
    from polars.exceptions import PolarsError

    from rlhf_data.inspect import words
    from rlhf_data.inspect.explain import explain as trace
    from rlhf_data.inspect.places import latest_of_all, open_at

    space = open_workspace(workspace)
    among = [open_at(snapshot, space)] if snapshot else latest_of_all(space)
    if not among:
        raise ValueError(f"no snapshot was built in {space.root}: name one, or --workspace FOLDER")
    try:
        found = next((known for opened in among if (known := trace(row_id, opened, space)) is not None), None)
    except PolarsError as error:
        raise ValueError(
            f"a table of {space.root / 'steps'} is damaged ({error}): remove that folder, and the snapshots alone are "
            "asked; building again makes it anew"
        ) from None
    if found is None:
        looked = ", ".join(str(opened.path) for opened in among)
        raise ValueError(f"nothing is known of {row_id!r} in {looked}; `rlhf-data show` prints some ids of a snapshot")
    print(json.dumps(found, ensure_ascii=False, default=str) if as_json else "\n".join(words.explain(found)))


def quarantine(
    snapshot: SnapshotPlace,
    code: Annotated[str | None, typer.Option(help="Only rows refused by this code.")] = None,
    rows: Annotated[int, typer.Option(min=0, help="How many rows of each code to show.")] = 2,
    workspace: WorkspacePath = DEFAULT_WORKSPACE,
    as_json: AsJson = False,
) -> None:
    """Show what was refused, by code."""
    import polars as pl

    from rlhf_data import tables
    from rlhf_data.inspect.places import open_at

    table = tables.read(
        open_at(snapshot, open_workspace(workspace)).path / "quarantine" / "quarantine.parquet", "quarantine"
    )
    table = table if code is None else table.filter(pl.col("code") == code)
    if as_json:
        print(json.dumps(table.to_dicts(), ensure_ascii=False))
        return
    for (reason,), refused in table.sort("code").group_by("code", maintain_order=True):
        print(f"{refused.height:>7,}  {reason}")
        for row in refused.head(rows).iter_rows(named=True):
            print(f"         {', '.join(row['raw_ref'])}  {row['detail'] or ''}\n           {short(row['row'])}")
    nothing = "nothing was refused" if code is None else f"nothing was refused as {code}"
    print(f"{table.height:>7,}  in all" if table.height else nothing)


def _named_snapshots(given: list[str] | None, workspace: "Workspace") -> dict[str, "Snapshot"]:
    """The snapshots that are asked, by the names that SQL calls them."""
    from rlhf_data.inspect.places import latest_of_all, open_at
    from rlhf_data.inspect.query import named

    if not given:
        return named([(None, opened) for opened in latest_of_all(workspace)])
    split = [(text.partition("=") if "=" in text and not Path(text).exists() else ("", "", text)) for text in given]
    return named([(name or None, open_at(place, workspace)) for name, _, place in split])
