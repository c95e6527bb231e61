//! Access to the LAPIC and the 8259s, and the start of the other vCPUs.

use super::arch::{outb, pause, rdtsc};
use super::shim::{LAPIC, trampoline_code};

const EOI: u64 = 0xb0;
const IN_SERVICE: u64 = 0x100;
const SPURIOUS: u64 = 0xf0;
const COMMAND_LOW: u64 = 0x300;
const COMMAND_HIGH: u64 = 0x310;
const LINT0: u64 = 0x350;
const LINT1: u64 = 0x360;
const NMI_LINE: u32 = 0x400;
const EXTINT: u32 = 0x700;
const TIMER: u64 = 0x320;
const TIMER_INITIAL: u64 = 0x380;
const TIMER_CURRENT: u64 = 0x390;
const TIMER_DIVIDE: u64 = 0x3e0;
const DIVIDE_BY_1: u32 = 0xb;
const MASKED: u32 = 1 << 16;
const NMI: u32 = 0x4400;
const OTHERS: u32 = 0xc_4000;
const INIT: u32 = 0x4500;
const STARTUP: u32 = 0x4600;

/// The page below 1 MiB at which a vCPU starts in real mode.
const TRAMPOLINE_GPA: usize = 0x8000;

/// Reads a register.
pub fn read(register: u64) -> u32 {
    // SAFETY: the LAPIC's page is mapped uncached, and reading a register changes no memory.
    unsafe {
        core::ptr::with_exposed_provenance::<u32>((LAPIC + register) as usize).read_volatile()
    }
}

/// Writes a register.
pub fn write(register: u64, value: u32) {
    // SAFETY: the LAPIC's page is mapped uncached, and none of the registers used here makes it
    // write to memory.
    unsafe {
        core::ptr::with_exposed_provenance_mut::<u32>((LAPIC + register) as usize)
            .write_volatile(value);
    }
}

/// Sets up both 8259s: inputs 0 to 7 get the vectors from `vector` on, those of the slave the next
/// 8. All but `input` stay masked; interrupts go to this vCPU.
pub fn open_8259s(vector: u8, input: u8, is_level: bool) {
    for (command, base, wiring) in [(0x20, vector, 4), (0xa0, vector + 8, 2)] {
        outb(command, 0x11);
        outb(command + 1, base);
        outb(command + 1, wiring);
        outb(command + 1, 1);
    }
    let inputs = 1_u16 << input;
    let level = if is_level { inputs } else { 0 };
    outb(0x4d0, level as u8);
    outb(0x4d1, (level >> 8) as u8);
    // The slave is wired to input 2 of the master.
    let open = if input < 8 { inputs } else { inputs | 1 << 2 };
    outb(0xa1, !((open >> 8) as u8));
    outb(0x21, !(open as u8));
    write(LINT0, EXTINT);
}

/// Masks all inputs of both 8259s, whose interrupts would have the vectors of exceptions.
pub fn mask_8259s() {
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
}

/// Enables the LAPIC of this vCPU.
pub fn enable() {
    write(SPURIOUS, 0x1ff);
}

/// Enables this vCPU's line for NMIs from the host.
pub fn open_nmi_line() {
    write(LINT1, NMI_LINE);
}

/// The setting of this vCPU's line for NMIs from the host.
pub fn nmi_line() -> u32 {
    read(LINT1)
}

/// Whether an interrupt of this vector has been delivered and not ended.
pub fn is_in_service(vector: u8) -> bool {
    let register = IN_SERVICE + 0x10 * u64::from(vector / 32);
    read(register) >> (vector % 32) & 1 == 1
}

/// Ends the interrupt in service.
pub fn end_of_interrupt() {
    write(EOI, 0);
}

/// Sends an interrupt to the vCPU with APIC ID `cpu`.
pub fn send_to(cpu: usize, vector: u8) {
    write(COMMAND_HIGH, (cpu as u32) << 24);
    write(COMMAND_LOW, u32::from(vector));
}

/// Sends an NMI to the vCPU with APIC ID `cpu`.
pub fn send_nmi_to(cpu: usize) {
    write(COMMAND_HIGH, (cpu as u32) << 24);
    write(COMMAND_LOW, NMI);
}

/// Sends an interrupt to every other vCPU.
pub fn send_to_others(vector: u8) {
    write(COMMAND_LOW, OTHERS | u32::from(vector));
}

/// The mode of the timer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum TimerMode {
    /// It interrupts once when it has counted down.
    OneShot = 0,
    /// It interrupts when it has counted down, and starts again.
    Periodic = 1 << 17,
    /// It does not count down but interrupts when the TSC reaches `IA32_TSC_DEADLINE`.
    Deadline = 1 << 18,
}

/// Sets up the timer without starting it.
pub fn set_timer(vector: u8, mode: TimerMode) {
    write(TIMER_DIVIDE, DIVIDE_BY_1);
    write(TIMER, u32::from(vector) | mode as u32);
}

/// Starts the timer.
pub fn start_timer(count: u32) {
    write(TIMER_INITIAL, count);
}

/// Measures the TSC ticks per 1024 ticks of the timer, with the timer masked.
pub fn tsc_per_1024_ticks() -> u64 {
    const TICKS: u32 = 10_000_000;
    // A reading that was interrupted is useless.
    let look = || loop {
        let before = rdtsc();
        let left = read(TIMER_CURRENT);
        let after = rdtsc();
        if after - before < 1 << 18 {
            return (left, before);
        }
    };
    write(TIMER_DIVIDE, DIVIDE_BY_1);
    write(TIMER, MASKED);
    write(TIMER_INITIAL, u32::MAX);
    let (start, began) = look();
    loop {
        let (left, now) = look();
        let ticks = start - left;
        if ticks > TICKS {
            write(TIMER_INITIAL, 0);
            return (now - began) * 1024 / u64::from(ticks);
        }
    }
}

/// Copies the start code of vCPUs to its page.
pub fn place_trampoline() {
    let code = trampoline_code();
    // SAFETY: this page is low RAM that the guest uses for nothing else.
    unsafe {
        core::ptr::with_exposed_provenance_mut::<u8>(TRAMPOLINE_GPA)
            .copy_from_nonoverlapping(code.as_ptr(), code.len());
    }
}

/// Starts the vCPU with APIC ID `id`: sends INIT, then SIPI twice, of which it uses one.
pub fn start_cpu(id: usize) {
    send_init_to(id);
    start_cpu_at(id, TRAMPOLINE_GPA);
}

/// Makes the vCPU with APIC ID `id` wait for SIPI.
pub fn send_init_to(id: usize) {
    command(id, &[INIT]);
}

/// Starts a vCPU that waits for SIPI, in real mode at a page below 1 MiB.
pub fn start_cpu_at(id: usize, page: usize) {
    command(id, &[STARTUP | (page >> 12) as u32; 2]);
}

fn command(id: usize, commands: &[u32]) {
    for command in commands {
        write(COMMAND_HIGH, (id as u32) << 24);
        write(COMMAND_LOW, *command);
        // Virtual LAPICs need no delay between commands; a short one costs nothing.
        let start = rdtsc();
        while rdtsc() - start < 1 << 18 {
            pause();
        }
    }
}
