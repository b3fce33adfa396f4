"""The environment that every test runs in."""

import os

import pytest


def test_the_environment_is_hygienic() -> None:
    assert os.environ["RAY_AUTH_MODE"] == "disabled"
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert "RAY_ADDRESS" not in os.environ


@pytest.mark.ray
def test_workers_of_the_cluster_have_it_too_and_can_import_the_package(ray_cluster: None) -> None:
    import ray

    @ray.remote
    def look() -> tuple[str, str]:
        import rematch_ray

        return os.environ["TOKENIZERS_PARALLELISM"], rematch_ray.__version__

    assert ray.get(look.remote()) == ("false", "0.1.0")
    assert ray.cluster_resources()["CPU"] == 4
