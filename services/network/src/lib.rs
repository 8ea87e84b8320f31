//! Berth's network service: bridges with DHCP, DNS and NAT, and the ports of guests on them.
//!
//! # What it owns
//! * **Networks**: a bridge each, its addresses and routes, a table `inet <prefix>.<network>` of
//!   nf_tables with NAT and accept rules, and a dnsmasq. The network's name is the bridge's.
//! * **Ports**: links of guests, *declared* before they exist. Berth's monitor makes the link
//!   when the guest starts; filters, limits and leases are ready by then, keyed by the link's
//!   name, and stay until the port is deleted. Start, stop and reboot never come here.
//!
//! ```text
//!            CreateNetwork                    DeleteNetwork (nobody holds it)
//!   (none) ───────────────▶ Created ────────────────────────────▶ (none)
//!                            ▲   │ the host cannot be brought to it
//!               reconciled   │   ▼
//!                            Errored
//! ```
//!
//! # Layers
//! `main` → [`grpc`] (tonic) → [`app`] (use cases) → [`store`] (database) and [`host`] (netlink,
//! dnsmasq) → [`model`] (pure).
//!
//! # Invariants
//! * A port's filters hold from the first packet of its link to the last.
//! * Nothing is touched that is not Berth's: bridges carry `<prefix>:<uid>` as their alias,
//!   tables the prefix in their name, rules in Docker's chain `<prefix>.<network>` as comment.
//! * No text of a user reaches a shell, a configuration file or a rule unparsed, but
//!   `raw.dnsmasq`, which is meant to.
//! * A port without filters and limits costs one commit and one small file, no nf_tables.
//!
//! # What a crash leaves behind
//! Bridges, rules and dnsmasq go on serving guests; the next start finds them again. A network
//! whose creation was under way is in the database and is completed; a retry of the request
//! gives it. A port whose creation was under way is not in the database; its filters are removed
//! when the service starts.

pub mod app;
pub mod config;
pub mod grpc;
pub mod host;
pub mod model;
pub mod store;
