//! RAM on a socket: records, each with a header of 16 bytes (little-endian).
//!
//! | offset | bytes | meaning |
//! |---|---|---|
//! | 0 | 8 | offset in RAM |
//! | 8 | 4 | length |
//! | 12 | 4 | what it is: see [`Kind`] |
//!
//! The same page may come many times; the last one counts.

use std::io::{self, Read};

use crate::memory::{PAGE, PageSet, RamView, ZEROS};

/// Bytes of a header.
pub const HEADER: usize = 16;
/// Maximum bytes of one record's data.
pub const MAX_DATA: u64 = 64 << 10;

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// The content of pages, which follows.
    Data = 1,
    /// Pages of zeros; nothing follows.
    Zeros = 2,
    /// The sender waits, for its bandwidth.
    Idle = 3,
    /// RAM is complete. What follows is not of this stream.
    End = 4,
}

/// The header of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Offset in RAM.
    pub offset: u64,
    /// Length in bytes.
    pub length: u32,
    /// What it is.
    pub kind: Kind,
}

/// Errors from reading the stream.
#[derive(Debug, thiserror::Error)]
pub enum RamStreamError {
    /// The stream ended, or failed.
    #[error("cannot receive guest RAM: {0}")]
    Read(io::Error),
    /// A header is not one of this version.
    #[error("cannot receive guest RAM: a record of unknown kind {0}")]
    Kind(u32),
    /// A record exceeds RAM, or its length is not one of pages.
    #[error(
        "cannot receive guest RAM: a record of {length} bytes at {offset:#x}, of {size} of RAM"
    )]
    Range {
        /// Its offset.
        offset: u64,
        /// Its length.
        length: u32,
        /// Bytes of RAM.
        size: u64,
    },
    /// RAM cannot be written.
    #[error("cannot write guest RAM: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

impl RamStreamError {
    fn reading(error: io::Error) -> Self {
        Self::Read(match error.kind() {
            io::ErrorKind::UnexpectedEof => io::Error::other("the other VMM closed the connection"),
            _ => error,
        })
    }
}

impl Record {
    /// Creates a record that has no place in RAM.
    pub fn mark(kind: Kind) -> Self {
        Self { offset: 0, length: 0, kind }
    }

    /// Returns the bytes of the header.
    pub fn to_bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..8].copy_from_slice(&self.offset.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.length.to_le_bytes());
        bytes[12..].copy_from_slice(&(self.kind as u32).to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: [u8; HEADER]) -> Result<Self, RamStreamError> {
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let kind = match word(12) {
            1 => Kind::Data,
            2 => Kind::Zeros,
            3 => Kind::Idle,
            4 => Kind::End,
            other => return Err(RamStreamError::Kind(other)),
        };
        let offset = u64::from(word(0)) | u64::from(word(4)) << 32;
        Ok(Self { offset, length: word(8), kind })
    }

    fn check(self, size: u64) -> Result<(), RamStreamError> {
        let length = u64::from(self.length);
        let ends = self.offset.checked_add(length).is_some_and(|end| end <= size);
        let whole = self.offset.is_multiple_of(PAGE) && length.is_multiple_of(PAGE);
        let fits = self.kind != Kind::Data || length <= MAX_DATA;
        if ends && whole && fits && length > 0 {
            return Ok(());
        }
        Err(RamStreamError::Range { offset: self.offset, length: self.length, size })
    }
}

