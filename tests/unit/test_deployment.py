"""The Dockerfile, under hadolint, and the RayJob manifest: the rules of its API that matter."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from actrep_ray.cluster.placement import Node, place, pools_of
from actrep_ray.config import load_recipe

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments) of the Dockerfile, continued lines joined, comments left out."""
    text = re.sub(r"^\s*#.*\n", "", (DOCKER / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n", " ", text).splitlines()
    return [(line.split()[0], line.partition(" ")[2]) for line in lines if line.strip()]


def hadolint(path: Path) -> "subprocess.CompletedProcess[str]":
    """The linter of the lock file, on a Dockerfile."""
    program = Path(sys.executable).with_name("hadolint")
    return subprocess.run([program, path], capture_output=True, text=True, check=False, timeout=60)


def test_the_dockerfile_keeps_the_linter_s_rules(tmp_path: Path) -> None:
    run = hadolint(DOCKER / "Dockerfile")
    assert run.returncode == 0, run.stdout
    wrong = tmp_path / "Dockerfile"
    wrong.write_text("FROM python\nRUN cd /tmp && apt-get install gcc\nCMD actrep\n")
    run = hadolint(wrong)
    assert run.returncode != 0
    for rule in ("DL3006", "DL3003", "DL3015", "DL3025"):  # the linter does look
        assert rule in run.stdout


def test_the_dockerfile_copies_what_is_there() -> None:
    for name, arguments in instructions():
        if name == "COPY":
            for source in arguments.split()[:-1]:
                assert (ROOT / source).exists(), source


@pytest.fixture(scope="module", params=["rayjob.yaml", "rayjob-nodes.yaml"])
def job(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DOCKER / request.param).read_text())
    return found


# Keys of RayJobSpec, RayClusterSpec and their groups that KubeRay's CRD knows and this job uses.
JOB_KEYS = {
    "entrypoint", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "backoffLimit",
    "submissionMode", "runtimeEnvYAML", "rayClusterSpec",
}  # fmt: skip
GROUP_KEYS = {
    "groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template",
}  # fmt: skip


def test_the_manifest_has_the_shape_of_a_rayjob(job: dict[str, Any]) -> None:
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,45}[a-z0-9])?", job["metadata"]["name"])
    spec = job["spec"]
    assert set(spec) <= JOB_KEYS
    assert isinstance(yaml.safe_load(spec["runtimeEnvYAML"]), dict)
    cluster = spec["rayClusterSpec"]
    pins = (ROOT / "requirements" / "gpu.txt").read_text()
    assert f"ray[default]=={cluster['rayVersion']}" in pins or (
        f"ray=={cluster['rayVersion']}" in pins
    )
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        assert set(group) <= GROUP_KEYS
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        assert pod["securityContext"] == {"fsGroup": 1000}  # the user of the image
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert not container["image"].endswith(":latest")
            assert container["resources"]["requests"] == container["resources"]["limits"]
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes


def test_the_job_s_recipe_fits_its_nodes(job: dict[str, Any]) -> None:
    """The entry point is a command of ours, and the nodes hold what it starts."""
    words = job["spec"]["entrypoint"].split()
    assert words[:4] == ["python", "-m", "actrep_ray", "train"]
    recipe = load_recipe(ROOT / "recipes" / Path(words[4]).name)
    nodes = [Node("head", 0, num_cpus=2)]
    for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        node = Node("gpu", int(limits["nvidia.com/gpu"]), num_cpus=int(limits["cpu"]))
        nodes += [node] * group["replicas"]
    assert set(place(pools_of(recipe), nodes)) == {"learner", "rollout", "reward"}


def test_nodes_that_talk_to_each_other_may_pin_memory() -> None:
    """Of several GPU nodes: cards for RDMA, and the right to pin what they read and write."""
    job = yaml.safe_load((DOCKER / "rayjob-nodes.yaml").read_text())
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] > 1
    (container,) = group["template"]["spec"]["containers"]
    assert container["securityContext"]["capabilities"]["add"] == ["IPC_LOCK"]
    assert int(container["resources"]["limits"]["rdma/hca"]) > 0


def test_a_job_under_another_python_says_which_and_how_ray_is_started() -> None:
    """As when `ray start` was that of another environment: here one without its packages."""
    run = subprocess.run(
        [sys.executable, "-S", "-m", "actrep_ray", "train", "recipe.yaml"],
        capture_output=True, text=True, check=False, timeout=60, env={"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert run.returncode == 1
    (line,) = run.stderr.splitlines()
    assert line.startswith(f"actrep: error: {sys.executable} has no module 'numpy': ")
    assert line.endswith("start it as .venv/bin/ray start")
