//! A device that counts: a read returns the number of earlier reads, and a write must have the next
//! number. A guest that keeps count too notices an access that is lost or repeated.

use serde::{Deserialize, Serialize};

/// Where numbers are written and read, in any width up to 8 bytes.
pub const DATA: u64 = 0x00;
/// Reads of numbers so far.
pub const READS: u64 = 0x10;
/// Writes of numbers so far.
pub const WRITES: u64 = 0x18;
/// Writes that were not the next number.
pub const WRONG: u64 = 0x20;
/// 8 bytes that keep what is written to them.
pub const CELL: u64 = 0x40;
/// Reads of the cell so far.
pub const CELL_READS: u64 = 0x48;
/// Writes to the cell so far.
pub const CELL_WRITES: u64 = 0x50;

/// What the device has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SequenceState {
    reads: u64,
    writes: u64,
    wrong: u64,
    cell: [u8; 8],
    cell_reads: u64,
    cell_writes: u64,
}

impl SequenceState {
    /// Handles a guest read of `data.len()` bytes, at most 8. Unclaimed offsets are all ones.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) {
        let value = match offset {
            DATA => {
                self.reads += 1;
                self.reads - 1
            }
            CELL..CELL_READS => {
                self.cell_reads += 1;
                u64::from_le_bytes(self.cell) >> (8 * (offset - CELL))
            }
            READS => self.reads,
            WRITES => self.writes,
            WRONG => self.wrong,
            CELL_READS => self.cell_reads,
            CELL_WRITES => self.cell_writes,
            _ => u64::MAX,
        };
        for (place, byte) in data.iter_mut().zip(value.to_le_bytes()) {
            *place = byte;
        }
    }

    /// Handles a guest write of `data`, at most 8 bytes.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        match offset {
            DATA => {
                self.wrong += u64::from(!self.writes.to_le_bytes().starts_with(data));
                self.writes += 1;
            }
            CELL..CELL_READS => {
                let from = (offset - CELL) as usize;
                for (place, byte) in self.cell[from..].iter_mut().zip(data) {
                    *place = *byte;
                }
                self.cell_writes += 1;
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(sequence: &mut SequenceState, offset: u64) -> u64 {
        let mut bytes = [0; 8];
        sequence.read(offset, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    #[test]
    fn reads_are_numbered_and_wrong_writes_counted() {
        let mut sequence = SequenceState::default();
        assert_eq!([0, 1, 2].map(|_: u8| read(&mut sequence, DATA)), [0, 1, 2]);
        sequence.write(DATA, &[0]);
        sequence.write(DATA, &[1, 0, 0, 0]);
        sequence.write(DATA, &[1, 0]);
        let counts = [READS, WRITES, WRONG].map(|at| read(&mut sequence, at));
        assert_eq!(counts, [3, 3, 1]);
    }

    #[test]
    fn cell_keeps_what_is_written_and_counts_accesses() {
        let mut sequence = SequenceState::default();
        sequence.write(CELL, &0x1122_3344_5566_7788_u64.to_le_bytes());
        sequence.write(CELL + 4, &[0xaa, 0xbb]);
        assert_eq!(read(&mut sequence, CELL), 0x1122_bbaa_5566_7788);
        assert_eq!(read(&mut sequence, CELL + 4) & 0xffff, 0xbbaa);
        let counts = [CELL_READS, CELL_WRITES].map(|at| read(&mut sequence, at));
        assert_eq!(counts, [2, 2]);
    }

    #[test]
    fn accesses_of_any_size_and_offset_are_harmless() {
        let mut sequence = SequenceState::default();
        for offset in [0, 7, 0x47, 0x100, u64::MAX] {
            for len in 0..=8 {
                sequence.read(offset, &mut vec![0; len]);
                sequence.write(offset, &vec![0; len]);
            }
        }
    }
}
