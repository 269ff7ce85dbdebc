"""The examples of clusters in the documentation: the form of what Ray and KubeRay read, and our commands in them."""

import shlex

import yaml

from tests.docs.blocks import ROOT, Block, blocks
from tests.docs.commands import commands, parse


def block(word: str) -> Block:
    """The block of docs/large.md with a word."""
    [found] = [block for block in blocks(ROOT / "docs" / "large.md") if word in block.text]
    return found


def test_the_kuberay_job_has_what_its_pods_need() -> None:
    job = yaml.safe_load(block("RayJob").text)
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    parse(shlex.split(job["spec"]["entrypoint"]))
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    assert len(groups) == 2
    for group in groups:
        assert group["rayStartParams"] == {}
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        [container] = pod["containers"]
        [mount] = container["volumeMounts"]
        assert mount["name"] in volumes
        assert f"{mount['mountPath']}/" in job["spec"]["entrypoint"]


def test_the_slurm_script_starts_one_command_on_every_node() -> None:
    lines = block("#SBATCH").text.splitlines()
    assert "#SBATCH --ntasks-per-node=1" in lines
    [words] = commands("\n".join(lines))
    assert words[:3] == ["srun", "ray", "symmetric-run"]
    assert words[words.index("--") + 1 :][:3] == ["python", "-m", "mclip_kit.cli"]
    assert "--engine" in words
    parse(words)
