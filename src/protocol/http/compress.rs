//! Compressing a whole body (RFC 9110 section 8.4.1).

use std::io::{self, Write};
use std::mem;

use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};

use super::Coding;

/// How much work a smaller body is worth.
///
/// ```
/// use sockring::protocol::http::{Coding, Effort, compress};
/// let body = b"a body that is compressed once and sent to many";
/// assert!(!compress(Coding::Brotli, body, Effort::Kept)?.is_empty());
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Effort {
    /// For a body that is compressed for one answer.
    Once,
    /// For a body that is compressed for many answers.
    Kept,
}

/// Compresses a body; [`Coding::Identity`] copies it.
///
/// # Errors
///
/// None that depends on the bytes: memory is all that it writes to.
///
/// ```
/// use sockring::protocol::http::{Coding, Effort, compress};
/// let body = "a".repeat(1000);
/// assert!(compress(Coding::Gzip, body.as_bytes(), Effort::Once)?.len() < 50);
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn compress(coding: Coding, body: &[u8], effort: Effort) -> io::Result<Vec<u8>> {
    let out = Vec::with_capacity(body.len() / 3);
    let (level, quality) = match effort {
        Effort::Once => (Compression::default(), 4),
        // Brotli's last two qualities take ten times as long for 2 % less.
        Effort::Kept => (Compression::best(), 9),
    };
    match coding {
        Coding::Identity => Ok(body.to_vec()),
        // `finish` would drop zlib-rs' state while it is an argument: see `ws::deflate::Deflater`.
        Coding::Gzip => {
            let mut encoder = GzEncoder::new(out, level);
            encoder.write_all(body)?;
            encoder.try_finish()?;
            Ok(mem::take(encoder.get_mut()))
        }
        Coding::Deflate => {
            let mut encoder = ZlibEncoder::new(out, level);
            encoder.write_all(body)?;
            encoder.try_finish()?;
            Ok(mem::take(encoder.get_mut()))
        }
        Coding::Brotli => {
            let mut out = out;
            let params =
                brotli::enc::BrotliEncoderParams { quality, size_hint: body.len(), ..Default::default() };
            brotli::BrotliCompress(&mut &*body, &mut out, &params)?;
            Ok(out)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn restore(coding: Coding, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        match coding {
            Coding::Identity => out.extend_from_slice(bytes),
            Coding::Gzip => drop(flate2::read::GzDecoder::new(bytes).read_to_end(&mut out).unwrap()),
            Coding::Deflate => drop(flate2::read::ZlibDecoder::new(bytes).read_to_end(&mut out).unwrap()),
            Coding::Brotli => brotli::BrotliDecompress(&mut &*bytes, &mut out).unwrap(),
        }
        out
    }

    #[test]
    fn what_is_compressed_can_be_restored() {
        let all = [Coding::Identity, Coding::Gzip, Coding::Deflate, Coding::Brotli];
        // Brotli fills megabytes of tables for each body, which takes miri minutes.
        let (codings, lines) = if cfg!(miri) { (&all[..3], 200) } else { (&all[..], 20_000) };
        let text: Vec<u8> = (0..lines).flat_map(|n| format!("line {}\n", n % 70).into_bytes()).collect();
        for body in [&b""[..], b"x", &text] {
            for coding in codings.iter().copied() {
                for effort in [Effort::Once, Effort::Kept] {
                    let small = compress(coding, body, effort).unwrap();
                    assert!(coding == Coding::Identity || body.len() < 100 || small.len() < body.len() / 4);
                    assert_eq!(restore(coding, &small), body, "{coding:?}");
                }
            }
        }
    }
}
