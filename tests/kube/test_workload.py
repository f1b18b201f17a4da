"""The workload that a Pod is of, by its name."""

import pytest

from kdns.kube.workload import workload


@pytest.mark.parametrize(("pod", "of"), [
    ("cart-7d9f8b6c5d-x2k4p", "cart"),  # Deployment
    ("cart-api-v2-7d9f8b6c5-zz9zz", "cart-api-v2"),
    ("fluentd-x2k4p", "fluentd"),  # DaemonSet, ReplicaSet, Job
    ("report-28476320-bq7xk", "report"),  # CronJob
    ("db-0", "db"), ("db-12", "db"),  # StatefulSet
    ("redis-6-7d9f8b6c5d-x2k4p", "redis-6"), ("kafka-2-x2k4p", "kafka-2"),
    ("my-db", "my-db"), ("redis-cache", "redis-cache"), ("web", "web"), ("", ""), ("x2k4p", "x2k4p"),
    ("-x2k4p", "-x2k4p"), ("api-abcde", "api-abcde"),  # vowels are in no generated name
    ("etcd-node-1", "etcd-node"), ("a-20261126", "a-20261126"),
])  # fmt: skip
def test_a_pods_name_without_what_its_controller_appended_is_its_workload(pod: str, of: str) -> None:
    assert workload(pod) == of
