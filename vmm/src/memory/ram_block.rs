//! A RAM block: one piece of guest RAM with a name, its file, and its mapping here.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

use super::backing;
use super::dma_log::{DmaLog, RegionLog};
use super::file;
use super::layout::{self, Region};
use super::page_set::PageSet;
use super::ram_error::RamError;
use super::stamp::Stamp;
use super::view::RamView;
use super::{GuestMemory, claim, sample};
use crate::memfd;
use crate::memory::{MemoryConfig, PageKind};

/// The one RAM block of this machine, named as QEMU names it on a PC.
pub const PC_RAM: &str = "pc.ram";

/// The name and size of a RAM block, as an update records them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RamBlockInfo {
    /// Its name.
    pub name: String,
    /// Bytes.
    pub size: u64,
}

/// One piece of guest RAM.
#[derive(Debug)]
pub struct RamBlock {
    name: &'static str,
    size: u64,
    /// `None`: private anonymous memory, which ends with this process.
    file: Option<Arc<File>>,
    memory: GuestMemory,
    dma_log: Arc<DmaLog>,
}

impl RamBlock {
    /// Creates zeroed RAM and claims it (see [`claim`](Self::claim)).
    pub fn create(config: MemoryConfig) -> Result<Self, RamError> {
        let file = match config.share {
            true => Some(backing::create(PC_RAM, config.size, config.pages)?),
            false => None,
        };
        let block = Self::map(config, file)?;
        block.claim()?;
        Ok(block)
    }

    /// Opens the RAM file at `path` and locks it, without claiming the guest. If it is missing, it is
    /// created with zeroed RAM, unless `create` is false.
    pub fn open(config: MemoryConfig, path: &Path, create: bool) -> Result<Self, RamError> {
        let file = file::open(path, config.size, create)?;
        Self::map(config, Some(file))
    }

    /// Adopts RAM that came over exec as `fd`, or that another process has left, without claiming
    /// it.
    pub fn adopt(config: MemoryConfig, fd: OwnedFd) -> Result<Self, RamError> {
        let file = File::from(fd);
        let block = || PC_RAM.to_owned();
        let meta =
            file.metadata().map_err(|source| RamError::Examine { block: block(), source })?;
        if meta.size() != config.size {
            let (found, expected) = (meta.size(), config.size);
            return Err(RamError::Handed { block: block(), found, expected });
        }
        // An older binary may have left its size unsealed.
        memfd::seal_size(&file).map_err(|source| RamError::Examine { block: block(), source })?;
        Self::map(config, Some(file))
    }

    /// Describes RAM that another process has: nothing is mapped here.
    pub fn elsewhere(config: MemoryConfig) -> Self {
        let (size, memory) = (config.size, GuestMemory::new());
        Self { name: PC_RAM, size, file: None, memory, dma_log: DmaLog::new(size) }
    }

    /// Makes sure that no other process runs this guest. Must be called before a vCPU runs, and
    /// once nothing can fall back to an older binary, which may not know how to release the claim.
    ///
    /// Dates a file that outlives the process: no state that was saved before fits it any longer.
    pub fn claim(&self) -> Result<(), RamError> {
        self.lock()?;
        if self.outlives_process() {
            self.date()?;
        }
        Ok(())
    }

    /// Claims the guest as [`claim`](Self::claim) does, from a saved state: that must not fit after
    /// a crash of the host either, whatever of the guest's writes is on disk by then.
    pub fn claim_for_good(&self) -> Result<(), RamError> {
        self.lock()?;
        if !self.outlives_process() {
            return Ok(());
        }
        let before = self.dated()?;
        let durable = |file: &File| file.sync_all().and_then(|()| Stamp::of(file));
        let claimed = self.date().and_then(|_| self.stamp_by(durable));
        if claimed.is_err() {
            // The guest does not run here, so its saved state still fits.
            self.stamp_by(|file| before.set(file).map(|()| before))?;
        }
        claimed.map(drop)
    }

    /// Locks the file, as [`claim`](Self::claim) does, but without the right to run the guest.
    pub fn lock(&self) -> Result<(), RamError> {
        let block = || self.name.to_owned();
        match self.file.as_ref().map_or(Ok(()), claim::claim) {
            Ok(()) => Ok(()),
            Err(Errno::EAGAIN | Errno::EACCES) => Err(RamError::InUse { block: block() }),
            Err(errno) => Err(RamError::Lock { block: block(), source: errno.into() }),
        }
    }

    /// Releases the lock: another process may claim the guest.
    pub fn release(&self) {
        if let Some(file) = &self.file {
            claim::release(file.as_raw_fd());
        }
    }

    /// Returns whether RAM is in a file with a name, which outlives the process.
    pub fn outlives_process(&self) -> bool {
        let file = self.file.as_ref();
        file.is_some_and(|file| file.metadata().is_ok_and(|meta| meta.nlink() > 0))
    }

    /// Sets the file's time of modification to now, and returns it.
    pub fn date(&self) -> Result<Stamp, RamError> {
        self.stamp_by(Stamp::renew)
    }

