//! What an image is: types, parsers and the read model. No I/O and no clock.

pub mod alias;
pub mod architecture;
pub mod catalogue;
pub mod fingerprint;
pub mod format;
pub mod image;
pub mod metadata;
pub mod selector;
pub mod time;

pub use alias::{Alias, AliasName};
pub use catalogue::Catalogue;
pub use fingerprint::{Fingerprint, Prefix};
pub use format::Format;
pub use image::{Blob, Hold, Image, Kind, Part};
pub use metadata::Metadata;
pub use selector::Selector;
