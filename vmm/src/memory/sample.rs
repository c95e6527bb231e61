//! A fingerprint of a sample of RAM, which tells one guest's RAM from another's.

use vm_memory::{Bytes, GuestAddress};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::GuestMemory;
use super::layout::{self, Region};

const PAGE: u64 = 4096;
/// Pages in a sample: all pages of 16 MiB. Hashing them takes a few milliseconds.
const PAGES: u64 = 4096;

/// Returns the offsets of the pages to sample in a block of `size` bytes: one at a fixed but
/// irregular place in each of [`PAGES`] equal parts, or every page of a small block.
fn offsets(size: u64) -> impl Iterator<Item = u64> {
    let pages = size / PAGE;
    let parts = pages.min(PAGES);
    (0..parts).map(move |part| {
        let [start, end] = [part, part + 1].map(|part| pages * part / parts);
        // Irregular, because guests lay out their memory regularly.
        (start + xxh3_64(&part.to_le_bytes()) % (end - start)) * PAGE
    })
}

/// Returns the fingerprint of the sample: XXH3-128 of its pages, in order.
///
/// If a share `f` of all pages differs, it misses that with a probability of `(1 - f)^4096`: 2 % for
/// one page in a thousand, and never in up to 16 MiB.
pub fn sample(memory: &GuestMemory, size: u64) -> Result<u128, vm_memory::GuestMemoryError> {
    let regions = layout::regions(size);
    let mut hash = Xxh3::new();
    let mut page = [0; PAGE as usize];
    for offset in offsets(size) {
        memory.read_slice(&mut page, GuestAddress(address(&regions, offset)))?;
        hash.update(&page);
    }
    Ok(hash.digest128())
}

fn address(regions: &[Region], offset: u64) -> u64 {
    let holds = |region: &&Region| (region.offset..region.offset + region.size).contains(&offset);
    let region = regions.iter().find(holds).expect("regions cover the block");
    region.start + (offset - region.offset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{MemoryConfig, PageKind, RamBlock};

    #[test]
    fn sample_is_spread_over_the_block() {
        for size in [4 << 20, 16 << 20, 100 << 20, (5 << 30) + 4096] {
            let sampled: Vec<_> = offsets(size).collect();
            assert_eq!(sampled.len() as u64, (size / PAGE).min(PAGES), "{size}");
            assert!(sampled.is_sorted_by(|a, b| a < b) && *sampled.last().unwrap() < size);
            let gaps = sampled.windows(2).map(|two| two[1] - two[0]);
            assert!(gaps.max().unwrap() < 2 * (size / PAGES).max(PAGE) + PAGE, "{size}");
        }
    }

    #[test]
    fn every_page_of_small_ram_counts() {
        let config = MemoryConfig { size: 4 << 20, share: true, pages: PageKind::Small };
        let ram = RamBlock::create(config).unwrap();
        let mut seen = vec![ram.sample().unwrap()];
        for page in (0..config.size / PAGE).step_by(97) {
            ram.memory().write_obj(1_u8, GuestAddress(page * PAGE + page % PAGE)).unwrap();
            let now = ram.sample().unwrap();
            assert!(!seen.contains(&now), "page {page}");
            seen.push(now);
        }
    }

    #[test]
    fn high_ram_is_sampled() {
        let config = MemoryConfig { size: 4 << 30, share: true, pages: PageKind::Small };
        let ram = RamBlock::create(config).unwrap();
        let before = ram.sample().unwrap();
        let last = offsets(config.size).last().unwrap();
        let at = layout::HIGH_RAM_START + last - layout::LOW_RAM_END;
        ram.memory().write_obj(1_u8, GuestAddress(at)).unwrap();
        assert_ne!(ram.sample().unwrap(), before);
    }
}