    /// Returns the file's time of modification.
    pub fn dated(&self) -> Result<Stamp, RamError> {
        self.stamp_by(Stamp::of)
    }

    fn stamp_by(&self, by: impl Fn(&File) -> std::io::Result<Stamp>) -> Result<Stamp, RamError> {
        let file = self.file.as_deref().ok_or(Errno::EBADF.into());
        let stamp = file.and_then(by);
        stamp.map_err(|source| RamError::Stamp { block: self.name.to_owned(), source })
    }

    /// Begins to write the file to its disk, if it is on one, without waiting.
    pub fn begin_sync(&self) {
        if let Some(file) = &self.file {
            // SAFETY: numbers only. If it fails, `sync` has more to do.
            unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
        }
    }

    /// Writes the file to its disk, if it is on one.
    pub fn sync(&self) -> std::io::Result<()> {
        self.file.as_ref().map_or(Ok(()), |file| file.sync_all())
    }

    /// Returns a fingerprint of a sample of the content, which the guest must not change meanwhile.
    pub fn sample(&self) -> Result<u128, vm_memory::GuestMemoryError> {
        sample::sample(&self.memory, self.size)
    }

    fn map(config: MemoryConfig, file: Option<File>) -> Result<Self, RamError> {
        let file = file.map(Arc::new);
        let dma_log = DmaLog::new(config.size);
        let mut mapped = Vec::new();
        for region in layout::regions(config.size) {
            let log = RegionLog::new(dma_log.clone(), region.offset);
            mapped.push(Arc::new(map_region(region, file.as_ref(), config.pages, log)?));
        }
        let memory = GuestMemory::from_arc_regions(mapped)
            .expect("the layout's regions are sorted and disjoint");
        Ok(Self { name: PC_RAM, size: config.size, file, memory, dma_log })
    }

    /// The name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The file it lives in; `None` where it is private to this process.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(AsFd::as_fd)
    }

    /// Opens its file once more, to seek in; `None` where that is impossible.
    pub fn reopen(&self) -> Option<File> {
        let number = self.file.as_ref()?.as_raw_fd();
        File::open(format!("/proc/self/fd/{number}")).ok()
    }

    /// Name and size.
    pub fn info(&self) -> RamBlockInfo {
        RamBlockInfo { name: self.name.to_owned(), size: self.size }
    }

    /// The mapping, by guest-physical address.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The log of the pages that this process writes.
    pub fn dma_log(&self) -> &DmaLog {
        &self.dma_log
    }

    /// Returns the mapping, by offset in the block.
    pub fn view(&self) -> RamView {
        RamView::new(self.memory.clone(), self.size)
    }

    /// Registers one memslot per region.
    ///
    /// Must come before `KVM_CREATE_IRQCHIP`: afterwards each memslot waits milliseconds for an
    /// SRCU grace period.
    pub fn register(&self, vm: &VmFd) -> Result<(), RamError> {
        self.set_memslots(vm, 0)
    }

    /// Starts or ends the log of the pages that the guest and its devices write.
    pub fn log_dirty_pages(&self, vm: &VmFd, on: bool) -> Result<(), RamError> {
        self.dma_log.set(on);
        self.set_memslots(vm, if on { KVM_MEM_LOG_DIRTY_PAGES } else { 0 })
    }

    /// Returns the pages that the guest and its devices have written since the last call, or since the log was
    /// started.
    pub fn take_dirty_pages(&self, vm: &VmFd) -> Result<PageSet, RamError> {
        let mut pages = self.dma_log.take();
        for (slot, Region { size, offset, .. }) in (0..).zip(layout::regions(self.size)) {
            let bitmap = vm.get_dirty_log(slot, size as usize);
            let bitmap = bitmap.map_err(|source| RamError::DirtyLog { slot, source })?;
            pages.add(offset, &bitmap);
        }
        Ok(pages)
    }

    fn set_memslots(&self, vm: &VmFd, flags: u32) -> Result<(), RamError> {
        for (slot, region) in (0u32..).zip(self.memory.iter()) {
            let start = region.start_addr().0;
            let memslot = kvm_userspace_memory_region {
                slot,
                flags,
                guest_phys_addr: start,
                memory_size: region.len(),
                userspace_addr: region.get_mmap().as_ptr() as u64,
            };
            // SAFETY: the mapping outlives the VM: `Machine` drops its KVM part before its RAM, and
            // a mapping of `vm_memory` is only unmapped when dropped.
            unsafe { vm.set_user_memory_region(memslot) }.map_err(|source| RamError::Memslot {
                slot,
                start,
                source,
            })?;
        }
        Ok(())
    }
}

