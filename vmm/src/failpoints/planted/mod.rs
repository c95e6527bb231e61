//! Planted bugs: mistakes that VMMs have made, to prove that a scenario notices each of them.
//!
//! Planted by `--plant NAME`; `scenarios/BUG-CLASSES.md` lists the classes. Most act where something
//! passes a seam (`failpoints::seam`), the others by `planted!` at the place of the mistake.

pub(super) mod call;
pub(super) mod handover;
pub(super) mod message;
pub(super) mod process;
pub(super) mod saved_state;

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

macro_rules! bugs {
    ($($(#[$doc:meta])* $bug:ident: $name:literal,)*) => {
        /// A planted bug.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Planted {
            $($(#[$doc])* $bug,)*
        }

        impl Planted {
            /// All bugs.
            pub const ALL: &[Self] = &[$(Self::$bug),*];

            /// Its name.
            pub fn name(self) -> &'static str {
                match self { $(Self::$bug => $name),* }
            }
        }
    };
}

bugs! {
    /// The error of a failed exec names the old file of an earlier update.
    StaleError: "stale-error",
    /// The errno is read after other system calls.
    WrongErrno: "wrong-errno",
    /// An empty command is accepted.
    EmptyCommand: "empty-command",
    /// The CPR state's memfd stays open.
    KeepStateFd: "keep-state-fd",
    /// The environment variable that names the CPR state is not removed.
    KeepVariable: "keep-variable",
    /// A guest that was running stays paused after a failure.
    StayPaused: "stay-paused",
    /// A guest that was paused runs after an update.
    AlwaysResume: "always-resume",
    /// A failure is reported as success.
    FailureIsSuccess: "failure-is-success",
    /// After an update, the next one finds it still in progress.
    NeverOver: "never-over",
    /// A failed update leaves a descriptor open.
    LeakFd: "leak-fd",
    /// Descriptors stay open across later execs.
    KeepInheritable: "keep-inheritable",
    /// The new process leaves descriptors open across later execs.
    ForgetCloseOnExec: "forget-close-on-exec",
    /// Descriptors are found by their position in the list.
    ByOrder: "by-order",
    /// STOP is missing.
    NoStopEvent: "no-stop-event",
    /// `completed` comes before RESUME.
    EarlyCompleted: "early-completed",
    /// RESUME comes twice.
    DoubleResume: "double-resume",
    /// The socket's file is left behind.
    StaleSocket: "stale-socket",
    /// SIGTERM stays blocked.
    KeepMask: "keep-mask",
    /// The limit on descriptors is lowered.
    LowerLimit: "lower-limit",
    /// Guest requests made during the update are forgotten.
    ForgetEvents: "forget-events",
    /// A short write of the state goes unnoticed.
    ShortState: "short-state",
    /// The state's checksum is not compared.
    NoChecksum: "no-checksum",
    /// A state of any version is read.
    AnyVersion: "any-version",
    /// A descriptor whose ID is 0 is taken for a missing one.
    ZeroIsAbsent: "zero-is-absent",
    /// The VM's descriptor crosses exec.
    StaleVm: "stale-vm",
    /// RAM is mapped privately by the new process.
    PrivateMapping: "private-mapping",
    /// RAM above the hole is mapped from the beginning of its file.
    WrongOffset: "wrong-offset",
    /// A vCPU does not answer a request to pause.
    DeafVcpu: "deaf-vcpu",
    /// The second half of the MSRs is not set, and the count is not checked.
    PartialMsrs: "partial-msrs",
    /// The guest's clock does not count the blackout.
    ClockStandsStill: "clock-stands-still",
    /// A feature is missing from CPUID.
    LoseCpuid: "lose-cpuid",
    /// Only the first bytes of the XSAVE area are kept.
    TruncateXsave: "truncate-xsave",
    /// XCR0 has its value after a reset.
    ForgetXcr0: "forget-xcr0",
    /// The debug registers are forgotten.
    ForgetDebugRegs: "forget-debug-regs",
    /// A half-done port or MMIO access is not completed.
    HalfDoneAccess: "half-done-access",
    /// The requested interrupts of the LAPIC (IRR) are forgotten.
    ForgetIrr: "forget-irr",
    /// The in-service interrupts of the LAPIC (ISR) are forgotten.
    ForgetIsr: "forget-isr",
    /// A pending NMI is forgotten.
    ForgetNmi: "forget-nmi",
    /// The interrupt shadow is forgotten.
    ForgetShadow: "forget-shadow",
    /// The slave PIC is forgotten.
    ForgetSlavePic: "forget-slave-pic",
    /// The IOAPIC is forgotten.
    ForgetIoapic: "forget-ioapic",
    /// The PIT is forgotten.
    ForgetPit: "forget-pit",
    /// The mp state is forgotten.
    ForgetMpState: "forget-mp-state",
    /// The one-shot timer that has fired fires again.
    OneShotTwice: "one-shot-twice",
    /// A LAPIC timer that counts down starts over.
    RestartTimer: "restart-timer",
    /// The LAPIC's timer counts at half its speed.
    SlowTimer: "slow-timer",
    /// The UART is as after power-on.
    ForgetUart: "forget-uart",
    /// The real-time clock's memory is cleared.
    ForgetCmos: "forget-cmos",
    /// The real-time clock shows the host's time, not the one that the guest has set.
    ForgetClock: "forget-clock",
    /// The enabled events of the power management are forgotten.
    ForgetPower: "forget-power",
    /// The MSI-X table of a virtio device is as after power-on.
    ForgetMsix: "forget-msix",
    /// A virtio device starts its queues from the beginning.
    RestartQueues: "restart-queues",
    /// A virtio device is as after a reset, but for its queues.
    ForgetVirtioStatus: "forget-virtio-status",
    /// The features that a virtio driver has chosen are forgotten.
    ForgetVirtioFeatures: "forget-virtio-features",
    /// A queue that the guest has notified is not looked at after an update.
    LoseKick: "lose-kick",
    /// After the death of a process, a device's interrupt is not raised again.
    LoseInterrupt: "lose-interrupt",
    /// A device's writes to RAM are missing in the log of pages to copy.
    UnloggedDma: "unlogged-dma",
    /// Devices are saved before the vCPUs that write to them are paused.
    DevicesFirst: "devices-first",
    /// The guest does not learn about its pause.
    NoKvmclockCtrl: "no-kvmclock-ctrl",
    /// The second vCPU's TSC is ahead.
    SkewTsc: "skew-tsc",
    /// `immediate_exit` stays set after a pause.
    KeepImmediateExit: "keep-immediate-exit",
}

/// What `--plant` accepts: one of these bugs, `swap-N`, an order in which constraint N of
/// `vcpu::order` or `machine::order` is broken, or `lose-N`, a loss drawn by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plant {
    /// A bug.
    Bug(Planted),
    /// The constraint that is broken.
    Swap(u8),
    /// The number of a loss (see `failpoints::loss`).
    Lose(u64),
}

const SWAP: &str = "swap-";
const LOSE: &str = "lose-";
/// No constraint has this number.
const NO_SWAP: u8 = 0;

/// A bit for each bug.
static SET: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
static SWAPPED: AtomicU8 = AtomicU8::new(NO_SWAP);

/// Plants a bug.
pub fn plant(plant: Plant) {
    match plant {
        Plant::Bug(bug) => {
            let (word, bit) = place(bug);
            word.fetch_or(bit, Ordering::SeqCst);
        }
        Plant::Swap(number) => SWAPPED.store(number, Ordering::SeqCst),
        Plant::Lose(number) => super::loss::lose(number),
    }
}

/// Whether `bug` is planted.
pub fn planted(bug: Planted) -> bool {
    let (word, bit) = place(bug);
    word.load(Ordering::SeqCst) & bit != 0
}

fn place(bug: Planted) -> (&'static AtomicU64, u64) {
    (&SET[bug as usize / 64], 1 << (bug as u32 % 64))
}

/// Returns the constraint to break, if any.
pub fn swapped() -> Option<u8> {
    Some(SWAPPED.load(Ordering::SeqCst)).filter(|&number| number != NO_SWAP)
}

/// The bug is unknown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown bug \"{0}\": --plant accepts {list}", list = names())]
pub struct PlantedError(String);

impl FromStr for Plant {
    type Err = PlantedError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        if let Some(number) = name.strip_prefix(LOSE).and_then(|number| number.parse().ok()) {
            return Ok(Self::Lose(number));
        }
        let bugs = Planted::ALL.iter().map(|&bug| Self::Bug(bug));
        let known = bugs
            .chain(CONSTRAINTS.into_iter().map(Self::Swap))
            .find(|known| known.to_string() == name);
        known.ok_or_else(|| PlantedError(name.to_owned()))
    }
}

