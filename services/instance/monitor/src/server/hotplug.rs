//! Devices of a running guest.
//!
//! What must happen inside the guest's mount namespace is done by a short-lived child: the guest's own file
//! systems (it may have mounted FUSE there) can keep that child waiting, but not the monitor.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::freeze::refuse_frozen;
use super::{Asker, Monitor, not_found};
use crate::attach::open_attachment;
use crate::cgroup::devices;
use crate::error::{AtStage, Fault, FaultCode, Result};
use crate::netlink::links;
use crate::protocol::Reply;
use crate::spec::{DeviceNode, Mount, PortSpec};
use crate::start::child::{become_root, send_fault};
use crate::start::{parse_fault, prepare, tree};
use crate::sys::{self, mount};

/// Longest a helper may take.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) struct Helper {
    child: sys::Child,
    /// Holds the fault, if any, when the child has ended.
    status: OwnedFd,
    pub(super) deadline: Instant,
    asker: Asker,
    then: Then,
}

/// What a helper does inside the guest.
enum Work<'a> {
    Attach {
        tree: &'a OwnedFd,
        path: &'a str,
    },
    /// Unmounts; removes the empty file that was its mount point as well.
    Detach {
        path: &'a str,
        unlink: bool,
    },
}

/// What is recorded once it worked.
enum Then {
    Mounted(Mount),
    Unmounted(String),
    DeviceAdded(DeviceNode),
    DeviceRemoved(String),
}

impl Monitor {
    pub(super) fn add_mount(&mut self, asker: Asker, disk: Mount) {
        let begun = self.begin_mount(asker, disk);
        self.answer_fault(asker, begun);
    }

    fn begin_mount(&mut self, asker: Asker, disk: Mount) -> Result<()> {
        disk.validate(self.spec.privileged)?;
        refuse_frozen(&self.freeze)?;
        if self.spec.mounts.iter().any(|m| m.name == disk.name) {
            return Err(Fault::new(
                "mounts",
                FaultCode::Exists,
                format!("disk {:?} is there already", disk.name),
            ));
        }
        let idmapped = disk.attachment.needs_idmap(self.spec.privileged);
        let tree = open_attachment(&disk.attachment, idmapped.then_some(&self.run.userns))?;
        let path = disk.target.clone();
        self.begin_helper(
            asker,
            Work::Attach {
                tree: &tree,
                path: &path,
            },
            Then::Mounted(disk),
        )
    }

    pub(super) fn remove_mount(&mut self, asker: Asker, name: &str) {
        let begun = refuse_frozen(&self.freeze).and_then(|()| {
            let disk = self
                .spec
                .mounts
                .iter()
                .find(|m| m.name == name)
                .ok_or_else(|| not_found("disk", name))?;
            let path = disk.target.clone();
            self.begin_helper(
                asker,
                Work::Detach {
                    path: &path,
                    unlink: false,
                },
                Then::Unmounted(name.to_owned()),
            )
        });
        self.answer_fault(asker, begun);
    }

    pub(super) fn add_device(&mut self, asker: Asker, device: DeviceNode) {
        let begun = self.begin_device(asker, device);
        self.answer_fault(asker, begun);
    }

    fn begin_device(&mut self, asker: Asker, device: DeviceNode) -> Result<()> {
        device.validate()?;
        refuse_frozen(&self.freeze)?;
        if self.spec.devices.iter().any(|d| d.name == device.name) {
            return Err(Fault::new(
                "devices",
                FaultCode::Exists,
                format!("device {:?} is there already", device.name),
            ));
        }
        let node = prepare::device_node(&self.spec, &self.host.devices_dir, &device)?;
        let mut all = self.spec.devices.clone();
        all.push(device.clone());
        self.allow_devices(&all)?;
        let path = device.path.clone();
        self.begin_helper(
            asker,
            Work::Attach {
                tree: &node,
                path: &path,
            },
            Then::DeviceAdded(device),
        )
    }

