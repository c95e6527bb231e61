//! Finds the host page frames that hold a sample of the guest's RAM.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::OnceLock;

use memmap2::{Advice, MmapOptions};
use nix::sys::statfs::{HUGETLBFS_MAGIC, fstatfs};
use procfs::process::{MemoryPageFlags, PageInfo};
use rustix::fs::{AtFlags, StatxAttributes, StatxFlags};

use super::mailbox::MAILBOX_GPA;
use super::maps::Mapping;

const PAGE: u64 = 4096;

/// Frame numbers by offset in RAM; empty where the host does not show them.
pub type Frames = BTreeMap<u64, u64>;

/// Whether this process can read page frame numbers, which needs `CAP_SYS_ADMIN`.
pub fn are_shown() -> bool {
    static SHOWN: OnceLock<bool> = OnceLock::new();
    *SHOWN.get_or_init(|| {
        let here = &raw const SHOWN as u64;
        File::open("/proc/self/pagemap").is_ok_and(|pagemap| frame(&pagemap, here).is_some())
    })
}

/// Returns the frames of about `wanted` pages spread over the RAM file at `path`, and of the
/// mailbox; `None` if `path` is not such a file. What the VMM has mapped of it makes no difference.
pub fn sample_file(path: &Path, bytes: u64, wanted: u64) -> Option<Frames> {
    let file = File::open(path).ok()?;
    // Looking at a page of hugetlbfs would take one from the host's reserve.
    if fstatfs(&file).ok()?.filesystem_type() == HUGETLBFS_MAGIC {
        return None;
    }
    let direct = is_direct(&file);
    let pagemap = File::open("/proc/self/pagemap").ok()?;
    let length = usize::try_from(bytes).ok()?;
    let memory = MmapOptions::new().len(length).map_raw_read_only(&file).ok()?;
    let seen = |offset: u64| {
        let at = memory.as_mut_ptr().wrapping_add(usize::try_from(offset).ok()?);
        if !direct && !is_resident(at) {
            return None;
        }
        memory.advise_range(Advice::PopulateRead, offset as usize, PAGE as usize).ok()?;
        Some((offset, frame(&pagemap, at.addr() as u64)?))
    };
    Some(offsets(0, bytes, bytes, wanted).chain([MAILBOX_GPA]).filter_map(seen).collect())
}

/// Returns the frames of about `wanted` pages spread over `mappings` of process `pid`.
///
/// Pages that the process has not touched have no entry.
pub fn sample(pid: i32, mappings: &[Mapping], wanted: u64) -> Frames {
    let Ok(pagemap) = File::open(format!("/proc/{pid}/pagemap")) else {
        return Frames::new();
    };
    let total: u64 = mappings.iter().map(Mapping::len).sum();
    let of_mapping = |mapping: &Mapping| {
        let (first, start) = (mapping.offset, mapping.addresses.start);
        let all = offsets(first, first + mapping.len(), total, wanted);
        let seen = |offset| Some((offset, frame(&pagemap, start + (offset - first))?));
        all.filter_map(seen).collect::<Vec<_>>()
    };
    mappings.iter().flat_map(of_mapping).collect()
}

/// Offsets from `first` to `end`, spaced so that there are `wanted` in `total` bytes.
fn offsets(first: u64, end: u64, total: u64, wanted: u64) -> impl Iterator<Item = u64> {
    let stride = (total / wanted.max(1)).max(PAGE) & !(PAGE - 1);
    (first.next_multiple_of(stride)..end).step_by(stride as usize)
}

/// Whether the file is mapped directly (DAX): then all that is allocated of it is memory, whatever `mincore` says.
fn is_direct(file: &File) -> bool {
    let known = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::empty());
    known.is_ok_and(|known| known.stx_attributes.contains(StatxAttributes::DAX))
}

/// Whether the file's page there is in memory: touching one that is not would allocate or read it.
fn is_resident(at: *mut u8) -> bool {
    let mut resident = 0;
    // SAFETY: writes one byte of ours; where nothing is mapped, the call fails.
    let asked = unsafe { libc::mincore(at.cast(), PAGE as usize, &raw mut resident) };
    asked == 0 && resident & 1 == 1
}

/// The frame behind `address` in the process with this `pagemap`.
fn frame(pagemap: &File, address: u64) -> Option<u64> {
    let mut entry = [0; 8];
    pagemap.read_exact_at(&mut entry, address / PAGE * 8).ok()?;
    match PageInfo::parse_info(u64::from_ne_bytes(entry)) {
        PageInfo::MemoryPage(page) if page.contains(MemoryPageFlags::PRESENT) => {
            Some(page.get_page_frame_number().0).filter(|frame| *frame != 0)
        }
        _ => None,
    }
}

/// Compares two samples: returns the number of pages seen in both, and how many of them moved.
pub fn compare(before: &Frames, after: &Frames) -> (usize, usize) {
    let both = before.iter().filter_map(|(offset, frame)| Some((frame, after.get(offset)?)));
    both.fold((0, 0), |(seen, moved), (a, b)| (seen + 1, moved + usize::from(a != b)))
}
