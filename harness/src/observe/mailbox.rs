//! Host access to the guest's mailbox.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;
use std::{fmt, io};

pub use guest_images::mailbox::{CLOCKS, MAILBOX_GPA, MAILBOX_LAYOUT, phase};
use guest_images::mailbox::{CpuMailbox, MAILBOX_MAGIC, Mailbox, damage_kind, damage_state};
use memmap2::{MmapOptions, MmapRaw};
use serde::Serialize;

use super::clock;

/// Size of the mailbox.
pub const PAGE: usize = std::mem::size_of::<Mailbox>();
/// Bytes mapped: the minimum for a file with 2 MiB pages.
const MAPPED: usize = 2 << 20;

/// Access to the mailbox of one VM.
#[derive(Clone, Debug)]
pub enum MailboxPage {
    /// Through a mapping of the same file.
    Shared(Arc<SharedPage>),
    /// Through `/proc/PID/mem`, for private RAM.
    Foreign(Arc<File>, u64),
}

impl MailboxPage {
    /// Maps the mailbox of the RAM file at `path`.
    pub fn shared(path: &Path) -> io::Result<Self> {
        Ok(Self::Shared(Arc::new(SharedPage::map(path)?)))
    }

    /// Reads and writes the mailbox in the memory of another process, which maps RAM at `base`.
    pub fn foreign(path: &Path, base: u64) -> io::Result<Self> {
        let file = File::options().read(true).write(true).open(path)?;
        Ok(Self::Foreign(Arc::new(file), base + MAILBOX_GPA))
    }

    /// Reads the current content of the mailbox.
    pub fn read(&self) -> io::Result<View> {
        match self {
            Self::Shared(page) => Ok(View::of(page.get())),
            Self::Foreign(file, address) => {
                let mut copy = Box::new(Bytes([0; PAGE]));
                file.read_exact_at(&mut copy.0, *address)?;
                // SAFETY: `Bytes` has the mailbox's size and alignment, and every bit pattern is
                // a valid `Mailbox` (atomics of integers only).
                Ok(View::of(unsafe { &*(&raw mut *copy).cast::<Mailbox>() }))
            }
        }
    }

    /// Lets the guest continue from marker `n`.
    pub fn go(&self, n: u32) -> io::Result<()> {
        self.write(std::mem::offset_of!(Mailbox, marker_go), n, |m| &m.marker_go)
    }

    /// Asks every vCPU to reset its largest gap.
    pub fn request_gap(&self, n: u32) -> io::Result<()> {
        self.write(std::mem::offset_of!(Mailbox, gap_request), n, |m| &m.gap_request)
    }

    fn write(
        &self,
        offset: usize,
        value: u32,
        field: impl Fn(&Mailbox) -> &std::sync::atomic::AtomicU32,
    ) -> io::Result<()> {
        match self {
            Self::Shared(page) => {
                field(page.get()).store(value, Ordering::Release);
                Ok(())
            }
            Self::Foreign(file, address) => {
                file.write_all_at(&value.to_le_bytes(), address + offset as u64)
            }
        }
    }
}

/// A copy of the page, with the same alignment.
#[repr(C, align(4096))]
struct Bytes([u8; PAGE]);

/// The start of the RAM file, mapped.
#[derive(Debug)]
pub struct SharedPage {
    memory: MmapRaw,
}

impl SharedPage {
    fn map(path: &Path) -> io::Result<Self> {
        let file = File::options().read(true).write(true).open(path)?;
        if file.metadata()?.len() < MAILBOX_GPA + PAGE as u64 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "too small for a mailbox"));
        }
        Ok(Self { memory: MmapOptions::new().len(MAPPED).map_raw(&file)? })
    }

    /// The mailbox.
    pub fn get(&self) -> &Mailbox {
        // SAFETY: the file covers the page (checked in `map`; guest RAM does not shrink), the
        // address is page-aligned, and every bit pattern is a valid `Mailbox`.
        unsafe { &*self.memory.as_ptr().add(MAILBOX_GPA as usize).cast() }
    }
}

