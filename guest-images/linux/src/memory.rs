//! Fills memory of three kinds with patterns, then verifies and rewrites it page by page.

use std::fs::{self, File};
use std::hint::black_box;
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{
    AtomicU64,
    Ordering::{Relaxed, Release},
};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous};
use thiserror::Error;

use crate::finding::Finding;
use crate::mailbox::{MAX_CPUS, Mailbox, damage_kind};
use crate::reporting::Report;
use crate::words::{STEP, WORDS, Words};

/// Pages that a thread visits in a round.
const BATCH: usize = 32;
/// Size of a huge page.
const HUGE: u64 = 2 << 20;
/// The generation that memory holds at the start.
const FIRST_GENERATION: u64 = 1;

/// Sweeps finished by each vCPU.
static SWEEPS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

type Words4K = [u64; WORDS];

/// Errors from mapping the memory to check.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// The pool of huge pages cannot be filled.
    #[error("cannot reserve {pages} huge pages: {source}")]
    Reserve {
        /// How many.
        pages: u64,
        /// The cause.
        source: io::Error,
    },
    /// A file in tmpfs cannot be made.
    #[error("cannot create a file of {size} bytes in /tmp: {source}")]
    File {
        /// Its size.
        size: u64,
        /// The cause.
        source: io::Error,
    },
    /// Memory cannot be mapped.
    #[error("cannot map {size} bytes of {kind} memory: {source}")]
    Map {
        /// Its kind.
        kind: &'static str,
        /// Its size.
        size: u64,
        /// The cause.
        source: nix::Error,
    },
}

/// A page under test.
struct Page {
    kind: &'static str,
    /// The page's place among all, from which its words are made.
    number: u64,
    words: &'static mut Words4K,
}

/// The pages of one vCPU.
pub struct Share {
    cpu: usize,
    cpus: usize,
    words: Words,
    pages: Vec<Page>,
    next: usize,
    generation: u64,
    visited: u64,
}

/// Maps and fills `size` bytes: half of it anonymous memory, a quarter in tmpfs, a quarter in huge
/// pages, at least one. Each vCPU gets an equal share of each kind.
pub fn map(page: &Mailbox, size: u64, cpus: usize, seed: u64) -> Result<Vec<Share>, MemoryError> {
    let words = Words::new(seed);
    let mut shares: Vec<Share> = (0..cpus)
        .map(|cpu| {
            let (pages, generation) = (Vec::new(), FIRST_GENERATION);
            Share { cpu, cpus, words, pages, next: 0, generation, visited: 0 }
        })
        .collect();
    let mut number = 0;
    for (kind, memory) in [
        ("anonymous", anonymous(size / 2)?),
        ("tmpfs", in_tmpfs(size / 4)?),
        ("huge", huge(size / 4)?),
    ] {
        for page in memory {
            write(page, words.first(number << 12, FIRST_GENERATION));
            shares[number as usize % cpus].pages.push(Page { kind, number, words: page });
            number += 1;
        }
    }
    page.ram_bytes.store(number << 12, Release);
    Ok(shares)
}

fn anonymous(size: u64) -> Result<&'static mut [Words4K], MemoryError> {
    map_anonymous("anonymous", size, MapFlags::MAP_PRIVATE)
}

fn huge(size: u64) -> Result<&'static mut [Words4K], MemoryError> {
    let pages = size.div_ceil(HUGE).max(1);
    let reserve = fs::write("/proc/sys/vm/nr_hugepages", pages.to_string());
    reserve.map_err(|source| MemoryError::Reserve { pages, source })?;
    // Shared, so that a process that is forked needs no copies.
    map_anonymous("huge", pages * HUGE, MapFlags::MAP_SHARED | MapFlags::MAP_HUGETLB)
}

#[allow(clippy::mut_from_ref, reason = "the mapping is new; the reference is only its name")]
fn map_anonymous(
    kind: &'static str,
    size: u64,
    flags: MapFlags,
) -> Result<&'static mut [Words4K], MemoryError> {
    let wrong = |source| MemoryError::Map { kind, size, source };
    let length = NonZeroUsize::new(size as usize).ok_or(wrong(nix::Error::EINVAL))?;
    let both = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping at an address that the kernel chooses.
    let start = unsafe { mmap_anonymous(None, length, both, flags) }.map_err(wrong)?;
    // SAFETY: the mapping stays forever and nothing else refers to it; any bits are valid words.
    Ok(unsafe { std::slice::from_raw_parts_mut(start.cast().as_ptr(), length.get() / 4096) })
}

fn in_tmpfs(size: u64) -> Result<&'static mut [Words4K], MemoryError> {
    let (kind, file_error) = ("tmpfs", |source| MemoryError::File { size, source });
    let path = "/tmp/pattern";
    let file = File::options().read(true).write(true).create_new(true).open(path);
    let file = file.map_err(file_error)?;
    file.set_len(size).map_err(file_error)?;
    let wrong = |source| MemoryError::Map { kind, size, source };
    let length = NonZeroUsize::new(size as usize).ok_or(wrong(nix::Error::EINVAL))?;
    let both = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping at an address that the kernel chooses.
    let start = unsafe { mmap(None, length, both, MapFlags::MAP_SHARED, &file, 0) };
    let start = start.map_err(wrong)?;
    // SAFETY: the mapping and its file stay forever, no other process knows the file, and any bits
    // are valid words.
    Ok(unsafe { std::slice::from_raw_parts_mut(start.cast().as_ptr(), length.get() / 4096) })
}

