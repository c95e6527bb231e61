//! Which pages of RAM this process writes, for a copy of RAM: KVM's dirty log does not have them.
//!
//! Every write through [`GuestMemory`](super::GuestMemory) is seen; what the kernel writes by an
//! address that a device was given must be [marked](vm_memory::bitmap::Bitmap::mark_dirty).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::bitmap::{Bitmap, RefSlice, WithBitmapSlice};

use super::page_set::{PAGE, PageSet};

/// The log of a RAM block.
#[derive(Debug)]
pub struct DmaLog {
    bytes: u64,
    on: AtomicBool,
    pages: Mutex<PageSet>,
}

impl DmaLog {
    /// Creates the log of a block of `bytes`, which is off.
    pub fn new(bytes: u64) -> Arc<Self> {
        Arc::new(Self { bytes, on: AtomicBool::new(false), pages: Mutex::new(PageSet::none(0)) })
    }

    fn lock(&self) -> MutexGuard<'_, PageSet> {
        // A set of pages is valid at every instant.
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Switches the log on, empty, or off.
    pub fn set(&self, on: bool) {
        let mut pages = self.lock();
        *pages = PageSet::none(if on { self.bytes } else { 0 });
        self.on.store(on, Ordering::SeqCst);
    }

    /// Returns the pages that were written since the last call, or since the log was switched on.
    pub fn take(&self) -> PageSet {
        let mut pages = self.lock();
        let empty = PageSet::none(self.bytes);
        match self.on.load(Ordering::SeqCst) {
            true => std::mem::replace(&mut pages, empty),
            false => empty,
        }
    }

    fn add(&self, offset: u64, length: u64) {
        let length = seam!(written_by_device(length));
        let mut pages = self.lock();
        if length > 0 && self.on.load(Ordering::SeqCst) {
            let (start, end) = (offset / PAGE * PAGE, (offset + length).next_multiple_of(PAGE));
            pages.insert(start, end.min(self.bytes.next_multiple_of(PAGE)) - start);
        }
    }
}

/// The part of a log that belongs to one region of its block.
#[derive(Clone, Debug)]
pub struct RegionLog {
    log: Arc<DmaLog>,
    /// The region's offset in the block.
    offset: u64,
}

impl RegionLog {
    /// Returns the part for the region at `offset`.
    pub fn new(log: Arc<DmaLog>, offset: u64) -> Self {
        Self { log, offset }
    }
}

impl<'a> WithBitmapSlice<'a> for RegionLog {
    type S = RefSlice<'a, Self>;
}

impl Bitmap for RegionLog {
    fn mark_dirty(&self, offset: usize, length: usize) {
        if self.log.on.load(Ordering::SeqCst) {
            self.log.add(self.offset + offset as u64, length as u64);
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.log.on.load(Ordering::SeqCst) && self.log.lock().contains(self.offset + offset as u64)
    }

    fn slice_at(&self, offset: usize) -> RefSlice<'_, Self> {
        RefSlice::new(self, offset)
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::memory::{MemoryConfig, PageKind, RamBlock, layout};

    fn pages(log: &DmaLog) -> Vec<(u64, u64)> {
        log.take().pieces(1 << 30).map(|(at, bytes)| (at / PAGE, bytes / PAGE)).collect()
    }

    #[test]
    fn writes_are_logged_by_page_while_it_is_on() {
        let config = MemoryConfig { size: 4 << 30, share: true, pages: PageKind::Small };
        let ram = RamBlock::create(config).unwrap();
        let write = |at: u64, bytes: usize| {
            ram.memory().write_slice(&vec![1; bytes], GuestAddress(at)).unwrap();
        };
        write(0, 1);
        assert_eq!(pages(ram.dma_log()), []);
        ram.dma_log().set(true);
        assert_eq!(pages(ram.dma_log()), []);
        write(3 * PAGE - 1, 2);
        write(layout::HIGH_RAM_START + PAGE, 1);
        ram.memory().read_obj::<u64>(GuestAddress(9 * PAGE)).unwrap();
        assert_eq!(pages(ram.dma_log()), [(2, 2), (layout::LOW_RAM_END / PAGE + 1, 1)]);
        assert_eq!(pages(ram.dma_log()), []);
        ram.dma_log().set(false);
        write(0, 1);
        assert_eq!(pages(ram.dma_log()), []);
    }
}
