//! nf_tables spoken over netlink: no `nft` program on the way, a change is one transaction of
//! one datagram, and what cannot be applied whole is not applied at all.
//!
//! Two kinds of tables are Berth's:
//! * `bridge <prefix>` and `inet <prefix>`: filters and limits of ports, made when the first port
//!   asks for any. A port is elements of sets keyed by its link's name, so it holds before the
//!   link exists.
//! * `inet <prefix>.<network>`: a network's NAT and accept rules, replaced whole.

pub(crate) mod expr;
pub(crate) mod foreign;
pub(crate) mod guard;
pub(crate) mod legacy;
pub(crate) mod nat;

use std::io;

use super::wire::{self, Attrs, Channel};
pub(crate) use expr::Rule;

pub(crate) const INET: u8 = 1;
pub(crate) const IPV4: u8 = 2;
pub(crate) const BRIDGE: u8 = 7;
pub(crate) const IPV6: u8 = 10;

pub(crate) const PREROUTING: u32 = 0;
pub(crate) const INPUT: u32 = 1;
pub(crate) const FORWARD: u32 = 2;
pub(crate) const POSTROUTING: u32 = 4;

const NETLINK_NETFILTER: isize = 12;
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;

const NEWTABLE: u16 = 0;
const GETTABLE: u16 = 1;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const GETCHAIN: u16 = 4;
const NEWRULE: u16 = 6;
const GETRULE: u16 = 7;
const DELRULE: u16 = 8;
const NEWSET: u16 = 9;
const NEWSETELEM: u16 = 12;
const DELSETELEM: u16 = 14;
const NEWOBJ: u16 = 18;
const DELOBJ: u16 = 20;

/// Elements per message, so that a list stays below the 64 KiB of an attribute.
const ELEMENTS_PER_MESSAGE: usize = 400;

/// One type of a set's key: nft's number for it, and its bytes in the kernel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KeyType {
    number: u32,
    len: u32,
}

pub(crate) const IFNAME: KeyType = KeyType {
    number: 41,
    len: 16,
};
pub(crate) const ETHER_ADDR: KeyType = KeyType { number: 9, len: 6 };
pub(crate) const IPV4_ADDR: KeyType = KeyType { number: 7, len: 4 };
pub(crate) const IPV6_ADDR: KeyType = KeyType { number: 8, len: 16 };

/// A change that failed as a whole.
#[derive(Debug, thiserror::Error)]
#[error("nf_tables refused to {what}")]
pub struct NfError {
    /// The command at fault, for the log.
    pub what: String,
    /// The kernel's answer.
    #[source]
    pub source: io::Error,
}

/// A transaction: all of it happens or nothing.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    messages: Vec<u8>,
    doing: Vec<String>,
    sets: u32,
    last_start: usize,
}

