//! The kernel's calls that std has no words for. Thin: one call each, `io::Error` out, no policy.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// -1 → errno.
pub fn check(value: i32) -> io::Result<i32> {
    if value < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

pub fn prctl(option: i32, arg: usize) -> io::Result<i32> {
    prctl4(option, arg, 0, 0)
}

pub fn prctl4(option: i32, a: usize, b: usize, c: usize) -> io::Result<i32> {
    // SAFETY: every option used in this crate takes integers, or pointers the caller keeps alive.
    check(unsafe { libc::prctl(option, a, b, c, 0usize) })
}

/// Takes ownership of a descriptor a raw call returned.
pub(crate) fn own(fd: i32) -> io::Result<OwnedFd> {
    let fd = check(fd)?;
    // SAFETY: the kernel just created this descriptor for us; nobody else closes it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
