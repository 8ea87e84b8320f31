#!/usr/bin/env python3
"""Drives Berth's image, storage, network and instance services directly, with no gateway."""

import argparse
import hashlib
import importlib
import pathlib
import sys
import tempfile
import time
import uuid

import grpc
from grpc_tools import protoc

PROTO = pathlib.Path(__file__).resolve().parents[2] / "proto"
CHUNK = 512 * 1024
PROJECT = "projects/default"


def generate(out):
    """Generates the stubs and makes them importable."""
    files = [str(p) for p in PROTO.rglob("*.proto")]
    well_known = pathlib.Path(protoc.__file__).parent / "_proto"
    code = protoc.main(
        ["protoc", f"-I{PROTO}", f"-I{well_known}", f"--python_out={out}", f"--grpc_python_out={out}"]
        + files
    )
    if code != 0:
        sys.exit("the stubs can't be generated")
    sys.path.insert(0, str(out))


def say(text):
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


class Berth:
    """Channels and stubs of the four services."""

    def __init__(self, sockets):
        def stubs(area, module, *services):
            # grpcio would send the socket's path as :authority, which Rust's h2 refuses.
            channel = grpc.insecure_channel(
                f"unix:{sockets}/{area}.sock", [("grpc.default_authority", "localhost")]
            )
            pb = importlib.import_module(f"berth.{area}.v1.{module}_pb2")
            rpc = importlib.import_module(f"berth.{area}.v1.{module}_pb2_grpc")
            return pb, [getattr(rpc, f"{name}Stub")(channel) for name in services]

        self.image_pb, (self.images,) = stubs("image", "image_service", "ImageService")
        self.storage_pb, (self.pools, self.volumes) = stubs(
            "storage", "storage_service", "PoolService", "VolumeService"
        )
        self.network_pb, (self.networks, self.ports) = stubs(
            "network", "network_service", "NetworkService", "PortService"
        )
        self.instance_pb, (self.instances, self.execs) = stubs(
            "instance", "instance_service", "InstanceService", "ExecService"
        )
        self.types = importlib.import_module("berth.instance.v1.instance_pb2")
        self.values = importlib.import_module("berth.type.v1.values_pb2")

    def import_image(self, path):
        """Streams a unified image; gives the image."""
        part = self.values.BlobRef.PART_UNIFIED

        def requests():
            header = self.image_pb.ImportImageRequest.Header(parent=PROJECT, filename=path.name)
            yield self.image_pb.ImportImageRequest(header=header)
            with path.open("rb") as file:
                while data := file.read(CHUNK):
                    chunk = self.image_pb.ImportImageRequest.Chunk(part=part, data=data)
                    yield self.image_pb.ImportImageRequest(chunk=chunk)

        try:
            image = self.images.ImportImage(requests())
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.ALREADY_EXISTS:
                raise
            fingerprint = hashlib.sha256(path.read_bytes()).hexdigest()
            name = f"{PROJECT}/images/{fingerprint}"
            image = self.images.GetImage(self.image_pb.GetImageRequest(name=name))
        expected = hashlib.sha256(path.read_bytes()).hexdigest()
        assert image.fingerprint == expected, (image.fingerprint, expected)
        return image

    def exec(self, instance, command):
        """Runs a command; gives its exit code and output."""
        pb = self.instance_pb
        made = self.execs.CreateExec(
            pb.CreateExecRequest(
                parent=instance, command=command, no_stdin=True, exec_id=str(uuid.uuid4())
            )
        )
        attach = pb.StreamExecRequest(attach=pb.StreamExecRequest.Attach(name=made.name))
        out, code = b"", None
        stop = []

        def requests():
            yield attach
            while not stop:
                time.sleep(0.01)

        for response in self.execs.StreamExec(requests()):
            kind = response.WhichOneof("message")
            if kind == "stdout":
                out += response.stdout.data
            elif kind == "exit":
                code = response.exit.exit_code
                break
        stop.append(True)
        self.execs.DeleteExec(pb.DeleteExecRequest(name=made.name))
        return code, out.decode()

    def wait_status(self, instance, want, seconds=20):
        """Waits until the instance has a status."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            got = self.instances.GetInstance(self.instance_pb.GetInstanceRequest(name=instance))
            if got.status == want:
                return got
            time.sleep(0.05)
        raise AssertionError(f"{instance} is {got.status}, not {want}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sockets", required=True, help="directory with image.sock and so on")
    parser.add_argument("--image", required=True, type=pathlib.Path, help="unified image")
    parser.add_argument("--driver", default="btrfs", choices=["btrfs", "dir"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as stubs:
        generate(stubs)
        drive(Berth(options.sockets), options)


def drive(berth, options):
    tag = uuid.uuid4().hex[:6]
    image = berth.import_image(options.image)
    say(f"image {image.fingerprint[:12]} for {image.architecture}")

    storage = berth.storage_pb
    config = {"size": "2GiB"} if options.driver == "btrfs" else {}
    pool = berth.pools.CreatePool(
        storage.CreatePoolRequest(
            pool_id=f"py{tag}", pool=storage.Pool(driver=options.driver, config=config)
        )
    )
    say(f"pool {pool.name} is {pool.status}")

    name = f"py-{tag}"
    instance_name = f"{PROJECT}/instances/{name}"
    volume = berth.volumes.CreateVolume(
        storage.CreateVolumeRequest(
            parent=f"{PROJECT}/storagePools/py{tag}",
            collection="containers",
            volume_id=name,
            image=storage.ImageSource(fingerprint=image.fingerprint, blobs=image.blobs),
            request_id=f"{tag}/volume",
        )
    )
    say(f"volume {volume.name}")

    network = berth.network_pb
    bridge = berth.networks.CreateNetwork(
        network.CreateNetworkRequest(
            parent=PROJECT,
            network_id=f"py{tag}",
            network=network.Network(type="bridge", config={"ipv6.address": "none"}),
        )
    )
    say(f"bridge {bridge.name} at {bridge.config['ipv4.address']}")

    pb, types = berth.instance_pb, berth.types
    wanted = types.Instance(
        type=types.Instance.TYPE_CONTAINER,
        config={"limits.memory": "128MiB", "user.made-by": "python"},
        devices={
            "root": types.Device(options={"type": "disk", "path": "/", "pool": f"py{tag}"}),
            "eth0": types.Device(options={"type": "nic", "network": f"py{tag}", "name": "eth0"}),
        },
    )
    plan = berth.instances.PlanCreateInstance(
        pb.PlanCreateInstanceRequest(
            parent=PROJECT,
            instance_id=name,
            instance=wanted,
            image=pb.ImageInfo(
                fingerprint=image.fingerprint,
                architecture=image.architecture,
                properties=image.properties,
            ),
        )
    )
    assert len(plan.needed_ports) == 1 and plan.needed_volumes[0].root
    need = plan.needed_ports[0]
    port = berth.ports.CreatePort(
        network.CreatePortRequest(
            parent=bridge.name,
            port_id=need.port_id,
            spec=network.PortSpec(
                holder=instance_name,
                hostname=need.hostname,
                mac=need.mac,
                guest_name=need.guest_name,
                config=need.config,
            ),
            request_id=f"{tag}/port",
        )
    )
    say(f"port {port.host_name} with {port.mac}")

    create = pb.CreateInstanceRequest(
        parent=PROJECT,
        instance_id=name,
        instance=plan.instance,
        plan_etag=plan.plan_etag,
        attachments={"root": volume.attachment},
        ports={need.device: port},
        request_id=f"{tag}/instance",
        template_trigger="create",
    )
    berth.instances.CreateInstance(create)
    berth.instances.StartInstance(pb.StartInstanceRequest(name=instance_name))
    running = berth.wait_status(instance_name, types.Instance.STATUS_RUNNING)
    say(f"{name} runs")

    code, out = berth.exec(instance_name, ["sh", "-c", "cat /proc/1/comm; hostname"])
    assert code == 0, (code, out)
    code, _ = berth.exec(instance_name, ["sh", "-c", "exit 42"])
    assert code == 42, code
    say(f"exec answered {out.split()!r}")

    berth.exec(instance_name, ["reboot"])
    until = time.monotonic() + 30
    while True:
        got = berth.instances.GetInstance(pb.GetInstanceRequest(name=instance_name))
        if got.generation > running.generation and got.status == types.Instance.STATUS_RUNNING:
            break
        assert time.monotonic() < until, f"no reboot: {got.status} run {got.generation}"
        time.sleep(0.05)
    say(f"rebooted from inside: run {got.generation}")

    berth.instances.StopInstance(
        pb.StopInstanceRequest(name=instance_name, force=True, timeout_seconds=10)
    )
    berth.wait_status(instance_name, types.Instance.STATUS_STOPPED)
    berth.instances.DeleteInstance(pb.DeleteInstanceRequest(name=instance_name))
    berth.ports.DeletePort(network.DeletePortRequest(name=port.name))
    berth.networks.DeleteNetwork(network.DeleteNetworkRequest(name=bridge.name))
    berth.volumes.DeleteVolume(storage.DeleteVolumeRequest(name=volume.name))
    berth.pools.DeletePool(storage.DeletePoolRequest(name=pool.name))
    berth.images.DeleteImage(berth.image_pb.DeleteImageRequest(name=image.name))
    say("stopped and removed")


if __name__ == "__main__":
    main()
