//! Images on their way into a pool: blobs opened only where the administrator allows it, checked
//! while they are read, and unpacked where nothing in them can reach anything else.

pub mod blob;
pub mod limits;
pub mod sink;
pub mod squashfs;
pub mod tar;
pub mod unpack;

pub use blob::{BlobRoots, BlobSource, Format, Location, Part};
pub use limits::Limits;
pub use unpack::{ImageSource, unpack};
