//! The test device: a port to which a guest writes marker n, so that the log shows when it got
//! there; a port that moves interrupt lines; and two [sequences](super::sequence), one behind ports
//! and one behind a page of MMIO.

use serde::{Deserialize, Serialize};

use super::sequence::{self, SequenceState};

/// The port of the markers, 32 bits wide.
pub const PORT: u16 = 0x580;
/// The port that moves interrupt lines: the line in the first byte, an order in the second.
pub const LINES: u16 = 0x584;
/// The port of the numbers, of any width.
pub const SEQUENCE: u16 = 0x590;
/// Ports of the counters of reads, writes and wrong writes: 32 bits each.
pub const COUNTS: [(u16, u64); 3] =
    [(0x594, sequence::READS), (0x598, sequence::WRITES), (0x59c, sequence::WRONG)];
/// The page of MMIO.
pub const PAGE: u64 = 0xfeb0_0000;
/// One past its last address.
pub const PAGE_END: u64 = PAGE + 0x1000;

/// The levels that an order sets on a line: 0 pulses it, 1 raises it, 2 lowers it.
pub fn levels(order: u8) -> &'static [bool] {
    match order {
        0 => &[true, false],
        1 => &[true],
        2 => &[false],
        _ => &[],
    }
}

/// What the device has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestPortState {
    /// The newest marker.
    pub marker: u32,
    /// Markers so far.
    pub writes: u64,
    /// Reads of the markers' port so far.
    pub reads: u64,
    /// The numbers behind ports.
    pub ports: SequenceState,
    /// The numbers behind the page.
    pub page: SequenceState,
}

impl TestPortState {
    /// Handles a guest write to one of the ports.
    pub fn write(&mut self, port: u16, data: &[u8]) {
        match (port, data) {
            (PORT, &[a, b, c, d]) => {
                self.marker = u32::from_le_bytes([a, b, c, d]);
                self.writes += 1;
                tracing::debug!(self.marker, self.writes, "guest_marker");
            }
            (SEQUENCE, data) => self.ports.write(sequence::DATA, data),
            _ => {}
        }
    }

    /// Handles a guest read from one of the ports; the markers' port returns the number of earlier
    /// reads.
    pub fn read(&mut self, port: u16, data: &mut [u8]) {
        let count = COUNTS.iter().find(|(at, _)| *at == port);
        match (port, data, count) {
            (PORT, data, _) if data.len() == 4 => {
                data.copy_from_slice(&(self.reads as u32).to_le_bytes());
                self.reads += 1;
            }
            (SEQUENCE, data, _) => self.ports.read(sequence::DATA, data),
            (_, data, Some((_, offset))) => self.ports.read(*offset, data),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_access_of_the_ports_counts_once() {
        let mut device = TestPortState::default();
        let mut byte = [0xff];
        for n in 0..3 {
            device.read(SEQUENCE, &mut byte);
            assert_eq!(byte, [n]);
            device.write(SEQUENCE, &[n, 0]);
        }
        let counts = COUNTS.map(|(port, _)| {
            let mut count = [0; 4];
            device.read(port, &mut count);
            u32::from_le_bytes(count)
        });
        assert_eq!(counts, [3, 3, 0]);
    }

    #[test]
    fn a_marker_is_32_bits() {
        let mut device = TestPortState::default();
        device.write(PORT, &7_u32.to_le_bytes());
        device.write(PORT, &[9]);
        assert_eq!((device.marker, device.writes), (7, 1));
    }
}
