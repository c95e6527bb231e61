//! The envelope: a fixed header in front of a body, so that foreign, truncated, overlong or damaged
//! input is recognised before anything is decoded.
//!
//! All numbers are little-endian:
//!
//! | offset | bytes | meaning |
//! |---|---|---|
//! | 0 | 8 | magic |
//! | 8 | 4 | format version |
//! | 12 | 4 | zero |
//! | 16 | 8 | length of the body |
//! | 24 | 16 | XXH3-128 of the body |
//! | 40 | | body |

use std::io::{self, Read};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

/// Bytes of the header.
pub const HEADER: usize = 40;
/// Largest body that is accepted.
const MAX_BODY: u64 = 256 << 20;

/// A kind of envelope.
#[derive(Clone, Copy, Debug)]
pub struct Envelope {
    /// The bytes it begins with.
    pub magic: [u8; 8],
    /// The version of what is inside.
    pub version: u32,
}

/// Length and checksum of a whole body, or of all frames: enough to tell whether a file is the
/// expected one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Bytes that the checksum is of.
    pub length: u64,
    checksum: (u64, u64),
}

/// Errors from opening an envelope.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// It is too short to have a header.
    #[error("{0} bytes are too short for a header of {HEADER}")]
    NoHeader(usize),
    /// It begins with something else.
    #[error("it does not begin with \"{}\"", .0.escape_ascii())]
    Magic([u8; 8]),
    /// Its version is unsupported.
    #[error("it has format version {found}, this binary reads version {known}")]
    Version {
        /// The version it has.
        found: u32,
        /// The version that is known.
        known: u32,
    },
    /// It ends too early or too late.
    #[error("it has {found} bytes after its header, which says {expected}")]
    Length {
        /// Bytes found.
        found: u64,
        /// Bytes announced.
        expected: u64,
    },
    /// It is larger than any state.
    #[error("its header says {0} bytes, more than the {MAX_BODY} allowed")]
    TooLarge(u64),
    /// Its content changed.
    #[error("its checksum does not match: the content changed after it was written")]
    Checksum,
}

impl Envelope {
    /// Wraps `body` in an envelope.
    pub fn seal(&self, body: &[u8]) -> (Vec<u8>, Fingerprint) {
        let checksum = xxh3_128(body);
        let mut bytes = Vec::with_capacity(HEADER + body.len());
        bytes.extend_from_slice(&self.magic);
        bytes.extend_from_slice(&self.version.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&(body.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&checksum.to_le_bytes());
        bytes.extend_from_slice(body);
        (bytes, Fingerprint::new(body.len() as u64, checksum))
    }

    /// Returns the body of `bytes`, which must be one whole envelope and nothing else.
    pub fn open<'a>(&self, bytes: &'a [u8]) -> Result<(&'a [u8], Fingerprint), EnvelopeError> {
        let (body, fingerprint, rest) = self.open_first(bytes)?;
        if !rest.is_empty() {
            let found = (body.len() + rest.len()) as u64;
            return Err(EnvelopeError::Length { found, expected: fingerprint.length });
        }
        Ok((body, fingerprint))
    }

