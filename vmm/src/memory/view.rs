//! Guest RAM by offset in its block, for what copies it as a whole.

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion};

use super::GuestMemory;
use super::layout::{self, Region};
use super::page_set::runs;

/// The RAM of a block, as mapped in this process. It stays mapped while this exists.
#[derive(Clone, Debug)]
pub struct RamView {
    memory: GuestMemory,
    regions: Vec<Region>,
}

impl RamView {
    pub(super) fn new(memory: GuestMemory, size: u64) -> Self {
        Self { memory, regions: layout::regions(size) }
    }

    /// Returns the size of the block, in bytes.
    pub fn size(&self) -> u64 {
        self.regions.last().map_or(0, |region| region.offset + region.size)
    }

    /// Reads at `offset` while the guest may write.
    pub fn read(&self, offset: u64, mut to: &mut [u8]) -> Result<(), GuestMemoryError> {
        let mut at = offset;
        while !to.is_empty() {
            let (address, left) = self.address(at)?;
            let (now, later) = to.split_at_mut(to.len().min(left as usize));
            self.memory.read_slice(now, address)?;
            (at, to) = (at + now.len() as u64, later);
        }
        Ok(())
    }

    /// Writes at `offset`.
    pub fn write(&self, offset: u64, mut from: &[u8]) -> Result<(), GuestMemoryError> {
        let mut at = offset;
        while !from.is_empty() {
            let (address, left) = self.address(at)?;
            let (now, later) = from.split_at(from.len().min(left as usize));
            self.memory.write_slice(now, address)?;
            (at, from) = (at + now.len() as u64, later);
        }
        Ok(())
    }

    /// Writes whole pages at `offset`, where zeros are. Pages of zeros are left out: they may not
    /// have any memory yet.
    pub fn write_to_zeros(&self, offset: u64, from: &[u8]) -> Result<(), GuestMemoryError> {
        let mut at = offset;
        for (zeros, run) in runs(from) {
            if !zeros {
                self.write(at, run)?;
            }
            at += run.len() as u64;
        }
        Ok(())
    }

    /// Returns address and length of each of its mappings in this process.
    pub fn mappings(&self) -> impl Iterator<Item = (u64, u64)> {
        self.memory.iter().map(|region| (region.get_mmap().as_ptr() as u64, region.len()))
    }

    /// Returns the address in this process of `offset`.
    pub fn address_of(&self, offset: u64) -> Option<u64> {
        let mut mapped = self.regions.iter().zip(self.mappings());
        mapped.find_map(|(region, (start, len))| {
            let within = offset.checked_sub(region.offset)?;
            (within < len).then_some(start + within)
        })
    }

    /// Returns the offset of an address in this process.
    pub fn offset_of(&self, address: u64) -> Option<u64> {
        let mut mapped = self.regions.iter().zip(self.mappings());
        mapped.find_map(|(region, (start, len))| {
            let within = address.checked_sub(start)?;
            (within < len).then_some(region.offset + within)
        })
    }

    /// Returns the guest-physical address of `offset`, and how many bytes of its region follow.
    fn address(&self, offset: u64) -> Result<(GuestAddress, u64), GuestMemoryError> {
        let holds =
            |region: &&Region| (region.offset..region.offset + region.size).contains(&offset);
        let region = self.regions.iter().find(holds);
        let region = region.ok_or(GuestMemoryError::InvalidGuestAddress(GuestAddress(offset)))?;
        let within = offset - region.offset;
        Ok((GuestAddress(region.start + within), region.size - within))
    }
}

#[cfg(test)]
mod tests {
    use crate::memory::{MemoryConfig, PageKind, RamBlock};

    #[test]
    fn piece_across_the_hole_is_read_and_written_whole() {
        let config = MemoryConfig { size: 4 << 30, share: true, pages: PageKind::Small };
        let view = RamBlock::create(config).unwrap().view();
        let at = super::layout::LOW_RAM_END - 2;
        view.write(at, &[1, 2, 3, 4]).unwrap();
        let mut read = [0; 6];
        view.read(at - 1, &mut read).unwrap();
        assert_eq!(read, [0, 1, 2, 3, 4, 0]);
        view.read(view.size() - 1, &mut read).unwrap_err();
    }
}