fn map_region(
    region: Region,
    file: Option<&Arc<File>>,
    pages: PageKind,
    log: RegionLog,
) -> Result<GuestRegionMmap<RegionLog>, RamError> {
    let flags = match file {
        Some(_) => libc::MAP_SHARED | libc::MAP_NORESERVE,
        None => libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
    };
    let (flags, offset) = seam!(mapping(flags, region.offset));
    let mut builder = MmapRegionBuilder::new_with_bitmap(region.size as usize, log)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(flags)
        .with_hugetlbfs(pages == PageKind::Huge2M);
    if let Some(file) = file {
        builder = builder.with_file_offset(FileOffset::from_arc(file.clone(), offset));
    }
    let mapping = builder.build().map_err(|source| RamError::Map {
        block: PC_RAM.to_owned(),
        size: region.size,
        offset: region.offset,
        source,
    })?;
    // A core dump is for debugging the VMM; writing the guest's RAM to it would delay the keeper.
    // SAFETY: exactly the mapping just made; the advice does not change its content.
    unsafe { libc::madvise(mapping.as_ptr().cast(), region.size as usize, libc::MADV_DONTDUMP) };
    let advice = match pages {
        PageKind::Thp => Some(libc::MADV_HUGEPAGE),
        PageKind::Small => Some(libc::MADV_NOHUGEPAGE),
        PageKind::Huge2M => None,
    };
    if let Some(advice) = advice {
        // A kernel without THP rejects both; then all pages are small, which is right for
        // `pages=4k`, and `pages=thp` has already been rejected.
        // SAFETY: exactly the mapping just made; the advice does not change its content.
        unsafe { libc::madvise(mapping.as_ptr().cast(), region.size as usize, advice) };
    }
    Ok(GuestRegionMmap::new(mapping, GuestAddress(region.start))
        .expect("start and size come from the layout and fit in 64 bits"))
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    const SMALL: MemoryConfig = MemoryConfig { size: 8 << 20, share: true, pages: PageKind::Small };

    #[test]
    fn adopted_ram_holds_what_was_written() {
        let first = RamBlock::create(SMALL).unwrap();
        first.memory().write_obj(0x1234_5678_u32, GuestAddress(0x10_0000)).unwrap();
        let fd = first.fd().unwrap().try_clone_to_owned().unwrap();
        drop(first);
        let second = RamBlock::adopt(SMALL, fd).unwrap();
        assert_eq!(second.memory().read_obj::<u32>(GuestAddress(0x10_0000)).unwrap(), 0x1234_5678);
    }

    #[test]
    fn high_ram_follows_low_ram_in_the_file() {
        use std::os::unix::fs::FileExt;
        let config = MemoryConfig { size: 4 << 30, ..SMALL };
        let ram = RamBlock::create(config).unwrap();
        ram.memory().write_obj(7_u8, GuestAddress(layout::HIGH_RAM_START)).unwrap();
        let mut byte = [0];
        ram.file.as_ref().unwrap().read_exact_at(&mut byte, layout::LOW_RAM_END).unwrap();
        assert_eq!(byte, [7]);
    }

    #[test]
    fn rejects_ram_of_another_size() {
        let fd = RamBlock::create(SMALL).unwrap().fd().unwrap().try_clone_to_owned().unwrap();
        let other = MemoryConfig { size: 16 << 20, ..SMALL };
        insta::assert_snapshot!(RamBlock::adopt(other, fd).unwrap_err(), @"RAM block pc.ram that was handed over has 8388608 bytes, the command line says 16777216");
    }

    #[test]
    fn ram_of_an_older_binary_is_sealed_when_it_is_adopted() {
        let fd = memfd::create(c"ram", nix::sys::memfd::MFdFlags::empty()).unwrap();
        let file = File::from(fd.try_clone().unwrap());
        file.set_len(SMALL.size).unwrap();
        let _ram = RamBlock::adopt(SMALL, fd).unwrap();
        assert!(file.set_len(0).is_err());
    }

    #[test]
    fn guest_is_run_by_only_one_process() {
        let first = RamBlock::create(SMALL).unwrap();
        let number = first.fd().unwrap().as_raw_fd();
        let path = format!("/proc/self/fd/{number}");
        let other = File::options().read(true).write(true).open(path).unwrap();
        let second = RamBlock::adopt(SMALL, other.into()).unwrap();
        insta::assert_snapshot!(second.claim().unwrap_err(), @"cannot lock RAM block pc.ram: another process runs its guest");
        claim::release(number);
        second.claim().unwrap();
    }

    #[test]
    fn only_a_file_with_a_name_outlives_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ram");
        let file = RamBlock::open(SMALL, &path, true).unwrap();
        assert!(file.outlives_process());
        assert!(!RamBlock::create(SMALL).unwrap().outlives_process());
        std::fs::remove_file(&path).unwrap();
        assert!(!file.outlives_process());
    }

    #[test]
    fn claim_dates_the_file_and_lock_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let ram = RamBlock::open(SMALL, &dir.path().join("ram"), true).unwrap();
        let before = ram.dated().unwrap();
        ram.lock().unwrap();
        assert_eq!(ram.dated().unwrap(), before);
        ram.claim().unwrap();
        assert_ne!(ram.dated().unwrap(), before);
    }

    #[test]
    fn private_ram_has_no_descriptor() {
        assert!(RamBlock::create(MemoryConfig { share: false, ..SMALL }).unwrap().fd().is_none());
    }
}
