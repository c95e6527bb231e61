//! Lets vCPUs share a counter and a lock and send each other interrupts, none of which may be lost.
//!
//! In every round a vCPU increments a shared counter, updates plain memory under a lock, and
//! pings its neighbour, which must get the interrupt once. Every eighth time it interrupts all
//! others and waits for each, as for a TLB shootdown. Odd vCPUs sleep in `hlt` in between, until
//! a ping wakes them. Marker n comes after 20 n rounds of vCPU 0, which continue while it waits.

#![no_std]
#![no_main]

#[path = "../runtime/mod.rs"]
mod runtime;

use core::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, SeqCst},
};

use runtime::arch::{pause, rdtsc};
use runtime::damage::{self, verify};
use runtime::interrupts::{self, Eoi};
use runtime::mailbox::MAX_CPUS;
use runtime::{Cpu, cpl0, lapic};

const PING: u8 = 0x50;
const SHOOTDOWN: u8 = 0x51;
const ROUNDS_PER_MARKER: u64 = 20;
const ROUNDS_PER_SHOOTDOWN: u64 = 8;
/// TSC ticks after which an interrupt counts as lost: about five seconds.
const PATIENCE: u64 = 15 << 30;
/// TSC ticks that one check counts at most, so that a stopped guest does not time out.
const ONE_LOOK: u64 = 1 << 24;

static COUNTER: AtomicU64 = AtomicU64::new(0);
/// 0 if free, else the index of the vCPU that holds it, plus 1.
static LOCK: AtomicU32 = AtomicU32::new(0);
/// Under the lock: turns taken in all, and by each vCPU.
static TURNS: AtomicU64 = AtomicU64::new(0);
static TURNS_BY: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];
/// Under the lock: shootdowns that each vCPU must have seen.
static SHOOTDOWNS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

fn prepare(_: &mut Cpu) {
    interrupts::expect(PING, Eoi::Lapic);
    interrupts::expect(SHOOTDOWN, Eoi::Lapic);
}

fn run(cpu: &mut Cpu) -> ! {
    let mut rounds = Rounds { done: 0, counter: None, pings: 0 };
    cpl0::interrupts_on();
    let markers = if cpu.index() == 0 { cpu.options().markers } else { 0 };
    for n in 1..=markers {
        for _ in 0..ROUNDS_PER_MARKER {
            rounds.one(cpu);
        }
        cpu.marker_with(n, |cpu| rounds.one(cpu));
    }
    if markers > 0 {
        cpu.end();
    }
    loop {
        rounds.one(cpu);
    }
}

struct Rounds {
    done: u64,
    /// The last value of the shared counter.
    counter: Option<u64>,
    /// Pings sent to the neighbour.
    pings: u64,
}

impl Rounds {
    fn one(&mut self, cpu: &mut Cpu) {
        let counter = COUNTER.fetch_add(1, SeqCst);
        if self.counter.is_some_and(|last| last >= counter) {
            damage::wrong(self.counter.unwrap_or(0) + 1, counter, format_args!("shared counter"));
        }
        self.counter = Some(counter);
        take_turn(cpu);
        self.ping(cpu);
        if cpu.options().cpus > 1 {
            if self.done.is_multiple_of(ROUNDS_PER_SHOOTDOWN) {
                shoot_down(cpu);
            }
            if cpu.index() % 2 == 1 {
                sleep();
            }
        }
        self.done += 1;
        cpu.tick();
    }

    fn ping(&mut self, cpu: &mut Cpu) {
        let neighbour = (cpu.index() + 1) % cpu.options().cpus;
        verify(
            self.pings,
            interrupts::count_on(neighbour, PING),
            format_args!("pings that vCPU {neighbour} got"),
        );
        self.pings += 1;
        lapic::send_to(neighbour, PING);
        await_count(cpu, neighbour, PING, self.pings);
    }
}

/// Updates plain memory that the lock protects.
fn take_turn(cpu: &mut Cpu) {
    lock(cpu);
    // Separate reads and writes, which another vCPU could interrupt without the lock.
    let turns = TURNS.load(Relaxed);
    let own = TURNS_BY[cpu.index()].load(Relaxed);
    pause();
    TURNS.store(turns + 1, Relaxed);
    TURNS_BY[cpu.index()].store(own + 1, Relaxed);
    let sum = TURNS_BY.iter().map(|turns| turns.load(Relaxed)).sum();
    verify(sum, TURNS.load(Relaxed), format_args!("turns under the lock"));
    unlock(cpu);
}

/// Interrupts every other vCPU and waits until each has received the interrupt.
fn shoot_down(cpu: &mut Cpu) {
    lock(cpu);
    lapic::send_to_others(SHOOTDOWN);
    let me = cpu.index();
    for other in (0..cpu.options().cpus).filter(|other| *other != me) {
        let expected = SHOOTDOWNS[other].load(Relaxed) + 1;
        SHOOTDOWNS[other].store(expected, Relaxed);
        await_count(cpu, other, SHOOTDOWN, expected);
    }
    let own = SHOOTDOWNS[cpu.index()].load(Relaxed);
    verify(own, interrupts::count(SHOOTDOWN), format_args!("shootdowns"));
    unlock(cpu);
}

/// Waits until vCPU `other` has received exactly `expected` interrupts of this vector.
fn await_count(cpu: &mut Cpu, other: usize, vector: u8, expected: u64) {
    let mut waited = 0;
    let mut last = rdtsc();
    loop {
        let found = interrupts::count_on(other, vector);
        if found == expected {
            return;
        }
        let now = rdtsc();
        waited += (now - last).min(ONE_LOOK);
        last = now;
        if found > expected || waited > PATIENCE {
            damage::wrong(
                expected,
                found,
                format_args!("interrupts {vector:#x} that vCPU {other} got"),
            );
        }
        pause();
        cpu.tick();
    }
}

/// Sleeps until the next interrupt.
fn sleep() {
    cpl0::interrupts_off();
    cpl0::halt();
    cpl0::interrupts_on();
}

fn lock(cpu: &mut Cpu) {
    let me = cpu.index() as u32 + 1;
    while LOCK.compare_exchange_weak(0, me, Acquire, Relaxed).is_err() {
        pause();
        cpu.tick();
    }
}

fn unlock(cpu: &Cpu) {
    let me = cpu.index() as u32 + 1;
    let holder = LOCK.swap(0, AcqRel);
    verify(me.into(), holder.into(), format_args!("holder of the lock"));
}
