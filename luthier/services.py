"""The bundle of services that an edge may ask for."""

from __future__ import annotations

from dataclasses import dataclass

from luthier.control.accounts.service import Accounts
from luthier.control.catalog.service import Catalog
from luthier.control.datasets.service import Datasets
from luthier.control.datasets.uploads import Uploads
from luthier.control.deployments.service import Deployments
from luthier.control.inference.asynchronous import AsyncCompletions
from luthier.control.inference.service import Inference
from luthier.control.jobs.service import Jobs


@dataclass(frozen=True)
class Services:
    accounts: Accounts
    datasets: Datasets
    uploads: Uploads
    catalog: Catalog
    deployments: Deployments
    jobs: Jobs
    inference: Inference
    async_completions: AsyncCompletions