    pub(super) fn remove_device(&mut self, asker: Asker, name: &str) {
        let begun = refuse_frozen(&self.freeze).and_then(|()| {
            let device = self
                .spec
                .devices
                .iter()
                .find(|d| d.name == name)
                .ok_or_else(|| not_found("device", name))?;
            let path = device.path.clone();
            self.begin_helper(
                asker,
                Work::Detach {
                    path: &path,
                    unlink: true,
                },
                Then::DeviceRemoved(name.to_owned()),
            )
        });
        self.answer_fault(asker, begun);
    }

    fn allow_devices(&mut self, devices: &[DeviceNode]) -> Result<()> {
        if self.spec.privileged {
            let rules = devices::rules(devices);
            let earlier = self.run.device_program.as_ref();
            self.run.device_program = self.run.cgroup.allow_devices(&rules, earlier)?;
        }
        Ok(())
    }

    fn answer_fault(&mut self, asker: Asker, begun: Result<()>) {
        if let Err(fault) = begun {
            self.answer(asker, Err(fault));
        }
    }

    fn begin_helper(&mut self, asker: Asker, work: Work<'_>, then: Then) -> Result<()> {
        let (status, child_status) = sys::socket::pair().at("helper", "making a socket pair")?;
        let Some(child) = sys::clone3(0, None).at("helper", "clone3")? else {
            drop(status);
            let done = work.run(&self.run.init.pidfd, self.spec.privileged);
            if let Err(fault) = &done {
                send_fault(&child_status, fault);
            }
            sys::exit_now(i32::from(done.is_err()));
        };
        drop(child_status);
        let serial = self.next_serial();
        let deadline = Instant::now() + PATIENCE;
        self.helpers.insert(
            serial,
            Helper {
                child,
                status,
                deadline,
                asker,
                then,
            },
        );
        Ok(())
    }

    fn helper_done(&mut self, asker: Asker, then: Then, result: Result<()>) {
        match (then, &result) {
            (Then::Mounted(disk), Ok(())) => self.spec.mounts.push(disk),
            (Then::Unmounted(name), Ok(())) => self.spec.mounts.retain(|m| m.name != name),
            (Then::DeviceAdded(device), Ok(())) => self.spec.devices.push(device),
            (Then::DeviceAdded(device), Err(_)) => self.forget_device(&device.name),
            (Then::DeviceRemoved(name), Ok(())) => {
                self.spec.devices.retain(|d| d.name != name);
                self.forget_device(&name);
            }
            (Then::Mounted(_) | Then::Unmounted(_) | Then::DeviceRemoved(_), Err(_)) => {}
        }
        self.answer(asker, result.map(|()| Reply::Done));
    }

    /// Takes the host's node and the permission away again.
    fn forget_device(&mut self, name: &str) {
        if let Err(e) = prepare::remove_node(&self.host.devices_dir, name) {
            crate::log::line(format_args!("removing the node of {name:?}: {e}"));
        }
        let devices = self.spec.devices.clone();
        if let Err(fault) = self.allow_devices(&devices) {
            crate::log::line(format_args!("{fault}"));
        }
    }

    /// A child that is no exec was reaped: a helper, or one that was killed for being late.
    pub(super) fn helper_ended(&mut self, pid: i32, raw: i32) {
        let serial = self
            .helpers
            .iter()
            .find(|(_, h)| h.child.pid == pid)
            .map(|(s, _)| *s);
        let Some(helper) = serial.and_then(|s| self.helpers.remove(&s)) else {
            return;
        };
        let mut message = vec![0; 8 << 10];
        let result = match sys::socket::receive(&helper.status, &mut message, libc::MSG_DONTWAIT) {
            Ok((n, _)) if n > 0 && message[0] == b'E' => Err(parse_fault(&message[1..n])),
            _ if raw == 0 => Ok(()),
            _ => {
                let text = format!("the helper ended with {:?}", sys::exit_status(raw));
                Err(Fault::new("helper", FaultCode::State, text))
            }
        };
        self.helper_done(helper.asker, helper.then, result);
    }

