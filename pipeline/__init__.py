"""Release and patch management for third-party application maintenance. This page is the map.

One direction, downhill; a module imports only what stands below it (``pyproject.toml``, import-linter)::

    tasks.py, command_line/     the line a person types; exit codes, --json, questions
    verbs/                      one function a verb; its signature and docstring are its command line and help
    workflow/                   what the pipeline can do, a module a noun: gather → decide → act → record
    rules, playbook, steps, way_back    pure: every reason to refuse; steps → plan in waves; the way back
    settings                    YAML → model, every error with its place
    glance, standing            what ``status`` needs of the workspace and of a ledger's tip, without the models
    wiring                      picks the adapters, the only importer of them
    runner                      runs a plan on hosts, and back again
    layouts/                    which migrations a release holds, in the layouts of the known tools, a file each
    lint/, squawk               what is risky in them, before the first one runs
    installation, ledger, lease Git: the customer's line and releases; records; one deployment at a time
    host, migrations            one host's folder; which scripts are pending, edited, ahead
    transports/ databases/ trackers/ sign_off/    what varies, a file each
    shared_backup               backups of a host's shared/, kept like those of its database
    repository, signing         the git program; Ed25519
    git_objects, object_reader, loose_objects, new_commits, ref_files    Git's objects and refs: read and written
    state, content, differences, versions, additive    pure: the fold of records, hashes, orders, what only adds
    script_header, script_text, sql_words    what a migration says of itself; its lines; its words, for lint
    model, paths, errors        the nouns; file names as text; the families of errors

To add: a database engine → one package in ``databases/``; a transport → one in ``transports/``; a tracker → one in
``trackers/``; a layout of migrations → one in ``layouts/``; a rule of lint → one function in ``lint/rules``; a step kind →
one class in ``steps``; a reason to refuse → one function in ``rules``; a verb → one function in ``verbs/``; a customer or a
product → YAML, no Python.
"""
