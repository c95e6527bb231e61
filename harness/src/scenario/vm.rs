//! The virtual machine of a case.

use clap::ValueEnum;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::kill::Keeper;
use super::limit::Amount;
use super::qemu::QemuVm;
use super::size::Size;
use super::stalled::Stalled;

/// The guests that count sweeps over their RAM, or of what they receive.
pub const SWEEPING: [&str; 4] = ["dma", "pattern", "serial", guest_images::LINUX];

/// The virtual machine of a case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Vm {
    /// The guest that boots.
    #[serde(default = "heartbeat")]
    #[schemars(transform = super::schema_parts::guests)]
    pub guest: String,
    /// The privilege level of the guest's body: 3 as a program, 0 as a kernel.
    #[serde(default, skip_serializing_if = "Ring::is_default")]
    pub ring: Ring,
    /// The series of the kernel that the guest `linux` boots, such as `6` or `7.3`; none: the newest
    /// that is installed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("pattern" = "^[0-9]+([.][0-9]+)*$"))]
    pub kernel: Option<String>,
    /// Number of vCPUs.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 8))]
    pub cpus: u32,
    /// Size of RAM.
    #[serde(default)]
    pub memory: Size,
    /// Whether RAM is shared memory, which an update needs.
    #[serde(default = "yes")]
    pub share: bool,
    /// Page size of RAM.
    #[serde(default)]
    pub pages: Pages,
    /// Whether RAM is in a file, which outlives the VMM (mode `cpr-reboot`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub memory_file: bool,
    /// What the serial port is connected to.
    #[serde(default, skip_serializing_if = "SerialKind::is_default")]
    pub serial: SerialKind,
    /// The devices behind PCI, in the order of their slots.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<Device>,
    /// Whether the guest waits for `cont` before it starts.
    #[serde(default)]
    pub paused: bool,
    /// Additional text for the guest's command line; the seed is always included.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub cmdline: String,
    /// A system call filter that the VMM is started under.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seccomp: Option<Seccomp>,
    /// The signal settings that the VMM is started with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signals: Option<Signals>,
    /// Gives the VMM its own memory cgroup, with this limit once the guest has booted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_limit: Option<Amount>,
    /// Whether the VMM is started from a copy of its binary in the case's folder.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub own_binary: bool,
    /// When the VMM has a keeper; none: the VMM's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keeper: Option<Keeper>,
    /// Sends the VMM's log to a pipe that is never read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stalled: Option<Stalled>,
    /// What QEMU is started with besides; a case with any of it needs QEMU.
    #[serde(default, skip_serializing_if = "QemuVm::is_empty")]
    pub qemu: QemuVm,
}

impl Default for Vm {
    fn default() -> Self {
        Self {
            guest: heartbeat(),
            ring: Ring::default(),
            kernel: None,
            cpus: one(),
            memory: Size::default(),
            share: yes(),
            pages: Pages::default(),
            memory_file: false,
            serial: SerialKind::default(),
            devices: Vec::new(),
            paused: false,
            cmdline: String::new(),
            seccomp: None,
            signals: None,
            memory_limit: None,
            own_binary: false,
            keeper: None,
            stalled: None,
            qemu: QemuVm::default(),
        }
    }
}

impl Vm {
    /// Whether the guest counts sweeps.
    pub fn counts_sweeps(&self) -> bool {
        SWEEPING.contains(&self.guest.as_str())
    }

    /// Whether the guest is a Linux kernel of the host's.
    pub fn is_linux(&self) -> bool {
        self.guest == guest_images::LINUX
    }

    /// The last marker at which the guest waits, from 1; 0 if it waits at none.
    pub fn markers(&self) -> u32 {
        self.word("markers").and_then(|n| n.parse().ok()).unwrap_or(0)
    }

    /// The value of `key` on the guest's command line.
    pub fn word(&self, key: &str) -> Option<&str> {
        let mut words = self.cmdline.split_ascii_whitespace();
        words.find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    }
}

/// A device behind PCI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Device {
    /// An entropy device.
    VirtioRng,
    /// An entropy device with little entropy: requests wait for some milliseconds.
    SlowVirtioRng,
}

impl Device {
    /// Its kind, as our VMM names it.
    pub fn kind(self) -> &'static str {
        match self {
            Self::VirtioRng | Self::SlowVirtioRng => "virtio-rng",
        }
    }
}

/// The privilege level at which the body of a guest runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "u8", into = "u8")]
#[schemars(extend("enum" = [0, 3]))]
pub enum Ring {
    /// CPL0.
    Kernel,
    /// CPL3, which every host runs at full speed.
    #[default]
    User,
}

/// An error for a number that is not a ring of a guest.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid ring {0}: expected 0 or 3")]
pub struct BadRing(u8);

impl Ring {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl TryFrom<u8> for Ring {
    type Error = BadRing;

    fn try_from(number: u8) -> Result<Self, BadRing> {
        match number {
            0 => Ok(Self::Kernel),
            3 => Ok(Self::User),
            other => Err(BadRing(other)),
        }
    }
}

impl From<Ring> for u8 {
    fn from(ring: Ring) -> Self {
        match ring {
            Ring::Kernel => 0,
            Ring::User => 3,
        }
    }
}

/// A system call filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Seccomp {
    /// `execve` fails with EPERM, `execveat` works.
    NoExecve,
}

/// Signal settings that a process inherits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Signals {
    /// SIGCHLD is ignored.
    SigchldIgnored,
    /// SIGRTMIN is blocked.
    SigrtminBlocked,
    /// All signals that can be blocked are blocked.
    AllBlocked,
}

fn heartbeat() -> String {
    "heartbeat".into()
}

fn one() -> u32 {
    1
}

fn yes() -> bool {
    true
}

/// What the guest's serial port is connected to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SerialKind {
    /// A file.
    #[default]
    File,
    /// A UNIX socket.
    Unix,
}

impl SerialKind {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Page size of the guest's RAM on the host.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ValueEnum,
)]
pub enum Pages {
    /// 4 KiB.
    #[default]
    #[serde(rename = "4k")]
    #[value(name = "4k")]
    Small,
    /// Transparent huge pages.
    #[serde(rename = "thp")]
    #[value(name = "thp")]
    Transparent,
    /// 2 MiB pages from the host's hugetlbfs pool.
    #[serde(rename = "2m")]
    #[value(name = "2m")]
    Reserved,
}

impl Pages {
    /// The name in a scenario and on the VMM's command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Small => "4k",
            Self::Transparent => "thp",
            Self::Reserved => "2m",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn the_guests_that_count_sweeps_are_those_whose_source_does() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-images");
        let counts = |guest: &&str| {
            let source = match *guest {
                guest_images::LINUX => folder.join("linux/src/memory.rs"),
                guest => folder.join(format!("guests/{guest}.rs")),
            };
            let source = std::fs::read_to_string(source).unwrap();
            source.contains("mailbox().sweeps") || source.contains("mailbox.sweeps")
        };
        let counting: Vec<&str> = guest_images::names().into_iter().filter(counts).collect();
        assert_eq!(counting, SWEEPING);
    }
}
