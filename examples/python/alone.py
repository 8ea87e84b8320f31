#!/usr/bin/env python3
"""Uses one of Berth's services by itself, over TLS with certificates on both sides or over a unix
socket: what a team does that runs only that one."""

import argparse
import hashlib
import importlib
import pathlib
import tarfile
import tempfile
import time
import uuid

import grpc
from drive import CHUNK, PROJECT, generate, say


def connect(options):
    """A channel to `unix:/path` or to `host:port` with a certificate."""
    if options.address.startswith("unix:"):
        # grpcio would send the socket's path as :authority, which Rust's h2 refuses.
        return grpc.insecure_channel(options.address, [("grpc.default_authority", "localhost")])
    certificates = pathlib.Path(options.certificates)
    read = lambda name: (certificates / name).read_bytes()
    credentials = grpc.ssl_channel_credentials(
        root_certificates=read("ca.crt"),
        private_key=read(f"{options.role}.key"),
        certificate_chain=read(f"{options.role}.crt"),
    )
    return grpc.secure_channel(options.address, credentials)


class Stubs:
    """The messages and stubs of one area."""

    def __init__(self, channel, area, module, *services):
        self.pb = importlib.import_module(f"berth.{area}.v1.{module}_pb2")
        rpc = importlib.import_module(f"berth.{area}.v1.{module}_pb2_grpc")
        for service in services:
            setattr(self, service, getattr(rpc, f"{service}ServiceStub")(channel))


def image(channel, options, tag):
    """Takes an image, finds it by an alias, saves it again, removes it."""
    stubs = Stubs(channel, "image", "image_service", "Image")
    pb, images = stubs.pb, stubs.Image
    values = importlib.import_module("berth.type.v1.values_pb2")
    path = options.image
    digest = hashlib.sha256(path.read_bytes()).hexdigest()

    def upload():
        yield pb.ImportImageRequest(
            header=pb.ImportImageRequest.Header(
                parent=PROJECT, filename=path.name, aliases=[pb.Alias(alias=f"alone-{tag}")]
            )
        )
        with path.open("rb") as file:
            while data := file.read(CHUNK):
                chunk = pb.ImportImageRequest.Chunk(part=values.BlobRef.PART_UNIFIED, data=data)
                yield pb.ImportImageRequest(chunk=chunk)

    made = images.ImportImage(upload())
    assert made.fingerprint == digest, (made.fingerprint, digest)
    found = images.ResolveImage(pb.ResolveImageRequest(parent=PROJECT, alias=f"alone-{tag}"))
    saved = hashlib.sha256()
    for message in images.ExportImage(pb.ExportImageRequest(name=found.name)):
        saved.update(message.data)
    assert saved.hexdigest() == digest
    images.DeleteImage(pb.DeleteImageRequest(name=found.name))
    say(f"image {digest[:12]} was kept, found, given back and removed")


def storage(channel, options, tag):
    """Makes a pool, brings an image into it, clones it, snapshots and restores the clone."""
    stubs = Stubs(channel, "storage", "storage_service", "Pool", "Volume")
    pb, pools, volumes = stubs.pb, stubs.Pool, stubs.Volume
    values = importlib.import_module("berth.type.v1.values_pb2")
    content = options.image.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    source = pb.ImageSource(
        fingerprint=digest,
        blobs=[
            values.BlobRef(
                uri="file:///elsewhere",
                digest=f"sha256:{digest}",
                size_bytes=len(content),
                media_type="application/x-tar+gzip",
                part=values.BlobRef.PART_UNIFIED,
            )
        ],
    )
    pool = pools.CreatePool(pb.CreatePoolRequest(pool_id=f"alone{tag}", pool=pb.Pool(driver="dir")))
    parent = f"{PROJECT}/{pool.name}"
    create = pb.CreateVolumeRequest(
        parent=parent, collection="containers", volume_id="c1", image=source
    )
    try:
        volumes.CreateVolume(create)
        raise AssertionError("the image is not on the service's host")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.FAILED_PRECONDITION, error

    def upload():
        header = pb.ImportImageRequest.Header(parent=parent, image=source)
        yield pb.ImportImageRequest(header=header)
        for start in range(0, len(content), CHUNK):
            yield pb.ImportImageRequest(data=content[start : start + CHUNK])

    cached = volumes.ImportImage(upload())
    volume = volumes.CreateVolume(create)
    snapshot = volumes.CreateSnapshot(
        pb.CreateSnapshotRequest(parent=volume.name, snapshot_id="s1")
    )
    restored = volumes.RestoreVolume(
        pb.RestoreVolumeRequest(name=volume.name, snapshot_id="s1")
    )
    assert restored.attachment.generation > volume.attachment.generation
    say(f"{volume.name} has {snapshot.name.rsplit('/', 1)[-1]} and was restored")
    volumes.DeleteVolume(pb.DeleteVolumeRequest(name=volume.name))
    volumes.DeleteVolume(pb.DeleteVolumeRequest(name=cached.name))
    pools.DeletePool(pb.DeletePoolRequest(name=pool.name))


