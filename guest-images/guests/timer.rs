//! Arms timers and counts their interrupts: each must arrive once, none early, late or lost.
//!
//! The timers must keep their speed, too.
//! `test=` selects the timer: oneshot, periodic or deadline (the LAPIC's, on every vCPU), pit or
//! pit-periodic (on vCPU 0); pit-modes arms none, but keeps setting one up again. Every other shot
//! is awaited in `hlt`. At marker n of vCPU 0 the timer fires while the guest waits (n = 1, 4, …),
//! fires long after that (2, 5, …), or has already fired with interrupts off (3, 6, …). Before the
//! first marker there is a calm stretch, against which the guest judges the rest. The mailbox shows
//! the largest lateness.

#![no_std]
#![no_main]

#[path = "../runtime/mod.rs"]
mod runtime;
#[path = "../runtime/timer_speed.rs"]
mod timer_speed;
#[path = "../runtime/timer_watch.rs"]
mod timer_watch;

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use runtime::arch::{inb, outb, pause, rdtsc};
use runtime::damage::{self, unavailable};
use runtime::interrupts::{self, Eoi};
use runtime::ioapic::{self, Trigger};
use runtime::lapic::{self, TimerMode};
use runtime::{Cpu, cpl0};
use timer_speed::{CALM, SCALE, Slow, Speed, WINDOW};
use timer_watch::{Watch, gap};

const VECTOR: u8 = 0x40;
const IA32_TSC_DEADLINE: u32 = 0x6e0;
/// Ticks of the LAPIC's timer per microsecond: KVM's counts nanoseconds.
const TICKS_PER_US: u64 = 1000;
/// Ticks of the LAPIC's timer per 1024 ticks of the PIT.
const TICKS_PER_1024_PIT: u64 = 858_208;
/// Number of shots between two markers.
const SHOTS_PER_MARKER: u64 = 8;
/// TSC ticks after which an overdue timer counts as lost: about five seconds.
const PATIENCE: u64 = 15 << 30;
/// TSC ticks that one check counts at most, so that a stopped guest does not time out.
const ONE_LOOK: u64 = 1 << 24;
/// How long a vCPU may always execute while a shot is overdue, in microseconds: the clocks differ.
const MAY_BE_LATE_US: u64 = 2000;
/// How many periods of a periodic timer are judged together.
const IN_A_ROW: u64 = 16;
/// How many times what it did in the calm stretch it may do so.
const CALM_TIMES: u64 = 8;

/// TSC ticks per 1024 ticks of the LAPIC timer.
static TSC_PER_1024: AtomicU64 = AtomicU64::new(0);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    OneShot,
    Periodic,
    Deadline,
    Pit,
    PitPeriodic,
}

fn kind(cpu: &Cpu) -> Kind {
    match cpu.options().test.as_str() {
        "" | "oneshot" => Kind::OneShot,
        "periodic" => Kind::Periodic,
        "deadline" => Kind::Deadline,
        "pit" => Kind::Pit,
        "pit-periodic" => Kind::PitPeriodic,
        // Unused by this test.
        "pit-modes" => Kind::Pit,
        other => panic!("test={other} is none of this guest's"),
    }
}

fn prepare(cpu: &mut Cpu) {
    if kind(cpu) == Kind::Deadline && cpl0::cpuid(1, 0)[2] >> 24 & 1 == 0 {
        unavailable(format_args!("TSC-deadline mode of the LAPIC's timer"));
    }
    if cpu.index() == 0 {
        TSC_PER_1024.store(lapic::tsc_per_1024_ticks(), Relaxed);
    }
    interrupts::expect(VECTOR, Eoi::Lapic);
}

fn run(cpu: &mut Cpu) -> ! {
    if cpu.wants_only("pit-modes") {
        pit_modes(cpu);
    }
    let kind = kind(cpu);
    match kind {
        Kind::OneShot => lapic::set_timer(VECTOR, TimerMode::OneShot),
        Kind::Periodic => lapic::set_timer(VECTOR, TimerMode::Periodic),
        Kind::Deadline => lapic::set_timer(VECTOR, TimerMode::Deadline),
        Kind::Pit | Kind::PitPeriodic if cpu.index() > 0 => loop {
            cpu.tick();
        },
        // On most PCs the PIT is wired to pin 2, but no table says so here.
        Kind::Pit | Kind::PitPeriodic => {
            for pin in [0, 2] {
                ioapic::route(pin, VECTOR, Trigger::Edge, 0);
            }
        }
    }
    match kind {
        Kind::OneShot | Kind::Deadline | Kind::Pit => shots(cpu, kind),
        Kind::Periodic | Kind::PitPeriodic => periods(cpu, kind),
    }
}

/// Converts ticks of the LAPIC timer to TSC ticks.
fn tsc_ticks(ticks: u64) -> u64 {
    ticks * TSC_PER_1024.load(Relaxed) / 1024
}

/// Whether a shot may repeat: KVM does not report the PIT's current count, so a restored PIT starts
/// again, and a shot that has already fired repeats.
fn may_come_again(kind: Kind) -> bool {
    kind == Kind::Pit
}

