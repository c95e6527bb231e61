//! MSI-X: interrupts as messages, from a table that the guest fills in.
//!
//! Source: PCI Local Bus Specification 3.0, chapter 6.8.2.

use serde::{Deserialize, Serialize};

/// The ID of the capability.
pub const CAPABILITY: u8 = 0x11;
/// Bits of its message control register: MSI-X is in use, and all vectors are masked.
pub const CONTROL_ENABLE: u16 = 1 << 15;
const CONTROL_MASK_ALL: u16 = 1 << 14;
/// The bits of the register that the guest can change.
pub const CONTROL_WRITABLE: u16 = CONTROL_ENABLE | CONTROL_MASK_ALL;
/// Bytes of an entry of the table.
const ENTRY: u64 = 16;
const VECTOR_MASKED: u32 = 1;

/// A message: a write of `data` to `address`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Where it is written.
    pub address: u64,
    /// What is written.
    pub data: u32,
}

/// The four words of an entry: low and high address, data, vector control.
type Entry = [u32; 4];

/// The table and the pending bits; the default is that after power-on, with no vectors.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Msix {
    table: Vec<Entry>,
    /// Bit n: vector n, which was masked, has an interrupt pending.
    pending: u64,
    /// The message control register.
    control: u16,
}

impl Msix {
    /// Creates the table of `vectors` vectors, at most 64, all masked.
    pub fn new(vectors: u16) -> Self {
        debug_assert!(vectors <= 64);
        let masked = [0, 0, 0, VECTOR_MASKED];
        Self { table: vec![masked; vectors.into()], pending: 0, control: 0 }
    }

    /// Number of vectors.
    pub fn vectors(&self) -> u16 {
        self.table.len() as u16
    }

    /// Whether the guest uses MSI-X, in place of INTx.
    pub fn is_enabled(&self) -> bool {
        self.control & CONTROL_ENABLE != 0
    }

    /// Sets the message control register; returns the messages that are due by that.
    pub fn set_control(&mut self, control: u16) -> Vec<Message> {
        self.control = control & CONTROL_WRITABLE;
        self.take_due()
    }

    /// Raises `vector`; returns the message to send. There is none as long as the vector is masked:
    /// it is then pending.
    pub fn raise(&mut self, vector: u16) -> Option<Message> {
        let entry = self.table.get(usize::from(vector))?;
        if !self.is_enabled() {
            return None;
        }
        if self.control & CONTROL_MASK_ALL != 0 || entry[3] & VECTOR_MASKED != 0 {
            self.pending |= 1 << vector;
            return None;
        }
        Some(message(entry))
    }

    /// Takes the pending messages of vectors that are unmasked now.
    fn take_due(&mut self) -> Vec<Message> {
        if self.control & CONTROL_WRITABLE != CONTROL_ENABLE {
            return Vec::new();
        }
        let mut due = Vec::new();
        for (vector, entry) in self.table.iter().enumerate() {
            let bit = 1 << vector;
            if self.pending & bit != 0 && entry[3] & VECTOR_MASKED == 0 {
                self.pending &= !bit;
                due.push(message(entry));
            }
        }
        due
    }

    /// Reads the table at `offset`.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            let entry = self.table.get((at / ENTRY) as usize);
            let word = entry.map_or(0, |entry| entry[(at % ENTRY / 4) as usize]);
            *byte = word.to_le_bytes()[(at % 4) as usize];
        }
    }

    /// Writes to the table at `offset`; returns the messages that are due by that.
    pub fn write_table(&mut self, offset: u64, data: &[u8]) -> Vec<Message> {
        for (at, byte) in (offset..).zip(data) {
            if let Some(entry) = self.table.get_mut((at / ENTRY) as usize) {
                let word = &mut entry[(at % ENTRY / 4) as usize];
                let mut bytes = word.to_le_bytes();
                bytes[(at % 4) as usize] = *byte;
                *word = u32::from_le_bytes(bytes);
            }
        }
        self.take_due()
    }

    /// Reads the pending bits at `offset`.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            *byte = self.pending.to_le_bytes().get(at as usize).copied().unwrap_or(0);
        }
    }
}

fn message(&[low, high, data, _]: &Entry) -> Message {
    Message { address: u64::from(high) << 32 | u64::from(low), data }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE: Message = Message { address: 0xfee0_1000, data: 0x31 };

    fn enabled() -> Msix {
        let mut msix = Msix::new(2);
        assert_eq!(msix.set_control(CONTROL_ENABLE), []);
        let entry = [0xfee0_1000_u32, 0, 0x31, 0].map(u32::to_le_bytes);
        assert_eq!(msix.write_table(ENTRY, entry.as_flattened()), []);
        msix
    }

    #[test]
    fn unmasked_vector_sends_its_message() {
        let mut msix = enabled();
        assert_eq!(msix.raise(1), Some(MESSAGE));
        assert_eq!(msix.raise(2), None);
        let mut entry = [0; 16];
        msix.read_table(ENTRY, &mut entry);
        assert_eq!(entry[..5], [0, 0x10, 0xe0, 0xfe, 0]);
        msix.set_control(0);
        assert_eq!(msix.raise(1), None);
        assert_eq!(msix.set_control(CONTROL_ENABLE), []);
    }

    #[test]
    fn masked_vector_is_pending_until_it_is_unmasked() {
        let mut msix = enabled();
        assert_eq!(msix.raise(0), None);
        let mut bits = [0xff; 8];
        msix.read_pending(0, &mut bits);
        assert_eq!(bits, [1, 0, 0, 0, 0, 0, 0, 0]);
        let due = msix.write_table(12, &[0]);
        assert_eq!(due, [Message { address: 0, data: 0 }]);
        assert_eq!(msix.write_table(12, &[0]), []);
        msix.set_control(CONTROL_ENABLE | CONTROL_MASK_ALL);
        assert_eq!(msix.raise(1), None);
        assert_eq!(msix.set_control(CONTROL_ENABLE), [MESSAGE]);
    }

    #[test]
    fn accesses_of_any_size_and_offset_are_harmless() {
        let mut msix = enabled();
        for offset in [0, 15, 31, 32, 0xfff] {
            for length in 0..=8 {
                msix.write_table(offset, &vec![0xff; length]);
                msix.read_table(offset, &mut vec![0; length]);
                msix.read_pending(offset, &mut vec![0; length]);
            }
        }
    }
}
