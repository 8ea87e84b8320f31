//! Hostile and honest archives, unpacked as the service does it: whatever an archive says, nothing
//! outside the volume changes, and what is refused is refused by a sentence.

mod honest;
mod hostile;
mod place;
#[path = "../support/mod.rs"]
mod support;