/// Arms the timer and returns the TSC value at which it is due.
fn arm(kind: Kind, us: u64) -> u64 {
    let now = rdtsc();
    let ticks = us * TICKS_PER_US;
    match kind {
        Kind::OneShot | Kind::Periodic => lapic::start_timer(ticks as u32),
        Kind::Deadline => {
            let armed = cpl0::wrmsr(IA32_TSC_DEADLINE, now + tsc_ticks(ticks));
            assert!(armed.is_ok(), "IA32_TSC_DEADLINE cannot be written");
        }
        Kind::Pit | Kind::PitPeriodic => {
            let count = ticks * 1024 / TICKS_PER_1024_PIT;
            let [low, high, ..] = count.to_le_bytes();
            // Channel 0, low byte first: mode 0 or 2.
            outb(0x43, if kind == Kind::Pit { 0x30 } else { 0x34 });
            outb(0x40, low);
            outb(0x40, high);
        }
    }
    now + tsc_ticks(ticks)
}

/// Sets up channel 2 of the PIT in one mode after the other, and reads the mode back.
fn pit_modes(cpu: &mut Cpu) -> ! {
    const ROUNDS_PER_MARKER: u32 = 100;
    let markers = if cpu.index() == 0 { cpu.options().markers } else { 0 };
    let mut round = 0_u32;
    while cpu.index() == 0 {
        round = round.wrapping_add(1);
        // Low byte first, binary; modes 0, 2, 4.
        let mode = 0x30 | (round % 3) as u8 * 4;
        outb(0x43, 0x80 | mode);
        outb(0x42, 0xff);
        if round.is_multiple_of(ROUNDS_PER_MARKER) && round / ROUNDS_PER_MARKER <= markers {
            cpu.marker(round / ROUNDS_PER_MARKER);
        }
        outb(0x42, 0xff);
        // Latch the status of channel 2: its low six bits are those that were written.
        outb(0x43, 0xe8);
        let found = inb(0x42) & 0x3f;
        damage::verify(mode.into(), found.into(), format_args!("mode of channel 2 of the PIT"));
        cpu.tick();
        if round == ROUNDS_PER_MARKER * markers {
            cpu.end();
        }
    }
    loop {
        cpu.tick();
    }
}

fn shots(cpu: &mut Cpu, kind: Kind) -> ! {
    let markers = if cpu.index() == 0 { u64::from(cpu.options().markers) } else { 0 };
    let mut shot = 0_u64;
    let mut speed = Speed::default();
    let mut calm_overdue = 0;
    loop {
        shot += 1;
        let before = interrupts::count(VECTOR);
        let after_calm = shot.saturating_sub(CALM);
        let marker = match after_calm.is_multiple_of(SHOTS_PER_MARKER) {
            true => after_calm / SHOTS_PER_MARKER,
            false => 0,
        };
        let is_idle = shot % 2 == 1 || marker % 2 == 1;
        let us = match marker % 3 {
            _ if marker == 0 => 200 + shot % 5 * 300,
            1 => 4_000,
            // At a marker the host does one update: so long that it comes well before, and a timer
            // that starts over is later than any blackout excuses. The PIT counts no further than 55 ms.
            2 if marker <= markers && !is_idle && kind != Kind::Pit => 400_000,
            2 => 50_000,
            _ => 1_000,
        };
        let began = rdtsc();
        let due = arm(kind, us);
        // From before it is armed: an update in between makes it late as well.
        let mut watch = Watch::new(began, due);
        let before = if may_come_again(kind) { interrupts::count(VECTOR) } else { before };
        if (1..=markers).contains(&marker) {
            if marker % 3 == 0 {
                // The timer fires with interrupts off.
                while rdtsc() < due + tsc_ticks(1000 * TICKS_PER_US) {
                    watch.look_with_interrupts_off(rdtsc());
                    cpu.tick();
                }
                cpu.marker(marker as u32);
            } else {
                if !is_idle {
                    cpl0::interrupts_on();
                }
                cpu.marker_with(marker as u32, |cpu| {
                    if is_idle && interrupts::count(VECTOR) == before {
                        cpl0::halt();
                    }
                    watch.look(rdtsc(), interrupts::count(VECTOR) > before);
                    pause();
                    cpu.tick();
                });
                cpl0::interrupts_off();
            }
        }
        let fired = wait(cpu, kind, before + 1, &mut watch, is_idle);
        // The clocks differ: a deviation of a fiftieth is not damage.
        let least = (due - began) / 50 * 49;
        if marker == 0 && !may_come_again(kind) && fired - began < least {
            damage::wrong(least, fired - began, format_args!("TSC ticks to shot {shot}: early"));
        }
        cpu.note_lateness(fired.saturating_sub(due));
        let is_calm = shot <= CALM;
        if is_calm {
            calm_overdue = watch.overdue().max(calm_overdue);
        } else if !is_idle && !may_come_again(kind) {
            let most = tsc_ticks(MAY_BE_LATE_US * TICKS_PER_US)
                + CALM_TIMES * calm_overdue
                + watch.blackouts();
            if watch.overdue() > most {
                let name = format_args!("TSC ticks that shot {shot} is overdue: late");
                damage::wrong(most, watch.overdue(), name);
            }
        }
        if marker == 0 && !may_come_again(kind) {
            let took = fired.saturating_sub(began);
            let ran = (!is_idle).then(|| took.saturating_sub(watch.descheduled()));
            check_speed(&mut speed, due - began, took, ran);
        }
        if marker == markers && markers > 0 {
            cpu.end();
        }
    }
}

