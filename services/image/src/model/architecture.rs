//! Processor architectures under their kernel names.

/// Kernel name, then the other names that images carry for the same thing.
const KNOWN: &[(&str, &[&str])] = &[
    ("i686", &["i386", "i586", "386", "x86"]),
    ("x86_64", &["amd64", "generic_64"]),
    ("armv6l", &["armel"]),
    ("armv7l", &["armhf", "armhfp", "armv7a_hardfp", "armv7"]),
    ("armv8l", &[]),
    ("aarch64", &["arm64", "arm64_generic"]),
    ("ppc", &["powerpc"]),
    ("ppc64", &["powerpc64"]),
    ("ppc64le", &["ppc64el"]),
    ("s390x", &[]),
    ("mips", &["mipsel"]),
    ("mips64", &["mips64el"]),
    ("riscv32", &[]),
    ("riscv64", &[]),
    ("loongarch64", &["loong64"]),
];

/// The kernel's name for `text`, or `None` for no architecture we know.
pub fn kernel_name(text: &str) -> Option<&'static str> {
    KNOWN
        .iter()
        .find(|(name, others)| *name == text || others.contains(&text))
        .map(|(name, _)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unambiguous() {
        let mut all: Vec<&str> = KNOWN
            .iter()
            .flat_map(|(name, others)| std::iter::once(*name).chain(others.iter().copied()))
            .collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
        assert_eq!(kernel_name("amd64"), Some("x86_64"));
        assert_eq!(kernel_name("z80"), None);
        assert_eq!(kernel_name(""), None);
    }
}
