"""What monitoring, balancers and whoever restarts processes are told."""

from tests.cloud import Cloud


async def test_a_process_that_is_told_to_end_sends_balancers_elsewhere_and_answers_all_others(cloud: Cloud) -> None:
    assert (await cloud.get("/health/ready", who=None)).json() == {"status": "ready"}
    cloud.runtime.serving.is_ending = True
    ready = await cloud.get("/health/ready", who=None)
    assert (ready.status_code, ready.json()) == (503, {"status": "ending"})
    assert (await cloud.get("/api/v1/servers/")).status_code == 200
    assert (await cloud.get("/health/live", who=None)).json() == {"status": "alive"}
    assert (await cloud.get("/health", who=None)).status_code == 200


async def test_without_its_database_a_process_lives_and_is_not_ready(cloud: Cloud) -> None:
    await cloud.database.close()
    ready = await cloud.get("/health/ready", who=None)
    assert (ready.status_code, ready.json()) == (503, {"status": "database"})
    alive = await cloud.get("/health/live", who=None)
    assert (alive.status_code, alive.json()) == (200, {"status": "alive"})
