//! Limits of what goes to a guest: a token bucket on its host-side link, put there when the
//! kernel announces the link.

use std::io;

use super::wire::{Attrs, Channel, NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, message};

const NETLINK_ROUTE: isize = 0;
const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const ROOT: u32 = 0xffff_ffff;

/// Bytes that may pass at once; the kernel cuts segmentation-offloaded packets down to it.
const LEAST_BURST: u64 = 32 << 10;
const MOST_BURST: u64 = 8 << 20;

fn tcmsg(index: u32) -> Vec<u8> {
    let mut head = vec![0_u8; 4];
    head.extend_from_slice(&index.to_ne_bytes());
    head.extend_from_slice(&0_u32.to_ne_bytes());
    head.extend_from_slice(&ROOT.to_ne_bytes());
    head.extend_from_slice(&0_u32.to_ne_bytes());
    head
}

fn send(kind: u16, flags: u16, payload: &Attrs) -> io::Result<()> {
    let channel = Channel::open(NETLINK_ROUTE)?;
    let mut datagram = Vec::new();
    let flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    message(&mut datagram, kind, flags, 1, payload.as_slice());
    channel.transact(&datagram, 1).map_err(|(_, e)| e)
}

/// Limits a link to `bps` bits per second.
pub(crate) fn limit(index: u32, bps: u64) -> io::Result<()> {
    let bytes = (bps / 8).max(1);
    // 25 ms of the rate at once, 100 ms of it waiting.
    let burst = (bytes / 40).clamp(LEAST_BURST, MOST_BURST);
    let waiting = u32::try_from(burst + (bytes / 10).max(64 << 10)).unwrap_or(u32::MAX);
    let burst = u32::try_from(burst).unwrap_or(u32::MAX);

    // struct tc_tbf_qopt: rate and peak rate of 12 bytes each, limit, buffer, mtu.
    let mut parameters = vec![0, 1, 0, 0, 0, 0, 0, 0];
    let rate32 = u32::try_from(bytes).unwrap_or(u32::MAX);
    parameters.extend_from_slice(&rate32.to_ne_bytes());
    parameters.extend_from_slice(&[0; 12]);
    parameters.extend_from_slice(&waiting.to_ne_bytes());
    parameters.extend_from_slice(&[0; 8]);
    let mut options = Attrs::new().bytes(1, &parameters);
    if bytes > u64::from(u32::MAX) {
        options = options.bytes(4, &bytes.to_ne_bytes());
    }
    options = options.bytes(6, &burst.to_ne_bytes());
    let payload = Attrs::new()
        .raw(&tcmsg(index))
        .text(1, "tbf")
        .nest(2, options);
    send(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_REPLACE, &payload)
}

/// Takes the limit off.
pub(crate) fn unlimit(index: u32) -> io::Result<()> {
    match send(RTM_DELQDISC, 0, &Attrs::new().raw(&tcmsg(index))) {
        // There is none, or the link is gone.
        Err(e)
            if [Some(libc::ENOENT), Some(libc::EINVAL), Some(libc::ENODEV)]
                .contains(&e.raw_os_error()) =>
        {
            Ok(())
        }
        other => other,
    }
}
