"""A version of a product becomes known to the installations repository."""

from __future__ import annotations

from pathlib import Path

from pipeline import rules
from pipeline.errors import ConfigurationError, UsageError
from pipeline.installation import Installation
from pipeline.products import Products
from pipeline.versions import order
from pipeline.workflow.session import Result, Session

_SHOWN = 3


class ProductImported(Result):
    """The versions that are now there; ``imported`` are those that were new."""

    product: str
    imported: tuple[str, ...]
    present: tuple[str, ...]

    def lines(self) -> list[str]:
        return [self.what, *(f"  {version}" for version in self.imported)]


def import_product(
    session: Session,
    *,
    product: str,
    version: str | None = None,
    archive: Path | None = None,
    dry_run: bool = False,
) -> ProductImported:
    """One version from a delivered archive or a Git tag; without ``version``, every tag of the product's repository.

    The same version with other bytes is Refused; the same bytes again change nothing.
    """
    loaded = session.workspace.playbook(product)
    playbook = loaded.playbook
    session.require(rules.entitlement(session.actor, None, {"people": "environments/people.yaml"}))
    repository = session.repository()
    repository.fetch()
    products = Products(repository)
    url = source_url(session, product)
    versions: list[str]
    if archive is not None:
        if version is None:
            raise UsageError(
                "an archive needs the version that it is",
                next_commands=[f"invoke product.import product={product} version=… archive={archive}"],
            )
        versions = [version]
    elif url is None:
        raise UsageError(
            f"{product} has no Git repository in its playbook, so a version comes as an archive",
            next_commands=[f"invoke product.import product={product} version=… archive=…"],
        )
    else:
        versions = [version] if version else _tagged(session, product, url)
    for wanted in versions:
        order(playbook.versions, wanted)
    before = set(products.versions(product))
    imported: list[str] = []
    for wanted in versions:
        if dry_run:
            if wanted not in before:
                imported.append(wanted)
            continue
        if wanted not in before:
            session.progress(f"importing {product} {wanted}")
        if archive is not None:
            done = products.import_archive(product, wanted, archive)
        else:
            assert playbook.source is not None
            assert url is not None
            done = products.import_git(product, wanted, url, playbook.source.tag.format(version=wanted))
        if done.changed:
            imported.append(wanted)
    present = sorted(before | set(imported), key=lambda known: order(playbook.versions, known))
    would = "would be " if dry_run else ""
    return ProductImported(
        changed=bool(imported) and not dry_run,
        what=f"{product}: {len(imported)} version(s) {would}imported; {len(present)} known, "
        f"newest {present[-1] if present else 'none'}",
        product=product,
        imported=tuple(imported),
        present=tuple(present),
        next_commands=(f"invoke product.import product={product}" + (f" version={version}" if version else ""),)
        if dry_run and archive is None
        else _next(session, product, present[-1])
        if present and not dry_run
        else (),
    )


def _next(session: Session, product: str, newest: str) -> tuple[str, ...]:
    """What the newest version is for: a line for each customer of the product who has none, else a release."""
    starts: list[str] = []
    merges: list[str] = []
    for key in session.workspace.customers:
        try:
            customer = session.workspace.customer(key).customer
        except ConfigurationError:  # another customer's file is no reason against an import that is done
            continue
        if customer.product != product or customer.installations not in {
            None,
            session.workspace.settings.installations[0].name,
        }:
            continue
        installation = Installation(session.repository(), key)
        if installation.line_tip() is None:
            starts.append(f"invoke line.start customer={key} version={newest}")
        elif installation.held_version()[0] != newest:
            merges.append(f"invoke release customer={key} version={newest} ticket=…")
    return tuple((starts or merges or ["invoke status"])[:_SHOWN])


def source_url(session: Session, product: str) -> str | None:
    """The product's own Git repository; None when it comes as archives only."""
    source = session.workspace.playbook(product).playbook.source
    if source is None:
        return None
    is_path = "://" not in source.git and ":" not in source.git.split("/")[0]
    return str(session.workspace.path(source.git)) if is_path else source.git


def _tagged(session: Session, product: str, url: str) -> list[str]:
    """The versions that the repository's tags name, oldest first; tags that name none are passed over."""
    tags = session.repository().remote_tags(url)
    playbook = session.workspace.playbook(product).playbook
    assert playbook.source is not None
    before, _, after = playbook.source.tag.partition("{version}")
    versions = []
    for tag in tags:
        if tag.startswith(before) and tag.endswith(after):
            version = tag[len(before) : len(tag) - len(after)]
            try:
                order(playbook.versions, version)
            except UsageError:
                continue
            versions.append(version)
    return sorted(versions, key=lambda version: order(playbook.versions, version))
