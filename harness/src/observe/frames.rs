//! Which page frames of the host hold a sample of the guest's RAM.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use super::maps::Mapping;

const PAGE: u64 = 4096;
const PRESENT: u64 = 1 << 63;
const FRAME_BITS: u64 = (1 << 55) - 1;

/// Frame number by offset in the RAM file; empty where the host does not show them.
pub type Frames = BTreeMap<u64, u64>;

/// The frames of about `wanted` pages spread over `mappings` of process `pid`.
///
/// Pages that the process has not touched have no entry, and without `CAP_SYS_ADMIN` none has.
pub fn sample(pid: i32, mappings: &[Mapping], wanted: u64) -> Frames {
    let Ok(pagemap) = File::open(format!("/proc/{pid}/pagemap")) else {
        return Frames::new();
    };
    let total: u64 = mappings.iter().map(Mapping::len).sum();
    let stride = (total / wanted.max(1)).max(PAGE) & !(PAGE - 1);
    let mut frames = Frames::new();
    for mapping in mappings {
        let first = mapping.offset.next_multiple_of(stride);
        for offset in (first..mapping.offset + mapping.len()).step_by(stride as usize) {
            let address = mapping.addresses.start + (offset - mapping.offset);
            let mut entry = [0; 8];
            if pagemap.read_exact_at(&mut entry, address / PAGE * 8).is_err() {
                continue;
            }
            let entry = u64::from_le_bytes(entry);
            if entry & PRESENT != 0 && entry & FRAME_BITS != 0 {
                frames.insert(offset, entry & FRAME_BITS);
            }
        }
    }
    frames
}

/// How two samples compare: pages seen in both, and how many of these changed their frame.
pub fn compare(before: &Frames, after: &Frames) -> (usize, usize) {
    let both = before.iter().filter_map(|(offset, frame)| Some((frame, after.get(offset)?)));
    both.fold((0, 0), |(seen, moved), (a, b)| (seen + 1, moved + usize::from(a != b)))
}
