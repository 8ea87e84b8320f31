//! Waiting for what happens by itself, never longer than stated.

use std::time::{Duration, Instant};

/// Asks until the answer is there; panics with the last refusal when it took too long.
#[track_caller]
pub fn until<T>(what: &str, patience: Duration, mut ask: impl FnMut() -> Result<T, String>) -> T {
    let begun = Instant::now();
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(refusal) if begun.elapsed() > patience => {
                panic!("{what}: not within {} s: {refusal}", patience.as_secs())
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}
