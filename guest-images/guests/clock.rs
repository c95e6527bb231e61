//! Reads every clock continuously: none may go back or jump, and all must agree with each other.
//!
//! The TSC is compared within each vCPU and across all. `test=pvclock` compares the paravirtual
//! clock (`struct pvclock_vcpu_time_info`) with the TSC: both must advance by a blackout. At each
//! marker the host must pause the guest and set `PVCLOCK_GUEST_STOPPED`. `test=wallclock`
//! compares the paravirtual clock with the host's real time, which KVM writes. `test=own-tsc` first
//! moves the TSC of each vCPU ahead by the same amount. Marker n comes after n hundred rounds of
//! vCPU 0, which continue while it waits.

#![no_std]
#![no_main]

#[path = "../runtime/mod.rs"]
mod runtime;

use core::sync::atomic::{
    AtomicU8, AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, SeqCst},
    fence,
};

use runtime::arch::rdtsc;
use runtime::damage::{self, Report, unavailable, verify};
use runtime::mailbox::{MAX_CPUS, damage_kind};
use runtime::{Cpu, cpl0};

const ROUNDS_PER_MARKER: u32 = 100;
/// Reads in a round.
const READS: u32 = 1000;
/// TSC ticks that vCPUs may be apart: fewer than a write takes to reach another vCPU.
const SKEW: u64 = 2000;
/// Nanoseconds that two clocks may differ, in addition to their drift.
const JUMP: u64 = 1_000_000;
/// The inverse of the allowed drift: the host's real time is being steered.
const DRIFT: u64 = 1500;

const IA32_TSC_ADJUST: u32 = 0x3b;
/// TSC ticks of several minutes, longer than any pause.
const AHEAD: u64 = 1 << 40;
const MSR_KVM_WALL_CLOCK_NEW: u32 = 0x4b56_4d00;
const MSR_KVM_SYSTEM_TIME_NEW: u32 = 0x4b56_4d01;
/// `PVCLOCK_GUEST_STOPPED`: the host has paused the guest.
const GUEST_STOPPED: u8 = 1 << 1;
const KVM_FEATURES: u32 = 0x4000_0001;
const KVM_FEATURE_CLOCKSOURCE2: u32 = 1 << 3;

/// `struct pvclock_vcpu_time_info`, which KVM writes.
#[repr(C, align(64))]
struct PvClock {
    version: AtomicU32,
    pad: AtomicU32,
    tsc: AtomicU64,
    system_time: AtomicU64,
    factor: AtomicU32,
    shift: AtomicU8,
    flags: AtomicU8,
}

/// `struct pvclock_wall_clock`, which KVM writes on request.
#[repr(C, align(64))]
struct WallClock {
    version: AtomicU32,
    seconds: AtomicU32,
    nanoseconds: AtomicU32,
}

static PVCLOCKS: [PvClock; MAX_CPUS] = [const {
    PvClock {
        version: AtomicU32::new(0),
        pad: AtomicU32::new(0),
        tsc: AtomicU64::new(0),
        system_time: AtomicU64::new(0),
        factor: AtomicU32::new(0),
        shift: AtomicU8::new(0),
        flags: AtomicU8::new(0),
    }
}; MAX_CPUS];
static WALL_CLOCK: WallClock = WallClock {
    version: AtomicU32::new(0),
    seconds: AtomicU32::new(0),
    nanoseconds: AtomicU32::new(0),
};

/// The latest TSC value that any vCPU has read.
static LATEST_TSC: AtomicU64 = AtomicU64::new(0);

fn prepare(cpu: &mut Cpu) {
    let test = cpu.options().test.as_str();
    if test == "own-tsc" && !has_own_tsc() {
        unavailable(format_args!("a TSC of the VM's own (CPL3 reads the host's)"));
    }
    if (test == "pvclock" || test == "wallclock") && !start_pvclock(cpu) {
        unavailable(format_args!("{test}"));
    }
}

/// Moves the TSC of this vCPU ahead; returns false if `rdtsc` does not follow on this host.
fn has_own_tsc() -> bool {
    let before = rdtsc();
    cpl0::wrmsr(IA32_TSC_ADJUST, AHEAD).is_ok() && rdtsc() - before > AHEAD / 2
}

/// Makes KVM update this vCPU's page of the clock; returns false if it does not.
fn start_pvclock(cpu: &mut Cpu) -> bool {
    let features = cpl0::cpuid(KVM_FEATURES, 0)[0];
    features & KVM_FEATURE_CLOCKSOURCE2 != 0
        && cpl0::wrmsr(MSR_KVM_SYSTEM_TIME_NEW, pvclock_msr(cpu)).is_ok()
        // KVM writes it at the next entry.
        && PVCLOCKS[cpu.index()].version.load(Acquire) != 0
}

/// The value of the MSR: the address of the page, with the enable bit.
fn pvclock_msr(cpu: &Cpu) -> u64 {
    let page = &raw const PVCLOCKS[cpu.index()];
    page.expose_provenance() as u64 | 1
}