impl Batch {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.doing.is_empty()
    }

    fn push(&mut self, what: String, family: u8, kind: u16, flags: u16, attrs: &Attrs) {
        let mut payload = vec![family, 0, 0, 0];
        payload.extend_from_slice(attrs.as_slice());
        self.last_start = self.messages.len();
        self.doing.push(what);
        // Sequence 1 is the batch's begin.
        let seq = u32::try_from(self.doing.len() + 1).unwrap_or(u32::MAX);
        wire::message(
            &mut self.messages,
            SUBSYSTEM << 8 | kind,
            wire::NLM_F_REQUEST | flags,
            seq,
            &payload,
        );
    }

    /// Makes the table if it is not there.
    pub(crate) fn add_table(&mut self, family: u8, table: &str) {
        let attrs = Attrs::new().text(1, table).be32(2, 0);
        self.push(
            format!("add table {table}"),
            family,
            NEWTABLE,
            wire::NLM_F_CREATE,
            &attrs,
        );
    }

    /// Removes the table and all in it; it need not be there.
    pub(crate) fn remove_table(&mut self, family: u8, table: &str) {
        // `destroy` is younger than the kernels Berth supports; adding first is the old way.
        self.add_table(family, table);
        self.push(
            format!("delete table {table}"),
            family,
            DELTABLE,
            0,
            &Attrs::new().text(1, table),
        );
    }

    /// A chain that rules jump to.
    pub(crate) fn add_chain(&mut self, family: u8, table: &str, chain: &str) {
        let attrs = Attrs::new().text(1, table).text(3, chain);
        self.push(
            format!("add chain {table} {chain}"),
            family,
            NEWCHAIN,
            wire::NLM_F_CREATE,
            &attrs,
        );
    }

    /// A chain that the kernel calls, policy accept. `kind` is `filter` or `nat`.
    pub(crate) fn add_base_chain(
        &mut self,
        family: u8,
        table: &str,
        chain: &str,
        (kind, hook, priority): (&str, u32, i32),
    ) {
        let attrs = Attrs::new()
            .text(1, table)
            .text(3, chain)
            .nest(
                4,
                Attrs::new().be32(1, hook).bytes(2, &priority.to_be_bytes()),
            )
            .be32(5, 1)
            .text(7, kind);
        self.push(
            format!("add base chain {table} {chain}"),
            family,
            NEWCHAIN,
            wire::NLM_F_CREATE,
            &attrs,
        );
    }

    /// A rule at the end of a chain.
    pub(crate) fn add_rule(&mut self, family: u8, table: &str, chain: &str, rule: Rule) {
        self.rule(family, table, chain, rule, wire::NLM_F_APPEND);
    }

    /// A rule at the head of a chain.
    pub(crate) fn insert_rule(&mut self, family: u8, table: &str, chain: &str, rule: Rule) {
        self.rule(family, table, chain, rule, 0);
    }

    fn rule(&mut self, family: u8, table: &str, chain: &str, rule: Rule, flags: u16) {
        let what = format!("add a rule to {table} {chain}");
        let mut attrs = Attrs::new()
            .text(1, table)
            .text(2, chain)
            .nest(4, rule.expressions);
        if let Some(comment) = &rule.comment {
            let mut user = vec![0, u8::try_from(comment.len() + 1).unwrap_or(u8::MAX)];
            user.extend_from_slice(comment.as_bytes());
            user.push(0);
            attrs = attrs.bytes(7, &user);
        }
        self.push(what, family, NEWRULE, wire::NLM_F_CREATE | flags, &attrs);
    }

    pub(crate) fn remove_rule(&mut self, family: u8, table: &str, chain: &str, handle: u64) {
        let attrs = Attrs::new().text(1, table).text(2, chain).be64(3, handle);
        self.push(
            format!("delete a rule of {table} {chain}"),
            family,
            DELRULE,
            0,
            &attrs,
        );
    }

    /// A set whose key is the concatenation of `key`.
    pub(crate) fn add_set(&mut self, family: u8, table: &str, set: &str, key: &[KeyType]) {
        let attrs = self.set_attrs(table, set, key).be32(3, 0);
        self.push(
            format!("add set {table} {set}"),
            family,
            NEWSET,
            wire::NLM_F_CREATE,
            &attrs,
        );
    }

    /// A map from a key to named limits.
    pub(crate) fn add_limit_map(&mut self, family: u8, table: &str, set: &str, key: &[KeyType]) {
        // NFT_SET_MAP is implied by NFT_SET_OBJECT; 4 is NFT_OBJECT_LIMIT.
        let attrs = self.set_attrs(table, set, key).be32(3, 64).be32(15, 4);
        self.push(
            format!("add map {table} {set}"),
            family,
            NEWSET,
            wire::NLM_F_CREATE,
            &attrs,
        );
    }

    fn set_attrs(&mut self, table: &str, set: &str, key: &[KeyType]) -> Attrs {
        self.sets += 1;
        let number = key.iter().fold(0, |n, k| n << 6 | k.number);
        let len = key.iter().map(|k| k.len.next_multiple_of(4)).sum::<u32>();
        let len = if key.len() == 1 { key[0].len } else { len };
        let attrs = Attrs::new()
            .text(1, table)
            .text(2, set)
            .be32(4, number)
            .be32(5, len)
            .be32(10, self.sets);
        if key.len() > 1 {
            return attrs;
        }
        // For `nft list` only: names are in the host's byte order.
        let mut user = vec![0, 4];
        user.extend_from_slice(&1_u32.to_ne_bytes());
        attrs.bytes(13, &user)
    }

    /// A limit in bytes a second that matches what is over it.
    pub(crate) fn add_limit(
        &mut self,
        family: u8,
        table: &str,
        name: &str,
        bytes_per_second: u64,
        burst: u32,
    ) {
        let limit = Attrs::new()
            .be64(1, bytes_per_second)
            .be64(2, 1)
            .be32(3, burst)
            .be32(4, 1)
            .be32(5, 1);
        let attrs = Attrs::new()
            .text(1, table)
            .text(2, name)
            .be32(3, 4)
            .nest(4, limit);
        self.push(
            format!("add limit {table} {name}"),
            family,
            NEWOBJ,
            wire::NLM_F_CREATE,
            &attrs,
        );
    }

    pub(crate) fn remove_limit(&mut self, family: u8, table: &str, name: &str) {
        let attrs = Attrs::new().text(1, table).text(2, name).be32(3, 4);
        self.push(
            format!("delete limit {table} {name}"),
            family,
            DELOBJ,
            0,
            &attrs,
        );
    }

    /// Adds elements; those already there stay.
    pub(crate) fn add_elements(&mut self, family: u8, table: &str, set: &str, keys: &[Vec<u8>]) {
        for chunk in keys.chunks(ELEMENTS_PER_MESSAGE) {
            let attrs = elements(table, set, chunk.iter().map(|k| (k, None)));
            self.push(
                format!("add elements to {table} {set}"),
                family,
                NEWSETELEM,
                wire::NLM_F_CREATE,
                &attrs,
            );
        }
    }

    /// Maps a key to a limit.
    pub(crate) fn map_limit(
        &mut self,
        family: u8,
        table: &str,
        map: &str,
        key: &Vec<u8>,
        limit: &str,
    ) {
        let attrs = elements(table, map, std::iter::once((key, Some(limit))));
        self.push(
            format!("add elements to {table} {map}"),
            family,
            NEWSETELEM,
            wire::NLM_F_CREATE,
            &attrs,
        );
    }

    /// Removes elements that are there.
    pub(crate) fn remove_elements(&mut self, family: u8, table: &str, set: &str, keys: &[Vec<u8>]) {
        for chunk in keys.chunks(ELEMENTS_PER_MESSAGE) {
            let attrs = elements(table, set, chunk.iter().map(|k| (k, None)));
            self.push(
                format!("delete elements of {table} {set}"),
                family,
                DELSETELEM,
                0,
                &attrs,
            );
        }
    }

    /// Applies all of it or nothing. Blocks for a millisecond or so.
    pub(crate) fn commit(mut self) -> Result<(), NfError> {
        if self.is_empty() {
            return Ok(());
        }
        let fail = |what: &str, source| NfError {
            what: what.to_owned(),
            source,
        };
        // One acknowledgement, of the last command; errors come for any.
        let flags = self.last_start + 6;
        let asked = u16::from_ne_bytes([self.messages[flags], self.messages[flags + 1]]);
        self.messages[flags..flags + 2].copy_from_slice(&(asked | wire::NLM_F_ACK).to_ne_bytes());

        let last = u32::try_from(self.doing.len() + 1).unwrap_or(u32::MAX);
        let mut subsystem = vec![0, 0];
        subsystem.extend_from_slice(&SUBSYSTEM.to_be_bytes());
        let mut datagram = Vec::with_capacity(self.messages.len() + 64);
        wire::message(
            &mut datagram,
            BATCH_BEGIN,
            wire::NLM_F_REQUEST,
            1,
            &subsystem,
        );
        datagram.extend_from_slice(&self.messages);
        wire::message(
            &mut datagram,
            BATCH_END,
            wire::NLM_F_REQUEST,
            last + 1,
            &subsystem,
        );

        let channel = Channel::open(NETLINK_NETFILTER).map_err(|e| fail("open a socket", e))?;
        channel.transact(&datagram, last).map_err(|(seq, source)| {
            let what = (seq as usize)
                .checked_sub(2)
                .and_then(|i| self.doing.get(i))
                .map_or("commit", String::as_str);
            fail(what, source)
        })
    }
}

