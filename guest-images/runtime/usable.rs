//! Which RAM a guest may fill.

/// What no guest, VMM or firmware uses below the image: it begins well after the mailbox and ends
/// well before the data of a BIOS.
const BELOW_THE_IMAGE: Range = Range { start: 0x3_0000, end: 0x8_0000 };
const ABOVE_THE_IMAGE: Range = Range { start: 2 << 20, end: u64::MAX };

/// A range of RAM that the guest may fill: whole pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First guest-physical address.
    pub start: u64,
    /// One past the last.
    pub end: u64,
}

impl Range {
    /// Whether the range contains the address.
    pub fn contains(&self, address: u64) -> bool {
        (self.start..self.end).contains(&address)
    }
}

/// Returns the usable parts of `bytes` of RAM at `start`.
pub fn parts(start: u64, bytes: u64) -> impl Iterator<Item = Range> {
    let end = start.saturating_add(bytes) & !4095;
    let start = start.next_multiple_of(4096);
    let part =
        move |usable: Range| Range { start: start.max(usable.start), end: end.min(usable.end) };
    [BELOW_THE_IMAGE, ABOVE_THE_IMAGE].into_iter().map(part).filter(|part| part.start < part.end)
}
