use sha2::{Digest, Sha256};

/// A quoted-by-nobody etag: 64 hex digits over `parts`, each delimited by its length, so that no
/// two different lists of parts meet.
pub fn etag<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    hex::encode(hash.finalize())
}

#[cfg(test)]
mod tests {
    #[test]
    fn parts_do_not_run_into_one_another() {
        assert_ne!(super::etag(["ab", "c"]), super::etag(["a", "bc"]));
        assert_eq!(super::etag(["ab", "c"]), super::etag(["ab", "c"]));
    }
}
