//! The mailbox: one page at a fixed guest-physical address in which a guest reports what it sees.
//!
//! Compiled into every guest and into the harness, which maps the same page through the memfd of
//! the guest's RAM. All fields are atomics, so both sides may read and write at any time.

use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};

/// Guest-physical address of the mailbox.
pub const MAILBOX_GPA: u64 = 0x2_0000;
/// Value of [`Mailbox::magic`] once the guest has set the page up; written last.
pub const MAILBOX_MAGIC: u64 = u64::from_le_bytes(*b"CPRGUEST");
/// Value of [`Mailbox::layout`]: counts the incompatible changes of this file.
pub const MAILBOX_LAYOUT: u32 = 1;
/// The largest number of vCPUs a guest can use.
pub const MAX_CPUS: usize = 8;
/// I/O port of the test port: a 32-bit write of n reports that marker n is reached.
pub const TEST_PORT: u16 = 0x580;
/// I/O port for an interrupt line: its number in the low byte, above it 0 pulse, 1 raise, 2 lower.
pub const LINES_PORT: u16 = 0x584;
/// I/O port of a sequence, 1, 2 or 4 bytes wide: it reads as 0, 1, 2, … and expects these writes.
pub const SEQUENCE_PORT: u16 = 0x590;
/// I/O ports, 4 bytes wide: reads of the sequence, writes, and writes that were not the next number.
pub const SEQUENCE_COUNTS: [u16; 3] = [0x594, 0x598, 0x59c];
/// A page with another sequence at 0, up to 8 bytes wide; its counts at 0x10, 0x18, 0x20; at 0x40
/// a cell of 8 bytes that stores what is written; at 0x48 and 0x50 its counts of reads and writes.
pub const SEQUENCE_PAGE: u64 = 0xfeb0_0000;
/// I/O port of the debug exit (QEMU's `isa-debug-exit` default): writing v ends the VMM with status `v << 1 | 1`.
pub const DEBUG_EXIT_PORT: u16 = 0x501;

/// The page. A test of `guest-images` pins sizes and offsets.
#[repr(C, align(4096))]
pub struct Mailbox {
    /// [`MAILBOX_MAGIC`] once the rest is valid.
    pub magic: AtomicU64,
    /// [`MAILBOX_LAYOUT`].
    pub layout: AtomicU32,
    /// A [`phase`] value.
    pub phase: AtomicU32,
    /// The guest's name, zero-padded ASCII.
    pub name: [AtomicU8; 16],
    /// How often this guest has booted in this RAM: 1, plus one after each reset.
    pub boots: AtomicU32,
    /// vCPUs that run the guest's body.
    pub cpus_online: AtomicU32,
    /// The highest marker the guest has reached; 0: none yet.
    pub marker: AtomicU32,
    /// Written by the host: the guest continues from marker n once this is at least n. Like all
    /// fields but `boots`, a boot sets it to 0 before it sets `magic`.
    pub marker_go: AtomicU32,
    /// Written by the host: asks every vCPU to forget its largest gap (see [`CpuMailbox::gap_ack`]).
    pub gap_request: AtomicU32,
    /// Reserved.
    pub reserved0: AtomicU32,
    /// The seed in use (`seed=` on the command line).
    pub seed: AtomicU64,
    /// First guest-physical address of the RAM that the guest fills; 0 if it fills none.
    pub ram_start: AtomicU64,
    /// Bytes of RAM that the guest fills and verifies.
    pub ram_bytes: AtomicU64,
    /// Complete sweeps over that RAM by the slowest vCPU.
    pub sweeps: AtomicU64,
    /// The first damage found.
    pub damage: Damage,
    /// Per vCPU, indexed by APIC ID.
    pub cpus: [CpuMailbox; MAX_CPUS],
    /// The feature that the command line requires and the host lacks, zero-padded, truncated; empty
    /// if none. Valid once the body runs; the body then only has heartbeats.
    pub unavailable: [AtomicU8; 128],
    /// The largest lateness of an expected instant, in TSC ticks (guests that arm timers).
    pub lateness: AtomicU64,
    /// The largest steps of [`CLOCKS`] against the TSC, in nanoseconds (`linux`).
    pub clock_steps: [AtomicU64; CLOCKS.len()],
}

