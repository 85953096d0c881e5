"""Verbs about products."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pipeline.command_line.options import an_existing_file
from pipeline.command_line.output import Answer
from pipeline.command_line.verb import Command, verb
from pipeline.command_line.words import Option


@verb("Prepare a release", "product.import")
def import_product(
    command: Command,
    product: Annotated[str, Option("the product's name: its file under playbooks/", value="PRODUCT")],
    version: Annotated[
        str | None, Option("the version; by default every tag of the product's Git repository", value="VERSION")
    ] = None,
    archive: Annotated[
        Path | None, Option("a vendor's delivery: zip, tar or wheel", value="FILE", convert=an_existing_file)
    ] = None,
) -> Answer:
    """Brings in a version of a product, from its Git repository or from a vendor's delivery.

    It becomes the tag product/<product>/<version> of the installations repository. The same bytes again change
    nothing; other bytes under a version that is there already are refused.
    """
    from pipeline.workflow import products

    return products.import_product(
        command.session, product=product, version=version, archive=archive, dry_run=command.dry_run
    )
