//! What touches the kernel. Everything here blocks and works on descriptors: no path of a tenant's
//! tree is ever opened by name from the root.

pub mod btrfs;
pub mod fs;
pub mod loopdev;
pub mod mount;
pub mod project_quota;
pub mod tree;

/// Raises the limit of open descriptors as far as it goes: a copy of a deep tree holds two for
/// each level.
pub fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Without it everything but very deep trees works all the same.
    let _ = setrlimit(Resource::Nofile, limit);
}