/// The clocks of a Linux guest whose steps it reports.
pub const CLOCKS: [&str; 3] = ["CLOCK_MONOTONIC", "CLOCK_BOOTTIME", "CLOCK_REALTIME"];

/// The state of one vCPU, in its own cache line.
#[repr(C, align(64))]
pub struct CpuMailbox {
    /// Counts up while the vCPU runs without damage.
    pub heartbeat: AtomicU64,
    /// TSC at the newest heartbeat.
    pub tsc: AtomicU64,
    /// Largest TSC difference between two heartbeats since `gap_ack` last changed.
    pub gap: AtomicU64,
    /// TSC at the end of that largest gap.
    pub gap_tsc: AtomicU64,
    /// The [`Mailbox::gap_request`] that this vCPU has handled: `gap` is 0 or newer than that.
    pub gap_ack: AtomicU32,
    /// 1 once this vCPU runs the body.
    pub online: AtomicU32,
    /// Pages verified so far (guests that fill RAM).
    pub pages: AtomicU64,
}

/// The first damage that a guest found, at which it stops.
#[repr(C, align(64))]
pub struct Damage {
    /// A [`damage_state`] value.
    pub state: AtomicU32,
    /// A [`damage_kind`] value.
    pub kind: AtomicU32,
    /// The vCPU that found it (APIC ID).
    pub cpu: AtomicU32,
    /// Exception vector, if `kind` is an exception.
    pub vector: AtomicU32,
    /// Exception error code.
    pub error_code: AtomicU64,
    /// Instruction pointer of the exception, or 0.
    pub rip: AtomicU64,
    /// Guest-physical address of the damage; CR2 for a page fault.
    pub address: AtomicU64,
    /// What was expected there.
    pub expected: AtomicU64,
    /// What was found.
    pub found: AtomicU64,
    /// A detail of the kind: generation of the pattern; CS of an exception (its low two bits are the CPL); the missing vCPU.
    pub detail: AtomicU64,
    /// Text of a panic or name of a value, zero-padded, truncated.
    pub text: [AtomicU8; 120],
}

/// Values of [`Mailbox::phase`].
pub mod phase {
    /// Before the body.
    pub const BOOTING: u32 = 0;
    /// The guest is preparing (filling RAM, waiting for vCPUs).
    pub const PREPARING: u32 = 1;
    /// The body runs.
    pub const RUNNING: u32 = 2;
    /// The guest has ended without damage.
    pub const DONE: u32 = 3;
    /// Damage was found; all vCPUs stop.
    pub const DAMAGED: u32 = 4;
}

/// Values of [`Damage::state`].
pub mod damage_state {
    /// No damage.
    pub const NONE: u32 = 0;
    /// A vCPU is writing the record.
    pub const WRITING: u32 = 1;
    /// The record is complete.
    pub const VALID: u32 = 2;
}

/// Values of [`Damage::kind`].
pub mod damage_kind {
    /// None.
    pub const NONE: u32 = 0;
    /// A page does not hold its pattern.
    pub const PATTERN: u32 = 1;
    /// An unexpected exception.
    pub const EXCEPTION: u32 = 2;
    /// A panic of the guest's code.
    pub const PANIC: u32 = 3;
    /// The TSC went back.
    pub const TSC_BACK: u32 = 4;
    /// A requested vCPU did not come online.
    pub const CPU_MISSING: u32 = 5;
    /// A value is wrong; the text names it.
    pub const VALUE: u32 = 6;
    /// What else is wrong, which the text says.
    pub const TEXT: u32 = 7;
}