/// Reads the stream to its end into `ram`. If that is `fresh`, it has zeros only.
pub fn receive(from: &mut impl Read, ram: &RamView, fresh: bool) -> Result<(), RamStreamError> {
    let mut written = match fresh {
        true => PageSet::none(ram.size()),
        false => PageSet::all(ram.size()),
    };
    let mut buffer = vec![0; MAX_DATA as usize];
    let mut header = [0; HEADER];
    loop {
        from.read_exact(&mut header).map_err(RamStreamError::reading)?;
        let record = Record::from_bytes(header)?;
        match record.kind {
            Kind::Idle => {}
            Kind::End => return Ok(()),
            Kind::Data => {
                record.check(ram.size())?;
                let data = &mut buffer[..record.length as usize];
                from.read_exact(data).map_err(RamStreamError::reading)?;
                ram.write(record.offset, data)?;
                written.insert(record.offset, record.length.into());
            }
            Kind::Zeros => {
                record.check(ram.size())?;
                clear(ram, &written, record.offset, record.length.into())?;
            }
        }
    }
}

/// Clears pages that were `written`. The others need no memory.
fn clear(ram: &RamView, written: &PageSet, offset: u64, length: u64) -> Result<(), RamStreamError> {
    for at in (offset..offset + length).step_by(PAGE as usize) {
        if written.contains(at) {
            ram.write(at, &ZEROS)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::memory::{MemoryConfig, PageKind, RamBlock};

    const SIZE: u64 = 4 << 20;
    const SMALL: MemoryConfig = MemoryConfig { size: SIZE, share: true, pages: PageKind::Small };

    fn record(offset: u64, length: u64, kind: Kind) -> Vec<u8> {
        Record { offset, length: length as u32, kind }.to_bytes().into()
    }

    fn receive_from(stream: &[&[u8]]) -> Result<RamBlock, RamStreamError> {
        let ram = RamBlock::create(SMALL).unwrap();
        receive(&mut &*stream.concat(), &ram.view(), true).map(|()| ram)
    }

    #[test]
    fn last_content_of_a_page_counts() {
        let (ones, twos) = ([1; PAGE as usize], [2; PAGE as usize]);
        let header = |at| record(at, PAGE, Kind::Data);
        let end = record(0, 0, Kind::End);
        let ram = receive_from(&[
            &header(0),
            &ones,
            &header(PAGE),
            &ones,
            &record(0, 0, Kind::Idle),
            &header(0),
            &twos,
            &record(PAGE, PAGE, Kind::Zeros),
            &end,
        ]);
        let mut read = [9; 2 * PAGE as usize];
        ram.unwrap().view().read(0, &mut read).unwrap();
        assert_eq!(read[..PAGE as usize], twos);
        assert_eq!(read[PAGE as usize..], [0; PAGE as usize]);
    }

    #[rstest]
    #[case::beyond_ram(SIZE, PAGE, Kind::Zeros)]
    #[case::across_the_end(SIZE - PAGE, 2 * PAGE, Kind::Data)]
    #[case::overflow(u64::MAX - PAGE + 1, PAGE, Kind::Zeros)]
    #[case::too_long(0, MAX_DATA + PAGE, Kind::Data)]
    #[case::no_page(1, PAGE, Kind::Data)]
    #[case::part_of_a_page(0, PAGE - 1, Kind::Zeros)]
    #[case::nothing(0, 0, Kind::Data)]
    fn rejects_records_that_do_not_fit(
        #[case] offset: u64,
        #[case] length: u64,
        #[case] kind: Kind,
    ) {
        let data = vec![1; length as usize];
        let result = receive_from(&[&record(offset, length, kind), &data]);
        assert!(matches!(result, Err(RamStreamError::Range { .. })), "{result:?}");
    }

    #[test]
    fn every_truncation_is_noticed() {
        let end = record(0, 0, Kind::End);
        let whole = [&record(0, PAGE, Kind::Data), &[1; PAGE as usize][..], &end].concat();
        receive_from(&[&whole]).unwrap();
        for length in [0, 1, HEADER - 1, HEADER, HEADER + 1, whole.len() - 1] {
            let result = receive_from(&[&whole[..length]]);
            assert!(matches!(result, Err(RamStreamError::Read(_))), "{length}: {result:?}");
        }
        assert!(matches!(receive_from(&[&[9; HEADER]]), Err(RamStreamError::Kind(_))));
    }
}
