//! Maps RAM above the 4 GiB that the shim maps.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::shim::HIGH_GIB;

/// Flags of a table: present, writable, user, accessed.
const TABLE: u64 = 0x27;
/// Flags of a page: the same, plus dirty and large page.
const LARGE_PAGE: u64 = 0xe7;

#[repr(C, align(4096))]
struct Table([AtomicU64; 512]);

unsafe extern "C" {
    static page_directory_pointers: Table;
    static high_page_directories: [Table; HIGH_GIB];
}

/// Identity-maps everything up to `end` with 2 MiB pages. Formerly absent entries need no flush.
pub fn map_up_to(end: u64) {
    // SAFETY: both are statics of the shim that only this function touches, through atomics.
    let (pointers, directories) = unsafe { (&page_directory_pointers, &high_page_directories) };
    let gibs = end.div_ceil(1 << 30) as usize;
    assert!(gibs <= 4 + HIGH_GIB, "RAM above {} GiB: pass ram=", 4 + HIGH_GIB);
    for gib in 4..gibs {
        let directory = &directories[gib - 4];
        for (i, entry) in directory.0.iter().enumerate() {
            entry.store((gib as u64) << 30 | (i as u64) << 21 | LARGE_PAGE, Relaxed);
        }
        pointers.0[gib].store((&raw const *directory).addr() as u64 | TABLE, Relaxed);
    }
}
