//! Rules, written as the kernel's expressions.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::host::wire::Attrs;

// Registers of 16 bytes; a concatenated key lies in both.
const FIRST: u32 = 1;
const SECOND: u32 = 2;

const LINK: u32 = 0;
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;

const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;

const EQ: u32 = 0;
const NEQ: u32 = 1;
const GT: u32 = 4;

/// A field of a packet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Field {
    base: u32,
    offset: u32,
    len: u32,
}

const fn field(base: u32, offset: u32, len: u32) -> Field {
    Field { base, offset, len }
}

pub(crate) const ETHER_SADDR: Field = field(LINK, 6, 6);
pub(crate) const ETHER_TYPE: Field = field(LINK, 12, 2);
pub(crate) const ARP_SENDER_ETHER: Field = field(NETWORK, 8, 6);
pub(crate) const ARP_SENDER_IP: Field = field(NETWORK, 14, 4);
pub(crate) const IP_FRAGMENT: Field = field(NETWORK, 6, 2);
pub(crate) const IP_SADDR: Field = field(NETWORK, 12, 4);
pub(crate) const IP_DADDR: Field = field(NETWORK, 16, 4);
pub(crate) const IP6_PAYLOAD_LEN: Field = field(NETWORK, 4, 2);
pub(crate) const IP6_NEXT_HEADER: Field = field(NETWORK, 6, 1);
pub(crate) const IP6_SADDR: Field = field(NETWORK, 8, 16);
pub(crate) const IP6_DADDR: Field = field(NETWORK, 24, 16);
/// Target of a neighbour solicitation or advertisement that has no extension headers.
pub(crate) const ND_TARGET: Field = field(NETWORK, 48, 16);
/// First option of a neighbour solicitation or advertisement: its type, its address.
pub(crate) const ND_OPTION: Field = field(NETWORK, 64, 1);
pub(crate) const ND_OPTION_ETHER: Field = field(NETWORK, 66, 6);
/// The same of a router solicitation.
pub(crate) const RS_OPTION: Field = field(NETWORK, 48, 1);
pub(crate) const RS_OPTION_ETHER: Field = field(NETWORK, 50, 6);
pub(crate) const ICMP_TYPE: Field = field(TRANSPORT, 0, 1);
pub(crate) const SPORT: Field = field(TRANSPORT, 0, 2);
pub(crate) const DPORT: Field = field(TRANSPORT, 2, 2);
/// `chaddr` of a BOOTP message, behind UDP's eight bytes.
pub(crate) const DHCP_CHADDR: Field = field(TRANSPORT, 36, 6);

pub(crate) const ARP: [u8; 2] = [0x08, 0x06];
pub(crate) const IP4: [u8; 2] = [0x08, 0x00];
pub(crate) const IP6: [u8; 2] = [0x86, 0xdd];
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMP: u8 = 1;
pub(crate) const ICMPV6: u8 = 58;

/// What happens to a packet that matches.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Verdict<'a> {
    Drop,
    Accept,
    Return,
    Jump(&'a str),
}

/// A rule: matches from left to right, then what to do.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rule {
    pub(super) expressions: Attrs,
    pub(super) comment: Option<String>,
}

impl Rule {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    fn expression(mut self, name: &str, data: Attrs) -> Self {
        self.expressions = self
            .expressions
            .nest(1, Attrs::new().text(1, name).nest(2, data));
        self
    }

    fn meta(self, key: u32) -> Self {
        self.expression("meta", Attrs::new().be32(1, FIRST).be32(2, key))
    }

    fn load(self, register: u32, field: Field) -> Self {
        self.expression(
            "payload",
            Attrs::new()
                .be32(1, register)
                .be32(2, field.base)
                .be32(3, field.offset)
                .be32(4, field.len),
        )
    }

    fn cmp(self, op: u32, value: &[u8]) -> Self {
        self.expression(
            "cmp",
            Attrs::new()
                .be32(1, FIRST)
                .be32(2, op)
                .nest(3, Attrs::new().bytes(1, value)),
        )
    }

    fn mask(self, mask: &[u8]) -> Self {
        let zero = vec![0; mask.len()];
        let len = u32::try_from(mask.len()).unwrap_or(0);
        self.expression(
            "bitwise",
            Attrs::new()
                .be32(1, FIRST)
                .be32(2, FIRST)
                .be32(3, len)
                .nest(4, Attrs::new().bytes(1, mask))
                .nest(5, Attrs::new().bytes(1, &zero)),
        )
    }

    fn lookup(self, set: &str, inverted: bool) -> Self {
        self.expression(
            "lookup",
            Attrs::new()
                .text(1, set)
                .be32(2, FIRST)
                .be32(5, u32::from(inverted)),
        )
    }

    /// The packet came in on this link.
    pub(crate) fn iifname(self, name: &str) -> Self {
        self.meta(META_IIFNAME).cmp(EQ, &super::ifname_key(name))
    }

