//! Frames on `monitor.sock`: encoding, and a decoder that takes bytes as they come.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::protocol::MAX_FRAME;

/// Why a byte stream is not (or no longer) a sequence of frames. The connection is of no use after it.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("frame of {0} bytes is longer than {MAX_FRAME}")]
    TooLong(usize),
    #[error("frame of {frame} bytes cannot hold a header of {header}")]
    HeaderLength { frame: usize, header: usize },
    #[error("frame header: {0}")]
    Json(#[from] serde_json::Error),
}

/// One frame, ready to be written.
pub fn encode<T: Serialize>(header: &T, payload: &[u8]) -> Result<Vec<u8>, FrameError> {
    let mut out = vec![0; 8];
    serde_json::to_writer(&mut out, header)?;
    let header_len = out.len() - 8;
    let total = 4 + header_len + payload.len();
    if total > MAX_FRAME {
        return Err(FrameError::TooLong(total));
    }
    out[..4].copy_from_slice(&(total as u32).to_le_bytes());
    out[4..8].copy_from_slice(&(header_len as u32).to_le_bytes());
    out.extend_from_slice(payload);
    Ok(out)
}

/// Collects bytes, gives frames. Holds at most one unfinished frame besides what was just fed.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    start: usize,
}

impl Decoder {
    pub fn new() -> Decoder {
        Decoder::default()
    }

    pub fn feed(&mut self, bytes: &[u8]) {
        if self.start == self.buffer.len() {
            self.buffer.clear();
            self.start = 0;
        } else if self.start > 64 << 10 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, `None` when more bytes are needed.
    #[allow(
        clippy::should_implement_trait,
        reason = "generic over the message, which an iterator cannot be"
    )]
    pub fn next<T: DeserializeOwned>(&mut self) -> Result<Option<(T, Vec<u8>)>, FrameError> {
        let data = &self.buffer[self.start..];
        let Some(total) = read_u32(data, 0) else {
            return Ok(None);
        };
        if total > MAX_FRAME {
            return Err(FrameError::TooLong(total));
        }
        let Some(header) = read_u32(data, 4) else {
            // A frame too short to hold its own header length never becomes valid.
            return if total < 4 {
                Err(FrameError::HeaderLength {
                    frame: total,
                    header: 0,
                })
            } else {
                Ok(None)
            };
        };
        if total < 4 || header > total - 4 {
            return Err(FrameError::HeaderLength {
                frame: total,
                header,
            });
        }
        if data.len() < 4 + total {
            return Ok(None);
        }
        let value = serde_json::from_slice(&data[8..8 + header])?;
        let payload = data[8 + header..4 + total].to_vec();
        self.start += 4 + total;
        Ok(Some((value, payload)))
    }
}

fn read_u32(data: &[u8], at: usize) -> Option<usize> {
    let bytes: [u8; 4] = data.get(at..at + 4)?.try_into().ok()?;
    Some(u32::from_le_bytes(bytes) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Request, ToMonitor};
    use proptest::prelude::*;

    #[test]
    fn frames_survive_any_cutting() {
        let mut bytes = Vec::new();
        for id in 0..20u64 {
            let header = ToMonitor {
                id,
                body: Request::ConsoleInput,
            };
            bytes.extend(encode(&header, &vec![id as u8; id as usize * 100]).unwrap());
        }
        for cut in [1, 3, 7, 64, 5000] {
            let mut decoder = Decoder::new();
            let mut seen = 0u64;
            for part in bytes.chunks(cut) {
                decoder.feed(part);
                while let Some((header, payload)) = decoder.next::<ToMonitor>().unwrap() {
                    assert_eq!(header.id, seen);
                    assert_eq!(payload, vec![seen as u8; seen as usize * 100]);
                    seen += 1;
                }
            }
            assert_eq!(seen, 20);
        }
    }

    #[test]
    fn bad_lengths_are_refused() {
        for bytes in [
            &[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0][..],
            &[3, 0, 0, 0, 0, 0, 0, 0],
            &[8, 0, 0, 0, 5, 0, 0, 0],
        ] {
            let mut decoder = Decoder::new();
            decoder.feed(bytes);
            assert!(decoder.next::<ToMonitor>().is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn too_long_a_payload_is_refused() {
        let header = ToMonitor {
            id: 1,
            body: Request::ConsoleInput,
        };
        assert!(encode(&header, &vec![0; MAX_FRAME]).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut decoder = Decoder::new();
            decoder.feed(&bytes);
            while let Ok(Some(_)) = decoder.next::<ToMonitor>() {}
        }
    }
}
