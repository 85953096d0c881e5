"""The bytes of records and states as the ledger keeps them, and how a record reads in ``git log``. Runs no Git.

A tool never decides on what it does not understand: bytes of a newer schema are refused, naming the schema needed.
"""

from __future__ import annotations

import json

from pydantic import ValidationError

from pipeline.errors import Failed, Reason, Refused
from pipeline.git_objects import with_trailers
from pipeline.model import RECORD_SCHEMA, Record
from pipeline.standing import standing, trailers
from pipeline.state import STATE_SCHEMA, State


def parse_record(data: bytes, place: str, customer: str) -> Record:
    """The record in these bytes. Refused for a newer schema, which names what is needed; Failed for anything else."""
    _check_schema(data, "record", RECORD_SCHEMA, place, customer)
    try:
        return Record.model_validate_json(data)
    except ValidationError as error:
        raise damaged(place, customer, error) from None


def parse_state(data: bytes, customer: str) -> State | None:
    """The state in these bytes; None when an older pipeline wrote it, and it is to be folded anew from the records.

    Errors as :func:`parse_record`.
    """
    place = f"refs/heads/{customer}/ledger:state.json"
    if _check_schema(data, "state", STATE_SCHEMA, place, customer) < STATE_SCHEMA:
        return None
    try:
        return State.model_validate_json(data)
    except ValidationError as error:
        raise damaged(place, customer, error) from None


def _check_schema(data: bytes, noun: str, known: int, place: str, customer: str) -> int:
    try:
        version = int(json.loads(data)["schema_version"])
        newer = version > known
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(place, customer, error) from None
    if newer:
        raise Refused(
            f"the ledger of {customer} was written by a newer pipeline, and nothing is decided on what is not understood",
            reasons=[Reason(f"{noun} schema {version} is needed, this pipeline knows {known}", place)],
            next_commands=[f"install a version of the pipeline that knows {noun} schema {version}"],
        )
    return version


def damaged(place: str, customer: str, error: Exception | str) -> Failed:
    """The error for bytes at ``place`` that are not what a ledger holds."""
    return Failed(
        f"the ledger of {customer} is damaged",
        reasons=[Reason(" ".join(str(error).split())[:300], place)],
        next_commands=[f"invoke ledger.verify customer={customer}"],
    )


def summary(record: Record) -> str:
    """The record in a few words: kind, release, environment, outcome."""
    words: list[str] = [record.kind]
    if record.release:
        words.append(record.release)
    if record.environment:
        words += ["on", record.environment]
    if record.outcome:
        words.append(f"({record.outcome})")
    return " ".join(words)


def message(record: Record, state: State) -> str:
    """One line for ``git log``, the trailers that are known, and those of where the customer stands now."""
    release = state.releases.get(record.release or "")
    patches = [record.details["patch"]] if "patch" in record.details else list(release.patches if release else ())
    version = record.details.get("version") or (release.version if release else None)
    return with_trailers(
        summary(record),
        {
            "Record-Id": record.id,
            "Kind": record.kind,
            "Environment": record.environment,
            "Release": record.release,
            "Product": record.product,
            "Product-Version": version,
            "Patch-Ids": ", ".join(patches),
            "Maintenance-Type": record.details.get("maintenance_type"),
            "Ticket": ", ".join(f"{ticket.tracker}:{ticket.id}" for ticket in record.tickets),
            "Content-SHA256": record.content,
            **trailers(standing(state)),
        },
    )
