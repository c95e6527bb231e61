//! Version 2 of the saved state: sections in frames and a checksum behind them, so that it can be
//! written and read as a stream.
//!
//! All numbers are little-endian:
//!
//! | bytes | meaning |
//! |---|---|
//! | 8 | magic |
//! | 4 | format version |
//! | 4 | zero |
//! | 4 | for each section: length of its frame, not zero |
//! | length | the section, as CBOR |
//! | 4 | zero |
//! | 16 | XXH3-128 of everything before |

use std::io::{self, Read, Write};

use xxhash_rust::xxh3::Xxh3;

use super::envelope::{Fingerprint, is_checksum_right};

/// Bytes of the header.
pub(super) const HEADER: usize = 16;
/// Maximum bytes of a frame.
const MAX_FRAME: u32 = 64 << 20;
/// Maximum bytes of a whole state.
const MAX_BYTES: u64 = 256 << 20;

/// Errors from reading a state in frames.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// It ends too early.
    #[error("it is truncated at section {sections}, before its checksum")]
    Truncated {
        /// Whole sections before the end.
        sections: usize,
    },
    /// A frame is longer than any section, or all frames are longer than any state.
    #[error("section {section} says {bytes} bytes, more than is allowed")]
    TooLong {
        /// Its index.
        section: usize,
        /// Its length.
        bytes: u32,
    },
    /// There are more sections than any state has.
    #[error("it has more than {0} sections")]
    TooMany(usize),
    /// Its content changed.
    #[error("its checksum does not match: the content changed after it was written")]
    Checksum,
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Read(#[source] io::Error),
}

/// Writes `frames` behind a header, and the checksum.
pub(super) fn write<'a>(
    header: [u8; HEADER],
    frames: impl IntoIterator<Item = &'a [u8]>,
    to: &mut impl Write,
) -> io::Result<Fingerprint> {
    let mut sums = Summed::new(to);
    sums.write_all(&header)?;
    for frame in frames {
        let length = u32::try_from(frame.len()).ok().filter(|length| *length <= MAX_FRAME);
        let length = length.ok_or_else(|| io::Error::other("a section is too long"))?;
        sums.write_all(&length.to_le_bytes())?;
        sums.write_all(frame)?;
    }
    sums.write_all(&0_u32.to_le_bytes())?;
    let fingerprint = sums.fingerprint();
    to.write_all(&fingerprint.checksum().to_le_bytes())?;
    to.flush()?;
    Ok(fingerprint)
}

/// Reads the frames behind `header`, which has been read from `from`, and checks the checksum. Reads
/// nothing behind it.
pub(super) fn read(
    header: [u8; HEADER],
    from: &mut impl Read,
    most: usize,
) -> Result<(Vec<Vec<u8>>, Fingerprint), FrameError> {
    let mut frames = Vec::new();
    let mut sums = Summed::new(from);
    sums.add(&header);
    loop {
        let ended = |error: io::Error, sections: usize| match error.kind() {
            io::ErrorKind::UnexpectedEof => FrameError::Truncated { sections },
            _ => FrameError::Read(error),
        };
        let section = frames.len();
        let mut length = [0; 4];
        sums.read_exact(&mut length).map_err(|error| ended(error, section))?;
        let bytes = u32::from_le_bytes(length);
        if bytes == 0 {
            break;
        }
        if bytes > MAX_FRAME || sums.length + u64::from(bytes) > MAX_BYTES {
            return Err(FrameError::TooLong { section, bytes });
        }
        if section == most {
            return Err(FrameError::TooMany(most));
        }
        // Grows with what arrives: the length may be false.
        let mut frame = Vec::new();
        let read = (&mut sums).take(bytes.into()).read_to_end(&mut frame);
        read.map_err(|error| ended(error, section))?;
        if frame.len() as u32 != bytes {
            return Err(FrameError::Truncated { sections: section });
        }
        frames.push(frame);
    }
    let fingerprint = sums.fingerprint();
    let mut checksum = [0; 16];
    from.read_exact(&mut checksum).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => FrameError::Truncated { sections: frames.len() },
        _ => FrameError::Read(error),
    })?;
    if !is_checksum_right(u128::from_le_bytes(checksum), fingerprint.checksum()) {
        return Err(FrameError::Checksum);
    }
    Ok((frames, fingerprint))
}

/// A stream of which length and checksum are taken.
struct Summed<'a, T> {
    stream: &'a mut T,
    sum: Xxh3,
    length: u64,
}

impl<'a, T> Summed<'a, T> {
    fn new(stream: &'a mut T) -> Self {
        Self { stream, sum: Xxh3::new(), length: 0 }
    }

    fn add(&mut self, bytes: &[u8]) {
        self.sum.update(bytes);
        self.length += bytes.len() as u64;
    }

    fn fingerprint(&self) -> Fingerprint {
        Fingerprint::new(self.length, self.sum.digest128())
    }
}

impl<T: Write> Write for Summed<'_, T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.stream.write(bytes)?;
        self.add(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl<T: Read> Read for Summed<'_, T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.stream.read(buffer)?;
        self.add(&buffer[..read]);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: [u8; HEADER] = *b"CPRTEST\n\x02\0\0\0\0\0\0\0";

    fn written(frames: &[&[u8]]) -> (Vec<u8>, Fingerprint) {
        let mut bytes = Vec::new();
        let fingerprint = write(HEAD, frames.iter().copied(), &mut bytes).unwrap();
        (bytes, fingerprint)
    }

    fn reread(bytes: &[u8]) -> Result<(Vec<Vec<u8>>, Fingerprint), FrameError> {
        let (header, mut rest) = bytes.split_at_checked(HEADER).unwrap();
        read(header.try_into().unwrap(), &mut rest, 3)
    }

    #[test]
    fn frames_come_back_and_nothing_behind_them_is_read() {
        let (mut bytes, fingerprint) = written(&[b"one", b"two"]);
        bytes.extend(b"more");
        let mut rest = &bytes[HEADER..];
        let (frames, read) = read(HEAD, &mut rest, 3).unwrap();
        assert_eq!((frames, read), (vec![b"one".to_vec(), b"two".to_vec()], fingerprint));
        assert_eq!(rest, b"more");
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let (bytes, _) = written(&[b"one", b"two"]);
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(reread(&flipped).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn every_truncation_is_noticed() {
        let (bytes, _) = written(&[b"one", b"two"]);
        for length in HEADER..bytes.len() {
            let error = reread(&bytes[..length]).unwrap_err();
            assert!(matches!(error, FrameError::Truncated { .. }), "length {length}: {error}");
        }
    }

    #[test]
    fn false_lengths_and_counts_are_named() {
        let mut long = HEAD.to_vec();
        long.extend((MAX_FRAME + 1).to_le_bytes());
        assert!(matches!(reread(&long), Err(FrameError::TooLong { section: 0, .. })));
        // It says more than there is: nothing is allocated for the rest.
        let mut short = HEAD.to_vec();
        short.extend(MAX_FRAME.to_le_bytes());
        assert!(matches!(reread(&short), Err(FrameError::Truncated { sections: 0 })));
        let (many, _) = written(&[b"1", b"2", b"3", b"4"]);
        assert!(matches!(reread(&many), Err(FrameError::TooMany(3))));
    }

    #[test]
    fn errors_of_the_stream_are_passed_on() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::ErrorKind::TimedOut.into())
            }
        }
        assert!(matches!(read(HEAD, &mut Broken, 3), Err(FrameError::Read(_))));
    }
}
