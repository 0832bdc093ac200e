"""Variables that go along with a job: named ones only, and no secrets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.storage import names_a_secret, redact
from pipeline.submit.submission import SubmitError


def chosen(names: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """The named variables of this process's environment.

    Raises:
        SubmitError: One is not set, or is a secret: Ray shows a job's variables to everyone who
            may list jobs, and writes them to the logs of every node.
    """
    found = {}
    for name in names:
        if name not in environment:
            raise SubmitError(f"--env {name}: there is no such variable here to take along")
        value = environment[name]
        # By its name, a short password is recognised as well as a long one.
        field = f"?{name}={value}"
        if names_a_secret(name) or redact(value) != value or redact(field) != field:
            raise SubmitError(
                f"--env {name}: this is a secret, and Ray shows the variables of a job to everyone "
                "who may list jobs and writes them to logs. Give it to the nodes instead: in the "
                "environment `ray start` sees (cluster.yaml reads ~/.rledit/secrets.env), or as a "
                "Kubernetes secret (--secret)"
            )
        found[name] = value
    return found