impl Share {
    /// The vCPU that visits these pages.
    pub fn cpu(&self) -> usize {
        self.cpu
    }

    /// Verifies and rewrites the next pages, and counts sweeps.
    pub fn round(&mut self, mailbox: &Mailbox) -> Result<(), Finding> {
        for _ in 0..BATCH {
            let page = &mut self.pages[self.next];
            // The compiler must not rely on what was written before.
            let found = black_box(&mut *page.words);
            let (number, generation) = (page.number, self.generation);
            judge(found, self.words, number, generation, page.kind)
                .map_err(|finding| with_address(finding, found))?;
            write(found, self.words.first(number << 12, generation + 1));
            self.visited += 1;
            mailbox.cpus[self.cpu].pages.store(self.visited, Relaxed);
            self.next += 1;
            if self.next == self.pages.len() {
                self.finish_sweep(mailbox);
            }
        }
        Ok(())
    }

    fn finish_sweep(&mut self, mailbox: &Mailbox) {
        SWEEPS[self.cpu].store(self.generation, Relaxed);
        let all = SWEEPS[..self.cpus].iter().map(|sweeps| sweeps.load(Relaxed)).min();
        mailbox.sweeps.fetch_max(all.unwrap_or(0), Relaxed);
        self.generation += 1;
        self.next = 0;
    }
}

fn write(page: &mut Words4K, mut word: u64) {
    for place in page {
        *place = word;
        word = word.wrapping_add(STEP);
    }
}

/// Whether the page holds the words that start with `word`. It compares every word: that is faster
/// than stopping early.
fn holds(page: &Words4K, mut word: u64) -> bool {
    let mut difference = 0;
    for found in page {
        difference |= found ^ word;
        word = word.wrapping_add(STEP);
    }
    difference == 0
}

/// Checks that page `number` holds its words.
fn judge(
    page: &Words4K,
    words: Words,
    number: u64,
    generation: u64,
    kind: &str,
) -> Result<(), Finding> {
    let first = words.first(number << 12, generation);
    if holds(page, first) {
        return Ok(());
    }
    let expected = |index: usize| first.wrapping_add(STEP.wrapping_mul(index as u64));
    let is_wrong = |index: &usize| page[*index] != expected(*index);
    let wrong = (0..WORDS).filter(is_wrong).count();
    let Some(index) = (0..WORDS).find(is_wrong) else { return Ok(()) };
    let found = page[index];
    let (address, its_generation) = words.origin(found, index);
    let is_ours = (FIRST_GENERATION..=generation + 1).contains(&its_generation);
    let how = match found {
        0 => "zero".to_owned(),
        _ if is_ours => format!("from page {}, generation {its_generation}", address >> 12),
        _ => format!("in {} bits", (found ^ expected(index)).count_ones()),
    };
    let text = format!("{wrong} of {WORDS} words wrong in {kind} page {number}, the first {how}");
    let report = Report {
        kind: damage_kind::PATTERN,
        address: 8 * index as u64,
        expected: expected(index),
        found,
        detail: generation,
    };
    Err(Finding { report, text })
}

/// Adds the page's guest-physical address, if the kernel tells it.
fn with_address(mut finding: Finding, page: &Words4K) -> Finding {
    let virtual_page = page.as_ptr().addr() as u64 / 4096;
    let mut entry = [0; 8];
    let read = File::open("/proc/self/pagemap")
        .and_then(|map| map.read_exact_at(&mut entry, virtual_page * 8));
    if read.is_ok() {
        // Bits 0 to 54: Documentation/admin-guide/mm/pagemap.rst.
        finding.report.address += (u64::from_le_bytes(entry) & ((1 << 55) - 1)) << 12;
    }
    finding
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(number: u64, generation: u64) -> Words4K {
        let mut page = [0; WORDS];
        write(&mut page, Words::new(7).first(number << 12, generation));
        page
    }

    fn judged(page: &Words4K) -> Result<(), String> {
        judge(page, Words::new(7), 40, 3, "tmpfs").map_err(|finding| finding.text)
    }

    #[test]
    fn damage_is_described_by_its_origin() {
        assert_eq!(judged(&page(40, 3)), Ok(()));
        let wrong = |page: &Words4K| judged(page).unwrap_err();
        let all = "512 of 512 words wrong in tmpfs page 40, the first";
        assert_eq!(wrong(&[0; WORDS]), format!("{all} zero"));
        assert_eq!(wrong(&page(40, 2)), format!("{all} from page 40, generation 2"));
        assert_eq!(wrong(&page(41, 3)), format!("{all} from page 41, generation 3"));
        let mut flipped = page(40, 3);
        flipped[511] ^= 0x11;
        assert!(wrong(&flipped).starts_with("1 of 512 words wrong"));
        assert!(wrong(&flipped).ends_with("in 2 bits"));
    }

    #[test]
    fn address_is_that_of_the_first_wrong_word() {
        let mut flipped = page(40, 3);
        flipped[2] ^= 1;
        let report = judge(&flipped, Words::new(7), 40, 3, "huge").unwrap_err().report;
        assert_eq!((report.address, report.found ^ report.expected, report.detail), (16, 1, 3));
    }
}
