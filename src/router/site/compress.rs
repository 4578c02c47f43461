//! Compressing text for which a build has prepared nothing: once, off the runtime's threads, for the cache to keep.

use std::io::{self, Write as _};

use brotli::enc::BrotliEncoderParams;
use flate2::Compression;
use flate2::write::GzEncoder;

use super::negotiate::Encoding;

/// What is smaller fits into one packet anyway, in bytes.
pub(super) const SMALLEST: u64 = 256;
/// About a fiftieth of a second for a megabyte; 11 takes seconds, for a few hundredths of the size.
const BROTLI_QUALITY: i32 = 5;
/// As much as a window can be for every decoder: 4 MiB.
const BROTLI_WINDOW: i32 = 22;

/// Whether kennel makes this encoding: of the three, those which together every browser knows.
pub(super) fn is_made(encoding: Encoding) -> bool {
    match encoding {
        Encoding::Brotli | Encoding::Gzip => true,
        Encoding::Zstd => false,
    }
}

/// Compresses `plain`; `None` when that saves nothing, or it is an encoding that kennel does not make. Blocks.
pub(super) fn compress(plain: &[u8], encoding: Encoding) -> io::Result<Option<Vec<u8>>> {
    let mut smaller = Vec::with_capacity(plain.len() / 3);
    match encoding {
        Encoding::Zstd => return Ok(None),
        Encoding::Gzip => {
            // Its header has no name and no date: the same file always gives the same bytes.
            let mut encoder = GzEncoder::new(&mut smaller, Compression::default());
            encoder.write_all(plain)?;
            encoder.finish()?;
        }
        Encoding::Brotli => {
            let params = BrotliEncoderParams {
                quality: BROTLI_QUALITY,
                lgwin: BROTLI_WINDOW,
                size_hint: plain.len(),
                ..BrotliEncoderParams::default()
            };
            brotli::BrotliCompress(&mut io::Cursor::new(plain), &mut smaller, &params)?;
        }
    }
    smaller.shrink_to_fit();
    Ok((smaller.len() < plain.len()).then_some(smaller))
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn expand(bytes: &[u8], encoding: Encoding) -> Vec<u8> {
        let mut plain = Vec::new();
        match encoding {
            Encoding::Gzip => drop(flate2::read::GzDecoder::new(bytes).read_to_end(&mut plain).unwrap()),
            Encoding::Brotli => brotli::BrotliDecompress(&mut io::Cursor::new(bytes), &mut plain).unwrap(),
            Encoding::Zstd => unreachable!("kennel does not make it"),
        }
        plain
    }

    #[test]
    fn what_is_compressed_is_smaller_and_the_same() {
        let text = "let a = 'some text';\n".repeat(5000);
        for encoding in Encoding::ALL.into_iter().filter(|encoding| is_made(*encoding)) {
            let smaller = compress(text.as_bytes(), encoding).unwrap().unwrap();
            assert!(smaller.len() < text.len() / 10, "{encoding:?}: {}", smaller.len());
            assert_eq!(expand(&smaller, encoding), text.as_bytes());
        }
    }

    #[test]
    fn what_does_not_get_smaller_stays_as_it_is() {
        let mut state = 1_u32;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .take(2000)
        .collect();
        for encoding in Encoding::ALL {
            assert_eq!(compress(&noise, encoding).unwrap(), None, "{encoding:?}");
        }
    }
}
