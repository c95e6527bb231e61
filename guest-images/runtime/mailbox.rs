//! The mailbox: one page at a fixed guest-physical address in which a guest shows what it sees.
//!
//! Compiled into every guest and into the harness, which maps the same page through the memfd of
//! the guest's RAM. All fields are atomics, so both sides may look and write at any time.

use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};

/// Guest-physical address of the mailbox.
pub const MAILBOX_GPA: u64 = 0x2_0000;
/// Value of [`Mailbox::magic`] once the guest has set the page up; written last.
pub const MAILBOX_MAGIC: u64 = u64::from_le_bytes(*b"CPRGUEST");
/// Value of [`Mailbox::layout`]: counts the incompatible changes of this file.
pub const MAILBOX_LAYOUT: u32 = 1;
/// The largest number of vCPUs a guest can use.
pub const MAX_CPUS: usize = 8;
/// I/O port of the test port: a 32-bit write says "marker n reached".
pub const TEST_PORT: u16 = 0x580;
/// I/O port that moves an interrupt line, in the low byte; above it 0 to pulse, 1 raise, 2 lower it.
pub const LINES_PORT: u16 = 0x584;
/// I/O port of a sequence, 1, 2 or 4 bytes wide: answers 0, 1, 2 and so on, and is written the same.
pub const SEQUENCE_PORT: u16 = 0x590;
/// I/O ports, 4 bytes wide: reads of the sequence, writes, and writes that were not the next number.
pub const SEQUENCE_COUNTS: [u16; 3] = [0x594, 0x598, 0x59c];
/// A page with another sequence at 0, up to 8 bytes wide; its counts at 0x10, 0x18, 0x20; at 0x40 a
/// cell of 8 bytes that keeps what is written, and at 0x48 and 0x50 how often it was read and written.
pub const SEQUENCE_PAGE: u64 = 0xfeb0_0000;
/// I/O port of the debug exit (QEMU's `isa-debug-exit` default): writing v ends the VMM with status `v << 1 | 1`.
pub const DEBUG_EXIT_PORT: u16 = 0x501;

/// The page. Sizes and offsets are pinned by a test of `guest-images`.
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
    /// How often this guest has booted in this RAM: 1, and one more after each reset.
    pub boots: AtomicU32,
    /// vCPUs that run the guest's body.
    pub cpus_online: AtomicU32,
    /// The highest marker the guest has reached; 0: none yet.
    pub marker: AtomicU32,
    /// Written by the host: the guest goes on from marker n once this is at least n. Like all the
    /// rest but `boots`, a boot sets it to 0 before it sets `magic`.
    pub marker_go: AtomicU32,
    /// Written by the host: asks every vCPU to forget its largest gap (see [`CpuMailbox::gap_ack`]).
    pub gap_request: AtomicU32,
    /// Reserved.
    pub reserved0: AtomicU32,
    /// The seed in use (`seed=` on the command line).
    pub seed: AtomicU64,
    /// First guest-physical address of the RAM that the guest fills; 0 where it fills none.
    pub ram_start: AtomicU64,
    /// Bytes of RAM that the guest fills and verifies.
    pub ram_bytes: AtomicU64,
    /// Whole sweeps over that RAM finished by the slowest vCPU.
    pub sweeps: AtomicU64,
    /// The first damage found.
    pub damage: Damage,
    /// Per vCPU, indexed by APIC ID.
    pub cpus: [CpuMailbox; MAX_CPUS],
    /// What the host lacks for what the command line asks for, zero-padded, cut to fit; empty if
    /// nothing. Valid once the body runs, and the body then does nothing but heartbeats.
    pub unavailable: [AtomicU8; 128],
    /// The most that an expected instant was late, in TSC ticks (guests that arm timers).
    pub lateness: AtomicU64,
}

/// What one vCPU shows; a cache line of its own.
#[repr(C, align(64))]
pub struct CpuMailbox {
    /// Counts up for as long as the vCPU is well.
    pub heartbeat: AtomicU64,
    /// TSC at the newest heartbeat.
    pub tsc: AtomicU64,
    /// Largest TSC difference between two heartbeats since `gap_ack` last changed.
    pub gap: AtomicU64,
    /// TSC at the end of that largest gap.
    pub gap_tsc: AtomicU64,
    /// The [`Mailbox::gap_request`] that this vCPU has obeyed: `gap` is 0 or newer than it.
    pub gap_ack: AtomicU32,
    /// 1 once this vCPU runs the body.
    pub online: AtomicU32,
    /// Pages swept so far (guests that fill RAM).
    pub pages: AtomicU64,
}

/// The first damage a guest found. It stops at the first.
#[repr(C, align(64))]
pub struct Damage {
    /// A [`damage_state`] value.
    pub state: AtomicU32,
    /// A [`damage_kind`] value.
    pub kind: AtomicU32,
    /// The vCPU that found it (APIC ID).
    pub cpu: AtomicU32,
    /// Exception vector, where `kind` is an exception.
    pub vector: AtomicU32,
    /// Exception error code.
    pub error_code: AtomicU64,
    /// Instruction pointer: of the exception, or 0.
    pub rip: AtomicU64,
    /// Guest-physical address of the damage; CR2 for a page fault.
    pub address: AtomicU64,
    /// What was expected there.
    pub expected: AtomicU64,
    /// What was found.
    pub found: AtomicU64,
    /// A detail of the kind: generation of the pattern; CS of an exception (its low two bits are the CPL); the missing vCPU.
    pub detail: AtomicU64,
    /// Text of a panic, name of a value, zero-padded, cut to fit.
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
    /// The guest has ended by itself, without damage.
    pub const DONE: u32 = 3;
    /// Damage was found; all vCPUs stand still.
    pub const DAMAGED: u32 = 4;
}

/// Values of [`Damage::state`].
pub mod damage_state {
    /// No damage.
    pub const NONE: u32 = 0;
    /// A vCPU is writing the record.
    pub const WRITING: u32 = 1;
    /// The record is whole.
    pub const VALID: u32 = 2;
}

/// Values of [`Damage::kind`].
pub mod damage_kind {
    /// None.
    pub const NONE: u32 = 0;
    /// A page does not hold its pattern.
    pub const PATTERN: u32 = 1;
    /// An exception nobody expected.
    pub const EXCEPTION: u32 = 2;
    /// A panic of the guest's code.
    pub const PANIC: u32 = 3;
    /// The TSC went back.
    pub const TSC_BACK: u32 = 4;
    /// A vCPU that was asked for did not come up.
    pub const CPU_MISSING: u32 = 5;
    /// A value is not what it must be; the text names it.
    pub const VALUE: u32 = 6;
}