/// The content of the mailbox at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct View {
    /// Whether the guest has set the page up.
    pub ready: bool,
    /// Layout of the page.
    pub layout: u32,
    /// A [`phase`] value.
    pub phase: u32,
    /// The guest's name.
    pub name: String,
    /// How many times it has booted in this RAM.
    pub boots: u32,
    /// Number of vCPUs that run its body.
    pub cpus_online: u32,
    /// The highest marker reached.
    pub marker: u32,
    /// The newest request to reset gaps.
    pub gap_request: u32,
    /// Sweeps finished by the slowest vCPU.
    pub sweeps: u64,
    /// Bytes of RAM that it sweeps.
    pub ram_bytes: u64,
    /// The first damage.
    pub damage: Option<Damage>,
    /// What the guest needs and the host lacks; empty if nothing.
    pub unavailable: String,
    /// The greatest lateness of an expected instant, in TSC ticks.
    pub lateness: u64,
    /// The largest steps of a Linux guest's [`CLOCKS`] against the TSC, in nanoseconds.
    pub clock_steps: [u64; CLOCKS.len()],
    /// The parts of the vCPUs.
    pub cpus: Vec<Cpu>,
}

/// One vCPU's part of the mailbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cpu {
    /// Number of heartbeats.
    pub heartbeat: u64,
    /// Largest gap between two heartbeats, in TSC ticks.
    pub gap: u64,
    /// The newest gap request that it has carried out.
    pub gap_ack: u32,
    /// Whether it runs the body.
    pub online: bool,
    /// Number of pages visited.
    pub pages: u64,
}

impl View {
    fn of(mailbox: &Mailbox) -> Self {
        let cpus: Vec<Cpu> = mailbox.cpus.iter().map(Cpu::of).collect();
        Self {
            ready: mailbox.magic.load(Ordering::Acquire) == MAILBOX_MAGIC,
            layout: mailbox.layout.load(Ordering::Relaxed),
            phase: mailbox.phase.load(Ordering::Acquire),
            name: text(&mailbox.name),
            boots: mailbox.boots.load(Ordering::Relaxed),
            cpus_online: mailbox.cpus_online.load(Ordering::Relaxed),
            marker: mailbox.marker.load(Ordering::Acquire),
            gap_request: mailbox.gap_request.load(Ordering::Relaxed),
            ram_bytes: mailbox.ram_bytes.load(Ordering::Acquire),
            sweeps: mailbox.sweeps.load(Ordering::Relaxed),
            damage: Damage::of(&mailbox.damage),
            unavailable: text(&mailbox.unavailable),
            lateness: mailbox.lateness.load(Ordering::Relaxed),
            clock_steps: mailbox.clock_steps.each_ref().map(|step| step.load(Ordering::Relaxed)),
            cpus,
        }
    }

    /// Whether the body runs on all of `cpus` vCPUs.
    pub fn is_up(&self, cpus: u32) -> bool {
        self.ready && self.phase == phase::RUNNING && self.cpus_online >= cpus
    }

    /// The parts of the vCPUs that run the body, with their numbers.
    pub fn online(&self) -> impl Iterator<Item = (usize, &Cpu)> {
        self.cpus.iter().enumerate().filter(|(_, cpu)| cpu.online)
    }

    /// The largest gap of any vCPU; `None` if one has not carried out the newest request to reset
    /// them.
    pub fn largest_gap(&self) -> Option<Duration> {
        let all = self.online().all(|(_, cpu)| cpu.gap_ack == self.gap_request);
        self.online().map(|(_, cpu)| cpu.gap).max().filter(|_| all).map(clock::ticks)
    }

    /// The heartbeats of the first `cpus` vCPUs.
    pub fn heartbeats(&self, cpus: u32) -> Vec<u64> {
        self.cpus.iter().take(cpus as usize).map(|cpu| cpu.heartbeat).collect()
    }
}

