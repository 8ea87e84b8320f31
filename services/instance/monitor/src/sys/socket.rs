//! Unix sockets that carry descriptors.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use super::{check, own};

/// Most descriptors one message carries here.
const MAX_FDS: usize = 4;

/// A connected pair that keeps message boundaries.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: room for two descriptors.
    check(unsafe {
        libc::socketpair(
            libc::AF_UNIX,
            libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC,
            0,
            fds.as_mut_ptr(),
        )
    })?;
    Ok((own(fds[0])?, own(fds[1])?))
}

#[repr(C, align(8))]
struct Control([u8; 64]);

/// sendmsg(2) with MSG_NOSIGNAL; the descriptors go with the first byte taken.
pub fn send(socket: impl AsFd, bytes: &[u8], fds: &[impl AsFd]) -> io::Result<usize> {
    assert!(
        fds.len() <= MAX_FDS,
        "more descriptors than the control buffer holds"
    );
    let mut iov = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    let mut control = Control([0; 64]);
    // SAFETY: an all-zero msghdr is valid.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &mut iov;
    message.msg_iovlen = 1;
    if !fds.is_empty() {
        let length = (fds.len() * size_of::<i32>()) as u32;
        message.msg_control = control.0.as_mut_ptr().cast();
        // SAFETY: the control buffer is aligned, and long enough for MAX_FDS descriptors (32 bytes).
        unsafe {
            message.msg_controllen = libc::CMSG_SPACE(length) as _;
            let header = libc::CMSG_FIRSTHDR(&message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(length) as _;
            let data = libc::CMSG_DATA(header).cast::<i32>();
            for (i, fd) in fds.iter().enumerate() {
                data.add(i).write_unaligned(fd.as_fd().as_raw_fd());
            }
        }
    }
    // SAFETY: message and everything it points to live over the call.
    let n = unsafe { libc::sendmsg(socket.as_fd().as_raw_fd(), &message, libc::MSG_NOSIGNAL) };
    if n < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(n as usize)
    }
}

/// recvmsg(2): bytes read (0: closed) and descriptors, close-on-exec. `flags` e.g. MSG_DONTWAIT.
pub fn receive(
    socket: impl AsFd,
    buffer: &mut [u8],
    flags: i32,
) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut iov = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    let mut control = Control([0; 64]);
    // SAFETY: an all-zero msghdr is valid.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &mut iov;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len() as _;
    let n = loop {
        // SAFETY: message and everything it points to live over the call.
        let n = unsafe {
            libc::recvmsg(
                socket.as_fd().as_raw_fd(),
                &mut message,
                flags | libc::MSG_CMSG_CLOEXEC,
            )
        };
        if n >= 0 {
            break n as usize;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    };
    let mut fds = Vec::new();
    // SAFETY: the kernel wrote well-formed control messages into the buffer; each SCM_RIGHTS holds
    // descriptors that are ours now.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                let length = (*header).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                let data = libc::CMSG_DATA(header).cast::<i32>();
                for i in 0..length / size_of::<i32>() {
                    fds.push(own(data.add(i).read_unaligned())?);
                }
            }
            header = libc::CMSG_NXTHDR(&message, header);
        }
    }
    Ok((n, fds))
}

/// uid of the other side.
pub(crate) fn peer_uid(socket: impl AsFd) -> io::Result<u32> {
    let mut credentials = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut length = size_of::<libc::ucred>() as u32;
    // SAFETY: the value is as long as said and lives over the call.
    check(unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &mut length,
        )
    })?;
    Ok(credentials.uid)
}

/// Bounds every blocking receive.
pub(crate) fn receive_timeout(socket: impl AsFd, seconds: i64) -> io::Result<()> {
    let time = libc::timeval {
        tv_sec: seconds,
        tv_usec: 0,
    };
    // SAFETY: the value is as long as said and lives over the call.
    check(unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            (&raw const time).cast(),
            size_of::<libc::timeval>() as u32,
        )
    })
    .map(|_| ())
}
