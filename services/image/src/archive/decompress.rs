//! One reader for all compressions of a tar, with bounds on memory and on output.

use super::ArchiveError;
use crate::model::Format;
use std::io::{BufRead, Read};

/// Memory that a decoder may take for its window. `xz -9` needs 65 MiB, `zstd --ultra -22` 128.
pub(super) const WINDOW: u64 = 160 << 20;
/// Output allowed whatever the input's size.
const FREE_OUTPUT: u64 = 1 << 30;
/// Output allowed per byte of input beyond that. Real images stay below 50.
const MAX_RATIO: u64 = 256;

/// Decompresses `input`, a tar of `format` that has `stored` bytes.
pub(super) fn tar_reader<'a, R: BufRead + 'a>(
    format: Format,
    input: R,
    stored: u64,
) -> Result<Box<dyn Read + 'a>, ArchiveError> {
    let reader: Box<dyn Read + 'a> = match format {
        Format::Tar => Box::new(input),
        Format::TarGzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        Format::TarXz => {
            let stream =
                liblzma::stream::Stream::new_stream_decoder(WINDOW, liblzma::stream::CONCATENATED)
                    .map_err(|e| ArchiveError::reading("the archive", e.into()))?;
            Box::new(liblzma::bufread::XzDecoder::new_stream(input, stream))
        }
        Format::TarZstd => Box::new(
            zstd::stream::read::Decoder::with_buffer(input)
                .map_err(|e| ArchiveError::reading("the archive", e))?,
        ),
        Format::TarBzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(input)),
        Format::Squashfs | Format::Qcow2 => {
            return Err(ArchiveError::bad("the archive is not a tar"));
        }
    };
    Ok(Box::new(Bounded {
        inner: reader,
        left: FREE_OUTPUT.saturating_add(stored.saturating_mul(MAX_RATIO)),
    }))
}

/// Ends with an error, not with an end of file, when the bound is reached.
struct Bounded<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.left = self.left.checked_sub(count as u64).ok_or_else(|| {
            std::io::Error::other(format!(
                "it grows more than {MAX_RATIO}-fold, as only a decompression bomb does"
            ))
        })?;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_bounded() {
        let mut reader = Bounded {
            inner: std::io::repeat(0),
            left: 10_000,
        };
        let error = std::io::copy(&mut reader, &mut std::io::sink()).unwrap_err();
        assert!(error.to_string().contains("bomb"));
    }
}