impl Cpu {
    fn of(cpu: &CpuMailbox) -> Self {
        Self {
            heartbeat: cpu.heartbeat.load(Ordering::Acquire),
            // The acknowledgement first, so that the gap read next is not older than it.
            gap_ack: cpu.gap_ack.load(Ordering::Acquire),
            gap: cpu.gap.load(Ordering::Acquire),
            online: cpu.online.load(Ordering::Relaxed) != 0,
            pages: cpu.pages.load(Ordering::Relaxed),
        }
    }
}

/// The first damage a guest found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Damage {
    kind: u32,
    cpu: u32,
    vector: u32,
    error_code: u64,
    rip: u64,
    address: u64,
    expected: u64,
    found: u64,
    detail: u64,
    text: String,
    whole: bool,
}

impl Damage {
    fn of(damage: &guest_images::mailbox::Damage) -> Option<Self> {
        let state = damage.state.load(Ordering::Acquire);
        (state != damage_state::NONE).then(|| Self {
            kind: damage.kind.load(Ordering::Relaxed),
            cpu: damage.cpu.load(Ordering::Relaxed),
            vector: damage.vector.load(Ordering::Relaxed),
            error_code: damage.error_code.load(Ordering::Relaxed),
            rip: damage.rip.load(Ordering::Relaxed),
            address: damage.address.load(Ordering::Relaxed),
            expected: damage.expected.load(Ordering::Relaxed),
            found: damage.found.load(Ordering::Relaxed),
            detail: damage.detail.load(Ordering::Relaxed),
            text: text(&damage.text),
            whole: state == damage_state::VALID,
        })
    }
}

impl Damage {
    /// Whether the record is complete; until then its fields are meaningless.
    pub fn is_whole(&self) -> bool {
        self.whole
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cpu, rip, address, expected, found, detail, .. } = self;
        if !self.whole {
            return write!(f, "vCPU {cpu} was writing a damage record and did not finish");
        }
        match self.kind {
            damage_kind::PATTERN => write!(
                f,
                "vCPU {cpu} found a damaged page: at {address:#x} expected {expected:#018x}, found {found:#018x} (generation {detail})"
            ),
            damage_kind::EXCEPTION => {
                let vector = self.vector;
                let name = exception(vector);
                let code = self.error_code;
                write!(
                    f,
                    "vCPU {cpu} took exception {vector} ({name}) at RIP {rip:#x}, error code {code:#x}"
                )?;
                if vector == 14 { write!(f, ", address {address:#x}") } else { Ok(()) }
            }
            damage_kind::PANIC => write!(f, "vCPU {cpu} panicked: {}", self.text),
            damage_kind::TSC_BACK => write!(
                f,
                "vCPU {cpu} saw the TSC go back: {expected:#x} was followed by {found:#x}"
            ),
            damage_kind::CPU_MISSING => {
                write!(f, "of {expected} vCPUs only {found} came up")
            }
            damage_kind::VALUE => {
                let name = &self.text;
                write!(
                    f,
                    "vCPU {cpu} found a wrong value, {name}: {found:#x}, must be {expected:#x}"
                )
            }
            damage_kind::TEXT => write!(f, "vCPU {cpu} found damage: {}", self.text),
            kind => write!(
                f,
                "vCPU {cpu} found damage of unknown kind {kind}: at {address:#x} expected {expected:#x}, found {found:#x}, detail {detail:#x}, text {:?}",
                self.text
            ),
        }
    }
}

/// The mnemonic of an x86 exception.
fn exception(vector: u32) -> &'static str {
    const NAMES: [&str; 22] = [
        "#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "9", "#TS", "#NP", "#SS",
        "#GP", "#PF", "15", "#MF", "#AC", "#MC", "#XM", "#VE", "#CP",
    ];
    NAMES.get(vector as usize).copied().unwrap_or("interrupt")
}

fn text(bytes: &[AtomicU8]) -> String {
    let bytes: Vec<u8> =
        bytes.iter().map(|b| b.load(Ordering::Relaxed)).take_while(|b| *b != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}
