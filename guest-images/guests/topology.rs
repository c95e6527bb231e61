//! Reads the number of vCPUs and what they share from CPUID, in which all leaves must agree.
//!
//! Every vCPU reads CPUID at CPL0, repeatedly: it must be the only thread of its core, in one
//! package with all others. Marker n comes after n hundred checks of vCPU 0.

#![no_std]
#![no_main]

#[path = "../runtime/mod.rs"]
mod runtime;

use runtime::damage::{verify, wrong};
use runtime::{Cpu, cpl0};

const LOOKS_PER_MARKER: u32 = 100;
const HTT: u64 = 1 << 28;
const TOPOLOGY_EXTENSIONS: u32 = 1 << 22;
/// Types of the levels in leaf 0xb.
const THREAD: u32 = 1;
const CORE: u32 = 2;
/// More levels than any processor has.
const LEVELS: u32 = 8;
/// The first level of cache that cores share.
const SHARED_CACHE: u32 = 3;

fn prepare(_: &mut Cpu) {}

fn run(cpu: &mut Cpu) -> ! {
    let markers = if cpu.index() == 0 { cpu.options().markers } else { 0 };
    for n in 1..=markers {
        for _ in 0..LOOKS_PER_MARKER {
            look(cpu);
        }
        cpu.marker_with(n, look);
    }
    if markers > 0 {
        cpu.end();
    }
    loop {
        look(cpu);
    }
}

fn look(cpu: &mut Cpu) {
    let (id, cpus) = (cpu.index() as u32, cpu.options().cpus as u32);
    let [basic, b, c, d] = cpl0::cpuid(0, 0);
    let is_amd = matches!(
        [b, d, c].map(u32::to_le_bytes).as_flattened(),
        b"AuthenticAMD" | b"HygonGenuine"
    );
    features(id, cpus);
    if basic >= 0xb {
        levels(0xb, id, cpus);
    }
    if is_amd {
        amd(id, cpus);
    } else {
        if basic >= 0x1f {
            levels(0x1f, id, cpus);
        }
        if basic >= 4 {
            caches(4, id, cpus);
        }
    }
    cpu.tick();
}

/// Checks leaf 1. With several vCPUs it may round their number up; some hosts set HTT even with a
/// single vCPU.
fn features(id: u32, cpus: u32) {
    let [_, b, _, d] = cpl0::cpuid(1, 0);
    verify(id.into(), (b >> 24).into(), format_args!("APIC ID in CPUID leaf 1"));
    if cpus > 1 {
        verify(HTT, u64::from(d) & HTT, format_args!("HTT in CPUID leaf 1"));
        holds(cpus, b >> 16 & 0xff, format_args!("vCPUs in CPUID leaf 1"));
    }
}

/// Checks leaf 0xb or 0x1f.
fn levels(leaf: u32, id: u32, cpus: u32) {
    let (mut threads, mut cores, mut last) = (None, None, (0, 0));
    for level in 0..LEVELS {
        let [a, b, c, d] = cpl0::cpuid(leaf, level);
        verify(id.into(), d.into(), format_args!("APIC ID in CPUID leaf {leaf:#x}.{level}"));
        verify(level.into(), (c & 0xff).into(), format_args!("level in CPUID leaf {leaf:#x}"));
        let here = (a & 0x1f, b & 0xffff);
        match c >> 8 & 0xff {
            0 => break,
            THREAD => threads = Some(here),
            CORE => cores = Some(here),
            _ => {}
        }
        last = here;
    }
    let place = format_args!("levels in CPUID leaf {leaf:#x}: threads, cores");
    if threads.is_none() || cores.is_none() {
        wrong(2, threads.iter().chain(&cores).count() as u64, place);
    }
    let threads_of_a_core = threads.map_or(0, |(_, count)| count);
    verify(1, threads_of_a_core.into(), format_args!("threads of a core in CPUID leaf {leaf:#x}"));
    let (bits, count) = last;
    verify(cpus.into(), count.into(), format_args!("vCPUs in CPUID leaf {leaf:#x}"));
    holds(cpus, 1 << bits, format_args!("APIC IDs in CPUID leaf {leaf:#x}"));
}

/// Checks leaf 4 or 0x8000001d.
fn caches(leaf: u32, id: u32, cpus: u32) {
    for index in 0.. {
        let [a, ..] = cpl0::cpuid(leaf, index);
        if a & 0x1f == 0 {
            break;
        }
        let (level, sharing) = (a >> 5 & 7, (a >> 14 & 0xfff) + 1);
        if level < SHARED_CACHE {
            verify(1, sharing.into(), format_args!("vCPUs at a cache of level {level}"));
        } else {
            holds(cpus, sharing, format_args!("vCPUs at a cache of level {level}"));
            verify(0, (id / sharing.next_power_of_two()).into(), format_args!("cache, shared"));
        }
        if leaf == 4 {
            holds(cpus, (a >> 26) + 1, format_args!("cores in CPUID leaf 4"));
        }
    }
}

fn amd(id: u32, cpus: u32) {
    let [last, ..] = cpl0::cpuid(0x8000_0000, 0);
    if last < 0x8000_0008 {
        return;
    }
    let [_, _, sizes, _] = cpl0::cpuid(0x8000_0008, 0);
    verify(cpus.into(), ((sizes & 0xff) + 1).into(), format_args!("vCPUs in leaf 0x80000008"));
    let [_, _, features, _] = cpl0::cpuid(0x8000_0001, 0);
    if features & TOPOLOGY_EXTENSIONS == 0 || last < 0x8000_001e {
        return;
    }
    caches(0x8000_001d, id, cpus);
    let [apic_id, core, ..] = cpl0::cpuid(0x8000_001e, 0);
    verify(id.into(), apic_id.into(), format_args!("APIC ID in leaf 0x8000001e"));
    verify(id.into(), core.into(), format_args!("core and its threads in leaf 0x8000001e"));
}

/// Checks that `found` is at least `cpus` and at most that rounded up to a power of two.
fn holds(cpus: u32, found: u32, name: core::fmt::Arguments<'_>) {
    if !(cpus..=cpus.next_power_of_two()).contains(&found) {
        wrong(cpus.into(), found.into(), name);
    }
}
