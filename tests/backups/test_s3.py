"""A whole vpsd that keeps its backups in a bucket."""

import boto3

from tests.running import Vpsd, until


def test_a_vpsd_keeps_its_backups_in_a_bucket_and_brings_a_server_back(bucket: tuple[str, str]) -> None:
    name, endpoint = bucket
    vpsd = Vpsd(
        hypervisor="simulator",
        simulator_boot_seconds=0.05,
        backup_s3=f"{name}/vpsd",
        backup_s3_endpoint=endpoint,
        backup_s3_region="us-east-1",
    )
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")

    def keys() -> list[str]:
        return [one["Key"] for one in client.list_objects_v2(Bucket=name).get("Contents", [])]

    try:
        vpsd.start()
        server = vpsd.create("shop")["id"]
        vpsd.until_status(server, "active")
        made = [vpsd.until_copied(vpsd.post("backups/", {"server_id": server})) for _ in range(2)]
        assert [one["incremental"] for one in made] == [False, True]
        assert all(key.startswith("vpsd/") for key in keys())
        assert vpsd.ask("DELETE", f"backups/{made[0]['id']}/").status_code == 204
        until(lambda: not any(key.endswith(f"{made[0]['uuid']}/manifest") for key in keys()), "it to be deleted")
        vpsd.post(f"backups/{made[1]['id']}/restore/")
        vpsd.until_status(server, "active")
        (found,) = vpsd.run_json("backup", "verify")
        assert found["error"] is None
        client.delete_objects(Bucket=name, Delete={"Objects": [{"Key": key} for key in keys()]})
        client.delete_bucket(Bucket=name)
        failed = vpsd.until_copied(vpsd.post("backups/", {"server_id": server}), status="failed")
        assert failed["error"] == "The backups' store refuses it; the operator can see why."
        assert "bucket does not exist" in vpsd.said()
    finally:
        vpsd.discard()