def network(channel, options, tag):
    """Makes a bridge with DHCP, declares a port on it, removes both."""
    stubs = Stubs(channel, "network", "network_service", "Network", "Port")
    pb = stubs.pb
    bridge = stubs.Network.CreateNetwork(
        pb.CreateNetworkRequest(
            parent=PROJECT,
            network_id=f"al{tag}",
            network=pb.Network(type="bridge", config={"ipv6.address": "none"}),
        )
    )
    port = stubs.Port.CreatePort(
        pb.CreatePortRequest(
            parent=bridge.name,
            port_id="guest-eth0",
            spec=pb.PortSpec(holder=f"{PROJECT}/instances/guest", hostname="guest"),
        )
    )
    say(f"{bridge.name} at {bridge.config['ipv4.address']} has {port.host_name} for {port.mac}")
    stubs.Port.DeletePort(pb.DeletePortRequest(name=port.name))
    stubs.Network.DeleteNetwork(pb.DeleteNetworkRequest(name=bridge.name))


def instance(channel, options, tag):
    """Runs a guest on a directory, with neither storage nor network service."""
    stubs = Stubs(channel, "instance", "instance_service", "Instance", "Exec")
    pb = stubs.pb
    types = importlib.import_module("berth.instance.v1.instance_pb2")
    values = importlib.import_module("berth.type.v1.values_pb2")
    root = pathlib.Path(options.directory) / f"alone-{tag}"
    root.mkdir()
    with tarfile.open(options.image) as archive:
        archive.extractall(root)
    mount = values.Attachment.Mount(
        host_path=str(root), ownership=values.OWNERSHIP_RAW, can_idmap=True
    )
    volume = f"{PROJECT}/storagePools/none/containers/alone-{tag}"
    disk = types.Device(options={"type": "disk", "path": "/", "pool": "none"})
    name = f"{PROJECT}/instances/alone-{tag}"
    stubs.Instance.CreateInstance(
        pb.CreateInstanceRequest(
            parent=PROJECT,
            instance_id=f"alone-{tag}",
            instance=types.Instance(devices={"root": disk}),
            attachments={"root": values.Attachment(volume=volume, mounts=[mount])},
        )
    )
    stubs.Instance.StartInstance(pb.StartInstanceRequest(name=name))
    made = stubs.Exec.CreateExec(
        pb.CreateExecRequest(
            parent=name, command=["hostname"], no_stdin=True, exec_id=str(uuid.uuid4())
        )
    )
    attach = pb.StreamExecRequest(attach=pb.StreamExecRequest.Attach(name=made.name))
    over = []

    def requests():
        yield attach
        while not over:
            time.sleep(0.01)

    out = b""
    for response in stubs.Exec.StreamExec(requests()):
        kind = response.WhichOneof("message")
        if kind == "stdout":
            out += response.stdout.data
        elif kind == "exit":
            assert response.exit.exit_code == 0, response
            break
    over.append(True)
    assert out.strip() == f"alone-{tag}".encode(), out
    say(f"{name} runs and calls itself {out.decode().strip()}")
    stop = pb.StopInstanceRequest(name=name, force=True, timeout_seconds=10)
    stubs.Instance.StopInstance(stop)
    stubs.Instance.DeleteInstance(pb.DeleteInstanceRequest(name=name))


def gateway(channel, options, tag):
    """Launches an instance by one call, and removes it by another."""
    stubs = Stubs(channel, "gateway", "gateway_service", "Gateway")
    pb = stubs.pb
    types = importlib.import_module("berth.instance.v1.instance_pb2")
    operations_pb = importlib.import_module("google.longrunning.operations_pb2")
    operations_rpc = importlib.import_module("google.longrunning.operations_pb2_grpc")
    operations = operations_rpc.OperationsStub(channel)

    def done(operation):
        wait = operations_pb.WaitOperationRequest(name=operation.name)
        wait.timeout.FromSeconds(60)
        ended = operations.WaitOperation(wait)
        assert ended.done and not ended.HasField("error"), ended

    name = f"{PROJECT}/instances/alone-{tag}"
    create = pb.CreateInstanceRequest(
        parent=PROJECT,
        instance_id=f"alone-{tag}",
        instance=types.Instance(),
        default_profiles=True,
        image_alias=options.alias,
        start=True,
    )
    done(stubs.Gateway.CreateInstance(create))
    running = stubs.Gateway.GetInstance(pb.GetInstanceRequest(name=name))
    assert running.status == types.Instance.STATUS_RUNNING, running
    say(f"{name} was launched")
    stop = pb.ChangeInstanceStateRequest(name=name, action=pb.ChangeInstanceStateRequest.ACTION_STOP)
    stop.force = True
    done(stubs.Gateway.ChangeInstanceState(stop))
    done(stubs.Gateway.DeleteInstance(pb.DeleteInstanceRequest(name=name)))


SERVICES = {f.__name__: f for f in [image, storage, network, instance, gateway]}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("service", choices=SERVICES)
    parser.add_argument("--address", required=True, help="host:port, or unix:/path")
    parser.add_argument("--certificates", help="directory with ca.crt, ROLE.crt and ROLE.key")
    parser.add_argument("--role", default="client", help="whose certificate to show")
    parser.add_argument("--image", type=pathlib.Path, help="unified image, gzipped tar")
    parser.add_argument("--directory", help="where a guest's files go (instance)")
    parser.add_argument("--alias", help="image to launch (gateway)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as stubs:
        generate(stubs)
        with connect(options) as channel:
            SERVICES[options.service](channel, options, uuid.uuid4().hex[:6])


if __name__ == "__main__":
    main()