    /// The packet goes out on this link.
    pub(crate) fn oifname(self, name: &str) -> Self {
        self.meta(META_OIFNAME).cmp(EQ, &super::ifname_key(name))
    }

    pub(crate) fn iifname_in(self, set: &str) -> Self {
        self.meta(META_IIFNAME).lookup(set, false)
    }

    pub(crate) fn oifname_in(self, set: &str) -> Self {
        self.meta(META_OIFNAME).lookup(set, false)
    }

    /// The pair of incoming link and field is not in the set.
    pub(crate) fn pair_not_in(self, field: Field, set: &str) -> Self {
        self.meta(META_IIFNAME)
            .load(SECOND, field)
            .lookup(set, true)
    }

    pub(crate) fn equals(self, field: Field, value: &[u8]) -> Self {
        self.load(FIRST, field).cmp(EQ, value)
    }

    pub(crate) fn differs(self, field: Field, value: &[u8]) -> Self {
        self.load(FIRST, field).cmp(NEQ, value)
    }

    pub(crate) fn above(self, field: Field, value: &[u8]) -> Self {
        self.load(FIRST, field).cmp(GT, value)
    }

    /// Some bit of the mask is set in the field.
    pub(crate) fn has_bits(self, field: Field, mask: &[u8]) -> Self {
        self.load(FIRST, field)
            .mask(mask)
            .cmp(NEQ, &vec![0; mask.len()])
    }

    pub(crate) fn l4proto(self, number: u8) -> Self {
        self.meta(META_L4PROTO).cmp(EQ, &[number])
    }

    /// IPv4 or IPv6 in an `inet` table.
    pub(crate) fn nfproto(self, family: u8) -> Self {
        self.meta(META_NFPROTO).cmp(EQ, &[family])
    }

    /// The source (or not the destination) lies in a subnet; the family is checked first.
    pub(crate) fn source_in(self, net: IpNet) -> Self {
        self.subnet(net, true, EQ)
    }

    pub(crate) fn target_not_in(self, net: IpNet) -> Self {
        self.subnet(net, false, NEQ)
    }

    fn subnet(self, net: IpNet, source: bool, op: u32) -> Self {
        let (family, field) = match (net, source) {
            (IpNet::V4(_), true) => (super::IPV4, IP_SADDR),
            (IpNet::V4(_), false) => (super::IPV4, IP_DADDR),
            (IpNet::V6(_), true) => (super::IPV6, IP6_SADDR),
            (IpNet::V6(_), false) => (super::IPV6, IP6_DADDR),
        };
        self.nfproto(family)
            .load(FIRST, field)
            .mask(&octets(net.netmask()))
            .cmp(op, &octets(net.network()))
    }

    /// The incoming link's limit in the map is exceeded.
    pub(crate) fn over_limit_of_iifname(self, map: &str) -> Self {
        self.meta(META_IIFNAME)
            .expression("objref", Attrs::new().be32(3, FIRST).text(4, map))
    }

    pub(crate) fn counter(self) -> Self {
        self.expression("counter", Attrs::new())
    }

    pub(crate) fn masquerade(self) -> Self {
        self.expression("masq", Attrs::new())
    }

    pub(crate) fn snat(self, address: IpAddr) -> Self {
        let family = if address.is_ipv4() {
            super::IPV4
        } else {
            super::IPV6
        };
        self.expression(
            "immediate",
            Attrs::new()
                .be32(1, FIRST)
                .nest(2, Attrs::new().bytes(1, &octets(address))),
        )
        .expression(
            "nat",
            Attrs::new()
                .be32(1, 0)
                .be32(2, u32::from(family))
                .be32(3, FIRST),
        )
    }

    /// ICMP "administratively prohibited".
    pub(crate) fn reject(self) -> Self {
        self.expression("reject", Attrs::new().be32(1, 2).bytes(2, &[3]))
    }

    pub(crate) fn verdict(self, verdict: Verdict<'_>) -> Self {
        let (code, chain) = match verdict {
            Verdict::Drop => (0_i32, None),
            Verdict::Accept => (1, None),
            Verdict::Return => (-5, None),
            Verdict::Jump(chain) => (-3, Some(chain)),
        };
        let mut attrs = Attrs::new().bytes(1, &code.to_be_bytes());
        if let Some(chain) = chain {
            attrs = attrs.text(2, chain);
        }
        self.expression(
            "immediate",
            Attrs::new().be32(1, 0).nest(2, Attrs::new().nest(2, attrs)),
        )
    }

    pub(crate) fn drop(self) -> Self {
        self.verdict(Verdict::Drop)
    }

    pub(crate) fn accept(self) -> Self {
        self.verdict(Verdict::Accept)
    }

    /// Shown by `nft list`, and how Berth knows its rules in others' chains.
    pub(crate) fn comment(mut self, text: impl Into<String>) -> Self {
        self.comment = Some(text.into());
        self
    }
}

pub(crate) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}
