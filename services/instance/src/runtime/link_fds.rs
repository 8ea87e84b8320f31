//! The questions whose answers carry descriptors; each asked on a connection of its own, blocking.

use std::io::{self, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use berth_monitor::error::{Fault, FaultCode};
use berth_monitor::frame::{self, Decoder};
use berth_monitor::protocol::{FromMonitor, PROTOCOL_VERSION, Reply, Request, ToMonitor};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::Root;

/// A monitor answers at once or is stuck.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks the monitor at `socket` for the guest's root directory and user namespace.
pub(super) fn open_root(socket: &Path) -> Result<Root, Fault> {
    let (reply, fds) = ask(socket, Request::OpenRoot, "files")?;
    let mut fds = fds.into_iter();
    match (reply, fds.next(), fds.next(), fds.next()) {
        (Reply::Root, Some(dir), Some(userns), None) => Ok(Root { dir, userns }),
        _ => Err(others("files")),
    }
}

/// Asks the monitor at `socket` for a route socket in the guest's network namespace.
pub(super) fn open_route(socket: &Path) -> Result<OwnedFd, Fault> {
    let (reply, fds) = ask(socket, Request::OpenRoute, "meter")?;
    let mut fds = fds.into_iter();
    match (reply, fds.next(), fds.next()) {
        (Reply::Route, Some(route), None) => Ok(route),
        _ => Err(others("meter")),
    }
}

fn others(stage: &str) -> Fault {
    Fault::new(
        stage,
        FaultCode::Invalid,
        "the monitor sent other descriptors than asked for",
    )
}

fn ask(socket: &Path, request: Request, stage: &str) -> Result<(Reply, Vec<OwnedFd>), Fault> {
    let fail = |e: io::Error| Fault::io(stage, &e, "asking the monitor for descriptors");
    let mut stream = UnixStream::connect(socket).map_err(fail)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(fail)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(fail)?;
    let mut bytes = Vec::new();
    let bodies = [
        Request::Hello {
            version: PROTOCOL_VERSION,
        },
        request,
    ];
    for (id, body) in (1..).zip(bodies) {
        let encoded = frame::encode(&ToMonitor { id, body }, &[]);
        bytes.extend(encoded.map_err(|e| fail(io::Error::other(e)))?);
    }
    stream.write_all(&bytes).map_err(fail)?;
    let mut decoder = Decoder::new();
    let mut fds = Vec::new();
    loop {
        let read = receive(&stream, &mut decoder, &mut fds).map_err(fail)?;
        while let Some((frame, _)) = decoder
            .next::<FromMonitor>()
            .map_err(|e| fail(io::Error::other(e)))?
        {
            let FromMonitor::Reply { id, result } = frame else {
                continue;
            };
            let reply = result?;
            if id == 2 {
                return Ok((reply, fds));
            }
        }
        if read == 0 {
            return Err(fail(io::ErrorKind::UnexpectedEof.into()));
        }
    }
}

fn receive(
    stream: &UnixStream,
    decoder: &mut Decoder,
    fds: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut buffer = vec![0; 16 << 10];
    let slices = &mut [IoSliceMut::new(&mut buffer)];
    let message = recvmsg(stream, slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    for part in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            fds.extend(rights);
        }
    }
    let read = message.bytes;
    decoder.feed(&buffer[..read]);
    Ok(read)
}