fn elements<'a>(
    table: &str,
    set: &str,
    keys: impl Iterator<Item = (&'a Vec<u8>, Option<&'a str>)>,
) -> Attrs {
    let mut list = Attrs::new();
    for (key, object) in keys {
        let mut element = Attrs::new().nest(1, Attrs::new().bytes(1, key));
        if let Some(object) = object {
            element = element.text(9, object);
        }
        list = list.nest(1, element);
    }
    Attrs::new().text(1, table).text(2, set).nest(3, list)
}

/// An interface's name as a key: 16 bytes, NUL-padded.
pub(crate) fn ifname_key(name: &str) -> Vec<u8> {
    let mut key = name.as_bytes().to_vec();
    key.resize(16, 0);
    key
}

/// A name and something else as one key; each part is padded to four bytes.
pub(crate) fn concat_key(name: &str, rest: &[u8]) -> Vec<u8> {
    let mut key = ifname_key(name);
    key.extend_from_slice(rest);
    while !key.len().is_multiple_of(4) {
        key.push(0);
    }
    key
}

fn dump(kind: u16, family: u8, attrs: &Attrs) -> Result<Vec<(u8, Vec<u8>)>, NfError> {
    let fail = |source| NfError {
        what: "list rules".to_owned(),
        source,
    };
    let mut payload = vec![family, 0, 0, 0];
    payload.extend_from_slice(attrs.as_slice());
    let channel = Channel::open(NETLINK_NETFILTER).map_err(fail)?;
    Ok(channel
        .dump(SUBSYSTEM << 8 | kind, &payload)
        .map_err(fail)?
        .into_iter()
        .filter(|p| p.len() >= 4)
        .map(|p| (p[0], p[4..].to_vec()))
        .collect())
}

/// Families and names of all tables.
pub(crate) fn tables() -> Result<Vec<(u8, String)>, NfError> {
    Ok(dump(GETTABLE, 0, &Attrs::new())?
        .into_iter()
        .filter_map(|(family, attrs)| wire::find(&attrs, 1).map(|n| (family, wire::text(n))))
        .collect())
}