    pub(super) fn helper_deadlines(&mut self, now: Instant) {
        let late: Vec<u64> = self
            .helpers
            .iter()
            .filter(|(_, h)| h.deadline <= now)
            .map(|(s, _)| *s)
            .collect();
        for serial in late {
            let Some(helper) = self.helpers.remove(&serial) else {
                continue;
            };
            // It is reaped like any other child; nobody waits for it any more.
            let _ = sys::pidfd_signal(&helper.child.pidfd, libc::SIGKILL);
            let late = Fault::new(
                "helper",
                FaultCode::Timeout,
                "the guest's file system did not answer in time",
            );
            self.helper_done(helper.asker, helper.then, Err(late));
        }
    }

    pub(super) fn end_helpers(&mut self) {
        for (_, helper) in std::mem::take(&mut self.helpers) {
            let _ = sys::pidfd_signal(&helper.child.pidfd, libc::SIGKILL);
            let gone = Fault::new("helper", FaultCode::State, "the guest ended");
            self.helper_done(helper.asker, helper.then, Err(gone));
        }
    }

    pub(super) fn add_nic(&mut self, nic: PortSpec) -> Result<Reply> {
        nic.validate()?;
        if self.spec.nics.iter().any(|n| n.name == nic.name) {
            return Err(Fault::new(
                "network",
                FaultCode::Exists,
                format!("nic {:?} is there already", nic.name),
            ));
        }
        links::create(&self.host.route, &nic, &self.run.netns)?;
        self.spec.nics.push(nic);
        Ok(Reply::Done)
    }

    pub(super) fn remove_nic(&mut self, name: &str) -> Result<Reply> {
        let at = self
            .spec
            .nics
            .iter()
            .position(|n| n.name == name)
            .ok_or_else(|| links::not_found(name))?;
        let nic = &self.spec.nics[at];
        let removed = match nic.host_name {
            Some(_) => links::delete(&self.host.route, nic),
            None => links::delete_named(&self.run.guest_route, &nic.guest_name),
        };
        removed.at("network", format!("removing nic {name:?}"))?;
        self.spec.nics.remove(at);
        Ok(Reply::Done)
    }

    pub(super) fn set_nic_link(&mut self, name: &str, up: bool) -> Result<Reply> {
        let nic = self
            .spec
            .nics
            .iter()
            .find(|n| n.name == name)
            .ok_or_else(|| links::not_found(name))?;
        let host = nic.host_name.as_deref().ok_or_else(|| {
            Fault::new(
                "network",
                FaultCode::Unsupported,
                format!("nic {name:?} has no host end"),
            )
        })?;
        links::set_up(&self.host.route, host, up).at("network", format!("setting {host}"))?;
        Ok(Reply::Done)
    }
}

impl Work<'_> {
    /// In the child: into the guest's mount namespace as its root, then by descriptors only.
    fn run(&self, init: &OwnedFd, privileged: bool) -> Result<()> {
        sys::prctl(libc::PR_SET_DUMPABLE, 0).at("helper", "PR_SET_DUMPABLE")?;
        let userns = if privileged { 0 } else { libc::CLONE_NEWUSER };
        sys::setns(init, libc::CLONE_NEWNS | userns).at("helper", "entering the guest")?;
        if !privileged {
            // The host's root is nobody there, and could make no directory.
            become_root(&[], 0, 0)?;
        }
        let root = sys::open("/", libc::O_PATH | libc::O_DIRECTORY)
            .at("helper", "opening the guest's root")?;
        match self {
            Work::Attach { tree, path } => {
                tree::attach_at(&root, path, tree).at("mounts", format!("attaching {path}"))
            }
            Work::Detach { path, unlink } => {
                let (dir, name) =
                    tree::parent_of(&root, path).at("mounts", format!("finding {path}"))?;
                rustix::process::fchdir(&dir)
                    .map_err(std::io::Error::from)
                    .at("mounts", format!("entering the directory of {path}"))?;
                match mount::unmount_in_cwd(&name) {
                    // The guest unmounted it itself, or removed the place.
                    Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) => {}
                    other => other.at("mounts", format!("unmounting {path}"))?,
                }
                if *unlink {
                    match sys::unlinkat(&dir, &name, 0) {
                        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                        other => other.at("devices", format!("removing {path}"))?,
                    }
                }
                Ok(())
            }
        }
    }
}
