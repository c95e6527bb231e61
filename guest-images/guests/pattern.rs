//! Fills all RAM with a pattern, then repeatedly verifies and rewrites it page by page.
//!
//! It proves that RAM is preserved: no page is lost, moved, stale or zeroed. vCPU i of n has every
//! n-th page from the i-th on. A word encodes its page and generation, so the report of damage says
//! what is there instead. With `words=1` it uses one word of each page, with `every=64` one page in
//! 64. Marker n comes in sweep n, with the first page of vCPU 0 half rewritten; after the last one,
//! the guest ends as `end=` says.

#![no_std]
#![no_main]

#[path = "../runtime/mod.rs"]
mod runtime;

use core::fmt;
use core::hint::black_box;
use core::sync::atomic::{
    AtomicU64,
    Ordering::{Relaxed, Release},
};

use runtime::damage::{self, Report};
use runtime::mailbox::{MAX_CPUS, damage_kind};
use runtime::words::{STEP, WORDS, Words};
use runtime::{Cpu, mailbox};

/// The generation that RAM holds after `prepare`.
const FIRST_GENERATION: u64 = 1;

type Page = [u64; WORDS];

/// Sweeps finished by each vCPU.
static SWEEPS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

fn prepare(cpu: &mut Cpu) {
    let info = cpu.boot_info();
    assert!(info.ram_bytes() > 0, "there is no RAM to fill");
    if cpu.index() == 0 {
        mailbox().ram_start.store(info.ram()[0].start, Relaxed);
        let used = (info.ram_bytes() / 4096).div_ceil(cpu.options().every) * 4096;
        mailbox().ram_bytes.store(used, Release);
    }
    let (words, used) = (Words::new(cpu.options().seed), cpu.options().words);
    for_each_page(cpu, |cpu, address| {
        // SAFETY: `for_each_page` gives each page to one vCPU.
        let page = unsafe { page_at(address) };
        write(&mut page[..used], words.first(address, FIRST_GENERATION));
        cpu.tick();
    });
}

fn run(cpu: &mut Cpu) -> ! {
    let (words, used) = (Words::new(cpu.options().seed), cpu.options().words);
    let markers = u64::from(cpu.options().markers);
    let is_first = cpu.index() == 0;
    let mut pages = 0;
    let mut generation = FIRST_GENERATION;
    loop {
        // Sweep n verifies and replaces generation n.
        if is_first && generation == markers + 1 {
            cpu.end();
        }
        let mut marker = is_first.then_some(generation.try_into().unwrap_or(u32::MAX));
        for_each_page(cpu, |cpu, address| {
            // SAFETY: as above.
            let page = &mut unsafe { page_at(address) }[..used];
            let expected = words.first(address, generation);
            if !holds(page, expected) {
                describe(cpu, words, address, generation, page);
            }
            let next = words.first(address, generation + 1);
            if let Some(n) = marker.take() {
                let (half, rest) = page.split_at_mut(used / 2);
                write(half, next);
                cpu.marker(n);
                write(rest, next.wrapping_add(STEP.wrapping_mul(used as u64 / 2)));
            } else {
                write(page, next);
            }
            pages += 1;
            cpu.shown().pages.store(pages, Relaxed);
            cpu.tick();
        });
        SWEEPS[cpu.index()].store(generation, Relaxed);
        let all = SWEEPS[..cpu.options().cpus].iter().map(|sweeps| sweeps.load(Relaxed)).min();
        mailbox().sweeps.fetch_max(all.unwrap_or(0), Relaxed);
        generation += 1;
    }
}

/// Calls `visit` with the address of each page of this vCPU.
fn for_each_page(cpu: &mut Cpu, mut visit: impl FnMut(&mut Cpu, u64)) {
    let distance = cpu.options().every * 4096;
    let stride = cpu.options().cpus as u64 * distance;
    let mut skip = cpu.index() as u64 * distance;
    for range in cpu.boot_info().ram() {
        let mut address = range.start + skip;
        while address < range.end {
            visit(cpu, address);
            address += stride;
        }
        skip = address - range.end;
    }
}

/// # Safety
/// `address` is a page of RAM that only the caller touches.
unsafe fn page_at(address: u64) -> &'static mut Page {
    // The host may have changed it: the compiler must not rely on what was written before.
    let page = black_box(core::ptr::with_exposed_provenance_mut::<Page>(address as usize));
    // SAFETY: the caller vouches for it; RAM is mapped, and any bits are a valid page.
    unsafe { &mut *page }
}

#[inline(never)]
fn write(page: &mut [u64], mut word: u64) {
    for place in page {
        *place = word;
        word = word.wrapping_add(STEP);
    }
}

/// Whether the page holds the sequence that starts with `word`. It compares every word: that is
/// faster than stopping early.
#[inline(never)]
fn holds(page: &[u64], mut word: u64) -> bool {
    let mut difference = 0;
    for found in page {
        difference |= found ^ word;
        word = word.wrapping_add(STEP);
    }
    difference == 0
}

/// Reports a page that does not hold its words.
#[cold]
fn describe(cpu: &Cpu, words: Words, address: u64, generation: u64, page: &[u64]) -> ! {
    let first = words.first(address, generation);
    let expected = |i: usize| first.wrapping_add(STEP.wrapping_mul(i as u64));
    let used = page.len();
    let mut all_wrong = (0..used).filter(|&i| page[i] != expected(i));
    // If none is wrong any more, the page changed in between.
    let i = all_wrong.next();
    let wrong = all_wrong.count() + usize::from(i.is_some());
    let i = i.unwrap_or(0);
    let found = page[i];
    let report = |text: fmt::Arguments<'_>| {
        damage::report(
            Report {
                kind: damage_kind::PATTERN,
                address: address + 8 * i as u64,
                expected: expected(i),
                found,
                detail: generation,
            },
            format_args!("{wrong} of {used} words wrong, the first {text}"),
        )
    };

    let (its_address, its_generation) = words.origin(found, i);
    let in_use = cpu.boot_info().ram().iter().any(|range| range.contains(its_address));
    if wrong == 0 {
        report(format_args!("no longer"))
    } else if found == 0 {
        report(format_args!("zero"))
    } else if in_use && (FIRST_GENERATION..=generation + 1).contains(&its_generation) {
        report(format_args!("from page {its_address:#x}, generation {its_generation}"))
    } else {
        report(format_args!("in {} bits", (found ^ expected(i)).count_ones()))
    }
}
