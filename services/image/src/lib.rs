//! The image service: what images there are, under which names, and their bytes.
//!
//! # What it owns
//!
//! * **Blobs**: files named by the sha256 of their bytes, written once ([`blobs`]). A unified
//!   image is one blob, a split image two; images may share a blob.
//! * **The catalogue**: images, properties, aliases, holds ([`model::Catalogue`]). The database
//!   ([`store`]) is what lasts; every answer comes from memory, which says the same.
//!
//! It runs without root, calls no other service and never unpacks an image. It reads an archive
//! just far enough to find metadata.yaml and whether a container or a virtual machine is in it
//! ([`archive`]); unpacking is the storage service's, which gets a `BlobRef`: path, digest, size.
//!
//! # The life of an image
//!
//! ```text
//!  ImportImage            placed              committed
//!  ──────────▶ incoming/ ────────▶ blobs/ ────────────▶ in the catalogue ──┐ Update, aliases,
//!              hashed,   rename    no row               image-created      │ holds, uses
//!              inspected           yet                  ▲──────────────────┘
//!                                                       │ DeleteImage: refused while held
//!                        file removed                   ▼
//!              (gone) ◀──────────────── row gone, blob noted in `blob_removals`
//! ```
//!
//! # What holds
//!
//! * A row never names a blob that isn't on disk: files come before rows and go after them.
//! * The fingerprint is computed here from the bytes; a client's only has to agree. Nothing that a
//!   client sends becomes part of a path.
//! * Changes are made one at a time ([`App`]'s `writing`), each in one transaction with its events
//!   and its answer, and on a task of its own: a caller that goes away leaves no half change.
//! * Memory doesn't grow with an image: messages of at most 1 MiB, a queue of four.
//! * A use (`ResolveImage` with `touch`) is noted in memory and written some seconds later.
//!
//! # What a crash leaves
//!
//! | when | what is left | the next start |
//! |---|---|---|
//! | during an upload | a file in `incoming/` | removes it |
//! | after the rename, before the commit | a blob without a row | sets it aside and warns: it might be somebody's data |
//! | after a delete's commit | a blob in `blob_removals` | removes it |
//! | any time | up to `use_flush_seconds` of `last_used_time` | – |
//!
//! A row whose blob is missing or has another length marks its image as damaged: it is listed,
//! but resolving or exporting it fails with `BLOB_DAMAGED`.
//!
//! One process serves a database: the catalogue in memory is not told of others' changes.

pub mod app;
pub mod archive;
pub mod blobs;
mod config;
mod error;
mod grpc;
pub mod model;
mod purge;
mod reconcile;
pub mod store;

pub use app::App;
pub use config::Config;
pub use error::Error;
pub use grpc::ImageApi;
pub use purge::purge;
pub use store::MIGRATIONS;