    /// Returns the body of the envelope that `bytes` begin with, and the bytes after it.
    pub fn open_first<'a>(
        &self,
        bytes: &'a [u8],
    ) -> Result<(&'a [u8], Fingerprint, &'a [u8]), EnvelopeError> {
        let expected = self.announced(bytes)?;
        let (header, content) = bytes.split_at(HEADER);
        let Some((body, rest)) = content.split_at_checked(expected as usize) else {
            return Err(EnvelopeError::Length { found: content.len() as u64, expected });
        };
        let checksum = u128::from_le_bytes(field(header, 24));
        if !is_checksum_right(checksum, xxh3_128(body)) {
            return Err(EnvelopeError::Checksum);
        }
        Ok((body, Fingerprint::new(expected, checksum), rest))
    }

    /// Reads from a stream what is missing of the envelope that `bytes` begin. Reads less if its header
    /// is invalid or the stream ends: [`Self::open`] says so.
    pub fn read_rest(&self, bytes: &mut Vec<u8>, from: &mut impl Read) -> io::Result<()> {
        let missing = HEADER.saturating_sub(bytes.len()) as u64;
        from.by_ref().take(missing).read_to_end(bytes)?;
        let Ok(body) = self.announced(bytes) else { return Ok(()) };
        let missing = (HEADER as u64 + body).saturating_sub(bytes.len() as u64);
        from.by_ref().take(missing).read_to_end(bytes).map(drop)
    }

    /// Returns the length of the body that the header at the start of `bytes` announces.
    pub fn announced(&self, bytes: &[u8]) -> Result<u64, EnvelopeError> {
        let header = bytes.get(..HEADER).ok_or(EnvelopeError::NoHeader(bytes.len()))?;
        if header[..8] != self.magic {
            return Err(EnvelopeError::Magic(self.magic));
        }
        let found = u32::from_le_bytes(field(header, 8));
        let reserved = u32::from_le_bytes(field(header, 12));
        if found != self.version || reserved != 0 {
            return Err(EnvelopeError::Version { found, known: self.version });
        }
        match u64::from_le_bytes(field(header, 16)) {
            announced if announced > MAX_BODY => Err(EnvelopeError::TooLarge(announced)),
            announced => Ok(announced),
        }
    }

    /// Returns the maximum bytes of an acceptable envelope.
    pub const fn max_bytes() -> u64 {
        HEADER as u64 + MAX_BODY
    }
}

/// Compares a checksum that was read with that of the content.
pub(super) fn is_checksum_right(read: u128, content: u128) -> bool {
    // No seam: the mistake is that the comparison is missing.
    read == content || planted!(NoChecksum)
}

fn field<const N: usize>(header: &[u8], at: usize) -> [u8; N] {
    header[at..at + N].try_into().expect("the header is long enough for its fields")
}

impl Fingerprint {
    pub(super) fn new(length: u64, checksum: u128) -> Self {
        Self { length, checksum: ((checksum >> 64) as u64, checksum as u64) }
    }

    pub(super) fn checksum(&self) -> u128 {
        u128::from(self.checksum.0) << 64 | u128::from(self.checksum.1)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const ENVELOPE: Envelope = Envelope { magic: *b"TESTMAG\n", version: 3 };

    #[test]
    fn what_is_sealed_can_be_opened() {
        let (bytes, sealed) = ENVELOPE.seal(b"content");
        assert_eq!(ENVELOPE.open(&bytes), Ok((&b"content"[..], sealed)));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let (bytes, _) = ENVELOPE.seal(b"content");
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(ENVELOPE.open(&flipped).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn every_truncation_is_noticed() {
        let (bytes, _) = ENVELOPE.seal(b"content");
        for length in 0..bytes.len() {
            assert!(ENVELOPE.open(&bytes[..length]).is_err(), "length {length}");
        }
    }

    #[rstest]
    #[case("trailing", &|bytes: &mut Vec<u8>| bytes.push(0))]
    #[case("magic", &|bytes: &mut Vec<u8>| bytes[0] = b'X')]
    #[case("version", &|bytes: &mut Vec<u8>| bytes[8] = 4)]
    #[case("huge", &|bytes: &mut Vec<u8>| bytes[22] = 1)]
    #[case("content", &|bytes: &mut Vec<u8>| bytes[41] = 1)]
    #[case("empty", &|bytes: &mut Vec<u8>| bytes.clear())]
    fn damage_is_named(#[case] name: &str, #[case] damage: &dyn Fn(&mut Vec<u8>)) {
        let (mut bytes, _) = ENVELOPE.seal(b"content");
        damage(&mut bytes);
        insta::assert_snapshot!(format!("damage_{name}"), ENVELOPE.open(&bytes).unwrap_err());
    }
}
