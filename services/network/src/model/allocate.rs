//! Choosing subnets and addresses. Randomness and what is in use come from the caller.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// How often to try at random before going through all subnets in order.
const TRIES: usize = 100;
/// How many addresses of a range to look at: a /64 has more than anyone will wait for.
const ADDRESSES: u128 = 1 << 20;

/// A `10.x.y.1/24` that overlaps nothing in use; `None` when all are.
pub fn pick_ipv4(used: &[IpNet], mut random: impl FnMut() -> u16) -> Option<IpNet> {
    let at_random = (0..TRIES).map(|_| random()).collect::<Vec<_>>();
    at_random
        .into_iter()
        .chain(0..=u16::MAX)
        .map(|n| {
            let [x, y] = n.to_be_bytes();
            Ipv4Net::new_assert(Ipv4Addr::new(10, x, y, 1), 24)
        })
        .map(IpNet::V4)
        .find(|net| !used.iter().any(|other| overlaps(net, other)))
}

/// A `fd42:xxxx:xxxx:xxxx::1/64` that overlaps nothing in use; `None` if luck is that bad.
pub fn pick_ipv6(used: &[IpNet], mut random: impl FnMut() -> u16) -> Option<IpNet> {
    (0..TRIES)
        .map(|_| {
            let address = Ipv6Addr::new(0xfd42, random(), random(), random(), 0, 0, 0, 1);
            IpNet::V6(Ipv6Net::new_assert(address, 64))
        })
        .find(|net| !used.iter().any(|other| overlaps(net, other)))
}

/// Whether two subnets share an address. A default route is no subnet in use.
pub fn overlaps(a: &IpNet, b: &IpNet) -> bool {
    if a.prefix_len() == 0 || b.prefix_len() == 0 {
        return false;
    }
    a.contains(&b.network()) || b.contains(&a.network())
}

/// The first address of the ranges that is not taken.
pub fn pick_address(ranges: &[(IpAddr, IpAddr)], taken: &BTreeSet<IpAddr>) -> Option<IpAddr> {
    ranges.iter().find_map(|&(first, last)| {
        let (mut at, end) = (number(first), number(last));
        let stop = end.min(at.saturating_add(ADDRESSES));
        while at <= stop {
            let address = address(at, first.is_ipv4());
            if !taken.contains(&address) {
                return Some(address);
            }
            at += 1;
        }
        None
    })
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u32::from(a).into(),
        IpAddr::V6(a) => a.into(),
    }
}

fn address(number: u128, v4: bool) -> IpAddr {
    if v4 {
        Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX)).into()
    } else {
        Ipv6Addr::from(number).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn all_of_ten_in_use_leaves_none() {
        assert_eq!(pick_ipv4(&[net("10.0.0.0/8")], || 7), None);
        let but_one: Vec<IpNet> = (0..=u16::MAX)
            .filter(|n| *n != 0x0302)
            .map(|n| {
                let [x, y] = n.to_be_bytes();
                net(&format!("10.{x}.{y}.0/24"))
            })
            .collect();
        assert_eq!(pick_ipv4(&but_one, || 0), Some(net("10.3.2.1/24")));
    }

    #[test]
    fn a_default_route_is_not_in_use() {
        assert!(pick_ipv4(&[net("0.0.0.0/0")], || 1).is_some());
    }

    proptest! {
        #[test]
        fn what_is_picked_overlaps_nothing(
            used in proptest::collection::vec((any::<u32>(), 1_u8..=32), 0..40),
            seed in any::<u16>(),
        ) {
            let used: Vec<IpNet> = used
                .into_iter()
                .map(|(a, p)| IpNet::V4(Ipv4Net::new(Ipv4Addr::from(a), p).unwrap().trunc()))
                .collect();
            let mut next = seed;
            if let Some(picked) = pick_ipv4(&used, || { next = next.wrapping_mul(31).wrapping_add(7); next }) {
                prop_assert!(used.iter().all(|u| !overlaps(u, &picked)));
                prop_assert_eq!(picked.prefix_len(), 24);
            } else {
                prop_assert!(used.iter().any(|u| overlaps(u, &net("10.0.0.0/8"))));
            }
        }

        #[test]
        fn an_address_is_in_its_range_and_free(
            start in any::<u32>(), len in 0_u32..50,
            taken in proptest::collection::btree_set(0_u32..50, 0..50),
        ) {
            let start = start.min(u32::MAX - 60);
            let range = (
                IpAddr::from(Ipv4Addr::from(start)),
                IpAddr::from(Ipv4Addr::from(start + len)),
            );
            let taken: BTreeSet<IpAddr> =
                taken.into_iter().map(|t| Ipv4Addr::from(start + t).into()).collect();
            match pick_address(&[range], &taken) {
                Some(a) => prop_assert!(a >= range.0 && a <= range.1 && !taken.contains(&a)),
                None => prop_assert!(taken.len() as u32 > len),
            }
        }
    }
}
