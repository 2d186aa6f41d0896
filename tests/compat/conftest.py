"""The folder `suites` is not for this environment: each of its parts runs in that of a client."""

collect_ignore = ["suites"]