/// Records as damage that a timer has become slow.
fn check_speed(speed: &mut Speed, wanted: u64, took: u64, ran: Option<u64>) {
    if let Err(Slow { most, took }) = speed.judge(wanted, took, ran) {
        let name = format_args!("time to the promptest of {WINDOW} interrupts, in 1/{SCALE}: slow");
        damage::wrong(most, took, name);
    }
}

/// Waits for interrupt number `shot`, then a while for an excess one; returns the time it arrived.
fn wait(cpu: &mut Cpu, kind: Kind, shot: u64, watch: &mut Watch, is_idle: bool) -> u64 {
    if !is_idle {
        cpl0::interrupts_on();
    }
    let mut waited = 0;
    while interrupts::count(VECTOR) < shot {
        if is_idle {
            cpl0::halt();
        }
        cpu.tick();
        let passed = watch.look(rdtsc(), interrupts::count(VECTOR) >= shot);
        if watch.is_overdue() {
            waited += passed.min(ONE_LOOK);
        }
        if waited > PATIENCE {
            let count = interrupts::count(VECTOR);
            damage::wrong(shot, count, format_args!("interrupts of a one-shot timer: lost"));
        }
    }
    let fired = rdtsc();
    cpl0::interrupts_on();
    while rdtsc() - fired < tsc_ticks(100 * TICKS_PER_US) {
        cpu.tick();
    }
    cpl0::interrupts_off();
    if !may_come_again(kind) {
        let count = interrupts::count(VECTOR);
        damage::verify(shot, count, format_args!("interrupts of a one-shot timer"));
    }
    fired
}

/// Checks a periodic timer: interrupts may be merged or late, but never stop or be too many, and
/// the shortest time of several in a row stays the same.
fn periods(cpu: &mut Cpu, kind: Kind) -> ! {
    const PERIOD_US: u64 = 2_000;
    let markers = if cpu.index() == 0 { u64::from(cpu.options().markers) } else { 0 };
    let period = tsc_ticks(PERIOD_US * TICKS_PER_US);
    let began = rdtsc();
    let _ = arm(kind, PERIOD_US);
    let (mut seen, mut last, mut waited, mut looked) = (0, began, 0, began);
    let mut marker = 1;
    let mut speed = Speed::default();
    // When the latest interrupts in a row came. A late one before a prompt one makes their distance
    // too short, which hides a slow timer; over several, that hardly matters.
    let mut row = [(began, 0); IN_A_ROW as usize];
    // At most how long the host did not let the vCPU run: gaps while it spins, and what is beyond one
    // period while it halts.
    let mut descheduled = 0;
    let mut length = 0;
    loop {
        if marker <= markers && seen >= CALM + IN_A_ROW + marker * SHOTS_PER_MARKER {
            cpl0::interrupts_on();
            cpu.marker(marker as u32);
            cpl0::interrupts_off();
            marker += 1;
            if marker > markers {
                cpu.end();
            }
        }
        let halts = seen % 2 == 1;
        if halts {
            cpl0::halt();
        } else {
            cpl0::interrupts_on();
            pause();
            cpl0::interrupts_off();
        }
        cpu.tick();
        let now = rdtsc();
        let count = interrupts::count(VECTOR);
        let passed = now - looked;
        waited += passed.min(ONE_LOOK);
        descheduled += if halts { passed.saturating_sub(period) } else { gap(passed) };
        looked = now;
        if count > seen {
            cpu.note_lateness((now - last).saturating_sub(period));
            // Merged interrupts end a row.
            length = if count == seen + 1 { length + 1 } else { 0 };
            let first = &mut row[(length % IN_A_ROW) as usize];
            if length >= IN_A_ROW {
                let (since, before) = *first;
                let took = now - since;
                let ran = took.saturating_sub(descheduled - before);
                check_speed(&mut speed, IN_A_ROW * period, took, Some(ran));
            }
            *first = (now, descheduled);
            (seen, last, waited) = (count, now, 0);
        }
        // Allows a fiftieth and two more, because the clocks differ.
        let most = (now - began) / period;
        if count > most + most / 50 + 2 {
            damage::wrong(most, count, format_args!("interrupts of a periodic timer: too many"));
        }
        if waited > PATIENCE {
            damage::wrong(
                seen + 1,
                count,
                format_args!("interrupts of a periodic timer: it stopped"),
            );
        }
    }
}