impl fmt::Display for Plant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bug(bug) => f.write_str(bug.name()),
            Self::Swap(number) => write!(f, "{SWAP}{number}"),
            Self::Lose(number) => write!(f, "{LOSE}{number}"),
        }
    }
}

/// The numbers of all constraints in `vcpu::order` and `machine::order`.
pub const CONSTRAINTS: [u8; 30] = [
    1, 2, 3, 4, 11, 12, 13, 14, 16, 17, 18, 19, 20, 21, 22, 23, 31, 32, 33, 34, 35, 36, 37, 38, 39,
    40, 41, 42, 51, 52,
];

fn names() -> String {
    let mut names: Vec<_> = Planted::ALL.iter().map(|bug| bug.name().to_owned()).collect();
    names.extend(CONSTRAINTS.into_iter().map(|number| Plant::Swap(number).to_string()));
    names.push(format!("{LOSE}N"));
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bug_has_its_own_name_and_bit() {
        assert!(Planted::ALL.len() <= 128);
        for bug in Planted::ALL {
            assert_eq!(bug.name().parse(), Ok(Plant::Bug(*bug)));
        }
        assert!("no-such-bug".parse::<Plant>().unwrap_err().to_string().contains("stale-error"));
    }

    #[test]
    fn every_constraint_has_its_own_number_and_can_be_broken() {
        let mut numbers: Vec<_> = CONSTRAINTS.to_vec();
        for &number in &numbers {
            assert_eq!(format!("swap-{number}").parse(), Ok(Plant::Swap(number)));
        }
        assert!("swap-0".parse::<Plant>().is_err());
        let all = numbers.len();
        numbers.sort();
        numbers.dedup();
        assert_eq!(numbers.len(), all);
    }
}
