//! pylxd 2.4.2, unmodified.

#![allow(clippy::unwrap_used, reason = "a scenario reports by panicking")]

use std::process::Command;

use berth_e2e::{Image, Server, python};

const SCRIPT: &str = r#"
import sys
import pylxd

client = pylxd.Client(endpoint=sys.argv[1])
assert client.trusted
assert client.host_info["environment"]["server_version"] == "5.0.2"

image = client.images.get_by_alias("busybox")
assert len(image.fingerprint) == 64
assert image.properties["os"] == "BusyBox"
assert image.fingerprint in [i.fingerprint for i in client.images.all()]
image.add_alias("py-alias", "made by pylxd")
assert client.images.get_by_alias("py-alias").fingerprint == image.fingerprint
image.delete_alias("py-alias")

profile = client.profiles.create("py-p", config={"environment.FROM": "pylxd"})
assert client.profiles.exists("py-p")
profile.description = "changed"
profile.save()
assert client.profiles.get("py-p").description == "changed"

config = {
    "name": "py-a", "profiles": ["default", "py-p"], "config": {"user.key": "value"},
    "source": {"type": "image", "alias": "busybox"},
}
instance = client.instances.create(config, wait=True)
assert instance.status == "Stopped", instance.status
instance.start(wait=True)
instance.sync()
assert instance.status == "Running", instance.status

done = instance.execute(["sh", "-c", "echo $FROM; echo err >&2; exit 3"])
assert (done.exit_code, done.stdout, done.stderr) == (3, "pylxd\n", "err\n"), done
done = instance.execute(["cat"], stdin_payload="given\n")
assert (done.exit_code, done.stdout) == (0, "given\n"), done
assert instance.execute(["id", "-u"], user=1000).stdout == "1000\n"

instance.files.put("/root/file", b"content", mode=0o600)
assert instance.files.get("/root/file") == b"content"
assert instance.state().processes >= 1
assert instance.state().memory["usage"] > 0

snapshot = instance.snapshots.create("s0", wait=True)
assert [s.name for s in instance.snapshots.all()] == ["s0"]
snapshot.delete(wait=True)

instance = client.instances.get("py-a")
instance.config["user.key"] = "other"
instance.save(wait=True)
assert client.instances.get("py-a").config["user.key"] == "other"
instance.freeze(wait=True)
assert instance.status == "Frozen", instance.status
instance.unfreeze(wait=True)
instance.stop(wait=True, force=True)
assert instance.status == "Stopped", instance.status
try:
    client.instances.create(config, wait=True)
    raise SystemExit("a name in use was accepted")
except pylxd.exceptions.LXDAPIException as error:
    assert "already" in str(error), error
instance.delete(wait=True)
assert not client.instances.exists("py-a")
profile.delete()
assert not client.profiles.exists("py-p")
print("done")
"#;

#[test]
fn lxc_api_by_pylxd() {
    let server = Server::any();
    server.import(Image::Busybox);
    let mut script = Command::new(python::interpreter());
    script.args(["-c", SCRIPT]).arg(server.socket());
    assert_eq!(python::run(&mut script), "done\n");
}
