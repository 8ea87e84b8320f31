//! Bit rates as LXD writes them: `100Mbit`, `1Gbit`, `5000`.

/// Bits per second; `None` for anything that is no rate or does not fit.
pub fn parse(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text.get(..digits)?.parse().ok()?;
    let factor: u64 = match text.get(digits..)?.trim() {
        "" | "bit" => 1,
        "kbit" => 1_000,
        "Mbit" => 1_000_000,
        "Gbit" => 1_000_000_000,
        "Tbit" => 1_000_000_000_000,
        "Pbit" => 1_000_000_000_000_000,
        "Ebit" => 1_000_000_000_000_000_000,
        "Kibit" => 1 << 10,
        "Mibit" => 1 << 20,
        "Gibit" => 1 << 30,
        "Tibit" => 1 << 40,
        "Pibit" => 1 << 50,
        "Eibit" => 1 << 60,
        _ => return None,
    };
    let bits = number.checked_mul(factor)?;
    (bits <= i64::MAX.unsigned_abs()).then_some(bits)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn rates_are_read() {
        assert_eq!(parse("100Mbit"), Some(100_000_000));
        assert_eq!(parse("1Kibit"), Some(1024));
        assert_eq!(parse("12"), Some(12));
        for bad in [
            "", "Mbit", "1MB", "-1", "1.5Mbit", "99Ebit", "1 0bit", "１bit",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