fn run(cpu: &mut Cpu) -> ! {
    let mut round = Round::new(cpu);
    let markers = if cpu.index() == 0 { cpu.options().markers } else { 0 };
    for n in 1..=markers {
        for _ in 0..ROUNDS_PER_MARKER {
            round.one(cpu);
        }
        let flags = &PVCLOCKS[cpu.index()].flags;
        flags.fetch_and(!GUEST_STOPPED, SeqCst);
        cpu.marker_with(n, |cpu| round.one(cpu));
        if cpu.wants_only("pvclock") {
            let stopped = flags.load(SeqCst) & GUEST_STOPPED;
            verify(GUEST_STOPPED.into(), stopped.into(), format_args!("PVCLOCK_GUEST_STOPPED"));
        }
    }
    if markers > 0 {
        cpu.end();
    }
    loop {
        round.one(cpu);
    }
}

/// One instant, in the time of both clocks.
#[derive(Clone, Copy)]
struct Moment {
    tsc: u64,
    /// Nanoseconds.
    pvclock: u64,
}

struct Round {
    first: Option<Moment>,
    last: u64,
    /// The real time at zero of the paravirtual clock.
    epoch: Option<u64>,
}

impl Round {
    fn new(cpu: &Cpu) -> Self {
        let test = cpu.options().test.as_str();
        let first = (test == "pvclock" || test == "wallclock").then(|| read_pvclock(cpu.index()));
        let epoch = (test == "wallclock" && cpu.index() == 0).then(read_epoch);
        Self { first, last: 0, epoch }
    }

    fn one(&mut self, cpu: &mut Cpu) {
        for _ in 0..READS {
            compare_with_others();
            cpu.tick();
        }
        if let Some(first) = self.first {
            self.compare_pvclock(cpu, first);
        }
        if let Some(epoch) = self.epoch {
            let found = read_epoch();
            if found.abs_diff(epoch) > JUMP + self.last / DRIFT {
                damage::wrong(epoch, found, format_args!("ns of real time at zero of pvclock"));
            }
        }
    }

    fn compare_pvclock(&mut self, cpu: &Cpu, first: Moment) {
        let msr = cpl0::rdmsr(MSR_KVM_SYSTEM_TIME_NEW).unwrap_or(0);
        verify(pvclock_msr(cpu), msr, format_args!("MSR_KVM_SYSTEM_TIME_NEW"));
        let now = read_pvclock(cpu.index());
        if now.pvclock < self.last {
            damage::wrong(self.last, now.pvclock, format_args!("ns of pvclock: it went back"));
        }
        self.last = now.pvclock;
        let page = &PVCLOCKS[cpu.index()];
        let by_tsc =
            scale(now.tsc - first.tsc, page.factor.load(Relaxed), page.shift.load(Relaxed));
        let by_pvclock = now.pvclock - first.pvclock;
        if by_tsc.abs_diff(by_pvclock) > JUMP + by_tsc / DRIFT {
            damage::wrong(by_tsc, by_pvclock, format_args!("ns of pvclock, against the TSC"));
        }
    }
}

/// Checks that this vCPU does not read less than another has read before.
fn compare_with_others() {
    let latest = LATEST_TSC.load(SeqCst);
    let now = rdtsc();
    if now + SKEW < latest {
        damage::report(
            Report {
                kind: damage_kind::TSC_BACK,
                expected: latest,
                found: now,
                ..Report::default()
            },
            format_args!("behind another vCPU"),
        );
    }
    LATEST_TSC.fetch_max(now, SeqCst);
}

fn scale(ticks: u64, factor: u32, shift: u8) -> u64 {
    let shift = shift as i8;
    let ticks = if shift < 0 { ticks >> -shift } else { ticks << shift };
    ((u128::from(ticks) * u128::from(factor)) >> 32) as u64
}

fn read_pvclock(cpu: usize) -> Moment {
    let page = &PVCLOCKS[cpu];
    loop {
        let version = page.version.load(Acquire);
        fence(SeqCst);
        let tsc = rdtsc();
        let ticks = tsc.wrapping_sub(page.tsc.load(Relaxed));
        let since = scale(ticks, page.factor.load(Relaxed), page.shift.load(Relaxed));
        let pvclock = page.system_time.load(Relaxed).wrapping_add(since);
        fence(SeqCst);
        if version % 2 == 0 && version == page.version.load(Acquire) {
            return Moment { tsc, pvclock };
        }
    }
}

/// Makes KVM write the real time at zero of its clock, in nanoseconds, and returns it.
fn read_epoch() -> u64 {
    let address = (&raw const WALL_CLOCK).expose_provenance() as u64;
    let wrote = cpl0::wrmsr(MSR_KVM_WALL_CLOCK_NEW, address);
    assert!(wrote.is_ok(), "MSR_KVM_WALL_CLOCK_NEW cannot be written");
    let seconds = u64::from(WALL_CLOCK.seconds.load(Acquire));
    seconds * 1_000_000_000 + u64::from(WALL_CLOCK.nanoseconds.load(Acquire))
}
